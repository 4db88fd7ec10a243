"""The continuous formats. A new one is a file here and its line in `MEDIA`."""

import pathlib

from fm.data.media.audio import Audio
from fm.data.media.image import Image
from fm.data.media.medium import Form, Medium
from fm.data.media.video import Video

__all__ = ["ENDINGS", "MEDIA", "Form", "Medium", "Video", "owner"]

# By modality. The first that owns a path has it: an animated image is a clip.
MEDIA: dict[str, Medium] = {medium.name: medium for medium in (Video(), Image(), Audio())}
ENDINGS = tuple(sorted({ending for medium in MEDIA.values() for ending in medium.endings}))


def owner(path: pathlib.Path) -> Medium | None:
    """Returns the format of which a file, or a folder as a whole, is an example."""
    return next((medium for medium in MEDIA.values() if medium.owns(path)), None)
