"""Logits from a KV cache: prompts by prefill, then one decode step per token."""

import jax
import jax.numpy as jnp
import numpy as np

from fm.model import embeddings, kv_cache

prefill = jax.jit(kv_cache.prefill, static_argnames=("config", "max_new_tokens"))
extend = jax.jit(kv_cache.decode_step, static_argnames="config")
logits_of = jax.jit(embeddings.token_logits, static_argnames="config")


def cached_logits(weights, rows, prompt_lengths, config):
    """Returns float32 [B][L - P + 1, V]: logits from the last prompt token on.

    Args:
      weights: parameters.
      rows: token ids; all have equally many after their prompts.
      prompt_lengths: tokens of each row that are prefilled, padded on the right.
      config: the model's.
    """
    ready = kv_cache.prepare_params(weights, config)
    lengths_B1 = np.asarray(prompt_lengths)[:, None]
    longest, steps = max(prompt_lengths), len(rows[0]) - prompt_lengths[0]
    tokens_BS = np.zeros((len(rows), longest + steps), np.int32)
    for row_S, row in zip(tokens_BS, rows, strict=True):
        row_S[: len(row)] = row
    inputs = {
        "tokens": tokens_BS[:, :longest],
        "positions": np.minimum(np.arange(longest), lengths_B1 - 1),
    }
    final_BLD, cache = prefill(ready, inputs, lengths_B1[:, 0], config, max_new_tokens=steps)
    found = [[final_BLD[b, n - 1]] for b, n in enumerate(prompt_lengths)]
    for step in range(steps):
        at_B1 = lengths_B1 + step
        inputs = {"tokens": np.take_along_axis(tokens_BS, at_B1, axis=1), "positions": at_B1}
        final_B1D, cache = extend(ready, inputs, cache, jnp.int32(longest + step), config)
        for row, each_1D in zip(found, final_B1D, strict=True):
            row.append(each_1D[0])
    return [np.asarray(logits_of(ready.embeddings, jnp.stack(row), config)) for row in found]
