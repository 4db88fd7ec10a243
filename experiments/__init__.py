"""Experiments: one file per question, each `python -m experiments.NAME --help`."""
