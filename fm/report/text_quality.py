"""Report of a text quality study: headline, page, plots and CSV table from its results."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fm.evaluation.text_quality.metrics import METRICS, METRICS_BY_NAME, ZIPF
from fm.evaluation.text_quality.words import FAULTS
from fm.report import formats, style
from fm.report import text_quality_plots as plots
from fm.report.headline import SMOKE_TEST, Finding
from fm.report.pages import (
    RenderedFigure,
    data_uri,
    flatten_config,
    template_environment,
    write_page,
)
from fm.report.parsing import sanitize
from fm.report.schema import is_smoke_test

Row = dict[str, Any]
_COLUMNS = (*(metric for metric in METRICS if metric.of_sample), ZIPF)
# Sections whose files are named otherwise.
_FILES = {"closest": "frontier"}
_CSV_COLUMNS = ("of", "domain", "arm", "stage", "sampling", "metric", "value", "low", "high")


def headline(results: dict[str, Any]) -> str:
    """Returns the main findings of a text quality study as plain text, a few lines a domain."""
    text = "\n".join(map(str, findings(results)))
    return f"{SMOKE_TEST}\n{text}" if is_smoke_test(results["config"]) else text


def write(results: dict[str, Any], out_dir: Path) -> Path:
    """Writes a text quality study's report files atomically; returns the path of report.html.

    Returns:
      The path of report.html.

    Raises:
      UserError: `out_dir` is a file.
    """
    results = sanitize(results)
    figures = draw_figures(results)
    return write_page(out_dir, render(results, figures), figures, csv_table(results))


def draw_figures(results: dict[str, Any]) -> list[RenderedFigure]:
    """Returns all figures that the results have numbers for, as PNGs."""
    return [
        RenderedFigure(
            section,
            None,
            f"{_FILES.get(section, section)}-{file}.png",
            caption,
            caption,
            style.to_png(figure),
        )
        for section, file, caption, figure in _figures(results)
        if figure is not None
    ]


def _figures(results: dict[str, Any]) -> Iterator[tuple[str, str, str, Figure | None]]:
    for domain in results["domains"]:
        letter, name = domain["letter"], f"{domain['letter']} ({domain['name']})"
        low = letter.lower()
        for x, y, caption in (
            ("self_bleu", "mauve", "MAUVE-style area against self-BLEU"),
            ("distinct_2", "scorer_bits_per_byte", "scorer bits per byte against distinct-2"),
        ):
            figure = plots.plot_quality_against_diversity(results, letter, x, y)
            # The first plot of each domain is on the first screen.
            yield (
                "frontier" if y != "mauve" else "closest",
                f"{low}-{y}",
                f"{name}: {caption}",
                figure,
            )
        bits_per_byte = plots.plot_bits_per_byte(results, letter)
        yield "training", low, f"{name}: bits per byte", bits_per_byte
        yield "copies", low, f"{name}: longest copy", plots.plot_longest_copy(results, letter)
    for selection in results["selections"]:
        letter = selection["domain"]
        caption = f"{letter}: loss of the column's metric when the row's metric selects"
        yield "regret", letter.lower(), caption, plots.plot_regret_heatmap(selection)


def render(results: dict[str, Any], figures: list[RenderedFigure]) -> str:
    """Returns the report as a self-contained HTML page; all result values are escaped."""
    environment = template_environment()
    environment.filters |= {
        "count": formats.count,
        "seconds": formats.seconds,
        "flops": formats.flops,
        "config_value": formats.config_value,
        "short": lambda value: formats.si_prefixed(value),
        "data_uri": data_uri,
        "mark_long_line_break_runs": mark_long_line_break_runs,
        "metric": lambda value, name: format(value, METRICS_BY_NAME[name].format_spec),
    }
    by_section: dict[str, list[RenderedFigure]] = {}
    for figure in figures:
        by_section.setdefault(figure.section, []).append(figure)
    early = [row["sampling"] for row in results["samples"] if row["stage"] != "end"]
    return environment.get_template("text_quality.html.jinja").render(
        results=results,
        findings=findings(results),
        smoke_test=SMOKE_TEST if is_smoke_test(results["config"]) else "",
        domain_names={domain["letter"]: domain["name"] for domain in results["domains"]},
        metrics=METRICS,
        titles={name: metric.title for name, metric in METRICS_BY_NAME.items()},
        columns=_COLUMNS,
        arms=plots.training_set_styles(results),
        figures=by_section,
        domains=[_end_samples(results, domain["letter"]) for domain in results["domains"]],
        models=_model_rows(results),
        examples=[_examples(results, selection) for selection in results["selections"]],
        faults=FAULTS,
        early_sampling=list(dict.fromkeys(early)),
        config=flatten_config(results["config"]),
    )


def mark_long_line_break_runs(text: str) -> str:
    """Returns the text with each run of 3 or more line breaks replaced by `[N line breaks]`."""
    return re.sub(r"\n{3,}", lambda run: f"\n[{len(run[0])} line breaks]\n", text)


def _end_samples(results: dict[str, Any], letter: str) -> dict[str, Any]:
    """Returns a domain's real text and, by arm, the samples of the last checkpoint."""
    arms: dict[str, list[Row]] = {}
    for row in results["samples"]:
        if (row["domain"], row["stage"]) == (letter, "end"):
            arms.setdefault(row["arm"], []).append(row)
    return {"letter": letter, "real": _real_text(results, letter), "arms": arms}


