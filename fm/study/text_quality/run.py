"""A study of text from end to end: config in, results out, resumable at every sample."""

from __future__ import annotations

import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from fm import kept
from fm.evaluation.statistics import Interval
from fm.evaluation.text_quality.metrics import METRICS
from fm.evaluation.text_quality.novelty import Seen
from fm.model.sampling import Decoding
from fm.study import environment, finished, folder, study
from fm.study.text_quality import choices, samples, telling
from fm.study.text_quality.arms import JUDGE, Arms, slug
from fm.study.text_quality.config import (
    SCHEMA,
    Diet,
    Part,
    TextQualityConfig,
    as_json,
    digest,
)
from fm.study.text_quality.corpora import Domain, diet_texts, domains, reader
from fm.study.text_quality.measuring import Judge, Yardstick, held_out_bits, measure
from fm.study.text_quality.samples import Sample
from fm.study.text_quality.vectors import Vectors
from fm.study.together import together

Row = dict[str, Any]


def run(config: TextQualityConfig, out: pathlib.Path, vectors: Vectors) -> dict[str, Any]:
    """Runs what is not there yet and returns the results, the headline still to be added.

    A finished study is read back, not run again.

    Args:
      config: of the study.
      out: the folder of all output.
      vectors: those the config names.

    Raises:
      UserError: bad data or settings; or `out` holds another study (names what differs).
      ValueError: the vectors are others than the config's.
    """
    if vectors.whose != config.features:
        raise ValueError(f"vectors of {vectors.whose}, but the study's are {config.features}")
    began = time.perf_counter()
    resumes = folder.holds(as_json(config), out)
    if (out / study.RESULTS).exists():
        folder.claim(as_json(config), out)
        print(f"{out} is finished; another --out runs it again")
        return study.read_results(out)
    if resumes:
        print(f"{out}: going on with what is there", file=sys.stderr)
    found = domains(config)
    folder.claim(as_json(config), out)
    work = _Study(config, found, out, vectors)
    trained = work.train()
    models = work.models()
    rows, human = work.measure()
    return {
        "schema": SCHEMA,
        "experiment": "text_quality",
        "config": as_json(config),
        "config_hash": digest(config),
        "versions": environment.versions(),
        "device": environment.device(),
        "xla_flags": environment.xla_flags(),
        "features": work.features.name,
        "domains": [telling.about(domain) for domain in found.values()],
        "leakage": [domain.leakage for domain in found.values()],
        "models": models,
        "trained": trained,
        "pretrained": work.pretrained,
        "human": human,
        "samples": rows,
        "choices": work.choices(rows),
        "seconds": time.perf_counter() - began,
    }


