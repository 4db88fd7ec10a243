"""Readers of the user's own files: text, CoNLL, media, folders, archives and wheels."""
