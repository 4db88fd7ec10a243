"""The whole train step: alone, on long sequences with rematerialization, and with its input.

FLOPs are those of `fm.model.flops`: matrix products at the padded length, without a causal
discount, three times the forward pass; what is computed twice counts once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import choose
from fm.benchmark.core import BenchConfig, Build, Candidate, Case
from fm.benchmark.suites.matmul import DTYPES
from fm.benchmark.timing import min_bytes, peak_memory, timed_compile
from fm.data.batches import Batches, text_batches
from fm.model import flops
from fm.model.config import REMAT_POLICIES, ModelConfig
from fm.model.transformer import init
from fm.study import presets
from fm.training import objectives, optimizer, train_state
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig
from fm.training.train_step import make_train_step

CAUSAL_LM = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
ADAMW = OptimizerConfig("adamw", learning_rate=3e-4)
_NUM_STEPS = 100_000  # no schedule ends while a case is timed


@dataclasses.dataclass(frozen=True)
class StepShape:
    """A model config with the sequence length and size of its batch."""

    model: ModelConfig
    seq_len: int
    batch_size: int

    @property
    def name(self) -> str:
        """num_layers x d_model, T seq_len, B batch_size, V vocab_size."""
        m = self.model
        return f"{m.num_layers}x{m.d_model} T{self.seq_len} B{self.batch_size} V{m.vocab_size}"


def step_shape(
    num_layers: int,
    d_model: int,
    seq_len: int,
    batch_size: int,
    vocab_size: int,
    num_heads: int = 0,
) -> StepShape:
    """Returns a StepShape with MLP width 4 * d_model; num_heads=0 chooses heads by d_model."""
    num_heads = num_heads or max(1, d_model // (64 if d_model >= 256 else 32))
    model = ModelConfig(
        num_layers, d_model, num_heads, num_heads, 4 * d_model, vocab_size=vocab_size
    )
    return StepShape(model, seq_len, batch_size)


def compare_pretraining_shape() -> StepShape:
    """Returns the model, sequence length and batch size that `fm compare` pretrains."""
    recipe = presets.text_recipe()
    model = dataclasses.replace(recipe.model, vocab_size=recipe.vocab_size)
    return StepShape(model, recipe.seq_len, recipe.batch_size)


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields train-step cases at nanoGPT and `compare` sizes; on accelerators at GPT-2's too."""
    if config.quick:
        yield next_token_case("train_step", step_shape(1, 32, 16, 2, 64), "float32", config)
        return
    if config.on_accelerator:
        for batch, dtype in ((64, "bfloat16"), (16, "bfloat16"), (16, "float32")):
            shape = step_shape(12, 768, 1024, batch, 50304)
            yield next_token_case("train_step", shape, dtype, config)
    shapes = (
        step_shape(4, 128, 64, 12, 256),
        step_shape(6, 384, 256, 16, 256),
        compare_pretraining_shape(),
    )
    for shape in shapes:
        for dtype in DTYPES:
            yield next_token_case("train_step", shape, dtype, config)
    recipe, shape = presets.text_recipe(), compare_pretraining_shape()
    for dtype in DTYPES:
        model = dataclasses.replace(shape.model, dtype=dtype)
        yield Case(
            suite="train_step",
            name=f"{shape.name}, as compare trains it",
            dtype=dtype,
            candidates={
                "fm": lambda model=model: train_step_candidate(
                    model, recipe.objective, recipe.optimizer, random_tokens(shape, config)
                )
            },
            flops=step_flops(model, recipe.objective, shape),
            num_tokens=shape.seq_len * shape.batch_size,
            attention=attention_name(model, shape, recipe.objective),
        )


