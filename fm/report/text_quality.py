"""The page of a study of text: results in, one self-contained HTML file out."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fm.errors import UserError
from fm.evaluation.text_quality.metrics import BY_NAME, METRICS, ZIPF
from fm.evaluation.text_quality.validity import FAULTS
from fm.files import replace
from fm.report import canvas, formats
from fm.report import text_quality_plots as plots
from fm.report.gallery import Drawing
from fm.report.page import embedded, flat, templates
from fm.report.schema import printable
from fm.report.text_quality_headline import sentences
from fm.report.text_quality_table import csv_table

Row = dict[str, Any]
_COLUMNS = (*(metric for metric in METRICS if metric.of_text), ZIPF)


def headline(results: dict[str, Any]) -> str:
    """The finding as one paragraph."""
    return " ".join(sentences(results))


def write(results: dict[str, Any], out: Path) -> Path:
    """Writes `report.html`, `table.csv` and `plots/*.png` into the folder `out`.

    Each appears whole or not at all.

    Returns:
        The path of report.html.

    Raises:
        UserError: `out` is a file.
    """
    results = printable(results)
    drawings = draw(results)
    page = render(results, drawings)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; the report needs a folder")
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        replace(out / "plots" / drawing.file, drawing.png)
    replace(out / "table.csv", csv_table(results).encode())
    replace(out / "report.html", page.encode())
    return out / "report.html"


def draw(results: dict[str, Any]) -> list[Drawing]:
    """All pictures for which there are numbers."""
    return [
        Drawing(section, None, f"{section}-{file}.png", caption, caption, canvas.png(figure))
        for section, file, caption, figure in _figures(results)
        if figure is not None
    ]


def _figures(results: dict[str, Any]) -> Iterator[tuple[str, str, str, Figure | None]]:
    for domain in results["domains"]:
        letter, name = domain["letter"], f"{domain['letter']} ({domain['name']})"
        low = letter.lower()
        yield (
            *("frontier", f"{low}-divergence", f"{name}: MAUVE-style area against self-BLEU"),
            plots.frontier(results, letter, "self_bleu", "divergence"),
        )
        yield (
            *("frontier", f"{low}-judged", f"{name}: the judge's bits per byte against distinct-2"),
            plots.frontier(results, letter, "distinct_2", "judged"),
        )
        yield "training", low, f"{name}: bits per byte", plots.training(results, letter)
        yield "copies", low, f"{name}: longest copy", plots.copies(results, letter)
    for choice in results["choices"]:
        letter = choice["domain"]
        caption = f"{letter}: what the metric of a column loses when that of a row chooses"
        yield "regret", letter.lower(), caption, plots.regret(choice)


def render(results: dict[str, Any], drawings: list[Drawing]) -> str:
    """The page as HTML; everything from the results is escaped, nothing is loaded from outside."""
    environment = templates()
    environment.filters |= {
        "count": formats.count,
        "seconds": formats.seconds,
        "flops": formats.flops,
        "plain": formats.plain,
        "short": lambda value: formats.short(value),
        "embedded": embedded,
        "compact": compact,
        "metric": lambda value, name: format(value, BY_NAME[name].form),
    }
    groups: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        groups.setdefault(drawing.section, []).append(drawing)
    return environment.get_template("text_quality.html.jinja").render(
        results=results,
        sentences=sentences(results),
        names={domain["letter"]: domain["name"] for domain in results["domains"]},
        metrics=METRICS,
        titles={name: metric.title for name, metric in BY_NAME.items()},
        columns=_COLUMNS,
        looks=plots.looks(results),
        drawings=groups,
        rows=[_domain_rows(results, domain["letter"]) for domain in results["domains"]],
        models=_models(results),
        shown=[_shown(results, choice) for choice in results["choices"]],
        faults=FAULTS,
        early=_early(results),
        config=flat(results["config"]),
    )


def compact(text: str) -> str:
    """The text with more than two line breaks in a row as their number."""
    return re.sub(r"\n{3,}", lambda run: f"\n[{len(run[0])} line breaks]\n", text)


def _early(results: dict[str, Any]) -> list[str]:
    """The decodings looked at before the end of training."""
    before = [row["decoding"] for row in results["samples"] if row["stage"] != "end"]
    return list(dict.fromkeys(before))


def _domain_rows(results: dict[str, Any], letter: str) -> dict[str, Any]:
    """What the table of a domain holds: real text, then every arm's decodings at its end."""
    arms: dict[str, list[Row]] = {}
    for row in results["samples"]:
        if (row["domain"], row["stage"]) == (letter, "end"):
            arms.setdefault(row["arm"], []).append(row)
    human = next(row for row in results["human"] if row["domain"] == letter)
    return {"letter": letter, "human": human, "arms": arms}


def _models(results: dict[str, Any]) -> list[Row]:
    """Bits per byte of every arm at the end, by domain, with what its training took."""
    values = {
        (row["arm"], row["domain"]): row["value"]
        for row in results["models"]
        if row["stage"] == "end"
    }
    return [
        row
        | {"bits": {d["letter"]: values.get((row["arm"], d["letter"])) for d in results["domains"]}}
        for row in results["trained"]
    ]


def _shown(results: dict[str, Any], choice: Row) -> dict[str, Any]:
    """Texts beside numbers: real ones, then each different choice with the metrics that made it."""
    groups: dict[tuple[str, ...], Row] = {}
    for by, row in choice["chosen"].items():
        place = (row["arm"], row["stage"], row["decoding"])
        groups.setdefault(place, row | {"by": []})["by"].append(by)
    human = next(row for row in results["human"] if row["domain"] == choice["domain"])
    return {"choice": choice, "human": human, "picked": list(groups.values())}