class _Study:
    """What the parts of a study share."""

    def __init__(
        self,
        config: TextQualityConfig,
        found: dict[str, Domain],
        out: pathlib.Path,
        vectors: Vectors,
    ):
        self.config, self.found, self.out = config, found, out
        tokenizer = reader(found, config.vocab, out)
        self.arms = Arms(config, found, tokenizer, out / "models")
        self.tokenizer, self.model = tokenizer, self.arms.model
        self.features = vectors.of([text for each in found.values() for text in each.train])
        self.real = {
            letter: samples.real(
                tokenizer, domain.held_out, config.prompt_tokens, config.new_tokens, config.texts
            )
            for letter, domain in found.items()
        }
        self._lock = threading.Lock()
        self._seen: tuple[str, Seen] | None = None
        self._loaded: tuple[str, dict[int, dict]] = "", {}

    def train(self) -> list[Row]:
        """All models, in an order in which each finds the one it starts from; their costs."""
        rows, self.pretrained = [], []
        for diet in (JUDGE, *self.config.diets):
            done = self.arms.train(diet)
            self.pretrained.append(finished.pretrained(diet.name, done))
            rows.append(
                {
                    "arm": diet.name,
                    "says": diet.says,
                    "steps": done.steps,
                    "tokens": done.tokens,
                    "flops": done.flops,
                    "seconds": done.seconds,
                    "curve": {key: done.curve[key] for key in ("tokens", "value")},
                }
            )
        return rows

    def models(self) -> list[Row]:
        """Bits per byte of every checkpoint on held-out text of each domain."""
        rows = []
        for diet in self.config.diets:
            for stage, step in self.config.stages(diet).items():
                for letter, domain in self.found.items():
                    held = self._kept(
                        self.out / "models" / f"{slug(diet.name)}-{step}-{letter}.json",
                        lambda diet=diet, step=step, texts=domain.held_out: {
                            "bits_per_byte": held_out_bits(
                                self._params(diet, step),
                                texts,
                                self.tokenizer,
                                self.model,
                                self.config.length,
                            )
                        },
                    )
                    place = {"arm": diet.name, "stage": stage, "step": step, "domain": letter}
                    rows.append(place | {"value": held["bits_per_byte"]})
        self.bits = {(r["arm"], r["stage"], r["domain"]): r["value"] for r in rows}
        return rows

    def measure(self) -> tuple[list[Row], list[Row]]:
        """Every arm, checkpoint and decoding; and people."""
        judge = Judge(self.arms.params(JUDGE, self.config.steps), self.model, self.tokenizer)
        self.yardsticks = {
            letter: Yardstick.of(real, self.features, judge)
            for letter, (real, _) in self.real.items()
        }
        human = [
            {
                "domain": letter,
                "values": self._values(other, letter, self._home(letter), f"human-{letter}"),
                "texts": telling.shown(other),
            }
            for letter, (_, other) in self.real.items()
        ]
        plans = [
            [
                (diet, letter, stage, decoding)
                for letter in diet.writes
                for stage in self.config.stages(diet)
                for decoding in self.config.decodings_at(stage)
            ]
            for diet in self.config.diets
        ]
        rows = []
        calm = 0.5 if sys.stderr.isatty() else 30.0
        with tqdm(None, "samples", sum(map(len, plans)), mininterval=calm, leave=False) as bar:

            def made(place: tuple[Diet, str, str, Decoding]) -> Row:
                row = self._row(*place)
                bar.update()
                return row

            # Diet by diet: what an arm has seen is large, and kept for one at a time.
            for plan in plans:
                rows += together(made, plan)
        return rows, human

    def choices(self, rows: list[Row]) -> list[Row]:
        """By domain: what every metric chooses among all, measured afresh, and the regrets."""
        found = []
        for letter in self.found:
            mine = [row for row in rows if row["domain"] == letter]
            if not mine:
                continue
            chosen = {metric.name: choices.choose(mine, metric.name) for metric in METRICS}
            fresh = {name: self._afresh(row) for name, row in chosen.items()}
            within = {
                arm: {
                    metric.name: telling.place(
                        choices.choose([row for row in mine if row["arm"] == arm], metric.name)
                    )
                    for metric in METRICS
                }
                for arm in dict.fromkeys(row["arm"] for row in mine)
            }
            found.append(
                {
                    "domain": letter,
                    "candidates": len(mine),
                    "chosen": fresh,
                    "within": within,
                    "regrets": choices.regrets(fresh, choices.ranges(mine)),
                }
            )
        return found

    def _afresh(self, row: Row) -> Row:
        """A chosen row measured on new prompts and new draws."""
        diet = next(each for each in self.config.diets if each.name == row["arm"])
        decoding = next(each for each in self.config.decodings if each.name == row["decoding"])
        return self._row(diet, row["domain"], row["stage"], decoding, fresh=True)

    def _row(
        self, diet: Diet, letter: str, stage: str, decoding: Decoding, fresh: bool = False
    ) -> Row:
        """One sample, measured."""
        step = self.config.stages(diet)[stage]
        parts = (diet.name, str(step), letter, decoding.name, "fresh" if fresh else "")
        name = "-".join(slug(part) for part in parts if part)
        made = samples.written(
            lambda: self._params(diet, step),
            self.real[letter][fresh],
            self.tokenizer,
            self.model,
            decoding,
            seed=self.config.seed + fresh,
            path=self.out / "samples" / f"{name}.json",
        )
        values = self._values(made, letter, diet, name)
        return {
            "arm": diet.name,
            "domain": letter,
            "stage": stage,
            "step": step,
            "decoding": decoding.name,
            "temperature": decoding.temperature if decoding.by_temperature else None,
            "values": {"bits_per_byte": self.bits[diet.name, stage, letter], **values},
            "texts": telling.shown(made),
        }

    def _values(self, sample: Sample, letter: str, diet: Diet, name: str) -> dict[str, list]:
        return self._kept(
            self.out / "measures" / f"{name}.json",
            lambda: measure(sample, self.yardsticks[letter], self._seen_by(diet)),
        )

    def _home(self, letter: str) -> Diet:
        """What people are checked for copies of: all training text of the domain."""
        return Diet(f"all of {letter}", "", (Part(letter),), ())

    def _params(self, diet: Diet, step: int) -> dict:
        """Of a checkpoint; those of the last arm are at hand."""
        with self._lock:
            if self._loaded[0] != diet.name:
                self._loaded = diet.name, {}
            if step not in self._loaded[1]:
                self._loaded[1][step] = self.arms.params(diet, step)
            return self._loaded[1][step]

    def _seen_by(self, diet: Diet) -> Seen:
        """The n-grams of an arm's training text; the last arm's are at hand."""
        with self._lock:
            if self._seen is None or self._seen[0] != diet.name:
                self._seen = None  # before the next one takes its memory
                texts = diet_texts(diet, self.found, self.config.diets)
                self._seen = diet.name, Seen(texts)
            return self._seen[1]

    def _kept(self, path: pathlib.Path, make: Callable[[], dict[str, Interval]]) -> dict:
        """Intervals as [value, low, high], read back where they were made before."""
        if path.exists():
            return kept.read(path)
        values = {name: [value.mean, value.low, value.high] for name, value in make().items()}
        kept.keep(path, values)
        return values
