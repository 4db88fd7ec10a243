"""Data: any source to random-access splits, splits to pieces, pieces to resumable batches."""
