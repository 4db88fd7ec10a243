"""Training on many devices and processes: the device mesh, sharding rules, process roles."""
