"""Near-duplicate search, one module per modality."""
