"""Pretraining for an arm: corpus to checkpoint, the same number of steps whatever it is fed."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import Batches, patch_batches, text_batches
from fm.data.datasets import Split
from fm.data.layouts import Layout
from fm.data.patches import tokenize_chunks
from fm.errors import UserError, error_context
from fm.model.config import ModelConfig
from fm.study.config import Recipe
from fm.study.processing import (
    Processor,
    bytes_per_token,
    corpus_digest,
    token_counts,
    train_validation_split,
)
from fm.training import sweep, train_state
from fm.training.checkpoint import load_params
from fm.training.config import TrainConfig, TrainResult
from fm.training.metric_units import BitsPerByte, BitsPerDimension
from fm.training.multitask import AnyObjective, MultitaskObjective, from_dict
from fm.training.objectives import Objective, inverse_frequency_weights
from fm.training.runtime import gemm_flops_per_second
from fm.training.sweep import Trial
from fm.training.train_loop import train


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A pretrained model: how it reads, its parameters, and what pretraining asked of it."""

    processor: Processor
    params: dict
    objective: AnyObjective

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of what was pretrained together; () of one format alone."""
        objective = self.objective
        return (
            tuple(name for name, _ in objective.groups)
            if isinstance(objective, MultitaskObjective)
            else ()
        )

    def objective_of(self, group: str) -> Objective:
        """What was asked of a format; of the only one whatever it is called."""
        objective = self.objective
        return (
            dict(objective.groups)[group]
            if isinstance(objective, MultitaskObjective)
            else objective
        )


def load_pretrained(folder: pathlib.Path) -> PretrainedModel:
    """A pretrained model as `pretrain` left it.

    The tokenizer lies with the checkpoints, or one folder up where several seeds share it.

    Raises:
      UserError: the folder holds no checkpoint, or no tokenizer where one is needed, or another's.
    """
    params, config = load_params(folder / "checkpoints")
    with error_context(folder):
        if not isinstance(config, dict) or not {"model", "objective"} <= config.keys():
            raise UserError("holds a run, but not one of experiments.pretrain")
        model, tokenizer = ModelConfig.from_dict(config["model"]), None
        if model.vocab_size:
            own, shared = folder / "tokenizer.json", folder.resolve().parent / "tokenizer.json"
            path = shared if shared.exists() and not own.exists() else own
            tokenizer = bpe.load(path)
            if config.get("tokenizer", tokenizer.digest()) != tokenizer.digest():
                raise UserError(f"{path} is not the tokenizer that the checkpoint was trained with")
        layouts = config.get("layouts", {})
        if not isinstance(layouts, dict):
            raise UserError(f"layouts are objects by format, not {layouts!r:.60}")
        layouts = {name: Layout.from_dict(each) for name, each in layouts.items()}
        reads = Processor(model, tokenizer, layouts)
        return PretrainedModel(reads, params, from_dict(config["objective"]))


def pretrain(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    processor: Processor,
    *,
    seed: int,
    out_dir: pathlib.Path,
    run_name: str,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    early_stopping_patience: int | None = None,
) -> TrainResult:
    """Trains a fresh model on a corpus, or goes on where an earlier call stopped.

    Two in a hundred examples (500 at most) are held out for the validation curve.
    """
    run = _run(
        corpus,
        modality,
        recipe,
        processor,
        seed=seed,
        out=out_dir,
        label=run_name,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
        early_stop=early_stopping_patience,
    )
    return train(
        run.params,
        run.batches,
        processor.model,
        recipe.objective,
        run.optimizer_config,
        run.train_config,
        out_dir=out_dir,
        metric_unit=run.metric_unit,
        token_weights=run.token_weights,
        validation=run.validation,
        run_name=run_name,
        gemm_flops_per_second=gemm_flops_per_second(processor.model.dtype),
        identity=run.identity,
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
    """`pretrain` for seeds 0 to `seeds` - 1, several of them as one program.

    Each leaves its own folder, `out_dir`/seed-N; the checkpoint of all while they train is in
    `out_dir`/grid.

    Raises:
      UserError: the loss of a seed stopped being finite.
    """
    if seeds == 1:
        folder = out_dir / "seed-0"
        only = pretrain(
            corpus, modality, recipe, processor, seed=0, out_dir=folder, run_name=run_name
        )
        return [only]
    members = [
        _run(
            corpus,
            modality,
            recipe,
            processor,
            seed=seed,
            out=out_dir / f"seed-{seed}",
            label=f"{run_name}, seed {seed}",
        )
        for seed in range(seeds)
    ]
    done = sweep.sweep(
        members,
        processor.model,
        recipe.objective,
        out_dir=out_dir / "grid",
        run_name=f"{run_name}, {seeds} seeds",
        gemm_flops_per_second=gemm_flops_per_second(processor.model.dtype),
    )
    for reason in filter(None, done.stop_reasons):
        raise UserError(reason)
    return done.results


def _run(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    reads: Processor,
    *,
    seed: int,
    out: pathlib.Path,
    label: str,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    early_stop: int | None = None,
) -> Trial:
    """What training takes: the seed draws the start, the held-out examples and the order."""
    used, held = train_validation_split(len(corpus), seed)
    print(f"{label}: reading {len(used)} examples …", file=sys.stderr, flush=True)
    if modality == "text":
        assert reads.tokenizer is not None
        texts = corpus.texts(used)
        pieces = tokenize_chunks(reads.tokenizer, texts, recipe.seq_len)
        counts = token_counts(pieces, reads.model.vocab_size)
        weights = inverse_frequency_weights(
            jnp.asarray(counts, jnp.float32), recipe.objective.frequency_exponent
        )
        unit = BitsPerByte(bytes_per_token(texts, counts))
        held_pieces = tokenize_chunks(reads.tokenizer, corpus.texts(held), recipe.seq_len)
        share = recipe.objective.bag_of_words == 0
        batches = _text(pieces, recipe, seed, share_rows=share)
        validation = _text(held_pieces, recipe, seed, share_rows=share)
    else:
        weights, unit = None, BitsPerDimension()
        layout = reads.layouts[modality]
        batches = _continuous(corpus, used, layout, recipe.batch_size, seed)
        validation = _continuous(corpus, held, layout, recipe.batch_size, seed)
    run = TrainConfig(
        steps=recipe.steps,
        seed=seed,
        checkpoint_every=checkpoint_every or max(100, recipe.steps // 4),
        log_every=max(1, recipe.steps // 50),
        validate_every=validate_every or max(1, recipe.steps // 8),
        early_stopping_patience=early_stop,
    )
    return Trial(
        functools.partial(train_state.init_sharded, jax.random.key(seed), reads.model),
        batches,
        recipe.optimizer,
        run,
        unit,
        out_dir=out,
        token_weights=weights,
        validation=[next(validation) for _ in range(4)],
        run_name=label,
        identity={
            "corpus": corpus_digest(corpus),
            **reads.identity(),
        },
    )


def _text(pieces: list[np.ndarray], recipe: Recipe, seed: int, *, share_rows: bool) -> Batches:
    return text_batches(
        [pieces],
        batch_size=recipe.batch_size,
        length=recipe.seq_len,
        seed=seed,
        share_rows=share_rows,
    )


def _continuous(
    corpus: Split, indices: np.ndarray, layout: Layout, batch_size: int, seed: int
) -> Batches:
    """Batches of the pieces of some examples."""
    pieces = layout.to_patches(np.asarray(corpus.inputs(indices)))
    return patch_batches(
        [pieces], layout.positions(), batch_size=batch_size, seed=seed, modality=layout.modality
    )
