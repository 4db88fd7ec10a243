"""Several pretraining seeds as one program: what each leaves is what it leaves alone."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from fm.data import tokenizer as bpe
from fm.errors import UserError
from fm.model.transformer import init
from fm.study import pretraining
from fm.study.pretraining import load_pretrained, pretrain, pretrain_seeds
from fm.study.processing import build_processor
from fm.training import OptimizerConfig, PretrainingObjective, params_digest, sweep
from tests.study.helpers_study import images, recipe, split, texts


def given(modality, out, **changes):
    corpus = split(*(texts if modality == "text" else images)(60, 0))
    own = recipe(modality, **changes)
    return corpus, modality, own, build_processor(corpus, modality, own, out)


@pytest.mark.parametrize(
    ("modality", "objective"),
    [
        ("text", PretrainingObjective(causal_lm=0.5, masked_lm=0.5)),
        ("text", PretrainingObjective(masked_lm=0.5, bag_of_words=0.5)),
        ("image", PretrainingObjective(causal_lm=0.5, masked_lm=0.5)),
    ],
)
def test_the_attention_described_is_that_of_the_batches(tmp_path, modality, objective, monkeypatch):
    """The shapes and keys that stand for a batch are those of one."""
    corpus, _, own, processor = given(modality, tmp_path, objective=objective, batch_size=4)
    described = []
    monkeypatch.setattr(
        pretraining, "describe_attention", lambda model, batch, _: described.append(batch) or "told"
    )
    args = processor, modality, objective, own
    assert pretraining.describe_pretraining_attention(*args) == "told"
    if modality == "text":
        lengths = np.random.default_rng(0).integers(1, own.seq_len, 60)
        chunks = [np.zeros(length, np.int32) for length in lengths]
        batch = next(pretraining._text_batches(chunks, own, 0))
    else:
        layout = processor.layouts[modality]
        batch = next(pretraining._patch_batches(corpus, np.arange(60), layout, 4, 0))
    (shapes,) = described
    assert set(shapes) == set(batch) - {"positions"}
    assert shapes["segments"].shape == batch["segments"].shape


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "image"])
def test_seeds_together_are_seeds_alone(tmp_path, modality):
    arguments = given(modality, tmp_path)
    together = pretrain_seeds(*arguments, seeds=2, out_dir=tmp_path, run_name="toy")
    for seed, mine in enumerate(together):
        alone = pretrain(*arguments, seed=seed, out_dir=tmp_path / f"alone-{seed}", run_name="toy")
        start = init(jax.random.key(seed), arguments[3].model)
        moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), mine.params, start)
        assert max(jax.tree.leaves(moved)) > 1e-3
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
            (mine.params, mine.curve),
            (alone.params, alone.curve),
        )
        found = load_pretrained(tmp_path / f"seed-{seed}")
        assert params_digest(found.params) == params_digest(mine.params)
        assert found.objective == arguments[2].objective and found.processor.model.d_model == 16
        assert (found.processor.tokenizer is None) == (modality == "image")
    assert params_digest(together[0].params) != params_digest(together[1].params)


@pytest.mark.slow
def test_again_is_finished_and_what_is_lost_is_made_again(tmp_path, capsys):
    arguments = given("image", tmp_path)
    first = pretrain_seeds(*arguments, seeds=2, out_dir=tmp_path, run_name="toy")
    shutil.rmtree(tmp_path / "seed-1" / "checkpoints")
    capsys.readouterr()
    again = pretrain_seeds(*arguments, seeds=2, out_dir=tmp_path, run_name="toy")
    # Whether seeds run as one program is decided by the clock; either way seed 0 is not repeated.
    assert "seed 0:   0%" not in capsys.readouterr().err
    for seed, (a, b) in enumerate(zip(first, again, strict=True)):
        assert params_digest(a.params) == params_digest(b.params) and a.curve == b.curve
        assert params_digest(load_pretrained(tmp_path / f"seed-{seed}").params) == params_digest(
            a.params
        )


@pytest.mark.slow
def test_one_seed_is_no_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "sweep", None)
    pretrain_seeds(*given("image", tmp_path), seeds=1, out_dir=tmp_path, run_name="toy")
    assert not (tmp_path / "grid").exists() and load_pretrained(tmp_path / "seed-0").params


@pytest.mark.slow
def test_a_seed_that_fails_is_told(tmp_path):
    hot = OptimizerConfig("adamw", learning_rate=1e30, warmup=0.0)
    arguments = given("image", tmp_path, optimizer=hot)
    with pytest.raises(UserError, match=r"toy, seed 0: .* must be finite"):
        pretrain_seeds(*arguments, seeds=2, out_dir=tmp_path, run_name="toy")


@pytest.mark.slow
def test_a_tokenizer_of_another_run_is_told(tmp_path):
    arguments = given("text", tmp_path)
    pretrain(*arguments, seed=0, out_dir=tmp_path, run_name="toy")
    own = tmp_path / "tokenizer.json"
    content = own.read_text()
    # One letter of one merge, still a tokenizer; and then no text is the same tokens.
    at = content.index('"merges"')
    own.write_text(content[:at] + content[at:].replace('"a"', '"e"', 1))
    assert own.read_text() != content
    with pytest.raises(UserError, match=r"tokenizer.json is not"):
        load_pretrained(tmp_path)
    own.write_text(content)
    assert load_pretrained(tmp_path).processor.tokenizer is not None
    reads = dataclasses.replace(arguments[3], tokenizer=bpe.train(texts(60, 1)[0][:3], 262))
    with pytest.raises(UserError, match="tokenizer="):
        pretrain(*arguments[:3], reads, seed=0, out_dir=tmp_path, run_name="toy")
