"""`results.json` as typed records (schema 2). Files of schema 1 are upgraded when they are read.

Every field may be absent: a list is then empty, a value None. A report can therefore be made of any
part of a study, and a field of the wrong type is refused by name before anything is drawn.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from fm.errors import UserError
from fm.report import schema_1

SCHEMA = 2
# Stands for the best of all arms without pretraining in comparisons and crossings.
BEST_RIVAL = "best rival"
# What an arm of a model that others trained was pretrained on.
PUBLISHED_DATA = "published data"
# Larger whole numbers are no number of anything.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Number = Integer | float | None
Text = str | None
Series = list[Number] | None
LineStyle = str | tuple[int, tuple[int, ...]]


class Arm(msgspec.Struct):
    """An arm of a study as reports show it: name, title, description and matplotlib style.

    Attributes:
      name: as in the other sections.
      title: noun phrase for sentences; `{data}` stands for the task's `data_noun`.
      description: one sentence on what the arm learned from.
      pretrained_on: what it saw before the labels; None if nothing. Decides who is a baseline, and
        whether its weights are published ones (`PUBLISHED_DATA`).
      color, linestyle, marker: how matplotlib draws it.
    """

    name: str
    title: str = ""
    description: str = ""
    pretrained_on: Text = None
    color: Text = None
    linestyle: LineStyle | None = None
    marker: Text = None

    @property
    def is_published(self) -> bool:
        """Whether its model was pretrained by others, so that nobody has to pretrain for it."""
        return self.pretrained_on == PUBLISHED_DATA


class PublishedWeights(msgspec.Struct):
    """The published model that an arm of a task starts from: name, source, license, sizes."""

    model: Text = None
    source: Text = None
    licence: Text = None
    parameters: Number = None
    tokens: Number = None
    reading: Text = None


class TestSlice(msgspec.Struct):
    """The test items that a task was scored on.

    Attributes:
      scored_before: at least so many configurations had been scored on them before this study;
        "unknown" if no record could be read.
      sealed: whether they were kept apart until the recipe was frozen.
    """

    name: Text = None
    items: Number = None
    scored_before: Number | str = None
    sealed: bool | None = None


class Task(msgspec.Struct):
    """A task of a study and its data set.

    Attributes:
      data_noun: names the data, for example "images".
      target: what an item's label is where it is not one class: "label_set" or "value".
      majority_rate: share of the test items of the most frequent class.
      item_group: column whose values group the test items (a writer, a source); None if none.
      published_models: by arm; in the file each is in a field named after the arm.
      variant_test_slices: where studies are set side by side, the test slice of each.
      shrunk: {"from": typical [height, width], "to": [height, width] as arms read them, "count"} of
        images that were made smaller; None if none was.
    """

    name: Text = None
    title: Text = None
    modality: Text = None
    data_noun: Text = None
    classes: list[str] | None = None
    target: Text = None
    majority_rate: Number = None
    metric: Text = None
    item_group: Text = None
    train: Number = None
    test: Number = None
    description: Text = None
    licence: Text = None
    fingerprint: Text = None
    split: Text = None
    published_models: dict[str, PublishedWeights] = {}
    test_slice: TestSlice | None = None
    variant_test_slices: dict[str, TestSlice] = {}
    shrunk: dict[str, Any] | None = None

    @property
    def has_one_class(self) -> bool:
        """Whether every item has one of `classes`, so that always naming one has an accuracy."""
        return bool(self.classes) and self.target is None


class Row(msgspec.Struct):
    """Base class of results rows, with their keys: task, arm and number of labels."""

    task: Text = None
    arm: Text = None
    num_labels: Number = None


class SeedScore(Row):
    """Score of an arm on a task with one number of labels and one seed.

    Attributes:
      value: the task's metric. The other scores are None where they do not apply.
      nll, ece: mean negative log-likelihood in nats; expected calibration error, 0 to 1.
      still_improving: whether the last doubling of updates still gained validation.
      at_edge: hyper-parameters chosen at the edge of their grid.
      constant_prediction: whether all test items got one answer.
      cpu_seconds: process CPU time of search, fit and prediction.
      compile_seconds, feature_cpu_seconds: of compilation and of a frozen model's features.
    """

    modality: Text = None
    seed: Number = None
    metric: Text = None
    value: Number = None
    trials: list | None = None
    balanced_accuracy: Number = None
    macro_f1: Number = None
    mean_absolute_error: Number = None
    nll: Number = None
    ece: Number = None
    still_improving: bool | None = None
    at_edge: list[str] | None = None
    constant_prediction: bool | None = None
    cpu_seconds: Number = None
    compile_seconds: Number = None
    feature_cpu_seconds: Number = None


class DifferenceVariance(msgspec.Struct):
    """Variance of a score difference by source (runs, test items); scores are in 0..1."""

    run: Number = None
    item: Number = None


class Difference(Row):
    """A score difference between two arms (scores in 0..1), with its 95% interval.

    Attributes:
      p_adjusted: p, corrected for the number of comparisons.
      p_equivalence: of two one-sided tests that the difference is within `margin` (in 0..1).
      detectable: smallest difference that the design would have seen with a power of 80%.
      loser_improving: whether the arm that is behind was still improving when its training ended;
        `parse` finds it from the cells.
    """

    difference: Number = None
    low: Number = None
    high: Number = None
    p_adjusted: Number = None
    p_equivalence: Number = None
    margin: Number = None
    detectable: Number = None
    loser_improving: bool = False


class Comparison(Difference):
    """A score difference of an arm from a baseline on one task, with its p-values.

    Attributes:
      num_labels: None for the mean over all label budgets.
      baseline, rival: an arm; of `BEST_RIVAL`, `rival` is the one that the figures are against.
      checkpoints: how many pretrained checkpoints it is over.
      groups: how many groups the test items fall into; None if they are independent.
      seeds_to_decide, items_to_decide: how many of each would decide it; None if it is decided, or
        if more would not decide it.
      primary: whether it was declared as primary before the results were seen.
    """

    baseline: Text = None
    rival: Text = None
    p: Number = None
    seeds: Number = None
    checkpoints: Number = None
    items: Number = None
    groups: Number = None
    variance: DifferenceVariance | None = None
    seeds_to_decide: Number = None
    items_to_decide: Number = None
    primary: bool = False


class Multiplier(msgspec.Struct):
    """How many times as many labels a rival needs to match an arm, with its lower end."""

    value: Number = None
    low: Number = None


class Decision(Difference):
    """What to do on a task at one number of labels.

    The difference is that of `best_pretrained` to `rival`, the arm without pretraining that is
    hardest to be ahead of; mostly the `best_rival`.

    Attributes:
      best_arm, best_value: over all arms.
      published_value: score of the published weights, None if they were not run.
      label_multiplier: of `best_pretrained` against each rival.
      smallest_multiplier: the smallest of them; None where a curve ends before it.
      verdict: "pretrain", "do not", "no clear difference" or "still improving".
    """

    best_arm: Text = None
    best_value: Number = None
    published_value: Number = None
    best_pretrained: Text = None
    best_rival: Text = None
    rival: Text = None
    label_multiplier: dict[str, Multiplier] = {}
    smallest_multiplier: Number = None
    verdict: Text = None


class LearningCurve(Row):
    """Fitted power law of an arm's error: asymptote + scale * labels ** -exponent."""

    asymptote: Number = None
    scale: Number = None
    exponent: Number = None


