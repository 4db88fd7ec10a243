"""Adaptation of a pretrained (or fresh) model to a labeled task."""
