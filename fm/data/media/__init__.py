"""The continuous formats. A new one is a file here and its line in `MEDIA`."""

import pathlib

from fm.data.media.audio import AudioCodec
from fm.data.media.base import ArraySpec, ModalityCodec
from fm.data.media.image import ImageCodec
from fm.data.media.video import VideoCodec

__all__ = ["EXTENSIONS", "CODECS", "ArraySpec", "ModalityCodec", "VideoCodec", "codec_for_path"]

# By modality. The first that owns a path has it: an animated image is a clip.
CODECS: dict[str, ModalityCodec] = {
    medium.name: medium for medium in (VideoCodec(), ImageCodec(), AudioCodec())
}
EXTENSIONS = tuple(sorted({ending for medium in CODECS.values() for ending in medium.extensions}))


def codec_for_path(path: pathlib.Path) -> ModalityCodec | None:
    """Returns the format of which a file, or a folder as a whole, is an example."""
    return next((medium for medium in CODECS.values() if medium.matches(path)), None)
