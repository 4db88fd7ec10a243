"""Tensor names of the model families: which of our parameters each tensor holds.

The tables serve reading and writing. A tensor of several leaves has them side by side along its
last axis; "{n}" in a name is the layer, the first axis of the leaf.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Maps a Hugging Face tensor to the fm parameters that it holds, with its layout.

    Attributes:
      tensor: its name, without the family's prefix.
      leaves: parameters it holds: keys of `params["layers"]` if the name has a layer, else of
        `params["streams"]`.
      transposed: a kernel stored [out, in], as by `torch.nn.Linear`; ours are [in, out].
      offset: ours are larger by this: Gemma stores a norm's scale less 1.
      first_layer: the first layer that has the tensor.
    """

    tensor: str
    leaves: tuple[str, ...]
    transposed: bool = False
    offset: float = 0.0
    first_layer: int = 0

    @property
    def part(self) -> str:
        """Returns the key of `params` that the leaves are under."""
        return "layers" if "{n}" in self.tensor else "streams"


def _linear(tensor: str, *leaves: str) -> tuple[TensorSpec, TensorSpec]:
    """A `torch.nn.Linear`, its outputs perhaps those of several of our linear maps."""
    return (
        TensorSpec(f"{tensor}.weight", leaves, transposed=True),
        TensorSpec(f"{tensor}.bias", tuple(f"{leaf}_bias" for leaf in leaves)),
    )


def _conv(tensor: str, *leaves: str) -> tuple[TensorSpec, TensorSpec]:
    """GPT-2's `Conv1D`: a linear layer stored [in, out]."""
    biases = tuple(f"{leaf}_bias" for leaf in leaves)
    return TensorSpec(f"{tensor}.weight", leaves), TensorSpec(f"{tensor}.bias", biases)


def _norm(tensor: str, leaf: str, first_layer: int = 0) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(f"{tensor}.weight", (leaf,), first_layer=first_layer),
        TensorSpec(f"{tensor}.bias", (f"{leaf}_shift",), first_layer=first_layer),
    )


def _gemma_norm(tensor: str, leaf: str) -> TensorSpec:
    """A norm that multiplies by 1 + its weight."""
    return TensorSpec(f"{tensor}.weight", (leaf,), offset=1.0)


GPT2 = (
    TensorSpec("wte.weight", ("token_embedding",)),
    TensorSpec("wpe.weight", ("position_embedding",)),
    *_norm("h.{n}.ln_1", "attention_norm"),
    *_conv("h.{n}.attn.c_attn", "query", "key", "value"),
    *_conv("h.{n}.attn.c_proj", "attention_out"),
    *_norm("h.{n}.ln_2", "feed_forward_norm"),
    *_conv("h.{n}.mlp.c_fc", "up"),
    *_conv("h.{n}.mlp.c_proj", "down"),
    *_norm("ln_f", "final_norm"),
    TensorSpec("lm_head.weight", ("token_head",), transposed=True),
)

LLAMA = (
    TensorSpec("embed_tokens.weight", ("token_embedding",)),
    *_norm("layers.{n}.input_layernorm", "attention_norm"),
    *_linear("layers.{n}.self_attn.q_proj", "query"),
    *_linear("layers.{n}.self_attn.k_proj", "key"),
    *_linear("layers.{n}.self_attn.v_proj", "value"),
    *_linear("layers.{n}.self_attn.o_proj", "attention_out"),
    TensorSpec("layers.{n}.self_attn.q_norm.weight", ("query_norm",)),
    TensorSpec("layers.{n}.self_attn.k_norm.weight", ("key_norm",)),
    *_norm("layers.{n}.post_attention_layernorm", "feed_forward_norm"),
    *_linear("layers.{n}.mlp.gate_proj", "gate"),
    *_linear("layers.{n}.mlp.up_proj", "up"),
    *_linear("layers.{n}.mlp.down_proj", "down"),
    *_norm("norm", "final_norm"),
    TensorSpec("lm_head.weight", ("token_head",), transposed=True),
)

BERT = (
    TensorSpec("embeddings.word_embeddings.weight", ("token_embedding",)),
    TensorSpec("embeddings.position_embeddings.weight", ("position_embedding",)),
    TensorSpec("embeddings.token_type_embeddings.weight", ("type_embedding",)),
    *_norm("embeddings.LayerNorm", "embedding_norm"),
    *_linear("encoder.layer.{n}.attention.self.query", "query"),
    *_linear("encoder.layer.{n}.attention.self.key", "key"),
    *_linear("encoder.layer.{n}.attention.self.value", "value"),
    *_linear("encoder.layer.{n}.attention.output.dense", "attention_out"),
    *_norm("encoder.layer.{n}.attention.output.LayerNorm", "attention_norm"),
    *_linear("encoder.layer.{n}.intermediate.dense", "up"),
    *_linear("encoder.layer.{n}.output.dense", "down"),
    *_norm("encoder.layer.{n}.output.LayerNorm", "feed_forward_norm"),
    *_linear("pooler.dense", "pooler"),
)

PHI3 = (
    TensorSpec("embed_tokens.weight", ("token_embedding",)),
    *_norm("layers.{n}.input_layernorm", "attention_norm"),
    *_linear("layers.{n}.self_attn.qkv_proj", "query", "key", "value"),
    *_linear("layers.{n}.self_attn.o_proj", "attention_out"),
    *_norm("layers.{n}.post_attention_layernorm", "feed_forward_norm"),
    *_linear("layers.{n}.mlp.gate_up_proj", "gate", "up"),
    *_linear("layers.{n}.mlp.down_proj", "down"),
    *_norm("norm", "final_norm"),
    TensorSpec("lm_head.weight", ("token_head",), transposed=True),
)

GEMMA = (
    TensorSpec("embed_tokens.weight", ("token_embedding",)),
    _gemma_norm("layers.{n}.input_layernorm", "attention_norm"),
    *_linear("layers.{n}.self_attn.q_proj", "query"),
    *_linear("layers.{n}.self_attn.k_proj", "key"),
    *_linear("layers.{n}.self_attn.v_proj", "value"),
    *_linear("layers.{n}.self_attn.o_proj", "attention_out"),
    _gemma_norm("layers.{n}.self_attn.q_norm", "query_norm"),
    _gemma_norm("layers.{n}.self_attn.k_norm", "key_norm"),
    _gemma_norm("layers.{n}.post_attention_layernorm", "attention_post_norm"),
    _gemma_norm("layers.{n}.pre_feedforward_layernorm", "feed_forward_norm"),
    _gemma_norm("layers.{n}.post_feedforward_layernorm", "feed_forward_post_norm"),
    *_linear("layers.{n}.mlp.gate_proj", "gate"),
    *_linear("layers.{n}.mlp.up_proj", "up"),
    *_linear("layers.{n}.mlp.down_proj", "down"),
    _gemma_norm("norm", "final_norm"),
    TensorSpec("lm_head.weight", ("token_head",), transposed=True),
)

MODERNBERT = (
    TensorSpec("embeddings.tok_embeddings.weight", ("token_embedding",)),
    *_norm("embeddings.norm", "embedding_norm"),
    *_norm("layers.{n}.attn_norm", "attention_norm", first_layer=1),
    *_linear("layers.{n}.attn.Wqkv", "query", "key", "value"),
    *_linear("layers.{n}.attn.Wo", "attention_out"),
    *_norm("layers.{n}.mlp_norm", "feed_forward_norm"),
    *_linear("layers.{n}.mlp.Wi", "gate", "up"),
    *_linear("layers.{n}.mlp.Wo", "down"),
    *_norm("final_norm", "final_norm"),
)
