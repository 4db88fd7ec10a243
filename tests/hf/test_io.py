"""Folders written and read back bit for bit, and what is said of broken ones."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fm.errors import UserError
from fm.hf import PretrainedModel, load_pretrained, save_pretrained
from fm.model.config import ArchConfig
from tests.hf.helpers_hf import (
    CASES,
    params,
    pretrained,
    same,
    tokenizer,
)


def written(folder, name="llama", **fields):
    save_pretrained(folder, pretrained(name, **fields))
    return folder


def retold(folder, **changes):
    """A folder's config.json, changed; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def fails(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read(name, dtype, tmp_path):
    family, config = CASES[name]
    config = dataclasses.replace(config, dtype=dtype)
    specials = {"bos_token_id": 1, "eos_token_id": [2, 3]}
    weights = params(config, dtype=dtype)
    save_pretrained(
        tmp_path / "m", PretrainedModel(config, weights, tokenizer(), special_token_ids=specials)
    )
    got = load_pretrained(tmp_path / "m", dtype=dtype)
    assert (got.family, got.special_token_ids, got.unused_tensors) == (family, specials, ())
    assert got.causal == (family not in ("bert", "modernbert"))
    assert got.tokenizer.vocab_size == config.vocab_size
    assert got.tokenizer.encode(["w3 w1 w29"])[0].tolist() == [3, 1, 29]
    assert dataclasses.replace(got.config, rope_theta=config.rope_theta) == dataclasses.replace(
        config, head_dim_override=0 if config.head_dim_override == 6 else config.head_dim_override
    )
    same(got.params, weights)


def test_the_files_of_a_folder(tmp_path):
    written(tmp_path / "m")
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    save_pretrained(tmp_path / "bare", dataclasses.replace(pretrained("llama"), tokenizer=None))
    assert load_pretrained(tmp_path / "bare").tokenizer is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_read_as_what_is_asked_for(dtype, tmp_path):
    folder = written(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.astype(dtype) for n, t in tensors.items()}, folder / "model.safetensors")
    want = params(CASES["llama"][1])["layers"]["query"]
    got = load_pretrained(folder).params["layers"]["query"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.asarray(want).astype(dtype).astype(np.float32))
    assert load_pretrained(folder, dtype="bfloat16").params["layers"]["query"].dtype == "bfloat16"
    with pytest.raises(UserError, match="dtype=float16"):
        load_pretrained(folder, dtype="float16")


