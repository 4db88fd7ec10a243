"""Pretrains a model on the corpus of one modality, and loads pretrained models."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import Batches, PatchesOnDemand, patch_batches, text_batches
from fm.data.datasets import Split
from fm.data.media import PatchLayout
from fm.data.streaming.corpus import TokenizedCorpus
from fm.data.tokenizer import token_chunks
from fm.errors import UserError, error_context
from fm.model.config import ModelConfig
from fm.parallel.mesh import current_mesh, default_device
from fm.planning import chips
from fm.progress_lines import phase
from fm.study.config import Recipe
from fm.study.processing import (
    Processor,
    bytes_per_token,
    check_corpus_size,
    corpus_digest,
    token_counts,
    train_validation_split,
)
from fm.training import sweep, train_state
from fm.training.checkpoint import load_params
from fm.training.config import TrainConfig, TrainResult
from fm.training.metric_units import BitsPerByte, BitsPerDimension
from fm.training.multitask import AnyObjective, MultitaskObjective, from_dict
from fm.training.objectives import PretrainingObjective, inverse_frequency_weights
from fm.training.run_description import describe_attention
from fm.training.runtime import gemm_flops_per_second
from fm.training.train_loop import train_trial
from fm.training.trial import Trial

NUM_VALIDATION_BATCHES = 4
# Of all examples of a corpus as patches; more stay on disk.
MAX_PATCH_BYTES = 2**28
# Of pretraining that goes on until it is flat or its time is over: how often longer than the steps
# of the recipe at most, and the fraction of the loss that counts as a fall.
MAX_LENGTHENING, MIN_IMPROVEMENT = 64, 0.002


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A model pretrained by a study: its processor, parameters and pretraining objective."""

    processor: Processor
    params: dict
    objective: AnyObjective

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of a joint objective; empty for a model of one modality."""
        if isinstance(self.objective, MultitaskObjective):
            return tuple(name for name, _ in self.objective.groups)
        return ()

    def objective_of(self, group: str) -> PretrainingObjective:
        """Returns the objective of a group; a model of one modality ignores the name."""
        if isinstance(self.objective, MultitaskObjective):
            return dict(self.objective.groups)[group]
        return self.objective


def load_pretrained(folder: pathlib.Path) -> PretrainedModel:
    """Loads a pretrained model from the run folder of `pretrain` or `pretrain_joint`.

    The tokenizer is beside the checkpoints, or one folder up where several seeds share it.

    Raises:
      UserError: there is no checkpoint, or no tokenizer where one is needed, or another one.
    """
    params, config = load_params(folder / "checkpoints")
    with error_context(folder):
        if not isinstance(config, dict) or not {"model", "objective"} <= config.keys():
            raise UserError("holds a run, but not one of fm pretrain")
        model, tokenizer = ModelConfig.from_dict(config["model"]), None
        if model.vocab_size:
            own, shared = folder / "tokenizer.json", folder.resolve().parent / "tokenizer.json"
            path = shared if shared.exists() and not own.exists() else own
            tokenizer = bpe.load(path)
            if config.get("tokenizer", tokenizer.digest()) != tokenizer.digest():
                raise UserError(f"{path} is not the tokenizer that the checkpoint was trained with")
        layouts = config.get("layouts", {})
        if not isinstance(layouts, dict):
            raise UserError(f"layouts must be an object by modality, not {layouts!r:.60}")
        layouts = {name: PatchLayout.from_dict(each) for name, each in layouts.items()}
        processor = Processor(model, tokenizer, layouts)
        return PretrainedModel(processor, params, from_dict(config["objective"]))


def pretrain(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    processor: Processor,
    *,
    seed: int,
    out_dir: pathlib.Path,
    run_name: str,
    **cadence: Any,
) -> TrainResult:
    """Pretrains a new model on a corpus, or resumes an interrupted run; returns its result.

    Args:
      corpus: 2% of its examples, at most 500, are held out for the validation curve.
      modality: of the corpus.
      recipe: objective, optimizer, steps and batch size.
      processor: of the corpus.
      seed: draws initial parameters, the held-out examples and the order.
      out_dir: folder of the run.
      run_name: shown in progress bars and messages.
      **cadence: see `pretrain_config`.
    """
    trial = _trial(
        corpus,
        modality,
        recipe,
        processor,
        _encode(corpus, modality, processor),
        seed=seed,
        out_dir=out_dir,
        run_name=run_name,
        **cadence,
    )
    return train_trial(
        trial,
        processor.model,
        recipe.objective,
        **device_rates(processor.model.dtype),
    )


def pretrain_streamed(
    corpus: TokenizedCorpus,
    recipe: Recipe,
    processor: Processor,
    *,
    seed: int,
    out_dir: pathlib.Path,
    run_name: str,
    **cadence: Any,
) -> TrainResult:
    """Pretrains a new model on text that is read from disk, or resumes; returns its result.

    Args:
      corpus: tokenized by the processor's tokenizer; its validation part is held out.
      recipe: see `pretrain`.
      processor: see `pretrain`.
      seed: draws initial parameters and the order; the held-out documents are the same for all.
      out_dir: see `pretrain`.
      run_name: see `pretrain`.
      **cadence: see `pretrain_config`.
    """
    counts_V = corpus.counts_V
    token_weights = inverse_frequency_weights(
        jnp.asarray(counts_V, jnp.float32), recipe.objective.frequency_exponent
    )
    validation = corpus.batches(recipe.batch_size, seed, validation=True)
    trial = Trial(
        functools.partial(train_state.init_sharded, jax.random.key(seed), processor.model),
        corpus.batches(recipe.batch_size, seed),
        recipe.optimizer,
        _train_config(recipe, seed, cadence),
        BitsPerByte(corpus.manifest["bytes"] / max(int(counts_V.sum()), 1)),
        out_dir=out_dir,
        token_weights=token_weights,
        validation=[next(validation) for _ in range(NUM_VALIDATION_BATCHES)],
        run_name=run_name,
        identity={"corpus": corpus.digest(), **processor.identity()},
    )
    return train_trial(
        trial,
        processor.model,
        recipe.objective,
        **device_rates(processor.model.dtype),
    )


def pretrain_seeds(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    processor: Processor,
    *,
    seeds: int,
    out_dir: pathlib.Path,
    run_name: str,
) -> list[TrainResult]:
    """Pretrains one model per seed, 0 to `seeds` - 1; returns their results in order.

    Each seed has its own folder, `out_dir`/seed-N; while they train as one program, their
    checkpoint is in `out_dir`/grid.

    Raises:
      UserError: the loss of a seed became non-finite.
    """
    if seeds == 1:
        folder = out_dir / "seed-0"
        return [
            pretrain(corpus, modality, recipe, processor, seed=0, out_dir=folder, run_name=run_name)
        ]
    token_ids = _encode(corpus, modality, processor)
    trials = [
        _trial(
            corpus,
            modality,
            recipe,
            processor,
            token_ids,
            seed=seed,
            out_dir=out_dir / f"seed-{seed}",
            run_name=f"{run_name}, seed {seed}",
        )
        for seed in range(seeds)
    ]
    result = sweep.sweep(
        trials,
        processor.model,
        recipe.objective,
        out_dir=out_dir / "grid",
        # One program for all seeds keeps their last checkpoints only.
        batching="sequential" if recipe.keep_period else None,
        run_name=f"{run_name}, {seeds} seeds",
        **device_rates(processor.model.dtype),
    )
    for reason in filter(None, result.stop_reasons):
        raise UserError(reason)
    return [each for each in result.results if each is not None]


def device_rates(dtype: str) -> dict[str, Any]:
    """Returns keyword arguments of `fm.training.train_loop.train`: what the devices can do.

    These are `gemm_flops_per_second`, measured on one device, and `peak_flops`, of all devices of
    the mesh by their specification.
    """
    mesh = current_mesh()
    devices = [default_device()] if mesh is None else list(mesh.devices.flat)
    peak = chips.device_peak_flops(devices[0], dtype)
    return {
        "gemm_flops_per_second": gemm_flops_per_second(dtype),
        "peak_flops": None if peak is None else len(devices) * peak,
    }


def pretrain_config(
    steps: int,
    seed: int,
    *,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    early_stopping_patience: int | None = None,
    keep_period: int | None = None,
    extended_from: tuple[int, ...] = (),
    grad_accum_steps: int = 1,
    profile_steps: tuple[int, int] | None = None,
) -> TrainConfig:
    """Returns a `TrainConfig` whose checkpoint and validation intervals suit the run's length."""
    return TrainConfig(
        steps=steps,
        seed=seed,
        checkpoint_every=checkpoint_every or keep_period or max(100, steps // 4),
        keep_period=keep_period,
        log_every=max(1, steps // 50),
        validate_every=validate_every or max(1, steps // 8),
        early_stopping_patience=early_stopping_patience,
        extended_from=extended_from,
        grad_accum_steps=grad_accum_steps,
        profile_steps=profile_steps,
    )


def open_ended_config(recipe: Recipe, seed: int) -> TrainConfig:
    """Returns a `TrainConfig` that goes on until the recipe's patience or time is over."""
    minutes = recipe.max_pretrain_minutes
    return dataclasses.replace(
        pretrain_config(recipe.steps, seed),
        steps=MAX_LENGTHENING * recipe.steps,
        early_stopping_patience=recipe.early_stopping_patience,
        min_improvement=MIN_IMPROVEMENT,
        max_seconds=None if minutes is None else 60 * minutes,
        warmup_steps=recipe.optimizer.num_warmup_steps(recipe.steps),
    )


def _train_config(recipe: Recipe, seed: int, cadence: dict[str, Any]) -> TrainConfig:
    of_recipe = {name: getattr(recipe, name) for name in ("keep_period", "grad_accum_steps")}
    cadence = of_recipe | cadence
    if recipe.early_stopping_patience is None and recipe.max_pretrain_minutes is None:
        return pretrain_config(recipe.steps, seed, **cadence)
    given = {name: value for name, value in cadence.items() if value is not None}
    return dataclasses.replace(open_ended_config(recipe, seed), **given)


def _encode(corpus: Split, modality: str, processor: Processor) -> list[np.ndarray]:
    """Returns the token ids of every text of a corpus; of other modalities nothing."""
    if modality != "text":
        return []
    assert processor.tokenizer is not None
    with phase(f"tokenizing {len(corpus):,} texts"):
        return processor.tokenizer.encode(corpus.texts(range(len(corpus))))


def _trial(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    processor: Processor,
    token_ids: list[np.ndarray],
    *,
    seed: int,
    out_dir: pathlib.Path,
    run_name: str,
    **cadence: Any,
) -> Trial:
    check_corpus_size(run_name, len(corpus))
    with phase(f"{run_name}: reading {len(corpus):,} examples"):
        train_idx, validation_idx = train_validation_split(len(corpus), seed)
        if modality == "text":
            tokenizer = processor.tokenizer
            assert tokenizer is not None
            chunks, validation_chunks = (
                [
                    chunk
                    for n in idx
                    for chunk in token_chunks(token_ids[n], recipe.seq_len, tokenizer)
                ]
                for idx in (train_idx, validation_idx)
            )
            counts_V = token_counts(chunks, processor.model.vocab_size)
            token_weights = inverse_frequency_weights(
                jnp.asarray(counts_V, jnp.float32), recipe.objective.frequency_exponent
            )
            metric_unit = BitsPerByte(bytes_per_token(corpus.texts(train_idx), counts_V))
            batches = _text_batches(chunks, recipe, seed)
            validation = _text_batches(validation_chunks, recipe, seed)
        else:
            token_weights, metric_unit = None, BitsPerDimension()
            layout = processor.layouts[modality]
            batches = _patch_batches(corpus, train_idx, layout, recipe.batch_size, seed)
            validation = _patch_batches(corpus, validation_idx, layout, recipe.batch_size, seed)
        return Trial(
            functools.partial(train_state.init_sharded, jax.random.key(seed), processor.model),
            batches,
            recipe.optimizer,
            _train_config(recipe, seed, cadence),
            metric_unit,
            out_dir=out_dir,
            token_weights=token_weights,
            validation=[next(validation) for _ in range(NUM_VALIDATION_BATCHES)],
            run_name=run_name,
            identity={"corpus": corpus_digest(corpus), **processor.identity()},
        )


def describe_pretraining_attention(
    processor: Processor, modality: str, objective: PretrainingObjective, recipe: Any
) -> str:
    """Returns the attention implementations that pretraining on a modality uses, and why.

    Args:
      processor: of the model.
      modality: of the corpus.
      objective: what is predicted.
      recipe: its `batch_size` and `seq_len` are those of a batch.
    """

    def ints(*shape):
        return jax.ShapeDtypeStruct((recipe.batch_size, *shape), jnp.int32)

    if modality in processor.layouts:
        batch = {modality: ints(), "segments": ints(len(processor.layouts[modality].positions()))}
    else:
        batch = {"tokens": ints(recipe.seq_len), "segments": ints(recipe.seq_len)}
        if not shares_rows(objective):
            batch["length"] = ints()
    return describe_attention(processor.model, batch, objective)


def shares_rows(objective: PretrainingObjective) -> bool:
    """Returns whether a row of text may hold several documents."""
    # Bag-of-words targets are those of a whole row, so a row holds one document.
    return objective.bag_of_words == 0


def _text_batches(chunks: list[np.ndarray], recipe: Recipe, seed: int) -> Batches:
    return text_batches(
        [chunks],
        batch_size=recipe.batch_size,
        length=recipe.seq_len,
        seed=seed,
        share_rows=shares_rows(recipe.objective),
    )


def _patch_batches(
    corpus: Split, idx: np.ndarray, layout: PatchLayout, batch_size: int, seed: int
) -> Batches:
    patches: Any = PatchesOnDemand(corpus.array, idx, layout)
    # Larger ones are read from the index on disk when they are drawn.
    if math.prod(patches.shape) * patches[0].itemsize <= MAX_PATCH_BYTES:
        patches = layout.to_patches(corpus.array(idx))
    return patch_batches(
        [patches], layout.positions(), batch_size=batch_size, seed=seed, modality=layout.modality
    )
