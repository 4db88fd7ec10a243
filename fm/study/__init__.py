"""Studies: arms adapted to the same tasks under equal conditions, resumable, with saved results."""
