"""How fast it is here, next to others in the same run.

    python -m experiments.benchmark --what=matmul,attention,train_step --peer=torch --out=FILE.json

Writes FILE.json (a row per case, implementation and peer), FILE.html and pictures beside it. All
sides of a case take turns, so a ratio is of one run; above 1 we are faster. PyTorch, and for
generation transformers, are peers once installed: pip install -e .[torch] or .[transformers].
Leave the machine alone while it runs. --only=TEXT takes the cases whose names hold a text, such as
"train_step 4x128"; --cases=quick is a smoke test, its figures mean nothing. The same command again
goes on where it was, or says that it is finished.
"""

from __future__ import annotations

import shlex

import jax
from absl import flags

from experiments import command
from fm.attention.api import IMPLEMENTATIONS, unknown_implementation
from fm.benchmark import runner
from fm.benchmark.core import SCALES, BenchConfig
from fm.benchmark.peers import PEERS
from fm.benchmark.report import text_table
from fm.benchmark.suites import DEFAULT_SUITES, SUITES
from fm.errors import UserError
from fm.files import expand_path


def define(values: flags.FlagValues) -> None:
    """Kinds, peers, sizes."""
    kinds = ", ".join(SUITES)
    flags.DEFINE_list("what", list(DEFAULT_SUITES), f"kinds of case: {kinds}", flag_values=values)
    flags.DEFINE_list(
        "peer",
        list(PEERS),
        f"whom to compare with: {', '.join(PEERS)}",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "cases", "default", list(SCALES), "how many and how large", flag_values=values
    )
    flags.DEFINE_string("only", "", "text the name of a case must hold", flag_values=values)
    flags.DEFINE_list(
        "attention", [], "implementations beside the one that is chosen", flag_values=values
    )
    flags.DEFINE_integer("repeats", None, "rounds per case", flag_values=values, lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of all data", flag_values=values, lower_bound=0)
    flags.DEFINE_string(
        "out", "runs/benchmark/benchmark.json", "file for the results", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Measures, and prints the table."""
    request = runner.BenchRequest(
        suites=_names("what", values, tuple(SUITES)),
        peers=_names("peer", values, PEERS),
        config=BenchConfig(
            scale=values["cases"].value,
            platform=jax.default_backend(),
            repeats=values["repeats"].value,
            attention_implementations=_names("attention", values, tuple(IMPLEMENTATIONS), least=0),
            seed=values["seed"].value,
        ),
        path=expand_path(values["out"].value),
        filter=values["only"].value,
        command=_command(values),
    )
    results = runner.run(request)
    page = request.path.with_suffix(".html")
    print(f"{text_table(results)}\n\nresults: {request.path}\npage: {page}")


def _command(values: flags.FlagValues) -> str:
    """The command line, as given."""
    given = [values[name] for name in values if values[name].present and len(name) > 1]
    texts = [shlex.quote(flag.serialize()) for flag in given]
    return " ".join(["python -m experiments.benchmark", *texts])


def _names(
    flag: str, values: flags.FlagValues, accepted: tuple[str, ...], least: int = 1
) -> tuple[str, ...]:
    """The names a flag lists, each once."""
    names = tuple(values[flag].value)
    given = f"--{flag}={','.join(names)}"
    unknown = [name for name in names if name not in accepted]
    if unknown and flag == "attention":
        raise UserError(f"{given}: {unknown_implementation(unknown[0])}")
    if unknown:
        raise UserError(f"{given}: {unknown[0]!r} is not known; accepted are {', '.join(accepted)}")
    if len(names) < least or len(set(names)) < len(names):
        raise UserError(f"{given}: takes at least one of {', '.join(accepted)}, none of them twice")
    return names


if __name__ == "__main__":
    command.run("benchmark", __doc__, define, main)
