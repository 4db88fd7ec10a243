"""A page that shows where each token or patch of one input attends, by layer and head."""

import base64
import dataclasses
import hashlib
import io
import unicodedata
from collections.abc import Iterator, Sequence
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
from matplotlib.ticker import MaxNLocator

from fm.errors import UserError
from fm.files import atomic_write
from fm.report import formats, style
from fm.report.pages import data_uri, template_environment

MAX_NAMED_TOKENS = 12  # that still fit beside a panel by name, two panels in a line
# Color of the heaviest patch; the image under it is paled, so that only the weights are strong.
_HEAT = (225, 85, 0)
_OUT_OF_SIGHT = "#e9e9e9"
# What a weight of 1 is written as, in two bytes.
_WEIGHT_UNIT = 65535
_MARKS = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclasses.dataclass(frozen=True)
class DisplayToken:
    """A token as readable text: spaces and control characters marked, partial bytes spelled out.

    Attributes:
      parts: what is shown, as (text, whether it is a mark that stands for something else).
      name: the same in plain text, for a title.
      partial_character: the character of which the token holds only some bytes; "" if none.
      line_breaks: how many line breaks it holds.
    """

    parts: tuple[tuple[str, bool], ...]
    name: str
    partial_character: str = ""
    line_breaks: int = 0

    @property
    def num_letters(self) -> int:
        """Returns the number of characters that stand for themselves."""
        return sum(len(text) for text, mark in self.parts if not mark)


def special_token(name: str) -> DisplayToken:
    """Returns the display form of a token that stands for no text, such as BOS."""
    return DisplayToken(((name, True),), name)


def to_display_tokens(spelled: Sequence[bytes]) -> list[DisplayToken]:
    """Converts a text's tokens, given as bytes, to readable text with special characters marked.

    The text may end in mid-character.
    """
    owners = _owners(b"".join(spelled))
    tokens, start = [], 0
    for token in spelled:
        tokens.append(_display_token(token, owners[start : start + len(token)]))
        start += len(token)
    return tokens


def _owners(text: bytes) -> list[tuple[str, int]]:
    """For every byte its character and which byte of it this is; "" where it belongs to none."""
    owners: list[tuple[str, int]] = []
    for character in text.decode("utf-8", "surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            owners.append(("", 0))
        else:
            owners += [(character, n) for n in range(len(character.encode()))]
    return owners


def _display_token(token: bytes, owners: list[tuple[str, int]]) -> DisplayToken:
    parts: list[tuple[str, bool]] = []
    partial_character = ""
    n = 0
    while n < len(token):
        character, place = owners[n]
        size = len(character.encode())
        if character and place == 0 and n + size <= len(token):
            text, mark = _shown(character)
            # A combining mark that has no letter here gets a circle to stand on.
            alone = unicodedata.category(character)[0] == "M" and (not parts or parts[-1][1])
            parts.append((f"◌{text}" if alone else text, mark))
            n += size
        else:
            parts.append((f"{token[n]:02X}", True))
            partial_character = partial_character or character
            n += 1
    joined: list[tuple[str, bool]] = []
    for text, mark in parts:
        if joined and not mark and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + text, False)
        else:
            joined.append((text, mark))
    name = "".join(text for text, _ in parts)
    return DisplayToken(tuple(joined), name, partial_character, token.count(b"\n"))


def _shown(character: str) -> tuple[str, bool]:
    """A character as it is shown, and whether that is a mark."""
    if character in _MARKS:
        return _MARKS[character], True
    if not character.isprintable():
        return f"U+{ord(character):04X}", True
    return character, False


@dataclasses.dataclass(frozen=True)
class HeadSummary:
    """Mean attention distance, entropy and other averages of a head over its queries.

    Only queries that see more than one key count; None if there are none.

    Attributes:
      distance: between query and key, in the unit of the distances given; keys without a distance
        are left out and the others weighted accordingly.
      entropy_bits: of the weights; 2 to its power is the effective number of keys.
      self_weight: weight on the query's own token.
      previous_weight: weight on the token before it; the first query has none.
      first_weight: weight on the first token.
    """

    distance: float | None
    entropy_bits: float | None
    self_weight: float | None
    previous_weight: float | None
    first_weight: float | None