def next_token_case(suite: str, shape: StepShape, dtype: str, config: BenchConfig) -> Case:
    """Returns a next-token train step with AdamW, against PyTorch eager and compiled."""
    model = dataclasses.replace(shape.model, dtype=dtype)
    batch = random_tokens(shape, config)
    # A scanned stack compiles faster and unrolled layers run faster: on a CPU only the latter.
    models = {"fm": model}
    if config.on_accelerator:
        models["fm, scanned"] = dataclasses.replace(model, scan_layers=True)

    def torch_step(compiled: bool) -> Candidate:
        from fm.benchmark.peers import gpt

        params = init(jax.random.key(config.seed), model)
        return gpt.train_step(params, batch, model, ADAMW, compiled=compiled)

    suffix = "" if dtype == "float32" else ", autocast"
    torch_peer: dict[str, Build] = {
        f"eager{suffix}": lambda: torch_step(False),
        f"compile{suffix}": lambda: torch_step(True),
    }
    return Case(
        suite=suite,
        name=f"{shape.name}, next token",
        dtype=dtype,
        candidates={
            name: lambda each=each: train_step_candidate(each, CAUSAL_LM, ADAMW, batch)
            for name, each in models.items()
        },
        peers={"torch": torch_peer},
        flops=step_flops(model, CAUSAL_LM, shape),
        num_tokens=shape.seq_len * shape.batch_size,
        attention=attention_name(model, shape, CAUSAL_LM),
    )


def remat_cases(config: BenchConfig) -> Iterator[Case]:
    """Yields train steps on long sequences under each `ModelConfig.remat_policy`.

    One size and two lengths on a CPU; on an accelerator GPT-2's at 16k.
    """
    shapes = [step_shape(8, 256, length, 1, 1024) for length in (2048, 8192)]
    if config.on_accelerator:
        shapes = [step_shape(12, 768, 16384, 1, 50304)]
    for shape in [step_shape(2, 32, 32, 1, 64)] if config.quick else shapes:
        dtype = "bfloat16" if config.on_accelerator else "float32"
        model = dataclasses.replace(shape.model, dtype=dtype, scan_layers=True)
        models = {name: dataclasses.replace(model, remat_policy=name) for name in REMAT_POLICIES}
        if not config.on_accelerator:
            unrolled = dataclasses.replace(model, scan_layers=False)
            models = {"none, unrolled": unrolled, **models}
        batch = random_tokens(shape, config)
        yield Case(
            suite="remat",
            name=shape.name,
            dtype=dtype,
            candidates={
                name: lambda each=each, batch=batch: train_step_candidate(
                    each, CAUSAL_LM, ADAMW, batch
                )
                for name, each in models.items()
            },
            flops=step_flops(model, CAUSAL_LM, shape),
            num_tokens=shape.seq_len * shape.batch_size,
            attention=attention_name(model, shape, CAUSAL_LM),
        )


def input_cases(config: BenchConfig) -> Iterator[Case]:
    """Yields the input pipeline alone, and training with it against training on a fixed batch.

    The loop takes the next batch while the last step runs; the difference is what the pipeline
    costs.
    """
    shapes = [step_shape(4, 128, 64, 12, 256), compare_pretraining_shape()]
    for shape in [step_shape(1, 32, 16, 2, 64)] if config.quick else shapes:

        def next_batch(shape=shape) -> Candidate:
            batches = packed_batches(shape, config)
            return Candidate(call=lambda: next(batches), wait=lambda batch: batch)

        def training(shape=shape) -> Candidate:
            batches = packed_batches(shape, config)
            tokens_BL = random_tokens(shape, config)
            return train_step_candidate(
                shape.model,
                CAUSAL_LM,
                ADAMW,
                tokens_BL,
                packed=True,
                next_batch=lambda: next(batches),
            )

        yield Case(
            suite="input",
            name=f"next batch, T{shape.seq_len} B{shape.batch_size}",
            dtype="int32",
            candidates={"text_batches": next_batch},
            num_tokens=shape.seq_len * shape.batch_size,
        )
        yield Case(
            suite="input",
            name=f"training, {shape.name}",
            dtype="float32",
            candidates={"text_batches": training},
            num_tokens=shape.seq_len * shape.batch_size,
            ablated=lambda shape=shape: train_step_candidate(
                shape.model, CAUSAL_LM, ADAMW, random_tokens(shape, config), packed=True
            ),
        )


