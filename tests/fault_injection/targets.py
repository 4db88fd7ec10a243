"""The commands that faults are injected into, and the outputs that must not change by a bit."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from fm import files
from fm.study.run_dir import without_timings
from fm.training import load_params, metric_writer, params_digest
from fm.training.progress import TIMINGS
from tests.fault_injection import tiny_recipes
from tests.study.helpers_study import texts
from tests.study.text_quality.helpers_text_quality import write_domains

_JSON = ("results.json", "summary.json", "config.json")
_CHECKED_FOLDERS = ("cells", "samples", "measures", "models")


@dataclasses.dataclass(frozen=True)
class Target:
    """A command.

    Attributes:
      name: in the table.
      experiment: as in `python -m experiments.NAME`.
      flags: returns the flags but --out, given the folder for data.
    """

    name: str
    experiment: str
    flags: Callable[[Path], list[str]]

    def start(
        self, folder: Path, out: Path, log: Path, max_bytes: int | None = None
    ) -> BaseProcess:
        """Starts the command with data in `folder`, output in `out`; see `tiny_recipes.start`."""
        return tiny_recipes.start(
            self.experiment, [*self.flags(folder), f"--out={out}"], log, max_bytes
        )


def reviews(folder: Path) -> Path:
    """Returns a CSV of 120 texts in two classes; writes it if it is missing."""
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


def _multitask(folder: Path) -> list[str]:
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


def _new_texts(folder: Path) -> list[str]:
    """Returns the flags of labeling 6,000 texts; adapts the model first if it is missing."""
    adapted, path = folder / "adapted", folder / "new.csv"
    if not path.exists():
        flags = [f"--dataset={reviews(folder)}", "--labels=40", "--adapt=probe", f"--out={adapted}"]
        process = tiny_recipes.start("adapt", flags, folder / "adapt.log")
        process.join()
        assert process.exitcode == 0, (folder / "adapt.log").read_text()
        inputs, _ = texts(6000, 1)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text",), *((each,) for each in inputs)])
    return [f"--model={adapted / 'model'}", f"--dataset={path}", "--batch_size=16"]


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
            # Packed rows; early stopping at about 500 steps.
            lambda folder: [
                *(f"--dataset={reviews(folder)}", "--objective=causal_lm:1"),
                *("--checkpoint_every=60", "--steps=1200"),
                *("--eval_every=10", "--early_stopping_patience=5"),
            ],
        ),
        Target("multimodal pretraining", "pretrain", _mixture),
        Target("adaptation", "adapt", lambda _: ["--dataset=digits", "--labels=20"]),
        Target("prediction", "predict", _new_texts),
        Target("comparison", "compare", lambda _: [*_STUDY, "--profile=quick"]),
        Target(
            "sweep",
            "compare",
            lambda _: [
                *_STUDY[:-2],
                *("--label_budgets=20", "--seeds=4", "--pretrain_seeds=4", "--profile=quick"),
            ],
        ),
        Target(
            "ablation",
            "ablate",
            lambda _: [
                *(_STUDY[0], "--arms=scratch,in_domain", "--label_budgets=20", "--seeds=2"),
                *("--field=objective.mask_ratio", "--values=0.3,0.6", "--profile=quick"),
            ],
        ),
        Target("multitask", "multitask", _multitask),
        Target("text quality", "text_quality", _domains),
    )
}


def outcome(out: Path) -> dict[str, Any]:
    """Returns everything in a finished run that does not depend on the clock, by file."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "metrics.jsonl":
            found[name] = [
                {key: figure for key, figure in record.items() if key not in TIMINGS}
                for record in metric_writer.read_records(path)
            ]
        elif path.parent.name in _CHECKED_FOLDERS and path.is_file():
            found[name] = without_timings(files.read_checked_json(path))
        elif path.name in _JSON:
            found[name] = without_timings(json.loads(path.read_text()))
        elif path.name in ("predictions.csv", "tokenizer.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "checkpoints" and path.is_dir():
            found[name] = params_digest(load_params(path)[0])
    return found
