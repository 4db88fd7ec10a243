"""Runs a text quality study: trains, samples, measures, and compares what each metric selects."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fm.evaluation.statistics import Interval
from fm.evaluation.text_quality.metrics import METRICS, METRICS_BY_NAME
from fm.evaluation.text_quality.novelty import TrainingNgrams
from fm.evaluation.text_quality.words import find_faults
from fm.files import read_checked_json, write_checked_json
from fm.model.sampling import SamplingConfig
from fm.progress_lines import phase
from fm.study import run_dir
from fm.study.cells import parallel_map
from fm.study.stages import Stage, StagePlan
from fm.study.text_quality.config import CorpusPart, TextQualityConfig, TrainingSet, to_json
from fm.study.text_quality.corpora import (
    Domain,
    all_training_texts,
    load_domains,
    load_or_train_tokenizer,
)
from fm.study.text_quality.scoring import (
    EmbedderSpec,
    ReferenceStats,
    Sample,
    ScorerLM,
    draw_real_samples,
    generate_sample,
    held_out_bits_per_byte,
    measure_sample,
)
from fm.study.text_quality.training import SCORER_SET, ModelTrainer, slug

Row = dict[str, Any]
_EXAMPLES = 3
_SCORING = Stage("scoring", "bits per byte of every checkpoint")
_MEASURING = Stage("measuring", "generating and measuring samples")
_SELECTING = Stage("selecting", "measuring again what each metric selects")


class TextQualityStudy:
    """A text quality study: trains models, samples texts, and picks the best by each metric."""

    experiment = "text_quality"

    def __init__(self, config: TextQualityConfig, embedder: EmbedderSpec):
        """Raises ValueError if the embedder is not the config's."""
        if embedder.info != config.embedder:
            raise ValueError(
                f"embedder {embedder.info} differs from the config's {config.embedder}"
            )
        self.config = config
        self._embedder_spec = embedder
        self._lock = threading.Lock()
        self._ngrams: tuple[str, TrainingNgrams] | None = None
        self._params: tuple[str, dict[int, dict]] = "", {}

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as JSON."""
        return to_json(self.config)

    def load(self) -> None:
        """Loads both domains."""
        self.domains = load_domains(self.config)

    def run(self, out_dir: pathlib.Path) -> dict[str, Any]:
        """Runs what is missing in `out_dir` and returns the sections of the results."""
        config, self.out_dir = self.config, out_dir
        self.tokenizer = load_or_train_tokenizer(self.domains, config.vocab_size, out_dir)
        self.trainer = ModelTrainer(config, self.domains, self.tokenizer, out_dir / "models")
        self.embedder = self._embedder_spec.build(
            [text for domain in self.domains.values() for text in domain.train]
        )
        self.real = {
            letter: draw_real_samples(
                self.tokenizer,
                domain.held_out,
                config.prompt_tokens,
                config.max_new_tokens,
                config.num_texts,
            )
            for letter, domain in self.domains.items()
        }
        plan = StagePlan(self.plan_stages())
        trained, pretrained = self._train(plan)
        with plan.stage(_SCORING):
            models = self._score_checkpoints()
        with plan.stage(_MEASURING):
            samples, real_text = self._measure()
        with plan.stage(_SELECTING):
            selections = self._select(samples)
        return {
            "embedder": self.embedder.name,
            "domains": [_domain_summary(domain) for domain in self.domains.values()],
            "decontamination": [domain.decontamination for domain in self.domains.values()],
            "models": models,
            "trained": trained,
            "pretrained": pretrained,
            "real_text": real_text,
            "samples": samples,
            "selections": selections,
        }

    def plan_stages(self) -> list[Stage]:
        """Returns the stages of the study in order."""
        sets = (SCORER_SET, *self.config.training_sets)
        return [*(_training(each) for each in sets), _SCORING, _MEASURING, _SELECTING]

    def _train(self, plan: StagePlan) -> tuple[list[Row], list[Row]]:
        """Trains all models, each after the one it starts from; returns costs and digests."""
        costs, digests = [], []
        for training_set in (SCORER_SET, *self.config.training_sets):
            begun = (self.trainer.model_dir(training_set) / "checkpoints").exists()
            work = 0 if begun else self.config.steps_of(training_set)
            with plan.stage(_training(training_set), kind="training", work=work):
                result = self.trainer.train(training_set)
            digests.append(run_dir.pretrained_model_row(training_set.name, result))
            costs.append(
                {
                    "arm": training_set.name,
                    "description": training_set.description,
                    "steps": result.steps,
                    "tokens": result.tokens,
                    "flops": result.flops,
                    "seconds": result.seconds,
                    "curve": {key: result.curve[key] for key in ("tokens", "value")},
                }
            )
        return costs, digests

    def _score_checkpoints(self) -> list[Row]:
        """Returns the bits per byte of every checkpoint on each domain's held-out texts."""
        rows = []
        for training_set in self.config.training_sets:
            for stage, step in self.config.checkpoint_steps(training_set).items():
                for letter, domain in self.domains.items():

                    def score(training_set=training_set, step=step, texts=domain.held_out):
                        interval = held_out_bits_per_byte(
                            self._load_params(training_set, step),
                            texts,
                            self.tokenizer,
                            self.trainer.model_config,
                            self.config.seq_len,
                        )
                        return {"bits_per_byte": interval}

                    name = f"{slug(training_set.name)}-{step}-{letter}.json"
                    value = self._cached(self.out_dir / "models" / name, score)["bits_per_byte"]
                    where = {"arm": training_set.name, "stage": stage, "step": step}
                    rows.append(where | {"domain": letter, "value": value})
        self._bits = {(r["arm"], r["stage"], r["domain"]): r["value"] for r in rows}
        return rows

    def _measure(self) -> tuple[list[Row], list[Row]]:
        """Measures every arm, checkpoint and sampling config, and real text."""
        scorer_params = self.trainer.params(SCORER_SET, self.config.steps)
        scorer = ScorerLM(scorer_params, self.trainer.model_config, self.tokenizer)
        self._references = {
            letter: ReferenceStats.from_sample(real, self.embedder, scorer)
            for letter, (real, _) in self.real.items()
        }
        real_text = []
        for letter, (_, sample) in self.real.items():
            # Copies in real text are searched in all training texts of the domain.
            whole = TrainingSet(f"all of {letter}", "", (CorpusPart(letter),), ())
            values = self._sample_values(sample, letter, whole, f"real-{letter}")
            real_text.append({"domain": letter, "values": values, "texts": _example_texts(sample)})
        plan = [
            [
                (training_set, letter, stage, sampling_config)
                for letter in training_set.prompt_domains
                for stage in self.config.checkpoint_steps(training_set)
                for sampling_config in self.config.sampling_configs_at(stage)
            ]
            for training_set in self.config.training_sets
        ]
        rows = []
        with phase("generating and measuring", sum(map(len, plan)), "samples") as progress:

            def measure(task: tuple[TrainingSet, str, str, SamplingConfig]) -> Row:
                row = self._sample_row(*task)
                progress.update()
                return row

            # Arm by arm: an arm's n-gram index is large, and one is held at a time.
            for tasks in plan:
                rows += parallel_map(measure, tasks)
        return rows, real_text

    def _select(self, rows: list[Row]) -> list[Row]:
        """Returns per domain what each metric selects, measured on a fresh sample, and regrets."""
        selections = []
        for letter in self.domains:
            candidates = [row for row in rows if row["domain"] == letter]
            if not candidates:
                continue
            best = {metric.name: best_row(candidates, metric.name) for metric in METRICS}
            fresh = {name: self._measure_again(row) for name, row in best.items()}
            by_arm: dict[str, list[Row]] = {}
            for row in candidates:
                by_arm.setdefault(row["arm"], []).append(row)
            within = {
                arm: {
                    metric.name: {
                        key: best_row(rows_of_arm, metric.name)[key]
                        for key in ("stage", "sampling")
                    }
                    for metric in METRICS
                }
                for arm, rows_of_arm in by_arm.items()
            }
            selections.append(
                {
                    "domain": letter,
                    "candidates": len(candidates),
                    "selected": fresh,
                    "within": within,
                    "regrets": metric_regret(fresh, worst_and_best_values(candidates)),
                }
            )
        return selections

    def _measure_again(self, row: Row) -> Row:
        """Measures a selected row on new prompts and with a new seed."""
        config = self.config
        training_set = next(each for each in config.training_sets if each.name == row["arm"])
        sampling = next(each for each in config.sampling_configs if each.name == row["sampling"])
        return self._sample_row(training_set, row["domain"], row["stage"], sampling, fresh=True)

    def _sample_row(
        self,
        training_set: TrainingSet,
        letter: str,
        stage: str,
        sampling_config: SamplingConfig,
        fresh: bool = False,
    ) -> Row:
        """Generates and measures one sample."""
        step = self.config.checkpoint_steps(training_set)[stage]
        parts = (training_set.name, str(step), letter, sampling_config.name, "fresh" * fresh)
        name = "-".join(slug(part) for part in parts if part)
        sample = generate_sample(
            lambda: self._load_params(training_set, step),
            self.real[letter][fresh],
            self.tokenizer,
            self.trainer.model_config,
            sampling_config,
            seed=self.config.seed + fresh,
            path=self.out_dir / "samples" / f"{name}.json",
        )
        values = self._sample_values(sample, letter, training_set, name)
        temperature = sampling_config.temperature if sampling_config.temperature_only else None
        return {
            "arm": training_set.name,
            "domain": letter,
            "stage": stage,
            "step": step,
            "sampling": sampling_config.name,
            "temperature": temperature,
            "values": {"bits_per_byte": self._bits[training_set.name, stage, letter], **values},
            "texts": _example_texts(sample),
        }

    def _sample_values(
        self, sample: Sample, letter: str, training_set: TrainingSet, name: str
    ) -> dict[str, list]:
        return self._cached(
            self.out_dir / "measures" / f"{name}.json",
            lambda: measure_sample(
                sample, self._references[letter], self._training_ngrams(training_set)
            ),
        )

    def _load_params(self, training_set: TrainingSet, step: int) -> dict:
        """Returns a checkpoint's parameters; those of the last arm are cached."""
        with self._lock:
            if self._params[0] != training_set.name:
                self._params = training_set.name, {}
            if step not in self._params[1]:
                self._params[1][step] = self.trainer.params(training_set, step)
            return self._params[1][step]

    def _training_ngrams(self, training_set: TrainingSet) -> TrainingNgrams:
        """Returns the n-gram index of an arm's training texts; the last arm's is cached."""
        with self._lock:
            if self._ngrams is None or self._ngrams[0] != training_set.name:
                self._ngrams = None  # free the memory before the next index is built
                texts = all_training_texts(training_set, self.domains, self.config.training_sets)
                self._ngrams = training_set.name, TrainingNgrams(texts)
            return self._ngrams[1]

    def _cached(self, path: pathlib.Path, compute: Callable[[], dict[str, Interval]]) -> dict:
        """Returns intervals as [value, low, high], read from `path` if saved there."""
        if path.exists():
            return read_checked_json(path)
        values = {name: [each.mean, each.low, each.high] for name, each in compute().items()}
        write_checked_json(path, values)
        return values


