"""The page of a study of text: results in, one self-contained HTML file out."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fm.errors import UserError
from fm.evaluation.text_quality.metrics import METRICS, METRICS_BY_NAME, ZIPF
from fm.evaluation.text_quality.words import FAULTS
from fm.files import atomic_write
from fm.report import formats, style
from fm.report import text_quality_plots as plots
from fm.report.pages import RenderedFigure, data_uri, flatten_config, template_environment
from fm.report.schema import sanitize

Row = dict[str, Any]
_COLUMNS = (*(metric for metric in METRICS if metric.of_sample), ZIPF)


def headline(results: dict[str, Any]) -> str:
    """The finding as one paragraph."""
    return " ".join(headline_sentences(results))


def write(results: dict[str, Any], out: Path) -> Path:
    """Writes `report.html`, `table.csv` and `plots/*.png` into the folder `out`.

    Each appears whole or not at all.

    Returns:
        The path of report.html.

    Raises:
        UserError: `out` is a file.
    """
    results = sanitize(results)
    drawings = draw_figures(results)
    page = render(results, drawings)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; the report needs a folder")
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        atomic_write(out / "plots" / drawing.file_name, drawing.png)
    atomic_write(out / "table.csv", csv_table(results).encode())
    atomic_write(out / "report.html", page.encode())
    return out / "report.html"


def draw_figures(results: dict[str, Any]) -> list[RenderedFigure]:
    """All pictures for which there are numbers."""
    return [
        RenderedFigure(
            section, None, f"{section}-{file}.png", caption, caption, style.to_png(figure)
        )
        for section, file, caption, figure in _figures(results)
        if figure is not None
    ]


def _figures(results: dict[str, Any]) -> Iterator[tuple[str, str, str, Figure | None]]:
    for domain in results["domains"]:
        letter, name = domain["letter"], f"{domain['letter']} ({domain['name']})"
        low = letter.lower()
        yield (
            *("frontier", f"{low}-divergence", f"{name}: MAUVE-style area against self-BLEU"),
            plots.plot_quality_against_diversity(results, letter, "self_bleu", "divergence"),
        )
        yield (
            *("frontier", f"{low}-judged", f"{name}: the judge's bits per byte against distinct-2"),
            plots.plot_quality_against_diversity(results, letter, "distinct_2", "judged"),
        )
        yield "training", low, f"{name}: bits per byte", plots.plot_bits_per_byte(results, letter)
        yield "copies", low, f"{name}: longest copy", plots.plot_copy_lengths(results, letter)
    for choice in results["choices"]:
        letter = choice["domain"]
        caption = f"{letter}: what the metric of a column loses when that of a row chooses"
        yield "regret", letter.lower(), caption, plots.plot_regret_heatmap(choice)


def render(results: dict[str, Any], drawings: list[RenderedFigure]) -> str:
    """The page as HTML; everything from the results is escaped, nothing is loaded from outside."""
    environment = template_environment()
    environment.filters |= {
        "count": formats.count,
        "seconds": formats.seconds,
        "flops": formats.flops,
        "plain": formats.config_value,
        "short": lambda value: formats.si_prefixed(value),
        "embedded": data_uri,
        "compact": collapse_line_breaks,
        "metric": lambda value, name: format(value, METRICS_BY_NAME[name].format_spec),
    }
    groups: dict[str, list[RenderedFigure]] = {}
    for drawing in drawings:
        groups.setdefault(drawing.section, []).append(drawing)
    return environment.get_template("text_quality.html.jinja").render(
        results=results,
        sentences=headline_sentences(results),
        names={domain["letter"]: domain["name"] for domain in results["domains"]},
        metrics=METRICS,
        titles={name: metric.title for name, metric in METRICS_BY_NAME.items()},
        columns=_COLUMNS,
        looks=plots.arm_styles(results),
        drawings=groups,
        rows=[_domain_rows(results, domain["letter"]) for domain in results["domains"]],
        models=_models(results),
        shown=[_shown(results, choice) for choice in results["choices"]],
        faults=FAULTS,
        early=_early(results),
        config=flatten_config(results["config"]),
    )


def collapse_line_breaks(text: str) -> str:
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


Row = dict[str, Any]


def headline_sentences(results: dict[str, Any]) -> list[str]:
    """One paragraph's sentences, domain by domain."""
    told = []
    names = {domain["letter"]: domain["name"] for domain in results["domains"]}
    for choice in results["choices"]:
        letter = choice["domain"]
        told.append(f"{_named(letter, names)}: {_closest(results, choice)}")
        told.append(_disagreement(choice))
        told.append(_copying(results, letter))
    told.append(_tuning(results))
    return [sentence for sentence in told if sentence]


def describe_choice(row: Row) -> str:
    """Training set, checkpoint and decoding in words."""
    stage = "" if row["stage"] == "end" else f" after {row['stage']} of its training"
    return f"“{row['arm']}”{stage} at {row['decoding']}"


def _named(letter: str, names: dict[str, str]) -> str:
    return f"On {letter} ({names[letter]})"


