"""What a published model makes of given texts, computed once and kept by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fm import files
from fm.adaptation.batching import map_bucketed
from fm.adaptation.features import FeatureConfig, feature_fn
from fm.errors import UserError
from fm.files import cache_dir, check_cached, new_dir, read_json
from fm.model.config import ModelConfig

# Counted up whenever the same inputs would give other numbers.
_VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class CachedFeatures:
    """An array and what it cost.

    Attributes:
      values: [N, ...].
      seconds: it took to compute, when that was done.
    """

    values: np.ndarray
    seconds: float


def model_digest(config: ModelConfig, params: dict) -> str:
    """Of a model's architecture and every one of its numbers; 0.2 s for 100 MB."""
    found = hashlib.blake2b(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        found.update(values.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def cached_features(
    model: str,
    params: dict,
    config: ModelConfig,
    ids: Sequence[np.ndarray],
    feature_config: FeatureConfig,
) -> CachedFeatures:
    """Features of texts, float32 [N, depths read, E], from the cache if they are there.

    Args:
      model: `digest` of the model.
      params: of the model.
      config: the model's.
      ids: N texts, int32 [tokens] each.
      feature_config: see `Reading`; without views, and not "concat".

    Raises:
      UserError: the reading is of another kind or the model not that deep, a text is empty or
        over the context, or what is in the cache cannot be read.
    """
    if feature_config.chunk_length or feature_config.pooling == "concat":
        raise UserError(f"texts of any length are read whole, not as {feature_config}")
    lengths_N = np.array([len(each) for each in ids])
    if len(lengths_N):
        config.check_length(int(lengths_N.max()))
    read = feature_fn(config, feature_config)

    def make() -> np.ndarray:
        made = map_bucketed(read, params, ids, max_seq_len=config.max_seq_len)
        return made / lengths_N[:, None, None] if feature_config.pooling == "mean" else made

    return cached({"model": model, "reading": dataclasses.asdict(feature_config)}, ids, make)


def cached(
    about: dict[str, Any], ids: Sequence[np.ndarray], make: Callable[[], np.ndarray]
) -> CachedFeatures:
    """`make`'s array, or what an earlier call with the same `about` and `ids` made.

    It lies in the cache as a folder that appears whole or not at all.

    Args:
      about: JSON-able; everything but the texts that the numbers depend on.
      ids: the texts.
      make: computes them; called if they are not there.

    Raises:
      UserError: what is there is damaged.
    """
    found = hashlib.blake2b(json.dumps([_VERSION, about], sort_keys=True).encode(), digest_size=16)
    for each in ids:
        found.update(len(each).to_bytes(4, "little"))
        found.update(np.ascontiguousarray(each, np.int32).data)
    folder = cache_dir() / "features" / found.hexdigest()
    if not folder.is_dir():
        began = time.perf_counter()
        values = make().astype(np.float32)
        seconds = time.perf_counter() - began
        with new_dir(folder) as scratch:
            np.save(scratch / "values.npy", values, allow_pickle=False)
            (scratch / "about.json").write_text(json.dumps({**about, "seconds": seconds}))
            files.write_digests(scratch)
        return CachedFeatures(values, seconds)
    check_cached(folder)
    values = np.load(folder / "values.npy", allow_pickle=False)
    seconds = read_json(folder / "about.json")["seconds"]
    return CachedFeatures(values, float(seconds))
