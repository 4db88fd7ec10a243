"""One training step in a process of its own, as a fresh start takes it.

    python -m fm.benchmark.first_step CACHE NUM_LAYERS D_MODEL SEQ_LEN BATCH_SIZE VOCAB_SIZE

CACHE is a folder for compiled programs. Prints, as JSON, the seconds of creating the state and of
the step until its metrics are read. `fm.benchmark.suites.startup` times the whole process, with
the interpreter's start and the imports.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import numpy as np

from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.training import optimizer, train_state
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig
from fm.training.train_step import make_train_step


def main(arguments: list[str]) -> dict[str, float]:
    """Takes one train step; returns its seconds by phase. Arguments: cache folder, sizes."""
    start = time.perf_counter()
    cache, *sizes = arguments
    num_layers, d_model, seq_len, batch_size, vocab_size = map(int, sizes)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    num_heads = max(1, d_model // (64 if d_model >= 256 else 32))
    model = ModelConfig(
        num_layers, d_model, num_heads, num_heads, 4 * d_model, vocab_size=vocab_size
    )
    config = OptimizerConfig("adamw", learning_rate=3e-4)
    params = init(jax.random.key(0), model)
    state = train_state.init_train_state(params, optimizer.build(config, 100))
    created = time.perf_counter()
    step = make_train_step(model, PretrainingObjective(causal_lm=1.0, masked_lm=0.0), config, 100)
    shape = (batch_size, seq_len)
    batch = {
        "tokens": np.random.default_rng(0).integers(0, vocab_size, shape, np.int32),
        "segments": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(seq_len, dtype=np.int32), (batch_size, 1)),
    }
    float(step(state, batch, 0, None)[1]["loss"])
    return {"state": created - start, "step": time.perf_counter() - created}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