def summarize_head(
    weights_LS: np.ndarray, visible_LS: np.ndarray, distance_LS: np.ndarray
) -> HeadSummary:
    """Returns an attention head's averages over queries: distance, entropy and more.

    Args:
      weights_LS: attention weights; rows sum to one.
      visible_LS: bool, which keys a query could see.
      distance_LS: between query and key, NaN where there is none.
    """
    choosing_L = visible_LS.sum(-1) > 1
    w = np.asarray(weights_LS, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_L = -np.sum(np.where(w > 0, w * np.log2(w), 0.0), axis=-1)
        located = np.where(np.isnan(distance_LS), 0.0, w)
        distance_L = np.sum(located * np.nan_to_num(distance_LS), axis=-1) / located.sum(-1)
    previous_L = np.concatenate([[np.nan], np.diagonal(w, -1)])

    def mean(values_L: np.ndarray) -> float | None:
        finite = values_L[choosing_L & np.isfinite(values_L)]
        return float(finite.mean()) if len(finite) else None

    return HeadSummary(
        distance=mean(distance_L),
        entropy_bits=mean(np.maximum(entropy_L, 0.0)),
        self_weight=mean(np.diagonal(w)),
        previous_weight=mean(previous_L),
        first_weight=mean(w[:, 0]),
    )


def uniform_weights(visible_LS: np.ndarray) -> np.ndarray:
    """Returns attention weights spread equally over the visible keys, float64 [L, S]."""
    return visible_LS / np.maximum(visible_LS.sum(-1, keepdims=True), 1)


def token_distances(length: int) -> np.ndarray:
    """Returns the absolute position differences of text tokens, float64 [L, L]."""
    place = np.arange(length, dtype=np.float64)
    return np.abs(place[:, None] - place)


def patch_distances(rows: int, columns: int, start: bool) -> np.ndarray:
    """Returns distances between patches of a grid, float64 [L, L]; NaN for a start token.

    Args:
      rows: of the grid.
      columns: of the grid.
      start: whether a start token precedes the patches; its distances are NaN.
    """
    place = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1).astype(np.float64)
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    return np.pad(distance, ((1, 0), (1, 0)), constant_values=np.nan) if start else distance


@dataclasses.dataclass(frozen=True, eq=False)
class TextInput:
    """The displayed tokens of a text that a model read, and the token count of the whole text."""

    tokens: list[DisplayToken]
    total: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageInput:
    """An image that a model read as square patches in row-major order.

    Attributes:
      pixels: uint8 [height, width, 1 or 3].
      patch_size: side of a patch in pixels.
      has_start_token: whether a start token precedes the patches.
    """

    pixels: np.ndarray
    patch_size: int
    has_start_token: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Returns the numbers of rows and columns of patches."""
        height, width = self.pixels.shape[:2]
        return height // self.patch_size, width // self.patch_size

    def corner(self, patch: int) -> tuple[int, int]:
        """Returns the row and column of a patch."""
        row, column = divmod(patch, self.grid[1])
        return row, column

    def queries(self, most: int = 4) -> list[int]:
        """Returns patches of high contrast that are far from each other, ascending.

        Any two are at least a third of the image's shorter side apart.
        """
        rows, columns = self.grid
        side, channels = self.patch_size, self.pixels.shape[2]
        tiles = self.pixels.reshape(rows, side, columns, side, channels).swapaxes(1, 2)
        contrast = tiles.reshape(rows * columns, -1).astype(float).std(-1)
        distance = patch_distances(rows, columns, start=False)
        apart = max(1, min(rows, columns) / 3)
        taken: list[int] = []
        for patch in np.argsort(-contrast, kind="stable"):
            if len(taken) < most and all(distance[patch, taken] >= apart):
                taken.append(int(patch))
        return sorted(taken)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention weights of one input, with the model and input texts of its report page.

    Attributes:
      weights_NHLS: by layer, head, query and key; rows sum to one.
      visible_LS: bool, which keys a query could see.
      causal: whether a token sees only itself and those before it.
      input: what the model read.
      facts: lines about the model and the input, as (name, value).
    """

    weights_NHLS: np.ndarray
    visible_LS: np.ndarray
    causal: bool
    input: TextInput | ImageInput
    facts: tuple[tuple[str, str], ...] = ()

    def distances(self) -> np.ndarray:
        """Returns distances between tokens or patches, float64 [L, L]; NaN to a start token."""
        if isinstance(self.input, TextInput):
            return token_distances(len(self.input.tokens))
        return patch_distances(*self.input.grid, self.input.has_start_token)

    def head_summaries(self) -> list[list[HeadSummary]]:
        """Returns a summary of every head, by layer."""
        distance = self.distances()
        return [
            [summarize_head(w, self.visible_LS, distance) for w in layer]
            for layer in self.weights_NHLS
        ]

    def uniform_summary(self) -> HeadSummary:
        """Returns the summary of a head that attends to all visible keys equally."""
        return summarize_head(uniform_weights(self.visible_LS), self.visible_LS, self.distances())


