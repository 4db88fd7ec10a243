"""One step: exact in parts, the same for every seed's program, parameters in float32."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.errors import UserError
from fm.parallel.mesh import MeshConfig
from fm.training import (
    OptimizerConfig,
    PretrainingObjective,
    multitask,
    optimizer,
    params_digest,
    train_state,
    train_step,
)
from tests.training.helpers_models import (
    ADAM,
    IMAGE,
    NEXT,
    TEXT,
    VOCAB,
    images,
    params,
    uneven_text,
)

WEIGHTS = np.linspace(0.5, 2.0, VOCAB).astype(np.float32)
PROBLEMS = {
    "text": (
        TEXT,
        uneven_text(),
        PretrainingObjective(causal_lm=0.25, masked_lm=0.5, bag_of_words=0.25),
        2,
    ),
    "images": (IMAGE, images(), PretrainingObjective(causal_lm=0.5, masked_lm=0.5), 2),
}


def loss_and_gradient(config, batch, objective, parts):
    return jax.jit(train_step.loss_and_gradient, static_argnums=(3, 4, 6))(
        params(config), batch, jax.random.key(0), config, objective, WEIGHTS, parts
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_parts_are_the_whole(name):
    config, batch, objective, parts = PROBLEMS[name]
    whole = loss_and_gradient(config, batch, objective, 1)
    split = loss_and_gradient(config, batch, objective, parts)
    assert set(whole[0]) == set(split[0]) > {"loss"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), whole, split)


def test_equal_configs_share_what_is_compiled_at_the_start_of_a_run():
    mesh = MeshConfig().build(jax.devices()[:1])
    for start in (
        lambda config: train_state.init_train_state(params(TEXT), optimizer.build(config, 10)),
        lambda config: train_state.init_sharded_train_state(
            params(TEXT), optimizer.build(config, 10), mesh
        ),
    ):
        start(dataclasses.replace(ADAM))
        programs = train_state._init._cache_size()
        start(dataclasses.replace(ADAM))
        assert train_state._init._cache_size() == programs
    model = dataclasses.replace(TEXT)
    assert train_state.make_sharded_init(mesh, model) is train_state.make_sharded_init(mesh, TEXT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
@pytest.mark.parametrize("shape", [(), (3, 4), (0, 2)])
def test_a_digest_is_that_of_names_types_shapes_and_bytes(dtype, shape):
    array = np.ones(shape).astype(jnp.dtype(dtype))
    want = f"['a']['b'] {dtype} {shape or (1,)}\n".encode() + array.tobytes()
    for leaf in (array, jnp.asarray(array), array.T.copy().T):
        assert params_digest({"a": {"b": leaf}}) == hashlib.sha256(want).hexdigest()


def test_parts_keep_each_objectives_rows():
    batch = {"segments": np.arange(8)[:, None], "tokens": np.arange(8)[:, None]}
    parts = multitask.split_batch(
        batch, PretrainingObjective(causal_lm=0.25, masked_lm=0.5, bag_of_words=0.25), 2
    )
    assert parts["tokens"][..., 0].tolist() == [[0, 2, 3, 6], [1, 4, 5, 7]]


def test_rows_that_do_not_divide():
    with pytest.raises(UserError, match=r"grad_accum_steps=4 .* 2 rows .* 'causal_lm'"):
        multitask.split_batch(
            uneven_text(), PretrainingObjective(causal_lm=0.25, masked_lm=0.75), 4
        )


def fresh(optimizer_config=ADAM, config=TEXT):
    return train_state.init_train_state(params(config), optimizer.build(optimizer_config, 10))


def test_metrics_and_count():
    step = train_step.make_train_step(TEXT, NEXT, ADAM, 10)
    now, metrics = step(fresh(), uneven_text(), 0, None)
    assert set(metrics) == {"loss", "causal_lm_nats", "grad_norm", "learning_rate"}
    assert now.step == 1
    assert metrics["learning_rate"] == 0
    assert metrics["grad_norm"] > 0


def test_seeds_and_steps_share_a_program_and_differ():
    objective = PretrainingObjective(masked_lm=1.0)
    step = train_step.make_train_step(TEXT, objective, ADAM, 10)
    assert step is train_step.make_train_step(TEXT, objective, ADAM, 10)
    first, second = (float(step(fresh(), uneven_text(), seed, None)[1]["loss"]) for seed in (0, 1))
    assert first != second
    later = fresh().replace(step=np.int32(1))
    assert float(step(later, uneven_text(), 0, None)[1]["loss"]) != first
    # A numpy step count is another kind of argument, hence the second entry.
    assert step._cache_size() <= 2  # pyright: ignore


def test_the_given_parameters_stay():
    given = jax.device_put(params(TEXT))
    before = params_digest(given)
    now = train_state.init_train_state(given, optimizer.build(ADAM, 10))
    train_step.make_train_step(TEXT, NEXT, ADAM, 10)(now, uneven_text(), 0, None)
    assert params_digest(given) == before
    assert now.params["layers"]["up"].is_deleted()


def test_bfloat16_computes_on_float32_parameters():
    half = dataclasses.replace(TEXT, dtype="bfloat16")
    optimizer_config = OptimizerConfig("adamw", warmup=0.1)
    now, metrics = train_step.make_train_step(half, NEXT, optimizer_config, 10)(
        fresh(optimizer_config), uneven_text(), 0, None
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(now.params)} == {np.dtype("float32")}
    full = train_step.make_eval_step(TEXT, NEXT)(params(TEXT), uneven_text(), 0, None)
    assert float(metrics["loss"]) == pytest.approx(float(full["loss"]), rel=0.02)
    assert float(metrics["loss"]) != float(full["loss"])


class TestDigest:
    def test_does_not_mind_the_order_of_names(self):
        assert params_digest({"a": np.ones(2), "b": np.zeros(2)}) == params_digest(
            {"b": np.zeros(2), "a": np.ones(2)}
        )

    @pytest.mark.parametrize(
        "other",
        [
            {"a": np.ones(4, np.float32), "c": np.zeros(2)},
            {"a": np.ones((2, 2), np.float32), "b": np.zeros(2)},
            {"a": np.ones(4, np.int32), "b": np.zeros(2)},
            {"a": np.nextafter(np.ones(4, np.float32), 2), "b": np.zeros(2)},
            {"a": np.zeros(2), "b": np.ones(4, np.float32)},
        ],
    )
    def test_minds_names_shapes_dtypes_and_bits(self, other):
        assert params_digest({"a": np.ones(4, np.float32), "b": np.zeros(2)}) != params_digest(
            other
        )
