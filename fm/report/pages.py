"""The report of a study: one self-contained page, its plots and its table."""

import base64
import binascii
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from fm.errors import UserError
from fm.files import atomic_write
from fm.report import (
    ablation_plots,
    cost_plots,
    curve_plots,
    difference_plots,
    formats,
    group_scores,
    multitask_plots,
    style,
    tables,
)
from fm.report.cautions import cautions
from fm.report.contact_sheet import contact_sheet
from fm.report.decisions import decisions, label_multiplier, outcome, outcome_words
from fm.report.headline import NOTHING, SMOKE_TEST, findings
from fm.report.methodology import methodology_notes
from fm.report.parsing import parse
from fm.report.schema import Results, capitalize_first

# Media types that may be put into the page, and how each file begins.
_MAGIC = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/gif": b"GIF8",
    "audio/wav": b"RIFF",
}
_MAX_CARDS, _MAX_CARD_CHARACTERS = 12, 600


@dataclasses.dataclass(frozen=True)
class RenderedFigure:
    """A plot as PNG bytes, with its section, task, file name, caption and alternative text."""

    section: str
    task: str | None
    file_name: str
    caption: str
    alt: str
    png: bytes


def write(results: dict, out_dir: Path) -> Path:
    """Writes report.html, table.csv and plots/*.png into `out_dir`; returns the page's path.

    Everything is made in memory first. No file is ever seen half-written, the page comes last, and
    a report that is already there stays as it was if this one can't be made.

    Args:
      results: the content of a results.json of schema 1 or 2. Sections without data say so in one
        line.
      out_dir: the folder; it is made if need be.

    Returns:
      The path of report.html.

    Raises:
      UserError: `results` is not valid, or `out_dir` is a file.
    """
    parsed = parse(results)
    figures = render_figures(parsed)
    return write_page(
        out_dir, render_report(parsed, figures), figures, tables.comparisons_csv(parsed)
    )


def write_page(out_dir: Path, page: str, figures: Iterable[RenderedFigure], table: str) -> Path:
    """Writes a rendered page, its figures and table into `out_dir`; returns the page's path."""
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir}: is a file; the report needs a folder")
    (out_dir / "plots").mkdir(parents=True, exist_ok=True)
    for figure in figures:
        atomic_write(out_dir / "plots" / figure.file_name, figure.png)
    atomic_write(out_dir / "table.csv", table.encode())
    atomic_write(out_dir / "report.html", page.encode())
    return out_dir / "report.html"


def render_figures(results: Results) -> list[RenderedFigure]:
    """Returns all plots that the results have numbers for, task by task."""
    rendered: list[RenderedFigure] = []
    for section, task, caption, alt, figure in _figures(results):
        if figure is not None:
            name = _file_name(section, task, {each.file_name for each in rendered})
            levels = 256 if section == "samples" else 16
            png = style.to_png(figure, levels)
            rendered.append(RenderedFigure(section, task, name, caption, alt, png))
    return rendered


