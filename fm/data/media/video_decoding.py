"""Moving pictures in files (animated images, MP4 and its like, folders of frames) to frames.

Films are decoded by PyAV, an extra: FFmpeg's libraries in one wheel for each platform, half the
size of `imageio-ffmpeg`, and times of frames without parsing what a program prints.
"""

import dataclasses
import importlib
import importlib.util
import pathlib
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from fm.data.media import image as pixels
from fm.errors import UserError

# What a clip is cut to unless its data set says otherwise; rate in frames/s.
NUM_FRAMES = 8
FRAME_RATE = 8.0

ANIMATED_EXTENSIONS = (".apng", ".gif", ".png", ".webp")
VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
FRAME_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Where an animation gives no time, browsers take this, too.
_DEFAULT_SECONDS = 0.1
_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error),
    Image.DecompressionBombError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedVideo:
    """Frames as decoded, all of one size.

    Attributes:
        frames: of them.
        frame_ends: the times in seconds at which each goes, ascending, float64 [frames].
        duration: how long all of the source lasts.
        has_timestamps: whether the source says so itself.
    """

    frames: tuple[Image.Image, ...]
    frame_ends: np.ndarray
    duration: float
    has_timestamps: bool = True


def sample_frame_idx(ends: np.ndarray, count: int, rate: float) -> np.ndarray:
    """Says which frames to take: those on show at `count` times, 1 / `rate` apart, in the middle.

    Args:
        ends: the times in seconds at which the frames go, ascending, float64 [frames].
        count: how many to take.
        rate: how many of them make a second.

    Returns:
        int64 [count], ascending; the last frame again and again where the film is too short.
    """
    start = max(0.0, (ends[-1] - count / rate) / 2)
    times = start + (np.arange(count) + 0.5) / rate
    return np.minimum(np.searchsorted(ends, times, side="right"), len(ends) - 1)


def is_animated_image(path: pathlib.Path) -> bool:
    """Says whether a file is an image of several frames, whole or cut off within a later one."""
    if path.suffix.lower() not in ANIMATED_EXTENSIONS or not path.is_file():
        return False
    try:
        image = Image.open(path, formats=pixels.PILLOW_FORMATS)
    except _BROKEN:
        return False
    with image:
        try:
            return getattr(image, "n_frames", 1) > 1
        except _BROKEN:
            return True


def is_frame_folder(path: pathlib.Path) -> bool:
    """Says whether a folder holds images alone, whose names differ in one number alone."""
    if not path.is_dir():
        return False
    files = [file for file in path.iterdir() if not file.name.startswith(".")]
    images = all(file.suffix.lower() in FRAME_EXTENSIONS and file.is_file() for file in files)
    names = {re.sub(r"\d+(?=\D*$)", "#", file.stem) + file.suffix for file in files}
    return images and len(names) == 1 and "#" in names.pop()


def read_video(path: pathlib.Path) -> DecodedVideo:
    """Reads the middle of a film, an animated image or a folder of frames at `RATE`.

    Returns:
        `FRAMES` frames, `RATE` of them a second.

    Raises:
        OSError: it cannot be decoded, is cut short, has fewer than two frames, or frames of
            different sizes.
        UserError: a film, and PyAV is not installed.
    """
    if path.is_dir():
        times, images = _folder(path)
    elif path.suffix.lower() in VIDEO_EXTENSIONS:
        times, images = _film(path)
    else:
        times, images = _animation(path)
    if len(times) < 2:
        raise OSError(f"it has {len(times) or 'no'} frame; a clip needs two or more")
    chosen = sample_frame_idx(times, NUM_FRAMES, FRAME_RATE)
    taken = {
        index: _grey_if_grey(image)
        for index, image in _take(images, set(chosen.tolist()), len(times)).items()
    }
    ends = np.arange(1, NUM_FRAMES + 1) / FRAME_RATE
    return DecodedVideo(
        tuple(taken[index] for index in chosen), ends, float(times[-1]), not path.is_dir()
    )


def video_from_array(frames: np.ndarray, rate: float) -> DecodedVideo:
    """Returns uint8 [frames, height, width, 1 or 3] at `rate` frames/s as a film.

    Raises:
        OSError: it has fewer than two frames.
    """
    if len(frames) < 2:
        raise OSError(f"it has {len(frames) or 'no'} frame; a clip needs two or more")
    images = [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in frames]
    ends = np.arange(1, len(frames) + 1) / rate
    return DecodedVideo(tuple(images), ends, len(frames) / rate)


