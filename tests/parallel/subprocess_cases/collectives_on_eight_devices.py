"""Planned communication against the collectives of the compiled step; run by `test_sharding`."""

import collections
import math
import re

import pytest

from fm.model import ModelConfig
from fm.parallel import mesh as meshes
from fm.planning import communication
from fm.planning.chips import CHIPS
from tests.parallel.helpers_eight_devices import compiled
from tests.training.helpers_models import ADAM, NEXT

MODEL = ModelConfig(
    num_layers=2, d_model=128, num_heads=8, num_kv_heads=8, mlp_dim=512, vocab_size=512,
    attention="reference", scan_layers=False,
)  # fmt: skip
ROWS, LENGTH, DEVICES = 16, 64, 8
# Bytes sent per byte of the array, times (n - 1) / n, as in `fm.planning.communication`.
TIMES = {"all-gather": 1, "all-reduce": 2, "reduce-scatter": DEVICES, "all-to-all": 1}


def found(program):
    """Bytes that each device sends, by kind of collective."""
    total = collections.Counter()
    for result, kind in re.findall(rf"= (.*?) ({'|'.join(TIMES)})(?:-start)?\(", program):
        sizes = re.findall(r"f32\[([\d,]*)\]", result)
        numbers = sum(math.prod(int(n) for n in size.split(",") if n) for size in sizes)
        total[kind] += TIMES[kind] * 4 * numbers * (DEVICES - 1) / DEVICES
    return total


def planned(axis):
    mesh = meshes.parse_mesh(f"{axis}:{DEVICES}")
    pieces = ROWS // mesh.batch_shards * LENGTH
    return [
        each.bytes
        for each in communication.estimate_communication(MODEL, ADAM, mesh, CHIPS["h100"], pieces)
    ]


@pytest.mark.parametrize("axis", meshes.MESH_AXES)
def test_planned_bytes_are_what_the_program_sends(axis):
    sent = found(compiled(MODEL, f"{axis}:{DEVICES}", ROWS, LENGTH, NEXT).as_text())
    if axis == "data":
        assert sum(sent.values()) == pytest.approx(planned(axis)[0], rel=0.02)
    elif axis == "fsdp":
        gathered, scattered = planned(axis)
        # XLA:CPU gathers once for both passes, and reduces everywhere what others would scatter.
        assert gathered / 2 <= sent["all-gather"] <= 1.1 * gathered
        assert sent["all-reduce"] + 2 * sent["reduce-scatter"] == pytest.approx(
            2 * scattered, rel=0.1
        )
    else:
        # Backward, XLA:CPU reduces what query, key and value give one by one: 6 a layer, not 4.
        assert planned(axis)[0] <= sent["all-reduce"] <= 1.6 * planned(axis)[0]
