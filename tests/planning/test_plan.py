"""Plans against numbers worked out by hand, and against JAX's own."""

import dataclasses
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import REMAT_POLICIES, ArchConfig, ModelConfig
from fm.model.sizes import PUBLISHED_CONFIGS
from fm.model.transformer import forward, init
from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.parallel.mesh import MeshConfig
from fm.planning import chips, memory
from fm.planning.chips import CHIPS, USABLE_MEMORY_FRACTION
from fm.planning.communication import axis_bandwidth
from fm.planning.plan import PlanRequest, default_batch_size, find_fitting_plan, plan_on_mesh
from fm.training.optimizer import OptimizerConfig

ADAMW = OptimizerConfig("adamw")


def asked(size="8b", chip="h100", chips=8, batch_size=8, length=4096, **others):
    model = dataclasses.replace(PUBLISHED_CONFIGS[size], dtype=CHIPS[chip].dtype, scan_layers=True)
    return PlanRequest(size, model, CHIPS[chip], chips, batch_size, length, **others)


@pytest.mark.parametrize(
    ("size", "published_count"),
    # As `transformers` counts GPT-2, Llama-3.2-1B and Llama-3.1-8B.
    [("124m", 124_439_808), ("1b", 1_235_814_400), ("8b", 8_030_261_248)],
)
def test_parameters_are_those_published(size, published_count):
    model = PUBLISHED_CONFIGS[size]
    shapes = memory.state_shapes(model, ADAMW).params
    hidden_piece = model.d_model  # which only fm has
    assert memory.num_elements(shapes) == published_count + hidden_piece


def test_parameters_counted_by_hand():
    D, F, KC, V = 2048, 8192, 512, 128256
    layer = 2 * D * D + 2 * D * KC + 3 * D * F + 2 * D
    shapes = memory.state_shapes(PUBLISHED_CONFIGS["1b"], ADAMW).params
    assert memory.num_elements(shapes) == V * D + 16 * layer + D + D


@pytest.mark.parametrize("rule", [ADAMW, OptimizerConfig("muon")], ids=["adamw", "muon"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 4, 1), (1, 2, 8)], ids=str)
def test_the_memory_of_the_state_is_that_of_the_shards_jax_makes(sizes, rule):
    model, mesh = PUBLISHED_CONFIGS["1b"], MeshConfig(*sizes)
    shapes = memory.state_shapes(model, rule)
    specs = sharding.state_specs(shapes, mesh)
    abstract = AbstractMesh(sizes, meshes.MESH_AXES)

    def bytes_of(part):
        shards = jax.tree.map(
            lambda spec, leaf: (
                math.prod(NamedSharding(abstract, spec).shard_shape(leaf.shape))
                * leaf.dtype.itemsize
            ),
            getattr(specs, part),
            getattr(shapes, part),
            is_leaf=lambda leaf: isinstance(leaf, P),
        )
        return sum(jax.tree.leaves(shards))

    found = memory.estimate_memory(model, rule, mesh, tokens_per_device=1)
    assert found["parameters"] == found["gradients"] == bytes_of("params")
    assert found["optimizer"] == bytes_of("opt_state")


def test_memory_by_hand():
    found = memory.estimate_memory(
        PUBLISHED_CONFIGS["8b"], ADAMW, MeshConfig(fsdp=8), tokens_per_device=0
    )
    D = 4096
    whole = (2 * 32 + 1 + 1) * D  # gains and the hidden piece are split by nobody
    assert found["parameters"] == 4 * ((8_030_261_248 + D - whole) / 8 + whole)
    assert found["optimizer"] == pytest.approx(2 * found["parameters"], rel=1e-6)
    assert found["activations"] == 0


def test_what_the_policies_keep_by_hand():
    model = dataclasses.replace(PUBLISHED_CONFIGS["8b"], dtype="bfloat16")
    D, F, KV, H = 4096, 14336, 2 * 1024, 32
    by_hand = {
        "full": 2 * D,
        "attention": 2 * (4 * D + KV) + 4 * H,
        "dots": 2 * (3 * D + KV + 2 * F),
        "none": 2 * (11 * D + KV + 5 * F) + 4 * H,
    }
    for name in REMAT_POLICIES:
        assert (
            memory.layer_saved_bytes_per_token(dataclasses.replace(model, remat_policy=name), 1)
            == by_hand[name]
        )
    halved = memory.layer_saved_bytes_per_token(
        dataclasses.replace(model, remat_policy="attention"), 2
    )
    assert halved == 2 * D + (2 * (3 * D + KV) + 4 * H) / 2


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_what_the_policies_keep_is_what_the_compiler_holds(remat):
    L, B, depths = 512, 2, (4, 12)
    inputs = {
        "tokens": np.zeros((B, L), np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
    }
    llama = ArchConfig(
        norm_scale=True, embedding_norm=False, qk_norm="none", activation="silu", gated_mlp=True
    )
    model = ModelConfig(
        4, 128, 4, 2, 512, vocab_size=32, scan_layers=True, remat_policy=remat, arch=llama
    )

    def held(depth):
        config = dataclasses.replace(model, num_layers=depth)
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))

        def value(weights):
            return jnp.sum(forward(weights, inputs, config, mask=Mask(causal=True))["final"])

        return jax.jit(jax.grad(value)).lower(shapes).compile().memory_analysis()

    few, many = (held(depth).temp_size_in_bytes for depth in depths)
    a_layer = (many - few) / (depths[1] - depths[0])
    assert a_layer == pytest.approx(memory.layer_saved_bytes_per_token(model, 1) * L * B, rel=0.2)