def best_row(rows: Sequence[Row], metric: str) -> Row:
    """Returns the row with the best value of a metric, the first if tied.

    Raises:
      ValueError: no rows.
    """
    return max(rows, key=lambda row: METRICS_BY_NAME[metric].signed(row["values"][metric][0]))


def worst_and_best_values(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Returns each metric's (worst, best) value over the rows, by metric name."""
    ranges = {}
    for metric in METRICS:
        values = sorted((row["values"][metric.name][0] for row in rows), key=metric.signed)
        ranges[metric.name] = values[0], values[-1]
    return ranges


def metric_regret(selected: dict[str, Row], ranges: dict[str, tuple[float, float]]) -> list[Row]:
    """Returns how much worse each metric is, over its range, on each other metric's selection.

    Args:
      selected: per selecting metric the row it selected, measured on a fresh sample.
      ranges: from `worst_and_best_values`, over the samples the selection was made on.

    Returns:
      Rows of `by` (selecting metric), `metric`, `regret` and `clear` (the intervals do not
      overlap). Regret 0 is as good as the metric's own selection, 1 is its whole range worse; below
      0 the fresh sample reversed the order.
    """
    rows = []
    for by, row in selected.items():
        for metric in METRICS:
            own = selected[metric.name]["values"][metric.name]
            other = row["values"][metric.name]
            worst, best = ranges[metric.name]
            loss = metric.signed(own[0]) - metric.signed(other[0])
            rows.append(
                {
                    "by": by,
                    "metric": metric.name,
                    "regret": loss / (abs(best - worst) or 1.0),
                    "clear": own[1] > other[2] or own[2] < other[1],
                }
            )
    return rows


def _training(training_set: TrainingSet) -> Stage:
    return Stage(("training", training_set.name), f"training on {training_set.name}")


def _domain_summary(domain: Domain) -> Row:
    return {
        "letter": domain.letter,
        "name": domain.name,
        "train_texts": len(domain.train),
        "train_bytes": sum(len(text.encode()) for text in domain.train),
        "scorer_texts": len(domain.scorer_train),
        "held_out": len(domain.held_out),
        "description": domain.info["description"],
        "license": domain.info["licence"],
        "fingerprint": domain.info["fingerprint"],
    }


def _example_texts(sample: Sample) -> list[Row]:
    """Returns the first few texts of a sample."""
    return [
        {"prompt": prompt, "text": text, "faults": list(find_faults(text))}
        for prompt, text in zip(sample.prompts[:_EXAMPLES], sample.texts[:_EXAMPLES], strict=True)
    ]
