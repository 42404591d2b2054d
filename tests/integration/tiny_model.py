"""Tiny models with random weights, for what no small real model has. Their vocabulary is another model's, or one of those
here."""

import array
import random
import struct

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, INT32: 4, FLOAT32: 4, BOOL: 1, 10: 8, 11: 8, 12: 8}
_ALIGNMENT = 32
N_EMBD, N_FF, N_LAYER = 64, 96, 2


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _skip_value(data, at, kind):
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind == ARRAY:
        element, n = struct.unpack_from("<IQ", data, at)
        at += 12
        if element in _SIZES:
            return at + n * _SIZES[element]
        for _ in range(n):
            at = _skip_value(data, at, element)
        return at
    return at + _SIZES[kind]


def vocabulary(path):
    """The tokenizer's metadata of a GGUF file as it is there, [(key, bytes of type and value)], and its size."""
    with open(path, "rb") as file:
        data = file.read(16 << 20)
    found, n_tokens = [], 0
    n_values = struct.unpack_from("<Q", data, 16)[0]
    at = 24
    for _ in range(n_values):
        length = struct.unpack_from("<Q", data, at)[0]
        key = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        begin, kind = at, struct.unpack_from("<I", data, at)[0]
        at = _skip_value(data, at + 4, kind)
        if key.startswith("tokenizer."):
            found.append((key, data[begin:at]))
        if key == "tokenizer.ggml.tokens":
            n_tokens = struct.unpack_from("<Q", data, begin + 8)[0]
    return found, n_tokens


def small_vocabulary():
    """Tokens for every byte and a few more: models of it are quick to run."""
    normal, control, byte = 1, 3, 6
    tokens = [("<unk>", control), ("<s>", control), ("</s>", control)]
    tokens += [(f"<0x{value:02X}>", byte) for value in range(256)]
    tokens += [(f"\u2581{chr(ord('a') + i)}{chr(ord('a') + j)}", normal) for i in range(23) for j in range(11)]

    def array_of(kind, values):
        return struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(values)

    values = [
        ("tokenizer.ggml.model", struct.pack("<I", STRING) + _string("llama")),
        ("tokenizer.ggml.tokens", array_of(STRING, [_string(text) for text, _ in tokens])),
        ("tokenizer.ggml.scores", array_of(FLOAT32, [struct.pack("<f", -i) for i in range(len(tokens))])),
        ("tokenizer.ggml.token_type", array_of(INT32, [struct.pack("<i", kind) for _, kind in tokens])),
    ]
    return values, len(tokens)


def no_vocabulary():
    """Tokens without text."""
    return [("tokenizer.ggml.model", struct.pack("<I", STRING) + _string("no_vocab"))], 512