def _model_rows(results: dict[str, Any]) -> list[Row]:
    """Returns the training cost of every arm with its final bits per byte by domain."""
    values = {
        (row["arm"], row["domain"]): row["value"]
        for row in results["models"]
        if row["stage"] == "end"
    }
    letters = [domain["letter"] for domain in results["domains"]]
    return [
        row | {"bits": {letter: values.get((row["arm"], letter)) for letter in letters}}
        for row in results["trained"]
    ]


def _examples(results: dict[str, Any], selection: Row) -> dict[str, Any]:
    """Returns real texts and each distinct selection with the metrics that made it."""
    distinct: dict[tuple[str, ...], Row] = {}
    for by, row in selection["selected"].items():
        distinct.setdefault(_identity(row), row | {"by": []})["by"].append(by)
    real = _real_text(results, selection["domain"])
    return {"selection": selection, "real": real, "selected": list(distinct.values())}


def _identity(row: Row) -> tuple[str, str, str]:
    return row["arm"], row["stage"], row["sampling"]


def _real_text(results: dict[str, Any], letter: str) -> Row:
    return next(row for row in results["real_text"] if row["domain"] == letter)


# Headline.

_STAGES = {"1/4": "a quarter", "1/2": "half"}


def findings(results: dict[str, Any]) -> list[Finding]:
    """Returns the main findings of a text quality study, one for each domain of text."""
    found = []
    names = {domain["letter"]: domain["name"] for domain in results["domains"]}
    tuned = _fine_tuning_sentence(results)
    for selection in results["selections"]:
        letter = selection["domain"]
        sentences = [
            _closest_sentence(results, selection),
            _disagreement_sentence(selection),
            _copying_sentence(results, letter),
            tuned if letter == _tuned_domain(results) else "",
        ]
        subject = f"{letter} ({names[letter]})"
        found.append(Finding(subject, tuple(filter(None, sentences))))
    return found


def describe_generation_setup(row: Row) -> str:
    """Describes a row's arm, checkpoint and sampling config in words."""
    stage = _STAGES.get(row["stage"])
    after = f", after {stage} of its training," if stage else ""
    sampling = re.sub("^T ", "temperature ", row["sampling"])
    return f"the model trained on “{row['arm']}”{after} at {sampling}"


def _closest_sentence(results: dict[str, Any], selection: Row) -> str:
    row = selection["selected"]["mauve"]
    own, real = row["values"]["mauve"], _real_text(results, selection["domain"])["values"]["mauve"]
    outcome = "clearly short of" if own[2] < real[1] else "not clearly different from"
    setup = describe_generation_setup(row)
    return (
        f"{setup[:1].upper()}{setup[1:]} writes the text closest to real text: MAUVE-style area "
        f"{_interval(own, '.2f')} (1 if they cannot be told apart), {outcome} other real text, "
        f"{_interval(real, '.2f')}."
    )


