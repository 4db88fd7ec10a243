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
from fm.data.batches import Batches, piece_batches, text_batches
from fm.data.layouts import Layout
from fm.data.pieces import text_pieces
from fm.data.splits import Split
from fm.errors import UserError, about
from fm.model.config import ModelConfig
from fm.study.config import Recipe
from fm.study.corpora import bytes_per_token, corpus_digest, held_out, token_counts
from fm.study.reading import Reader
from fm.training import grid, sharding
from fm.training.checkpoint import load_params
from fm.training.joint import Asked, Joint, from_plain
from fm.training.loop import train
from fm.training.objectives import Objective, rarity_weights
from fm.training.peak import gemm_rate
from fm.training.roster import Member
from fm.training.run import RunConfig, Trained
from fm.training.unit import BitsPerByte, BitsPerDimension


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained model: how it reads, its parameters, and what pretraining asked of it."""

    reads: Reader
    params: dict
    objective: Asked

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of what was pretrained together; () of one format alone."""
        objective = self.objective
        return tuple(name for name, _ in objective.groups) if isinstance(objective, Joint) else ()

    def objective_of(self, group: str) -> Objective:
        """What was asked of a format; of the only one whatever it is called."""
        objective = self.objective
        return dict(objective.groups)[group] if isinstance(objective, Joint) else objective


def restore(folder: pathlib.Path) -> Pretrained:
    """A pretrained model as `pretrain` left it.

    The tokenizer lies with the checkpoints, or one folder up where several seeds share it.

    Raises:
      UserError: the folder holds no checkpoint, or no tokenizer where one is needed, or another's.
    """
    params, config = load_params(folder / "checkpoints")
    with about(folder):
        if not isinstance(config, dict) or not {"model", "objective"} <= config.keys():
            raise UserError("holds a run, but not one of experiments.pretrain")
        model, tokenizer = ModelConfig.from_plain(config["model"]), None
        if model.vocab:
            own, shared = folder / "tokenizer.json", folder.resolve().parent / "tokenizer.json"
            path = shared if shared.exists() and not own.exists() else own
            tokenizer = bpe.load(path)
            if config.get("tokenizer", tokenizer.digest()) != tokenizer.digest():
                raise UserError(f"{path} is not the tokenizer that the checkpoint was trained with")
        layouts = config.get("layouts", {})
        if not isinstance(layouts, dict):
            raise UserError(f"layouts are objects by format, not {layouts!r:.60}")
        layouts = {name: Layout.from_plain(each) for name, each in layouts.items()}
        reads = Reader(model, tokenizer, layouts)
        return Pretrained(reads, params, from_plain(config["objective"]))


def pretrain(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    reads: Reader,
    *,
    seed: int,
    out: pathlib.Path,
    label: str,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    early_stop: int | None = None,
) -> Trained:
    """Trains a fresh model on a corpus, or goes on where an earlier call stopped.

    Two in a hundred examples (500 at most) are held out for the validation curve.
    """
    run = _run(
        corpus,
        modality,
        recipe,
        reads,
        seed=seed,
        out=out,
        label=label,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
        early_stop=early_stop,
    )
    return train(
        run.params,
        run.batches,
        reads.model,
        recipe.objective,
        run.rule,
        run.run,
        out=out,
        unit=run.unit,
        token_weights=run.token_weights,
        validation=run.validation,
        label=label,
        peak=gemm_rate(reads.model.dtype),
        identity=run.identity,
    )


def pretrain_seeds(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    reads: Reader,
    *,
    seeds: int,
    out: pathlib.Path,
    label: str,
) -> list[Trained]:
    """`pretrain` for seeds 0 to `seeds` - 1, several of them as one program.

    Each leaves its own folder, `out`/seed-N; the checkpoint of all while they train is in
    `out`/grid.

    Raises:
      UserError: the loss of a seed stopped being finite.
    """
    if seeds == 1:
        folder = out / "seed-0"
        only = pretrain(corpus, modality, recipe, reads, seed=0, out=folder, label=label)
        return [only]
    members = [
        _run(
            corpus,
            modality,
            recipe,
            reads,
            seed=seed,
            out=out / f"seed-{seed}",
            label=f"{label}, seed {seed}",
        )
        for seed in range(seeds)
    ]
    done = grid.train(
        members,
        reads.model,
        recipe.objective,
        out=out / "grid",
        label=f"{label}, {seeds} seeds",
        peak=gemm_rate(reads.model.dtype),
    )
    for reason in filter(None, done.stopped):
        raise UserError(reason)
    return done.trained


def _run(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    reads: Reader,
    *,
    seed: int,
    out: pathlib.Path,
    label: str,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    early_stop: int | None = None,
) -> Member:
    """What training takes: the seed draws the start, the held-out examples and the order."""
    used, held = held_out(len(corpus), seed)
    print(f"{label}: reading {len(used)} examples …", file=sys.stderr, flush=True)
    if modality == "text":
        assert reads.tokenizer is not None
        texts = corpus.texts(used)
        pieces = text_pieces(reads.tokenizer, texts, recipe.length)
        counts = token_counts(pieces, reads.model.vocab)
        weights = rarity_weights(jnp.asarray(counts, jnp.float32), recipe.objective.rarity)
        unit = BitsPerByte(bytes_per_token(texts, counts))
        held_pieces = text_pieces(reads.tokenizer, corpus.texts(held), recipe.length)
        share = recipe.objective.bag == 0
        batches = _text(pieces, recipe, seed, share_rows=share)
        validation = _text(held_pieces, recipe, seed, share_rows=share)
    else:
        weights, unit = None, BitsPerDimension()
        layout = reads.layouts[modality]
        batches = _continuous(corpus, used, layout, recipe.batch_size, seed)
        validation = _continuous(corpus, held, layout, recipe.batch_size, seed)
    run = RunConfig(
        steps=recipe.steps,
        seed=seed,
        checkpoint_every=checkpoint_every or max(100, recipe.steps // 4),
        log_every=max(1, recipe.steps // 50),
        validate_every=validate_every or max(1, recipe.steps // 8),
        early_stop=early_stop,
    )
    return Member(
        functools.partial(sharding.fresh, jax.random.key(seed), reads.model),
        batches,
        recipe.optimizer,
        run,
        unit,
        out=out,
        token_weights=weights,
        validation=[next(validation) for _ in range(4)],
        label=label,
        identity={
            "corpus": corpus_digest(corpus),
            **reads.facts(),
        },
    )


def _text(pieces: list[np.ndarray], recipe: Recipe, seed: int, *, share_rows: bool) -> Batches:
    return text_batches(
        [pieces],
        batch_size=recipe.batch_size,
        length=recipe.length,
        seed=seed,
        share_rows=share_rows,
    )


def _continuous(
    corpus: Split, indices: np.ndarray, layout: Layout, batch_size: int, seed: int
) -> Batches:
    """Batches of the pieces of some examples."""
    pieces = layout.cut(np.asarray(corpus.inputs(indices)))
    return piece_batches(
        [pieces], layout.positions(), batch_size=batch_size, seed=seed, stream=layout.modality
    )