def _figures(results: Results) -> Iterator[tuple[str, str | None, str, str, Figure | None]]:
    """Section, task, caption, description and figure of every plot."""
    for task in results.task_names():
        title = str(results.task(task).title)
        yield (
            *("accuracy", task, title),
            f"{title}: test accuracy against the number of labels, one line for each arm",
            curve_plots.accuracy(results, task),
        )
        if not results.setting and not results.claims:
            yield (
                *("decision", task, f"{title}: differences"),
                f"{title}: differences of own pretraining from the best without and from the "
                "reference, with 95% intervals",
                difference_plots.decision_forest(results, task),
            )
        yield (
            *("learning_curves", task, f"{title}: fitted curves"),
            f"{title}: fitted learning curves, and the number of labels where they cross",
            curve_plots.learning_curves(results, task),
        )
        for place, arm in enumerate(_arms_by_interest(results, task)):
            yield (
                *("other_differences" if place else "differences", task, f"{title}: {arm}"),
                f"{title}: differences of {arm} from each rival with 95% intervals",
                difference_plots.forest(results, task, arm),
            )
        leading = next(iter(_arms_by_interest(results, task)), "")
        yield (
            *("multiplier", task, f"{title}: {leading}"),
            f"{title}: how many times the labels each rival of {leading} would need",
            curve_plots.multipliers(results, task, leading),
        )
        yield (
            *("cost", task, f"{title}: CPU time"),
            f"{title}: CPU time of each arm by part",
            cost_plots.cpu_seconds(results, task),
        )
    budgets = {row.num_labels for row in results.comparisons} if results.claims else set()
    for num_labels in sorted(budgets, key=lambda number: number or math.inf):
        words = formats.label_budget(num_labels)
        yield (
            *("overview", None, f"All tasks, {words}, points"),
            f"grid: differences of pairs of arms on each task, {words}",
            difference_plots.overview_of_differences(results, num_labels),
        )
    pretraining = [row for row in results.curves if row.kind == "pretrain"]
    for task, unit in dict.fromkeys((row.task, row.unit) for row in pretraining):
        title = results.task(task).title
        yield (
            *("pretraining", task, f"{title}: pretraining, {unit or 'loss'}"),
            f"{title}: {unit or 'loss'} against the number of tokens seen in pretraining",
            cost_plots.pretraining(results, task, unit),
        )
    for unit, words, _ in tables.cost_units(results):
        yield (
            *("amortized_cost", None, f"Cost of K tasks in {words}"),
            f"{words} of each arm against the number of tasks",
            cost_plots.amortized_cost_figure(results, unit),
        )
    for task in dict.fromkeys(row.task for row in results.samples):
        title = results.task(task).title
        yield (
            *("samples", task, f"{title}: generated"),
            f"{title}: generated pictures, enlarged",
            contact_sheet([row for row in results.samples if row.task == task]),
        )
    for ablation in results.ablations:
        drawn = ablation_plots.config_ablation_figures(results, ablation)
        for caption, figure in drawn or multitask_plots.ablation_figures(results, ablation):
            yield f"ablation {ablation.name}", None, caption, f"ablation: {caption}", figure


def _arms_by_interest(results: Results, task: str) -> list[str]:
    """The compared arms, those that decisions are about first."""
    decided = [row.best_pretrained for row in decisions(results, task)]
    compared = results.arm_names(row.arm for row in results.comparisons if row.task == task)
    return sorted(compared, key=lambda arm: (-decided.count(arm), compared.index(arm)))


def _file_name(section: str, task: str | None, taken: set[str]) -> str:
    """A name of letters, digits and dashes: a task's name must not leave the folder."""
    stem = re.sub(r"[^a-z0-9]+", "-", f"{section}-{task or 'all'}".lower()).strip("-")[:60]
    tries = [f"{stem}.png", *(f"{stem}-{number}.png" for number in range(2, len(taken) + 3))]
    return next(name for name in tries if name not in taken)