def _take(images: Iterable[Image.Image], wanted: set[int], total: int) -> dict[int, Image.Image]:
    taken, number = {}, 0
    for number, image in enumerate(images, 1):
        if number - 1 in wanted:
            taken[number - 1] = image
        if len(taken) == len(wanted):
            return taken
    raise OSError(f"it is cut short: {number} of {total} frames can be decoded")


def _grey_if_grey(image: Image.Image) -> Image.Image:
    """Neither films nor the later frames of a GIF say that they are grey; their pixels do."""
    if image.mode not in ("RGB", "RGBA", "P"):
        return image
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    same = np.array_equal(red, green) and np.array_equal(green, blue)
    return Image.fromarray(red.copy()) if same else image


def _folder(path: pathlib.Path) -> tuple[np.ndarray, Iterator[Image.Image]]:
    def number(file: pathlib.Path) -> int:
        return int(re.findall(r"\d+", file.stem)[-1])

    files = sorted((f for f in path.iterdir() if not f.name.startswith(".")), key=number)
    first = None
    for file in files:
        try:
            with Image.open(file, formats=pixels.PILLOW_FORMATS) as image:
                size = image.size
        except _BROKEN as error:
            raise OSError(f"{file.name} is not an image: {error}") from error
        first = first or size
        if size != first:
            raise OSError(
                f"frames of different sizes, {files[0].name} of {_size(first)} and {file.name} of "
                f"{_size(size)} (a folder of numbered images below a class is one clip)"
            )

    def images() -> Iterator[Image.Image]:
        for file in files:
            try:
                yield pixels.open_image(file.read_bytes())
            except OSError as error:
                raise OSError(f"{file.name}: {error}") from error

    return np.arange(1, len(files) + 1) / FRAME_RATE, images()


def _animation(path: pathlib.Path) -> tuple[np.ndarray, Iterator[Image.Image]]:
    def frames() -> Iterator[Image.Image]:
        try:
            with Image.open(path, formats=pixels.PILLOW_FORMATS) as opened:
                for image in ImageSequence.Iterator(opened):
                    image.load()
                    yield image
        except (EOFError, IndexError, struct.error) as error:
            raise OSError("it is cut short") from error
        except _BROKEN as error:
            raise OSError(f"it cannot be decoded ({error})") from error

    lasting = [frame.info.get("duration", 0) / 1000 or _DEFAULT_SECONDS for frame in frames()]
    if path.suffix.lower() == ".gif" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        raise OSError(f"it is cut short after {len(lasting)} frames")
    return np.cumsum(lasting), (frame.copy() for frame in frames())


def _film(path: pathlib.Path) -> tuple[np.ndarray, Iterator[Image.Image]]:
    if importlib.util.find_spec("av") is None:
        raise UserError(f'{path} needs PyAV to be decoded: pip install "fm[video]"')
    av: Any = importlib.import_module("av")
    try:
        with _opened(av, path) as container:
            stream = _pictures(container)
            packets = [packet for packet in container.demux(stream) if packet.size]
            if len(packets) < stream.frames or any(packet.is_corrupt for packet in packets):
                raise OSError(f"it is cut short: {len(packets)} of {stream.frames} frames")
            shown = sorted(
                float((packet.pts if packet.pts is not None else packet.dts) * packet.time_base)
                for packet in packets
                if not packet.is_discard
            )
    except av.FFmpegError as error:
        raise OSError(f"it cannot be decoded ({error.strerror or error})") from error

    def images() -> Iterator[Image.Image]:
        try:
            with _opened(av, path) as container:
                for frame in container.decode(_pictures(container)):
                    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                    yield image.rotate(frame.rotation, expand=True)
        except av.FFmpegError as error:
            raise OSError(f"it cannot be decoded ({error.strerror or error})") from error

    # No packet says reliably how long the last frame stays: as long as the others on average.
    starts = np.array(shown) - (shown[0] if shown else 0.0)
    last = starts[-1:] * len(starts) / max(len(starts) - 1, 1)
    return np.concatenate([starts[1:], last]), images()


def _opened(av: Any, path: pathlib.Path) -> Any:
    # By what is in them FFmpeg takes files for lists of other files, or for streams of a network.
    only = {"format_whitelist": "avi,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2"}
    return av.open(f"file:{path}", options=only | {"protocol_whitelist": "file"})


def _pictures(container: Any) -> Any:
    if not container.streams.video:
        raise OSError("it holds no pictures")
    return container.streams.video[0]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
