"""The --mesh flag and the sharding rules; training on eight devices gives the same result."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fm.errors import UserError
from fm.model import ModelConfig
from fm.model.config import ArchConfig
from fm.model.transformer import init
from fm.parallel import sharding
from fm.parallel.mesh import MeshConfig, parse_mesh
from fm.training import OptimizerConfig, optimizer, train_state
from tests.model.helpers_archs import ARCHS, GPT2, config

BERT = ArchConfig(**(vars(GPT2) | {"post_norm": True, "num_token_types": 2, "pooler": True}))
ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    num_layers=2, d_model=24, num_heads=4, num_kv_heads=2, mlp_dim=16, vocab_size=12,
    position_axes=3, patch_dims=(("image", 6), ("audio", 5)),
)  # fmt: skip


def run_on_eight_devices(chosen, file="eight_devices"):
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=900"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-n", "0",
            f"tests/parallel/subprocess_cases/{file}.py::{chosen}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
        env=os.environ | {
            "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu",
            # Splitting a program makes it several times as long; its memory is that of users.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not re.search("memory|planned", chosen))),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def shapes(config=MODEL):
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


def test_parse_mesh():
    assert parse_mesh("data:2,fsdp:4") == MeshConfig(data=2, fsdp=4)
    assert parse_mesh("tensor:2").num_devices == 2
    assert str(parse_mesh("fsdp:3")) == "data:1,fsdp:3,tensor:1"


@pytest.mark.parametrize("text", ["", "data", "data:0", "data:-2", "rows:2", "data:2,data:2", "2"])
def test_parse_mesh_error_names_what_is_accepted(text):
    with pytest.raises(UserError, match=rf"^--mesh={text}: takes .* data, fsdp, tensor"):
        parse_mesh(text)


def test_every_parameter_has_a_spec():
    found = sharding.param_specs(shapes(), MeshConfig(data=2, fsdp=2, tensor=2))
    assert found["layers"]["query"] == P(None, "fsdp", "tensor", None)
    assert found["layers"]["down"] == P(None, "tensor", "fsdp")
    assert found["streams"]["token_head"] == P("fsdp", "tensor")
    assert found["streams"]["image_bias"] == P()
    assert jax.tree.structure(found, is_leaf=lambda x: isinstance(x, P)) == jax.tree.structure(
        shapes()
    )


@pytest.mark.parametrize("config", [*ARCHS.values(), config(arch=BERT, num_kv_heads=4)])
def test_every_architecture_is_covered(config):
    sharding.param_specs(shapes(config), MeshConfig(fsdp=2, tensor=2))


def test_indivisible_key_heads_and_vocabulary_are_replicated():
    found = sharding.param_specs(
        shapes(dataclasses.replace(MODEL, vocab_size=13)), MeshConfig(tensor=4)
    )
    assert found["layers"]["key"] == P(None, "fsdp", None, None)
    assert found["streams"]["token_embedding"] == P(None, "fsdp")


def test_a_parameter_without_a_rule_is_named():
    params = shapes() | {"adapter": {"table": jax.ShapeDtypeStruct((4, 4), np.float32)}}
    with pytest.raises(UserError, match=r"no rule .* adapter/table \[4, 4\]"):
        sharding.param_specs(params, MeshConfig())


def test_an_axis_that_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"--mesh=.*tensor:3: tensor = 3 does not divide .* 4, of"):
        sharding.param_specs(shapes(), MeshConfig(tensor=3))
    with pytest.raises(UserError, match="fsdp = 16 does not divide"):
        sharding.param_specs(shapes(), MeshConfig(fsdp=16))


@pytest.mark.parametrize("rule", [OptimizerConfig(), OptimizerConfig("adamw")])
def test_optimizer_state_is_sharded_like_its_parameters(rule):
    config = MeshConfig(fsdp=2, tensor=2)
    now = jax.eval_shape(
        lambda params: train_state.init_train_state(params, optimizer.build(rule, 10)), shapes()
    )
    found = sharding.state_specs(now, config)
    leaves = jax.tree_util.tree_leaves_with_path(found, is_leaf=lambda x: isinstance(x, P))
    by_name = [(jax.tree_util.keystr(path), spec) for path, spec in leaves]
    ups = [spec for name, spec in by_name if name.endswith("['layers']['up']")]
    assert len(ups) == (2 if rule.name == "muon" else 3)
    assert set(ups) == {P(None, "fsdp", "tensor")}
    assert found.step == P()


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        "test_a_mesh_agrees_with_one_device",
        "test_parameters_are_created_where_they_stay",
        "test_memory_of_init_falls_with_devices",
        "test_memory_per_device_falls",
        "test_rows_that_do_not_divide",
        "test_adapting_agrees_with_one_device",
        "test_the_mesh_must_use_every_device",
    ],
)
def test_eight_devices(chosen):
    run_on_eight_devices(chosen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        "test_a_run_resumes_on_another_mesh",
        "test_a_sweep_on_a_mesh_agrees_with_one_device",
        "test_vmapped_trials_stay_sharded",
        "test_vmapped_trials_are_saved_in_shards",
        "test_a_checkpoint_is_restored_on_other_devices",
    ],
)
def test_runs_on_eight_devices(chosen):
    run_on_eight_devices(chosen, "runs_on_eight_devices")


@pytest.mark.slow
def test_planned_communication_is_that_of_the_program():
    run_on_eight_devices(
        "test_planned_bytes_are_what_the_program_sends", "collectives_on_eight_devices"
    )
