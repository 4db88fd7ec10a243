"""Models of Hugging Face and llama.cpp: read and written as folders, GGUF files read."""

from fm.hf.config import FAMILIES
from fm.hf.io import PretrainedModel, load_pretrained, save_pretrained
from fm.hf.weights import from_tensors

__all__ = ["FAMILIES", "PretrainedModel", "from_tensors", "load_pretrained", "save_pretrained"]
