"""Our own flash attention for Hopper GPUs, in Pallas' Mosaic GPU lowering.

`api` keeps the contract, `limits` says what is refused, `run` pads and differentiates, `blocks`
finds what to skip, `tiles` holds the mathematics of a tile; `forward`, `backward_queries` and
`backward_keys` are the kernels, over `stream` and `machine`.
"""

from fm.attention.mosaic_gpu.api import attend
from fm.attention.mosaic_gpu.limits import unsupported_reason

__all__ = ["attend", "unsupported_reason"]
