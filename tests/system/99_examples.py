"""What the documents say is so: every `sh` and `python` block of README.md and docs/ runs, line by line, against a service of the test's
own; docs/COMPAT.md names the same fields as the tables in the code. The blocks that want foreign programs are listed here."""
import json
import os
import re
import shutil
import subprocess
import tempfile

import sdk_venv
from house import BIN, FIXTURES, HERE, House, main, partial_of, wait_for
from web import alive, port_of

TOP = os.path.join(HERE, "..", "..")
DOCUMENTS = ["README.md", "docs/TOOLS.md", "docs/COMPAT.md", "clients/gateway/README.md"]
NOT_RUN = {  # a line's beginning: why it is not run here
    "deploy/quickstart.sh": "builds all of this again", "tests/run.sh": "runs this test", "deploy/packages.sh": "installs packages",
    "cmake": "builds all of this again", "sudo": "wants root", "OPENAI_API_BASE_URL": "wants Open WebUI", "export OPENAI_API_BASE": "wants aider",
    "hearth serve": "is the service of this test", "hearth chat": "wants a terminal",
    "hearth yield": "lends the memory of all that follows for an hour",
    "hearth synth": "writes more than a gigabyte",
}
# Names that stand for something: models, and a request.
NAMES = ["qwen3-32b", "bge-small", "MODEL"]


def blocks(kind):
    for name in DOCUMENTS:
        with open(os.path.join(TOP, name)) as f:
            for n, found in enumerate(re.findall(r"^```%s\n(.*?)^```$" % kind, f.read(), re.M | re.S)):
                yield "%s, %s block %d" % (name, kind, n + 1), found


def lines(block):
    """Commands of a block: a line, with those that its quotes or backslashes make part of it."""
    whole = ""
    for line in block.splitlines():
        whole += line + "\n"
        if subprocess.run(["bash", "-n", "-c", whole], capture_output=True).returncode == 0 and not whole.endswith("\\\n"):
            if whole.strip():
                yield whole.strip()
            whole = ""
    assert not whole, whole


def environment(house, base):
    return dict(house.env, PATH=os.path.abspath(BIN) + ":" + os.environ["PATH"], HOME=base)


def shell(house):
    base, ran, last = house.base, 0, ""
    for name in ("model.gguf", "text"):
        shutil.copy(os.path.join(FIXTURES, "hearth-tiny.gguf" if "." in name else "stories.tsv"), os.path.join(base, name))
    for where, block in blocks("sh"):
        for line in lines(block):
            if any(line.startswith(begin) for begin in NOT_RUN):
                continue
            if line.startswith("curl") and not shutil.which("curl"):
                continue
            line = line.replace("127.0.0.1:4327", "127.0.0.1:" + port_of(house)).replace(" ID", " " + last)
            done = subprocess.run(["bash", "-c", line], cwd=base, env=environment(house, base), capture_output=True, timeout=200)
            assert done.returncode == 0 and b'{"error"' not in done.stdout, (where, line, done)
            last = done.stdout.decode(errors="replace").split("\n")[0].strip() if "--detach" in line else last
            ran += 1
    assert ran > 20, "only %d commands were found" % ran


def python(house):
    directory = sdk_venv.ready()
    ran = 0
    for where, block in blocks("python"):
        foreign = re.findall(r"^(?:from|import) (openai|langchain_openai)", block, re.M)
        if foreign and not directory:
            continue
        program = os.path.join(directory, "bin", "python") if foreign else "python3"
        done = subprocess.run([program, "-c", block.replace("127.0.0.1:4327", "127.0.0.1:" + port_of(house))], cwd=house.base,
                              env=dict(environment(house, house.base)), capture_output=True, timeout=200)
        assert done.returncode == 0 and done.stdout.strip(), (where, done)
        ran += 1
    print("  %d blocks ran%s" % (ran, "" if directory else "; those with foreign packages did not: they are not here"))
    assert ran > 0


def json_is_json():
    for where, block in blocks("json"):
        assert json.loads(block), where


def every_reason_is_used():
    all_lines = [line for _, block in blocks("sh") for line in lines(block)]
    for begin in NOT_RUN:
        assert any(line.startswith(begin) for line in all_lines), "nothing begins with %s any more" % begin


# ---- docs/COMPAT.md ----

def fields_of(source, table):
    """{field: kind} of a table in the code; SHARED in it is its own table."""
    with open(os.path.join(TOP, "clients/gateway", source)) as f:
        text = f.read()
    found = re.search(r"static const struct field %s\[\] = \{(.*?)\n\};" % table, text, re.S).group(1)
    if "SHARED" in found:
        found += re.search(r"#define SHARED(.*?)\n\n", text, re.S).group(1)
    return dict(re.findall(r'\{ "(\w+)",\s*FIELD_(\w+)', found))


def compatibility_is_told():
    """Each field of the code stands in the table, as yes, partly, no or ignored; and nothing else does."""
    with open(os.path.join(TOP, "docs", "COMPAT.md")) as f:
        text = f.read()
    rows = re.search(r"## Fields of a generation\n(.*?)\n\n", text, re.S).group(1).splitlines()[2:]
    told = {"chat": {}, "completions": {}}
    for row in rows:
        names, chat, completions = [cell.strip() for cell in row.split("|")[1:4]]
        for name in re.split(r"[, ]+", names):
            name = name.split(".")[0]
            if re.fullmatch(r"[a-z_0-9]+", name) and name not in ("and", "none", "auto", "required", "or", "a", "function"):
                for api, said in (("chat", chat), ("completions", completions)):
                    if said:
                        told[api].setdefault(name, set()).add(said)
    for api, table in (("chat", "chat_fields"), ("completions", "completion_fields")):
        fields = fields_of("openai_fields.c", table)
        assert len(fields) > 30, fields
        assert set(fields) == set(told[api]), (api, "only in the code: %s" % sorted(set(fields) - set(told[api])),
                                               "only in the document: %s" % sorted(set(told[api]) - set(fields)))
        for name, kind in fields.items():
            wanted = {"REFUSED": {"no"}, "IGNORED": {"ignored"}}.get(kind, {"yes", "partly", "no"})
            assert told[api][name] <= wanted, (api, name, kind, told[api][name])
    with open(os.path.join(TOP, "clients/gateway/main.c")) as f:
        routes = set(re.findall(r'\{ "(?:GET|POST)", "([\w/-]+)"', f.read()))
    endpoints = re.search(r"## Endpoints\n(.*?)\n\n## ", text, re.S).group(1)
    for route in routes:
        assert "/" + route.rstrip("/") in endpoints, "COMPAT.md does not name /%s" % route


main(json_is_json, every_reason_is_used, compatibility_is_told)
base = House(start=False)
models = tempfile.mkdtemp(dir=base.base)
for other in NAMES:
    os.symlink(os.path.abspath(os.path.join(FIXTURES, "hearth-tiny.gguf")), os.path.join(models, other + ".gguf"))
with open(os.path.join(base.base, "hearth.conf"), "w") as conf:
    conf.write("[hearth]\ndefault_model = hearth-tiny\n")
base.models.append(models)
base.options = ["--http", "127.0.0.1:0", "--config", os.path.join(base.base, "hearth.conf")]
base.start()
with base as one:
    wait_for("the gateway", lambda: alive(one))
    main(*[partial_of(t, one) for t in (shell, python)])