def render_report(results: Results, figures: list[RenderedFigure]) -> str:
    """Returns the report as a self-contained HTML page; all result values are escaped."""
    environment = template_environment()
    environment.filters |= {
        "points": formats.points,
        "interval": formats.interval,
        "score_interval": formats.score_interval,
        "percent": formats.percent,
        "detectable": formats.detectable,
        "p": formats.p_value,
        "count": formats.count,
        "flops": formats.flops,
        "seconds": formats.seconds,
        "bytes": formats.num_bytes,
        "multiplier": formats.multiplier,
        "std_points": formats.std_points,
        "config_value": formats.config_value,
        "outcome": outcome,
        "outcome_words": outcome_words,
        "difference": formats.difference,
        "label_budget": formats.label_budget,
        "data_uri": data_uri,
        "short": _shorten,
        "capital": capitalize_first,
        "breakable": breakable,
    }
    compared = {row.arm for row in (*results.cells, *results.comparisons)}
    compared |= {row.baseline for row in results.comparisons}
    by_section: dict[str, list[RenderedFigure]] = {}
    for figure in figures:
        by_section.setdefault(figure.section, []).append(figure)
    return environment.get_template("report.html.jinja").render(
        results=results,
        findings=findings(results),
        nothing=NOTHING,
        smoke_test=SMOKE_TEST,
        question=question(results),
        instruction_following=tables.instruction_following_rows(results),
        conditions=tables.CONDITIONS,
        amortized_cost=tables.amortized_cost_table(results),
        cost_units=[words for _, words, _ in tables.cost_units(results)],
        break_even=tables.break_even_rows(results),
        pretraining_shares=tables.pretraining_token_shares(results.curves),
        arms=[arm for arm in results.arms if arm.name in compared],
        scores=[tables.score_table(results, task) for task in results.task_names()],
        decisions={task: tables.decision_table(results, task) for task in results.task_names()},
        cautions={task: cautions(results, task) for task in results.task_names()},
        label_multiplier=label_multiplier,
        comparisons=_by_task(tables.sorted_comparisons(results)),
        label_efficiency=_by_task(results.label_efficiency),
        compute_cost={
            task: tables.cost_rows(results, task) for task in _by_task(results.compute_cost)
        },
        cpu_parts=tables.CPU_SECONDS,
        methods=_by_task(results.methods),
        mistakes=_by_task(results.mistakes),
        samples=_by_task(results.samples),
        max_cards=_MAX_CARDS,
        figures=by_section,
        group_tables=group_scores.group_tables(results),
        notes=methodology_notes(results),
        config=flatten_config(results.config),
        missing=formats.MISSING,
    )


def question(results: Results) -> str:
    """Returns the question that a study asks."""
    if results.claims:
        return "One model for many tasks, or a network for each?"
    if results.ablations and results.setting:
        titles = formats.listed(each.title for each in results.ablations)
        return f"What does the gain of pretraining depend on? {capitalize_first(titles)}."
    if results.setting:
        return f"What does {results.setting} change?"
    return "Is pretraining worth it, against training from scratch?"


def breakable(name: str) -> Markup:
    """Returns a name as HTML that may be broken into lines behind underscores and equals signs."""
    return Markup("<wbr>").join(re.findall(r"[^_=]*[_=]+|[^_=]+", name))


def template_environment() -> jinja2.Environment:
    """Returns the Jinja environment of the report templates; autoescaping and strict names."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fm.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(data: str | bytes | None, media_type: str = "image/png") -> str | None:
    """Returns a file (bytes or base64) as a data URI; None if it is not of `media_type`."""
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return None
    if not data or not data.startswith(_MAGIC[media_type]):
        return None
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def flatten_config(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Returns (dotted name, text) pairs of a nested mapping, in its order."""
    if isinstance(config, dict) and config:
        return [
            pair
            for key, value in config.items()
            for pair in flatten_config(value, f"{prefix}.{key}" if prefix else key)
        ]
    if not prefix:
        return []
    if isinstance(config, list | dict):
        return [(prefix, json.dumps(config, ensure_ascii=False))]
    return [(prefix, formats.config_value(config))]


def _by_task(rows: Iterable[Any]) -> dict[str | None, list[Any]]:
    """The rows by task, tasks in order of appearance."""
    groups: dict[str | None, list[Any]] = {}
    for row in rows:
        groups.setdefault(row.task, []).append(row)
    return groups


def _shorten(text: Any) -> str:
    """A beginning that fits a card; of empty lines one stays."""
    text = re.sub(r"\n\s*\n", "\n\n", str(text or ""))
    if len(text) <= _MAX_CARD_CHARACTERS:
        return text
    return f"{text[:_MAX_CARD_CHARACTERS].rstrip()} …"
