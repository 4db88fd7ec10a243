"""What of a pretrained model adaptation starts from: all of it, or a part, to see what transfers.

Each entry of `TRANSFERS` takes a checkpoint's parameters, fresh ones of the same shapes and a
generator, and returns the parameters to start from. Parameters are those of `fm.model.transformer`:
"streams" (embeddings and output heads) and "layers" (arrays stacked over layers, [N, ...]).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.training.checkpoint import load_params
from fm.training.config import TrainResult

# Fresh parameters are other ones than those that training from scratch starts from.
_FRESH_SEED = 2000

TransferFn = Callable[[dict, dict, np.random.Generator], dict]


def _all(params: dict, fresh: dict, rng: np.random.Generator) -> dict:
    return params


def _embeddings(params: dict, fresh: dict, rng: np.random.Generator) -> dict:
    return {**params, "layers": fresh["layers"]}


def _layers(params: dict, fresh: dict, rng: np.random.Generator) -> dict:
    return {**fresh, "layers": params["layers"]}


def _top_reinitialized(params: dict, fresh: dict, rng: np.random.Generator) -> dict:
    def halves(kept: Any, new: Any) -> np.ndarray:
        first = (len(kept) + 1) // 2
        return np.concatenate([np.asarray(kept)[:first], np.asarray(new)[first:]])

    return {**params, "layers": jax.tree.map(halves, params["layers"], fresh["layers"])}


def _shuffled(params: dict, fresh: dict, rng: np.random.Generator) -> dict:
    def permuted(leaf: Any) -> np.ndarray:
        return rng.permutation(np.asarray(leaf).ravel()).reshape(leaf.shape)

    def permuted_by_layer(leaf: Any) -> np.ndarray:
        return np.stack([permuted(layer) for layer in np.asarray(leaf)])

    others = {name: jax.tree.map(permuted, tree) for name, tree in params.items()}
    return {**others, "layers": jax.tree.map(permuted_by_layer, params["layers"])}


# "top_reinitialized": the upper half of the layers, rounded down, is drawn anew (Zhang et al.
# 2021, Revisiting Few-sample BERT Fine-tuning). "shuffled": the entries of each array are permuted
# within their layer, so that the statistics of the weights stay and what they compute does not
# (after Neyshabur et al. 2020, What is being transferred in transfer learning?, who shuffle the
# inputs).
TRANSFERS: dict[str, TransferFn] = {
    "all": _all,
    "embeddings": _embeddings,
    "layers": _layers,
    "top_reinitialized": _top_reinitialized,
    "shuffled": _shuffled,
}


def check_transfer(how: str, num_layers: int) -> None:
    """Raises UserError if there is no such transfer, or the model has no layers for it."""
    if how not in TRANSFERS:
        raise UserError(f"transfer={how}: must be one of {', '.join(TRANSFERS)}")
    if how == "top_reinitialized" and num_layers < 2:
        raise UserError(
            f"transfer={how}: needs a model of 2 or more layers, and this one has {num_layers}; "
            "set model.num_layers"
        )


def transferred_params(params: dict, model_config: ModelConfig, how: str, seed: int) -> dict:
    """Returns the parameters that adaptation starts from, of a checkpoint's.

    Args:
      params: of the checkpoint; they are not changed.
      model_config: of the model.
      how: a name in `TRANSFERS`.
      seed: draws what is drawn anew or permuted, once for each checkpoint.

    Raises:
      UserError: see `check_transfer`.
    """
    check_transfer(how, model_config.num_layers)
    if how == "all":
        return params
    fresh = init(jax.random.key(_FRESH_SEED + seed), model_config)
    return TRANSFERS[how](params, fresh, np.random.default_rng([_FRESH_SEED, seed]))


def transferred_run(
    run: TrainResult,
    model_config: ModelConfig,
    folder: pathlib.Path,
    *,
    how: str,
    step: int | None,
    seed: int,
) -> TrainResult:
    """Returns a pretraining run as adaptation starts from it: at an earlier step, or in part.

    At an earlier step, cost and tokens are the whole run's times the share of its steps.

    Args:
      run: the finished run.
      model_config: of the model.
      folder: of the run.
      how: see `transferred_params`.
      step: of the checkpoint; None for the last.
      seed: of the run.

    Raises:
      UserError: there is no checkpoint of that step, or see `check_transfer`.
    """
    if step is not None and step != run.steps:
        params, _ = load_params(folder / "checkpoints", step)
        share = step / run.steps
        run = dataclasses.replace(
            run,
            params=params,
            steps=step,
            tokens=round(share * run.tokens),
            **{name: share * getattr(run, name) for name in ("seconds", "cpu_seconds", "flops")},
        )
    return dataclasses.replace(run, params=transferred_params(run.params, model_config, how, seed))
