"""Plans against numbers worked out by hand, and against JAX's own."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import REMAT, ModelConfig
from fm.model.sizes import PUBLISHED
from fm.model.style import Style
from fm.model.transformer import forward, init
from fm.training import footprint, meshes, sharding
from fm.training.chips import CHIPS, USABLE
from fm.training.meshes import MeshConfig
from fm.training.optimizer import OptimizerConfig
from fm.training.plan import Asked, default_batch, fitting, plan
from fm.training.traffic import rate

ADAMW = OptimizerConfig("adamw")


def asked(size="8b", chip="h100", chips=8, batch_size=8, length=4096, **others):
    model = dataclasses.replace(PUBLISHED[size], dtype=CHIPS[chip].dtype, scan=True)
    return Asked(size, model, CHIPS[chip], chips, batch_size, length, **others)


@pytest.mark.parametrize(
    ("size", "published_count"),
    # As `transformers` counts GPT-2, Llama-3.2-1B and Llama-3.1-8B.
    [("124m", 124_439_808), ("1b", 1_235_814_400), ("8b", 8_030_261_248)],
)
def test_parameters_are_those_published(size, published_count):
    model = PUBLISHED[size]
    shapes = footprint.state_shapes(model, ADAMW)["params"]
    hidden_piece = model.width  # which only fm has
    assert footprint.numbers(shapes) == published_count + hidden_piece


def test_parameters_counted_by_hand():
    D, F, KC, V = 2048, 8192, 512, 128256
    layer = 2 * D * D + 2 * D * KC + 3 * D * F + 2 * D
    shapes = footprint.state_shapes(PUBLISHED["1b"], ADAMW)["params"]
    assert footprint.numbers(shapes) == V * D + 16 * layer + D + D


@pytest.mark.parametrize("rule", [ADAMW, OptimizerConfig("muon")], ids=["adamw", "muon"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 4, 1), (1, 2, 8)], ids=str)
def test_the_memory_of_the_state_is_that_of_the_shards_jax_makes(sizes, rule):
    model, mesh = PUBLISHED["1b"], MeshConfig(*sizes)
    shapes = footprint.state_shapes(model, rule)
    specs = sharding.state_specs(shapes, mesh)
    abstract = AbstractMesh(sizes, meshes.AXES)

    def bytes_of(part):
        shards = jax.tree.map(
            lambda spec, leaf: (
                math.prod(NamedSharding(abstract, spec).shard_shape(leaf.shape))
                * leaf.dtype.itemsize
            ),
            specs[part],
            shapes[part],
            is_leaf=lambda leaf: isinstance(leaf, P),
        )
        return sum(jax.tree.leaves(shards))

    found = footprint.memory(model, rule, mesh, pieces=1)
    assert found["parameters"] == found["gradients"] == bytes_of("params")
    assert found["optimizer"] == bytes_of("opt_state")


def test_memory_by_hand():
    found = footprint.memory(PUBLISHED["8b"], ADAMW, MeshConfig(fsdp=8), pieces=0)
    D = 4096
    whole = (2 * 32 + 1 + 1) * D  # gains and the hidden piece are split by nobody
    assert found["parameters"] == 4 * ((8_030_261_248 + D - whole) / 8 + whole)
    assert found["optimizer"] == pytest.approx(2 * found["parameters"], rel=1e-6)
    assert found["activations"] == 0


def test_what_the_policies_keep_by_hand():
    model = dataclasses.replace(PUBLISHED["8b"], dtype="bfloat16")
    D, F, KV, H = 4096, 14336, 2 * 1024, 32
    by_hand = {
        "full": 2 * D,
        "attention": 2 * (4 * D + KV) + 4 * H,
        "dots": 2 * (3 * D + KV + 2 * F),
        "none": 2 * (11 * D + KV + 5 * F) + 4 * H,
    }
    for name in REMAT:
        assert footprint.kept(dataclasses.replace(model, remat=name), 1) == by_hand[name]
    halved = footprint.kept(dataclasses.replace(model, remat="attention"), 2)
    assert halved == 2 * D + (2 * (3 * D + KV) + 4 * H) / 2


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMAT)
def test_what_the_policies_keep_is_what_the_compiler_holds(remat):
    L, B, depths = 512, 2, (4, 12)
    inputs = {
        "tokens": np.zeros((B, L), np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
    }
    llama = Style(gain=True, embedding_norm=False, qk_norm="none", activation="silu", gated=True)
    model = ModelConfig(4, 128, 4, 2, 512, vocab=32, scan=True, remat=remat, style=llama)

    def held(depth):
        config = dataclasses.replace(model, depth=depth)
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))

        def value(weights):
            return jnp.sum(forward(weights, inputs, config, mask=Mask(causal=True))["final"])

        return jax.jit(jax.grad(value)).lower(shapes).compile().memory_analysis()

    few, many = (held(depth).temp_size_in_bytes for depth in depths)
    a_layer = (many - few) / (depths[1] - depths[0])
    assert a_layer == pytest.approx(footprint.kept(model, 1) * L * B, rel=0.2)


def test_flops_are_six_a_parameter_and_piece_and_those_of_attention():
    """Chowdhery et al. 2022, appendix B; the embedding is looked up, not multiplied."""
    L, made = 4096, plan(asked(), MeshConfig(fsdp=8))
    V, D, N = 128256, 4096, 32
    gains = (2 * N + 1 + 1) * D
    multiplied = 8_030_261_248 + D - gains - V * D
    head = V * D
    dense = 6 * (L * (multiplied - head) + (L - 1) * head)
    assert made.flops == 8 * (dense + 12 * N * D * L * L)
    assert made.computing == pytest.approx(made.flops / (8 * 989.4e12 * 0.4))


def test_what_is_sent_by_hand():
    P8 = 8_030_261_248 + 4096
    (gather, scatter) = plan(asked(), MeshConfig(fsdp=8)).sent
    assert (gather.axis, scatter.axis) == ("fsdp", "fsdp")
    assert gather.bytes == 2 * 2 * P8 * 7 / 8 and scatter.bytes == 2 * P8 * 7 / 8
    assert gather.seconds == gather.bytes / 450e9
    (reduced,) = plan(asked(), MeshConfig(data=8)).sent
    assert reduced.bytes == 2 * 2 * P8 * 7 / 8
    (residuals,) = plan(asked(batch_size=2), MeshConfig(tensor=8)).sent
    assert residuals.bytes == (32 * 4 + 3) * 2 * (2 * 4096 * 4096 * 2) * 7 / 8
    twice = plan(asked(batch_size=16, accumulate=2), MeshConfig(fsdp=8)).sent
    assert [each.bytes for each in twice] == [2 * gather.bytes, 2 * scatter.bytes]
    assert plan(asked("124m", chips=1, length=1024), MeshConfig()).sent == []


def test_how_fast_an_axis_sends():
    h100, v5e = CHIPS["h100"], CHIPS["v5e"]
    assert rate(MeshConfig(tensor=8), "tensor", h100) == 450e9
    assert rate(MeshConfig(data=32), "data", h100) == 400e9  # all eight cards of a server
    assert rate(MeshConfig(data=4, tensor=8), "data", h100) == 50e9
    assert rate(MeshConfig(data=4, fsdp=2, tensor=4), "data", h100) == 50e9
    assert rate(MeshConfig(data=4, fsdp=2, tensor=4), "fsdp", h100) == 450e9
    assert rate(MeshConfig(data=16, fsdp=16), "data", v5e) == 100e9


@pytest.mark.parametrize(
    ("size", "chip", "chips", "length"),
    [("124m", "a100", 1, 1024), ("1b", "h100", 256, 4096), ("8b", "v5p", 64, 8192)],
)
def test_the_plan_chosen_fits_and_none_that_fits_is_quicker(size, chip, chips, length):
    wanted = asked(size, chip, chips, default_batch(chips, length), length)
    chosen = fitting(wanted)
    assert chosen.needed <= chosen.usable == USABLE * CHIPS[chip].memory
    assert chosen.mesh.size == chips
    for data, fsdp in ((chips, 1), (1, chips)):
        other = plan(chosen.asked, MeshConfig(data=data, fsdp=fsdp))
        assert other.needed > other.usable or other.seconds >= chosen.seconds


def test_less_is_kept_where_more_does_not_fit():
    wanted = asked("8b", "h100", 16, 16, 8192)
    policies = [fitting(dataclasses.replace(wanted, batch_size=n)) for n in (16, 32, 128)]
    kept = [REMAT.index(each.asked.model.remat) for each in policies]
    assert kept == sorted(kept) and kept[0] < kept[-1]


def test_what_does_not_fit_is_refused_with_what_it_takes():
    with pytest.raises(
        UserError, match=r"8b does not fit 1 h100: at best .*remat=full\) 1[0-9]{2}"
    ):
        fitting(asked(chips=1, batch_size=1))
    with pytest.raises(UserError, match=r"--mesh=data:8,fsdp:1,tensor:1, --remat=full.*more chips"):
        fitting(asked(), MeshConfig(data=8))


@pytest.mark.parametrize(
    ("settings", "mesh", "message"),
    [
        ({}, MeshConfig(data=4), "takes 4 chips, not 8"),
        ({"batch_size": 6}, MeshConfig(data=8), "batch_size=6 does not divide into 8 parts"),
        ({"chips": 3, "batch_size": 3}, MeshConfig(tensor=3), "= 3 does not divide dimension"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(settings, mesh, message):
    with pytest.raises(UserError, match=message):
        fitting(asked(**settings), mesh)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mfu": 0.0}, "mfu=0.0 is a share"),
        ({"mfu": math.nan}, "mfu=nan is a share"),
        ({"length": 200_000}, "over the context of 131072"),
        ({"length": 1}, "length=1 2"),
        ({"chip": "cpu", "chips": 2}, "at most 1 cpu are joined"),
        ({"chip": "v5e", "chips": 512}, "at most 256 v5e are joined"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        asked(**settings)


def test_nothing_is_allocated():
    before = len(jax.live_arrays())
    fitting(asked("8b", "v5p", 64, 64))
    assert len(jax.live_arrays()) == before
