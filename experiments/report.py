"""Rebuilds a study's report from its results.json, without training anything.

    python -m experiments.report --out=runs/compare

Writes OUT/report.html and prints the table and the headline.
"""

from __future__ import annotations

from absl import flags

from experiments import command
from fm import report
from fm.study import folder, study
from fm.study.unify import bill


def define(values: flags.FlagValues) -> None:
    """Where the study lies."""
    command.define_out(values, "runs/compare")


def main(values: flags.FlagValues) -> None:
    """Reads results, writes the report."""
    out = command.out(values)
    results = bill.added(study.read_results(out))
    folder.hold(out)
    page = report.write(results, out)
    print(f"{report.text_table(results)}\n\n{report.headline(results)}\n\nreport: {page}")


if __name__ == "__main__":
    command.run("report", __doc__, define, main)
