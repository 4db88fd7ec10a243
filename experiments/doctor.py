"""Prints what this installation runs on, and whether it computes and stores rightly.

    fm doctor

Prints versions, devices, XLA flags, the attention implementations that would be selected, cache
folders, free memory and disk, then the outcome of the self-tests: reductions that a jaxlib release
got wrong, attention against the reference, a checkpoint written and read back. Exit code 0 if all
succeed, otherwise 2.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from absl import flags

from experiments import cli
from fm import self_test
from fm.attention import Mask, attention
from fm.attention.api import explain_choice
from fm.errors import UserError
from fm.files import cache_dir
from fm.model import ModelConfig
from fm.model.transformer import init
from fm.study import run_dir
from fm.training import OptimizerConfig, load_params, optimizer, params_digest
from fm.training.checkpoint import CheckpointStore
from fm.training.train_state import init_train_state

_GIB = 2**30
# Relative to the largest output; bfloat16 has 8 bits of precision.
_TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2}


def define(_: flags.FlagValues) -> None:
    """Has no flags of its own."""


def main(_: flags.FlagValues) -> None:
    """Prints the environment and runs the self-tests.

    Raises:
      UserError: a self-test failed.
    """
    for name, value in _environment():
        print(f"{name:24}{value}")
    failures = []
    for name, check in _SELF_TESTS.items():
        try:
            outcome = check()
        except (UserError, OSError) as error:
            failures.append(f"{name}: {error}")
            outcome = "FAILED"
        print(f"{'self-test':24}{name}: {outcome}")
    if failures:
        raise UserError("; ".join(failures))


def _environment() -> Iterator[tuple[str, str]]:
    """Yields what is printed before the self-tests: name and value."""
    yield from run_dir.package_versions().items()
    for device in jax.devices():
        yield "device", f"{device.id}: {device.device_kind} ({device.platform})"
    yield "processor", f"{os.cpu_count()} cores, {run_dir.machine_info()['machine']}"
    yield "XLA_FLAGS", run_dir.xla_flags() or "none"
    for case in _attention_cases():
        choice = explain_choice(case.q, case.k, case.mask)
        yield "attention", f"{case.name}: {choice.name} ({choice.reason})"
    memory = psutil.virtual_memory()
    yield "free memory", f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB"
    for name, folder in (("cache", cache_dir()), ("compiled programs", cache_dir() / "xla")):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield name, f"{folder}, {size / _GIB:.2f} GiB"
    cache_dir().mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(cache_dir())
    yield "free disk", f"{disk.free / _GIB:.1f} of {disk.total / _GIB:.1f} GiB, at the cache"


def _check_reductions() -> str:
    self_test.check_reductions()
    return f"right to {max(self_test.reduction_errors().values()):.1g}"


def _check_attention() -> str:
    """Compares the implementation selected for each case with the reference."""
    selected = set()
    for case in _attention_cases():
        name = explain_choice(case.q, case.k, case.mask).name
        got, expected = (
            np.asarray(_attend(case.q, case.k, case.v, case.mask, each), np.float32)
            for each in (name, "reference")
        )
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        if not error < _TOLERANCES[str(case.q.dtype)]:
            raise UserError(f"{name} differs from the reference by {error:.1g} ({case.name})")
        selected.add(name)
    return f"{', '.join(sorted(selected))} agree with the reference"


def _check_checkpoint() -> str:
    """Writes a checkpoint into the cache folder and reads it back."""
    config = ModelConfig(
        num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, mlp_dim=16, vocab_size=32
    )
    state = init_train_state(
        init(jax.random.key(0), config), optimizer.build(OptimizerConfig("adamw"), 1)
    )
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=cache_dir()) as folder:
        with CheckpointStore(Path(folder)) as store:
            store.save(1, state, progress={}, config={})
        params, _ = load_params(Path(folder))
    if params_digest(params) != params_digest(state.params):
        raise UserError("the parameters read differ from those written")
    return "written and read back, equal to the bit"


_SELF_TESTS = {
    "reductions": _check_reductions,
    "attention": _check_attention,
    "checkpoint": _check_checkpoint,
}


class _AttentionCase(NamedTuple):
    """What one use of the model asks of attention."""

    name: str
    q: jax.Array
    k: jax.Array
    v: jax.Array
    mask: Mask


def _attention_cases() -> Iterator[_AttentionCase]:
    B, S = 2, 256
    segments = jnp.asarray(np.arange(S) // 100 + np.ones((B, 1)), jnp.int32)
    masks = {
        "training": (S, Mask(causal=True)),
        "bidirectional": (S, Mask()),
        "packed rows": (
            S,
            Mask(causal=True, q_segments=segments, kv_segments=segments, packed=True),
        ),
        "generation": (1, Mask(causal=True, q_start=jnp.full(B, S - 1, jnp.int32))),
    }
    rng = np.random.default_rng(0)
    for dtype in _TOLERANCES:
        for name, (num_queries, mask) in masks.items():
            shapes = ((B, length, 4, 64) for length in (num_queries, S, S))
            q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
            yield _AttentionCase(f"{name}, {dtype}", q, k, v, mask)


@functools.partial(jax.jit, static_argnames="implementation")
def _attend(q, k, v, mask, implementation):
    return attention(q, k, v, mask=mask, implementation=implementation)


if __name__ == "__main__":
    cli.run("doctor", __doc__, define, main, computes=False, resumes=False)
