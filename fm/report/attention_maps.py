"""What each head does, in a few numbers, beside what even attention would give."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import imsave
from matplotlib.patches import Rectangle

from fm.errors import UserError
from fm.files import atomic_write
from fm.report import formats, style
from fm.report.pages import data_uri, template_environment


@dataclasses.dataclass(frozen=True)
class HeadSummary:
    """Of one head, means over the queries that see more than one key; None if there are none.

    Attributes:
        distance: how far off it looks, in the unit of the distances given; keys without a
            distance are left out and the others weigh accordingly.
        entropy_bits: in bits; 2 to its power is the number of pieces looked at, as it were.
        self_weight: weight on the query's own piece.
        previous_weight: weight on the piece before it; the first query has none.
        first_weight: weight on the first piece.
    """

    distance: float | None
    entropy_bits: float | None
    self_weight: float | None
    previous_weight: float | None
    first_weight: float | None


def summarize_head(
    weights_LS: np.ndarray, seen_LS: np.ndarray, distance_LS: np.ndarray
) -> HeadSummary:
    """Sums one head up.

    Args:
        weights_LS: rows that sum to one.
        seen_LS: bool, which keys a query could see.
        distance_LS: between query and key, NaN where there is none.
    """
    choosing_L = seen_LS.sum(-1) > 1
    w = np.asarray(weights_LS, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_L = -np.sum(np.where(w > 0, w * np.log2(w), 0.0), axis=-1)
        near = np.where(np.isnan(distance_LS), 0.0, w)
        distance_L = np.sum(near * np.nan_to_num(distance_LS), axis=-1) / near.sum(-1)
    before_L = np.concatenate([[np.nan], np.diagonal(w, -1)])

    def mean(values_L: np.ndarray) -> float | None:
        kept = values_L[choosing_L & np.isfinite(values_L)]
        return float(kept.mean()) if len(kept) else None

    return HeadSummary(
        distance=mean(distance_L),
        entropy_bits=mean(np.maximum(entropy_L, 0.0)),
        self_weight=mean(np.diagonal(w)),
        previous_weight=mean(before_L),
        first_weight=mean(w[:, 0]),
    )


def uniform_weights(seen_LS: np.ndarray) -> np.ndarray:
    """The weights of a query that gives every key it sees the same, float64 [L, S]."""
    return seen_LS / np.maximum(seen_LS.sum(-1, keepdims=True), 1)


def token_distances(length: int) -> np.ndarray:
    """Distances in tokens, float64 [L, L]."""
    place = np.arange(length, dtype=np.float64)
    return np.abs(place[:, None] - place)


def patch_distances(rows: int, columns: int, start: bool) -> np.ndarray:
    """Distances between patches of a grid, row by row, in patches, float64 [L, L].

    Args:
        rows: of the grid.
        columns: of the grid.
        start: a start piece leads them; it lies nowhere, so its distances are NaN.
    """
    place = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1).astype(np.float64)
    apart = np.linalg.norm(place[:, None] - place, axis=-1)
    return np.pad(apart, ((1, 0), (1, 0)), constant_values=np.nan) if start else apart


_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclasses.dataclass(frozen=True)
class DisplayToken:
    """One token.

    Attributes:
        parts: what is shown, as (text, whether it is a mark that stands for something else).
        name: the same in plain text, for a title.
        partial_character: the character of which the token holds some bytes only; "" if none.
        line_breaks: how many line breaks it holds.
    """

    parts: tuple[tuple[str, bool], ...]
    name: str
    partial_character: str = ""
    line_breaks: int = 0

    @property
    def num_letters(self) -> int:
        """How many characters stand for themselves."""
        return sum(len(text) for text, mark in self.parts if not mark)


def special_token(name: str) -> DisplayToken:
    """A token that stands for no text."""
    return DisplayToken(((name, True),), name)


def display_tokens(spelled: list[bytes]) -> list[DisplayToken]:
    """The tokens of a text from their bytes, in order; a text cut in mid-character is fine."""
    whole = b"".join(spelled)
    owner = _owners(whole)
    tokens, start = [], 0
    for piece in spelled:
        tokens.append(_token(piece, owner[start : start + len(piece)]))
        start += len(piece)
    return tokens


def _owners(whole: bytes) -> list[tuple[str, int]]:
    """For every byte its character and which byte of it this is; "" where it belongs to none."""
    owners: list[tuple[str, int]] = []
    for character in whole.decode("utf-8", "surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            owners.append(("", 0))
        else:
            owners += [(character, n) for n in range(len(character.encode()))]
    return owners


def _token(piece: bytes, owners: list[tuple[str, int]]) -> DisplayToken:
    parts: list[tuple[str, bool]] = []
    part_of = ""
    n = 0
    while n < len(piece):
        character, place = owners[n]
        size = len(character.encode())
        if character and place == 0 and n + size <= len(piece):
            text, mark = _shown(character)
            # A mark that has nothing to stand on here gets a circle to stand on.
            alone = unicodedata.category(character)[0] == "M" and (not parts or parts[-1][1])
            parts.append((f"◌{text}" if alone else text, mark))
            n += size
        else:
            parts.append((f"{piece[n]:02X}", True))
            part_of = part_of or character
            n += 1
    joined: list[tuple[str, bool]] = []
    for text, mark in parts:
        if joined and not mark and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + text, False)
        else:
            joined.append((text, mark))
    name = "".join(text for text, _ in parts)
    return DisplayToken(tuple(joined), name, part_of, piece.count(b"\n"))


def _shown(character: str) -> tuple[str, bool]:
    """A character as it is shown, and whether that is a mark."""
    if character == " ":
        return "·", True
    if character in _MARKS:
        return _MARKS[character], True
    if not character.isprintable():
        return f"U+{ord(character):04X}", True
    return character, False


@dataclasses.dataclass(frozen=True, eq=False)
class TextInput:
    """The beginning of a text.

    Attributes:
        tokens: those the model read.
        total: how many the whole text has.
    """

    tokens: list[DisplayToken]
    total: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageInput:
    """A picture in square patches, row by row.

    Attributes:
        pixels: uint8 [height, width, 1 or 3].
        patch_size: side of a patch in pixels.
        has_start_token: whether a start piece leads the patches.
    """

    pixels: np.ndarray
    patch_size: int
    has_start_token: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.pixels.shape[:2]
        return height // self.patch_size, width // self.patch_size

    def corner(self, patch: int) -> tuple[int, int]:
        """Row and column of a patch."""
        row, column = divmod(patch, self.grid[1])
        return row, column

    def queries(self, most: int = 4) -> list[int]:
        """The patches of most contrast that lie apart from each other, ascending.

        Apart is at least a third of the picture's shorter side.
        """
        rows, columns = self.grid
        side, channels = self.patch_size, self.pixels.shape[2]
        tiles = self.pixels.reshape(rows, side, columns, side, channels).swapaxes(1, 2)
        spread = tiles.reshape(rows * columns, -1).astype(float).std(-1)
        apart = patch_distances(rows, columns, start=False)
        taken: list[int] = []
        for patch in np.argsort(-spread, kind="stable"):
            if len(taken) < most and all(apart[patch, taken] >= max(1, min(rows, columns) / 3)):
                taken.append(int(patch))
        return sorted(taken)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where the pieces of one input looked.

    Attributes:
        weights_NHLS: by layer, head, query and key; rows sum to one.
        visible_LS: bool, which keys a query could see.
        causal: whether a piece sees only itself and those before it.
        input: the input.
        facts: lines about the model and the input, as (name, value).
    """

    weights_NHLS: np.ndarray
    visible_LS: np.ndarray
    causal: bool
    input: TextInput | ImageInput
    facts: tuple[tuple[str, str], ...] = ()

    def distances(self) -> np.ndarray:
        """Between pieces, in tokens or patches, float64 [L, L]; NaN to a start piece."""
        if isinstance(self.input, TextInput):
            return token_distances(len(self.input.tokens))
        return patch_distances(*self.input.grid, self.input.has_start_token)

    def head_summaries(self) -> list[list[HeadSummary]]:
        """Of every layer's heads."""
        apart = self.distances()
        return [
            [summarize_head(w, self.visible_LS, apart) for w in layer]
            for layer in self.weights_NHLS
        ]

    def uniform_summary(self) -> HeadSummary:
        """What attention spread evenly over all that is in sight would give."""
        return summarize_head(uniform_weights(self.visible_LS), self.visible_LS, self.distances())


