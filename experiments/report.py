"""Rebuilds a study's report from its results.json, without training anything.

    python -m experiments.report --out=runs/compare

Writes OUT/report.html and prints the table and the headline.
"""

from __future__ import annotations

from absl import flags

from experiments import cli
from fm import report
from fm.errors import UserError, error_context
from fm.report.schema import parse, upgrade
from fm.study import run_dir


def define(values: flags.FlagValues) -> None:
    """The folder of the study."""
    cli.define_out(values, "runs/compare")


def main(values: flags.FlagValues) -> None:
    """Reads results, writes the report."""
    out = cli.out_dir(values)
    results = run_dir.read_results(out)
    run_dir.acquire_lock(out)
    path = out / run_dir.RESULTS_FILE
    with error_context(path):
        results = upgrade(results)
        parse(results)
        try:
            text = f"{report.text_table(results)}\n\n{report.headline(results)}"
            page = report.write(results, out)
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            # Every field has the right type, yet one section refers to what another lacks.
            raise UserError(
                f"{path} is not consistent ({error!r:.80}); takes a file that a study has written"
            ) from error
    print(f"{text}\n\nreport: {page}")


if __name__ == "__main__":
    cli.run("report", __doc__, define, main, computes=False)
