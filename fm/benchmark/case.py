"""A case: the same work, done by us and by others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from fm.benchmark.rows import key
from fm.benchmark.timing import Side

# Compiles one implementation. Raises NotImplementedError, with the reason, if it cannot run here.
Build = Callable[[], Side]


@dataclasses.dataclass(frozen=True)
class Case:
    """The same work, done by us and by others; built only when its turn comes.

    Attributes:
      what: kind, as in `--what`.
      name: shapes, in words; with `what` and `dtype` it names the case.
      dtype: of the arithmetic.
      ours: our implementations by name.
      peers: by peer ("torch", "jax"), its ways of doing it by name.
      flops: of one call.
      tokens: pieces of text in one call.
      attention: name of the attention implementation that runs inside.
      without: the same work less what the case is about; what that saves is `share_waited`.
      axis: in a scaling case, what is varied.
      at: in a scaling case, to what.
    """

    what: str
    name: str
    dtype: str
    ours: Mapping[str, Build]
    peers: Mapping[str, Mapping[str, Build]] = dataclasses.field(default_factory=dict)
    flops: float | None = None
    tokens: int | None = None
    attention: str | None = None
    without: Build | None = None
    axis: str | None = None
    at: float | None = None

    @property
    def key(self) -> str:
        """What names the case."""
        return key(self.what, self.name, self.dtype)
