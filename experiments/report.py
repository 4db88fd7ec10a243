"""Rebuilds a study's report from its results.json, without training anything.

    fm report --out=runs/compare

Writes OUT/report.html and prints the table and the headline. Takes the results of compare,
multitask, ablate, claims, text_quality and paired.
"""

from __future__ import annotations

from typing import Any

import jinja2
from absl import flags

from experiments import cli
from experiments.report_kinds import COMPARISON, report_kind
from fm.errors import UserError, error_context
from fm.report.parsing import parse, upgrade
from fm.study import run_dir

_INCONSISTENT = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration),
    jinja2.TemplateError,
)


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
        try:
            kind = report_kind(results)
            if kind is COMPARISON:
                _check_compares(results)
            text, page = kind.text(results), kind.write(results, out)
        except UserError:
            raise
        except _INCONSISTENT as error:
            # Every field has the right type, yet one section refers to what another lacks.
            raise UserError(
                f"{path} is not consistent ({error!r:.80}); takes a file that a study has written"
            ) from error
    print(f"{text}\n\nreport: {page}")


def _check_compares(results: dict[str, Any]) -> None:
    """Raises UserError for results that a comparison's report would show nothing of."""
    parsed = parse(results)
    if not parsed.cells and not parsed.comparisons:
        raise UserError(
            f"experiment {parsed.experiment!r}: holds no cells and no comparisons, so its report "
            "would be empty; takes the results of compare, multitask, ablate, claims, "
            "text_quality or paired"
        )


if __name__ == "__main__":
    cli.run("report", __doc__, define, main, computes=False, resumes=False)
