"""Clips: uint8 [frames, height, width, channels], of one length and one frame rate."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.dedup import video as dedup
from fm.data.media import video_decoding
from fm.data.media.base import (
    BaselineFeatureSpec,
    DuplicateRule,
    MediaSpec,
    Modality,
    ModalityCodec,
    Patching,
    PatchLayout,
)
from fm.data.media.image import (
    ImageMeasure,
    array_to_image,
    common_background,
    common_image_shape,
    common_value_range,
    describe_image_changes,
    image_to_array,
    measure_image,
    shrunk_images,
    unit_range_to_uint8,
)
from fm.data.media.video_decoding import FRAME_RATE, NUM_FRAMES, DecodedVideo
from fm.data.patches import (
    DEFAULT_IMAGE_SIZE,
    TUBELET_SHAPE,
    clips_to_tubelets,
    fits_tubelets,
    tubelet_positions,
    tubelet_shape,
    tubelets_to_clips,
)
from fm.errors import UserError

MAX_FRAMES = 16
# Pixels by which block matching moves a frame, up, down and sideways.
MAX_SHIFT = 2
# Scales the 25 motion features to the norm of thousands of pixels.
_MOTION_SCALE = 10.0
# Of a pixel's range: the noise of a sensor.
_NOISE_FLOOR = 1e-4
_CHUNK = 256

# Of the frames; seconds; whether the file has timestamps.
Measure = tuple[ImageMeasure, float, bool]


def encode_animation(
    clip: np.ndarray, rate: float, *, scale: int = 8, image_format: str = "GIF"
) -> bytes:
    """Returns a clip as the bytes of an animated image that loops forever.

    Args:
        clip: uint8 [frames, height, width, 1 or 3].
        rate: frames/s. GIF counts hundredths of a second: a frame at 8 frames/s lasts 120 ms there.
        scale: factor of enlargement, by repeating pixels.
        image_format: "GIF" (256 colors: exact for gray), "PNG" or "WEBP" (exact).

    Raises:
        UserError: another format.
    """
    if image_format not in ("GIF", "PNG", "WEBP"):
        raise UserError(f"animated images are GIF, PNG or WEBP, not {image_format}")
    enlarged = clip.repeat(scale, axis=1).repeat(scale, axis=2)
    images = [array_to_image(frame) for frame in enlarged]
    buffer = io.BytesIO()
    options = {"lossless": True} if image_format == "WEBP" else {}
    images[0].save(
        buffer,
        format=image_format,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / rate),
        loop=0,
        **options,
    )
    return buffer.getvalue()


class VideoCodec(ModalityCodec):
    """Codec of video: reads clips and converts a data set to uint8 frames of one size and rate.

    A clip is the middle 8 frames at 8 frames/s. Shorter videos repeat their last frame. Frames are
    resized as images are.
    """

    dtype = np.uint8
    extensions = tuple(
        sorted({*video_decoding.ANIMATED_EXTENSIONS, *video_decoding.VIDEO_EXTENSIONS})
    )
    preview_extension = "gif"
    image_size = DEFAULT_IMAGE_SIZE

    def matches(self, path: pathlib.Path) -> bool:
        """Accepts a video file, an image of several frames, or a folder of frames."""
        is_video = path.is_file() and path.suffix.lower() in video_decoding.VIDEO_EXTENSIONS
        return (
            is_video
            or video_decoding.is_animated_image(path)
            or video_decoding.is_frame_folder(path)
        )

    def open(self, path: pathlib.Path) -> DecodedVideo:
        """Returns the middle frames of a video file, animated image or frame folder."""
        return video_decoding.read_middle_frames(path)

    def measure(self, opened: DecodedVideo) -> Measure:
        """Returns the frames' common measure; seconds; whether the file has timestamps."""
        frames = [measure_image(frame) for frame in opened.frames]
        transparent = [each.contrasts for each in frames if each.contrasts is not None]
        ranges = [each.value_range for each in frames if each.value_range is not None]
        measure = frames[0]._replace(
            gray=all(each.gray for each in frames),
            contrasts=tuple(map(min, *transparent, transparent[0])) if transparent else None,
            value_range=(min(low for low, _ in ranges), max(high for _, high in ranges))
            if ranges
            else None,
        )
        return measure, opened.duration, opened.has_timestamps

    def common_spec(self, measures: Sequence[Measure]) -> MediaSpec:
        """Returns the common array spec: 8 frames at 8 frames/s, of one frame size."""
        frames = [frame for frame, _, _ in measures]
        return MediaSpec(
            (NUM_FRAMES, *common_image_shape(frames, fits_tubelets, self.image_size)),
            FRAME_RATE,
            background=common_background(frames),
            value_range=common_value_range(frames),
        )

    def describe_changes(self, measures: Sequence[Measure], spec: MediaSpec) -> list[str]:
        """Counts the clips that are cut, extended, converted, or of no known rate."""
        assert spec.rate is not None
        seconds, frame = spec.shape[0] / spec.rate, 1 / spec.rate
        changes = (
            (
                sum(not has_timestamps for *_, has_timestamps in measures),
                f"are folders of frames, read at {spec.rate:.0f} frames/s",
            ),
            (
                sum(own > seconds + frame for _, own, _ in measures),
                f"are cut to the {seconds:.2f} s in their middle",
            ),
            (
                sum(own < seconds - frame for _, own, _ in measures),
                f"repeat their last frame, up to {seconds:.2f} s",
            ),
        )
        lines = [f"{count} of {len(measures)} clips {what}" for count, what in changes if count]
        return lines + describe_image_changes("clip", [frame for frame, _, _ in measures], spec)

    def shrunk(self, measures: Sequence[Measure], spec: MediaSpec) -> dict[str, Any] | None:
        """Returns how many clips lose pixels, from which frame size to which; None if none does."""
        return shrunk_images([frame for frame, _, _ in measures], spec)

    def to_array(self, opened: DecodedVideo, spec: MediaSpec) -> np.ndarray:
        """Returns uint8 [frames, height, width, channels], sampled and resized as needed."""
        assert spec.rate is not None
        count, height, width, channels = spec.shape
        idx = video_decoding.sample_frame_idx(opened.frame_ends, count, spec.rate).tolist()
        shape = height, width, channels
        frames = {
            index: image_to_array(opened.frames[index], shape, spec.background, spec.value_range)
            for index in set(idx)
        }
        return np.stack([frames[index] for index in idx])

    def tfds_feature(self, spec: MediaSpec) -> Any:
        """Returns a `Tensor` feature: `Video` would need TensorFlow."""
        return tfds.features.Tensor(shape=spec.shape, dtype=np.uint8, encoding="bytes")

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Returns the pixels."""
        return array

    def accepts_feature(self, feature: Any) -> bool:
        """Accepts a four-dimensional uint8 `Tensor`, gray or RGB."""
        if type(feature) is not tfds.features.Tensor:
            return False
        shape: Any = feature.shape
        return len(shape) == 4 and shape[-1] in (1, 3) and feature.np_dtype == np.uint8

    def declared_spec(self, feature: Any, rate: float | None) -> MediaSpec | None:
        """Returns the shape if it is known and small.

        Raises:
            UserError: the metadata has no rate.
        """
        if rate is None:
            raise UserError('clips without a rate: the TFDS metadata needs a "rate" in frames/s')
        frames, height, width, _ = shape = tuple(feature.shape)
        if None in shape or max(height, width) > self.image_size or not 2 <= frames <= MAX_FRAMES:
            return None
        if frames % TUBELET_SHAPE[0] or not fits_tubelets(height, width):
            return None
        return MediaSpec(shape, rate)

    def decode(self, stored: np.ndarray, rate: float | None) -> DecodedVideo:
        """Returns the frames at the data set's rate."""
        assert rate is not None
        return video_decoding.video_from_array(np.asarray(stored, np.uint8), rate)

    def encode_preview(self, array: np.ndarray, rate: float) -> bytes:
        """Returns an animated GIF."""
        return encode_animation(array, rate)


