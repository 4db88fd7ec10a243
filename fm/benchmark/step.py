"""The whole train step: loss, gradient, clipping, optimiser, through `fm.training.train_step`.

FLOPs are those of `fm.model.flops`: matrix products at the padded length, without a causal
discount, three times the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask, choose
from fm.benchmark.core import BenchConfig, Build, Case
from fm.benchmark.gemm import DTYPES
from fm.benchmark.timing import Candidate, min_bytes, peak_memory, timed_compile
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import presets
from fm.training import objectives, optimizer, train_state
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.train_step import make_train_step

CAUSAL_LM = Objective(causal_lm=1.0, masked_lm=0.0)
ADAMW = OptimizerConfig("adamw", learning_rate=3e-4)
# Long enough that no schedule ends while a case is timed.
_STEPS = 100_000


@dataclasses.dataclass(frozen=True)
class StepShape:
    """A model and its batch."""

    model: ModelConfig
    length: int
    batch: int

    @property
    def name(self) -> str:
        """In words: depth x width, T length, B batch, V vocabulary."""
        m = self.model
        return f"{m.num_layers}x{m.d_model} T{self.length} B{self.batch} V{m.vocab_size}"


def step_shape(
    depth: int, width: int, length: int, batch: int, vocab: int, heads: int = 0
) -> StepShape:
    """Heads of 32 below a width of 256 and of 64 from there, unless given; feed-forward 4 x."""
    heads = heads or max(1, width // (64 if width >= 256 else 32))
    model = ModelConfig(depth, width, heads, heads, 4 * width, vocab_size=vocab)
    return StepShape(model, length, batch)


def cases(setting: BenchConfig) -> Iterator[Case]:
    """nanoGPT's two small sizes, the size `compare` uses, and on an accelerator GPT-2's."""
    if setting.quick:
        yield next_token_case("step", step_shape(1, 32, 16, 2, 64), "float32", setting)
        return
    if setting.on_accelerator:
        for batch, dtype in ((64, "bfloat16"), (16, "bfloat16"), (16, "float32")):
            yield next_token_case("step", step_shape(12, 768, 1024, batch, 50304), dtype, setting)
    for each in (
        step_shape(4, 128, 64, 12, 256),
        step_shape(6, 384, 256, 16, 256),
        compare_shape(),
    ):
        for dtype in DTYPES:
            yield next_token_case("step", each, dtype, setting)
    recipe = presets.text_recipe()
    for dtype in DTYPES:
        each = compare_shape()
        model = dataclasses.replace(each.model, dtype=dtype)
        yield Case(
            suite="step",
            name=f"{each.name}, as compare trains it",
            dtype=dtype,
            candidates={
                "fm": lambda model=model, each=each: train_step_candidate(
                    model, recipe.objective, recipe.optimizer, tokens(each, setting)
                )
            },
            flops=step_flops(model, recipe.objective, each),
            num_tokens=each.length * each.batch,
            attention=attention_name(model, each),
        )


def compare_shape() -> StepShape:
    """What `experiments.compare` pretrains on text."""
    recipe = presets.text_recipe()
    model = dataclasses.replace(recipe.model, vocab_size=recipe.vocab_size)
    return StepShape(model, recipe.seq_len, recipe.batch_size)


def next_token_case(what: str, each: StepShape, dtype: str, setting: BenchConfig) -> Case:
    """A step that predicts every next token, with AdamW; against PyTorch, eager and compiled."""
    model = dataclasses.replace(each.model, dtype=dtype)
    batch = tokens(each, setting)
    # Compiling a scanned stack is quick and unrolled layers run faster: on a CPU only the latter.
    ways = {"fm": model}
    if setting.on_accelerator:
        ways["fm, scanned"] = dataclasses.replace(model, scan_layers=True)

    def torch_step(compiled: bool) -> Candidate:
        from fm.benchmark.peers import gpt

        params = init(jax.random.key(setting.seed), model)
        return gpt.train_step(params, batch, model, ADAMW, compiled=compiled)

    kind = "" if dtype == "float32" else ", autocast"
    torch_peer: dict[str, Build] = {
        f"eager{kind}": lambda: torch_step(False),
        f"compile{kind}": lambda: torch_step(True),
    }
    return Case(
        suite=what,
        name=f"{each.name}, next token",
        dtype=dtype,
        candidates={
            name: lambda way=way: train_step_candidate(way, CAUSAL_LM, ADAMW, batch)
            for name, way in ways.items()
        },
        peers={"torch": torch_peer},
        flops=step_flops(model, CAUSAL_LM, each),
        num_tokens=each.length * each.batch,
        attention=attention_name(model, each),
    )


def tokens(each: StepShape, setting: BenchConfig) -> np.ndarray:
    """Tokens drawn evenly from the vocabulary, int32 [B, L]."""
    rng = np.random.default_rng(setting.seed)
    return rng.integers(0, each.model.vocab_size, (each.batch, each.length), dtype=np.int32)


def train_step_candidate(
    model: ModelConfig, objective: Objective, rule: OptimizerConfig, tokens_BL: np.ndarray
) -> Candidate:
    """Steps of training, one after another, on one batch of whole rows."""
    advance, seconds, memory, least = make_step_fn(model, objective, rule, tokens_BL)
    batch = whole_rows(tokens_BL)
    return Candidate(
        call=lambda: advance(batch),
        wait=jax.block_until_ready,
        chained=True,
        compile_seconds=seconds,
        peak_memory_bytes=memory,
        min_bytes=least,
    )


def make_step_fn(
    model: ModelConfig, objective: Objective, rule: OptimizerConfig, tokens_BL: np.ndarray
) -> tuple[Callable[[dict], Any], float, int | None, int]:
    """A function from a batch to the metrics of one more step, with what compiling it told.

    The batch comes from the host every time and the state is donated, as in the training loop.
    """
    jitted: Any = make_train_step(model, objective, rule, _STEPS)
    now = [
        train_state.init_train_state(init(jax.random.key(0), model), optimizer.build(rule, _STEPS))
    ]
    weights = jnp.ones(model.vocab_size) if objective.bag_of_words else None
    arguments = (whole_rows(tokens_BL), 0, weights)
    seconds, compiled = timed_compile(jitted, now[0], *arguments)
    least = min_bytes(jitted, now[0], *arguments)

    def advance(batch):
        now[0], metrics = jitted(now[0], batch, 0, weights)
        return metrics

    return advance, seconds, peak_memory(compiled), least


def whole_rows(tokens_BL: np.ndarray) -> dict[str, np.ndarray]:
    """A batch whose every row is one document."""
    B, L = tokens_BL.shape
    return {
        "tokens": tokens_BL,
        "segments": np.ones((B, L), np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
    }


def attention_name(model: ModelConfig, each: StepShape) -> str:
    """The attention implementation that runs inside."""
    if model.attention:
        return model.attention
    shape = (each.batch, each.length)
    q = jax.ShapeDtypeStruct((*shape, model.num_heads, model.head_dim), model.dtype)
    k = jax.ShapeDtypeStruct((*shape, model.num_kv_heads, model.head_dim), model.dtype)
    segments = jnp.ones(shape, jnp.int32)
    return choose(q, k, Mask(causal=True, q_segments=segments, kv_segments=segments))


def step_flops(model: ModelConfig, objective: Objective, each: StepShape) -> float:
    """Of one step."""
    total = 0.0
    for name, rows in objectives.objective_rows(objective, each.batch).items():
        length, predictions = flops.sequence_cost(
            name, each.length, mask_ratio=objective.mask_ratio
        )
        of_one = flops.train_flops(model, length, num_predictions=predictions)
        total += (rows.stop - rows.start) * of_one
    return total
