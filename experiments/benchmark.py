"""Times fm's kernels, train step and generation beside other implementations in the same run.

    python -m experiments.benchmark --suite=matmul,attention,train_step --baseline=torch --out=FILE.json

Writes FILE.json (one row per case, implementation and baseline), FILE.html and plots beside it.
All implementations of a case take turns, so every ratio is of one run; above 1 fm is faster.
PyTorch, and transformers for generation, become baselines once installed: pip install -e ".[torch]"
or ".[transformers]". Leave the machine alone while it runs. --filter=TEXT takes the cases whose
names contain a text, such as "step 4x128". --scale=quick is a smoke test whose figures mean
nothing. The same command resumes, and says so when the run is finished.
"""

from __future__ import annotations

import shlex

import jax
from absl import flags

from experiments import cli
from fm import benchmark
from fm.attention.api import IMPLEMENTATIONS
from fm.benchmark.core import BenchConfig
from fm.benchmark.report import text_table
from fm.errors import UserError
from fm.files import expand_path
