"""Published claims: what a paper says, the protocol here, and the rule that judges the outcome.

To add a claim, pass a `Claim` to `register_claim`; docs/claims.md shows one in full. The rule
(`Claim.criterion`) is part of a run's config: a folder that was begun with another rule is refused,
so a rule is never changed to fit an outcome.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from fm.errors import UserError
from fm.study.config import StudyConfig

Row = dict[str, Any]
# "quick" checks that everything runs; "pilot" scores a development part of the training split, to
# find settings that can show something; "full" is judged.
QUICK, PILOT, FULL = "quick", "pilot", "full"
PROFILES = (QUICK, PILOT, FULL)
REPRODUCED = "reproduced in shape"
NOT_REPRODUCED = "not reproduced"
UNDECIDED = "undecided at this power"
NOT_JUDGED = "too small to judge"
# Level of the tests of equivalence.
_LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Paper:
    """The paper that makes a claim, or one that contradicts it.

    Attributes:
      authors: as cited, such as "He, Girshick and Dollár".
      title: of the paper.
      year: of the version read.
      venue: conference, journal or preprint server.
      link: where it can be read.
    """

    authors: str
    title: str
    year: int
    venue: str
    link: str


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper.

    Attributes:
      text: a sentence with the figure.
      where: table, figure or section of the paper, in whose text the figure was checked.
    """

    text: str
    where: str


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition of a criterion, as measured.

    Attributes:
      text: the condition, with its threshold.
      holds: True or False where the intervals decide it, None where they do not.
      figures: what was measured, with its interval, in words.
    """

    text: str
    holds: bool | None
    figures: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came out: one of the four verdicts, with the conditions that lead to it.

    Attributes:
      verdict: `REPRODUCED`, `NOT_REPRODUCED`, `UNDECIDED` or `NOT_JUDGED`.
      conditions: all that the criterion names.
      figure: our figure to put beside the paper's, with its interval.
      notes: further sentences, such as what a rival explanation predicts.
    """

    verdict: str
    conditions: tuple[Condition, ...]
    figure: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Row:
        """Returns the verdict as JSON."""
        return dataclasses.asdict(self) | {
            "conditions": [*map(dataclasses.asdict, self.conditions)]
        }


def verdict_of(conditions: Sequence[Condition], figure: str, notes: Sequence[str] = ()) -> Verdict:
    """Returns the verdict of conditions that must all hold.

    One that is clearly broken decides against; else one that is undecided leaves all undecided.
    """
    verdicts = {True: REPRODUCED, False: NOT_REPRODUCED, None: UNDECIDED}
    held = all_hold(each.holds for each in conditions)
    return Verdict(verdicts[held], tuple(conditions), figure, tuple(notes))


def is_above(low: float, high: float, bound: float = 0.0) -> bool | None:
    """Returns whether an interval lies above a bound; False if below, None if it holds it."""
    return True if low > bound else False if high < bound else None


def is_ahead(row: Row) -> bool | None:
    """Returns whether a difference is above 0, its p adjusted for all others.

    Args:
      row: of `fm.study.comparisons.difference_rows`.

    Returns:
      True if the interval is above 0 and the adjusted p below 0.05; False if the interval is below
      0, or the difference is shown to be within the margin of equivalence; else None.
    """
    if row["low"] > 0 and row["p_adjusted"] < _LEVEL:
        return True
    return False if row["high"] < 0 or row["p_equivalence"] < _LEVEL else None


def all_hold(held: Iterable[bool | None]) -> bool | None:
    """Returns True if all are, False if one is False, else None."""
    values = list(held)
    return True if all(values) else False if False in values else None


def in_points(row: Row) -> str:
    """Returns a difference with its interval in percentage points, such as "+1.2 [0.4, 2.0]"."""
    difference, low, high = (100 * row[name] for name in ("difference", "low", "high"))
    return f"{difference:+z.1f} [{low:z.1f}, {high:z.1f}]"


def is_within(row: Row, margin: float) -> bool | None:
    """Returns whether a difference is within a margin, by two one-sided tests.

    Args:
      row: with `low`, `high`, `margin` and `p_equivalence`, as of
        `fm.evaluation.statistics.Difference`.
      margin: must be the row's.

    Returns:
      True if both tests reject; False if the interval lies outside the margin; else None.
    """
    if row["margin"] != margin:
        raise ValueError(f"a test of equivalence within {row['margin']}, not {margin}")
    if row["p_equivalence"] < _LEVEL:
        return True
    return False if row["low"] > margin or row["high"] < -margin else None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A published claim with its protocol here.

    Attributes:
      name: as in --claim.
      statement: the claim, in a sentence.
      paper: that makes it.
      figures: the paper's own figures.
      protocol: what is run here in the full profile, and how it differs from the paper.
      criterion: the conditions of "reproduced in shape", written before the full run.
      minutes: of each profile on two cores of a CPU; a profile that is not in it does not exist.
      settings: profile and data folder to everything that the outcome depends on, as JSON; it
        enters config.json.
      measure: profile, output folder and folder of prepared TFDS data sets (None for the user's
        cache) to what was measured, as JSON. Interrupted and called again, it goes on.
      judge: of what was measured, the verdict.
      plot: draws what was measured into an empty figure.
      contradicted_by: papers that say otherwise.
      studies: profile and data folder to the studies by name, if the claim is measured by those
        alone; --dry_run estimates their time.
      figure_height: in inches.
      tfds_name: of the data set that is read from the folder of prepared ones, if any.
    """

    name: str
    statement: str
    paper: Paper
    figures: tuple[PaperFigure, ...]
    protocol: str
    criterion: tuple[str, ...]
    minutes: Mapping[str, float]
    settings: Callable[[str, str | None], Row]
    measure: Callable[[str, pathlib.Path, str | None], Row]
    judge: Callable[[Row], Verdict]
    plot: Callable[[Row, Figure], None]
    contradicted_by: tuple[Paper, ...] = ()
    studies: Callable[[str, str | None], Mapping[str, StudyConfig]] | None = None
    figure_height: float = 3.2
    tfds_name: str | None = None

    def to_dict(self) -> Row:
        """Returns what a report says of the claim, as JSON."""
        names = ("name", "statement", "protocol", "criterion", "figure_height")
        return {name: getattr(self, name) for name in names} | {
            "criterion": list(self.criterion),
            "paper": dataclasses.asdict(self.paper),
            "contradicted_by": [dataclasses.asdict(each) for each in self.contradicted_by],
            "figures": [dataclasses.asdict(each) for each in self.figures],
        }


CLAIMS: dict[str, Claim] = {}


def register_claim(claim: Claim) -> None:
    """Adds a claim to the registry, or replaces the one with the same name."""
    CLAIMS[claim.name] = claim


def find_claim(name: str | None) -> Claim:
    """Returns the registered claim of this name.

    Raises:
      UserError: there is none.
    """
    if name not in CLAIMS:
        raise UserError(f"--claim={name or ''}: must be one of {', '.join(CLAIMS)}")
    return CLAIMS[name]


def check_profile(claim: Claim, profile: str) -> None:
    """Raises UserError if a claim has no such profile."""
    if profile not in claim.minutes:
        raise UserError(f"--profile={profile}: {claim.name} has only {', '.join(claim.minutes)}")
