"""Features and scores of texts by a published model, computed once and cached by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fm.adaptation.batching import map_bucketed
from fm.adaptation.features import FeatureConfig, feature_fn
from fm.errors import UserError
from fm.files import atomic_dir, cache_dir, check_cached_digests, read_json, write_digests
from fm.model.config import ModelConfig

# Increased whenever the same inputs would give other numbers.
_VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class CachedFeatures:
    """Features [N, ...] and the seconds it took to compute them when they were first computed."""

    values: np.ndarray
    seconds: float


def cached_features(
    model_digest: str,
    params: dict,
    config: ModelConfig,
    ids: Sequence[np.ndarray],
    feature_config: FeatureConfig,
) -> CachedFeatures:
    """Returns a model's features of token sequences, [N, layers, E]; from the disk cache if there.

    `model_digest` is `fm.hf.model_zoo.PublishedModel.digest`.

    Raises:
      UserError: `feature_config` is of another kind or reads a layer the model lacks, a sequence
        is empty or too long, or the cached files are damaged.
    """
    key = {"model": model_digest, "features": dataclasses.asdict(feature_config)}
    _check_lengths(config, ids, feature_config)
    return cached(key, ids, lambda: compute_features(params, config, ids, feature_config))


def compute_features(
    params: dict,
    config: ModelConfig,
    ids: Sequence[np.ndarray],
    feature_config: FeatureConfig,
    *,
    own_length: bool = False,
) -> np.ndarray:
    """Returns a model's features of token sequences, [N, layers, E], computed now.

    For `own_length` see `fm.adaptation.batching.map_bucketed`.

    Raises:
      UserError: see `cached_features`.
    """
    _check_lengths(config, ids, feature_config)
    fn = feature_fn(config, feature_config)
    values = map_bucketed(fn, params, ids, max_seq_len=config.max_seq_len, own_length=own_length)
    if feature_config.pooling == "mean":
        values = values / np.array([len(tokens) for tokens in ids])[:, None, None]
    return values.astype(np.float32)


def _check_lengths(
    config: ModelConfig, ids: Sequence[np.ndarray], feature_config: FeatureConfig
) -> None:
    if feature_config.chunk_length or feature_config.pooling == "concat":
        raise UserError(f"texts of any length are read whole, not as {feature_config}")
    if len(ids):
        config.check_length(max(map(len, ids)))


def cached(
    key: dict[str, Any], ids: Sequence[np.ndarray], compute: Callable[[], np.ndarray]
) -> CachedFeatures:
    """Returns features from the disk cache, or computes and caches them, with compute seconds.

    The JSON-able `key` says everything the numbers depend on beside the token sequences. The entry
    is a folder that appears whole or not at all.

    Raises:
      UserError: the entry is damaged.
    """
    digest = hashlib.blake2b(json.dumps([_VERSION, key], sort_keys=True).encode(), digest_size=16)
    for tokens in ids:
        digest.update(len(tokens).to_bytes(4, "little"))
        digest.update(np.ascontiguousarray(tokens, np.int32).data)
    folder = cache_dir() / "features" / digest.hexdigest()
    if not folder.is_dir():
        start = time.perf_counter()
        values = compute().astype(np.float32)
        seconds = time.perf_counter() - start
        with atomic_dir(folder) as scratch:
            np.save(scratch / "values.npy", values, allow_pickle=False)
            (scratch / "about.json").write_text(json.dumps({**key, "seconds": seconds}))
            write_digests(scratch)
        return CachedFeatures(values, seconds)
    check_cached_digests(folder)
    values = np.load(folder / "values.npy", allow_pickle=False)
    seconds = read_json(folder / "about.json")["seconds"]
    return CachedFeatures(values, float(seconds))
