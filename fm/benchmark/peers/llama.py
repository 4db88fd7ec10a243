"""The same model in `transformers`, generating by its own `generate` with its own cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from fm.benchmark.core import Candidate
from fm.benchmark.peers import pytorch
from fm.model.config import ModelConfig

_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}


def generation(
    params: dict, prompts_BL: np.ndarray, config: ModelConfig, new_tokens: int
) -> Candidate:
    """Returns a candidate that greedily continues prompts, giving int64 [B, L + new_tokens].

    Args:
      params: of the model.
      prompts_BL: int.
      config: Llama's architecture with tied embeddings; its dtype is that of the weights there.
      new_tokens: exactly so many, whatever the tokens.
    """
    network = to_llama(params, config)
    prompts = torch.tensor(prompts_BL, device=pytorch.device()).long()
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompts),
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }

    def generate():
        with torch.inference_mode():
            return network.generate(prompts, **options)

    return pytorch.candidate(generate)


def to_llama(params: dict, config: ModelConfig) -> Any:
    """Returns a `transformers.LlamaForCausalLM` that holds the given fm parameters."""
    options: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        # Before version 5 and since.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    llama_config = transformers.LlamaConfig(**options)
    with torch.device("meta"):
        network: Any = transformers.LlamaForCausalLM(llama_config)
    network.to_empty(device="cpu")
    network.tie_weights()
    # Rotary frequencies are no weights: on the meta device they were not computed.
    network.model.rotary_emb = type(network.model.rotary_emb)(llama_config)
    streams = params["streams"]
    tensors = {
        "model.embed_tokens.weight": streams["token_embedding"],
        "model.norm.weight": streams["final_norm"],
        "lm_head.weight": streams["token_embedding"],
    }
    for ours, theirs in _NAMES.items():
        for n, leaf in enumerate(np.asarray(params["layers"][ours])):
            if ours == "attention_out":
                leaf = leaf.reshape(-1, config.d_model).T
            elif leaf.ndim > 1:
                leaf = leaf.reshape(leaf.shape[0], -1).T
            tensors[f"model.layers.{n}.{theirs}.weight"] = leaf
    network.load_state_dict(
        {name: torch.tensor(np.ascontiguousarray(each)) for name, each in tensors.items()}
    )
    return network.to(pytorch.device(), pytorch.DTYPES[config.dtype]).eval()
