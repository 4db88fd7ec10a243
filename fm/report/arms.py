"""The arms of a comparison: their order, what each was fed, and how each is drawn everywhere."""

import dataclasses

LineStyle = str | tuple[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """How one arm is named, explained and drawn.

    Attributes:
        name: the name in results.json.
        fed: one sentence on what the arm learned from.
        subject: the arm as the subject of a sentence; `{data}` is the task's kind of data.
        colour: hex colour; the set is Okabe and Ito's (2008), safe for colour-blind readers,
            with its yellow darkened to be seen on white and its vermillion kept for losses.
        line: a matplotlib line style.
        marker: a matplotlib marker.
    """

    name: str
    fed: str
    subject: str
    colour: str
    line: LineStyle
    marker: str


_ARMS = (
    Arm(
        "scratch",
        "Random initial weights, trained on the labelled examples only.",
        "training from scratch",
        "#000000",
        (0, (5, 2)),
        "s",
    ),
    Arm(
        "self",
        "Pretrained on the task's own data without its labels, "
        "then trained on the same labelled examples.",
        "pretraining on its own unlabelled {data}",
        "#0072B2",
        "-",
        "o",
    ),
    Arm(
        "upstream",
        "Pretrained on other data of the same kind, then trained on the same labelled examples.",
        "pretraining on other {data}",
        "#009E73",
        "-",
        "^",
    ),
    Arm(
        "joint",
        "Pretrained on every kind of data at once, then trained on the same labelled examples.",
        "pretraining on all kinds of data together",
        "#CC79A7",
        "-",
        "D",
    ),
    Arm(
        "instructed",
        "One model taught to follow written instructions over many tasks, then asked this one.",
        "instruction training",
        "#56B4E9",
        (0, (7, 1, 1, 1)),
        "v",
    ),
    Arm(
        "imported",
        "Published weights, pretrained elsewhere, then trained on the same labelled examples; "
        "they may have seen these test items before.",
        "starting from published weights",
        "#8A7700",
        "-",
        "P",
    ),
    Arm(
        "classical",
        "No neural network: word counts, pixels or sound statistics with logistic regression.",
        "the classical baseline",
        "#E69F00",
        (0, (1, 1)),
        "X",
    ),
)
_BY_NAME = {arm.name: arm for arm in _ARMS}
_BASELINES = ("scratch", "classical")

BETTER, WORSE = "#0072B2", "#D55E00"


def describe(name: str) -> Arm:
    """The arm of that name; one this file does not know is drawn in grey and says so."""
    return _BY_NAME.get(name) or Arm(
        name,
        "Not one of the named arms: see the configuration.",
        f"arm {name}",
        "#777777",
        ":",
        "*",
    )


def ordered(names: set[str]) -> list[str]:
    """The names in the report's fixed order, unknown ones last by alphabet."""
    known = [arm.name for arm in _ARMS if arm.name in names]
    return known + sorted(names - set(known))


def pretrained(names: set[str]) -> list[str]:
    """Those of the names that learned something before the labels came, in the fixed order."""
    return [name for name in ordered(names) if name not in _BASELINES]
