"""What XLA is asked for, with and without a plugin for NVIDIA GPUs."""

import os
from importlib.metadata import EntryPoint

import pytest

from fm.training import runtime

ASKED = "--xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(
    ("plugin", "given", "flags"),
    [
        ("xla_cuda13", "", ASKED),
        ("xla_cuda12", "--xla_dump_to=there", f"--xla_dump_to=there {ASKED}"),
        ("xla_cuda13", "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
        ("tpu", "--xla_dump_to=there", "--xla_dump_to=there"),
        (None, "", ""),
    ],
)
def test_asked_of_nvidia_alone_and_not_against_the_user(plugin, given, flags, monkeypatch):
    found = [EntryPoint(plugin, f"jax_plugins.{plugin}", "jax_plugins")] if plugin else []
    monkeypatch.setattr(runtime, "entry_points", lambda group: found)
    monkeypatch.setenv("XLA_FLAGS", given)
    runtime.request_deterministic_gpu_ops()
    assert os.environ["XLA_FLAGS"] == flags
