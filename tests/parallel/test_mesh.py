"""Meshes that fm does not shard over are refused; the default device decides what is taken."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from fm.attention.api import default_platform
from fm.errors import UserError
from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.training import sweep
from tests.training.helpers_models import TEXT, params
from tests.training.helpers_sweep import three_trials, train_alone

ROOT = Path(__file__).parents[2]


def mesh_of(*axes, kind=AxisType.Auto):
    return Mesh(np.array(jax.devices()[:1]).reshape([1] * len(axes)), axes, (kind,) * len(axes))


FOREIGN = {
    "other names": mesh_of("batch", "model"),
    "one of ours": mesh_of("data"),
    "one more": mesh_of("data", "fsdp", "tensor", "expert"),
    "explicit": mesh_of("data", "fsdp", "tensor", kind=AxisType.Explicit),
}
USES = {
    "constrain": lambda mesh: sharding.constrain(params(TEXT)),
    "constrain_batch": lambda mesh: meshes.constrain_batch(jnp.ones((2, 3))),
    "constrain_embedding_table": lambda mesh: meshes.constrain_embedding_table(jnp.ones((2, 3))),
    "shard_batch": lambda mesh: sharding.shard_batch({"a": np.ones((2, 3))}, mesh),
    "shard_state": lambda mesh: sharding.shard_state(params(TEXT), mesh),
    "default_mesh": lambda mesh: meshes.default_mesh(mesh).__enter__(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mesh", FOREIGN)
def test_a_mesh_of_other_axes_is_refused(mesh, use):
    with jax.set_mesh(FOREIGN[mesh]), pytest.raises(UserError) as caught:
        USES[use](FOREIGN[mesh])
    message = str(caught.value)
    assert all(axis in message for axis in (*FOREIGN[mesh].axis_names, "data, fsdp, tensor"))
    assert "\n" not in message


def test_a_run_on_a_mesh_of_other_axes_is_refused():
    with jax.set_mesh(FOREIGN["other names"]), pytest.raises(UserError, match="batch, model"):
        train_alone(three_trials()[0])


def test_our_axes_in_another_order_and_a_shard_map_are_not():
    mesh = mesh_of("tensor", "data", "fsdp")
    with jax.set_mesh(mesh):
        constrained = jax.jit(sharding.constrain)(params(TEXT))
        assert meshes.mesh_shard_counts() == (1, 1)
    want = sharding.state_shardings(constrained, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding.mesh, constrained) == jax.tree.map(
        lambda each: each.mesh, want
    )
    with jax.set_mesh(FOREIGN["other names"]):
        inside = jax.shard_map(meshes.constrain_batch, in_specs=P("batch"), out_specs=P("batch"))
        assert inside(jnp.ones((2, 3))).shape == (2, 3)


def test_the_default_device_decides(monkeypatch):
    """A machine with an accelerator on which somebody has asked for the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for device in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(device):
            assert meshes.default_device().platform == default_platform() == "cpu"
            assert (
                meshes.MeshConfig(data=jax.device_count("cpu")).build().devices[0, 0, 0]
                == (jax.devices("cpu")[0])
            )
            assert sweep._choose_batching(three_trials(), None, None) == "sequential"


def test_nothing_asks_for_the_default_backend():
    paths = [path for part in ("fm", "experiments") for path in (ROOT / part).rglob("*.py")]
    asked = re.compile(r"default_backend\(|jax\.(local_)?devices\(\)")
    # The doctor lists all devices.
    asking = {path.name for path in paths if asked.search(path.read_text())}
    assert asking == {"doctor.py"}
