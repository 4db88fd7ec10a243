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

from fm import digests
from fm.data.cache import cache_folder, check, new_folder
from fm.errors import UserError
from fm.files import read_json
from fm.model.config import ModelConfig
from fm.transfer.features import Reading, reader
from fm.transfer.ragged import ragged

# Counted up whenever the same inputs would give other numbers.
_VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """An array and what it cost.

    Attributes:
      values: [N, ...].
      seconds: it took to compute, when that was done.
    """

    values: np.ndarray
    seconds: float


def digest(config: ModelConfig, params: dict) -> str:
    """Of a model's architecture and every one of its numbers; 0.2 s for 100 MB."""
    found = hashlib.blake2b(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        found.update(values.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def features(
    model: str,
    params: dict,
    config: ModelConfig,
    ids: Sequence[np.ndarray],
    reading: Reading,
) -> Stored:
    """Features of texts, float32 [N, depths read, E], from the cache if they are there.

    Args:
      model: `digest` of the model.
      params: of the model.
      config: the model's.
      ids: N texts, int32 [tokens] each.
      reading: see `Reading`; without views, and not "concat".

    Raises:
      UserError: the reading is of another kind or the model not that deep, a text is empty or
        over the context, or what is in the cache cannot be read.
    """
    if reading.view or reading.pool == "concat":
        raise UserError(f"texts of any length are read whole, not as {reading}")
    lengths_N = np.array([len(each) for each in ids])
    if len(lengths_N):
        config.check_length(int(lengths_N.max()))
    read = reader(config, reading)

    def make() -> np.ndarray:
        made = ragged(read, params, ids, context=config.context)
        return made / lengths_N[:, None, None] if reading.pool == "mean" else made

    return kept({"model": model, "reading": dataclasses.asdict(reading)}, ids, make)


def kept(
    about: dict[str, Any], ids: Sequence[np.ndarray], make: Callable[[], np.ndarray]
) -> Stored:
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
    folder = cache_folder() / "features" / found.hexdigest()
    if not folder.is_dir():
        began = time.perf_counter()
        values = make().astype(np.float32)
        seconds = time.perf_counter() - began
        with new_folder(folder) as scratch:
            np.save(scratch / "values.npy", values, allow_pickle=False)
            (scratch / "about.json").write_text(json.dumps({**about, "seconds": seconds}))
            digests.write(scratch)
        return Stored(values, seconds)
    check(folder)
    values = np.load(folder / "values.npy", allow_pickle=False)
    seconds = read_json(folder / "about.json")["seconds"]
    return Stored(values, float(seconds))
