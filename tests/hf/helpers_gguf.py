"""Small GGUF files, written with the `gguf` package as llama.cpp's converter would."""

import json

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = ["the cat sat on the mat in 2024, and the naïve dog didn't", "它 is 12 😀 the end the"] * 3
SPECIALS = ["<|end|>", "<|start|>"]
LAYERS, WIDTH, HEADS, KV_HEADS, FORWARD = 2, 32, 4, 2, 64
HEAD = WIDTH // HEADS


def byte_bpe(pre_tokenizer=None, vocab=320):
    """A byte-level BPE trained on `TEXT`, with two special tokens and one user-defined token."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    made.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return made


def tokenizer_metadata(made, pre="gpt-2"):
    """What a converter writes about a byte-level BPE."""
    vocab = made.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.get)
    kinds = [3 if token in SPECIALS else 4 if token == "<think>" else 1 for token in tokens]
    merges = json.loads(made.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }


def permuted(value, heads):
    """Rows of each head from halves to neighbouring rotary pairs, row by row."""
    half = value.shape[0] // heads // 2
    rows = [
        h * 2 * half + i + part * half for h in range(heads) for i in range(half) for part in (0, 1)
    ]
    return value[rows]


def llama_like(architecture="llama", vocab=323, seed=0):
    """Metadata and random tensors by GGUF name; the tensors as `transformers` would have them."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return rng.normal(size=shape).astype(np.float32)

    metadata = {
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": WIDTH,
        f"{architecture}.feed_forward_length": FORWARD,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
    }
    tensors = {"token_embd.weight": random(vocab, WIDTH), "output_norm.weight": random(WIDTH)}
    for n in range(LAYERS):
        block = {
            "attn_norm.weight": random(WIDTH),
            "attn_q.weight": random(WIDTH, WIDTH),
            "attn_k.weight": random(KV_HEADS * HEAD, WIDTH),
            "attn_v.weight": random(KV_HEADS * HEAD, WIDTH),
            "attn_output.weight": random(WIDTH, WIDTH),
            "ffn_norm.weight": random(WIDTH),
            "ffn_gate.weight": random(FORWARD, WIDTH),
            "ffn_up.weight": random(FORWARD, WIDTH),
            "ffn_down.weight": random(WIDTH, FORWARD),
        }
        if architecture == "qwen2":
            block["attn_q.bias"] = random(WIDTH)
            block["attn_k.bias"] = random(KV_HEADS * HEAD)
            block["attn_v.bias"] = random(KV_HEADS * HEAD)
        if architecture == "qwen3":
            block["attn_q_norm.weight"] = random(HEAD)
            block["attn_k_norm.weight"] = random(HEAD)
        tensors |= {f"blk.{n}.{name}": value for name, value in block.items()}
    return metadata, tensors


def gpt2(vocab=323, seed=0):
    """The same for GPT-2; matrices output first, as the converter turns them."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return rng.normal(size=shape).astype(np.float32)

    metadata = {
        "gpt2.block_count": LAYERS,
        "gpt2.context_length": 16,
        "gpt2.embedding_length": WIDTH,
        "gpt2.feed_forward_length": FORWARD,
        "gpt2.attention.head_count": HEADS,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }
    shapes = {
        "token_embd.weight": (vocab, WIDTH),
        "position_embd.weight": (16, WIDTH),
        "output_norm.weight": (WIDTH,),
        "output_norm.bias": (WIDTH,),
    }
    for n in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{n}.{name}.weight"] = shapes[f"blk.{n}.{name}.bias"] = (WIDTH,)
        for name, out, into in (
            ("attn_qkv", 3 * WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_up", FORWARD, WIDTH),
            ("ffn_down", WIDTH, FORWARD),
        ):
            shapes[f"blk.{n}.{name}.weight"] = (out, into)
            shapes[f"blk.{n}.{name}.bias"] = (out,)
    return metadata, {name: random(*shape) for name, shape in shapes.items()}


def write(path, architecture, metadata, tensors, kinds=None):
    """Writes a GGUF file; `kinds` are the types of tensors that are not plain numbers."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_file(path, without=(), **changed):
    """A small llama with its tokenizer; `changed` metadata keys have __ for a dot."""
    metadata, tensors = llama_like()
    metadata |= tokenizer_metadata(byte_bpe())
    metadata |= {key.replace("__", "."): value for key, value in changed.items()}
    kept = {key: value for key, value in metadata.items() if key not in without}
    return write(path, "llama", kept, tensors)


def split(folder, metadata, tensors, count=3, **changed):
    """Writes a model in `count` parts as `llama-gguf-split` does; returns their paths."""
    paths = []
    for number in range(count):
        keys = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        part = dict(list(tensors.items())[number::count])
        path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
        first = metadata if number == 0 else {}
        paths.append(write(path, "llama", first | keys | changed, part))
    return paths
