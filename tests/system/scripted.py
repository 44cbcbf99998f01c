"""A model that says what a script says: a GGUF file whose every token is followed by one other, for tests that need to know the
answer beforehand (tool calls, thinking, text to be filled in). It runs through the real loader, tokenizer, template and worker.

Its state after a token is that token alone (a one-hot embedding, and layers of zeros that add nothing), so the output matrix is a
table of what follows what. A prompt chooses its script by its last token, which the template writes.

    scripted.write(path, {"weather": ["It ", "rains."]}, template)    # the template ends its prompt with <|weather|>"""
import struct

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
DIM, FFN, N_HEADS = 512, 32, 8
SURE = 8.0  # a logit of SURE * sqrt(DIM)

# Hermes' way of writing calls and thoughts, which hearth recognises by the template's text; the script is chosen by the last message.
TEMPLATE = """{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- '</tools>\\nAnswer with <tool_call>{"name": ..., "arguments": ...}</tool_call>, think in <think></think>.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + (call.function.arguments | tojson) + '</tool_call>' -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}{%- endfor -%}
{%- set last = messages[-1].content or '' -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}SCRIPTS{%- endif -%}
"""


def text(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key, kind, value):
    body = text(value) if kind == STRING else struct.pack({U32: "<I", F32: "<f", BOOL: "<B", I32: "<i"}[kind], value)
    return text(key) + struct.pack("<I", kind) + body


def array(key, kind, values):
    body = b"".join(map(text, values)) if kind == STRING else struct.pack("<%d%s" % (len(values), {I32: "i", F32: "f"}[kind]), *values)
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + body


class Vocabulary:
    def __init__(self):
        self.pieces, self.types = ["<unk>", "<s>", "</s>"], [UNKNOWN, CONTROL, CONTROL]
        for byte in range(256):
            self.add("<0x%02X>" % byte, BYTE)

    def add(self, piece, kind=NORMAL):
        self.pieces.append(piece)
        self.types.append(kind)
        return len(self.pieces) - 1


def chain(vocabulary, follows, start, pieces):
    """The pieces of one script, each a token of its own even where the text is the same; then the end. "*" begins a loop: the
    pieces behind it come for ever."""
    at, loop = start, None
    for piece in pieces:
        if piece == "*":
            loop = len(vocabulary.pieces)
            continue
        token = vocabulary.add(piece.replace(" ", "\u2581"))
        follows.setdefault(at, []).append(token)
        at = token
    follows.setdefault(at, []).append(2 if loop is None else loop)


def write(path, scripts, template=TEMPLATE, ctx=4096, fim=None):
    """scripts: {word: pieces}; the last message that holds the word gets them. A list of lists: each is as likely as the others.
    fim: what fills in the middle."""
    v, follows, choose = Vocabulary(), {}, ""
    marks = [v.add(m, CONTROL) for m in ("<|im_start|>", "<|im_end|>")]
    assert marks
    for word, pieces in scripts.items():
        start = v.add("<|%s|>" % word, CONTROL)
        choose += "{%%- %s '%s' in last -%%}{{- '<|%s|>' -}}" % ("elif" if choose else "if", word, word)
        for one in pieces if isinstance(pieces[0], list) else [pieces]:
            chain(v, follows, start, one)
    template = template.replace("SCRIPTS", choose + "{%- endif -%}" if choose else "")
    if fim:
        v.add("<|fim_prefix|>", CONTROL)
        v.add("<|fim_suffix|>", CONTROL)
        chain(v, follows, v.add("<|fim_middle|>", CONTROL), fim)
    n = len(v.pieces)
    assert n <= DIM, "%d tokens; make DIM larger" % n
    head = [pair("general.architecture", STRING, "llama"), pair("general.name", STRING, "scripted"),
            pair("llama.block_count", U32, 1), pair("llama.context_length", U32, ctx), pair("llama.embedding_length", U32, DIM),
            pair("llama.feed_forward_length", U32, FFN), pair("llama.attention.head_count", U32, N_HEADS),
            pair("llama.attention.head_count_kv", U32, 1), pair("llama.vocab_size", U32, n),
            pair("llama.attention.layer_norm_rms_epsilon", F32, 1e-6), pair("llama.rope.freq_base", F32, 10000.0),
            pair("tokenizer.ggml.model", STRING, "llama"), array("tokenizer.ggml.tokens", STRING, v.pieces),
            array("tokenizer.ggml.scores", F32, [-1000.0] * n), array("tokenizer.ggml.token_type", I32, v.types),
            pair("tokenizer.ggml.bos_token_id", U32, 1), pair("tokenizer.ggml.eos_token_id", U32, 2),
            pair("tokenizer.ggml.unknown_token_id", U32, 0), pair("tokenizer.ggml.add_bos_token", BOOL, 0),
            pair("tokenizer.ggml.add_space_prefix", BOOL, 0), pair("tokenizer.chat_template", STRING, template)]
    head_dim = DIM // N_HEADS
    zeros = {"blk.0.attn_q": (DIM, DIM), "blk.0.attn_k": (DIM, head_dim), "blk.0.attn_v": (DIM, head_dim),
             "blk.0.attn_output": (DIM, DIM), "blk.0.ffn_gate": (DIM, FFN), "blk.0.ffn_up": (DIM, FFN), "blk.0.ffn_down": (FFN, DIM)}
    embed, out = bytearray(4 * DIM * n), bytearray(4 * DIM * n)
    for i in range(n):
        struct.pack_into("<f", embed, 4 * (i * DIM + i), 1.0)
        for token in follows.get(i, [2]):
            struct.pack_into("<f", out, 4 * (token * DIM + i), SURE)
    ones = struct.pack("<%df" % DIM, *[1.0] * DIM)
    tensors = [("token_embd.weight", (DIM, n), embed), ("output.weight", (DIM, n), out), ("output_norm.weight", (DIM,), ones),
               ("blk.0.attn_norm.weight", (DIM,), ones), ("blk.0.ffn_norm.weight", (DIM,), ones)]
    tensors += [(name + ".weight", dims, bytes(4 * dims[0] * dims[1])) for name, dims in zeros.items()]
    infos, off = b"", 0
    for name, dims, data in tensors:
        infos += text(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, 0, off)
        off += len(data) + -len(data) % 32
    begin = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(head)) + b"".join(head) + infos
    with open(path, "wb") as f:
        f.write(begin + b"\0" * (-len(begin) % 32))
        for _, _, data in tensors:
            f.write(data + b"\0" * (-len(data) % 32))
