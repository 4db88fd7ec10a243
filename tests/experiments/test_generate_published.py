"""Published models from the command line: generated text, and one line for each broken model."""

import dataclasses
import json
import subprocess
import sys

import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, processors

from experiments import generate as generate_experiment
from fm.hf import save_pretrained
from fm.hf.tokenizer import HFTokenizer
from tests.hf import helpers_gguf, helpers_hf
from tests.hf.helpers_gguf import llama_file
from tests.hf.helpers_hf import pretrained

PROMPT = "--prompt=w3 w1 w29"


def folder(path, name="llama", **fields):
    """Writes a small random model."""
    save_pretrained(path, pretrained(name, **fields))
    return path


def with_config(path, **changes):
    """Writes a model whose config.json has other values."""
    file = folder(path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


def without(path, name):
    """Writes a model and deletes one of its files."""
    (folder(path) / name).unlink()
    return path


def cut(path, name, num_bytes):
    """Writes a model and truncates one of its files."""
    file = folder(path) / name
    file.write_bytes(file.read_bytes()[:num_bytes])
    return path


def other_tokenizer(path):
    helpers_hf.tokenizer(31).save(folder(path) / "tokenizer.json")
    return path


def not_finite(path):
    """Writes a model with a weight that is not finite."""
    file = folder(path) / "model.safetensors"
    tensors = load_file(file)
    next(each for each in tensors.values() if each.size == 960)[0, 0] = float("nan")
    save_file(tensors, file)
    return path


def one_part(path):
    """Writes a GGUF model in two parts and deletes the second."""
    first, second = helpers_gguf.split(path.parent, *helpers_gguf.llama_like(), count=2)
    second.unlink()
    return first


def cut_gguf(path):
    file = llama_file(path.with_suffix(".gguf"))
    file.write_bytes(file.read_bytes()[:-9])
    return file


def file_of(text, suffix):
    def made(path):
        file = path.with_suffix(suffix)
        file.write_text(text)
        return file

    return made


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_folder_continues_the_prompt(call, tmp_path, name):
    model = folder(tmp_path / "m", name)
    done = call("generate", f"--model={model}", PROMPT, "--max_new_tokens=6", "--temperature=0")
    assert done.code == 0, done.err
    words = done.out.split()
    assert words[:3] == ["w3", "w1", "w29"] and len(words) == 9


def test_a_gguf_file_continues_the_prompt(call, tmp_path):
    path = llama_file(tmp_path / "a.gguf", tokenizer__ggml__add_bos_token=True)
    done = call("generate", f"--model={path}", "--prompt=the cat", "--max_new_tokens=5", "--seed=1")
    assert done.code == 0 and done.out.startswith("the cat") and len(done.out) > 10


def chat_file(path, **changed):
    """A GGUF file with a chat template."""
    template = "<|start|>{{ messages[0].content }}<|end|>"
    return llama_file(path, tokenizer__chat_template=template, **changed)


def prompt_of(call, monkeypatch, *flags):
    """The prompt's ids that reach the model, and what is called."""
    seen = []
    whole = generate_experiment.IncrementalGenerator

    def watched(params, prompts, *args, **options):
        seen.extend(prompts)
        return whole(params, prompts, *args, **options)

    monkeypatch.setattr(generate_experiment, "IncrementalGenerator", watched)
    done = call("generate", "--max_new_tokens=3", "--temperature=0", *flags)
    assert done.code == 0, done.err
    return seen[0].tolist(), done


def test_special_tokens_of_a_prompt_are_text_unless_asked(call, tmp_path, monkeypatch):
    flags = (f"--model={chat_file(tmp_path / 'a.gguf')}", "--prompt=<|start|>the cat<|end|>")
    literal, done = prompt_of(call, monkeypatch, *flags)
    assert not {0, 1} & set(literal)
    told = [line for line in done.err.splitlines() if line.startswith("--prompt: ")]
    assert told == [
        "--prompt: <|end|>, <|start|> are read as text; --parse_special_tokens reads them as "
        "special tokens"
    ]
    parsed, done = prompt_of(call, monkeypatch, *flags, "--parse_special_tokens")
    assert (parsed[0], parsed[-1]) == (1, 0) and "--prompt" not in done.err
    assert done.out.startswith("<|start|>the cat<|end|>")


def test_a_chat_prints_the_reply_to_a_message_in_the_template(call, tmp_path, monkeypatch):
    model = f"--model={chat_file(tmp_path / 'a.gguf')}"
    parsed, _ = prompt_of(
        call, monkeypatch, model, "--prompt=<|start|>the cat<|end|>", "--parse_special_tokens"
    )
    chat, done = prompt_of(call, monkeypatch, model, "--prompt=the cat", "--chat")
    assert chat == parsed and "the cat" not in done.out
    streamed, other = prompt_of(call, monkeypatch, model, "--prompt=the cat", "--chat", "--stream")
    assert streamed == chat and other.out == done.out


def test_a_chat_needs_a_template(call, tmp_path):
    done = call("generate", f"--model={folder(tmp_path / 'm')}", PROMPT, "--chat")
    assert done.code == 2 and "--chat: --model=" in done.error and "no chat template" in done.error


def test_an_end_that_only_generation_config_has_ends_the_text(call, tmp_path):
    model = folder(tmp_path / "m")
    flags = (f"--model={model}", PROMPT, "--temperature=0", "--max_new_tokens=12")
    words = call("generate", *flags).out.split()
    last = words[3:].index(words[7]) + 4
    number = int(words[7].removeprefix("w"))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, number]}))
    for way in ((), ("--stream",), ("--stop=zz",)):
        assert call("generate", *flags, *way).out.split() == words[:last]