def sharded(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"model-{n % 3}.safetensors" for n, name in enumerate(tensors)}
    for file in set(place.values()):
        held = {name: tensors[name] for name, at in place.items() if at == file}
        save_file(held, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return index, place


ENDS = {
    "only in generation_config.json": ({"eos_token_id": 5}, {}, 5, None),
    "several": ({"eos_token_id": [1, 5]}, {"eos_token_id": 1}, [1, 5], None),
    "several in config.json": ({}, {"eos_token_id": [1, 5]}, [1, 5], None),
    "null and none": ({"eos_token_id": None}, {"eos_token_id": 4}, 4, None),
    "an empty list": ({"eos_token_id": []}, {"eos_token_id": 4}, 4, None),
    "nowhere but the tokenizer": ({}, {}, None, None),
    "config.json has another": (
        {"eos_token_id": 5},
        {"eos_token_id": 6},
        5,
        r"config\.json ends a text at 6 \(w6\); generation_config\.json does not, and decides",
    ),
    "the tokenizer has another": (
        {"eos_token_id": [5, 6]},
        {},
        [5, 6],
        r"tokenizer_config\.json ends a text at 7 \(w7\); generation_config",
    ),
    "beyond the vocabulary": (
        {},
        {"eos_token_id": [4, 999]},
        [4, 999],
        r"config\.json ends a text at 999, beyond the vocabulary of 30",
    ),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_ends_a_text_is_what_ends_it_in_transformers(kind, tmp_path, capsys):
    generation, config, wanted, told = ENDS[kind]
    folder = written(tmp_path / "m")
    words = tokenizer()
    words.eos = 7 if "tokenizer" in kind else None
    words.save_folder(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    retold(folder, **({"eos_token_id": None} | config))
    assert load_pretrained(folder).special_token_ids.get("eos_token_id") == wanted
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (told is not None)
    assert told is None or (re.search(told, lines[0]) and str(folder) in lines[0])


@pytest.mark.parametrize("value", ["2", 2.0, True, [2, "3"], {"id": 2}, [[2]]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_an_end_that_is_no_token_is_refused(file, value, tmp_path):
    folder = written(tmp_path / "m")
    path = folder / file
    given = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(given | {"eos_token_id": value}))
    fails(folder, rf"{file}: eos_token_id=.* must be a token's id or a list of them")
    (folder / "generation_config.json").write_text("{")
    fails(folder, r"generation_config\.json is not JSON")


def with_number(folder, value, dtype="float32", file="model.safetensors", num=0):
    """Sets one number of a tensor of a file; returns the tensor's name."""
    tensors = {name: t.astype(dtype) for name, t in load_file(folder / file).items()}
    name = sorted(tensors)[num]
    tensors[name].reshape(-1)[1] = value
    save_file(tensors, folder / file)
    return name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_weight_that_is_not_finite_is_refused(dtype, value, tmp_path):
    folder = written(tmp_path / "m")
    name = with_number(folder, value, dtype)
    fails(folder, rf"m/model\.safetensors: {name} has 1 of \d+ numbers that are not finite")
    with pytest.raises(UserError, match="not finite"):
        load_pretrained(folder, dtype="bfloat16")


def test_the_shard_of_a_weight_that_is_not_finite_is_named(tmp_path):
    folder = written(tmp_path / "m")
    sharded(folder)
    name = with_number(folder, np.nan, file="model-2.safetensors", num=2)
    fails(folder, rf"m/model-2\.safetensors: {name} has 1 of")


def test_a_weight_beyond_the_range_is_refused(tmp_path):
    folder = written(tmp_path / "m")
    name = with_number(folder, 1e300, "float64")
    fails(folder, rf"{name} has numbers beyond the range of float32")


def test_a_chat_template_is_written_and_read(tmp_path):
    made = pretrained("llama")
    made.tokenizer.chat_template = "{{ messages[0].content }}\n"
    save_pretrained(tmp_path / "m", made)
    assert load_pretrained(tmp_path / "m").tokenizer.chat_template == made.tokenizer.chat_template


def test_shards_are_the_whole(tmp_path):
    folder = written(tmp_path / "m")
    sharded(folder)
    same(load_pretrained(folder).params, params(CASES["llama"][1]))


class TestBrokenShards:
    def test_one_away(self, tmp_path):
        sharded(written(tmp_path / "m"))
        (tmp_path / "m" / "model-1.safetensors").unlink()
        fails(tmp_path / "m", r"model-1\.safetensors")

    def test_an_index_that_is_wrong(self, tmp_path):
        index, place = sharded(written(tmp_path / "m"))
        name = next(name for name, file in place.items() if file == "model-0.safetensors")
        index.write_text(json.dumps({"weight_map": place | {name: "model-1.safetensors"}}))
        fails(tmp_path / "m", "the index disagree about")

    def test_an_index_that_points_elsewhere(self, tmp_path):
        index, place = sharded(written(tmp_path / "m"))
        index.write_text(json.dumps({"weight_map": dict.fromkeys(place, "../model.safetensors")}))
        fails(tmp_path / "m", "is not a file name")
        index.write_text("{}")
        fails(tmp_path / "m", "has no weight_map")


class TestBrokenFolders:
    def test_no_config(self, tmp_path):
        fails(tmp_path, r"cannot read .*config\.json: No such file")
        fails(tmp_path / "nowhere", r"cannot read .*config\.json: No such file")

    @pytest.mark.parametrize(("text", "match"), [("{", "is not JSON"), ("[]", "JSON object")])
    def test_a_config_that_is_none(self, text, match, tmp_path):
        folder = written(tmp_path / "m")
        (folder / "config.json").write_text(text)
        fails(folder, match)

    def test_a_family_not_known(self, tmp_path):
        folder = written(tmp_path / "m")
        retold(folder, model_type="mamba")
        fails(folder, "'mamba' is not a known family; known are gpt2, llama, qwen2, qwen3, mistral")
        retold(folder, model_type=None)
        fails(folder, "model_type=None is not a known family")

    @pytest.mark.parametrize("kept", [0, 6, 100, -1])
    def test_truncated_safetensors(self, kept, tmp_path):
        path = written(tmp_path / "m") / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        fails(tmp_path / "m", r"model\.safetensors is not whole safetensors")

    def test_pickles_are_refused_unopened(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (pytest.fail, ("the pickle was opened",))

        folder = written(tmp_path / "m")
        (folder / "model.safetensors").unlink()
        fails(folder, r"has no model\.safetensors")
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
        fails(folder, r"pytorch_model\.bin and no safetensors: pickled weights can run code")

    def test_a_tokenizer_that_does_not_fit(self, tmp_path):
        folder = written(tmp_path / "m")
        tokenizer(31).save(folder / "tokenizer.json")
        fails(folder, "does not fit the weights: it has 31 ids, the model's vocabulary 30")
        (folder / "tokenizer.json").write_text("{}")
        fails(folder, "is not a tokenizer")
        tall = dataclasses.replace(pretrained("llama"), tokenizer=tokenizer(31))
        with pytest.raises(UserError, match="does not fit"):
            save_pretrained(tmp_path / "n", tall)
        assert not (tmp_path / "n").exists()

    def test_code_is_not_run(self, tmp_path):
        folder = written(tmp_path / "m")
        retold(folder, auto_map={"AutoModel": "evil.Model"})
        fails(folder, "auto_map is not supported")


class TestWriting:
    def test_nothing_is_overwritten(self, tmp_path):
        folder = written(tmp_path / "m")
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(UserError, match="exists already"):
            written(tmp_path / "m", "gpt2")
        assert (folder / "model.safetensors").read_bytes() == before

    def test_all_or_nothing(self, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError("disk full")

        monkeypatch.setattr("fm.hf.io.save_file", full)
        with pytest.raises(OSError, match="disk full"):
            written(tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    def test_a_style_no_family_has(self, tmp_path):
        config = dataclasses.replace(CASES["llama"][1], arch=ArchConfig())
        with pytest.raises(UserError, match=r"is llama, .*norm_scale=True \(not False\)") as caught:
            save_pretrained(tmp_path / "m", PretrainedModel(config, params(config)))
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_a_family_that_is_another(self, tmp_path):
        with pytest.raises(UserError, match=r"no gpt2 model is like this one.*norm=layer"):
            save_pretrained(tmp_path / "m", dataclasses.replace(pretrained("llama"), family="gpt2"))
        with pytest.raises(UserError, match="'mamba' is not known; known are gpt2, llama"):
            save_pretrained(
                tmp_path / "m", dataclasses.replace(pretrained("llama"), family="mamba")
            )

    def test_no_context(self, tmp_path):
        model = pretrained("llama")
        endless = dataclasses.replace(model.config, max_seq_len=0)
        with pytest.raises(UserError, match="max_position_embeddings=0"):
            save_pretrained(tmp_path / "m", dataclasses.replace(model, config=endless))

    def test_parameters_of_another_model(self, tmp_path):
        model = pretrained("llama")
        strange = model.params | {"layers": model.params["layers"] | {"router": np.ones(3)}}
        with pytest.raises(UserError, match=r"not the parameters.*layers\.router \[3\]"):
            save_pretrained(tmp_path / "m", dataclasses.replace(model, params=strange))


@pytest.mark.parametrize("value", [[-1], [30], ["a"], 5, [True]], ids=str)
def test_tokens_never_generated_are_ids(value, tmp_path):
    folder = written(tmp_path / "m")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"suppress_tokens": [0, 3]}))
    assert load_pretrained(folder).suppress_tokens == (0, 3)
    path.write_text(json.dumps({"suppress_tokens": value}))
    fails(folder, "suppress_tokens=.* must be a list of token ids from 0 to 29")
