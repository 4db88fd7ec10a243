"""Lowering for a GPU on a machine without one."""

import contextlib
import inspect

import jax


def abstract_gpu():
    """Returns a context in which JAX's versions that ask for the kind of GPU lower for an A100."""
    device = getattr(jax.sharding, "AbstractDevice", None)
    if device is None or "platform" not in inspect.signature(device).parameters:
        return contextlib.nullcontext()
    a100 = device(device_kind="NVIDIA A100-SXM4-40GB", num_cores=108, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=a100))
