"""What each metric would choose, and how the others fare when it does."""

from __future__ import annotations

import pathlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from fm import files
from fm.evaluation.statistics import Interval
from fm.evaluation.text_quality.metrics import METRICS, METRICS_BY_NAME
from fm.evaluation.text_quality.novelty import TrainingNgrams
from fm.evaluation.text_quality.words import find_faults
from fm.model.sampling import SamplingConfig
from fm.study import run_dir
from fm.study.cells import parallel_map
from fm.study.text_quality import scoring
from fm.study.text_quality.config import (
    SCHEMA,
    CorpusPart,
    TextQualityConfig,
    TrainingSet,
    config_digest,
    to_json,
)
from fm.study.text_quality.corpora import (
    Domain,
    load_domains,
    load_or_train_tokenizer,
    training_set_texts,
)
from fm.study.text_quality.scoring import (
    EmbedderSpec,
    ReferenceStats,
    Sample,
    ScorerLM,
    held_out_bits_per_byte,
    measure_sample,
)
from fm.study.text_quality.training import SCORER_SET, ModelTrainer, slug

Row = dict[str, Any]


def best_row(rows: Sequence[Row], metric: str) -> Row:
    """The row that is best by a metric; of equals the first.

    Args:
      rows: each with `values`, metric to [value, low, high].
      metric: its name.

    Raises:
      ValueError: no rows.
    """
    return max(
        rows, key=lambda row: METRICS_BY_NAME[metric].higher_is_better(row["values"][metric][0])
    )