class _Model:
    def __init__(self, architecture, vocabulary_of, seed):
        self.architecture = architecture
        self.random = random.Random(seed)
        values, self.n_vocab = vocabulary_of if isinstance(vocabulary_of, tuple) else vocabulary(vocabulary_of)
        self.values = list(values)
        self.values.insert(0, ("general.architecture", struct.pack("<I", STRING) + _string(architecture)))
        self.tensors = []  # (name, dims, floats)
        self.set("vocab_size", self.n_vocab)

    def set(self, key, value):
        kind, form = (UINT32, "<II") if isinstance(value, int) else (FLOAT32, "<If")
        self.values.append((f"{self.architecture}.{key}", struct.pack(form, kind, value)))

    def add(self, name, dims, deviation):
        n = 1
        for dim in dims:
            n *= dim
        width = deviation * 3**0.5
        uniform = self.random.random
        self.tensors.append((name, dims, array.array("f", [width * (2 * uniform() - 1) for _ in range(n)])))

    def add_constant(self, name, n, value):
        self.tensors.append((name, (n,), array.array("f", [value] * n)))

    def write(self, path):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.values))
        head += b"".join(_string(key) + value for key, value in self.values)
        offset = 0
        for name, dims, floats in self.tensors:
            head += _string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
            head += struct.pack("<IQ", 0, offset)
            offset += -(-4 * len(floats) // _ALIGNMENT) * _ALIGNMENT
        with open(path, "wb") as file:
            file.write(head + b"\0" * (-len(head) % _ALIGNMENT))
            for _, _, floats in self.tensors:
                data = floats.tobytes()
                file.write(data + b"\0" * (-len(data) % _ALIGNMENT))


def write_adapter(path, architecture, projections, rank, deviation=0.02):
    """A LoRA adapter with random weights of projections [(name, inputs, outputs)]."""
    model = _Model(architecture, ([], 0), seed=1)
    model.values.append(("general.type", struct.pack("<I", STRING) + _string("adapter")))
    model.values.append(("adapter.type", struct.pack("<I", STRING) + _string("lora")))
    model.values.append(("adapter.lora.alpha", struct.pack("<If", FLOAT32, rank)))
    for name, n_in, n_out in projections:
        model.add(f"{name}.lora_a", (n_in, rank), deviation)
        model.add(f"{name}.lora_b", (rank, n_out), deviation)
    model.write(path)


def write_image_projector(path, n_embd_text):
    """A vision encoder of Gemma 3's kind with random weights, for a text model of this width: 16 tokens an image."""
    model = _Model("clip", ([], 0), seed=1)
    width, n_ff, patch, side = 32, 64, 8, 128
    model.values.append(("clip.projector_type", struct.pack("<I", STRING) + _string("gemma3")))
    model.values.append(("clip.has_vision_encoder", struct.pack("<I?", BOOL, True)))
    model.values.append(("clip.use_gelu", struct.pack("<I?", BOOL, True)))
    for key, value in [
        ("image_size", side), ("patch_size", patch), ("embedding_length", width), ("feed_forward_length", n_ff),
        ("block_count", 1), ("projection_dim", n_embd_text), ("attention.head_count", 2),
        ("attention.layer_norm_epsilon", 1e-6),
    ]:  # fmt: skip
        model.set(f"vision.{key}", value)
    for key in ("image_mean", "image_std"):
        model.values.append((f"clip.vision.{key}", struct.pack("<IIQ3f", ARRAY, FLOAT32, 3, 0.5, 0.5, 0.5)))
    model.add("v.patch_embd.weight", (patch, patch, 3, width), 0.1)
    model.add("v.patch_embd.bias", (width,), 0.1)
    model.add("v.position_embd.weight", (width, (side // patch) ** 2), 0.5)
    block = "v.blk.0"
    for name, dims in [
        ("attn_q", (width, width)), ("attn_k", (width, width)), ("attn_v", (width, width)), ("attn_out", (width, width)),
        ("ffn_up", (width, n_ff)), ("ffn_down", (n_ff, width)),
    ]:  # fmt: skip
        model.add(f"{block}.{name}.weight", dims, dims[0] ** -0.5)
        model.add(f"{block}.{name}.bias", dims[1:], 0.1)
    for name in (f"{block}.ln1", f"{block}.ln2", "v.post_ln"):
        model.add_constant(f"{name}.weight", width, 1.0)
        model.add_constant(f"{name}.bias", width, 0.0)
    model.add("mm.input_projection.weight", (n_embd_text, width), width**-0.5)
    model.add_constant("mm.soft_emb_norm.weight", width, 0.1)
    model.write(path)


def write_projections(path, vocabulary_of, n_embd, n_head, n_head_kv, dim, n_layer):
    """No model to run, but all that its K and V projections are: llama's metadata and these tensors, of any size."""
    model = _Model("llama", vocabulary_of, seed=1)
    model.set("context_length", 2048)
    model.set("embedding_length", n_embd)
    model.set("feed_forward_length", 4 * n_embd)
    model.set("block_count", n_layer)
    model.set("attention.head_count", n_head)
    model.set("attention.head_count_kv", n_head_kv)
    model.set("attention.layer_norm_rms_epsilon", 1e-5)
    model.set("rope.dimension_count", dim)
    model.set("rope.freq_base", 10000.0)
    for layer in range(n_layer):
        model.add_constant(f"blk.{layer}.attn_norm.weight", n_embd, 1.0)
        for side in ("k", "v"):
            model.add(f"blk.{layer}.attn_{side}.weight", (n_embd, n_head_kv * dim), n_embd**-0.5)
    model.write(path)


def write(path, vocabulary_of, architecture, n_head, n_head_kv, bias=False, rotated=None, seed=1):
    """A model of two layers at `path`: llama (RoPE of neighbours), qwen2 (of halves), qwen3 (the same, keys and queries
    normed; made to rank texts), stablelm (of `rotated` dimensions) or mpt (ALiBi, one tensor for Q, K and V).
    vocabulary_of: the path of a model, or a vocabulary. bias: of Q, K and V."""
    model = _Model(architecture, vocabulary_of, seed)
    dim = N_EMBD // n_head
    model.set("context_length", 2048)
    model.set("embedding_length", N_EMBD)
    model.set("feed_forward_length", N_FF)
    model.set("block_count", N_LAYER)
    model.set("attention.head_count", n_head)
    model.set("attention.head_count_kv", n_head_kv)
    layer_norm = architecture in ("stablelm", "mpt")
    model.set("attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon", 1e-5)
    if architecture == "mpt":
        model.set("attention.max_alibi_bias", 8.0)
    else:
        model.set("rope.dimension_count", rotated or dim)
        model.set("rope.freq_base", 10000.0)

    def norm(name):
        model.add_constant(f"{name}.weight", N_EMBD, 1.0)
        if architecture == "stablelm":
            model.add_constant(f"{name}.bias", N_EMBD, 0.0)

    def linear(name, rows, columns=N_EMBD, with_bias=False, gain=1.0):
        model.add(f"{name}.weight", (columns, rows), gain * columns**-0.5)
        if with_bias:
            model.add(f"{name}.bias", (rows,), 1.0)

    tied = architecture == "mpt"
    model.add("token_embd.weight", (N_EMBD, model.n_vocab), 0.4 if tied else 1.0)
    for layer in range(N_LAYER):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        if architecture == "mpt":
            linear(f"{block}.attn_qkv", (n_head + 2 * n_head_kv) * dim, gain=1.5)
        else:
            linear(f"{block}.attn_q", n_head * dim, with_bias=bias, gain=1.5)
            linear(f"{block}.attn_k", n_head_kv * dim, with_bias=bias, gain=1.5)
            linear(f"{block}.attn_v", n_head_kv * dim, with_bias=bias)
        if architecture == "qwen3":
            for side in ("q", "k"):
                model.add_constant(f"{block}.attn_{side}_norm.weight", dim, 1.5)
        linear(f"{block}.attn_output", N_EMBD, n_head * dim, gain=4.0)
        norm(f"{block}.ffn_norm")
        if architecture != "mpt":
            linear(f"{block}.ffn_gate", N_FF)
        linear(f"{block}.ffn_up", N_FF)
        linear(f"{block}.ffn_down", N_EMBD, N_FF)
    norm("output_norm")
    if architecture == "qwen3":
        of_last_token, labels = 4, ("yes", "no")
        model.set("pooling_type", of_last_token)
        key = "qwen3.classifier.output_labels"
        model.values.append((key, struct.pack("<IIQ", ARRAY, STRING, len(labels)) + b"".join(map(_string, labels))))
        linear("cls.output", len(labels))
    if not tied:
        linear("output", model.n_vocab, gain=3.0)
    model.write(path)
