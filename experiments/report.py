"""Rebuilds a study's report from its results.json, without training anything.

    python -m experiments.report --out=runs/compare

Writes OUT/report.html and prints the table and the headline.
"""

from __future__ import annotations

from absl import flags

from experiments import cli
from fm import report
from fm.errors import UserError, error_context
from fm.report.schema import parse
from fm.study import multitask_cost, run_dir, runner


def define(values: flags.FlagValues) -> None:
    """Where the study lies."""
    cli.define_out(values, "runs/compare")


def main(values: flags.FlagValues) -> None:
    """Reads results, writes the report."""
    out = cli.out_dir(values)
    results = runner.read_results(out)
    run_dir.acquire_lock(out)
    path = out / runner.RESULTS_FILE
    with error_context(path):
        parse(results)
        try:
            results = multitask_cost.add_amortized_cost(results)
            told = f"{report.text_table(results)}\n\n{report.headline(results)}"
            page = report.write(results, out)
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            # Of the right kinds, and yet one part speaks of what another has not.
            raise UserError(
                f"{path} does not hold together ({error!r:.80}); takes what a study has written"
            ) from error
    print(f"{told}\n\nreport: {page}")


if __name__ == "__main__":
    cli.run("report", __doc__, define, main)