def _disagreement_sentence(selection: Row) -> str:
    """Says how many selections there are, and which cost the other metrics most and least."""
    distinct = {_identity(row) for row in selection["selected"].values()}
    if len(distinct) == 1:
        return f"All {len(METRICS)} metrics select it."
    others = [row for row in selection["regrets"] if row["by"] != row["metric"]]
    clear = [row for row in others if row["clear"]]
    count = f"the {len(METRICS)} metrics select {len(distinct)} different models or samplings"
    if not clear:
        return f"{count[:1].upper()}{count[1:]}, but none clearly loses by another one's."
    worst = max(clear, key=lambda row: row["regret"])
    regrets: dict[str, list[float]] = {}
    for row in others:
        regrets.setdefault(row["by"], []).append(row["regret"])
    means = {name: float(np.mean(each)) for name, each in regrets.items()}
    least = min(means, key=lambda name: means[name])
    return (
        f"Metrics do not agree: {count}. Whoever selects by "
        f"“{METRICS_BY_NAME[worst['by']].title}” gets "
        f"{describe_generation_setup(selection['selected'][worst['by']])}, and loses "
        f"{min(worst['regret'], 1.0):.0%} of what is to be had in "
        f"“{METRICS_BY_NAME[worst['metric']].title}”, the largest loss; selecting by "
        f"“{METRICS_BY_NAME[least].title}” costs the other metrics least, {means[least]:.0%} on "
        "average."
    )


def _copying_sentence(results: dict[str, Any], letter: str) -> str:
    plain = results["config"]["sampling_configs"][0]["temperature"]
    rows = [
        row
        for row in results["samples"]
        if (row["domain"], row["stage"], row["temperature"]) == (letter, "end", plain)
    ]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row["values"]["longest_copy"][0])
    own = most["values"]["longest_copy"]
    real = _real_text(results, letter)["values"]["longest_copy"]
    than = "more than" if own[1] > real[2] else "less than" if own[2] < real[1] else "similar to"
    return (
        f"With plain sampling “{most['arm']}” copies most from its training text: the longest copy "
        f"in a text has {_interval(own, '.1f')} words on average, {than} in real text, "
        f"{_interval(real, '.1f')}."
    )


def _tuned_arm(results: dict[str, Any]) -> str | None:
    training_sets = results["config"]["training_sets"]
    return next((name for name, each in training_sets.items() if each["init_from"]), None)


def _tuned_domain(results: dict[str, Any]) -> str | None:
    tuned = _tuned_arm(results)
    return tuned and results["config"]["training_sets"][tuned]["prompt_domains"][0]


def _fine_tuning_sentence(results: dict[str, Any]) -> str:
    """Compares pretraining and fine-tuning with training from scratch on the same few texts."""
    training_sets, tuned = results["config"]["training_sets"], _tuned_arm(results)
    if tuned is None:
        return ""
    parts = training_sets[tuned]["parts"]
    scratch = next(
        (
            n
            for n, each in training_sets.items()
            if not each["init_from"] and each["parts"] == parts
        ),
        None,
    )
    if scratch is None:
        return ""
    domain = _tuned_domain(results)

    def best_value(arm: str) -> list[float]:
        rows = [r for r in results["models"] if (r["arm"], r["domain"]) == (arm, domain)]
        return min((row["value"] for row in rows), key=lambda value: value[0])

    own, other = best_value(tuned), best_value(scratch)
    if own[2] < other[1]:
        outcome = "better than"
    else:
        outcome = "worse than" if own[1] > other[2] else "not clearly different from"
    return (
        f"With few texts of {domain}, pretraining on other text first (“{tuned}”) is {outcome} "
        f"training on them alone (“{scratch}”) for as many tokens: {_interval(own, '.3f')} against "
        f"{_interval(other, '.3f')} bits per byte, lower being better."
    )


def _interval(value: list[float], format_spec: str) -> str:
    middle, low, high = (format(each, format_spec) for each in value)
    return f"{middle} [{low}, {high}]"


# CSV.


def csv_table(results: dict[str, Any]) -> str:
    """Returns the sample metrics as CSV, one row per metric of a sample.

    Column `of` is "model" for a sample that selections were made among, "fresh" for one generated
    anew after its selection (once per distinct selection), or "real".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    groups = {
        "real": results["real_text"],
        "model": results["samples"],
        "fresh": [
            row
            for selection in results["selections"]
            for row in {_identity(each): each for each in selection["selected"].values()}.values()
        ],
    }
    for of, rows in groups.items():
        for row in rows:
            where = [row["domain"], *(row.get(key, "") for key in ("arm", "stage", "sampling"))]
            for metric, values in row["values"].items():
                writer.writerow([of, *where, metric, *(f"{value:.6g}" for value in values)])
    return text.getvalue()
