"""Text larger than memory: read piece by piece, tokenized once into files of packed rows."""
