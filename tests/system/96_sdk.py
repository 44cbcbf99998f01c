"""Clients that nobody here wrote: the official openai package and LangChain's classes, against the bundled model and a scripted one;
curl where it is. Skipped where the packages cannot be had (sdk_venv.py)."""
import sdk_venv

sdk_venv.enter()

import json
import shutil
import socket
import subprocess
import threading

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from house import main, partial_of, wait_for
from web import alive, port_of, scripted_house, through_every_death

ASK = [{"role": "user", "content": "What is hearth?"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
SCRIPTS = {
    "rainy": ["It ", "rains", " in", " Rome", "."],
    "look": ["<think>", "I must", " look.", "</think>", "Let me look. ", '<tool_call>\n', '{"name": "get_weather", "arg',
             'uments": {"city": "Ro', 'me"}}', '\n</tool_call>'],
    "count": ["one", "*"] + [" %s" % w for w in "two three four five six seven eight nine ten".split()],
}


def url(house):
    return "http://127.0.0.1:%s/v1" % port_of(house)


def client_of(house, **more):
    return openai.OpenAI(**dict({"base_url": url(house), "api_key": "any", "max_retries": 0, "timeout": 100}, **more))


def live(house):
    return [r for r in house.status()["requests"] if r["client"] == "http"]


def chat(house):
    client = client_of(house)
    wanted = house.hearth("ask", "-m", "hearth-tiny", "--temp", 0, "-n", 40, "What is hearth?").stdout.decode().rstrip("\n")
    ask = dict(model="hearth-tiny", messages=ASK, temperature=0, max_tokens=40)
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].message.content == wanted and whole.usage.completion_tokens > 5
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and len(chunks) > 5
    scored = client.chat.completions.create(logprobs=True, top_logprobs=2, n=2, **ask)
    assert len(scored.choices) == 2 and len(scored.choices[1].logprobs.content[0].top_logprobs) == 2
    raw = client.chat.completions.with_raw_response.create(extra_body={"top_k": 3, "min_p": 0.1}, user="me", **ask)
    assert raw.headers["x-request-id"] and raw.headers["x-hearth-ignored"] == "user" and raw.parse().choices


def the_streaming_helper(house):
    with client_of(house).chat.completions.stream(model="scripted", messages=[{"role": "user", "content": "look now"}], tools=[TOOL]) as s:
        kinds = [event.type for event in s]
        final = s.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds and kinds.count("content.delta") > 1, kinds
    assert final.finish_reason == "tool_calls" and json.loads(final.message.tool_calls[0].function.arguments) == {"city": "Rome"}


def tools(house):
    client = client_of(house)
    messages = [{"role": "user", "content": "look now"}]
    first = client.chat.completions.create(model="scripted", messages=messages, tools=[TOOL], tool_choice="auto").choices[0]
    call = first.message.tool_calls[0]
    assert first.finish_reason == "tool_calls" and call.type == "function" and call.function.name == "get_weather"
    assert first.message.content == "Let me look." and first.message.reasoning_content == "I must look."
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "rainy"}]
    assert client.chat.completions.create(model="scripted", messages=messages, tools=[TOOL]).choices[0].message.content == "It rains in Rome."


def completions(house):
    client = client_of(house)
    one = client.completions.create(model="hearth-tiny", prompt="Once upon a time", max_tokens=20, seed=3, temperature=0.8)
    text = "".join(c.choices[0].text for c in client.completions.create(model="hearth-tiny", prompt="Once upon a time", max_tokens=20, seed=3,
                                                                        temperature=0.8, stream=True))
    assert one.choices[0].text == text and one.usage.completion_tokens == 20
    assert client.completions.create(model="scripted", prompt="a = ", suffix="\nb", max_tokens=9).choices[0].text == "42"


def embeddings(house):
    client = client_of(house)
    packed = client.embeddings.create(model="hearth-tiny", input=["one cat", "two"])  # base64, by itself
    plain = client.embeddings.create(model="hearth-tiny", input="one cat", encoding_format="float")
    assert len(packed.data) == 2 and max(abs(a - b) for a, b in zip(packed.data[0].embedding, plain.data[0].embedding)) < 1e-6
    assert abs(sum(x * x for x in packed.data[1].embedding) - 1) < 1e-3


def models(house):
    client = client_of(house)
    assert {"hearth-tiny", "scripted"} <= {m.id for m in client.models.list()}
    assert client.models.retrieve("scripted").id == "scripted"


def cancel(house):
    client = client_of(house)
    stream = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "count"}], stream=True)
    next(iter(stream))
    stream.close()
    wait_for("its end", lambda: not live(house))


def time_out(house):
    try:
        client_of(house, timeout=0.2).completions.create(model="hearth-tiny", prompt="Once", extra_body={"ignore_eos": True}, n=16)
        raise AssertionError("it answered")
    except openai.APITimeoutError:
        pass
    wait_for("its end", lambda: not live(house))