class VideoPatching(Patching):
    """Conversion of video clips to tubelets, patches of (frames, rows, columns), and back."""

    num_axes = 3

    def patch_shape(self, shape: tuple[int, ...], size: int | None) -> tuple[int, ...]:
        """Returns 2x4x4; of frames beyond 32x32 larger ones, at most 64 to two frames."""
        tubelet = tubelet_shape(*shape[1:3]) or TUBELET_SHAPE
        tubelet_positions(shape, tubelet)  # raises if it does not divide the clip
        return tubelet

    def patch_dim(self, layout: PatchLayout) -> int:
        """Returns pixels times channels."""
        return int(np.prod(layout.patch_shape)) * layout.shape[-1]

    def positions(self, layout: PatchLayout) -> np.ndarray:
        """Returns time, row and column."""
        return tubelet_positions(layout.shape, layout.patch_shape)

    def to_patches(self, examples: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns uint8 [N, L, P]."""
        return clips_to_tubelets(examples, layout.patch_shape)

    def from_patches(self, patches: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns uint8 [N, frames, height, width, channels]."""
        return tubelets_to_clips(unit_range_to_uint8(patches), layout.patch_shape, layout.shape)

    def to_picture(self, example: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns the frames from left to right."""
        return np.concatenate(list(example), axis=1)


def pixel_and_motion_features(clips: np.ndarray, rate: float | None = None) -> np.ndarray:
    """Returns pixels, frame differences and block-matching errors of clips, float32 [N, features].

    The last are global block matching (Jain and Jain 1981): the mean squared difference between
    each frame, shifted by up to `MAX_SHIFT` pixels, and the next, for each of 25 shifts, relative
    to the mean over the shifts. A linear classifier on pixels cannot see the direction of an object
    that may be anywhere.

    Args:
        clips: uint8 [N, frames, height, width, channels].
        rate: unused.

    Returns:
        float32 [N, frames * P + (frames - 1) * P + 25], P values in a frame; pixels in 0..1.

    Raises:
        UserError: frames too small for the shifts.
    """
    if min(clips.shape[2:4]) <= 2 * MAX_SHIFT:
        raise UserError(
            f"frames of {clips.shape[2]}x{clips.shape[3]} are too small to match shifted by "
            f"{MAX_SHIFT}"
        )
    chunks = [_motion_features(clips[at : at + _CHUNK]) for at in range(0, len(clips), _CHUNK)]
    return np.concatenate(chunks) if chunks else _motion_features(clips)


def _motion_features(clips: np.ndarray) -> np.ndarray:
    N = len(clips)
    pixels = clips.astype(np.float32) / 255
    changes = np.abs(np.diff(pixels, axis=1))
    height, width = (side - 2 * MAX_SHIFT for side in clips.shape[2:4])
    inner = slice(MAX_SHIFT, MAX_SHIFT + height), slice(MAX_SHIFT, MAX_SHIFT + width)
    now, following = pixels[:, :-1], pixels[:, 1:, *inner]
    errors = [
        np.square(now[:, :, row : row + height, column : column + width] - following).mean(
            (1, 2, 3, 4)
        )
        for row in range(2 * MAX_SHIFT + 1)
        for column in range(2 * MAX_SHIFT + 1)
    ]
    error = np.stack(errors, axis=1) + _NOISE_FLOOR
    relative = _MOTION_SCALE * (error / error.mean(1, keepdims=True) - 1)
    return np.concatenate([pixels.reshape(N, -1), changes.reshape(N, -1), relative], axis=1)


VIDEO = Modality(
    name="video",
    noun="clip",
    metric_unit="bits_per_dimension",
    duplicates=DuplicateRule(dedup.METHOD, dedup.find_video_duplicate_pairs),
    codec=VideoCodec(),
    patching=VideoPatching(),
    baseline=(BaselineFeatureSpec("pixels and motion", pixel_and_motion_features),),
)