def test_flops_are_six_a_parameter_and_piece_and_those_of_attention():
    """Chowdhery et al. 2022, appendix B; the embedding is looked up, not multiplied."""
    L, made = 4096, plan_on_mesh(asked(), MeshConfig(fsdp=8))
    V, D, N = 128256, 4096, 32
    gains = (2 * N + 1 + 1) * D
    multiplied = 8_030_261_248 + D - gains - V * D
    head = V * D
    dense = 6 * (L * (multiplied - head) + (L - 1) * head)
    assert made.flops == 8 * (dense + 12 * N * D * L * L)
    assert made.compute_seconds == pytest.approx(made.flops / (8 * 989.4e12 * 0.4))


def test_what_is_sent_by_hand():
    P8 = 8_030_261_248 + 4096
    (gather, scatter) = plan_on_mesh(asked(), MeshConfig(fsdp=8)).collectives
    assert (gather.axis, scatter.axis) == ("fsdp", "fsdp")
    assert gather.bytes == 2 * 2 * P8 * 7 / 8 and scatter.bytes == 2 * P8 * 7 / 8
    assert gather.seconds == gather.bytes / 450e9
    (reduced,) = plan_on_mesh(asked(), MeshConfig(data=8)).collectives
    assert reduced.bytes == 2 * 2 * P8 * 7 / 8
    (residuals,) = plan_on_mesh(asked(batch_size=2), MeshConfig(tensor=8)).collectives
    assert residuals.bytes == (32 * 4 + 3) * 2 * (2 * 4096 * 4096 * 2) * 7 / 8
    twice = plan_on_mesh(asked(batch_size=16, grad_accum_steps=2), MeshConfig(fsdp=8)).collectives
    assert [each.bytes for each in twice] == [2 * gather.bytes, 2 * scatter.bytes]
    assert plan_on_mesh(asked("124m", chips=1, length=1024), MeshConfig()).collectives == []


def test_how_fast_an_axis_sends():
    h100, v5e = CHIPS["h100"], CHIPS["v5e"]
    assert axis_bandwidth(MeshConfig(tensor=8), "tensor", h100) == 450e9
    assert axis_bandwidth(MeshConfig(data=32), "data", h100) == 400e9  # all eight cards of a server
    assert axis_bandwidth(MeshConfig(data=4, tensor=8), "data", h100) == 50e9
    assert axis_bandwidth(MeshConfig(data=4, fsdp=2, tensor=4), "data", h100) == 50e9
    assert axis_bandwidth(MeshConfig(data=4, fsdp=2, tensor=4), "fsdp", h100) == 450e9
    assert axis_bandwidth(MeshConfig(data=16, fsdp=16), "data", v5e) == 100e9


@pytest.mark.parametrize(
    ("size", "chip", "chips", "length"),
    [("124m", "a100", 1, 1024), ("1b", "h100", 256, 4096), ("8b", "v5p", 64, 8192)],
)
def test_the_plan_chosen_fits_and_none_that_fits_is_quicker(size, chip, chips, length):
    wanted = asked(size, chip, chips, default_batch_size(chips, length), length)
    chosen = find_fitting_plan(wanted)
    assert (
        chosen.bytes_needed
        <= chosen.bytes_usable
        == USABLE_MEMORY_FRACTION * CHIPS[chip].memory_bytes
    )
    assert chosen.mesh.num_devices == chips
    for data, fsdp in ((chips, 1), (1, chips)):
        other = plan_on_mesh(chosen.request, MeshConfig(data=data, fsdp=fsdp))
        assert other.bytes_needed > other.bytes_usable or other.step_seconds >= chosen.step_seconds


def test_less_is_kept_where_more_does_not_fit():
    wanted = asked("8b", "h100", 16, 16, 8192)
    policies = [find_fitting_plan(dataclasses.replace(wanted, batch_size=n)) for n in (16, 32, 128)]
    kept = [REMAT_POLICIES.index(each.request.model_config.remat_policy) for each in policies]
    assert kept == sorted(kept) and kept[0] < kept[-1]


def test_what_does_not_fit_is_refused_with_what_it_takes():
    with pytest.raises(
        UserError, match=r"8b does not fit 1 h100: at best .*remat_policy=full\) 1[0-9]{2}"
    ):
        find_fitting_plan(asked(chips=1, batch_size=1))
    with pytest.raises(
        UserError, match=r"--mesh=data:8,fsdp:1,tensor:1, --remat_policy=full.*more chips"
    ):
        find_fitting_plan(asked(), MeshConfig(data=8))


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
        find_fitting_plan(asked(**settings), mesh)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mfu": 0.0}, "mfu=0.0 must be above 0"),
        ({"mfu": math.nan}, "mfu=nan must be above 0"),
        ({"length": 200_000}, "exceeds the model's max_seq_len of 131072"),
        ({"length": 1}, "seq_len=1 2 or more"),
        ({"chip": "cpu", "chips": 2}, "at most 1 cpu can be connected"),
        ({"chip": "v5e", "chips": 512}, "at most 256 v5e can be connected"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        asked(**settings)


def test_nothing_is_allocated():
    before = len(jax.live_arrays())
    find_fitting_plan(asked("8b", "v5p", 64, 64))
    assert len(jax.live_arrays()) == before


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v4", 275e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_of_a_device_by_its_kind(kind, expected):
    device: Any = types.SimpleNamespace(device_kind=kind)
    assert chips.device_peak_flops(device, "bfloat16") == expected
    assert chips.device_peak_flops(device, "float32") is None
