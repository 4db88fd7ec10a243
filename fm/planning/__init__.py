"""Planning: estimates of memory, communication and step time of a training run on a mesh."""