def metric_ranges(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Worst and best value of every metric over the rows."""
    found = {}
    for metric in METRICS:
        values = sorted(
            (row["values"][metric.name][0] for row in rows), key=metric.higher_is_better
        )
        found[metric.name] = values[0], values[-1]
    return found


def metric_regret(chosen: dict[str, Row], spans: dict[str, tuple[float, float]]) -> list[Row]:
    """How much of its range a metric loses when another one chooses.

    Args:
      chosen: for each choosing metric the row it chose, measured again on a fresh sample.
      spans: from `ranges`, of the samples the choice was made on.

    Returns:
      For each pair `by`, `metric`, `regret`: 0 is as good as the metric's own choice, 1 is its
      whole range worse; below 0 the fresh sample reversed the order. `clear` says whether the two
      intervals lie apart.
    """
    rows = []
    for by, row in chosen.items():
        for metric in METRICS:
            own = chosen[metric.name]["values"][metric.name]
            now = row["values"][metric.name]
            worst, best = spans[metric.name]
            lost = metric.higher_is_better(own[0]) - metric.higher_is_better(now[0])
            rows.append(
                {
                    "by": by,
                    "metric": metric.name,
                    "regret": lost / (abs(best - worst) or 1.0),
                    "clear": own[1] > now[2] or own[2] < now[1],
                }
            )
    return rows


Row = dict[str, Any]
_SHOWN = 3


def domain_summary(domain: Domain) -> Row:
    """The domain as the page tells of it."""
    return {
        "letter": domain.letter,
        "name": domain.name,
        "train_texts": len(domain.train),
        "train_bytes": sum(len(text.encode()) for text in domain.train),
        "judge_texts": len(domain.scorer_train),
        "held_out": len(domain.held_out),
        **{key: domain.info[key] for key in ("description", "licence", "fingerprint")},
    }


def example_texts(sample: Sample) -> list[Row]:
    """The first few texts of a sample."""
    return [
        {"prompt": prompt, "text": text, "faults": list(find_faults(text))}
        for prompt, text in zip(sample.prompts[:_SHOWN], sample.texts[:_SHOWN], strict=True)
    ]


def checkpoint_and_sampling(row: Row) -> Row:
    """Which checkpoint and decoding a row is of."""
    return {key: row[key] for key in ("stage", "decoding")}


Row = dict[str, Any]


def run_study(
    config: TextQualityConfig, out: pathlib.Path, vectors: EmbedderSpec
) -> dict[str, Any]:
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
    if vectors.info != config.embedder:
        raise ValueError(f"vectors of {vectors.info}, but the study's are {config.embedder}")
    began = time.perf_counter()
    resumes = run_dir.matches_config(to_json(config), out)
    if (out / run_dir.RESULTS_FILE).exists():
        run_dir.init(to_json(config), out)
        print(f"{out} is finished; another --out runs it again")
        return run_dir.read_results(out)
    if resumes:
        print(f"{out}: going on with what is there", file=sys.stderr)
    found = load_domains(config)
    run_dir.init(to_json(config), out)
    work = _Study(config, found, out, vectors)
    trained = work.train()
    models = work.models()
    rows, human = work.measure()
    return {
        "schema": SCHEMA,
        "experiment": "text_quality",
        "config": to_json(config),
        "config_hash": config_digest(config),
        "versions": run_dir.package_versions(),
        "device": run_dir.device_info(),
        "xla_flags": run_dir.xla_flags(),
        "features": work.features.name,
        "domains": [domain_summary(domain) for domain in found.values()],
        "leakage": [domain.decontamination for domain in found.values()],
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
        vectors: EmbedderSpec,
    ):
        self.config, self.found, self.out = config, found, out
        tokenizer = load_or_train_tokenizer(found, config.vocab_size, out)
        self.arms = ModelTrainer(config, found, tokenizer, out / "models")
        self.tokenizer, self.model = tokenizer, self.arms.model_config
        self.features = vectors.build([text for each in found.values() for text in each.train])
        self.real = {
            letter: scoring.real_samples(
                tokenizer,
                domain.held_out,
                config.prompt_tokens,
                config.max_new_tokens,
                config.num_texts,
            )
            for letter, domain in found.items()
        }
        self._lock = threading.Lock()
        self._seen: tuple[str, TrainingNgrams] | None = None
        self._loaded: tuple[str, dict[int, dict]] = "", {}

    def train(self) -> list[Row]:
        """All models, in an order in which each finds the one it starts from; their costs."""
        rows, self.pretrained = [], []
        for diet in (SCORER_SET, *self.config.training_sets):
            done = self.arms.train(diet)
            self.pretrained.append(run_dir.pretrained_model_row(diet.name, done))
            rows.append(
                {
                    "arm": diet.name,
                    "says": diet.description,
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
        for diet in self.config.training_sets:
            for stage, step in self.config.checkpoint_steps(diet).items():
                for letter, domain in self.found.items():
                    held = self._kept(
                        self.out / "models" / f"{slug(diet.name)}-{step}-{letter}.json",
                        lambda diet=diet, step=step, texts=domain.held_out: {
                            "bits_per_byte": held_out_bits_per_byte(
                                self._params(diet, step),
                                texts,
                                self.tokenizer,
                                self.model,
                                self.config.seq_len,
                            )
                        },
                    )
                    place = {"arm": diet.name, "stage": stage, "step": step, "domain": letter}
                    rows.append(place | {"value": held["bits_per_byte"]})
        self.bits = {(r["arm"], r["stage"], r["domain"]): r["value"] for r in rows}
        return rows

    def measure(self) -> tuple[list[Row], list[Row]]:
        """Every arm, checkpoint and decoding; and people."""
        judge = ScorerLM(
            self.arms.params(SCORER_SET, self.config.steps), self.model, self.tokenizer
        )
        self.yardsticks = {
            letter: ReferenceStats.from_sample(real, self.features, judge)
            for letter, (real, _) in self.real.items()
        }
        human = [
            {
                "domain": letter,
                "values": self._values(other, letter, self._home(letter), f"human-{letter}"),
                "texts": example_texts(other),
            }
            for letter, (_, other) in self.real.items()
        ]
        plans = [
            [
                (diet, letter, stage, decoding)
                for letter in diet.prompt_domains
                for stage in self.config.checkpoint_steps(diet)
                for decoding in self.config.sampling_configs_at(stage)
            ]
            for diet in self.config.training_sets
        ]
        rows = []
        calm = 0.5 if sys.stderr.isatty() else 30.0
        with tqdm(None, "samples", sum(map(len, plans)), mininterval=calm, leave=False) as bar:

            def made(place: tuple[TrainingSet, str, str, SamplingConfig]) -> Row:
                row = self._row(*place)
                bar.update()
                return row

            # Diet by diet: what an arm has seen is large, and kept for one at a time.
            for plan in plans:
                rows += parallel_map(made, plan)
        return rows, human

    def choices(self, rows: list[Row]) -> list[Row]:
        """By domain: what every metric chooses among all, measured afresh, and the regrets."""
        found = []
        for letter in self.found:
            mine = [row for row in rows if row["domain"] == letter]
            if not mine:
                continue
            chosen = {metric.name: best_row(mine, metric.name) for metric in METRICS}
            fresh = {name: self._afresh(row) for name, row in chosen.items()}
            within = {
                arm: {
                    metric.name: checkpoint_and_sampling(
                        best_row([row for row in mine if row["arm"] == arm], metric.name)
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
                    "regrets": metric_regret(fresh, metric_ranges(mine)),
                }
            )
        return found

    def _afresh(self, row: Row) -> Row:
        """A chosen row measured on new prompts and new draws."""
        diet = next(each for each in self.config.training_sets if each.name == row["arm"])
        decoding = next(
            each for each in self.config.sampling_configs if each.name == row["decoding"]
        )
        return self._row(diet, row["domain"], row["stage"], decoding, fresh=True)

    def _row(
        self,
        diet: TrainingSet,
        letter: str,
        stage: str,
        decoding: SamplingConfig,
        fresh: bool = False,
    ) -> Row:
        """One sample, measured."""
        step = self.config.checkpoint_steps(diet)[stage]
        parts = (diet.name, str(step), letter, decoding.name, "fresh" if fresh else "")
        name = "-".join(slug(part) for part in parts if part)
        made = scoring.generate_sample(
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
            "temperature": decoding.temperature if decoding.temperature_only else None,
            "values": {"bits_per_byte": self.bits[diet.name, stage, letter], **values},
            "texts": example_texts(made),
        }

    def _values(self, sample: Sample, letter: str, diet: TrainingSet, name: str) -> dict[str, list]:
        return self._kept(
            self.out / "measures" / f"{name}.json",
            lambda: measure_sample(sample, self.yardsticks[letter], self._seen_by(diet)),
        )

    def _home(self, letter: str) -> TrainingSet:
        """What people are checked for copies of: all training text of the domain."""
        return TrainingSet(f"all of {letter}", "", (CorpusPart(letter),), ())

    def _params(self, diet: TrainingSet, step: int) -> dict:
        """Of a checkpoint; those of the last arm are at hand."""
        with self._lock:
            if self._loaded[0] != diet.name:
                self._loaded = diet.name, {}
            if step not in self._loaded[1]:
                self._loaded[1][step] = self.arms.params(diet, step)
            return self._loaded[1][step]

    def _seen_by(self, diet: TrainingSet) -> TrainingNgrams:
        """The n-grams of an arm's training text; the last arm's are at hand."""
        with self._lock:
            if self._seen is None or self._seen[0] != diet.name:
                self._seen = None  # before the next one takes its memory
                texts = training_set_texts(diet, self.found, self.config.training_sets)
                self._seen = diet.name, TrainingNgrams(texts)
            return self._seen[1]

    def _kept(self, path: pathlib.Path, make: Callable[[], dict[str, Interval]]) -> dict:
        """Intervals as [value, low, high], read back where they were made before."""
        if path.exists():
            return files.read_checked_json(path)
        values = {name: [value.mean, value.low, value.high] for name, value in make().items()}
        files.write_checked_json(path, values)
        return values
