"""How each number was made, in sentences that take their figures from the results."""

from typing import Any

from fm.report import formats
from fm.report.headline import outcome
from fm.report.schema import Comparison, Results


def methodology_notes(results: Results) -> list[tuple[str, str]]:
    """Returns (term, explanation) pairs on how the results of this study were measured."""
    return [
        ("One point", _seeds(results)),
        ("Choosing", _model_selection(results)),
        ("95% interval", _INTERVAL),
        ("Runs and items", _VARIANCE),
        ("p and Holm p", _p_values(results)),
        ("One checkpoint", _checkpoint(results)),
        ("Label multiplier", _MULTIPLIER),
        ("Cost", _COST),
        *_published(results),
    ]


def num_significant_sentence(results: Results) -> str:
    """Returns a sentence counting the differences still significant after Holm's correction."""
    rows = [row for row in results.comparisons if row.p_adjusted is not None]
    clear = [row for row in rows if outcome(row) in ("better", "worse")]
    if not clear:
        return ""
    significant = sum((row.p_adjusted or 0) < 0.05 for row in clear)
    text = (
        f"Of the {len(clear)} differences whose interval excludes zero, {significant} also keep p "
        f"under 0.05 after Holm's correction for {len(rows)} comparisons"
    )
    impossible = _holm_floor(rows) > 0.05
    return f"{text}{'; with so few seeds none could' if impossible and not significant else ''}."


_INTERVAL = (
    "The range of differences the data are compatible with: made this way, 95 of 100 such "
    "intervals hold the true difference. In the tables and the plots of differences it covers "
    "both sources of chance, the run and the test items; the bands round the lines of accuracy "
    "cover the runs only, so compare arms by the differences, not by whether bands overlap."
)
_VARIANCE = (
    "A difference varies for two reasons: another seed draws other labels and other initial "
    "weights (run), and another test set holds other items (item). Both are given in points, as "
    "standard deviations. More seeds shrink the first, a larger test set the second."
)
_MULTIPLIER = (
    "How many times as many labels training from scratch would need to reach the same accuracy, "
    "read off the scratch curve by interpolation. Where that curve never gets there within the "
    "budgets measured, the page says “beyond the measured range” rather than guess."
)
_COST = (
    "FLOPs are counted from the model's shapes, pretraining included. Pretraining pays back after "
    "the number of tasks at which one shared model costs less than one network for each task, "
    "trained to the same quality."
)


def _seeds(results: Results) -> str:
    by_cell: dict[tuple, set] = {}
    for cell in results.cells:
        by_cell.setdefault((cell.task, cell.arm, cell.num_labels), set()).add(cell.seed)
    if not by_cell:
        return "No runs were recorded."
    runs = sorted({len(seeds) for seeds in by_cell.values()})
    if runs == [1]:
        return (
            "Each accuracy is one run with one seed: there is no interval, and chance is not ruled "
            "out. Use at least eight seeds before believing a difference."
        )
    number = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    return (
        f"Each accuracy is the mean over {number} seeds. A seed draws its own labeled examples "
        "and its own initial weights, the same draw for every arm, so arms are compared pair by "
        "pair. The test set is the same for all."
    )


def _model_selection(results: Results) -> str:
    trials: dict[str | None, int] = {}
    for cell in results.cells:
        # A single setting is taken without a trial.
        number = 0 if cell.trials is None else max(1, len(cell.trials))
        trials[cell.arm] = max(trials.get(cell.arm, 0), number)
    trials = {arm: trials[arm] for arm in results.arm_names(trials) if trials[arm]}
    if not trials:
        return "The settings tried were not recorded."
    if len(set(trials.values())) == 1:
        amount = f"Every arm tried the same number of settings ({next(iter(trials.values()))})"
    else:
        listed = ", ".join(f"{arm} {number}" for arm, number in trials.items())
        amount = f"The arms did not all try the same number of settings ({listed})"
    searched = {cell.seed for cell in results.cells if cell.trials}
    seeds = {cell.seed for cell in results.cells}
    if 0 < len(searched) < len(seeds):
        amount += f", searched on {len(searched)} of {len(seeds)} seeds to save computing"
    return (
        f"{amount}. The best was chosen on validation data cut from the labels the arm was given "
        "(by cross-validation where they are few), never on test. Pretraining recipes too were "
        "chosen on validation data; test was scored once. All trials are in results.json."
    )


def _p_values(results: Results) -> str:
    text = (
        "p is how often a difference this large would come up if the two arms were equally good, "
        "by flipping the sign of each seed's difference. Among many differences, some will look "
        "large by luck; Holm's correction raises p to allow for that."
    )
    rows = [row for row in results.comparisons if row.seeds]
    if rows:
        seeds = min(int(row.seeds or 1) for row in rows)
        least, floor = 2.0 ** (1 - seeds), _holm_floor(rows)
        text += f" With {seeds} seed{'s' * (seeds > 1)} p can't go under {formats.p_value(least)}"
        if floor > 0.05:
            text += (
                f", so over {len(rows)} differences Holm's p can't go under "
                f"{formats.p_value(floor)} however large the effect: read the intervals"
            )
        text += "."
    return text


def _holm_floor(rows: list[Comparison]) -> float:
    """The least p that a sign-flip test with Holm's correction over `rows` can give."""
    seeds = min((row.seeds for row in rows if row.seeds), default=1)
    return min(1.0, len(rows) * 2.0 ** (1 - seeds))


def _checkpoint(results: Results) -> str:
    seeds = _find(results.config, "pretrain_seeds")
    if isinstance(seeds, int) and seeds > 1:
        return (
            f"Pretraining was repeated with {seeds} seeds, so the intervals include how lucky one "
            "pretraining is."
        )
    option = "" if seeds is None else " (--pretrain_seeds above 1 measures that)"
    return (
        "All seeds of a pretrained arm start from one and the same pretrained checkpoint. Its "
        f"intervals hold for that checkpoint: another pretraining could land elsewhere{option}."
    )


def _published(results: Results) -> list[tuple[str, str]]:
    models = [
        f"{results.task(task.name).title}: {about.model}, {about.source}; licence of the "
        f"weights: {about.licence}; {formats.count(about.parameters)} parameters, up to "
        f"{about.tokens} tokens of a text, {about.reading}."
        for task in results.tasks
        if (about := task.published)
    ]
    text = "A published model may have seen these very test items in its own pretraining."
    return [("Published weights", " ".join([text, *models]))] if models else []


def _find(config: Any, key: str) -> Any:
    """The value of the first `key` at any depth of nested mappings, or None."""
    if not isinstance(config, dict):
        return None
    if key in config:
        return config[key]
    found = (_find(value, key) for value in config.values())
    return next((value for value in found if value is not None), None)
