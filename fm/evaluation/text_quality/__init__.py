"""Metrics of a sample of texts; each compares samples of one fixed number of texts."""
