"""Runs a claim in a folder: config.json, the measurement, results.json, predictions.csv.xz."""

from __future__ import annotations

import csv
import dataclasses
import io
import lzma
import pathlib
from typing import Any

from fm.files import atomic_path, read_checked_json, write_checked_json
from fm.study import run_dir
from fm.study.claims.registry import FULL, NOT_JUDGED, QUICK, Claim, Verdict, check_profile
from fm.study.runner import run_study

EXPERIMENT = "claims"
MEASURED_FILE, COLLECTED_FILE = "measured.json", "predictions.csv.xz"
# What the predictions say of a test item, and of the run that a prediction is of.
_OF_ITEM = ("task", "row", "item", "truth", "group")
_OF_RUN = ("arm", "num_labels", "seed")


@dataclasses.dataclass(frozen=True)
class ClaimStudy:
    """A claim in a profile, as a study for `fm.study.runner.run_study`.

    Attributes:
      claim: the claim.
      profile: see `fm.study.claims.registry.PROFILES`.
      data_dir: folder of prepared TFDS data sets; None for the user's cache.
    """

    claim: Claim
    profile: str
    data_dir: str | None = None
    experiment: str = EXPERIMENT

    def __post_init__(self):
        check_profile(self.claim, self.profile)

    def to_dict(self) -> dict[str, Any]:
        """Returns the config: the criterion and all settings, as JSON."""
        config = {
            "experiment": EXPERIMENT,
            "claim": self.claim.name,
            "profile": self.profile,
            "criterion": list(self.claim.criterion),
            "settings": self.claim.settings(self.profile, self.data_dir),
        }
        return config | ({"smoke_test": True} if self.profile == QUICK else {})

    def load(self) -> None:
        """Does nothing: each study of the claim loads its own data."""

    def run(self, out_dir: pathlib.Path) -> dict[str, Any]:
        """Measures what is missing; returns the claim, what was measured and the verdict."""
        path = out_dir / MEASURED_FILE
        if path.exists():
            measured = read_checked_json(path)
        else:
            measured = self.claim.measure(self.profile, out_dir, self.data_dir)
            write_checked_json(path, measured)
        collect_predictions(out_dir)
        return {
            "claim": self.claim.to_dict(),
            "profile": self.profile,
            "measured": measured,
            "verdict": judged(self.claim, self.profile, measured).to_dict(),
        }


def judged(claim: Claim, profile: str, measured: dict[str, Any]) -> Verdict:
    """Returns a claim's verdict; `NOT_JUDGED` with the figures in any profile but the full one."""
    verdict = claim.judge(measured)
    return verdict if profile == FULL else dataclasses.replace(verdict, verdict=NOT_JUDGED)


def run_claim(study: ClaimStudy, out_dir: pathlib.Path) -> dict[str, Any]:
    """Runs or resumes a claim in `out_dir`; returns its results."""
    return run_study(study, out_dir)


def collect_predictions(out_dir: pathlib.Path) -> pathlib.Path | None:
    """Writes all predictions below `out_dir` into one compressed table; returns its path.

    A row is a test item with its truth; a column is a run, named by its study, arm, labels and
    seed. Probabilities are left out: no claim is judged by them. None if there are no predictions.
    """
    found = sorted(out_dir.rglob(run_dir.PREDICTIONS_FILE))
    if not found:
        return None
    items: dict[tuple[str, ...], dict[str, str]] = {}
    runs: dict[str, None] = {}
    for path in found:
        study = path.parent.relative_to(out_dir).parts
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                run = "/".join((*study, *(row[name] for name in _OF_RUN)))
                about = tuple(row[name] for name in _OF_ITEM)
                items.setdefault(about, {})[run] = row["prediction"]
                runs[run] = None
    target = out_dir / COLLECTED_FILE
    with (
        atomic_path(target) as partial,
        lzma.open(partial, "wb") as binary,
        io.TextIOWrapper(binary, encoding="utf-8", newline="") as text,
    ):
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*_OF_ITEM, *runs])
        for about, predictions in items.items():
            table.writerow([*about, *(predictions.get(run, "") for run in runs)])
    return target