class Crossing(Row):
    """Number of labels at which an arm's fitted learning curve falls below a rival's.

    Attributes:
      labels: None if beyond what was measured, or if the arm is never ahead.
      status: "crosses", "ahead to the end", "never ahead" or "unclear".
    """

    rival: Text = None
    labels: Number = None
    low: Number = None
    high: Number = None
    status: Text = None


class PretrainedModel(msgspec.Struct):
    """A pretraining run, named task/arm/seed; `stopped_because` "steps", "flat" or "time"."""

    name: str = ""
    stopped_because: Text = None


class LabelEfficiency(Row):
    """Labels that a rival needs to match an arm's score, over the arm's labels.

    Attributes:
      label_multiplier: a bound where `censored` is "above" or "below".
      steps_to_scratch_quality: of a pretrained arm against scratch: optimizer steps after which its
        chosen setting reached the best validation score of scratch with the same labels, the median
        over seeds; None where fewer than half of the seeds got there. Older files: at the largest
        label budget only.
    """

    rival: str = "scratch"
    label_multiplier: Number = None
    low: Number = None
    high: Number = None
    censored: Text = None
    steps_to_scratch_quality: Number = None


class ComputeCost(Row):
    """FLOPs and CPU seconds of an arm on a task, and its break-even number of tasks.

    Attributes:
      pretrain_cpu_seconds: of one checkpoint. Older files have `pretrain_seconds` on the wall.
      adapt_cpu_seconds: search, fit and prediction of one seed at `num_labels` labels.
      label_cost, labels_saved, money_saved: price of a label (--label_cost), labels saved against
        the best rival, and what they are worth less the cost of computing.
    """

    pretrain_flops: Number = None
    pretrain_seconds: Number = None
    pretrain_cpu_seconds: Number = None
    adapt_flops: Number = None
    adapt_seconds: Number = None
    adapt_cpu_seconds: Number = None
    label_cost: Number = None
    labels_saved: Number = None
    money_saved: Number = None
    break_even_tasks: Number = None
    note: Text = None


