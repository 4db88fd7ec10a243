"""fm: is pretraining worth it against training from scratch? Measured, on your own data."""
