"""Many devices and processes as one: the mesh, what lies where on it, who does what."""
