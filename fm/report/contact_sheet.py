"""Generated pictures of a task as one enlarged sheet, a row for each arm, with their captions."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from fm.report import style
from fm.report.records import Sample

_PNG = b"\x89PNG\r\n\x1a\n"
_COLUMNS, _MAX_ROWS = 6, 8
_MAX_CAPTION = 10
# In inches: lines of a heading and of captions, a gap, and the width of a picture.
_HEADING, _CAPTION, _GAP = 0.24, 0.17, 0.06
_CELL = (style.WIDTH - _GAP) / _COLUMNS - _GAP
# Pictures with more pixels than this are no thumbnails.
_MAX_PIXELS = 4_000_000


def contact_sheet(samples: Sequence[Sample]) -> Figure | None:
    """Draws the pictures of samples, enlarged without smoothing; None if none can be read.

    At most 8 rows of 6, under the names of their arms; arms that share a model share their rows.
    Clips and sounds, which a sheet can't show, are not on it.
    """
    lines = _lines(samples)
    if not lines:
        return None
    heights = [
        _HEADING * bool(each.heading) + each.caption_height + _CELL * each.aspect + _GAP
        for each in lines
    ]
    with style.plot_style():
        figure = Figure(figsize=(style.WIDTH, sum(heights)), dpi=style.DPI, facecolor="white")
        total, top = sum(heights), 0.0
        for line, height in zip(lines, heights, strict=True):
            under = top
            if line.heading:
                under += _HEADING
                figure.text(
                    *(_GAP / style.WIDTH, 1 - (under - 0.06) / total),
                    style.wrap(line.heading, 68, 1),
                    fontsize=style.SMALL,
                    fontweight="bold",
                )
            for column, (caption, pixels) in enumerate(line.pictures):
                left = _GAP + column * (_CELL + _GAP)
                if line.captioned:
                    figure.text(
                        *(left / style.WIDTH, 1 - (under + line.caption_height - 0.05) / total),
                        style.wrap(caption, _MAX_CAPTION),
                        fontsize=style.SMALL,
                    )
                tall = _CELL * pixels.shape[0] / pixels.shape[1]
                down = under + line.caption_height + tall
                box = (left / style.WIDTH, 1 - down / total, _CELL / style.WIDTH, tall / total)
                axes = figure.add_axes(box)
                axes.set_axis_off()
                gray = "gray" if pixels.ndim == 2 else None
                axes.imshow(pixels, cmap=gray, interpolation="nearest", aspect="auto")
            top += height
    return figure


@dataclasses.dataclass(frozen=True)
class _Line:
    """A row of the sheet: captions and pixels, and the heading above it, "" for none."""

    heading: str
    captioned: bool
    pictures: list[tuple[str, np.ndarray]]

    @property
    def caption_height(self) -> float:
        """Height of the captions in inches."""
        lines = [style.wrap(caption, _MAX_CAPTION).count("\n") + 1 for caption, _ in self.pictures]
        return _CAPTION * max(lines) if self.captioned else 0.0

    @property
    def aspect(self) -> float:
        """Height of the highest picture over its width."""
        return max(pixels.shape[0] / pixels.shape[1] for _, pixels in self.pictures)


def _lines(samples: Sequence[Sample]) -> list[_Line]:
    rows: dict[str, list[Sample]] = {}
    for row in samples:
        if row.is_still and read_png(row.png) is not None:
            rows.setdefault(row.arm or "", []).append(row)
    arms: dict[tuple, list[str]] = {}
    for arm, own in rows.items():
        arms.setdefault(tuple((row.caption or "", row.png) for row in own), []).append(arm)
    lines = []
    for pictures, names in arms.items():
        captions = {caption for caption, _ in pictures}
        heading = ", ".join([*names, *(captions - {""} if len(captions) == 1 else ())])
        for start in range(0, len(pictures), _COLUMNS):
            shown = [
                (caption, pixels)
                for caption, png in pictures[start : start + _COLUMNS]
                if (pixels := read_png(png)) is not None
            ]
            lines.append(_Line("" if start else heading, len(captions) > 1, shown))
    return lines[:_MAX_ROWS]


def read_png(text: str | None) -> np.ndarray | None:
    """Returns the pixels of a PNG file in base64, [height, width] or [height, width, 3 or 4].

    None if it is not a readable picture.
    """
    try:
        data = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    if not data.startswith(_PNG):
        return None
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
    if not 0 < width * height <= _MAX_PIXELS:
        return None
    try:
        return imread(io.BytesIO(data), format="png")
    except (OSError, SyntaxError, ValueError):
        return None
