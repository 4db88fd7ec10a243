"""One training step in a process of its own, as a fresh start takes it.

    python -m fm.benchmark.first_step CACHE DEPTH WIDTH LENGTH BATCH VOCAB

CACHE is a folder for compiled programs. Prints, as JSON, the seconds of making the state and of
the step until its metrics are read. The whole, with the interpreter's start and the imports, is
for the caller to time: `fm.benchmark.start` does.
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
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.train_step import make_train_step


def main(arguments: list[str]) -> dict[str, float]:
    """Takes the step; arguments as on the command line."""
    began = time.perf_counter()
    cache, *sizes = arguments
    depth, width, length, batch, vocab = map(int, sizes)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    heads = max(1, width // (64 if width >= 256 else 32))
    model = ModelConfig(depth, width, heads, heads, 4 * width, vocab_size=vocab)
    rule = OptimizerConfig("adamw", learning_rate=3e-4)
    start = train_state.init_train_state(init(jax.random.key(0), model), optimizer.build(rule, 100))
    made = time.perf_counter()
    step = make_train_step(model, Objective(causal_lm=1.0, masked_lm=0.0), rule, 100)
    shape = (batch, length)
    rows = {
        "tokens": np.random.default_rng(0).integers(0, vocab, shape, np.int32),
        "segments": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
    }
    float(step(start, rows, 0, None)[1]["loss"])
    done = time.perf_counter()
    return {"state": made - began, "step": done - made}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
