"""Attention maps on paper: a figure a layer, a panel a head."""

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle

from fm.report import canvas, formats
from fm.report.look import Look, Picture, Text

# Of the most looked at; the picture under it is paled, so that only heat is strong.
HEAT = (225, 85, 0)
NAMED = 20  # tokens that still fit beside a panel by name
_OUT_OF_SIGHT = "#e9e9e9"


def figures(look: Look) -> Iterator[tuple[str, Figure]]:
    """Every layer's maps: what a figure shows, and the figure."""
    choosing = look.seen_LS.sum(-1) > 1
    most = float(np.max(look.weights_NHLS[:, :, choosing], initial=0.0)) or 1.0
    for n, weights_HLS in enumerate(look.weights_NHLS):
        if isinstance(look.shown, Text):
            yield f"layer {n + 1}", _text(look, look.shown, weights_HLS, most)
            continue
        for start in range(0, len(weights_HLS), 4):
            some = weights_HLS[start : start + 4]
            last = f"–{start + len(some)}" if len(some) > 1 else ""
            caption = f"layer {n + 1}, head{'s' if last else ''} {start + 1}{last}"
            yield caption, _picture(look, look.shown, some, start)


def _text(look: Look, shown: Text, weights_HLS: np.ndarray, most: float) -> Figure:
    """Query down, key across, the square root of the weight as colour, darkest from `most` on."""
    H, L = weights_HLS.shape[:2]
    columns = min(H, 2 if H <= 4 else 4)
    lines = -(-H // columns)
    colours = mpl.colormaps["Blues"].with_extremes(bad=_OUT_OF_SIGHT)
    with canvas.style():
        drawn = canvas.figure(0.4 + (canvas.WIDTH - 0.6) / columns * lines)
        panels = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        drawing = None
        for h, axes in enumerate(panels.ravel()):
            if h >= H:
                axes.set_visible(False)
                continue
            drawing = axes.imshow(
                np.ma.masked_array(weights_HLS[h], ~look.seen_LS),
                cmap=colours,
                norm=PowerNorm(0.5, 0.0, most, clip=True),
                extent=(0.5, L + 0.5, L + 0.5, 0.5),
                interpolation="nearest",
            )
            axes.set_title(f"head {h + 1}")
            axes.grid(False)
            axes.tick_params(labelsize=8, length=2)
            if L <= NAMED:
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


def _picture(look: Look, shown: Picture, weights_HLS: np.ndarray, first: int) -> Figure:
    """A line for each chosen query patch, a column for each head, the weight as orange."""
    queries = shown.queries()
    lead = int(shown.start)
    columns = 1 + len(weights_HLS)
    height = shown.pixels.shape[0] / shown.pixels.shape[1]
    with canvas.style():
        drawn = canvas.figure(0.35 + len(queries) * (0.3 + canvas.WIDTH / columns * height))
        panels = drawn.subplots(len(queries), columns, squeeze=False)
        for line, query in enumerate(queries):
            seen = look.seen_LS[query + lead, lead:]
            _draw_pixels(panels[line, 0], shown.pixels)
            panels[line, 0].set_xlabel("from the blue patch", fontsize=8)
            for h, weights_LS in enumerate(weights_HLS):
                axes, w = panels[line, 1 + h], weights_LS[query + lead]
                _draw_pixels(axes, overlaid(shown, w[lead:], seen))
                most = f"most {formats.percent(w[lead:].max())}"
                start = f"start {formats.percent(w[0])}\n" if lead else ""
                axes.set_xlabel(start + most, fontsize=8)
                if line == 0:
                    axes.set_title(f"head {first + h + 1}")
            for axes in panels[line]:
                _outline(axes, shown, query)
    return drawn


def overlaid(shown: Picture, weights_L: np.ndarray, seen_L: np.ndarray) -> np.ndarray:
    """The picture in pale grey under its patches' weights, uint8 [height, width, 3].

    The heaviest patch is nearly all orange, the others in proportion; those out of sight fade.
    """
    grey = 255.0 - 0.4 * (255.0 - shown.pixels.astype(np.float64).mean(-1, keepdims=True))
    heat = _spread(weights_L / max(float(weights_L.max()), 1e-12), shown)
    faded = 0.8 * ~_spread(seen_L, shown)
    mixed = grey * (1 - 0.85 * heat) + np.array(HEAT, np.float64) * 0.85 * heat
    mixed = mixed * (1 - faded) + 255.0 * faded
    return np.round(mixed).astype(np.uint8)


def _spread(values_L: np.ndarray, shown: Picture) -> np.ndarray:
    """A value a patch to a value a pixel, [height, width, 1]."""
    pixels = np.kron(values_L.reshape(shown.grid), np.ones((shown.patch, shown.patch)))
    return pixels.astype(values_L.dtype)[..., None]


def _draw_pixels(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(np.repeat(pixels, 3 // pixels.shape[2], axis=2), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def _outline(axes: Axes, shown: Picture, patch: int) -> None:
    row, column = shown.corner(patch)
    at = (column * shown.patch - 0.5, row * shown.patch - 0.5)
    for colour, width in (("white", 2.6), ("#0060a0", 1.4)):
        axes.add_patch(
            Rectangle(
                at,
                shown.patch,
                shown.patch,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                zorder=3,
            )
        )
