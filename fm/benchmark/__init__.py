"""The benchmark: the cost of kernels, train step and pipeline, next to peers in the same run.

`runner.run` measures the `suites`. Nothing is imported here: `first_step` is timed as a process.
"""