class Decontamination(Row):
    """Numbers of near-duplicates of test items found and removed in an arm's pretraining data."""

    method: Text = None
    checked: Number = None
    found: Number = None
    removed: Number = None


class Curve(Row):
    """A curve of `kind` "pretrain": the loss over tokens, of training and of validation."""

    kind: Text = None
    unit: Text = None
    tokens: Series = None
    value: Series = None
    validation_tokens: Series = None
    validation: Series = None
    share: Number = None


class Sample(Row):
    """A text, image, sound or clip that a pretrained model generated; files are in base64."""

    prompt: Text = None
    text: Text = None
    caption: Text = None
    png: Text = None
    wav: Text = None
    gif: Text = None

    @property
    def is_still(self) -> bool:
        """Whether it is a picture alone, without sound or movement."""
        return self.png is not None and self.wav is None and self.gif is None


class Mistake(Row):
    """A test item that an arm misclassifies, with the baseline's prediction."""

    truth: Text = None
    prediction: Text = None
    baseline_prediction: Text = None
    text: Text = None
    png: Text = None


class MethodCost(Row):
    """Row of results: an adaptation method's trained parameters, memory, seconds and accuracy."""

    method: Text = None
    parameters_trained: Number = None
    bytes_state: Number = None
    bytes_program: Number = None
    seconds: Number = None
    accuracy: Number = None


class Method(msgspec.Struct):
    """The name and description of an adaptation method."""

    name: str
    description: str = ""


class ChangedInstructionScore(Row):
    """An instruction-tuned model's score with a trained, unseen, missing or wrong instruction."""

    condition: Text = None
    metric: Text = None
    value: Number = None
    answers_of_this_task: Number = None


class AmortizedCost(Row):
    """A results row: an arm's total cost of `num_tasks` tasks in FLOPs, seconds and parameters."""

    num_tasks: Number = None
    flops: Number = None
    seconds: Number = None
    parameters: Number = None


class BreakEven(msgspec.Struct):
    """Numbers of tasks (not labels) from which one arm's total cost is below another's.

    Attributes:
      never: tasks left out, each with the arm that never reaches the other's quality on it.
      flops, seconds, parameters: first number of tasks from which on the arm is cheaper.
      flops_until, seconds_until, parameters_until: last number of tasks at which it is cheaper.
    """

    arm: Text = None
    baseline: Text = None
    tasks: list[str] | None = None
    never: list[Row] | None = None
    flops: Number = None
    flops_until: Number = None
    seconds: Number = None
    seconds_until: Number = None
    parameters: Number = None
    parameters_until: Number = None


class AblationRow(Difference):
    """A variant's score on one task, and its difference from the baseline variant.

    Attributes:
      values: the metric by seed.
      level: what tells the variant apart, a number or a name.
      variant: its name.
      changed_modality: whose weight in the mixture `level` multiplies, where that is varied.
      shares: share of rows by modality, where a mixture is varied.
      datasets: what was pretrained on, by task, where that is varied.
      examples, characters: size of the pretraining corpus.
      tokens: seen in pretraining.
      parameters: of the layers.
    """

    modality: Text = None
    metric: Text = None
    value: Number = None
    values: list[Integer | float] = []
    level: Integer | float | str | None = None
    variant: Text = None
    changed_modality: Text = None
    shares: dict[str, Integer | float] | None = None
    datasets: dict[str, Text] | None = None
    examples: Number = None
    characters: Number = None
    tokens: Number = None
    parameters: Number = None


