"""What attention kernels ask of dtypes and devices: messages that say why one cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

import jax


def unsupported_dtypes(
    kernel: str, arrays: Sequence[jax.Array], accepted: Sequence[str]
) -> str | None:
    """Returns why a kernel cannot take arrays of these dtypes, as a message; None if it can.

    Args:
      kernel: its name.
      arrays: queries, keys and values, which must have one dtype.
      accepted: names of dtypes.
    """
    dtypes = sorted({str(x.dtype) for x in arrays})
    if len(dtypes) == 1 and dtypes[0] in accepted:
        return None
    return f"{kernel} takes {' or '.join(accepted)} only, not {', '.join(dtypes)}"


def unsupported_gpu(kernel: str, platform: str, least_capability: float | None) -> str | None:
    """Returns why a kernel does not run on a platform's first device, or None if it does.

    Args:
      kernel: its name.
      platform: such as "gpu", JAX's name of NVIDIA's.
      least_capability: the lowest CUDA compute capability that it runs on; None for any.
    """
    if platform != "gpu":
        return f"{kernel} needs an NVIDIA GPU, not {platform}"
    if least_capability is None:
        return None
    capability = compute_capability(platform)
    if float(capability) < least_capability:
        return f"{kernel} needs compute capability {least_capability} or more, not {capability}"
    return None


def compute_capability(platform: str | None = None) -> str:
    """Returns the CUDA compute capability of a platform's first device, by default the default's.

    It is "0" if the device has none.
    """
    return getattr(jax.devices(platform)[0], "compute_capability", "0")
