"""What is kept of a checkpoint: which arrays stay, are drawn anew, or are permuted."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.errors import UserError
from fm.model.transformer import init
from fm.study.config import StudyConfig
from fm.study.runner import CompareContext
from fm.study.tasks import prepare_task
from fm.study.transfer import TRANSFERS, transferred_params
from fm.training import params_digest
from fm.training.checkpoint import load_params
from tests.study.helpers_study import MODEL, config, dataset, images, loads, recipe

DEEP = dataclasses.replace(MODEL, num_layers=3, vocab_size=20)


@pytest.fixture(scope="module")
def params():
    trained = init(jax.random.key(0), DEEP)
    # Arrays that start at 0 have values after training.
    return jax.tree.map(lambda a: a + np.linspace(1, 2, a.size).reshape(a.shape), trained)


def same(left, right):
    """For each array, whether all its entries are equal."""
    return jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left, right))


@pytest.mark.parametrize(
    ("how", "streams", "lower", "upper"),
    [
        ("all", True, True, True),
        ("embeddings", True, False, False),
        ("layers", False, True, True),
        ("top_reinitialized", True, True, False),
        ("shuffled", False, False, False),
    ],
)
def test_what_is_kept(params, how, streams, lower, upper):
    found = transferred_params(params, DEEP, how, seed=0)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, params)
    assert set(same(found["streams"], params["streams"])) == {streams}
    for kept, layers in ((lower, slice(0, 2)), (upper, slice(2, 3))):
        parts = (jax.tree.map(lambda a, s=layers: a[s], tree["layers"]) for tree in (found, params))
        assert set(same(*parts)) == {kept}


def test_shuffling_keeps_the_entries_of_every_layer(params):
    found = transferred_params(params, DEEP, "shuffled", seed=0)
    for n in range(3):
        ordered = [
            jax.tree.map(lambda a, n=n: np.sort(np.ravel(a[n])), tree["layers"])
            for tree in (found, params)
        ]
        assert all(same(*ordered))
    other = transferred_params(params, DEEP, "shuffled", seed=1)
    assert not any(same(found, other))


def test_what_is_drawn_anew_is_not_where_scratch_starts(params):
    found = transferred_params(params, DEEP, "layers", seed=0)["streams"]["token_embedding"]
    for seed in (0, 1000):
        scratch = init(jax.random.key(seed), DEEP)["streams"]["token_embedding"]
        assert not np.array_equal(found, scratch)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"transfer": "heads"}, f"transfer=heads: must be one of {', '.join(TRANSFERS)}"),
        ({"transfer": "top_reinitialized"}, "needs a model of 2 or more layers"),
        ({"transfer_step": 2}, "transfer_step=2: must be a multiple of keep_period=None"),
        ({"transfer_step": 3, "keep_period": 2}, "transfer_step=3: must be a multiple"),
        ({"keep_period": 5}, "keep_period=5: must be 1 to steps=4"),
    ],
)
def test_bad_recipes_are_one_line(changes, says):
    with pytest.raises(UserError, match=says):
        recipe("image", **changes)


@pytest.mark.slow
def test_a_checkpoint_along_the_run_is_adapted(monkeypatch, tmp_path):
    loads(monkeypatch, dataset("halves", images))
    own = recipe("image", keep_period=1, transfer_step=2)
    task = prepare_task(config("halves", label_budgets=(8,), recipe=own), ("in_domain",), 1)
    study = StudyConfig(tasks=(task.config,), arms=("scratch", "in_domain"), seeds=1)
    context = CompareContext(study, tmp_path, shared_dir=tmp_path / "shared")
    (run,) = context.initial_model(task, "in_domain", pretrained=True).runs
    (folder,) = (tmp_path / "shared").iterdir()
    saved, _ = load_params(folder / "seed-0" / "checkpoints", 2)
    assert params_digest(run.params) == params_digest(saved)

    whole = dataclasses.replace(
        task, config=dataclasses.replace(task.config, recipe=recipe("image", keep_period=1))
    )
    (last,) = context.initial_model(whole, "in_domain", pretrained=True).runs
    assert len(list((tmp_path / "shared").iterdir())) == 1
    assert (run.steps, last.steps) == (2, 4) and run.flops == last.flops / 2
    assert params_digest(run.params) != params_digest(last.params)