class SurfaceTerm(msgspec.Struct):
    """One term of a fitted surface: scale x (value / center)^-exponent; None where not fitted."""

    axis: Text = None
    center: Number = None
    scale: Number = None
    exponent: Number = None
    low: Number = None
    high: Number = None


class ScalingFit(Row):
    """A fitted surface of an arm's error over model size, pretraining tokens and labels."""

    floor: Number = None
    r2: Number = None
    points: Number = None
    terms: list[SurfaceTerm] = []


class GroupScore(Row):
    """An arm's mean score on one group of test items, with its 95% interval."""

    group: Text = None
    items: Number = None
    value: Number = None
    low: Number = None
    high: Number = None


class AblationPlotSettings(msgspec.Struct):
    """Plot settings of an ablation: `kind` of figure, the row key on its axis, and its label."""

    kind: str
    field: str
    label: str = ""


class AblationResults(msgspec.Struct):
    """Results of a single ablation on all tasks; `baseline` names the reference variant."""

    name: str
    title: str
    figure: AblationPlotSettings
    baseline: str = ""
    rows: list[AblationRow] = []


class Claim(msgspec.Struct):
    """A claim: on each task an arm beats a baseline or is within `margin` points of it."""

    arm: str
    baseline: str
    text: str
    margin: Number = None


class Results(msgspec.Struct):
    """Parsed and validated contents of a study's results.json."""

    experiment: str = ""
    config: dict[str, Any] = {}
    config_hash: str = ""
    versions: dict[str, Any] = {}
    device: dict[str, Any] = {}
    xla_flags: str = ""
    attention: dict[str, Any] = {}
    arms: list[Arm] = []
    claims: list[Claim] = []
    pretrained: list[PretrainedModel] = []
    tasks: list[Task] = []
    cells: list[SeedScore] = []
    comparisons: list[Comparison] = []
    decisions: list[Decision] = []
    learning_curves: list[LearningCurve] = []
    crossings: list[Crossing] = []
    label_efficiency: list[LabelEfficiency] = []
    compute_cost: list[ComputeCost] = []
    decontamination: list[Decontamination] = []
    curves: list[Curve] = []
    samples: list[Sample] = []
    mistakes: list[Mistake] = []
    methods: list[MethodCost] = []
    instruction_following: list[ChangedInstructionScore] = []
    amortized_cost: list[AmortizedCost] = []
    break_even: list[BreakEven] = []
    adaptation_methods: list[Method] = []
    ablations: list[AblationResults] = []
    scaling_fits: list[ScalingFit] = []
    group_scores: list[GroupScore] = []

    @property
    def smoke_test(self) -> bool:
        """Whether it was run with the quick profile, too small to conclude anything from."""
        return is_smoke_test(self.config)

    @property
    def setting(self) -> str:
        """The setting whose values are compared side by side; "" in a study that is not that."""
        return self.experiment.removeprefix("ablate ") if "ablate " in self.experiment else ""

    def arm(self, name: str | None) -> Arm:
        """Returns the arm with this name."""
        return next((arm for arm in self.arms if arm.name == name), Arm(name or ""))

    @property
    def published_arms(self) -> list[str]:
        """The names of arms of published weights, which are told apart from own pretraining."""
        return [arm.name for arm in self.arms if arm.is_published]

    def arm_names(self, names: Iterable[str | None]) -> list[str]:
        """Returns the distinct names, in the order of `arms`."""
        given = set(names)
        return [arm.name for arm in self.arms if arm.name in given]

    def runs(self, task: str | None, arm: str | None, num_labels: Number) -> list[SeedScore]:
        """Returns the cells of an arm on a task, by seed; with None those of all label budgets."""
        return [
            cell
            for cell in self.cells
            if (cell.task, cell.arm) == (task, arm) and num_labels in (None, cell.num_labels)
        ]

    def improving_budgets(self, task: str | None, arm: str | None) -> list[Number]:
        """Returns the label budgets at which most runs of an arm were still improving."""
        marks: dict[Number, list[bool]] = {}
        for cell in self.runs(task, arm, None):
            marks.setdefault(cell.num_labels, []).append(bool(cell.still_improving))
        return [budget for budget, each in marks.items() if sum(each) * 2 >= len(each)]

    def num_checkpoints(self, task: str | None) -> int:
        """Returns how many pretrained checkpoints the intervals of a task are over, at least 1."""
        numbers = [row.checkpoints for row in self.comparisons if row.task == task]
        return int(max((number for number in numbers if number), default=1))

    def task_names(self) -> list[str]:
        """Returns the tasks in declared order, then in order of first appearance."""
        rows = [row.task for row in (*self.cells, *self.comparisons)]
        return list(dict.fromkeys(name for name in (*(t.name for t in self.tasks), *rows) if name))

    def task(self, name: str | None) -> Task:
        """Returns the declared task with this name, or a task inferred from its cells."""
        declared = next((task for task in self.tasks if task.name == name), Task(name))
        cells = (cell for cell in self.cells if cell.task == name)
        first = next(cells, SeedScore())
        metric, modality = declared.metric or first.metric, declared.modality or first.modality
        title = declared.title or capitalize_first(name or "all tasks")
        return msgspec.structs.replace(
            declared, title=title, metric=metric or "accuracy", modality=modality
        )


