"""Training: objectives, optimiser, one jitted step, the loop round it, checkpoints."""
