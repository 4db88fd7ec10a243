"""Decodes animated images, video files (MP4 and others) and folders of frames.

Video files need PyAV, an extra: FFmpeg's libraries in one wheel per platform, half the size of
`imageio-ffmpeg`, with timestamps that need no parsing of a program's output.
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

from fm.data.media.image import PILLOW_FORMATS, array_to_image, open_image
from fm.errors import UserError

# Of a clip read from a file; rate in frames/s.
NUM_FRAMES = 8
FRAME_RATE = 8.0

ANIMATED_EXTENSIONS = (".apng", ".gif", ".png", ".webp")
VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
FRAME_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# What browsers take for an animation without durations.
_DEFAULT_SECONDS = 0.1
_DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error),
    Image.DecompressionBombError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedVideo:
    """Decoded frames of a video, the time at which each ends, and the video's duration.

    Attributes:
        frames: the frames.
        frame_ends: time in seconds at which each frame ends, ascending, float64 [frames].
        duration: of the whole source, in seconds.
        has_timestamps: whether the source gives the duration.
    """

    frames: tuple[Image.Image, ...]
    frame_ends: np.ndarray
    duration: float
    has_timestamps: bool = True


def sample_frame_idx(frame_ends: np.ndarray, count: int, rate: float) -> np.ndarray:
    """Returns the indices of `count` frames, 1 / `rate` s apart, in the middle of a video.

    Args:
        frame_ends: time in seconds at which each frame ends, ascending, float64 [frames].
        count: number of frames to take.
        rate: in frames/s.

    Returns:
        int64 [count], ascending; the last frame repeats if the video is too short.
    """
    start = max(0.0, (frame_ends[-1] - count / rate) / 2)
    times = start + (np.arange(count) + 0.5) / rate
    return np.minimum(np.searchsorted(frame_ends, times, side="right"), len(frame_ends) - 1)


def is_animated_image(path: pathlib.Path) -> bool:
    """Returns whether an image file has several frames, or breaks off after its first."""
    if path.suffix.lower() not in ANIMATED_EXTENSIONS or not path.is_file():
        return False
    try:
        image = Image.open(path, formats=PILLOW_FORMATS)
    except _DECODING_ERRORS:
        return False
    with image:
        try:
            return getattr(image, "n_frames", 1) > 1
        except _DECODING_ERRORS:
            return True


def is_frame_folder(path: pathlib.Path) -> bool:
    """Returns whether a folder holds only images numbered as the frames of one clip.

    Their names differ in numbers alone, upper and lower case aside; by one of the numbers no two
    are equal, and in its order no other number falls (`cam1_007_v2.png`, `007_t0.28.png`).
    """
    return path.is_dir() and bool(_frames_in_order(path))


def _frames_in_order(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a frame folder by their number, [] of another folder."""
    files = [file for file in path.iterdir() if not file.name.startswith(".")]
    if not all(file.suffix.lower() in FRAME_EXTENSIONS and file.is_file() for file in files):
        return []
    names = {re.sub(r"\d+", "#", file.stem).lower() for file in files}
    if len(names) != 1:
        return []
    numbers = np.array([[int(each) for each in re.findall(r"\d+", file.stem)] for file in files])
    for column in numbers.T:
        order = np.argsort(column)
        steps = np.diff(numbers[order], axis=0)
        if (np.diff(column[order]) > 0).all() and (steps >= 0).all():
            return [files[index] for index in order]
    return []


def read_middle_frames(path: pathlib.Path) -> DecodedVideo:
    """Reads a video file or frame folder; returns its middle 8 frames, sampled at 8 frames/s.

    Raises:
        OSError: it cannot be decoded, is cut short, has fewer than two frames, or frames of
            different sizes.
        UserError: a video file, and PyAV is not installed.
    """
    if path.is_dir():
        ends, images = _read_frame_folder(path)
    elif path.suffix.lower() in VIDEO_EXTENSIONS:
        ends, images = _read_video_file(path)
    else:
        ends, images = _read_animated_image(path)
    _require_two_frames(ends)
    idx = sample_frame_idx(ends, NUM_FRAMES, FRAME_RATE)
    frames = {
        index: _to_gray_if_gray(image)
        for index, image in _take(images, set(idx.tolist()), len(ends)).items()
    }
    new_ends = np.arange(1, NUM_FRAMES + 1) / FRAME_RATE
    return DecodedVideo(
        tuple(frames[index] for index in idx), new_ends, float(ends[-1]), not path.is_dir()
    )


