"""Clips: moving pictures, uint8 [frames, height, width, channels], of one length and one rate."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.media import image as pixels
from fm.data.media import video_decoding
from fm.data.media.base import ArraySpec, ModalityCodec
from fm.data.media.video_decoding import DecodedVideo
from fm.errors import UserError

MOST_FRAMES = 16

# Height, width, is grey; seconds; whether the source says how long it lasts.
Measure = tuple[int, int, bool, float, bool]


class VideoCodec(ModalityCodec):
    """Stored as pixels of 0..255, grey or colour; the rate, in frames/s, is in the metadata.

    Clips become 8 frames at 8 frames/s from their middle: of longer ones both ends are left out,
    shorter ones stand still on their last frame. Frames are resized as images are.
    """

    name = "video"
    noun = "clip"
    dtype = np.uint8
    extensions = tuple(
        sorted({*video_decoding.ANIMATED_EXTENSIONS, *video_decoding.VIDEO_EXTENSIONS})
    )

    def matches(self, path: pathlib.Path) -> bool:
        """Says whether it is a film, an image of several frames, or a folder of frames."""
        film = path.is_file() and path.suffix.lower() in video_decoding.VIDEO_EXTENSIONS
        return (
            film or video_decoding.is_animated_image(path) or video_decoding.is_frame_folder(path)
        )

    def open(self, path: pathlib.Path) -> DecodedVideo:
        """Reads a file or folder; see `films.read`."""
        return video_decoding.read_video(path)

    def measure(self, opened: DecodedVideo) -> Measure:
        """Returns height, width, is grey; seconds; whether they are the source's own."""
        greys = [pixels.measure_image(image)[2] for image in opened.frames]
        first = opened.frames[0]
        return first.height, first.width, all(greys), opened.duration, opened.has_timestamps

    def common_spec(self, measures: Sequence[Measure]) -> ArraySpec:
        """Returns 8 frames at 8 frames/s, of the size `pixels.common_shape` gives images."""
        size = pixels.common_image_shape(measure[:3] for measure in measures)
        return ArraySpec((video_decoding.NUM_FRAMES, *size), video_decoding.FRAME_RATE)

    def describe_changes(self, measures: Sequence[Measure], form: ArraySpec) -> list[str]:
        """Says how many were cut, held, resized, or of no known rate."""
        assert form.rate is not None
        frames, height, width, _ = form.shape
        seconds, frame = frames / form.rate, 1 / form.rate
        changes = (
            (
                sum(not timed for *_, timed in measures),
                f"are folders of frames, taken to be {form.rate:.0f} frames/s",
            ),
            (
                sum(own > seconds + frame for _, _, _, own, _ in measures),
                f"are cut to the {seconds:.2f} s in their middle",
            ),
            (
                sum(own < seconds - frame for _, _, _, own, _ in measures),
                f"stand still after their end, up to {seconds:.2f} s",
            ),
            (
                sum(
                    (own_height, own_width) != (height, width)
                    for own_height, own_width, *_ in measures
                ),
                f"are resized to {width}x{height} pixels (width x height)",
            ),
        )
        return [f"{count} of {len(measures)} clips {what}" for count, what in changes if count]

    def to_array(self, opened: DecodedVideo, form: ArraySpec) -> np.ndarray:
        """Returns uint8 [frames, height, width, channels], sampled and resized as needed."""
        assert form.rate is not None
        count, height, width, channels = form.shape
        chosen = video_decoding.sample_frame_idx(opened.frame_ends, count, form.rate)
        images = {
            index: pixels.image_to_array(opened.frames[index], (height, width, channels))
            for index in set(chosen.tolist())
        }
        return np.stack([images[index] for index in chosen.tolist()])

    def tfds_feature(self, form: ArraySpec) -> Any:
        """Returns a `Tensor` of that shape: the feature `Video` would need TensorFlow."""
        return tfds.features.Tensor(shape=form.shape, dtype=np.uint8, encoding="bytes")

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Returns the pixels as they are."""
        return array

    def accepts_feature(self, feature: Any) -> bool:
        """Says whether it is a four-dimensional uint8 `Tensor` of grey or colour."""
        if type(feature) is not tfds.features.Tensor:
            return False
        shape: Any = feature.shape
        return len(shape) == 4 and shape[-1] in (1, 3) and feature.np_dtype == np.uint8

    def declared_spec(self, feature: Any, rate: float | None) -> ArraySpec | None:
        """Returns the shape, where it is known and small.

        Raises:
            UserError: the metadata has no rate.
        """
        if rate is None:
            raise UserError('clips without a rate: the TFDS metadata needs a "rate" in frames/s')
        frames, height, width, _ = shape = tuple(feature.shape)
        if None in shape or max(height, width) > pixels.MAX_SIDE or not 2 <= frames <= MOST_FRAMES:
            return None
        return ArraySpec(shape, rate)

    def decode(self, stored: np.ndarray, rate: float | None) -> DecodedVideo:
        """Opens frames of the data set's rate."""
        assert rate is not None
        return video_decoding.video_from_array(np.asarray(stored, np.uint8), rate)
