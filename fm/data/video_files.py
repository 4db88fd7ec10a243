"""Moving pictures in files (animated images, MP4, folders of frames) to uint8 clips of one shape.

Every clip becomes `FRAMES` frames at `RATE` frames/s from its middle: what is longer is cut at
both ends, what is shorter stands still on its last frame. A frame is the one on show at that time.
"""

import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from fm.data import pixels
from fm.data.clips import ClipShape
from fm.errors import UserError

FRAMES = 8
RATE = 8.0

ANIMATED_ENDINGS = (".apng", ".gif", ".png", ".webp")
FILM_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

# Browsers, too, take this where an animation gives no time.
_DEFAULT_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame and the time in seconds at which it goes."""

    image: Image.Image
    end: float


def is_animated(path: pathlib.Path) -> bool:
    """Says whether a file is an image of several frames; of one that is broken, False."""
    if path.suffix.lower() not in ANIMATED_ENDINGS:
        return False
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False


def common_shape(paths: Iterable[pathlib.Path]) -> ClipShape:
    """Returns the (frames, height, width, channels) that all clips get.

    Frames keep their size when all clips share one of at most 32x32, else become 32x32; grey only
    when all are.

    Raises:
        UserError: a clip cannot be read; see `read_clip`.
    """
    sizes = {size for path in paths for size in _sizes(path)}
    return (FRAMES, *pixels.common_shape(sizes))


def read_clip(path: pathlib.Path, shape: ClipShape) -> np.ndarray:
    """Reads an animated image, a film, or a folder of frames in order of name at `RATE`.

    Returns:
        uint8 of `shape`.

    Raises:
        UserError: it cannot be decoded, has fewer than two frames or frames of different sizes,
            or is a film and PyAV is not installed.
    """
    ends, frames = [], []
    for frame in _frames(path):
        ends.append(frame.end)
        frames.append(pixels.to_array(frame.image, shape[1:]))
    return np.stack([frames[index] for index in sampled(np.array(ends), shape[0])])


def sampled(ends: np.ndarray, count: int) -> np.ndarray:
    """Says which frames to take.

    Args:
        ends: the times in seconds at which the frames go, ascending, float [frames].
        count: how many to take, at `RATE` and from the middle.

    Returns:
        int64 [count], ascending; the last frame repeated where the clip is too short.
    """
    start = max(0.0, (ends[-1] - count / RATE) / 2)
    times = start + (np.arange(count) + 0.5) / RATE
    return np.minimum(np.searchsorted(ends, times, side="right"), len(ends) - 1)


def _frames(path: pathlib.Path) -> Iterator[Frame]:
    """Yields the frames of a clip, at least two and all of one size."""
    if path.is_dir():
        read = _folder_frames(path)
    elif path.suffix.lower() in FILM_ENDINGS:
        read = _film_frames(path)
    else:
        read = _image_frames(path)
    first, number = None, 0
    for number, frame in enumerate(read, 1):
        first = first or frame.image.size
        if frame.image.size != first:
            raise UserError(
                f"{path}: frame {number} is {_size(frame.image.size)} and the first "
                f"{_size(first)} (width x height); a clip's frames must be of one size"
            )
        yield frame
    if number < 2:
        raise UserError(f"{path} is a clip of {number or 'no'} frame; at least two are needed")


def _folder_frames(path: pathlib.Path) -> Iterator[Frame]:
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    for number, file in enumerate(files, 1):
        try:
            image = pixels.open_image(file.read_bytes())
        except OSError as error:
            raise UserError(f"{file} is a broken image: {error}") from error
        yield Frame(image, number / RATE)


def _image_frames(path: pathlib.Path) -> Iterator[Frame]:
    end = 0.0
    try:
        with Image.open(path) as opened:
            for image in ImageSequence.Iterator(opened):
                image.load()
                end += image.info.get("duration", 0) / 1000 or _DEFAULT_SECONDS
                yield Frame(image.copy(), end)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is a broken image: not of a known format") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is a broken animation: {error}") from error


def _film_frames(path: pathlib.Path) -> Iterator[Frame]:
    before, last, number = None, 0.0, 0
    for number, (shown, image) in enumerate(_decoded(path), 1):
        if before is not None:
            yield Frame(before, shown)
        before, last = image, shown
    if before is not None:
        # How long the last one stays no file says; as long as the others on average.
        yield Frame(before, last * number / max(number - 1, 1))


def _decoded(path: pathlib.Path) -> Iterator[tuple[float, Image.Image]]:
    """Yields the pictures of a film, turned as it says, and when in seconds each is first seen."""
    av = _decoder(path)
    try:
        with av.open(str(path)) as container:
            stream = _pictures(path, container)
            first, number = None, 0
            for number, frame in enumerate(container.decode(stream), 1):
                first = frame.time if first is None else first
                form = "gray" if _is_grey(frame.format.name) else "rgb24"
                image = Image.fromarray(frame.to_ndarray(format=form))
                yield frame.time - first, image.rotate(frame.rotation, expand=True)
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be decoded: {error.strerror or error}") from error


def _sizes(path: pathlib.Path) -> set[tuple[int, int, bool]]:
    """Returns (height, width, is grey) of a clip's frames, as `pixels.common_shape` takes it."""
    if path.suffix.lower() not in FILM_ENDINGS or path.is_dir():
        return {pixels.measure(frame.image) for frame in _frames(path)}
    av = _decoder(path)
    try:
        with av.open(str(path)) as container:
            stream = _pictures(path, container)
            return {(stream.height, stream.width, _is_grey(stream.pix_fmt or ""))}
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be decoded: {error.strerror or error}") from error


def _decoder(path: pathlib.Path) -> Any:
    if importlib.util.find_spec("av") is None:
        raise UserError(f'{path}: films are decoded by PyAV: pip install "fm[video]"')
    return importlib.import_module("av")


def _pictures(path: pathlib.Path, container: Any) -> Any:
    if not container.streams.video:
        raise UserError(f"{path} holds no pictures")
    return container.streams.video[0]


def _is_grey(pixel_format: str) -> bool:
    return pixel_format.startswith(("gray", "mono"))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
