"""One prompt, one answer, in every form that the command line has."""
from house import House, lines, main, one_line, partial_of

PROMPT = "Once upon a time"


def text_streams_and_is_the_same_each_time(house):
    first = house.hearth("complete", "--temp", 0, "-n", 24, PROMPT).stdout
    assert len(first) > 20 and not first.endswith(b"\n\n"), first
    assert house.hearth("complete", "--temp", 0, "-n", 24, PROMPT).stdout == first
    assert house.hearth("complete", "--temp", 0, "-n", 24, "--no-stream", PROMPT).stdout == first
    assert house.hearth("complete", "--temp", 0, "-n", 24, input=PROMPT.encode()).stdout == first


def ids_and_json_agree(house):
    ids = house.ids("--temp", 0, "-n", 16, PROMPT)
    assert len(ids) == 16, ids
    out = lines(house.hearth("complete", "--temp", 0, "-n", 16, "--json", PROMPT).stdout)
    tokens, done = out[:-1], out[-1]
    assert [t["id"] for t in tokens] == ids
    assert [t["seq"] for t in tokens] == list(range(1, 17))
    assert done["type"] == "done" and done["finish_reason"] == "length", done
    assert done["usage"]["completion_tokens"] == 16 and done["usage"]["prompt_tokens"] > 2, done
    assert done["timings"]["decode_tps"] > 0, done
    text = house.hearth("complete", "--temp", 0, "-n", 16, PROMPT).stdout.decode()
    assert "".join(t["text"] for t in tokens) == text


def a_seed_fixes_the_answer(house):
    one = house.ids("--temp", 1.2, "--seed", 7, "-n", 32, PROMPT)
    assert one == house.ids("--temp", 1.2, "--seed", 7, "-n", 32, PROMPT)
    others = [house.ids("--temp", 1.2, "--seed", s, "-n", 32, PROMPT) for s in (8, 9, 10)]
    assert any(o != one for o in others)


def sampling_options_act(house):
    greedy = house.ids("--temp", 0, "-n", 8, PROMPT)
    assert house.ids("--temp", 5, "--top-k", 1, "-n", 8, PROMPT) == greedy
    assert house.ids("--temp", 5, "--min-p", 1, "-n", 8, PROMPT) == greedy
    barred = house.ids("--temp", 0, "-n", 8, "--logit-bias", "%d=-1000" % greedy[0], PROMPT)
    assert greedy[0] not in barred
    assert house.ids("--temp", 0, "-n", 24, "--repeat-penalty", 1.9, PROMPT) != house.ids("--temp", 0, "-n", 24, PROMPT)
    out = lines(house.hearth("complete", "--temp", 0, "-n", 3, "--logprobs", 4, "--json", PROMPT).stdout)
    for token in out[:-1]:
        assert len(token["alternatives"]) == 4 and token["logprob"] <= 0, token
        assert token["alternatives"][0]["id"] == token["id"], token


