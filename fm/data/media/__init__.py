"""The modalities: text, video, image and audio, and the registry for others."""

from fm.data.dedup import text
from fm.data.media.audio import AUDIO
from fm.data.media.base import (
    MODALITIES,
    BaselineFeatureSpec,
    DuplicateRule,
    MediaSpec,
    Modality,
    ModalityCodec,
    Patching,
    PatchLayout,
    get_modality,
    layout_of,
    media_extensions,
    modality_for_path,
    register_modality,
)
from fm.data.media.image import IMAGE
from fm.data.media.video import VIDEO

__all__ = [
    "MODALITIES",
    "BaselineFeatureSpec",
    "DuplicateRule",
    "MediaSpec",
    "Modality",
    "ModalityCodec",
    "PatchLayout",
    "Patching",
    "get_modality",
    "layout_of",
    "media_extensions",
    "modality_for_path",
    "register_modality",
]

TEXT = Modality(
    name="text",
    noun="text",
    metric_unit="bits_per_byte",
    duplicates=DuplicateRule(text.METHOD, text.find_text_duplicate_pairs),
)

for _modality in (TEXT, VIDEO, IMAGE, AUDIO):
    register_modality(_modality)
