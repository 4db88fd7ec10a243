"""The whole train step: loss, gradient, clipping, optimiser, through `fm.training.step`.

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
from fm.benchmark.case import Build, Case
from fm.benchmark.gemm import DTYPES
from fm.benchmark.programs import compiled_in, least_bytes, peak_memory
from fm.benchmark.settings import Setting
from fm.benchmark.timing import Side
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import recipes
from fm.training import objectives, optimizer, state
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.step import train_step

NEXT = Objective(next=1.0, masked=0.0)
ADAMW = OptimizerConfig("adamw", learning_rate=3e-4)
# Long enough that no schedule ends while a case is timed.
_STEPS = 100_000


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its batch."""

    model: ModelConfig
    length: int
    batch: int

    @property
    def name(self) -> str:
        """In words: depth x width, T length, B batch, V vocabulary."""
        m = self.model
        return f"{m.depth}x{m.width} T{self.length} B{self.batch} V{m.vocab}"


def size(depth: int, width: int, length: int, batch: int, vocab: int, heads: int = 0) -> Size:
    """Heads of 32 below a width of 256 and of 64 from there, unless given; feed-forward 4 x."""
    heads = heads or max(1, width // (64 if width >= 256 else 32))
    model = ModelConfig(depth, width, heads, heads, 4 * width, vocab=vocab)
    return Size(model, length, batch)


def cases(setting: Setting) -> Iterator[Case]:
    """nanoGPT's two small sizes, the size `compare` uses, and on an accelerator GPT-2's."""
    if setting.quick:
        yield next_piece("step", size(1, 32, 16, 2, 64), "float32", setting)
        return
    if setting.accelerator:
        for batch, dtype in ((64, "bfloat16"), (16, "bfloat16"), (16, "float32")):
            yield next_piece("step", size(12, 768, 1024, batch, 50304), dtype, setting)
    for each in (size(4, 128, 64, 12, 256), size(6, 384, 256, 16, 256), compare_size()):
        for dtype in DTYPES:
            yield next_piece("step", each, dtype, setting)
    recipe = recipes.text()
    for dtype in DTYPES:
        each = compare_size()
        model = dataclasses.replace(each.model, dtype=dtype)
        yield Case(
            what="step",
            name=f"{each.name}, as compare trains it",
            dtype=dtype,
            ours={
                "fm": lambda model=model, each=each: side(
                    model, recipe.objective, recipe.optimizer, tokens(each, setting)
                )
            },
            flops=flops_of(model, recipe.objective, each),
            tokens=each.length * each.batch,
            attention=chosen(model, each),
        )


def compare_size() -> Size:
    """What `experiments.compare` pretrains on text."""
    recipe = recipes.text()
    model = dataclasses.replace(recipe.model, vocab=recipe.vocab)
    return Size(model, recipe.length, recipe.batch_size)


def next_piece(what: str, each: Size, dtype: str, setting: Setting) -> Case:
    """A step that predicts every next token, with AdamW; against PyTorch, eager and compiled."""
    model = dataclasses.replace(each.model, dtype=dtype)
    batch = tokens(each, setting)
    # Compiling a scanned stack is quick and unrolled layers run faster: on a CPU only the latter.
    ways = {"fm": model}
    if setting.accelerator:
        ways["fm, scanned"] = dataclasses.replace(model, scan=True)

    def torch_step(compiled: bool) -> Side:
        from fm.benchmark.peers import gpt

        params = init(jax.random.key(setting.seed), model)
        return gpt.train_step(params, batch, model, ADAMW, compiled=compiled)

    kind = "" if dtype == "float32" else ", autocast"
    torch_peer: dict[str, Build] = {
        f"eager{kind}": lambda: torch_step(False),
        f"compile{kind}": lambda: torch_step(True),
    }
    return Case(
        what=what,
        name=f"{each.name}, next token",
        dtype=dtype,
        ours={name: lambda way=way: side(way, NEXT, ADAMW, batch) for name, way in ways.items()},
        peers={"torch": torch_peer},
        flops=flops_of(model, NEXT, each),
        tokens=each.length * each.batch,
        attention=chosen(model, each),
    )


def tokens(each: Size, setting: Setting) -> np.ndarray:
    """Tokens drawn evenly from the vocabulary, int32 [B, L]."""
    rng = np.random.default_rng(setting.seed)
    return rng.integers(0, each.model.vocab, (each.batch, each.length), dtype=np.int32)


def side(
    model: ModelConfig, objective: Objective, rule: OptimizerConfig, tokens_BL: np.ndarray
) -> Side:
    """Steps of training, one after another, on one batch of whole rows."""
    advance, seconds, memory, least = steps(model, objective, rule, tokens_BL)
    batch = whole_rows(tokens_BL)
    return Side(
        call=lambda: advance(batch),
        wait=jax.block_until_ready,
        chained=True,
        compile_seconds=seconds,
        peak_memory_bytes=memory,
        least_bytes=least,
    )


def steps(
    model: ModelConfig, objective: Objective, rule: OptimizerConfig, tokens_BL: np.ndarray
) -> tuple[Callable[[dict], Any], float, int | None, int]:
    """A function from a batch to the metrics of one more step, with what compiling it told.

    The batch comes from the host every time and the state is donated, as in the training loop.
    """
    jitted: Any = train_step(model, objective, rule, _STEPS)
    now = [state.init(init(jax.random.key(0), model), optimizer.build(rule, _STEPS))]
    weights = jnp.ones(model.vocab) if objective.bag else None
    arguments = (whole_rows(tokens_BL), 0, weights)
    seconds, compiled = compiled_in(jitted, now[0], *arguments)
    least = least_bytes(jitted, now[0], *arguments)

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


def chosen(model: ModelConfig, each: Size) -> str:
    """The attention implementation that runs inside."""
    if model.attention:
        return model.attention
    shape = (each.batch, each.length)
    q = jax.ShapeDtypeStruct((*shape, model.heads, model.head_width), model.dtype)
    k = jax.ShapeDtypeStruct((*shape, model.kv_heads, model.head_width), model.dtype)
    segments = jnp.ones(shape, jnp.int32)
    return choose(q, k, Mask(causal=True, q_segments=segments, kv_segments=segments))


def flops_of(model: ModelConfig, objective: Objective, each: Size) -> float:
    """Of one step."""
    total = 0.0
    for name, rows in objectives.rows_of(objective, each.batch).items():
        length, predictions = flops.cost(name, each.length, hide=objective.hide)
        of_one = flops.train_flops(model, length, predictions=predictions)
        total += (rows.stop - rows.start) * of_one
    return total
