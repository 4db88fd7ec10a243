"""The choices by which families of transformers differ; the defaults are fm's own."""

from __future__ import annotations

import dataclasses

from fm.errors import UserError
from fm.model.positions import RopeScaling

_ACCEPTED = {
    "norm": ("rms", "layer"),
    "qk_norm": ("none", "plain", "gain"),
    "biases": ("none", "qkv", "attention", "all"),
    "activation": ("relu2", "gelu", "gelu_tanh", "silu"),
    "positions": ("rotary", "learned"),
}


@dataclasses.dataclass(frozen=True)
class Style:
    """What a transformer is made of, whatever its size.

    Attributes:
      norm: "rms" (Zhang & Sennrich 2019) or "layer" (Ba et al. 2016).
      gain: norms multiply by a learned vector.
      shift: norms add a learned vector; only with a gain.
      post_norm: each residual sum is normalised (BERT), instead of what each block reads.
      embedding_norm: what enters the first layer is normalised.
      final_norm: what leaves the last layer is normalised.
      qk_norm: RMS norm of every query and key: "none", "plain", or with a learned "gain" (Qwen3).
      biases: of the linear maps: "none", "qkv" (queries, keys, values), "attention" (these and the
        one out of attention) or "all" of a layer's.
      activation: "relu2" (So et al. 2021), "gelu" (exact), "gelu_tanh" (GPT-2's) or "silu".
      gated: the activation multiplies a second linear map (Shazeer 2020, eq. 6).
      positions: "rotary", pairing (c, c + C/2), or "learned" vectors, as many as
        `ModelConfig.context`.
      rope_scaling: Llama 3's stretched rotary frequencies, or None.
      tied: the embedding is also the softmax's kernel.
      token_types: kinds of token, each with a vector added to its embedding (BERT's sentences A
        and B); 0 for none.
      pooler: a tanh layer over the first piece, as BERT has (read by `streams.summary` alone).
    """

    norm: str = "rms"
    gain: bool = False
    shift: bool = False
    post_norm: bool = False
    embedding_norm: bool = True
    final_norm: bool = True
    qk_norm: str = "plain"
    biases: str = "none"
    activation: str = "relu2"
    gated: bool = False
    positions: str = "rotary"
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    token_types: int = 0
    pooler: bool = False

    def __post_init__(self):
        for name, accepted in _ACCEPTED.items():
            if getattr(self, name) not in accepted:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not known; accepted are "
                    f"{', '.join(accepted)}"
                )
        if self.shift and not self.gain:
            raise UserError("shift=True takes gain=True: no norm here has a shift alone")
        if self.rope_scaling and self.positions != "rotary":
            raise UserError(f"rope_scaling is for rotary positions, not {self.positions} ones")
        if self.token_types < 0:
            raise UserError(f"token_types={self.token_types} must be at least 0")

    def biased(self, name: str) -> bool:
        """Whether a layer's linear map of this name adds a bias."""
        covered = {
            "none": (),
            "qkv": ("query", "key", "value"),
            "attention": ("query", "key", "value", "attention_out"),
        }
        return self.biases == "all" or name in covered[self.biases]
