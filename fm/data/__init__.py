"""Data: loading, preparing, splitting, tokenizing, patches, packing and batches."""
