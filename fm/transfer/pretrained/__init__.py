"""Published models in and out: Hugging Face folders and GGUF files, see `families`."""

from fm.transfer.pretrained.families import FAMILIES
from fm.transfer.pretrained.folder import Pretrained, read, write
from fm.transfer.pretrained.weights import from_tensors

__all__ = ["FAMILIES", "Pretrained", "from_tensors", "read", "write"]
