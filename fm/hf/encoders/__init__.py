"""Published encoders of images (ViT, DINOv2) and sounds (AST, Whisper's), read from folders."""

from fm.hf.encoders.families import ENCODER_FAMILIES
from fm.hf.encoders.loading import (
    CLASS_TOKEN,
    NOT_READ,
    PATCH,
    PublishedEncoder,
    encoder_modality,
    load_encoder,
    pooled_output,
    restore_encoder,
)

__all__ = [
    "CLASS_TOKEN",
    "ENCODER_FAMILIES",
    "NOT_READ",
    "PATCH",
    "PublishedEncoder",
    "encoder_modality",
    "load_encoder",
    "pooled_output",
    "restore_encoder",
]