# Of the most looked at; the picture under it is paled, so that only heat is strong.
HEAT = (225, 85, 0)
MAX_NAMED_TOKENS = 20  # tokens that still fit beside a panel by name
_OUT_OF_SIGHT = "#e9e9e9"


def layer_figures(look: AttentionMaps) -> Iterator[tuple[str, Figure]]:
    """Every layer's maps: what a figure shows, and the figure."""
    choosing = look.visible_LS.sum(-1) > 1
    most = float(np.max(look.weights_NHLS[:, :, choosing], initial=0.0)) or 1.0
    for n, weights_HLS in enumerate(look.weights_NHLS):
        if isinstance(look.input, TextInput):
            yield f"layer {n + 1}", _text(look, look.input, weights_HLS, most)
            continue
        for start in range(0, len(weights_HLS), 4):
            some = weights_HLS[start : start + 4]
            last = f"–{start + len(some)}" if len(some) > 1 else ""
            caption = f"layer {n + 1}, head{'s' if last else ''} {start + 1}{last}"
            yield caption, _picture(look, look.input, some, start)


def _text(look: AttentionMaps, shown: TextInput, weights_HLS: np.ndarray, most: float) -> Figure:
    """Query down, key across, the square root of the weight as colour, darkest from `most` on."""
    H, L = weights_HLS.shape[:2]
    columns = min(H, 2 if H <= 4 else 4)
    lines = -(-H // columns)
    colours = mpl.colormaps["Blues"].with_extremes(bad=_OUT_OF_SIGHT)
    with style.plot_style():
        drawn = style.new_figure(0.4 + (style.WIDTH - 0.6) / columns * lines)
        panels = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        drawing = None
        for h, axes in enumerate(panels.ravel()):
            if h >= H:
                axes.set_visible(False)
                continue
            drawing = axes.imshow(
                np.ma.masked_array(weights_HLS[h], ~look.visible_LS),
                cmap=colours,
                norm=PowerNorm(0.5, 0.0, most, clip=True),
                extent=(0.5, L + 0.5, L + 0.5, 0.5),
                interpolation="nearest",
            )
            axes.set_title(f"head {h + 1}")
            axes.grid(False)
            axes.tick_params(labelsize=8, length=2)
            if L <= MAX_NAMED_TOKENS:
                names = [_drawable(token.name) for token in shown.tokens]
                axes.set_xticks(range(1, L + 1), names, rotation=90, fontsize=6)
                axes.set_yticks(range(1, L + 1), names, fontsize=6)
        for axes in panels[:, 0]:
            axes.set_ylabel("from", fontsize=9)
        for axes in panels[-1]:
            axes.set_xlabel("to", fontsize=9)
        assert drawing is not None
        bar = drawn.colorbar(drawing, ax=panels.ravel().tolist(), aspect=30, pad=0.02)
        ticks = [tick for tick in (0, 0.01, 0.03, 0.1, 0.25, 0.5, 1) if tick <= most]
        bar.set_ticks(ticks, labels=[f"{tick:.0%}" for tick in ticks])
        bar.ax.tick_params(labelsize=8)
    return drawn


def _drawable(name: str) -> str:
    """The name with a box for what the plots' typeface lacks."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known else "□" for letter in name)


def _picture(look: AttentionMaps, shown: ImageInput, weights_HLS: np.ndarray, first: int) -> Figure:
    """A line for each chosen query patch, a column for each head, the weight as orange."""
    queries = shown.queries()
    lead = int(shown.has_start_token)
    columns = 1 + len(weights_HLS)
    height = shown.pixels.shape[0] / shown.pixels.shape[1]
    with style.plot_style():
        drawn = style.new_figure(0.35 + len(queries) * (0.3 + style.WIDTH / columns * height))
        panels = drawn.subplots(len(queries), columns, squeeze=False)
        for line, query in enumerate(queries):
            seen = look.visible_LS[query + lead, lead:]
            _draw_pixels(panels[line, 0], shown.pixels)
            panels[line, 0].set_xlabel("from the blue patch", fontsize=8)
            for h, weights_LS in enumerate(weights_HLS):
                axes, w = panels[line, 1 + h], weights_LS[query + lead]
                _draw_pixels(axes, overlay_weights(shown, w[lead:], seen))
                most = f"most {formats.percent(w[lead:].max())}"
                start = f"start {formats.percent(w[0])}\n" if lead else ""
                axes.set_xlabel(start + most, fontsize=8)
                if line == 0:
                    axes.set_title(f"head {first + h + 1}")
            for axes in panels[line]:
                _outline(axes, shown, query)
    return drawn


def overlay_weights(shown: ImageInput, weights_L: np.ndarray, seen_L: np.ndarray) -> np.ndarray:
    """The picture in pale grey under its patches' weights, uint8 [height, width, 3].

    The heaviest patch is nearly all orange, the others in proportion; those out of sight fade.
    """
    grey = 255.0 - 0.4 * (255.0 - shown.pixels.astype(np.float64).mean(-1, keepdims=True))
    heat = _spread(weights_L / max(float(weights_L.max()), 1e-12), shown)
    faded = 0.8 * ~_spread(seen_L, shown)
    mixed = grey * (1 - 0.85 * heat) + np.array(HEAT, np.float64) * 0.85 * heat
    mixed = mixed * (1 - faded) + 255.0 * faded
    return np.round(mixed).astype(np.uint8)


def _spread(values_L: np.ndarray, shown: ImageInput) -> np.ndarray:
    """A value a patch to a value a pixel, [height, width, 1]."""
    pixels = np.kron(values_L.reshape(shown.grid), np.ones((shown.patch_size, shown.patch_size)))
    return pixels.astype(values_L.dtype)[..., None]


def _draw_pixels(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(np.repeat(pixels, 3 // pixels.shape[2], axis=2), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def _outline(axes: Axes, shown: ImageInput, patch: int) -> None:
    row, column = shown.corner(patch)
    at = (column * shown.patch_size - 0.5, row * shown.patch_size - 0.5)
    for colour, width in (("white", 2.6), ("#0060a0", 1.4)):
        axes.add_patch(
            Rectangle(
                at,
                shown.patch_size,
                shown.patch_size,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                zorder=3,
            )
        )


# What a weight of 1 is written as, in two bytes.
_UNIT = 65535


def write(look: AttentionMaps, out: Path) -> Path:
    """Writes `attention_maps.html` into the folder `out`, whole or not at all.

    Returns:
        Its path.

    Raises:
        UserError: `out` is a file.
    """
    page = render(look)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; the page needs a folder")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "attention_maps.html", page.encode())
    return out / "attention_maps.html"


def render(look: AttentionMaps) -> str:
    """The page as HTML: nothing is loaded from outside, and no script runs but its own."""
    environment = template_environment()
    environment.filters |= {
        "percent": formats.percent,
        "count": formats.count,
        "decimal": lambda value: formats.MISSING if value is None else f"{value:.2f}",
        "pieces": lambda bits: formats.MISSING if bits is None else f"{2**bits:.1f}",
    }
    # The policy on the page names the one script that may run by its hash.
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "attention_maps.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    habits = look.head_summaries()
    return environment.get_template("attention_maps.html.jinja").render(
        look=look,
        text=look.input if isinstance(look.input, TextInput) else None,
        picture=look.input if isinstance(look.input, ImageInput) else None,
        image=_image(look.input),
        habits=habits,
        even=look.uniform_summary(),
        maps=[(caption, _map(figure)) for caption, figure in layer_figures(look)],
        data=_data(look, habits),
        script=script,
        digest=digest,
        named=MAX_NAMED_TOKENS,
    )


def _map(figure: Any) -> str | None:
    return data_uri(style.to_png(figure, levels=256))


def _image(shown: TextInput | ImageInput) -> str | None:
    """The picture as a data URI."""
    if isinstance(shown, TextInput):
        return None
    out = io.BytesIO()
    pixels = np.repeat(shown.pixels, 3 // shown.pixels.shape[2], axis=2)
    imsave(out, pixels, format="png", metadata={"Software": "fm"})
    return data_uri(out.getvalue())


def _data(look: AttentionMaps, habits: list[list[HeadSummary]]) -> dict[str, Any]:
    """What the script reads: the weights as 16-bit numbers, little end first, in base64."""
    N, H, L = look.weights_NHLS.shape[:3]
    numbers = np.round(np.clip(look.weights_NHLS, 0.0, 1.0) * _UNIT).astype("<u2")
    shown = look.input
    data: dict[str, Any] = {
        "layers": N,
        "heads": H,
        "length": L,
        "unit": _UNIT,
        "causal": look.causal,
        "weights": base64.b64encode(numbers.tobytes()).decode(),
    }
    if isinstance(shown, TextInput):
        # The head that chooses most is the one shown first.
        names = [
            t.name + (f" of {t.partial_character}" if t.partial_character else "")
            for t in shown.tokens
        ]
        entropy = [each.entropy_bits or 0.0 for layer in habits for each in layer]
        return data | {
            "names": names,
            "head": int(np.argmin(entropy)),
            # A long one says most; in the second half it sees much in either mode.
            "query": max(range(L // 2, L), key=lambda n: shown.tokens[n].num_letters),
        }
    queries = shown.queries()
    return data | {
        "rows": shown.grid[0],
        "columns": shown.grid[1],
        "start": int(shown.has_start_token),
        "query": queries[-1] if look.causal else queries[len(queries) // 2],
    }