def errors(house):
    client = client_of(house)

    def fails(kind, status, **members):
        ask = dict({"model": "hearth-tiny", "messages": ASK}, **members)
        try:
            client.chat.completions.create(**ask)
        except kind as e:
            assert e.status_code == status and e.body["message"] and e.request_id, (e, e.body)
            return e
        raise AssertionError("not refused: %s" % members)

    assert fails(openai.NotFoundError, 404, model="gpt-4o").code == "model_not_found"
    assert fails(openai.BadRequestError, 400, temperature=-1).param == "temperature"
    assert fails(openai.BadRequestError, 400, extra_body={"nonsense": 1}).param == "nonsense"
    assert fails(openai.BadRequestError, 400, messages=[{"role": "user", "content": "word " * 9000}]).code == "context_length_exceeded"
    assert fails(openai.BadRequestError, 400, stream=True, response_format={"type": "json_object"}).param == "response_format"


def retries(house):
    """The first line dies with its gateway; the SDK comes again. (A relay, since the next gateway has another port here.)"""
    def relay(listener):
        first, _ = listener.accept()
        first.recv(65536)
        assert house.kill("http")
        first.close()
        second, _ = listener.accept()
        with second, socket.create_connection(("127.0.0.1", wait_for("the gateway", lambda: alive(house) and int(port_of(house))))) as to:
            to.sendall(second.recv(65536))
            for data in iter(lambda: to.recv(65536), b""):
                second.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=relay, args=(listener,), daemon=True).start()
        client = client_of(house, max_retries=3, base_url="http://127.0.0.1:%d/v1" % listener.getsockname()[1])
        assert client.completions.create(model="hearth-tiny", prompt="Once", max_tokens=3).usage.completion_tokens == 3


def streams_survive_every_death(house):
    client = client_of(house)
    jobs = [dict(model="hearth-tiny", prompt="Once upon a time", max_tokens=300, temperature=0.8, seed=i, extra_body={"ignore_eos": True})
            for i in range(8)]
    wanted = [client.completions.create(**j).choices[0].text for j in jobs]
    def one(i, begun):
        text = ""
        for n, chunk in enumerate(client_of(house).completions.create(stream=True, **jobs[i])):
            text += chunk.choices[0].text
            if n == 3:
                begun()
        return text

    got = through_every_death(house, one, 8)
    assert got == wanted, (got, wanted)


def langchain_chat(house):
    plain = ChatOpenAI(base_url=url(house), api_key="any", model="scripted", temperature=0, max_retries=0, timeout=100)
    assert plain.invoke("rainy?").content == "It rains in Rome."
    assert "".join(c.content for c in plain.stream([HumanMessage("rainy?")])) == "It rains in Rome."
    assert plain.invoke("rainy?").usage_metadata["output_tokens"] == 5

    @tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return "rainy in " + city

    bound = plain.bind_tools([get_weather])
    first = bound.invoke("look now")
    assert isinstance(first, AIMessage) and first.tool_calls[0]["args"] == {"city": "Rome"}, first
    answer = get_weather.invoke(first.tool_calls[0])
    assert isinstance(answer, ToolMessage)
    assert bound.invoke([HumanMessage("look now"), first, answer]).content == "It rains in Rome."
    whole = None
    for chunk in bound.stream("look now"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["name"] == "get_weather" and whole.tool_calls[0]["args"] == {"city": "Rome"}
    assert [r.content for r in plain.batch(["rainy", "rainy"])] == ["It rains in Rome."] * 2


def langchain_embeddings(house):
    own = OpenAIEmbeddings(base_url=url(house), api_key="any", model="hearth-tiny", check_embedding_ctx_length=False, max_retries=0)
    vectors = own.embed_documents(["one cat", "two"])
    assert len(vectors) == 2 and max(abs(a - b) for a, b in zip(vectors[0], own.embed_query("one cat"))) < 1e-6


def curl(house):
    program = shutil.which("curl")
    if not program:
        print("  no curl here")
        return

    def ask(*args):
        done = subprocess.run([program, "-sS", "--max-time", "100"] + list(args), capture_output=True, timeout=120)
        assert done.returncode == 0, done
        return done.stdout

    body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "rainy"}]})
    assert json.loads(ask(url(house) + "/chat/completions", "-d", body))["choices"][0]["message"]["content"] == "It rains in Rome."
    lines = ask("-N", url(house) + "/chat/completions", "-H", "Content-Type: application/json", "-d", body[:-1] + ', "stream": true}')
    assert lines.endswith(b"data: [DONE]\n\n") and lines.count(b"data: ") > 5
    assert b"HTTP/1.1 200" in ask("-I", url(house) + "/models")
    assert json.loads(ask("-X", "OPTIONS", "-w", "%{http_code}", url(house) + "/models")) == 204
    assert json.loads(ask("-H", "Expect: 100-continue", url(house) + "/chat/completions", "-d", body))["choices"]
    assert json.loads(ask("-H", "Transfer-Encoding: chunked", url(house) + "/chat/completions", "-d", body))["choices"]


with scripted_house(SCRIPTS, ["4", "2"]) as one:
    wait_for("the gateway", lambda: alive(one))
    main(*[partial_of(t, one) for t in (chat, the_streaming_helper, tools, completions, embeddings, models, cancel, time_out, errors,
                                        streams_survive_every_death, langchain_chat, langchain_embeddings, curl, retries)])
