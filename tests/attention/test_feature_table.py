"""The table of attention's features in docs/benchmarks.md, cell by cell of our own columns."""

import dataclasses
import inspect
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fm.attention import Mask, attention, tokamax
from fm.attention.api import IMPLEMENTATIONS
from tests.attention import helpers_textbook as textbook
from tests.attention import test_implementations as contracts
from tests.attention import test_mosaic_gpu
from tests.attention.helpers_contract import Case, arrays, assert_close, ints, quickly

DOC = Path(__file__).parents[2] / "docs" / "benchmarks.md"
# Platforms, and on GPUs the compute capabilities, that an implementation is for.
TARGETS = {
    "xla_tiled": ("cpu",),
    "xla_chunked": ("cpu",),
    "mosaic_gpu": ("9.0",),
    "cudnn": ("8.0", "9.0", "10.0"),
    "tokamax": ("8.0", "9.0", "10.0"),
    "pallas_triton": ("8.0", "9.0", "10.0"),
    "splash": ("tpu",),
}
SEGMENTS = ints([1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 3, 3, 3])
PACKED = {"q_segments": SEGMENTS, "kv_segments": SEGMENTS}
SMALL = Case(L=8, S=8, C=64)


def case(mask=Mask(), **fields):
    return dataclasses.replace(SMALL, mask=mask, **fields)


# What each row of the table stands for; in bfloat16 where the row does not say otherwise.
PROBES = {
    "causal": case(Mask(causal=True)),
    "segments of packed rows": case(Mask(causal=True, packed=True, **PACKED)),
    "any segments": case(Mask(causal=True, **PACKED)),
    "key lengths": case(Mask(kv_length=ints(3, 8))),
    "a query that sees no key": case(Mask(kv_length=ints(0, 4))),
    "window back, causal": case(Mask(causal=True, window=3)),
    "window both ways": case(Mask(window=3, window_right=2)),
    "prefix": case(Mask(causal=True, prefix=ints(3, 0))),
    "query positions": case(Mask(causal=True, q_start=ints(0, 2))),
    "soft cap": case(softcap=3.0),
    "grouped queries": case(K=2),
    "heads of 32": case(C=32),
    "heads of 256": case(C=256),
    "float32": case(),
}
# No argument of `attention` stands for these.
ABSENT = {"sinks", "paged decode", "ring"}
# Whose contract, run here in an interpreter or as it is, holds backward passes to the bit.
DETERMINISTIC = {
    "xla_tiled": contracts.TestXlaTiled,
    "xla_chunked": contracts.TestXlaChunkedInSmallBlocks,
    "splash": contracts.TestSplashInterpreted,
    "pallas_triton": contracts.TestPallasTritonInterpreted,
}


def table():
    """{feature: {implementation: cell}} of the documented table."""
    lines = DOC.read_text(encoding="utf-8").splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("| feature of the contract |"))
    names = [cell.strip() for cell in lines[head].strip("|").split("|")][1:]
    rows = {}
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        feature, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[feature] = dict(zip(names, cells, strict=True))
    return rows


TABLE = table()


def test_the_table_has_every_feature_and_implementation():
    assert set(TABLE) == {*PROBES, *ABSENT, "deterministic backward"}
    for row in TABLE.values():
        assert set(row) == {*TARGETS, "tested in"}


def supported(name, which, target, monkeypatch):
    """Whether an implementation takes a feature on a platform or compute capability."""
    probe = PROBES[which]
    device = types.SimpleNamespace(
        compute_capability=target, client=types.SimpleNamespace(platform_version="cuda 13000")
    )
    monkeypatch.setattr(jax, "devices", lambda platform=None: [device])
    monkeypatch.setattr(tokamax.importlib.util, "find_spec", lambda name: object())
    dtype = jnp.float32 if which == "float32" else jnp.bfloat16
    # Long enough that padding heads pays; the mask's arrays are not read.
    q = jax.ShapeDtypeStruct((probe.B, 256, probe.H, probe.C), dtype)
    k = jax.ShapeDtypeStruct((probe.B, 256, probe.K, probe.C), dtype)
    platform = target if target in ("cpu", "tpu") else "gpu"
    check = IMPLEMENTATIONS[name].unsupported_reason
    return check(q, k, k, probe.mask, probe.softcap, platform) is None


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("which", PROBES)
def test_what_is_said_to_be_supported_is(which, name, monkeypatch):
    on = [target for target in TARGETS[name] if supported(name, which, target, monkeypatch)]
    if not on:
        want = "no"
    elif on == list(TARGETS[name]):
        want = "yes"
    else:
        want = f"from {on[0]}"
    assert TABLE[which][name] == want


@pytest.mark.parametrize("name", ["xla_tiled", "xla_chunked"])
@pytest.mark.parametrize("which", PROBES)
def test_what_runs_here_gives_the_value_and_gradients(which, name):
    probe = PROBES[which]
    assert TABLE[which][name] == "yes"
    dtype = jnp.float32 if which == "float32" else jnp.bfloat16
    inputs = arrays(probe, dtype)
    got = quickly(*inputs, probe.mask, name=name, scale=None, softcap=probe.softcap)
    seen = textbook.visible(probe.mask, probe.B, probe.L, probe.S)
    want = textbook.attend(*inputs, seen, probe.C**-0.5, probe.softcap)
    assert_close(got, want, 2e-5 if which == "float32" else 3e-2)


@pytest.mark.parametrize("which", sorted(ABSENT))
def test_what_has_no_argument_is_not_claimed(which):
    assert {TABLE[which][name] for name in TARGETS} == {"no"}
    assert set(inspect.signature(attention).parameters) == {
        *("q_BLHC", "k_BSKC", "v_BSKC", "mask", "scale", "softcap", "implementation")
    }
    assert not {field.name for field in dataclasses.fields(Mask)} & {"sinks", "pages", "page_table"}


def test_backward_passes_said_to_be_deterministic_are_tested():
    row = TABLE["deterministic backward"]
    claimed = {name for name in TARGETS if row[name] == "yes"}
    assert claimed == {*DETERMINISTIC, "mosaic_gpu"}
    assert {row[name] for name in set(TARGETS) - claimed} == {"not run"}
    for each in DETERMINISTIC.values():
        assert each.test_is_deterministic_to_the_bit
    assert test_mosaic_gpu.TestInterpreted.test_is_deterministic_and_free_of_races


def test_the_tests_named_are_there():
    for row in TABLE.values():
        names = row["tested in"]
        assert names == "nowhere" or all(
            (DOC.parents[1] / "tests" / "attention" / f"{name.strip('` ')}.py").exists()
            for name in names.split(",")
        )


def test_a_wrong_cell_is_found(monkeypatch):
    monkeypatch.setitem(TABLE, "prefix", TABLE["prefix"] | {"cudnn": "yes"})
    with pytest.raises(AssertionError):
        test_what_is_said_to_be_supported_is("prefix", "cudnn", monkeypatch)
