"""The rows of a results.json as typed records; `fm.report.schema` has the whole file.

Every field may be absent: it is then None, or empty.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

# Larger whole numbers are no number of anything.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Number = Integer | float | None
Text = str | None
Series = list[Number] | None


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