def video_from_array(frames: np.ndarray, rate: float) -> DecodedVideo:
    """Returns uint8 [frames, height, width, 1 or 3] at `rate` frames/s as a `DecodedVideo`.

    Raises:
        OSError: it has fewer than two frames.
    """
    _require_two_frames(frames)
    ends = np.arange(1, len(frames) + 1) / rate
    return DecodedVideo(tuple(map(array_to_image, frames)), ends, len(frames) / rate)


def _require_two_frames(frames: np.ndarray) -> None:
    if len(frames) < 2:
        raise OSError(f"it has {len(frames) or 'no'} frame; a clip needs two or more")


def _take(images: Iterable[Image.Image], wanted: set[int], total: int) -> dict[int, Image.Image]:
    taken, number = {}, 0
    for number, image in enumerate(images, 1):
        if number - 1 in wanted:
            taken[number - 1] = image
        if len(taken) == len(wanted):
            return taken
    raise OSError(f"it is cut short: {number} of {total} frames can be decoded")


def _to_gray_if_gray(image: Image.Image) -> Image.Image:
    """Converts by the pixels: video files and later frames of a GIF do not say they are gray."""
    if image.mode not in ("RGB", "RGBA", "P"):
        return image
    transparent = image.has_transparency_data
    pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    visible = pixels[pixels[..., 3] > 0] if transparent else pixels
    if (visible[..., :3] != visible[..., :1]).any():
        return image
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., ::3] if transparent else pixels[..., 0])
    )


def _read_frame_folder(path: pathlib.Path) -> tuple[np.ndarray, Iterator[Image.Image]]:
    files = _frames_in_order(path)
    first = None
    for file in files:
        try:
            with Image.open(file, formats=PILLOW_FORMATS) as image:
                size = image.size
        except _DECODING_ERRORS as error:
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
                yield open_image(file.read_bytes())
            except OSError as error:
                raise OSError(f"{file.name}: {error}") from error

    return np.arange(1, len(files) + 1) / FRAME_RATE, images()


def _read_animated_image(path: pathlib.Path) -> tuple[np.ndarray, Iterator[Image.Image]]:
    def frames() -> Iterator[Image.Image]:
        try:
            with Image.open(path, formats=PILLOW_FORMATS) as opened:
                for image in ImageSequence.Iterator(opened):
                    image.load()
                    yield image
        except (EOFError, IndexError, struct.error) as error:
            raise OSError("it is cut short") from error
        except _DECODING_ERRORS as error:
            raise OSError(f"it cannot be decoded ({error})") from error

    seconds = [frame.info.get("duration", 0) / 1000 or _DEFAULT_SECONDS for frame in frames()]
    if path.suffix.lower() == ".gif" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        raise OSError(f"it is cut short after {len(seconds)} frames")
    return np.cumsum(seconds), (frame.copy() for frame in frames())


def _read_video_file(path: pathlib.Path) -> tuple[np.ndarray, Iterator[Image.Image]]:
    if importlib.util.find_spec("av") is None:
        raise UserError(f'{path} needs PyAV to be decoded: pip install "fm[video]"')
    av: Any = importlib.import_module("av")
    try:
        with _open_container(av, path) as container:
            stream = _video_stream(container)
            packets = [packet for packet in container.demux(stream) if packet.size]
            if len(packets) < stream.frames or any(packet.is_corrupt for packet in packets):
                raise OSError(f"it is cut short: {len(packets)} of {stream.frames} frames")
            timestamps = sorted(
                float((packet.pts if packet.pts is not None else packet.dts) * packet.time_base)
                for packet in packets
                if not packet.is_discard
            )
    except av.FFmpegError as error:
        raise OSError(f"it cannot be decoded ({error.strerror or error})") from error

    def images() -> Iterator[Image.Image]:
        try:
            with _open_container(av, path) as container:
                for frame in container.decode(_video_stream(container)):
                    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                    yield image.rotate(frame.rotation, expand=True)
        except av.FFmpegError as error:
            raise OSError(f"it cannot be decoded ({error.strerror or error})") from error

    # No packet reliably gives the duration of the last frame: it gets the average of the others.
    starts = np.array(timestamps) - (timestamps[0] if timestamps else 0.0)
    last = starts[-1:] * len(starts) / max(len(starts) - 1, 1)
    return np.concatenate([starts[1:], last]), images()


def _open_container(av: Any, path: pathlib.Path) -> Any:
    # By its content FFmpeg may take a file for a list of other files or of network streams.
    options = {
        "format_whitelist": "avi,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2",
        "protocol_whitelist": "file",
    }
    return av.open(f"file:{path}", options=options)


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise OSError("it has no video stream")
    return container.streams.video[0]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
