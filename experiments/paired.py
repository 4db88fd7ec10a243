"""Compares predictions of two or more models, from any framework, item by item.

    fm paired a.csv b.csv [c.csv ...] --out=runs/paired

A file has the columns item, truth, prediction, and if wanted seed, group, probability (of the
predicted class) and truth_probability. Every file is compared with the first, or with the file
that --baseline names; --all_pairs compares every two. Prints the scores, the differences with 95%
intervals, p-values and what would decide, and writes results.json, table.csv and report.html.

Items are paired by name, and so are seeds. Without a column seed there is one run of each, and the
intervals cover new items only. With a column group (speaker, document, source) items of one group
are not taken as independent. --metric=score takes scores in the column prediction, higher better,
one for each item; the column truth may then be left out. Of numbers, --metric=rank_correlation and
--metric=absolute_error; of sets of classes, separated by semicolons, --metric=micro_f1.
"""

from __future__ import annotations

import pathlib

from absl import flags

from experiments import cli
from fm.data.readers.text import check_encoding
from fm.errors import UserError
from fm.files import expand_path
from fm.report import paired as report
from fm.study import run_dir
from fm.study.paired import DEFAULT_MARGIN, EXPERIMENT, METRICS, PairedConfig, compare
from fm.study.prediction_files import read_predictions

_RUN_FILES = (run_dir.CONFIG_FILE, run_dir.RESULTS_FILE, run_dir.SUMMARY_FILE)


def define(values: flags.FlagValues) -> None:
    """The files, and how they are compared."""
    cli.define_out(values, "runs/paired")
    cli.define_encoding(values)
    cli.define_files(values, "a file of predictions; the name of the flag may be left out")
    flags.DEFINE_enum("metric", "accuracy", [*METRICS], "what is compared", flag_values=values)
    flags.DEFINE_string(
        "baseline", None, "name of the file that others are compared with; default: the first",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("all_pairs", False, "compare every two files", flag_values=values)
    flags.DEFINE_float(
        "margin", None,
        "smallest difference that matters, in percentage points (default 1), or in units of "
        "the score or error (default: no test of equivalence)",
        flag_values=values,
    )  # fmt: skip


def main(values: flags.FlagValues) -> None:
    """Reads the files, compares them, writes the report."""
    config, out = _config(values), cli.out_dir(values)
    _check_out(out)
    encoding = values["encoding"].value
    check_encoding(encoding)
    predictions = read_predictions(
        [expand_path(file) for file in values["file"].value],
        kind=METRICS[config.metric].kind,
        encoding=encoding,
    )
    results = compare(predictions, config)
    run_dir.acquire_lock(out)
    run_dir.write_results(results, out)
    page = report.write(results, out)
    notices, shown = "\n".join(results["notices"]), cli.one_line(str(page))
    text = f"{report.text_table(results)}\n\n{report.headline(results)}"
    print(f"{text}\n{notices}\n\nreport: {shown}" if notices else f"{text}\n\nreport: {shown}")


def _check_out(out: pathlib.Path) -> None:
    """Raises UserError if the folder holds a run of another experiment, whose results would go."""
    if not out.is_dir() or not any((out / name).exists() for name in _RUN_FILES):
        return
    experiment = None
    if (out / run_dir.RESULTS_FILE).exists():
        experiment = run_dir.read_results(out).get("experiment")
    if experiment != EXPERIMENT:
        raise UserError(
            f"--out={out} holds a run of another experiment; takes a new folder, or one of an "
            "earlier paired comparison, which is replaced"
        )


def _config(values: flags.FlagValues) -> PairedConfig:
    metric, given = values["metric"].value, values["margin"].value
    if given is not None and not 0 < given < float("inf"):
        raise UserError(f"--margin={given}: takes a number above 0")
    in_units = METRICS[metric].in_units
    margin = None if in_units else DEFAULT_MARGIN
    if given is not None:
        margin = given if in_units else given / 100
    return PairedConfig(
        metric=metric,
        baseline=values["baseline"].value,
        all_pairs=values["all_pairs"].value,
        margin=margin,
    )


if __name__ == "__main__":
    cli.run("paired", __doc__, define, main, computes=False, resumes=False)
