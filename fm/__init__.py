"""fm: is pretraining worth it against training from scratch? Measured, on your own data."""

from fm.xla_flags import disable_ynn_fusions

# Here, since every way to use fm passes here, and JAX reads its flags when it first computes.
disable_ynn_fusions()
