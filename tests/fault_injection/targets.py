"""What is killed: commands, and what of their output has to be the same to the bit."""

import csv
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from fm import files
from fm.study.run_dir import without_timings
from fm.training import load_params, metric_writer, params_digest
from tests.fault_injection import tiny_recipes
from tests.study.helpers_study import texts
from tests.study.text_quality.helpers_text_quality import write_domains

_JSON = ("results.json", "summary.json", "config.json")
_KEPT = ("cells", "samples", "measures", "models")  # folders
PACE = ("tokens_per_second", "gemm_utilization")


@dataclasses.dataclass(frozen=True)
class Target:
    """A command.

    Attributes:
      name: in the table.
      experiment: as in `python -m experiments.NAME`.
      flags: without --out; of the folder where data may lie.
    """

    name: str
    experiment: str
    flags: Callable[[Path], list[str]]

    def start(self, folder: Path, out: Path, said: Path, room: int | None = None) -> BaseProcess:
        """Starts it, data in `folder`, output to `out`; see `tiny_recipes.start`."""
        return tiny_recipes.start(
            self.experiment, [*self.flags(folder), f"--out={out}"], said, room
        )


def reviews(folder: Path) -> Path:
    """A CSV of 120 texts in two classes, made if it is not there."""
    path = folder / "reviews.csv"
    if not path.exists():
        inputs, labels = texts(120, 0)
        with path.open("w", newline="") as file:
            named = zip(inputs, np.array(["bad", "good"])[labels], strict=True)
            csv.writer(file).writerows([("text", "label"), *named])
    return path


def _mixture(folder: Path) -> list[str]:
    path = reviews(folder)
    return [
        f"--dataset={path},digits",
        f"--mixture={path}:2,digits:1",
        "--captioned=digits",
        "--checkpoint_every=60",
    ]


def _unification(folder: Path) -> list[str]:
    return [
        f"--tasks={reviews(folder)},digits",
        *(
            "--label_budgets=20",
            "--seeds=2",
            "--max_test_items=20",
            "--steps=200",
            "--profile=quick",
        ),
    ]


def _domains(folder: Path) -> list[str]:
    paths = [folder / "films.jsonl", folder / "manuals.jsonl"]
    if not all(path.exists() for path in paths):
        write_domains(folder)
    return [f"--domains={','.join(map(str, paths))}", "--profile=quick"]


_STUDY = [
    "--tasks=digits",
    "--arms=scratch,in_domain,classical",
    "--label_budgets=20,50",
    "--seeds=2",
]
TARGETS = {
    each.name: each
    for each in (
        Target(
            "pretraining",
            "pretrain",
            # Texts share rows, and it stops early, at about 500 steps.
            lambda folder: [
                *(
                    f"--dataset={reviews(folder)}",
                    "--objective=causal_lm:1",
                    "--checkpoint_every=60",
                ),
                *("--steps=1200", "--validate_every=10", "--early_stopping_patience=5"),
            ],
        ),
        Target("mixture", "pretrain", _mixture),
        Target("adaptation", "adapt", lambda _: ["--dataset=digits", "--labels=20"]),
        Target("comparison", "compare", lambda _: [*_STUDY, "--profile=quick"]),
        Target(
            "grid",
            "compare",
            lambda _: [
                *_STUDY[:-2],
                "--label_budgets=20",
                "--seeds=2",
                "--pretrain_seeds=2",
                "--profile=quick",
            ],
        ),
        Target(
            "ablation",
            "ablate",
            lambda _: [
                *_STUDY[:1],
                "--arms=scratch,in_domain",
                "--label_budgets=20",
                "--seeds=2",
                "--profile=quick",
                "--field=objective.mask_ratio",
                "--values=0.3,0.6",
            ],
        ),
        Target("multitask", "multitask", _unification),
        Target("text quality", "text_quality", _domains),
    )
}


def outcome(out: Path) -> dict[str, Any]:
    """All of a finished run that a clock has no part in, by file."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "metrics.jsonl":
            found[name] = [
                {key: figure for key, figure in record.items() if key not in PACE}
                for record in metric_writer.read_records(path)
            ]
        elif path.parent.name in _KEPT and path.is_file():
            found[name] = without_timings(files.read_checked_json(path))
        elif path.name in _JSON:
            found[name] = without_timings(json.loads(path.read_text()))
        elif path.name in ("predictions.csv", "tokenizer.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "checkpoints" and path.is_dir():
            found[name] = params_digest(load_params(path)[0])
    return found


def prepare(reference: Path, out: Path) -> None:
    """Fixes in `out` what an unbroken run has drawn by the clock: how a grid is run."""
    for path in reference.rglob("way.json"):
        there = out / path.relative_to(reference)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there)