def test_all_parts_of_a_gguf_model_are_one(call, tmp_path):
    metadata, tensors = helpers_gguf.llama_like()
    metadata |= helpers_gguf.tokenizer_metadata(helpers_gguf.byte_bpe())
    paths = helpers_gguf.split(tmp_path, metadata, tensors, count=2)
    whole = helpers_gguf.write(tmp_path / "whole.gguf", "llama", metadata, tensors)
    flags = ("--prompt=the cat", "--max_new_tokens=3", "--temperature=0")
    texts = {call("generate", f"--model={path}", *flags).out for path in (whole, *paths)}
    assert len(texts) == 1 and next(iter(texts)).startswith("the cat")


def test_tokens_that_begin_with_a_space_stay_apart(call, tmp_path):
    """As in SentencePiece: a continuation decoded alone would lose its first space."""
    words = {"<s>": 0} | {f"\N{LOWER ONE EIGHTH BLOCK}w{n}": n for n in range(1, 30)}
    inner = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<s>"])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    model = tmp_path / "m"
    tokenizer = HFTokenizer(inner, bos=0)
    save_pretrained(model, dataclasses.replace(pretrained("llama"), tokenizer=tokenizer))
    done = call("generate", f"--model={model}", "--prompt=w3 w1", "--max_new_tokens=4", "--seed=2")
    assert done.code == 0 and done.out.startswith("w3 w1 w")


BROKEN = {
    "nothing there": (lambda path: path, ["no such folder or file", "smollm2-135m, minilm-l6"]),
    "a folder without config": (
        lambda path: without(path, "config.json"),
        ["holds no model", "Hugging Face folder"],
    ),
    "a file of another kind": (file_of("text", ".txt"), ["is no model", "a GGUF file"]),
    "a config that is no JSON": (
        lambda path: cut(path, "config.json", 20),
        ["config.json is not JSON"],
    ),
    "no weights": (
        lambda path: without(path, "model.safetensors"),
        ["has no model.safetensors"],
    ),
    "truncated weights": (
        lambda path: cut(path, "model.safetensors", 5000),
        ["model.safetensors is not whole safetensors"],
    ),
    "a family not known": (
        lambda path: with_config(path, model_type="mamba"),
        ["'mamba' is not a known family", "gpt2, llama, qwen2, qwen3, mistral"],
    ),
    "sizes of another model": (
        lambda path: with_config(path, intermediate_size=41),
        ["gate_proj.weight has shape"],
    ),
    "more layers than there are": (
        lambda path: with_config(path, num_hidden_layers=3),
        ["missing from the weights", "layers.2."],
    ),
    "a tokenizer that does not fit": (
        other_tokenizer,
        ["the tokenizer does not fit the weights", "31 ids", "vocabulary 30"],
    ),
    "no tokenizer": (
        lambda path: without(path, "tokenizer.json"),
        ["has no tokenizer.json"],
    ),
    "an encoder": (
        lambda path: folder(path, "bert"),
        ["is an encoder; it cannot generate text"],
    ),
    "a weight that is not finite": (
        not_finite,
        ["model.safetensors: ", "of 960 numbers that are not finite, the first at [0, 0]"],
    ),
    "a part of a GGUF file": (
        one_part,
        ["is part 1 of 2 of a model; missing beside it: m-00002-of-00002.gguf"],
    ),
    "a tokenizer of another kind": (
        lambda path: llama_file(path.with_suffix(".gguf"), tokenizer__ggml__model="llama"),
        ["tokenizer.ggml.model is 'llama'", "a tokenizer.json", "there is none"],
    ),
    "a GGUF file cut short": (cut_gguf, ["is not a readable GGUF file", "ends before tensor"]),
    "a GGUF file that is none": (file_of("GGML", ".gguf"), ["does not begin with GGUF"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_one_line(call, tmp_path, kind):
    build, parts = BROKEN[kind]
    done = call("generate", f"--model={build(tmp_path / 'm')}", PROMPT)
    assert done.code == 2 and done.out == "" and all(part in done.error for part in parts), done.err


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (" ".join(["w5"] * 70), ["prompt of 70 tokens", "max_new_tokens=4", "max_seq_len of 64"]),
        (" ".join(["w5"] * 61), ["prompt of 61 tokens", "max_seq_len of 64"]),
        (" ", ["a prompt must hold at least one token"]),
        ("w5 \udcff", ["--prompt is not UTF-8"]),
    ],
)
def test_a_prompt_that_cannot_be_continued(call, tmp_path, prompt, parts):
    model = folder(tmp_path / "m")
    done = call("generate", f"--model={model}", f"--prompt={prompt}", "--max_new_tokens=4")
    assert done.code == 2 and all(part in done.error for part in parts), done.err


def test_a_known_name_that_does_not_generate(call, tmp_path, monkeypatch):
    model = folder(tmp_path / "m", "bert")
    monkeypatch.setattr("fm.hf.model_zoo.fetch_model", lambda name: model)
    done = call("generate", "--model=minilm-l6", PROMPT)
    assert (
        done.code == 2 and "--model=minilm-l6 is an encoder; it cannot generate text" in done.error
    )


@pytest.mark.slow
def test_starting_loads_no_other_framework():
    heavy = ("torch", "transformers", "tensorflow", "sklearn", "pandas", "matplotlib")
    code = (
        "import sys, experiments.generate; "
        f"print(*(name for name in {heavy!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
