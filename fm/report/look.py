"""What a page of attention maps shows: one input, one model, its weights by layer and head."""

import dataclasses

import numpy as np

from fm.report import heads
from fm.report.tokens import Token


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """The beginning of a text.

    Attributes:
        tokens: those the model read.
        total: how many the whole text has.
    """

    tokens: list[Token]
    total: int


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture in square patches, row by row.

    Attributes:
        pixels: uint8 [height, width, 1 or 3].
        patch: side of a patch in pixels.
        start: whether a start piece leads the patches.
    """

    pixels: np.ndarray
    patch: int
    start: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.pixels.shape[:2]
        return height // self.patch, width // self.patch

    def corner(self, patch: int) -> tuple[int, int]:
        """Row and column of a patch."""
        row, column = divmod(patch, self.grid[1])
        return row, column

    def queries(self, most: int = 4) -> list[int]:
        """The patches of most contrast that lie apart from each other, ascending.

        Apart is at least a third of the picture's shorter side.
        """
        rows, columns = self.grid
        side, channels = self.patch, self.pixels.shape[2]
        tiles = self.pixels.reshape(rows, side, columns, side, channels).swapaxes(1, 2)
        spread = tiles.reshape(rows * columns, -1).astype(float).std(-1)
        apart = heads.patches_apart(rows, columns, start=False)
        taken: list[int] = []
        for patch in np.argsort(-spread, kind="stable"):
            if len(taken) < most and all(apart[patch, taken] >= max(1, min(rows, columns) / 3)):
                taken.append(int(patch))
        return sorted(taken)


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """Where the pieces of one input looked.

    Attributes:
        weights_NHLS: by layer, head, query and key; rows sum to one.
        seen_LS: bool, which keys a query could see.
        causal: whether a piece sees only itself and those before it.
        shown: the input.
        facts: lines about the model and the input, as (name, value).
    """

    weights_NHLS: np.ndarray
    seen_LS: np.ndarray
    causal: bool
    shown: Text | Picture
    facts: tuple[tuple[str, str], ...] = ()

    def distances(self) -> np.ndarray:
        """Between pieces, in tokens or patches, float64 [L, L]; NaN to a start piece."""
        if isinstance(self.shown, Text):
            return heads.steps(len(self.shown.tokens))
        return heads.patches_apart(*self.shown.grid, self.shown.start)

    def habits(self) -> list[list[heads.Habits]]:
        """Of every layer's heads."""
        apart = self.distances()
        return [
            [heads.habits(w, self.seen_LS, apart) for w in layer] for layer in self.weights_NHLS
        ]

    def even(self) -> heads.Habits:
        """What attention spread evenly over all that is in sight would give."""
        return heads.habits(heads.even(self.seen_LS), self.seen_LS, self.distances())
