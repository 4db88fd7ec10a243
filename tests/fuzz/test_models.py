"""Damaged model files, published or own: read, or refused with a line that names them."""

import dataclasses
import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fm.data import tokenizer
from fm.hf import io as published
from fm.hf.tokenizer import HFTokenizer
from fm.training import optimizer, train_state
from fm.training.checkpoint import CheckpointStore
from tests.fuzz import helpers_guard as guard
from tests.fuzz import helpers_junk as junk
from tests.hf import helpers_gguf, helpers_hf
from tests.training.helpers_models import ADAM, NEXT, TEXT, params


def check_generate(path, prompt="the cat w1 w2"):
    """Runs generate up to its work; a refusal names the file or its folder."""
    done = guard.run("generate", [f"--model={path}", f"--prompt={prompt}"], path / "none")
    if done.code == 2:
        assert str(path) in done.error or "--model" in done.error, done.error


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """The files of a small model with a byte-level BPE tokenizer like that of real ones."""
    folder = tmp_path_factory.mktemp("byte_level")
    model = dataclasses.replace(helpers_hf.CASES["llama"][1], vocab_size=400)
    words = HFTokenizer(helpers_gguf.byte_bpe())
    published.save_pretrained(
        folder, published.PretrainedModel(model, helpers_hf.params(model), words, family="llama")
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The files of a small published model, as `transformers` writes them."""
    folder = tmp_path_factory.mktemp("llama")
    published.save_pretrained(folder, helpers_hf.pretrained("llama"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_published_folder(llama):
    @guard.cases
    @given(st.sampled_from(sorted(llama)), st.data())
    def check(name, data):
        content = data.draw(junk.damaged(llama[name]))
        if name.endswith(".json") and data.draw(st.booleans()):
            content = json.dumps(data.draw(junk.altered(json.loads(llama[name])))).encode()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model")
            path.mkdir()
            for each, whole in llama.items():
                (path / each).write_bytes(content if each == name else whole)
            check_generate(path)

    check()


ends = st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3))


@guard.cases
@given(
    generation=st.one_of(st.none(), st.fixed_dictionaries({}, optional={"eos_token_id": ends})),
    config=st.one_of(st.none(), ends),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_a_published_folder_of_any_statements(generation, config, dtype):
    """What ends a text is what the file that decides says; weights read as they were written."""
    written = helpers_hf.pretrained("llama")
    weights = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), written.params)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model")
        published.save_pretrained(path, dataclasses.replace(written, params=weights))
        stated = json.loads((path / "config.json").read_text()) | {"eos_token_id": config}
        (path / "config.json").write_text(json.dumps(stated))
        if generation is not None:
            (path / "generation_config.json").write_text(json.dumps(generation))
        read = published.load_pretrained(path)
        check_generate(path)
    wanted = (generation or {}).get("eos_token_id", config)
    assert read.special_token_ids.get("eos_token_id") == wanted
    for got, expected in zip(jax.tree.leaves(read.params), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(np.asarray(got, np.float32), expected.astype(np.float32))


def test_a_published_tokenizer(byte_level):
    @guard.cases
    @given(junk.altered(json.loads(byte_level["tokenizer.json"])))
    def check(plain):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model")
            path.mkdir()
            for each, content in byte_level.items():
                (path / each).write_bytes(content)
            (path / "tokenizer.json").write_text(json.dumps(plain))
            check_generate(path)

    check()


def test_a_gguf_file(tmp_path):
    metadata, tensors = helpers_gguf.llama_like()
    metadata |= helpers_gguf.tokenizer_metadata(helpers_gguf.byte_bpe())
    whole = helpers_gguf.write(tmp_path / "a.gguf", "llama", metadata, tensors).read_bytes()
    # Tensors and tokens fill most of the file; the lengths come first.
    head = whole[:4000]

    @guard.cases
    @given(st.one_of(junk.damaged(whole), junk.damaged(head).map(lambda some: some + whole[4000:])))
    def check(content):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "a.gguf")
            path.write_bytes(content)
            check_generate(path)

    check()


MODEL = dataclasses.replace(TEXT, vocab_size=280)
CONFIG = {"model": dataclasses.asdict(MODEL), "objective": dataclasses.asdict(NEXT), "layouts": {}}
CONFIG = json.loads(json.dumps(CONFIG))


def saved(folder, config):
    """Writes the files of `experiments.pretrain` that other commands read."""
    store = CheckpointStore(folder / "checkpoints")
    begun = train_state.init_train_state(params(MODEL), optimizer.build(ADAM, 10))
    store.save(1, begun, {"step": 1, "data": {}}, config)
    store.close()
    tokenizer.train(["the cat sat on the mat"] * 9, 280).save(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The files of a run by relative path."""
    folder = tmp_path_factory.mktemp("run")
    saved(folder, CONFIG)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_with_a_damaged_file(run):
    @guard.cases
    @given(st.sampled_from(sorted(run)), st.data())
    def check(name, data):
        content = data.draw(junk.damaged(run[name]))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "run")
            for each, whole in run.items():
                (path / each).parent.mkdir(parents=True, exist_ok=True)
                (path / each).write_bytes(content if each == name else whole)
            check_generate(path, "the cat")

    check()


@guard.few
@given(junk.altered(CONFIG))
def test_a_run_with_an_altered_config(config):
    """The digests are right; a value of the config is not."""
    assume(isinstance(config, dict))  # what the store writes, whatever its values
    with tempfile.TemporaryDirectory() as folder:
        saved(pathlib.Path(folder), config)
        check_generate(pathlib.Path(folder), "the cat")