def train_step_candidate(
    model: ModelConfig,
    objective: PretrainingObjective,
    optimizer_config: OptimizerConfig,
    tokens_BL: np.ndarray,
    *,
    packed: bool = False,
    next_batch: Callable[[], dict] | None = None,
) -> Candidate:
    """Returns a compiled train step as a candidate; each call takes a further step.

    The batch comes from the host every time and the state is donated, as in the training loop.

    Args:
      model: architecture.
      objective: what is predicted.
      optimizer_config: optimizer.
      tokens_BL: the batch, of whole rows, of every step.
      packed: whether the step is one for rows that may hold several documents.
      next_batch: gives the batch of a step instead, of the same shape.
    """
    jitted: Any = make_train_step(model, objective, optimizer_config, _NUM_STEPS)
    state = train_state.init_train_state(
        init(jax.random.key(0), model), optimizer.build(optimizer_config, _NUM_STEPS)
    )
    batch = whole_rows(tokens_BL)
    if packed:
        del batch["length"]
    token_weights = jnp.ones(model.vocab_size) if objective.bag_of_words else None
    arguments = state, batch, 0, token_weights
    seconds, compiled = timed_compile(jitted, *arguments)
    bytes_moved = min_bytes(jitted, *arguments)
    states = [state]

    def call():
        states[0], metrics = jitted(
            states[0], next_batch() if next_batch else batch, 0, token_weights
        )
        return metrics

    return Candidate(
        call=call,
        wait=jax.block_until_ready,
        chained=True,
        compile_seconds=seconds,
        peak_memory_bytes=peak_memory(compiled),
        min_bytes=bytes_moved,
    )


def random_tokens(shape: StepShape, config: BenchConfig) -> np.ndarray:
    """Returns uniformly random token ids, int32 [B, L]."""
    rng = np.random.default_rng(config.seed)
    size = (shape.batch_size, shape.seq_len)
    return rng.integers(0, shape.model.vocab_size, size, dtype=np.int32)


def whole_rows(tokens_BL: np.ndarray) -> dict[str, np.ndarray]:
    """Returns a batch of tokens [B, L] in which every row is one document."""
    B, L = tokens_BL.shape
    return {
        "tokens": tokens_BL,
        "segments": np.ones((B, L), np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        "length": np.full(B, L, np.int32),
    }


def packed_batches(shape: StepShape, config: BenchConfig) -> Batches:
    """Returns endless batches of packed random documents, of lengths up to a whole row."""
    rng = np.random.default_rng(config.seed)
    documents = [
        rng.integers(0, shape.model.vocab_size, length, dtype=np.int32)
        for length in rng.integers(1, shape.seq_len + 1, 64 * shape.batch_size)
    ]
    return text_batches(
        [documents], batch_size=shape.batch_size, length=shape.seq_len, seed=config.seed
    )


def attention_name(model: ModelConfig, shape: StepShape, objective: PretrainingObjective) -> str:
    """Returns the names of the attention implementations that the train step uses."""
    if model.attention:
        return model.attention
    names = []
    batch = whole_rows(np.zeros((shape.batch_size, shape.seq_len), np.int32))
    for B, L, mask in objectives.attention_inputs(batch, objective).values():
        q = jax.ShapeDtypeStruct((B, L, model.num_heads, model.head_dim), model.dtype)
        k = jax.ShapeDtypeStruct((B, L, model.num_kv_heads, model.head_dim), model.dtype)
        names.append(choose(q, k, mask))
    return ", ".join(dict.fromkeys(names))


def step_flops(model: ModelConfig, objective: PretrainingObjective, shape: StepShape) -> float:
    """Returns the FLOPs of one training step."""
    total = 0.0
    for name, rows in objectives.objective_rows(objective, shape.batch_size).items():
        length, num_predictions = flops.input_and_prediction_counts(
            name, shape.seq_len, mask_ratio=objective.mask_ratio
        )
        per_row = flops.train_flops(model, length, num_predictions=num_predictions)
        total += (rows.stop - rows.start) * per_row
    return total
