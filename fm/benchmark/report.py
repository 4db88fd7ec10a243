"""FILE.html: tables by kind and two pictures, self-contained; and the table for a terminal."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import jinja2

from fm.benchmark import pictures
from fm.benchmark.timing import quartiles
from fm.files import atomic_write
from fm.report import formats, style
from fm.report.pages import data_uri, flatten_config
from fm.report.schema import sanitize

_KINDS = {
    "gemm": "Matrix products",
    "attention": "Attention",
    "step": "Train step",
    "loss": "Vocabulary loss",
    "start": "Time to the first step",
    "decode": "Decoding",
    "input": "Input pipeline",
    "grid": "Many runs as one program",
    "scaling": "Growth of cost",
    "remat": "Memory against computing twice",
}


def write_report(results: dict[str, Any], out: pathlib.Path) -> None:
    """Writes FILE.html and the pictures beside FILE.json, each whole or not at all."""
    results = sanitize(results)
    drawn = {"roofline": pictures.roofline(results), "scaling": pictures.scaling(results)}
    pngs = {name: style.to_png(figure) for name, figure in drawn.items() if figure is not None}
    page = render_html(results, pngs)
    for name, png in pngs.items():
        atomic_write(out.with_name(f"{out.stem}-{name}.png"), png)
    atomic_write(out.with_suffix(".html"), page.encode())


def render_html(results: dict[str, Any], pngs: dict[str, bytes]) -> str:
    """The page as HTML; everything from the results is escaped, nothing is loaded from outside."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("fm.benchmark", "."), jinja2.PackageLoader("fm.report", ".")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "seconds": format_seconds,
        "rate": format_rate,
        "percent": formats.percent,
        "memory": format_bytes,
        "ratio": format_ratio,
        "verdict": significance,
        "embedded": data_uri,
        "plain": formats.config_value,
    }
    return environment.get_template("benchmark.html.jinja").render(
        results=results,
        pngs=pngs,
        kinds=list(tables_by_suite(results["rows"])),
        summary=summarize_ratios(results["rows"]),
        config=flatten_config(results["config"]),
        missing=formats.MISSING,
    )


def tables_by_suite(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the page shows of each kind, in order of appearance.

    Yields:
      `what`, `title`; `compared`, the rows against a peer that could be had; `alone`, one row for
      each case and implementation of ours; `several`, whether a case has more than one of those;
      `used`, the fields that hold anything.
    """
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        alone: dict[tuple[str, str, str], dict[str, Any]] = {}
        for row in mine:
            alone.setdefault((row["case"], row["dtype"], row["implementation"]), row)
        compared = [row for row in mine if row["peer_implementation"] is not None]
        yield {
            "what": what,
            "title": _KINDS.get(what, what),
            "compared": compared,
            "alone": list(alone.values()),
            "several": len(alone) > len({(row["case"], row["dtype"]) for row in mine}),
            "used": {key for row in compared for key, value in row.items() if value is not None}
            | {
                key
                for row in alone.values()
                for key in row
                if row[key] is not None and key != "note"
            },
        }


def summarize_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of each kind, dtype and way of a peer: how many cases, median, least and most."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        if row["ratio"] is not None:
            name = (row["what"], row["dtype"], row["peer"], row["peer_implementation"])
            groups.setdefault(name, []).append(row["ratio"])
    return [
        {
            **dict(zip(("what", "dtype", "peer", "way"), name, strict=True)),
            "title": _KINDS.get(name[0], name[0]),
            "cases": len(ratios),
            "median": quartiles(ratios)[1],
            "least": min(ratios),
            "most": max(ratios),
        }
        for name, ratios in groups.items()
    ]


def significance(spread: tuple[float, float] | list[float] | None) -> str:
    """Whether a ratio's middle half lies wholly above or below 1."""
    if spread is None:
        return "unknown"
    if spread[0] == spread[1]:
        return "unclear"  # one round shows no spread at all
    return "better" if spread[0] > 1 else "worse" if spread[1] < 1 else "unclear"


def format_rate(value: float | None) -> str:
    """Something a second: `1.52 G`, `752 `; a unit may follow."""
    if value is None:
        return formats.MISSING
    return formats.si_prefixed(value, " ") if value >= 1000 else f"{value:.3g} "


def format_ratio(value: float | None) -> str:
    """A ratio: `×1.52`."""
    if value is None:
        return formats.MISSING
    return f"×{value:.0f}" if value >= 100 else f"×{value:.1f}" if value >= 10 else f"×{value:.2f}"


def format_seconds(value: float | None) -> str:
    """A duration in the unit that keeps it short: `31.4 µs`, `5.02 ms`, `1.24 s`."""
    if value is None:
        return formats.MISSING
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def format_bytes(value: int | None) -> str:
    """Bytes in powers of 1024: `12.3 MiB`."""
    if value is None:
        return formats.MISSING
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"


def text_table(results: dict[str, Any]) -> str:
    """All rows for a terminal."""
    heads = ("what", "case", "dtype", "implementation", "time", "share", "peer", "ratio")
    lines: list[tuple[str, ...]] = [heads]
    for row in results["rows"]:
        peer = " ".join(filter(None, [row["peer"], row["peer_implementation"]]))
        lines.append(
            (
                row["what"],
                row["case"],
                row["dtype"],
                row["implementation"],
                format_seconds(row["median_seconds"]),
                formats.percent(row["gemm_utilization"]),
                f"{peer} ({row['note']})" if row["note"] else peer,
                format_ratio(row["ratio"]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    for fit in results["scaling"]:
        error = f" ± {fit['exponent_error']:.2f}" if fit["exponent_error"] is not None else ""
        text.append(f"time grows as {fit['axis']} to the power {fit['exponent']:.2f}{error}")
    return "\n".join(text)
