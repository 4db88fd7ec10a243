"""Published models in and out: Hugging Face folders and GGUF files, see `families`."""

from fm.hf.config import FAMILIES
from fm.hf.io import PretrainedModel, load_pretrained, save_pretrained
from fm.hf.weights import from_tensors

__all__ = ["FAMILIES", "PretrainedModel", "from_tensors", "load_pretrained", "save_pretrained"]
