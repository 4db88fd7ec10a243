import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.adaptation import lora
from fm.adaptation.finetune import FinetuneConfig, finetune, logits, predict, split_trained
from fm.adaptation.lora import LoraConfig
from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import ArchConfig
from fm.model.transformer import forward, init
from tests.adaptation.helpers_models import MODEL, params, separable

EVERY = LoraConfig(rank=3, alpha=5.0, kernels=("query", "key", "value", "attention_out", "up"))
GATED = dataclasses.replace(
    MODEL,
    num_layers=2,
    num_kv_heads=1,
    arch=ArchConfig(gated_mlp=True, activation="silu", use_bias="all"),
)


def random(tree, seed=0):
    """Leaves of the same shapes, none of them zero."""
    leaves, shape = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    made = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(shape, made)


def final(tree, model, rows):
    segments = rows["segments"]
    mask = Mask(q_segments=segments, kv_segments=segments)
    return forward(tree, rows, model, mask=mask)["final"]


def adapted(model=GATED, config=EVERY):
    base = random(init(jax.random.key(0), model))
    return base, random(lora.init(jax.random.key(1), base["layers"], config), seed=2)


def test_the_start_is_the_model_as_it_was():
    base = random(params())
    fresh = lora.init(jax.random.key(1), base["layers"], EVERY)
    assert all((np.asarray(fresh[name]) == 0).all() for name in fresh if name.endswith("_b"))
    assert all(np.asarray(fresh[name]).any() for name in fresh if name.endswith("_a"))
    rows, _ = separable(4)
    after = final(lora.attach(base, fresh, EVERY), MODEL, rows)
    assert np.array_equal(after, final(base, MODEL, rows))


@pytest.mark.parametrize(
    ("scan_layers", "kernels"),
    [
        pytest.param(False, EVERY.kernels, id="all", marks=pytest.mark.slow),
        pytest.param(True, ("gate", "down"), id="scanned"),
    ],
)
def test_merged_equals_attached(scan_layers, kernels):
    config = dataclasses.replace(EVERY, kernels=kernels)
    model = dataclasses.replace(GATED, scan_layers=scan_layers)
    base, adapters = adapted(model, config)
    rows, _ = separable(4)
    attached = final(lora.attach(base, adapters, config), model, rows)
    merged = lora.merge(base, adapters, config)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, base)
    np.testing.assert_allclose(final(merged, model, rows), attached, atol=2e-5, rtol=2e-5)
    assert np.abs(attached - final(base, model, rows)).max() > 1e-2


def test_an_adapted_map_is_the_papers_equation():
    base, adapters = adapted()
    merged = lora.merge(base, adapters, EVERY)["layers"]
    for name in EVERY.kernels:
        W = np.asarray(base["layers"][name], np.float64)
        A, B = (np.asarray(adapters[f"{name}_lora_{part}"], np.float64) for part in "ab")
        wanted = W + 5.0 / 3 * np.einsum("nir,nro->nio", A, B).reshape(W.shape)
        np.testing.assert_allclose(merged[name], wanted, atol=1e-6)


