"""Whole generations through the KV cache, at the size of SmolLM2-135M, with random weights.

A token decoded alone reads every weight once: memory bandwidth is the limit, and halving the bytes
with bfloat16 should show. FLOPs are those of one pass over all tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np

from fm.benchmark.core import BenchConfig, Candidate, Case
from fm.benchmark.suites.matmul import DTYPES
from fm.benchmark.suites.train_step import step_shape
from fm.model import kv_cache
from fm.model.config import ArchConfig, ModelConfig
from fm.model.flops import forward_flops
from fm.model.generate import generate
from fm.model.sampling import GREEDY
from fm.model.transformer import init

LLAMA = ArchConfig(
    norm_scale=True,
    embedding_norm=False,
    qk_norm="none",
    activation="silu",
    gated_mlp=True,
    tie_embeddings=True,
)
SMOLLM2 = ModelConfig(
    num_layers=30,
    d_model=576,
    num_heads=9,
    num_kv_heads=3,
    mlp_dim=1536,
    vocab_size=49152,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    max_seq_len=8192,
    arch=LLAMA,
)


@dataclasses.dataclass(frozen=True)
class _Workload:
    """`batch` prompts of `length` tokens, each continued by `new_tokens`."""

    model: ModelConfig
    batch: int
    length: int
    new_tokens: int

    def prompts(self, seed: int) -> np.ndarray:
        """Tokens drawn uniformly from the vocabulary, int32 [B, L]."""
        shape = (self.batch, self.length)
        return np.random.default_rng(seed).integers(0, self.model.vocab_size, shape, np.int32)


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields text generation cases over prompt lengths and batch sizes, against `transformers`."""
    if config.quick:
        tiny = dataclasses.replace(
            SMOLLM2,
            num_layers=2,
            d_model=48,
            num_heads=3,
            num_kv_heads=1,
            mlp_dim=64,
            vocab_size=96,
            max_seq_len=64,
        )
        yield _case(_Workload(tiny, 2, 5, 4), "tiny", config)
        return
    for dtype in DTYPES:
        model = dataclasses.replace(SMOLLM2, dtype=dtype)
        for batch in (1, 8):
            yield _case(_Workload(model, batch, 16, 64), "SmolLM2-135M", config)
        yield _case(_Workload(model, 1, 512, 1), "SmolLM2-135M", config)
    for dtype in DTYPES:
        small = dataclasses.replace(step_shape(4, 128, 128, 8, 4096).model, dtype=dtype)
        yield _case(_Workload(small, 8, 1, 127), "4x128 V4096", config)


def _case(work: _Workload, name: str, config: BenchConfig) -> Case:
    B, L, T = work.batch, work.length, work.new_tokens

    def ours() -> Candidate:
        params = random_params(work.model, config.seed)
        prepared = jax.block_until_ready(kv_cache.prepare_params(params, work.model))
        prompts = list(work.prompts(config.seed))

        def call():
            return generate(prepared, prompts, work.model, sampling_config=GREEDY, max_new_tokens=T)

        start = time.perf_counter()
        call()
        # `generate` returns once the tokens are on the host.
        return Candidate(
            call,
            wait=lambda _: None,
            compile_seconds=time.perf_counter() - start,
            # The prompt and every new token but the last read all weights.
            min_bytes=T * _bytes_read(prepared),
        )

    def theirs() -> Candidate:
        from fm.benchmark.peers import llama

        params = random_params(work.model, config.seed)
        return llama.generation(params, work.prompts(config.seed), work.model, T)

    return Case(
        suite="decode",
        name=f"generate, {name} B{B} L{L} + {T}",
        dtype=work.model.dtype,
        candidates={"generate": ours},
        peers={"transformers": {"generate": theirs}} if work.model.arch == LLAMA else {},
        flops=B * forward_flops(work.model, L + T, num_predictions=T),
        num_tokens=B * (T if T > 1 else L),
        memory_bound=T > 1,
    )


def _bytes_read(prepared: kv_cache.PreparedParams) -> int:
    """Returns the bytes that a token reads: all layers and the head, of the embedding a row."""
    head = prepared.embeddings.get("token_head", prepared.embeddings["token_embedding"])
    return sum(leaf.nbytes for leaf in jax.tree.leaves((prepared.layers, head)))


def random_params(model: ModelConfig, seed: int) -> dict:
    """Returns random parameters (normal, std 0.02; norm scales one) of an untrained model."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model))

    def leaf(path, like):
        if "norm" in jax.tree_util.keystr(path):
            return np.ones(like.shape, np.float32)
        return rng.standard_normal(like.shape, np.float32) * np.float32(0.02)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
