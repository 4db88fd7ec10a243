"""Evidence from scores: intervals, label multipliers, break-even, and the classical baselines."""