def is_smoke_test(config: dict[str, Any]) -> bool:
    """Returns whether a config, or the first of those of variants side by side, is a smoke test."""
    variants = [each for each in config.values() if isinstance(each, dict)]
    return bool(config.get("smoke_test")) or any(each.get("smoke_test") for each in variants)


def parse(results: Any) -> Results:
    """Validates the parsed JSON of a results.json and returns it as a `Results` record.

    Text is made printable (`sanitize`), numbers that are not finite become None, and every arm that
    occurs anywhere gets an entry in `arms`, with a color, line and marker of its own.

    Args:
      results: the parsed JSON, of schema 1 or 2. It is not changed.

    Raises:
      UserError: another schema, or a field of the wrong type; names the field.
    """
    content = {name: value for name, value in upgrade(results).items() if value is not None}
    try:
        content = _with_published_models(_with_ablation_rows(sanitize(content)))
        parsed = msgspec.convert(content, Results)
    except (msgspec.ValidationError, OverflowError) as error:
        raise UserError(f"results: {_explain(str(error))}") from error
    parsed.arms = _complete_arms(parsed)
    for row in parsed.comparisons:
        loser = row.arm if (row.difference or 0.0) < 0 else row.baseline
        losers = [loser]
        if loser == BEST_RIVAL:
            losers = [arm.name for arm in parsed.arms if arm.pretrained_on is None]
        budgets = [n for arm in losers for n in parsed.improving_budgets(row.task, arm)]
        row.loser_improving = bool(budgets) and row.num_labels in (None, *budgets)
    return parsed


def _with_ablation_rows(content: dict[str, Any]) -> dict[str, Any]:
    """Puts the rows of each ablation, a section of its own in the file, into its entry."""
    try:
        ablations = [
            entry
            | {
                "rows": [
                    row | {"level": row.get(entry["figure"]["field"])}
                    for row in content.get(entry["name"], [])
                ]
            }
            for entry in content.get("ablations", [])
        ]
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(
            "results: ablations: expected entries with a name, a title and a figure, and a section "
            "of rows for each name"
        ) from error
    return content | {"ablations": ablations}