def every_sampler_acts(house):
    def text(*options):
        return house.hearth("complete", "-n", 60, *options, PROMPT).stdout.decode()

    greedy = text("--temp", 0)
    word = greedy.split()[5]
    for options in (("--mirostat", 1, "--mirostat-tau", 8), ("--mirostat", 2, "--mirostat-tau", 8),
                    ("--xtc-probability", 1, "--xtc-threshold", 0.05), ("--dynatemp-range", 0.7, "--temp", 0.9),
                    ("--adaptive-target", 0.1), ("--adaptive-target", 0.5, "--adaptive-decay", 0.5, "--samplers", "adaptive_p;min_p"),
                    ("--top-n-sigma", 1, "--temp", 1.5), ("--samplers", "temperature;min_p", "--temp", 1.5),
                    ("--temp", 1, "--dry-multiplier", 2, "--dry-base", 3, "--dry-allowed-length", 1,
                     "--dry-sequence-breaker", "")):
        answers = {text("--seed", 3, *options) for _ in range(2)}
        assert len(answers) == 1, (options, answers)
        assert text("--seed", 3) not in answers or options[0] == "--top-n-sigma", options
    # At temperature 0 only what is penalised, banned or refused changes anything.
    assert text("--temp", 0, "--adaptive-target", 0.1) == greedy
    assert text("--seed", 3, "--adaptive-target", 0.1, "--samplers", "min_p;temperature") == text("--seed", 3, "--samplers", "min_p;temperature")
    assert text("--temp", 0, "--xtc-probability", 1, "--mirostat", 2, "--samplers", "top_k") == greedy
    once = text("--temp", 0, "--dry-multiplier", 50, "--dry-allowed-length", 1, "--dry-sequence-breaker", "", "--dry-penalty-last-n", -1)
    words = once.split()
    assert len({tuple(words[i:i + 3]) for i in range(len(words) - 2)}) == len(words) - 2, once
    first = house.ids("--temp", 0, "-n", 1, PROMPT)[0]
    assert first not in house.ids("--temp", 0, "-n", 8, "--banned-token", first, PROMPT)
    without = text("--temp", 0, "--banned-string", word.upper())
    assert word in greedy and word.lower() not in without.lower(), without
    assert without.startswith(greedy[:greedy.index(word) - 1]), (without, greedy)
    # Held tokens come with the end, whatever it is, and a string that is never whole changes nothing.
    assert text("--temp", 0, "--banned-string", greedy[-20:] + "never") == greedy
    stopped = house.hearth("complete", "--temp", 0, "-n", 60, "--stop", word, "--banned-string", word + " never", PROMPT)
    assert stopped.stdout.decode() == greedy[:greedy.index(word)], stopped
    for options in (("--samplers", "top_k;nope"), ("--samplers", "top_k;top_k"), ("--mirostat", 3),
                    ("--adaptive-target", 1.5), ("--adaptive-decay", 1),
                    ("--xtc-probability", 2), ("--banned-token", 1 << 20), ("--banned-string", ""),
                    ("--dry-allowed-length", 0)):
        refused = house.hearth("complete", "-n", 4, *options, PROMPT, check=False)
        assert refused.returncode in (1, 2) and not refused.stdout, (options, refused)
        one_line(refused.stderr)


def stop_strings_end_before_themselves(house):
    text = house.hearth("complete", "--temp", 0, "-n", 40, PROMPT).stdout.decode()
    word = text[len(text) // 2:len(text) // 2 + 5]
    out = house.hearth("complete", "--temp", 0, "-n", 40, "--stop", word, PROMPT).stdout.decode()
    assert out == text[:text.index(word)], (out, text, word)
    done = lines(house.hearth("complete", "--temp", 0, "-n", 40, "--stop", word, "--json", PROMPT).stdout)[-1]
    assert done["finish_reason"] == "stop", done


def ask_goes_through_the_template(house):
    answer = house.hearth("ask", "--temp", 0, "-n", 60, "What is hearth?").stdout.decode()
    assert answer.strip() and "<|" not in answer, answer
    assert house.hearth("ask", "--temp", 0, "-n", 60, "-s", "You are brief.", "Hello").stdout


def chat_keeps_the_conversation(house):
    out = house.hearth("chat", "--temp", 0, "-n", 40, input=b"Hello\n/clear\nHello\n").stdout.decode().split("\n")
    answers = [line for line in out if line.strip()]
    assert len(answers) >= 2 and answers[0] == answers[-1], out


def tokenize_and_back(house):
    import json
    ids = json.loads(house.hearth("tokenize", "-m", "hearth-tiny", input="Hello, world".encode()).stdout)
    assert ids and all(isinstance(i, int) for i in ids), ids
    back = house.hearth("detokenize", "-m", "hearth-tiny", input=json.dumps(ids).encode()).stdout
    assert back == b"Hello, world", back


def every_program_tells_about_itself(house):
    for verb in ("serve status models load unload ps ask complete chat cancel attach tokenize detokenize template "
                 "inspect eval bench synth plan").split():
        assert house.hearth(verb, "--help").stdout.startswith(b"usage: hearth " + verb.encode()), verb
        assert house.hearth(verb, "--version").stdout.startswith(b"hearth "), verb
        if verb != "serve":  # whose options are the broker's: 10_start has them
            assert house.hearth(verb, "--no-such-option", check=False).returncode == 2, verb
        assert house.hearth(verb, "--man").stdout.startswith(b".TH"), verb


with House() as one:
    main(*[partial_of(f, one) for f in (
        text_streams_and_is_the_same_each_time, ids_and_json_agree, a_seed_fixes_the_answer, sampling_options_act, every_sampler_acts,
        stop_strings_end_before_themselves, ask_goes_through_the_template, chat_keeps_the_conversation,
        tokenize_and_back, every_program_tells_about_itself)])
