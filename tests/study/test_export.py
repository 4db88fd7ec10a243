"""A model pretrained here becomes a folder that is read back with the same logits and ids."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm import hf
from fm.attention import Mask
from fm.data import tokenizer as bpe
from fm.data.media import layout_of
from fm.errors import UserError
from fm.hf.tokenizer import from_bpe
from fm.model import ModelConfig, embeddings
from fm.model.sizes import with_arch
from fm.model.transformer import forward, init
from fm.study import export
from fm.study.pretraining import PretrainedModel
from fm.study.processing import Processor
from fm.training.objectives import PretrainingObjective

TEXTS = ["a warm film", "<|bos|> is text, <|eos|> too", "quite é 日本\n\n", ""]
CAUSAL = PretrainingObjective(causal_lm=0.25, masked_lm=0.75)


def study_model(arch="llama", objective=CAUSAL, *, tied=False):
    """A model as a run leaves it, with random parameters."""
    tokenizer = bpe.train(TEXTS * 5, 300)
    config = ModelConfig(2, 32, 4, 2, 48, vocab_size=tokenizer.vocab_size)
    config = with_arch(config, arch)
    arch_config = dataclasses.replace(config.arch, tie_embeddings=tied)
    config = dataclasses.replace(config, arch=arch_config)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32), shapes
    )
    return PretrainedModel(Processor(config, tokenizer), params, objective)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(model)` is the folder of a finished run with that model."""

    def make(model):
        monkeypatch.setattr(export, "load_pretrained", lambda folder: model)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        config = {
            "experiment": "pretrain",
            "dataset": {"name": "reviews.csv", "fingerprint": "ab12"},
            "recipe": {"seq_len": 64, "batch_size": 8, "optimizer": {"name": "muon"}},
            "seed": 3,
        }
        (folder / "config.json").write_text(json.dumps(config))
        data = {"name": "reviews.csv", "use": "pretraining", "rows": 1200, "license": "CC0-1.0"}
        summary = {"steps": 60, "tokens": 9000, "metrics": {"validation": 2.5}, "data": [data]}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


def logits(params, config, ids):
    tokens = jnp.asarray(ids, jnp.int32)[None]
    inputs = {"tokens": tokens, "positions": jnp.arange(tokens.shape[1])[None]}
    final = forward(params, inputs, config, mask=Mask(True))["final"]
    return np.asarray(embeddings.token_logits(params["streams"], final[0], config))


def test_the_folder_is_read_back_as_the_same_model(run, tmp_path):
    model = study_model()
    export.export_pretrained(run(model), tmp_path / "out")
    read = hf.load_pretrained(tmp_path / "out")
    assert read.family == "llama" and read.config.max_seq_len == 64
    assert read.special_token_ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert read.suppress_tokens == (0, 1, 3)
    own = model.processor.tokenizer
    for text, ids in zip(TEXTS, own.encode(TEXTS), strict=True):
        assert read.tokenizer.encode([text])[0].tolist() == ids.tolist()
        assert read.tokenizer.encode_with_specials([text])[0].tolist() == [1, *ids.tolist()]
        assert read.tokenizer.decode(ids) == text
    ids = [1, *own.encode(["a warm film"])[0]]
    expected = logits(model.params, model.processor.model, ids)
    assert np.array_equal(logits(read.params, read.config, ids), expected)


def test_special_tokens_are_spelled_as_no_token_of_the_vocabulary_is():
    text = "<|bos|>" * 300
    tokenizer = bpe.train([text] * 20, 280)
    found = from_bpe(tokenizer)
    assert found.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()
    assert found.bos == 1 and found.vocab_size == tokenizer.vocab_size


def test_the_files_and_the_card(run, tmp_path):
    export.export_pretrained(run(study_model()), tmp_path / "out", max_length=32)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 32
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2 and generation["suppress_tokens"] == [0, 1, 3]
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "| reviews.csv | pretraining | 1,200 | CC0-1.0 |",
        "| causal_lm 0.25, masked_lm 0.75 |",
        "bits per byte | 2.5 |",
        "25.0% of its training sequences predicted the next token",
        "sequences of at most 32 tokens",
    ):
        assert part in card, part


def test_what_transformers_does_not_have_is_refused_in_one_line(run, tmp_path):
    image = study_model()
    layouts = {"image": layout_of("image", (8, 8, 1), None, 2)}
    image = dataclasses.replace(
        image, processor=dataclasses.replace(image.processor, layouts=layouts)
    )
    masked = study_model(objective=PretrainingObjective(masked_lm=1.0))
    for model, match in (
        (study_model("fm"), r"no model that computes this one; pretrain with --arch=llama"),
        (masked, r"not trained to predict the next token.*--objective=causal_lm:1"),
        (image, r"reads image and text, .*takes a model of text alone"),
    ):
        with pytest.raises(UserError, match=match) as error:
            export.export_pretrained(run(model), tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_length_is_that_of_the_studys_recipe_or_asked_for(run, tmp_path):
    folder = run(study_model())
    seed = tmp_path / "study" / "pretrained" / "films-in_domain" / "seed-0"
    seed.mkdir(parents=True)
    with pytest.raises(UserError, match="give --max_length"):
        export.export_pretrained(seed, tmp_path / "a")
    films = {"dataset": "films.csv", "fingerprint": "cd34", "recipe": {"seq_len": 48}}
    tasks = {"films": films, "other": {"recipe": {"seq_len": 1}}}
    (tmp_path / "study" / "config.json").write_text(json.dumps({"tasks": tasks}))
    export.export_pretrained(seed, tmp_path / "a")
    assert hf.load_pretrained(tmp_path / "a").config.max_seq_len == 48
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| films.csv | pretraining | not known | not known | cd34 |" in card
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'a'} exists already")):
        export.export_pretrained(folder, tmp_path / "a")


@pytest.mark.slow
def test_transformers_computes_the_same(run, tmp_path):
    """Logits and ids of the loaded folder, with grouped heads, tied embeddings and untied ones."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for tied in (False, True):
        out = tmp_path / f"tied-{tied}"
        model = study_model(tied=tied)
        export.export_pretrained(run(model), out)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
        assert type(theirs).__name__ == "LlamaForCausalLM"
        own = model.processor.tokenizer
        for text, ids in zip(TEXTS, own.encode(TEXTS), strict=True):
            assert tokenizer(text)["input_ids"] == [1, *ids.tolist()]
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids.tolist()
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            with torch.no_grad():
                found = theirs(torch.tensor([[1, *ids.tolist()]])).logits[0].numpy()
            expected = logits(model.params, model.processor.model, [1, *ids])
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