def layer_figures(maps: AttentionMaps) -> Iterator[tuple[str, Figure]]:
    """Yields (caption, figure) of every layer, with one panel per head."""
    choosing = maps.visible_LS.sum(-1) > 1
    most = float(np.max(maps.weights_NHLS[:, :, choosing], initial=0.0)) or 1.0
    for n, weights_HLS in enumerate(maps.weights_NHLS):
        if isinstance(maps.input, TextInput):
            yield f"layer {n + 1}", _text_figure(maps, maps.input, weights_HLS, most)
            continue
        for start in range(0, len(weights_HLS), 4):
            some = weights_HLS[start : start + 4]
            last = f"–{start + len(some)}" if len(some) > 1 else ""
            caption = f"layer {n + 1}, head{'s' if last else ''} {start + 1}{last}"
            yield caption, _image_figure(maps, maps.input, some, start)


def _text_figure(
    maps: AttentionMaps, text: TextInput, weights_HLS: np.ndarray, most: float
) -> Figure:
    """Query down, key across, the square root of the weight as color, darkest from `most` on."""
    H, L = weights_HLS.shape[:2]
    named = L <= MAX_NAMED_TOKENS
    columns = min(H, 2 if H <= 4 or named else 4)
    lines = -(-H // columns)
    colors = mpl.colormaps["Blues"].with_extremes(bad=_OUT_OF_SIGHT)
    with style.plot_style():
        figure = style.new_figure(0.4 + (style.WIDTH - 0.6) / columns * lines)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        image = None
        for h, axes in enumerate(panels.ravel()):
            if h >= H:
                axes.set_visible(False)
                continue
            image = axes.imshow(
                np.ma.masked_array(weights_HLS[h], ~maps.visible_LS),
                cmap=colors,
                norm=PowerNorm(0.5, 0.0, most, clip=True),
                extent=(0.5, L + 0.5, L + 0.5, 0.5),
                interpolation="nearest",
            )
            axes.set_title(f"head {h + 1}")
            axes.grid(False)
            axes.tick_params(labelsize=style.SMALL, length=2)
            if named:
                names = [_drawable(token.name) for token in text.tokens]
                axes.set_xticks(range(1, L + 1), names, rotation=90, fontsize=style.SMALL)
                axes.set_yticks(range(1, L + 1), names, fontsize=style.SMALL)
            else:
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_major_locator(MaxNLocator(5, integer=True))
        figure.supylabel("from", fontsize=style.SMALL)
        figure.supxlabel("to", fontsize=style.SMALL)
        assert image is not None
        bar = figure.colorbar(image, ax=panels.ravel().tolist(), aspect=30, pad=0.02)
        ticks = [tick for tick in (0, 0.01, 0.03, 0.1, 0.25, 0.5, 1) if tick <= most]
        bar.set_ticks(ticks, labels=[f"{tick:.0%}" for tick in ticks])
        bar.ax.tick_params(labelsize=style.SMALL)
    return figure


def _drawable(name: str) -> str:
    """The name with a box for each character the plots' typeface lacks."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known else "□" for letter in name)


def _image_figure(
    maps: AttentionMaps, image: ImageInput, weights_HLS: np.ndarray, first: int
) -> Figure:
    """A line for each chosen query patch, a column for each head, the weight as orange."""
    queries = image.queries()
    lead = int(image.has_start_token)
    columns = 1 + len(weights_HLS)
    height = image.pixels.shape[0] / image.pixels.shape[1]
    with style.plot_style():
        figure = style.new_figure(0.35 + len(queries) * (0.3 + style.WIDTH / columns * height))
        panels = figure.subplots(len(queries), columns, squeeze=False)
        for line, query in enumerate(queries):
            visible = maps.visible_LS[query + lead, lead:]
            _draw_pixels(panels[line, 0], image.pixels)
            panels[line, 0].set_xlabel("from the blue patch", fontsize=style.SMALL)
            for h, weights_LS in enumerate(weights_HLS):
                axes, w = panels[line, 1 + h], weights_LS[query + lead]
                _draw_pixels(axes, overlay_weights(image, w[lead:], visible))
                most = f"most {formats.percent(w[lead:].max())}"
                start = f"start {formats.percent(w[0])}\n" if lead else ""
                axes.set_xlabel(start + most, fontsize=style.SMALL)
                if line == 0:
                    axes.set_title(f"head {first + h + 1}")
            for axes in panels[line]:
                _outline(axes, image, query)
    return figure


def overlay_weights(image: ImageInput, weights_L: np.ndarray, visible_L: np.ndarray) -> np.ndarray:
    """Returns an image in gray with attention weights in color, uint8 [height, width, 3].

    The heaviest patch is nearly all orange, the others in proportion; invisible ones fade.
    """
    gray = 255.0 - 0.4 * (255.0 - image.pixels.astype(np.float64).mean(-1, keepdims=True))
    heat = _per_pixel(weights_L / max(float(weights_L.max()), 1e-12), image)
    faded = 0.8 * ~_per_pixel(visible_L, image)
    mixed = gray * (1 - 0.85 * heat) + np.array(_HEAT, np.float64) * 0.85 * heat
    mixed = mixed * (1 - faded) + 255.0 * faded
    return np.round(mixed).astype(np.uint8)


def _per_pixel(values_L: np.ndarray, image: ImageInput) -> np.ndarray:
    """Spreads a value per patch to a value per pixel, [height, width, 1]."""
    pixels = np.kron(values_L.reshape(image.grid), np.ones((image.patch_size, image.patch_size)))
    return pixels.astype(values_L.dtype)[..., None]


def _draw_pixels(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(np.repeat(pixels, 3 // pixels.shape[2], axis=2), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def _outline(axes: Axes, image: ImageInput, patch: int) -> None:
    row, column = image.corner(patch)
    size = image.patch_size
    at = (column * size - 0.5, row * size - 0.5)
    for color, width in (("white", 2.6), ("#0060a0", 1.4)):
        axes.add_patch(
            Rectangle(at, size, size, fill=False, edgecolor=color, linewidth=width, zorder=3)
        )


def write(maps: AttentionMaps, out_dir: Path) -> Path:
    """Writes `attention_maps.html` into the folder `out_dir`, atomically; returns its path.

    Returns:
      Its path.

    Raises:
      UserError: `out_dir` is a file.
    """
    page = render(maps)
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir}: is a file; the page needs a folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(out_dir / "attention_maps.html", page.encode())
    return out_dir / "attention_maps.html"


def render(maps: AttentionMaps) -> str:
    """Returns the attention page as a self-contained HTML document."""
    environment = template_environment()
    environment.filters |= {
        "percent": formats.percent,
        "count": formats.count,
        "decimal": lambda value: formats.MISSING if value is None else f"{value:.2f}",
        "effective": lambda bits: formats.MISSING if bits is None else f"{2**bits:.1f}",
    }
    # The policy on the page names the one script that may run by its hash.
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "attention_maps.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    summaries = maps.head_summaries()
    shown = maps.input
    return environment.get_template("attention_maps.html.jinja").render(
        maps=maps,
        text=shown if isinstance(shown, TextInput) else None,
        picture=shown if isinstance(shown, ImageInput) else None,
        image=_image_uri(shown) if isinstance(shown, ImageInput) else None,
        summaries=summaries,
        uniform=maps.uniform_summary(),
        figures=[
            (caption, data_uri(style.to_png(figure, levels=256)))
            for caption, figure in layer_figures(maps)
        ],
        data=_script_data(maps, summaries),
        script=script,
        digest=digest,
        max_named_tokens=MAX_NAMED_TOKENS,
    )


def _image_uri(image: ImageInput) -> str | None:
    out = io.BytesIO()
    pixels = np.repeat(image.pixels, 3 // image.pixels.shape[2], axis=2)
    imsave(out, pixels, format="png", metadata={"Software": "fm"})
    return data_uri(out.getvalue())


def _script_data(maps: AttentionMaps, summaries: list[list[HeadSummary]]) -> dict[str, Any]:
    """What the script reads: the weights as little-endian 16-bit integers, in base64."""
    N, H, L = maps.weights_NHLS.shape[:3]
    numbers = np.round(np.clip(maps.weights_NHLS, 0.0, 1.0) * _WEIGHT_UNIT).astype("<u2")
    data: dict[str, Any] = {
        "layers": N,
        "heads": H,
        "length": L,
        "unit": _WEIGHT_UNIT,
        "causal": maps.causal,
        "weights": base64.b64encode(numbers.tobytes()).decode(),
    }
    if isinstance(maps.input, TextInput):
        tokens = maps.input.tokens
        # The most selective head is shown first.
        entropy = [each.entropy_bits or 0.0 for layer in summaries for each in layer]
        return data | {
            "names": [
                t.name + (f" of {t.partial_character}" if t.partial_character else "")
                for t in tokens
            ],
            "head": int(np.argmin(entropy)),
            # A long token says most; in the second half it sees much in either mode.
            "query": max(range(L // 2, L), key=lambda n: tokens[n].num_letters),
        }
    queries = maps.input.queries()
    return data | {
        "rows": maps.input.grid[0],
        "columns": maps.input.grid[1],
        "start": int(maps.input.has_start_token),
        "query": queries[-1] if maps.causal else queries[len(queries) // 2],
    }
