"""How each number was made, in sentences that take their figures from the results."""

from typing import Any

from fm.report import formats
from fm.report.decisions import margin_words
from fm.report.formats import listed
from fm.report.headline import scored_before
from fm.report.schema import BEST_RIVAL, PublishedWeights, Results


def methodology_notes(results: Results) -> list[tuple[str, str]]:
    """Returns (term, explanation) pairs on how the results of this study were measured."""
    notes = [
        ("One point", _seeds(results)),
        ("Choosing", _model_selection(results)),
        ("Test items", _test_items(results)),
        ("Checkpoints", _checkpoints(results)),
        ("95% interval", _interval(results)),
        ("p and adjusted p", _p_values(results)),
        ("Words", _words(results)),
        ("Smallest difference", _detectable(results)),
        ("Runs and items", _VARIANCE),
        ("Label multiplier", _MULTIPLIER),
        ("Fitted curves", _FITTED if results.learning_curves else ""),
        ("Numbers", _NUMBERS if _measured(results, "mean_absolute_error") else ""),
        ("Calibration", _CALIBRATION if _measured(results, "nll", "ece") else ""),
        ("Cost", _cost(results)),
        ("Published weights", _published(results)),
    ]
    return [(term, text) for term, text in notes if text]


_VARIANCE = (
    "A difference varies for two reasons: another seed draws other labels and other initial "
    "weights (run), and another test set holds other items (item). Both are given in points, as "
    "standard deviations. More seeds shrink the first, a larger test set the second."
)
_MULTIPLIER = (
    "How many times as many labels a rival would need to reach the same score, read off the "
    "rival's curve by interpolation. Where that curve never gets there within the budgets "
    "measured, the page gives the bound (“more than 3x”) or nothing rather than guess. The "
    "smallest one over the arms without pretraining is the one that is quoted."
)
_FITTED = (
    "The error of each arm is fitted by a power law of the number of labels, error = a + b n^-c. "
    "Pretraining stops paying where its curve meets that of the rival; beyond the budgets measured "
    "the page says so and gives no number."
)
_NUMBERS = (
    "Predicted numbers are scored by Spearman's rank correlation, in hundredths: 100% is the right "
    "order, 0% none. It enters intervals and tests as a score of each item, the correlation and "
    "the item's influence on it. The mean absolute error is in the units of the labels. Settings "
    "were chosen by the share of the labels' variance that is explained (R squared)."
)
_CALIBRATION = (
    "NLL is the mean negative log-likelihood of the true class in nats. ECE, the expected "
    "calibration error, is the mean gap between confidence and accuracy over bins of confidence. "
    "Lower is better for both."
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
            "Each score is one run with one seed: there is no interval, and chance is not ruled "
            "out. Use at least eight seeds before believing a difference."
        )
    number = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    return (
        f"Each score is the mean over {number} seeds. A seed draws its own labeled examples "
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
        amount = f"Every arm tried the same number of settings ({next(iter(trials.values()))})."
    else:
        counts = ", ".join(f"{arm} {number}" for arm, number in trials.items())
        amount = f"Settings tried: {counts}."
    seeds = {cell.seed for cell in results.cells}
    searched = _find(results.config, "search_seeds")
    if _chosen_by_seed(results):
        who = "Each seed chose its own, from its own labels alone"
    elif isinstance(searched, int) and searched < len(seeds):
        who = (
            f"The search was made on {searched} of {len(seeds)} seeds and its choice used for all "
            "of them"
        )
    else:
        who = "The choice was made"
    return (
        f"{amount} {who}, on validation data cut from the labels the arm was given (by "
        "cross-validation where they are few), never on test. An arm that is a family of models "
        "chose among them in the same way. All trials are in results.json."
    )


def _chosen_by_seed(results: Results) -> bool:
    """Whether two seeds of a cell have trials of their own."""
    first: dict[tuple, Any] = {}
    for cell in results.cells:
        key = cell.task, cell.arm, cell.num_labels
        if cell.trials and first.setdefault(key, cell.trials) != cell.trials:
            return True
    return False


def _test_items(results: Results) -> str:
    texts = []
    for task in results.tasks:
        about, title = task.test_slice, results.task(task.name).title
        if about is None:
            continue
        named = f" (the slice {about.name})" if about.name else ""
        kept = "kept apart until the recipe was frozen, " if about.sealed else ""
        before = scored_before(results, task.name) or "how often it was scored before is not known"
        groups = ""
        if task.item_group:
            groups = f"; items of one {task.item_group} belong together and vary together"
        items = formats.count(about.items if about.items is not None else task.test)
        texts.append(f"{title}: {items} items{named}, {kept}{before}{groups}.")
    if not texts and results.cells:
        return "How often these test items had been scored before this study was not recorded."
    return " ".join(texts)


def _checkpoints(results: Results) -> str:
    """Whether the figures are of one pretrained checkpoint or of several."""
    if not any(results.arm(row.arm).pretrained_on is not None for row in results.comparisons):
        return ""
    nested = any(row.checkpoints is not None for row in results.comparisons)
    if not nested:
        seeds = _find(results.config, "pretrain_seeds")
        if isinstance(seeds, int) and seeds > 1:
            return (
                f"Pretraining was repeated with {seeds} seeds. The intervals take the runs as "
                "independent, although some share a checkpoint: they are too narrow."
            )
    number = max((results.num_checkpoints(task) for task in results.task_names()), default=1)
    if number > 1:
        return (
            f"Pretraining was repeated: the runs start from {number} checkpoints, and the "
            "intervals take runs of one checkpoint as a cluster: they hold for a new pretraining."
        )
    return (
        "All seeds of a pretrained arm start from one and the same pretrained checkpoint. Its "
        "intervals hold for this checkpoint: another pretraining could land elsewhere "
        "(--pretrain_seeds above 1 measures that)."
    )


def _interval(results: Results) -> str:
    groups = sorted({int(row.groups) for row in results.comparisons if row.groups})
    clusters = f" Test items enter by group ({listed([str(n) for n in groups])} groups)."
    return (
        "The range of differences the data are compatible with: made this way, 95 of 100 such "
        "intervals hold the true difference. In the tables and the plots of differences it covers "
        "both sources of chance, the run and the test items; the bands round the lines of accuracy "
        "cover the runs only, so compare arms by the differences, not by whether bands overlap."
        f"{clusters if groups else ''}"
    )


def _p_values(results: Results) -> str:
    rows = [row for row in results.comparisons if row.p_adjusted is not None]
    if not rows:
        return ""
    text = "p is how often a difference this large would come up if the two arms were equally good."
    # Results with checkpoints have p from the model of the interval; older ones from sign flips.
    if not any(row.checkpoints is not None for row in rows):
        return (
            f"{text} It is from flipping the sign of each seed's difference, raised by Holm's "
            f"correction for {len(rows)} comparisons, which few seeds cannot pass: with "
            f"{min((int(row.seeds) for row in rows if row.seeds), default=1)} seeds the adjusted p "
            f"is at least {formats.p_value(_holm_floor(rows))} whatever the effect."
        )
    text += (
        " It comes from the same model as the interval: it is under 0.05 exactly where the "
        f"interval excludes zero. Among {len(rows)} comparisons some look large by luck; the "
        "adjusted p allows for that by the Westfall-Young max-T method over all of them."
    )
    primary = list(
        dict.fromkeys(f"{row.arm} − {row.baseline}" for row in results.comparisons if row.primary)
    )
    if primary:
        text += (
            " Those declared as primary before the results were seen are adjusted among "
            f"themselves: the mean over all label budgets of {listed(primary)}. A difference to "
            f"the {BEST_RIVAL} is ahead only if it is ahead of every arm without pretraining."
        )
    return text


def _holm_floor(rows: list) -> float:
    """The least p that a sign-flip test with Holm's correction over `rows` can give."""
    seeds = min((row.seeds for row in rows if row.seeds), default=1)
    return min(1.0, len(rows) * 2.0 ** (1 - seeds))


def _words(results: Results) -> str:
    text = (
        "“Better” and “worse” are said only where the interval excludes zero and the adjusted p is "
        "under 0.05; else “no clear difference”. “Unclear after adjustment” is said where the "
        "interval, which is that of one comparison by itself, excludes zero and the adjusted p is "
        "not under 0.05: one difference of that size among so many comparisons may be chance."
    )
    margins = {row.margin for row in results.comparisons if row.p_equivalence is not None}
    if margins:
        listed_margins = listed(
            [margin_words(margin) for margin in sorted(m or 0 for m in margins)]
        )
        text += (
            f" “Within the margin” ({listed_margins}) is said where two one-sided tests, each at "
            "5%, reject a difference larger than that."
        )
    if any(cell.still_improving is not None for cell in results.cells):
        text += (
            " An arm that was still improving in at least half of its runs, by more than a point "
            "of validation over the last doubling of its updates, is never said to be beaten."
        )
    return text


def _detectable(results: Results) -> str:
    if all(row.detectable is None for row in results.comparisons):
        return ""
    return (
        "The smallest true difference that this design would have found with a probability of 80%. "
        "Where no clear difference was found, a smaller one than this may well exist."
    )


def _cost(results: Results) -> str:
    text = "FLOPs are counted from the model's shapes."
    if any(row.adapt_cpu_seconds is not None for row in results.compute_cost):
        text += (
            " Time is process CPU time, one clock for all arms, neural or not. Adapting is the "
            "search for settings, the fit and the prediction of one seed; compilation and the "
            "features of a frozen model are counted apart, pretraining once for a checkpoint. The "
            "number of tasks after which pretraining pays back is given only where the lower end "
            "of the label multiplier is above 1."
        )
    return (
        f"{text} Pretraining pays back after the number of tasks at which one shared model costs "
        "less than one network for each task, trained to the same quality."
    )


def _published(results: Results) -> str:
    models = [
        f"{results.task(task.name).title}, {arm}: {about.model}, {about.source}; licence of the "
        f"weights: {about.licence}; {formats.count(about.parameters)} parameters, "
        f"{_reading(about)}."
        for task in results.tasks
        for arm, about in task.published_models.items()
    ]
    text = "A published model may have seen these very test items in its own pretraining."
    return " ".join([text, *models]) if models else ""


def _reading(about: PublishedWeights) -> str:
    """What a published model reads of an example; encoders say all of it themselves."""
    if about.tokens is None:
        return str(about.reading)
    return f"up to {about.tokens} tokens of a text, {about.reading}"


def _measured(results: Results, *fields: str) -> bool:
    return any(getattr(cell, field) is not None for cell in results.cells for field in fields)


def _find(config: Any, key: str) -> Any:
    """The value of the first `key` at any depth of nested mappings, or None."""
    if not isinstance(config, dict):
        return None
    if key in config:
        return config[key]
    found = (_find(value, key) for value in config.values())
    return next((value for value in found if value is not None), None)
