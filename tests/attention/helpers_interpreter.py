"""JAX's interpreter of Mosaic GPU kernels, made fast enough for tests.

It runs every warpgroup of every program in a thread of its own: barriers, copies and their order
are played as written. For each of them it compiles the kernel anew; here once.
"""

import threading

import jax
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, params

# Unoptimised code takes half as long to compile, and the time goes into compiling.
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": "True"}

_compiled = {}
_lock = threading.Lock()


def _run_once_compiled(jaxpr, consts, *args):
    with _lock:
        if id(jaxpr) not in _compiled:
            run = jax.jit(lambda consts, *args: jax.core.eval_jaxpr(jaxpr, consts, *args) and None)
            compiled = run.lower(consts, *args).compile(compiler_options=QUICK)
            _compiled[id(jaxpr)] = compiled, jaxpr  # the jaxpr too: nobody else gets its id
    _compiled[id(jaxpr)][0](consts, *args)


def install(monkeypatch):
    """For one test; a failed one leaves nothing behind for the next."""
    gpu_callbacks.reset_gpu_interpret_mode_state()
    monkeypatch.setattr(thread_map, "_run_jaxpr", _run_once_compiled)


def parameters(races=False):
    """Memory never written is not-a-number, a read out of bounds is an error.

    With `races`, prints "RACE DETECTED" for accesses that no barrier orders.
    """
    return params.InterpretGPUParams(detect_races=races, uninitialized_memory="nan")
