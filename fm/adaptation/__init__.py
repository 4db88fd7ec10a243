"""Transfer: a pretrained (or fresh) model adapted to a labelled task."""
