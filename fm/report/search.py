"""Report of a search of recipes: decision, table, plot and page from its results."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fm.files import atomic_write
from fm.report import formats
from fm.report.headline import SMOKE_TEST
from fm.report.pages import data_uri, flatten_config, template_environment
from fm.report.parsing import sanitize
from fm.report.schema import is_smoke_test
from fm.report.style import BETTER, SMALL, new_figure, plot_style, to_png

_MOST_SHOWN = 30


def trial_name(row: dict[str, Any]) -> str:
    """Returns what a trial changes, such as "mask_ratio=0.75, steps=800"."""
    changes = [f"{path.rsplit('.', 1)[-1]}={text}" for path, text in row["values"].items()]
    return ", ".join(changes) or "as it is"


def search_decision(results: dict[str, Any]) -> str:
    """Returns whether a trial is ahead of the recipe as it is, with the scores of both."""
    scored = [row for row in _by_score(results["trials"]) if row["score"] is not None]
    if not scored:
        return "No recipe could be trained."
    best = scored[0]
    own = next((row for row in scored if not row["values"]), None)
    number = f"{len(scored)} recipe{'s' * (len(scored) != 1)}"
    named = f"{trial_name(best)} ({formats.percent(best['score'])})"
    if own is None:
        return f"Best of {number}: {named}; the recipe as it is could not be scored."
    if best is own:
        return (
            f"Keep the recipe as it is ({formats.percent(own['score'])}): of {number} tried none "
            "is ahead of it."
        )
    gap = best["score"] - own["score"]
    return (
        f"Best of {number}: {named}, {formats.points(gap)} points from the recipe as "
        f"it is ({formats.percent(own['score'])})."
    )


def write(results: dict[str, Any], out_dir: Path, best_file: str) -> Path:
    """Writes search.png and report.html into `out_dir`; returns the page's path.

    Args:
      results: of `fm.study.search.run_search`.
      out_dir: the folder, which exists.
      best_file: path of the best recipe, as the page names it.
    """
    results = sanitize(results)
    png = to_png(search_figure(results))
    environment = template_environment()
    environment.filters |= {
        "data_uri": data_uri,
        "percent": formats.percent,
        "seconds": formats.seconds,
    }
    rows = [row | {"name": trial_name(row)} for row in _by_score(results["trials"])]
    spent = formats.seconds(sum(float(row["seconds"]) for row in rows))
    page = environment.get_template("search.html.jinja").render(
        results=results,
        rows=rows,
        decision=search_decision(results),
        cost=f"{len(rows)} trials took {spent} in all.",
        best_file=best_file,
        png=png,
        smoke_test=SMOKE_TEST if is_smoke_test(results.get("config", {})) else "",
        config=flatten_config(results.get("config", {})),
        missing=formats.MISSING,
    )
    atomic_write(out_dir / "search.png", png)
    atomic_write(out_dir / "report.html", page.encode())
    return out_dir / "report.html"


def search_table(results: dict[str, Any]) -> str:
    """Returns a line per trial, the best first: score with its 95% interval, seconds, changes."""
    lines = [f"{'score':>7}  {'95% interval':16}{'seconds':>8}  recipe"]
    for row in _by_score(results["trials"]):
        score, interval = "failed", ""
        if row["score"] is not None:
            score = f"{100 * row['score']:.2f}"
        if row["low"] is not None:
            interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        lines.append(f"{score:>7}  {interval:16}{row['seconds']:8.0f}  {trial_name(row)}")
    return "\n".join(lines)


def search_figure(results: dict[str, Any]) -> Figure:
    """Returns a plot of the trials' scores with their 95% intervals, the best at the top."""
    rows = [row for row in _by_score(results["trials"]) if row["score"] is not None]
    shown = rows[:_MOST_SHOWN]
    with plot_style():
        figure = new_figure(1.6 + 0.3 * len(shown))
        axes = figure.subplots()
        for place, row in enumerate(reversed(shown)):
            score = 100 * row["score"]
            color = BETTER if row["values"] else "#000000"
            if row["low"] is not None:
                ends = [100 * row["low"], 100 * row["high"]]
                axes.plot(ends, [place, place], color=color, linewidth=1.2)
            axes.plot([score], [place], marker="o", color=color, linestyle="")
        names = ["\n".join(textwrap.wrap(trial_name(row), 40)) for row in reversed(shown)]
        axes.set_yticks(range(len(shown)), names, fontsize=SMALL)
        more = f"; the best {len(shown)} of {len(rows)}" if len(rows) > len(shown) else ""
        axes.set_xlabel(f"{results['metric']} (95% interval)")
        title = f"{results['arm']} on the development part of {results['task']}{more}"
        figure.suptitle(title, x=0.01, horizontalalignment="left")
    return figure


def _by_score(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))
