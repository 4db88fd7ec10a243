"""XLA flags that `fm` adds, and the self-test that refuses where they are needed and undone."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import jax
import numpy as np
import pytest

from fm import self_test, xla_flags
from fm.errors import UserError

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
NO_YNN = "--xla_cpu_experimental_ynn_fusion_type="
FAULTY = jax.__version_info__[:3] == (0, 10, 2)


@pytest.mark.parametrize(
    ("faulty", "given", "flags"),
    [
        (True, "", NO_YNN),
        (True, "--xla_dump_to=there", f"--xla_dump_to=there {NO_YNN}"),
        (True, f"{NO_YNN}dot", f"{NO_YNN}dot"),
        (False, "", ""),
    ],
)
def test_ynn_fusions_are_off_where_they_are_faulty(faulty, given, flags, monkeypatch):
    monkeypatch.setattr(xla_flags, "_YNN_IS_FAULTY", faulty)
    monkeypatch.setenv("XLA_FLAGS", given)
    xla_flags.disable_ynn_fusions()
    assert os.environ["XLA_FLAGS"] == flags


def test_this_process_reduces_right():
    assert all(error < 1e-5 for error in self_test.reduction_errors().values())
    self_test.check_reductions()


def test_a_wrong_reduction_is_refused(monkeypatch):
    monkeypatch.setattr(self_test, "reduction_errors", lambda: {"a sum": 2e-3})
    with pytest.raises(UserError, match=r"computes a sum wrongly here \(relative error 0.002"):
        self_test.check_reductions.__wrapped__()
    monkeypatch.setattr(self_test, "reduction_errors", lambda: {"a sum": np.nan})
    with pytest.raises(UserError, match="wrongly"):
        self_test.check_reductions.__wrapped__()


@pytest.mark.parametrize(
    ("flag", "code"),
    [("", 0), pytest.param("reduce,dot", 2, marks=pytest.mark.skipif(not FAULTY, reason="right"))],
)
@pytest.mark.slow
def test_an_experiment_refuses_to_compute_wrongly(flag, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.doctor"],
        env=os.environ | {"XLA_FLAGS": f"{NO_YNN}{flag}", "FM_CACHE": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert ("computes squared norms" in done.stderr) == bool(code)


@pytest.mark.parametrize(
    ("plugin", "given", "flags"),
    [
        ("xla_cuda13", "", DETERMINISTIC),
        ("xla_cuda12", "--xla_dump_to=there", f"--xla_dump_to=there {DETERMINISTIC}"),
        ("xla_cuda13", "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
        ("tpu", "--xla_dump_to=there", "--xla_dump_to=there"),
        (None, "", ""),
    ],
)
def test_deterministic_ops_with_a_cuda_plugin_only(plugin, given, flags, monkeypatch):
    found = [EntryPoint(plugin, f"jax_plugins.{plugin}", "jax_plugins")] if plugin else []
    monkeypatch.setattr(xla_flags, "entry_points", lambda group: found)
    monkeypatch.setenv("XLA_FLAGS", given)
    xla_flags.request_deterministic_gpu_ops()
    assert os.environ["XLA_FLAGS"] == flags
