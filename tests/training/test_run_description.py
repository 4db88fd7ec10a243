"""What the first line of a run says of attention."""

import dataclasses

import jax
import jax.numpy as jnp

from fm.model.config import ArchConfig
from fm.training.objectives import PretrainingObjective
from fm.training.run_description import describe_attention
from tests.model.helpers_models import TEXT


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
