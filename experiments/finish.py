"""What every study ends with: results, report and summary, and what is printed of them."""

from __future__ import annotations

import pathlib
from typing import Any

from experiments.report_kinds import report_kind
from fm.progress_lines import phase
from fm.report import formats
from fm.study import run_dir


def finish(results: dict[str, Any], out: pathlib.Path, *, summary: bool = True) -> None:
    """Adds the headline, writes results, report and summary, and prints table and headline.

    Args:
      results: of a study.
      out: its folder.
      summary: whether to write summary.json too.
    """
    kind = report_kind(results)
    results["headline"] = formats.to_ascii(kind.headline(results))
    with phase("writing the report", quiet=True):
        run_dir.write_results(results, out)
        page = kind.write(results, out)
        if summary:
            run_dir.write_study_summary_json(results, out)
    print(f"\n{kind.text(results)}\n")
    files = [out / name for name in (run_dir.RESULTS_FILE, run_dir.PREDICTIONS_FILE)]
    for name, path in zip(("results", "predictions"), files, strict=True):
        if path.exists():
            print(f"{name}: {path}")
    print(f"report: {page}")
