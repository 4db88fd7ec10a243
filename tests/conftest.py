"""How the suite compiles, and how many threads BLAS has.

Most of its time is XLA compiling small programs. What is compiled is kept between runs, and
`make test`, which checks the mathematics of many, leaves most optimisations out, as do the slow
tests of many programs; where only these are run, as CI does, they compile without XLA's fusion
emitters as well. The other slow tests, which CI runs as well, compile as users do.
"""

import gc
import os
import pathlib

# Two processes share two cores; numpy reads this once, when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax

# A test checks what is computed, not how long it takes.
hypothesis.settings.register_profile("fm", deadline=None)
hypothesis.settings.load_profile("fm")

_MANY_PROGRAMS = ("study", "experiments", "adaptation", "model/test_archs.py")
# Linux ends a process that maps more than 65,530 pieces of memory; each program takes several.
_MAPS, _MANY_MAPS = pathlib.Path("/proc/self/maps"), 20_000
_ASKED = jax.config.read("jax_disable_most_optimizations")  # by the environment


def pytest_configure(config):
    # Two thirds of the time that compiling takes; steps are slower. Later versions have no choice.
    of_many = _fast(config) or all(
        _has_many_programs(pathlib.Path(config.invocation_params.dir, arg.split("::")[0]), config)
        for arg in config.args
    )
    if of_many and jax.__version_info__ < (0, 11):
        others = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{others} --xla_cpu_use_fusion_emitters=false".strip()
    # What is compiled stays until the end: walking through it all again and again finds nothing.
    gc.set_threshold(100_000, 50, 100)
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_runtest_setup(item):
    leaves_out = _ASKED or _fast(item.config) or _has_many_programs(item.path, item.config)
    jax.config.update("jax_disable_most_optimizations", leaves_out)


def pytest_runtest_teardown(item, nextitem):
    others_follow = nextitem is None or nextitem.path != item.path
    if others_follow and _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()


def _has_many_programs(path, config):
    tests = config.rootpath / "tests"
    return any(path.is_relative_to(tests / each) for each in _MANY_PROGRAMS)


def _fast(config):
    return config.getoption("markexpr") == "not slow"