def _closest(results: dict[str, Any], choice: Row) -> str:
    row = choice["chosen"]["divergence"]
    human = _human(results, choice["domain"])["divergence"]
    own = row["values"]["divergence"]
    away = "clearly short of" if own[2] < human[1] else "not clearly apart from"
    return (
        f"closest to real text by MAUVE-style area is {describe_choice(row)}, {_with(own, '.2f')}, "
        f"{away} other real text, {_with(human, '.2f')}."
    )


def _disagreement(choice: Row) -> str:
    """How many choices there are, which is the costliest and which the cheapest."""
    places = {(row["arm"], row["stage"], row["decoding"]) for row in choice["chosen"].values()}
    if len(places) == 1:
        return f"All {len(METRICS)} metrics choose it."
    clear = [row for row in choice["regrets"] if row["clear"] and row["by"] != row["metric"]]
    if not clear:
        return (
            f"{len(METRICS)} metrics make {len(places)} choices, but no metric clearly loses by "
            "another one's choice."
        )
    worst = max(clear, key=lambda row: row["regret"])
    others: dict[str, list[float]] = {}
    for row in choice["regrets"]:
        if row["by"] != row["metric"]:
            others.setdefault(row["by"], []).append(row["regret"])
    means = {name: float(np.mean(lost)) for name, lost in others.items()}
    least = min(means, key=lambda name: means[name])
    chosen = choice["chosen"][worst["by"]]
    return (
        f"{len(METRICS)} metrics make {len(places)} different choices: that of "
        f"{METRICS_BY_NAME[worst['by']].title} ({describe_choice(chosen)}) costs another one most, "
        f"{METRICS_BY_NAME[worst['metric']].title}: {min(worst['regret'], 1.0):.0%} of its range; "
        f"that of {METRICS_BY_NAME[least].title} costs the others least, {means[least]:.0%} on average."
    )


def _copying(results: dict[str, Any], letter: str) -> str:
    plain = results["config"]["decodings"][0]
    rows = [
        row
        for row in results["samples"]
        if (row["domain"], row["stage"], row["temperature"])
        == (letter, "end", plain["temperature"])
    ]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row["values"]["copied"][0])
    own, human = most["values"]["copied"], _human(results, letter)["copied"]
    than = "more than" if own[1] > human[2] else "less than" if own[2] < human[1] else "about as"
    return (
        f"At plain sampling “{most['arm']}” copies most, {_with(own, '.1f')} words in a row on "
        f"average, {than} real text ({_with(human, '.1f')})."
    )


def _tuning(results: dict[str, Any]) -> str:
    """Pretrained and tuned against scratch on the same few texts, at equal tokens."""
    diets = results["config"]["diets"]
    tuned = next((name for name, diet in diets.items() if diet["start"]), None)
    if tuned is None:
        return ""
    scratch = next(
        (
            name
            for name, diet in diets.items()
            if not diet["start"] and diet["parts"] == diets[tuned]["parts"]
        ),
        None,
    )
    if scratch is None:
        return ""
    domain = diets[tuned]["writes"][0]
    of = {
        name: [r for r in results["models"] if (r["arm"], r["domain"]) == (name, domain)]
        for name in (tuned, scratch)
    }
    best = {
        name: min((row["value"] for row in rows), key=lambda v: v[0]) for name, rows in of.items()
    }
    mine, other = best[tuned], best[scratch]
    verdict = (
        "better than"
        if mine[2] < other[1]
        else "worse than"
        if mine[1] > other[2]
        else "not clearly different from"
    )
    return (
        f"With the same few texts of {domain}, “{tuned}” is {verdict} scratch at equal "
        f"tokens, each at its best checkpoint: {_with(mine, '.3f')} against "
        f"{_with(other, '.3f')} bits per byte."
    )


def _human(results: dict[str, Any], letter: str) -> dict[str, list[float]]:
    return next(row["values"] for row in results["human"] if row["domain"] == letter)


def _with(value: list[float], form: str) -> str:
    middle, low, high = (format(each, form) for each in value)
    return f"{middle} [{low}, {high}]"


_CSV_COLUMNS = ("of", "domain", "arm", "stage", "decoding", "metric", "value", "low", "high")


def csv_table(results: dict[str, Any]) -> str:
    """One row for a metric of a sample, with a heading.

    Column `of` says whose text it is: "model", a sample that choices were made among; "fresh", one
    written anew after a metric had chosen it (once for each different choice); "real".
    """
    made = io.StringIO()
    table = csv.writer(made, lineterminator="\n")
    table.writerow(_CSV_COLUMNS)
    table.writerows(_csv_rows(results))
    return made.getvalue()


def _csv_rows(results: dict[str, Any]) -> Iterator[list[str]]:
    groups = {
        "real": results["human"],
        "model": results["samples"],
        "fresh": [row for choice in results["choices"] for row in _different(choice)],
    }
    for of, rows in groups.items():
        for row in rows:
            place = [row["domain"], *(row.get(key, "") for key in ("arm", "stage", "decoding"))]
            for metric, values in row["values"].items():
                yield [of, *place, metric, *(f"{value:.6g}" for value in values)]


def _different(choice: dict[str, Any]) -> list[dict[str, Any]]:
    chosen = choice["chosen"].values()
    return list({(row["arm"], row["stage"], row["decoding"]): row for row in chosen}.values())
