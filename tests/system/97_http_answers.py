"""Answers whose text is known beforehand (scripted.py) over HTTP: thoughts, tool calls, several answers, the middle filled in, every
sampler; and streams picked up again by their ids after the gateway was killed."""
import http.client
import json
import os
import re
import subprocess

from house import main, partial_of, wait_for
from web import alive, call, connection, post, scripted_house, stream, through_every_death

CALL = ['<tool_call>\n', '{"name": "get_weather", "arg', 'uments": {"city": "Ro', 'me"}}', '\n</tool_call>']
SCRIPTS = {
    "weather": ["It ", "rains", " in", " Rome", "."],
    "think": ["<think>", "Let me", " see.", "</think>\n\n", "For", "ty", "-two."],
    "look": ["<think>", "I must", " look.", "</think>", "Let me look. "] + CALL + ["\n"] + CALL,
    "count": ["one", "*"] + [" %s" % w for w in "two three four five six seven eight nine ten".split()],
    "dice": [["heads"], ["tails"], ["edge"]],
    "beast": [["cat", " purrs"], ["dog", " barks"]],
    "letters": ["\u00e4\u00f6", "<0xF0>", "<0x9F>", "\ufb01n"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}


def ask(text, **more):
    return dict({"model": "scripted", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 200}, **more)


def deltas(house, body):
    got = stream(house, "/v1/chat/completions", body)
    assert got[-1] is None
    return [c["choices"][0] for c in got[:-1]]


def one_kind_in_each_delta(house):
    said = deltas(house, ask("look now", tools=[TOOL]))
    kinds = [tuple(d["delta"]) for d in said]
    assert kinds[0] == ("role", "content") and kinds[-1] == () and said[-1]["finish_reason"] == "tool_calls", kinds
    assert all(len(k) == 1 for k in kinds[1:-1]), kinds
    order = [k[0] for i, k in enumerate(kinds[1:-1]) if i == 0 or k != kinds[i]]
    assert order == ["reasoning_content", "content", "tool_calls"], order
    assert "".join(d["delta"].get("reasoning_content", "") for d in said) == "I must look."
    assert "".join(d["delta"].get("content", "") for d in said) == "Let me look."
    assert sum("content" in d["delta"] for d in said) > 1, "it came whole"
    calls = [d["delta"]["tool_calls"] for d in said if "tool_calls" in d["delta"]]
    assert all(len(c) == 1 for c in calls) and [c[0]["index"] for c in calls] == [0, 0, 1, 1]
    for begin, rest in (calls[:2], calls[2:]):
        assert begin[0]["type"] == "function" and begin[0]["function"] == {"name": "get_weather", "arguments": ""}
        assert set(rest[0]) == {"index", "function"} and json.loads(rest[0]["function"]["arguments"]) == {"city": "Rome"}
    assert calls[0][0]["id"] != calls[2][0]["id"]
    whole = post(house, "/v1/chat/completions", ask("look now", tools=[TOOL]))["choices"][0]
    assert whole["finish_reason"] == "tool_calls" and whole["message"]["content"] == "Let me look."
    assert [json.loads(c["function"]["arguments"]) for c in whole["message"]["tool_calls"]] == [{"city": "Rome"}] * 2
    none = post(house, "/v1/chat/completions", ask("look now", tools=[TOOL], tool_choice="none"))["choices"][0]
    assert "tool_calls" not in none["message"] and none["finish_reason"] == "stop"


def a_call_is_answered(house):
    first = post(house, "/v1/chat/completions", ask("look now", tools=[TOOL]))["choices"][0]["message"]
    messages = [{"role": "user", "content": "look now"}, first,
                {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "weather: rain"}]
    assert post(house, "/v1/chat/completions", ask("", messages=messages, tools=[TOOL]))["choices"][0]["message"]["content"] == "It rains in Rome."


def thoughts_apart(house):
    whole = post(house, "/v1/chat/completions", ask("think hard"))
    message = whole["choices"][0]["message"]
    assert message["content"] == "Forty-two." and message["reasoning_content"] == "Let me see.", message
    assert 2 <= whole["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 4
    said = deltas(house, ask("think hard"))
    assert "".join(d["delta"].get("content", "") for d in said) == "Forty-two."


def manners_are_settings(house):
    """Another gateway of the same hearth: lenient, and with both names of thoughts."""
    program = os.path.join(os.environ.get("HEARTH_BIN", ""), "hearth-http")
    assert subprocess.run([program, "--fields", "loose"], env=house.env, capture_output=True).returncode == 2
    with subprocess.Popen([program, "--listen", "127.0.0.1:0", "--fields", "lenient", "--reasoning", "both"], env=house.env,
                          stderr=subprocess.PIPE, text=True) as own:
        try:
            port = int(re.search(r"listens at http://127\.0\.0\.1:(\d+)", own.stderr.readline()).group(1))
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=100)

            def say(body, status=200):
                c.request("POST", "/v1/chat/completions", json.dumps(body))
                r = c.getresponse()
                answer = r.read()
                assert r.status == status, answer
                return r.getheader("x-hearth-ignored"), answer
            ignored, answer = say(ask("think hard", foo=1, audio={"voice": "x"}, user="me", **{"r\u00e4tsel": 2}))
            message = json.loads(answer)["choices"][0]["message"]
            assert ignored == "foo, audio, user, ?" and message["reasoning"] == message["reasoning_content"] == "Let me see.", (ignored, message)
            lines = say(ask("think hard", stream=True))[1].split(b"\n")
            parts = [json.loads(d[6:])["choices"][0]["delta"] for d in lines if d.startswith(b"data: {")]
            assert all(d.get("reasoning") == d.get("reasoning_content") for d in parts)
            assert "".join(d.get("reasoning", "") for d in parts) == "Let me see."
            say(ask("think hard", foo=1, temperature="hot"), 400)
            say(ask("think hard", tool_choice="required"), 400)  # a known field means what it says
        finally:
            own.terminate()


def characters_stay_whole(house):
    for d in deltas(house, ask("letters")):
        d["delta"].get("content", "").encode()
    text = post(house, "/v1/chat/completions", ask("letters"))["choices"][0]["message"]["content"]
    assert text.startswith("\u00e4\u00f6") and text.endswith("\ufb01n"), text


def several_answers(house):
    body = ask("dice", n=8, temperature=1, top_k=0, top_p=1, min_p=0, seed=4)
    whole = post(house, "/v1/chat/completions", body)
    texts = [c["message"]["content"] for c in whole["choices"]]
    assert [c["index"] for c in whole["choices"]] == list(range(8)) and len(set(texts)) > 1 and set(texts) <= {"heads", "tails", "edge"}
    alone = [post(house, "/v1/chat/completions", dict(body, n=1, seed=4 + i))["choices"][0]["message"]["content"] for i in range(8)]
    assert alone == texts
    assert whole["usage"]["completion_tokens"] == 8, whole["usage"]
    streamed = [""] * 8
    ends = [None] * 8
    for chunk in stream(house, "/v1/chat/completions", body)[:-1]:
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice["delta"].get("content", "")
        ends[choice["index"]] = choice["finish_reason"]
    assert streamed == texts and ends == ["stop"] * 8
    many = post(house, "/v1/completions", {"model": "scripted", "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 1})
    assert [c["index"] for c in many["choices"]] == list(range(6))
    ids = post(house, "/v1/completions", {"model": "scripted", "prompt": [[3, 4], [5]], "max_tokens": 1})
    assert len(ids["choices"]) == 2 and ids["usage"]["prompt_tokens"] == 3


def the_prompt_is_read_once(house):
    """Answers beyond the first find their prompt done, in pages of 64 positions."""
    long = "word " * 400
    def computed():
        text = call(house, "GET", "/metrics")[2].decode()
        read = [int(line.split()[-1]) for name in ("prompt", "cached") for line in text.splitlines()
                if line.startswith("hearth_http_%s_tokens_total " % name)]
        return read[0] - read[1]
    before = computed()
    one = post(house, "/v1/chat/completions", ask(long + "weather", n=4, model="scripted"))
    n_prompt = one["usage"]["prompt_tokens"]
    assert n_prompt > 400 and computed() - before < n_prompt + 4 * 130, (n_prompt, computed() - before)


def the_middle_is_filled_in(house):
    body = {"model": "scripted", "prompt": "def f():\n    y", "suffix": "\n    return y", "max_tokens": 20, "temperature": 0}
    assert post(house, "/v1/completions", body)["choices"][0]["text"] == " = 1"
    assert "".join(c["choices"][0]["text"] for c in stream(house, "/v1/completions", body)[:-1]) == " = 1"
    error = post(house, "/v1/completions", dict(body, model="hearth-tiny"), 400)["error"]
    assert error["param"] == "suffix" and "middle" in error["message"], error
    assert post(house, "/v1/completions", dict(body, prompt=[1]), 400)["error"]["param"] == "suffix"


def what_is_banned_does_not_come(house):
    sure = dict(temperature=1, top_k=0, top_p=1, min_p=0)
    for seed in range(4):
        text = post(house, "/v1/chat/completions", ask("beast", seed=seed, banned_strings=["Dog"], **sure))["choices"][0]["message"]["content"]
        assert text == "cat purrs", text
        text = post(house, "/v1/chat/completions", ask("beast", seed=seed, banned_strings=["t pur"], **sure))["choices"][0]["message"]["content"]
        assert text == "dog barks", text  # it had begun, and was taken back
    cat = [t["id"] for t in post(house, "/tokenize", {"model": "scripted", "content": "cat", "with_pieces": True})["tokens"]]
    assert cat
    heads = deltas(house, ask("dice", logprobs=True, top_logprobs=3))
    first = [t for d in heads if d["logprobs"] for t in d["logprobs"]["content"]][0]["top_logprobs"]
    assert sorted(t["token"] for t in first) == ["edge", "heads", "tails"] and all(abs(t["logprob"] + 1.0986) < 0.01 for t in first)


def every_sampler(house):
    every = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "top_n_sigma": 3, "dynatemp_range": 0.2,
             "dynatemp_exponent": 1.1, "xtc_probability": 0.1, "xtc_threshold": 0.2, "presence_penalty": 0.1, "frequency_penalty": 0.1,
             "repeat_penalty": 1.1, "repeat_last_n": 32, "dry_multiplier": 0.5, "dry_base": 1.7, "dry_allowed_length": 2,
             "dry_penalty_last_n": 64, "dry_sequence_breakers": ["\n", ":"], "samplers": ["top_k", "penalties", "temperature"],
             "banned_strings": ["zzz"], "banned_tokens": [7], "logit_bias": {"9": -1}, "seed": 3}
    body = {"model": "hearth-tiny", "prompt": "Once upon a time", "max_tokens": 12}
    texts = {post(house, "/v1/completions", dict(body, **every))["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 1
    for more in ({"mirostat": 1}, {"mirostat": 2, "mirostat_tau": 3, "mirostat_eta": 0.2}, {"adaptive_target": 0.3, "adaptive_decay": 0.99},
                 {"adaptive_target": 0.3, "samplers": ["adaptive_p", "min_p"]}, {"samplers": "min_p;temperature"},
                 {"dry_sequence_breakers": []}):
        assert post(house, "/v1/completions", dict(body, **more))["choices"][0]["text"]
    for field, value in (("samplers", "top_k;nonsense"), ("samplers", [1]), ("banned_tokens", ["a"]), ("banned_tokens", [-1]),
                         ("banned_strings", [""]), ("banned_strings", ["a"] * 65), ("dry_sequence_breakers", ["x" * 99])):
        error = post(house, "/v1/completions", dict(body, **{field: value}), 400)["error"]
        assert field in (error["param"] or "") + error["message"], error


# ---- picked up again ----

def numbered(response, most=None):
    """(id, data) of each event that came whole, also when the line dies."""
    got, name, data = [], None, None
    try:
        for line in response:
            if line.startswith(b"id: "):
                name = line[4:].strip().decode()
            elif line.startswith(b"data: "):
                data = line[6:].strip()
            elif line == b"\n" and data:
                got.append((name, data))
                name = data = None
                if len(got) == most:
                    break
    except (OSError, http.client.HTTPException):
        pass
    return got


def opened(house, path, body, headers=None):
    c = connection(house)
    c.request("POST", path, json.dumps(dict(body, stream=True)), headers or {})
    r = c.getresponse()
    assert r.status == 200, (r.status, r.read())
    return c, r


def kill_gateway(house):
    old = house.pids("http")
    assert house.kill("http")
    wait_for("another gateway", lambda: house.pids("http") not in ([], old) and alive(house))


def same(events):
    """What two requests have in common: everything but clocks and names."""
    out = []
    for name, data in events:
        value = json.loads(data) if data != b"[DONE]" else None
        for key in ("created", "timings"):
            (value or {}).pop(key, None)
        for choice in (value or {}).get("choices", []):
            for call in choice.get("delta", {}).get("tool_calls", []):
                call["id"] = "id" in call
        out.append((name, value))
    return out


def a_stream_goes_on_by_its_id(house):
    """The gateway is killed under streams; each goes on from the next token, and the whole is what it would have been."""
    plan = [("/v1/chat/completions", ask("count", max_tokens=3500, seed=1), 7), ("/v1/chat/completions", ask("look now", tools=[TOOL]), 4),
            ("/v1/completions", {"model": "hearth-tiny", "prompt": "Once", "max_tokens": 1200, "temperature": 0.8, "seed": 6,
                                 "ignore_eos": True, "stream_options": {"include_usage": True}, "logprobs": 1}, 30)]
    wanted = [same(numbered(opened(house, path, body)[1])) for path, body, _ in plan]
    cut = 0
    for _ in range(5):  # what had gone out before the death needs no picking up
        begun = [opened(house, path, body) for path, body, _ in plan]
        heads = [numbered(r, n) for (_, r), (_, _, n) in zip(begun, plan)]
        kill_gateway(house)
        for (path, body, _), head, (_, r), whole in zip(plan, heads, begun, wanted):
            head += numbered(r)
            if head[-1][1] != b"[DONE]":
                cut += 1
                head += numbered(opened(house, path, body, {"Last-Event-ID": head[-1][0]})[1])
            got = same(head)
            assert [v for _, v in got] == [dict(v, id=got[0][1]["id"]) if v else v for _, v in whole], (len(got), len(whole))
            assert [int(name.split("-")[1]) for name, _ in got[:-1]] == list(range(1, len(whole)))
        if cut:
            break
    assert cut, "every stream was faster than its gateway's death"
    gone = call(house, "POST", "/v1/chat/completions", dict(ask("count"), stream=True), {"Last-Event-ID": "0" * 32 + "-5"})
    assert gone[0] == 404 and gone[2]["error"]["param"] == "Last-Event-ID", gone
    bad = call(house, "POST", "/v1/chat/completions", dict(ask("count"), stream=True), {"Last-Event-ID": "nonsense"})
    assert bad[0] == 400, bad


def a_key_names_one_request(house):
    body = {"model": "hearth-tiny", "prompt": "Once", "max_tokens": 1200, "temperature": 0.9, "ignore_eos": True}  # no seed
    key = {"Idempotency-Key": "one-of-a-kind"}
    c, r = opened(house, "/v1/completions", body, key)
    head = numbered(r, 5)
    other = call(house, "POST", "/v1/completions", dict(body, prompt="Twice", stream=True), key)
    assert other[0] == 409 and other[2]["error"]["code"] == "idempotency_key_reused", other
    c.close()
    r.close()  # gone; it was not cancelled, because of the key
    kill_gateway(house)
    c, r = opened(house, "/v1/completions", body, key)
    whole = numbered(r)
    assert [v for _, v in same(whole)][:5] == [v for _, v in same(head)], "another answer"
    assert len([1 for _, v in same(whole) if v]) > 800
    bad = call(house, "POST", "/v1/completions", body, {"Idempotency-Key": "x" * 300})
    assert bad[0] == 400 and bad[2]["error"]["param"] == "Idempotency-Key"


def eight_streams_survive_every_death(house):
    jobs = [{"model": "hearth-tiny", "prompt": "Once upon a time", "max_tokens": 300, "temperature": 0.8, "seed": i, "ignore_eos": True}
            for i in range(8)]
    wanted = [post(house, "/v1/completions", j)["choices"][0]["text"] for j in jobs]
    def one(i, begun):
        c, r = opened(house, "/v1/completions", jobs[i])
        head = numbered(r, 3)
        begun()
        values = [v for _, v in same(head + numbered(r))]
        return "".join(v["choices"][0]["text"] for v in values if v), values[-1]

    got = through_every_death(house, one, 8)
    assert got == [(w, None) for w in wanted], (got, wanted)


with scripted_house(SCRIPTS, [" =", " 1"]) as one:
    main(*[partial_of(t, one) for t in (
        one_kind_in_each_delta, a_call_is_answered, thoughts_apart, manners_are_settings, characters_stay_whole, several_answers, the_prompt_is_read_once,
        the_middle_is_filled_in, what_is_banned_does_not_come, every_sampler, a_stream_goes_on_by_its_id, a_key_names_one_request,
        eight_streams_survive_every_death)])
