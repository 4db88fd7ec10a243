"""How the suite compiles.

Most of its time is XLA compiling small programs. What is compiled is kept between runs, and
`make test`, which checks the mathematics of many, leaves most optimisations out; the slow tests,
which CI runs as well, compile as users do.
"""

import jax


def pytest_configure(config):
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if config.getoption("markexpr") == "not slow":
        jax.config.update("jax_disable_most_optimizations", True)