def _with_published_models(content: dict[str, Any]) -> dict[str, Any]:
    """Gathers what a task says of each arm of published weights, in a field named after the arm."""
    arms, tasks = (
        [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        for rows in (content.get("arms"), content.get("tasks"))
    )
    names = [arm.get("name") for arm in arms if arm.get("pretrained_on") == PUBLISHED_DATA]
    for task in tasks:  # a copy that `sanitize` made
        task["published_models"] = {
            name: task[name]
            for name in names
            if isinstance(name, str) and task.get(name) is not None
        }
    return content


def _explain(message: str) -> str:
    """`cells[3].value: expected a number, got str` from msgspec's message."""
    reason, _, path = message.partition(" - at ")
    for name, words in {
        "int | float | null": "a number",
        "int | float": "a number",
        "str | null": "a text",
        "str": "a text",
        "array": "a list",
        "array | null": "a list",
    }.items():
        reason = reason.replace(f"Expected `{name}`", f"expected {words}")
    reason = reason.replace("`", "").replace("Expected object", "expected an object")
    where = path.strip("`").removeprefix("$").removeprefix(".")
    return f"{where}: {reason}" if where else reason


def capitalize_first(text: str) -> str:
    """Returns the text with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def sanitize(value: Any) -> Any:
    """Returns a JSON value with unprintable characters replaced and non-finite numbers as None.

    Text that a model wrote must not move a terminal's cursor or break a font.
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {sanitize(str(key)): sanitize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sanitize(item) for item in value]
    return value


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

# For arms without a look of their own: Okabe and Ito (2008) and Tol, safe for color-blind readers.
# Vermillion is kept for losses.
_COLORS = (
    *("#000000", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#8A7700", "#E69F00"),
    *("#882255", "#44AA99", "#332288", "#777777"),
)
_LINESTYLES = ("-", "--", "-.", ":")
_MARKERS = ("s", "o", "^", "D", "v", "P", "X", "*", "<", ">", "h")


def _complete_arms(results: Results) -> list[Arm]:
    """The declared arms, then all others that occur, each with a valid look.

    An arm without a description counts as pretrained unless others are compared with it.
    """
    sections = (
        *(results.cells, results.comparisons, results.label_efficiency, results.compute_cost),
        *(results.curves, results.samples, results.amortized_cost, results.break_even),
    )
    rows = list(itertools.chain(*sections))
    baselines = {getattr(row, "baseline", None) for row in rows}
    arms = {arm.name: arm for arm in results.arms}
    names = {str(name) for name in {row.arm for row in rows} | baselines if name} - {BEST_RIVAL}
    for name in sorted(names):
        if name not in arms:
            arms[name] = Arm(
                name,
                title=f"arm {name}",
                description="The results do not describe this arm: see the configuration.",
                pretrained_on=None if name in baselines else "not stated",
                linestyle=":",
            )
    used = {arm.color for arm in arms.values()}
    colors = itertools.cycle([color for color in _COLORS if color not in used] or _COLORS)
    markers = itertools.cycle([m for m in _MARKERS if m not in {a.marker for a in arms.values()}])
    _tell_variants_apart(list(arms.values()))
    for arm in arms.values():
        arm.title = arm.title or arm.name
        if not re.fullmatch("#[0-9a-fA-F]{6}", arm.color or ""):
            arm.color = next(colors)
        known = isinstance(arm.linestyle, tuple) or arm.linestyle in _LINESTYLES
        arm.linestyle = arm.linestyle if known else "-"
        if arm.marker not in _MARKERS:
            arm.marker = next(markers, "o")
    return list(arms.values())


def _tell_variants_apart(arms: Sequence[Arm]) -> None:
    """Gives arms of one look, the variants of an arm, colors of their own; lines and marks stay.

    The n-th variant of every arm has the same color.
    """
    groups: dict[tuple, list[Arm]] = {}
    for arm in arms:
        if arm.color is not None:
            groups.setdefault((arm.color, arm.linestyle, arm.marker), []).append(arm)
    used = {group[0].color for group in groups.values() if len(group) == 1}
    colors = [color for color in _COLORS if color not in used]
    for group in groups.values():
        for arm, color in zip(group, itertools.cycle(colors)):
            arm.color = color if len(group) > 1 else arm.color


def upgrade(results: Any) -> dict[str, Any]:
    """Returns the content of a results.json converted to schema 2, or as it is if already so.

    Raises:
      UserError: not a mapping of schema 1 or 2.
    """
    found = results.get("schema") if isinstance(results, dict) else type(results).__name__
    if found == SCHEMA:
        return results
    if found == 1:
        return schema_1.upgrade(results) | {"schema": SCHEMA}
    raise UserError(f"results: expected a mapping of schema 1 or {SCHEMA}, found {found!r}")
