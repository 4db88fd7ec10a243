"""One model for many tasks against distinct networks."""