@pytest.mark.slow
def test_gradients_of_adapters_are_those_of_the_merged_kernel():
    base, adapters = adapted()
    rows, _ = separable(4)
    weights = jax.random.normal(jax.random.key(5), final(base, GATED, rows).shape)

    def loss(tree):
        return jnp.sum(weights * final(tree, GATED, rows))

    found = jax.grad(lambda each: loss(lora.attach(base, each, EVERY)))(adapters)
    of_base = jax.grad(loss)(lora.merge(base, adapters, EVERY))["layers"]
    for name in EVERY.kernels:
        A, B = (np.asarray(adapters[f"{name}_lora_{part}"], np.float64) for part in "ab")
        dW = 5.0 / 3 * np.asarray(of_base[name], np.float64).reshape(len(A), A.shape[1], -1)
        for part, wanted in (("a", dW @ B.swapaxes(1, 2)), ("b", A.swapaxes(1, 2) @ dW)):
            got = found[f"{name}_lora_{part}"]
            np.testing.assert_allclose(got, wanted, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.slow
def test_a_run_trains_adapters_and_head_alone_and_shares_the_base():
    rows, labels = separable(16)
    start = random(params())
    config = FinetuneConfig(learning_rate=3e-2, min_steps=40, batch_size=8, lora=LoraConfig(rank=2))
    tuned = finetune(start, rows, labels, MODEL, config, num_classes=2, seed=0, pad_to=16)
    assert tuned["adapters"].keys() == {
        f"{name}_lora_{part}" for name in ("query", "value") for part in "ab"
    }
    for name, value in start["layers"].items():
        assert tuned["model"]["layers"][name] is value
    assert all(tuned["model"]["streams"][name] is each for name, each in start["streams"].items())
    assert all(np.asarray(each).any() for each in tuned["adapters"].values())
    fresh, truth = separable(40, seed=1)
    reading = config.feature_config
    assert np.mean(predict(tuned, fresh, MODEL, feature_config=reading) == truth) == 1.0
    merged = {**tuned, "model": lora.merge(start, tuned["adapters"], config.lora)}
    np.testing.assert_allclose(
        logits(merged, fresh, MODEL, reading), logits(tuned, fresh, MODEL, reading), atol=1e-4
    )


def test_no_gradient_of_the_base_is_computed():
    rows, _ = separable(4)
    config = FinetuneConfig(lora=LoraConfig(rank=2))
    trained, frozen = split_trained(params(), rows, MODEL, config, num_classes=2, seed=0)
    assert trained.keys() == {"adapters", "head"} and frozen.keys() == {"model"}

    def loss(trained):
        model = lora.attach(frozen["model"], trained["adapters"], config.lora)
        return jnp.sum(logits({**trained, "model": model}, rows, MODEL, config.feature_config))

    made = jax.make_jaxpr(jax.grad(loss))(trained)
    kernels = {(16, 16), (16, 32), (32, 16)}
    sizes = [
        out.aval.shape
        for equation in made.eqns
        if equation.primitive.name == "dot_general"
        for out in equation.outvars
    ]
    assert sizes and not kernels & set(sizes)


def test_adapters_alone_there_and_back(tmp_path):
    base, adapters = adapted()
    lora.save(tmp_path / "it", adapters, EVERY)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["it"]
    again, config = lora.load(tmp_path / "it", base["layers"])
    assert config == EVERY and again.keys() == adapters.keys()
    assert all(np.array_equal(again[name], adapters[name]) for name in adapters)
    with pytest.raises(UserError, match="exists already"):
        lora.save(tmp_path / "it", adapters, EVERY)
    with pytest.raises(UserError, match="belong to another model"):
        lora.load(tmp_path / "it", params()["layers"])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("adapters.json", "{", "no complete adapters"),
        ("adapters.json", json.dumps({"rank": 2}), "no complete adapters"),
        ("adapters.json", json.dumps({"rank": 0, "alpha": 1, "kernels": ["query"]}), "rank=0"),
        ("adapters.safetensors", "xx", "no complete adapters"),
        ("adapters.safetensors", None, "cannot read"),
    ],
)
def test_broken_adapters_are_refused(tmp_path, file, content, says):
    base, adapters = adapted()
    lora.save(tmp_path / "it", adapters, EVERY)
    (tmp_path / "it" / file).unlink()
    if content is not None:
        (tmp_path / "it" / file).write_text(content)
    with pytest.raises(UserError, match=says):
        lora.load(tmp_path / "it", base["layers"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"kernels": ()}, "at least one"),
        ({"kernels": ("query", "query")}, "none of them twice"),
        ({"kernels": ("head",)}, "kernels=head out of query, key, value"),
    ],
)
def test_a_bad_setting_is_named(fields, says):
    with pytest.raises(UserError, match=says):
        LoraConfig(**fields)


def test_a_kernel_the_model_lacks_is_named():
    with pytest.raises(UserError, match="no kernel 'gate' to adapt; it has query"):
        lora.init(jax.random.key(0), params()["layers"], LoraConfig(kernels=("gate",)))
