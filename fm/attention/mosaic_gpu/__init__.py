"""FlashAttention for Hopper GPUs, written in Pallas' Mosaic GPU dialect.

`op` is the differentiable function and says what it does not support; `forward`, `backward_dq`
and `backward_dkv` are the kernels; `block_ranges` finds the blocks to visit; `common` holds what
the kernels share.
"""

from fm.attention.mosaic_gpu.op import attend, unsupported_reason

__all__ = ["attend", "unsupported_reason"]
