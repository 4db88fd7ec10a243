"""The doctor: what it prints, and that it fails where the installation does."""

import dataclasses

import pytest

from experiments import cli, doctor
from fm.attention.api import IMPLEMENTATIONS
from fm.training.checkpoint import CheckpointStore


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run():
    return cli.call("doctor", doctor.__doc__, doctor.define, doctor.main, [], computes=False)


def test_a_healthy_installation(cache, capsys):
    assert run() == 0
    printed = capsys.readouterr().out
    for part in (
        "jaxlib  ",
        "XLA_FLAGS  ",
        "generation, float32: decode",
        f"cache                   {cache}",
        "free disk",
        "reductions: right to",
        "attention: decode, xla_tiled agree with the reference",
        "checkpoint: written and read back, equal to the bit",
    ):
        assert part in printed
    assert not list(cache.glob(".doctor-*"))


def test_attention_that_is_wrong(monkeypatch, capsys):
    right = IMPLEMENTATIONS["decode"]
    wrong = dataclasses.replace(right, attend=lambda *a, **k: right.attend(*a, **k) * 1.001)
    monkeypatch.setitem(IMPLEMENTATIONS, "decode", wrong)
    doctor._attend.clear_cache()
    assert run() == 2
    shown = capsys.readouterr()
    assert "error: attention: decode differs from the reference by 0.001 (gen" in shown.err
    assert "attention: FAILED" in shown.out and "checkpoint: written" in shown.out
    doctor._attend.clear_cache()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "save", full)
    assert run() == 2
    assert "error: checkpoint: " in capsys.readouterr().err
