"""What a run says of its attention: implementations by objective and layer kind, with reasons."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fm.attention import api
from fm.model.config import ArchConfig, ModelConfig
from fm.training import PretrainingObjective
from fm.training.multitask import MultitaskObjective
from fm.training.run_description import describe_attention
from tests.model.helpers_models import TEXT

MODEL = ModelConfig(2, 128, 2, 2, 128, vocab_size=64, patch_dims=(("image", 12),), dtype="bfloat16")
NEXT = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
MIXED = PretrainingObjective(causal_lm=0.5, masked_lm=0.5)


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


PACKED = {"tokens": ints(8, 128), "segments": ints(8, 128)}
SINGLE = PACKED | {"length": ints(8)}
IMAGES = {"image": ints(8, 64), "segments": ints(8, 64)}


@pytest.fixture
def on_gpu(monkeypatch):
    """An accelerator whose only kernel is cuDNN."""
    monkeypatch.setattr(api, "default_platform", lambda: "gpu")
    monkeypatch.setitem(api.KERNELS_BY_PLATFORM, "gpu", ("cudnn",))
    monkeypatch.setattr(api, "_warned", set())


def test_on_a_cpu():
    assert describe_attention(MODEL, PACKED, MIXED) == "xla_tiled (tiles of scores stay in cache)"


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("batch", [SINGLE, SINGLE | {"answer": ints(8, 128)}])
def test_rows_of_one_document_reach_a_kernel(batch, capsys):
    assert describe_attention(MODEL, batch, MIXED) == "cudnn (a kernel for gpu)"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("on_gpu")
def test_why_no_kernel_runs_is_said_and_warned_of_once(capsys):
    told = describe_attention(MODEL, PACKED, MIXED)
    assert told.startswith("xla_tiled (the scores fit in memory; not cudnn: cuDNN would need the")
    describe_attention(MODEL, PACKED, NEXT)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: attention on gpu runs as plain XLA")


@pytest.mark.usefixtures("on_gpu")
def test_objectives_that_differ_are_told_apart():
    objective = MultitaskObjective((("text", NEXT), ("image", PretrainingObjective())))
    batch = {"text": PACKED, "image": IMAGES}
    told = describe_attention(MODEL, batch, objective)
    assert told.startswith("xla_tiled for text/causal_lm (the scores fit in memory; not cudnn: ")
    assert told.endswith(" and cudnn for image/masked_lm (a kernel for gpu)")


@pytest.mark.usefixtures("on_gpu")
def test_kinds_of_layers_that_differ_are_told_apart():
    """A window both ways is not for cuDNN; full attention is."""
    arch = dataclasses.replace(MODEL.arch, layer_pattern=("full", "sliding"), sliding_window=16)
    model = dataclasses.replace(MODEL, arch=arch)
    told = describe_attention(model, SINGLE, PretrainingObjective())
    assert "cudnn for masked_lm in full layers (a kernel for gpu)" in told
    assert "xla_tiled for masked_lm in sliding layers (" in told and "window_right" in told


def test_one_named_in_the_config():
    model = dataclasses.replace(MODEL, attention="reference")
    assert describe_attention(model, PACKED, NEXT) == "reference (named in the config)"


def test_full_and_sliding_layers_have_a_kernel_each():
    arch = ArchConfig(layer_pattern=("sliding", "full"), sliding_window=128)
    shape = jax.ShapeDtypeStruct((1, 8192), jnp.int32)
    batch = {"tokens": shape, "positions": shape, "segments": shape}
    objective = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
    both = describe_attention(dataclasses.replace(TEXT, arch=arch), batch, objective)
    assert "xla_chunked for causal_lm in sliding layers (a window of 128 in 8192 keys)" in both
    assert "xla_tiled for causal_lm in full layers" in both
    alone = describe_attention(TEXT, batch, objective)
    assert alone.startswith("xla_tiled (") and "layers" not in alone
