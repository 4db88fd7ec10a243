"""The kinds of report there are, by the experiment that a results.json is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fm.errors import UserError
from fm.report import claims, paired, text_quality
from fm.report.headline import headline
from fm.report.pages import write
from fm.report.tables import text_table
from fm.study.claims import CLAIMS
from fm.study.claims.runner import EXPERIMENT as CLAIMS_EXPERIMENT
from fm.study.paired import EXPERIMENT as PAIRED
from fm.study.text_quality.config import EXPERIMENT as TEXT_QUALITY

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ReportKind:
    """How an experiment's results are told.

    Attributes:
      headline: returns the findings as plain text.
      write: writes the page and its plots into a folder; returns the path of the page.
      text_table: returns a table of plain text to print above the findings; None for none.
    """

    headline: Callable[[Results], str]
    write: Callable[[Results, Path], Path]
    text_table: Callable[[Results], str] | None = None

    def text(self, results: Results) -> str:
        """Returns the table, if there is one, and the findings."""
        tables = [] if self.text_table is None else [self.text_table(results)]
        return "\n\n".join([*tables, self.headline(results)])


def _write_claim(results: Results, out_dir: Path) -> Path:
    name = results["claim"]["name"]
    if name not in CLAIMS:
        raise UserError(
            f"the claim {name} is not registered; run from the file that registers it, or take "
            f"results of {', '.join(CLAIMS)}"
        )
    return claims.write(results, out_dir, CLAIMS[name].plot, CLAIMS[name].figure_height)


COMPARISON = ReportKind(headline, write, text_table)
_OTHERS = {
    TEXT_QUALITY: ReportKind(text_quality.headline, text_quality.write),
    PAIRED: ReportKind(paired.headline, paired.write, paired.text_table),
    CLAIMS_EXPERIMENT: ReportKind(claims.headline, _write_claim),
}


def report_kind(results: Results) -> ReportKind:
    """Returns the kind of report of a results.json: `COMPARISON` unless it names another."""
    return _OTHERS.get(str(results.get("experiment")), COMPARISON)
