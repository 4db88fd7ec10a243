"""Times fm's kernels, train step and generation beside other implementations in the same run.

    fm benchmark --suite=attention,train_step --baseline=torch --out=FILE.json

Writes FILE.json (one row per case, implementation and baseline), FILE.html and plots beside it.
All implementations of a case take turns, so every ratio is of one run; above 1 fm is faster.
PyTorch, and transformers for generation, become baselines once installed: pip install -e ".[torch]"
or ".[transformers]". Leave the machine alone while it runs. --filter=TEXT takes the cases whose
names contain a text, such as "train_step 4x128". --scale=quick is a smoke test whose figures mean
nothing. The same command resumes, and says so when the run is finished.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from absl import flags

from experiments import cli
from fm.attention.api import IMPLEMENTATIONS, unknown_implementation_message
from fm.benchmark.core import SCALES, BenchConfig
from fm.benchmark.peers import PEERS
from fm.benchmark.report import text_table
from fm.benchmark.runner import BenchRequest
from fm.benchmark.runner import run as run_benchmark
from fm.benchmark.suites import DEFAULT_SUITES, SUITES
from fm.errors import UserError
from fm.files import expand_path
from fm.parallel.mesh import default_device


def define(values: flags.FlagValues) -> None:
    """Defines the flags of suites, baselines and sizes."""
    flags.DEFINE_list(
        "suite", list(DEFAULT_SUITES), f"some of {', '.join(SUITES)}", flag_values=values
    )
    flags.DEFINE_list("baseline", list(PEERS), f"some of {', '.join(PEERS)}", flag_values=values)
    flags.DEFINE_enum(
        "scale", "default", list(SCALES), "number and size of the cases", flag_values=values
    )
    flags.DEFINE_string("filter", "", "text that a case's name must contain", flag_values=values)
    flags.DEFINE_list(
        "attention", [], "attention implementations to time beside the selected one",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("repeats", None, "rounds per case", flag_values=values, lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of all data", flag_values=values, lower_bound=0)
    flags.DEFINE_string(
        "out", "runs/benchmark/benchmark.json", "file for the results", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Measures, and prints the table."""
    request = BenchRequest(
        suites=_names("suite", values, tuple(SUITES)),
        peers=_names("baseline", values, tuple(PEERS)),
        config=BenchConfig(
            scale=values["scale"].value,
            platform=default_device().platform,
            repeats=values["repeats"].value,
            attention_implementations=_names("attention", values, tuple(IMPLEMENTATIONS), least=0),
            seed=values["seed"].value,
        ),
        path=expand_path(values["out"].value),
        filter=values["filter"].value,
        command=_command_line(values),
    )
    results = run_benchmark(request)
    page = request.path.with_suffix(".html")
    print(f"{text_table(results)}\n\nresults: {request.path}\npage: {page}")


def _command_line(values: flags.FlagValues) -> str:
    """Returns the command line as given."""
    given = [values[name] for name in values if values[name].present and len(name) > 1]
    texts = [shlex.quote(flag.serialize()) for flag in given]
    return " ".join(["python -m experiments.benchmark", *texts])


def _names(
    flag: str, values: flags.FlagValues, accepted: Sequence[str], least: int = 1
) -> tuple[str, ...]:
    """Returns the distinct names that a flag lists."""
    names = tuple(values[flag].value)
    given = f"--{flag}={','.join(names)}"
    unknown = [name for name in names if name not in accepted]
    if unknown and flag == "attention":
        raise UserError(f"{given}: {unknown_implementation_message(unknown[0])}")
    if unknown:
        raise UserError(f"{given}: {unknown[0]!r} is not known; accepted are {', '.join(accepted)}")
    if len(names) < least or len(set(names)) < len(names):
        raise UserError(f"{given}: takes one or more of {', '.join(accepted)}, each once")
    return names


if __name__ == "__main__":
    cli.run("benchmark", __doc__, define, main)
