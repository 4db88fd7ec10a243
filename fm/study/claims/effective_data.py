"""The claim that data transferred from text to Python follows a power law of data and parameters.

Language models of several sizes are trained on Python sources, from scratch and from a checkpoint
pretrained on film reviews, each until its loss on held-out files falls no more.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from fm.config_io import to_plain
from fm.data.batches import Batch, text_batches
from fm.data.datasets import Split, development_dataset, subset
from fm.data.tokenizer import Tokenizer, tokenize_chunks
from fm.errors import UserError
from fm.evaluation.effective_data import fit_transfer_law, transferred_data
from fm.evaluation.statistics import Interval, mean_interval
from fm.files import read_checked_json, write_checked_json
from fm.model.config import ModelConfig
from fm.study.claims.registry import (
    FULL,
    PILOT,
    QUICK,
    Claim,
    Condition,
    Paper,
    PaperFigure,
    Verdict,
    all_hold,
    is_above,
    verdict_of,
)
from fm.study.loading import load
from fm.study.pretraining import device_rates
from fm.study.processing import load_or_train_tokenizer
from fm.training.checkpoint import load_params
from fm.training.config import TrainConfig
from fm.training.metric_units import BitsPerByte
from fm.training.objectives import PretrainingObjective, causal_lm_sums
from fm.training.optimizer import OptimizerConfig
from fm.training.train_loop import train
from fm.training.train_state import init_sharded
from fm.training.trial import ParamsOrInit

SCRATCH, PRETRAINED = "scratch", "pretrained"
OBJECTIVE = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
# On two cores.
MINUTES = {QUICK: 0.5, PILOT: 10.0, FULL: 69.0}
MIN_R2 = 0.9
CRITERION = (
    "a, the exponent of the fine-tuning data, lies between 0 and 1 (95% interval over seeds)",
    "b, the exponent of the parameters, is above 0 (95% interval over seeds)",
    "the law explains over 90% of the variance of log D_T (R2, by mean losses over seeds)",
    "ossification: pretraining helps the smallest model with the least data and hurts it with the "
    "most (95% intervals over seeds)",
)
SIZE_COLORS = ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#000000")
SEQ_LEN, BATCH_SIZE, VOCAB_SIZE, HEAD_DIM = 128, 16, 1024, 32
WARMUP_STEPS, PATIENCE, MIN_IMPROVEMENT = 20, 3, 0.002
# The loss on held-out files is read this often: a quarter of a pass, within these steps.
READ_EVERY = (10, 100)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the measurement is.

    Attributes:
      models: (layers, width) pairs, ascending in parameters.
      characters: of Python trained on, ascending.
      seeds: each with its own draw of files, checkpoint and order.
      pretrain_steps: on reviews.
      max_steps: most steps of a run on Python.
      held_out_rows: rows of `SEQ_LEN` tokens of held-out files, as many for choosing the length of
        a run as for its loss.
      max_reviews: reviews pretrained on; None for all.
      tokenizer_characters: of either corpus, that the tokenizer is trained on.
    """

    models: tuple[tuple[int, int], ...]
    characters: tuple[int, ...]
    seeds: int
    pretrain_steps: int
    max_steps: int
    held_out_rows: int
    max_reviews: int | None = None
    tokenizer_characters: int = 2_000_000


SIZES = {
    QUICK: Size(((1, 32), (1, 64)), (10_000, 30_000), 1, 20, 20, 16, 500, 50_000),
    PILOT: Size(((1, 32), (2, 64)), (30_000, 100_000, 300_000, 1_000_000), 1, 600, 1500, 256),
    FULL: Size(
        ((1, 32), (2, 32), (2, 64)),
        (30_000, 100_000, 300_000, 1_000_000, 3_000_000),
        4,
        1000,
        5000,
        256,
    ),
}


def model_config(layers: int, width: int, vocab_size: int) -> ModelConfig:
    """Returns a model of heads of 32 and an MLP of four times the width."""
    heads = width // HEAD_DIM
    return ModelConfig(
        num_layers=layers,
        d_model=width,
        num_heads=heads,
        num_kv_heads=heads,
        mlp_dim=4 * width,
        vocab_size=vocab_size,
    )


def optimizer_config() -> OptimizerConfig:
    """Returns the optimizer of all runs."""
    return OptimizerConfig(learning_rate=0.01, adam_learning_rate=0.005, warmup_steps=WARMUP_STEPS)


def num_parameters(layers: int, width: int) -> int:
    """Returns the parameters of the layers' matrices, without embeddings (Kaplan et al. 2020)."""
    return layers * 12 * width**2


def measure(profile: str, out_dir: pathlib.Path, data_dir: str | None) -> dict[str, Any]:
    """Returns the loss of every run: by model, characters, start and seed."""
    return measure_size(SIZES[profile], out_dir, development=profile == PILOT)


def measure_size(size: Size, out_dir: pathlib.Path, *, development: bool) -> dict[str, Any]:
    """Measures at a given size, see `measure`.

    Args:
      size: how large.
      out_dir: keeps every run's loss once it is done.
      development: whether a part of the training split is scored instead of test items.
    """
    data = _load(size, out_dir, development=development)
    rows = []
    for layers, width in size.models:
        for seed in range(size.seeds):
            pretrained: dict | None = None
            for characters, arm in itertools.product(size.characters, (SCRATCH, PRETRAINED)):
                run = Run(layers, width, characters, arm, seed)
                path = out_dir / "cells" / f"{run.name}.json"
                if not path.exists():
                    if arm == PRETRAINED and pretrained is None:
                        pretrained = _pretrain(data, size, layers, width, seed, out_dir)
                    params = pretrained if arm == PRETRAINED else None
                    write_checked_json(path, _train(data, size, run, params, out_dir))
                parameters = num_parameters(layers, width)
                about = dataclasses.asdict(run) | {"parameters": parameters}
                rows.append(about | read_checked_json(path))
    return {"runs": rows}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on Python: model, number of characters, start and seed."""

    layers: int
    width: int
    characters: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Returns a name for files."""
        return f"{self.layers}x{self.width}-{self.characters}-{self.arm}-{self.seed}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Data:
    """Corpora, their tokenizer, and rows of held-out files: to choose lengths by, and to score."""

    reviews: Split
    python: Split
    tokenizer: Tokenizer
    choosing: list[Batch]
    scoring: list[Batch]

    @functools.cached_property
    def review_chunks(self) -> list[np.ndarray]:
        """The tokens of all reviews."""
        texts = self.reviews.texts(range(len(self.reviews)))
        return tokenize_chunks(self.tokenizer, texts, SEQ_LEN)


def _load(size: Size, out_dir: pathlib.Path, *, development: bool) -> _Data:
    reviews, python = load("film_reviews").train, load("python_sources")
    if development:
        python = development_dataset(python)
    if size.max_reviews is not None:
        reviews = subset(reviews, np.arange(min(size.max_reviews, len(reviews))))
    tokenizer = load_or_train_tokenizer(
        lambda: [
            *draw_texts(reviews, size.tokenizer_characters, 0),
            *draw_texts(python.train, size.tokenizer_characters, 0),
        ],
        VOCAB_SIZE,
        out_dir,
    )
    texts = python.test.texts(np.random.default_rng(0).permutation(len(python.test)))
    # Passages that choose the length of a run are not those that score it.
    halves = [
        _rows(tokenizer, half, size.held_out_rows)
        for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :])
    ]
    return _Data(reviews, python.train, tokenizer, *halves)


def _rows(tokenizer: Tokenizer, texts: list[str], count: int) -> list[Batch]:
    """Returns batches of `count` rows in all."""
    chunks = tokenize_chunks(tokenizer, texts, SEQ_LEN)
    batches = text_batches([chunks], batch_size=BATCH_SIZE, length=SEQ_LEN, seed=0)
    return [next(batches) for _ in range(max(1, count // BATCH_SIZE))]


def draw_texts(split: Split, characters: int, seed: int) -> list[str]:
    """Returns random texts of so many characters in all; fewer characters are their beginning.

    Raises:
      UserError: the split has fewer.
    """
    texts, missing = [], characters
    order = np.random.default_rng(seed).permutation(len(split))
    # A passage has up to 4,000 characters; reading by blocks reads little too much.
    for begin in range(0, len(order), 256):
        for text in split.texts(order[begin : begin + 256]):
            texts.append(text[:missing])
            missing -= len(texts[-1])
            if not missing:
                return texts
    raise UserError(f"{characters:,} characters are asked for, {characters - missing:,} are there")


def _pretrain(
    data: _Data, size: Size, layers: int, width: int, seed: int, out_dir: pathlib.Path
) -> dict:
    """Returns the parameters of a model pretrained on reviews; another seed, another checkpoint."""
    model = model_config(layers, width, data.tokenizer.vocab_size)
    name = f"{layers}x{width}-{seed}"
    result = train(
        functools.partial(init_sharded, jax.random.key(seed), model),
        text_batches([data.review_chunks], batch_size=2 * BATCH_SIZE, length=SEQ_LEN, seed=seed),
        model,
        OBJECTIVE,
        dataclasses.replace(optimizer_config(), schedule="wsd"),
        TrainConfig(
            steps=size.pretrain_steps,
            seed=seed,
            checkpoint_every=max(100, size.pretrain_steps // 2),
            log_every=max(1, size.pretrain_steps // 20),
        ),
        out_dir=out_dir / "pretrained" / name,
        metric_unit=BitsPerByte(1.0),
        run_name=f"effective_data: pretraining {name}",
        **device_rates(model.dtype),
        identity={"tokenizer": data.tokenizer.digest(), "texts": len(data.reviews)},
    )
    return result.params


def _train(
    data: _Data,
    size: Size,
    run: Run,
    params: dict | None,
    out_dir: pathlib.Path,
) -> dict[str, Any]:
    """Trains on Python until the loss on held-out text falls no more; returns its loss in nats."""
    model = model_config(run.layers, run.width, data.tokenizer.vocab_size)
    texts = draw_texts(data.python, run.characters, run.seed)
    chunks = tokenize_chunks(data.tokenizer, texts, SEQ_LEN)
    pass_steps = sum(map(len, chunks)) / (BATCH_SIZE * SEQ_LEN)
    every = int(np.clip(round(pass_steps / 4), *READ_EVERY))
    folder = out_dir / "runs" / run.name
    start: ParamsOrInit = params or functools.partial(
        init_sharded, jax.random.key(1000 + run.seed), model
    )
    result = train(
        start,
        text_batches([chunks], batch_size=BATCH_SIZE, length=SEQ_LEN, seed=run.seed),
        model,
        OBJECTIVE,
        optimizer_config(),
        TrainConfig(
            steps=size.max_steps,
            seed=run.seed,
            checkpoint_every=every,
            keep_period=every,
            log_every=every,
            validate_every=every,
            early_stopping_patience=PATIENCE,
            min_improvement=MIN_IMPROVEMENT,
            warmup_steps=WARMUP_STEPS,
        ),
        out_dir=folder,
        metric_unit=BitsPerByte(1.0),
        validation=data.choosing,
        run_name=f"effective_data: {run.name}",
        **device_rates(model.dtype),
        identity={"tokenizer": data.tokenizer.digest(), "characters": run.characters},
    )
    readings = result.curve["validation"]
    best = int(np.argmin(readings))
    step = min((best + 1) * every, result.steps)
    kept, _ = load_params(folder / "checkpoints", step)
    found = {
        "nats": mean_nats(kept, data.scoring, model),
        "step": step,
        "steps": result.steps,
        "passes": step / pass_steps,
        "stopped_because": result.stopped_because,
        "readings": readings,
        "seconds": result.seconds,
    }
    shutil.rmtree(folder)
    return found


def mean_nats(params: dict, batches: list[Batch], model: ModelConfig) -> float:
    """Returns the mean next-token loss of batches in nats."""
    sums = np.sum([jax.device_get(_sums(params, batch, model)) for batch in batches], axis=0)
    return float(sums[0] / sums[1])


@functools.partial(jax.jit, static_argnames="model")
def _sums(params: dict, batch: Batch, model: ModelConfig) -> tuple[jax.Array, jax.Array]:
    return causal_lm_sums(params, batch, model)


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """Losses by parameters, characters and seed, and the data transferred.

    Attributes:
      parameters_N: ascending.
      characters_D: ascending.
      scratch_NDS: nats a token.
      pretrained_NDS: nats a token.
    """

    parameters_N: np.ndarray
    characters_D: np.ndarray
    scratch_NDS: np.ndarray
    pretrained_NDS: np.ndarray

    def transferred(self, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Returns D_T [N, D] of the mean losses over seeds, by default all."""
        own = slice(None) if seeds is None else list(seeds)
        means = (each[..., own].mean(axis=-1) for each in (self.scratch_NDS, self.pretrained_NDS))
        return transferred_data(self.characters_D, *means)


def losses(measured: dict[str, Any]) -> Losses:
    """Returns the measured losses as arrays."""
    rows = measured["runs"]
    axes = {
        name: sorted({row[name] for row in rows}) for name in ("parameters", "characters", "seed")
    }
    arrays = {
        arm: np.full([len(values) for values in axes.values()], np.nan)
        for arm in (SCRATCH, PRETRAINED)
    }
    for row in rows:
        place = tuple(values.index(row[name]) for name, values in axes.items())
        arrays[row["arm"]][place] = row["nats"]
    return Losses(
        np.array(axes["parameters"], float),
        np.array(axes["characters"], float),
        arrays[SCRATCH],
        arrays[PRETRAINED],
    )


def judge(measured: dict[str, Any]) -> Verdict:
    """Returns the verdict from the exponents of each seed's own law and the signs at both ends."""
    found = losses(measured)
    num_seeds = found.scratch_NDS.shape[-1]
    exponents = []
    for seed in range(num_seeds):
        try:
            law = fit_transfer_law(
                found.parameters_N, found.characters_D, found.transferred([seed])
            )
        except UserError:
            continue
        exponents.append((law.data_exponent, law.parameters_exponent))
    try:
        whole = fit_transfer_law(found.parameters_N, found.characters_D, found.transferred())
    except UserError as error:
        whole, r2 = None, str(error)
    else:
        r2 = f"R2 {whole.r2:.2f} over {whole.num_points} points"
    data, parameters = (
        mean_interval(np.array([each[n] for each in exponents])) if len(exponents) > 1 else None
        for n in range(2)
    )
    gain_NDS = found.scratch_NDS - found.pretrained_NDS
    least, most = (mean_interval(gain_NDS[0, d]) if num_seeds > 1 else None for d in (0, -1))
    between = None
    if data is not None:
        ends = is_above(data.low, data.high, 0.0), is_above(-data.high, -data.low, -1.0)
        between = all_hold(ends)
    conditions = (
        Condition(CRITERION[0], between, _told(data)),
        Condition(
            CRITERION[1],
            None if parameters is None else is_above(parameters.low, parameters.high),
            _told(parameters),
        ),
        Condition(CRITERION[2], None if whole is None else whole.r2 > MIN_R2, r2),
        Condition(CRITERION[3], _flips(least, most), f"{_told(least)}; {_told(most)} nats a token"),
    )
    notes = [
        f"{n:,.0f} parameters: data transferred at "
        + ", ".join(
            f"{d:,.0f} characters {value:,.0f}" if np.isfinite(value) else f"{d:,.0f} beyond"
            for d, value in zip(found.characters_D, row, strict=True)
        )
        for n, row in zip(found.parameters_N, found.transferred(), strict=True)
    ]
    unfinished = [row for row in measured["runs"] if row.get("stopped_because") == "steps"]
    if unfinished:
        # Their losses are too high, more so from scratch, and the data transferred too much.
        largest = ", ".join(
            f"{sum(row['characters'] == d for row in unfinished)} at {d:,.0f} characters"
            for d in sorted({row["characters"] for row in unfinished})
        )
        notes.append(
            f"{len(unfinished)} of {len(measured['runs'])} runs took all the steps they had, while "
            f"their loss still fell: {largest}"
        )
    return verdict_of(conditions, f"exponents a {_told(data)}, b {_told(parameters)}, {r2}", notes)


def _flips(least: Interval | None, most: Interval | None) -> bool | None:
    """Returns whether pretraining helps with the least data and hurts with the most."""
    if least is None or most is None:
        return None
    return all_hold([is_above(least.low, least.high), is_above(-most.high, -most.low)])


def _told(interval: Interval | None) -> str:
    if interval is None:
        return "not determined"
    return f"{interval.mean:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def plot(measured: dict[str, Any], figure: Figure) -> None:
    """Draws losses by characters, and the data transferred with the fitted law, for each size."""
    found = losses(measured)
    left, right = figure.subplots(1, 2)
    transferred = found.transferred()
    try:
        law = fit_transfer_law(found.parameters_N, found.characters_D, transferred)
    except UserError:
        law = None
    for n, parameters in enumerate(found.parameters_N):
        color = SIZE_COLORS[n % len(SIZE_COLORS)]
        for arrays, style in ((found.scratch_NDS, "--"), (found.pretrained_NDS, "-")):
            label = f"{parameters / 1000:,.0f}k" if style == "-" else None
            values = arrays[n].mean(axis=-1)
            left.plot(found.characters_D, values, style, color=color, label=label)
        above = transferred[n] > 0
        right.plot(found.characters_D[above], transferred[n][above], "o", color=color)
        if law is not None:
            fitted = np.exp(law.log_k) * found.characters_D**law.data_exponent
            fitted = fitted * parameters**law.parameters_exponent
            right.plot(found.characters_D, fitted, ":", color=color)
    left.set_title("pretrained; dashes: scratch", fontsize=9)
    right.set_title("measured; dotted: law", fontsize=9)
    left.set_ylabel("nats a token")
    right.set_ylabel("characters transferred")
    left.set_xscale("log")
    right.set_xscale("log")
    # Nothing transferred has no logarithm.
    if (transferred > 0).any():
        right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("characters of Python")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.yaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_minor_formatter(NullFormatter())
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, title="parameters", fontsize=9
    )


def settings(profile: str, data_dir: str | None) -> dict[str, Any]:
    """Returns everything that the outcome depends on, as JSON."""
    return to_plain(SIZES[profile]) | {
        "optimizer": to_plain(optimizer_config()),
        "objective": to_plain(OBJECTIVE),
        "seq_len": SEQ_LEN,
        "batch_size": BATCH_SIZE,
        "vocab_size": VOCAB_SIZE,
        "patience": PATIENCE,
        "min_improvement": MIN_IMPROVEMENT,
        "read_every": list(READ_EVERY),
    }


def protocol() -> str:
    """Returns the protocol of the full profile."""
    size = SIZES[FULL]
    models = ", ".join(f"{num_parameters(*each):,} ({each[0]} x {each[1]})" for each in size.models)
    characters = ", ".join(f"{each:,}" for each in size.characters)
    return (
        f"Language models of {models} parameters (layers x width, without embeddings) with one "
        f"BPE vocabulary of {VOCAB_SIZE:,} for film reviews and Python. Pretrained for "
        f"{size.pretrain_steps:,} steps of {2 * BATCH_SIZE} rows of {SEQ_LEN} tokens on the "
        f"training reviews of film_reviews; then trained on {characters} characters of the Python "
        "standard library (python_sources), from the checkpoint and from scratch, until the loss "
        f"on held-out text has not fallen by 0.2% in {PATIENCE} readings (at most "
        f"{size.max_steps:,} steps of {BATCH_SIZE} rows), and at the step with the lowest loss. "
        f"{size.seeds} seeds, each with its own checkpoints, draw of Python and order. Losses are "
        "next-token losses on other passages of held-out files. The data transferred is what a "
        "model from scratch of the same size would have needed beyond its own for the same loss, "
        "and the law is fitted to the points where it is above 0 and within what was measured. "
        "Unlike the paper: smaller models and data by orders of magnitude, and reviews alone in "
        "place of a mixture of text."
    )


CLAIM = Claim(
    name="effective_data",
    statement="The data that pretraining on text is worth for Python follows the power law "
    "D_T = k D_F^a N^b of fine-tuning data and parameters, and pretraining hurts small models "
    "with much data.",
    paper=Paper(
        "Hernandez, Kaplan, Henighan and McCandlish",
        "Scaling Laws for Transfer",
        2021,
        "arXiv",
        "https://arxiv.org/abs/2102.01293",
    ),
    figures=(
        PaperFigure(
            "text to Python: k = 1.9e4, a = 0.18, b = 0.38",
            "Table 1 and eq. 1.1, read in two sets of public notes on the paper, which agree; "
            "the abstract at docslib.org",
        ),
        PaperFigure(
            "models of 1M parameters trained from scratch on more than 1e8 characters are "
            "better than fine-tuned ones (ossification)",
            "section 3.1 and Figure 5, read in public notes on the paper",
        ),
    ),
    protocol=protocol(),
    criterion=CRITERION,
    minutes=MINUTES,
    settings=settings,
    measure=measure,
    judge=judge,
    plot=plot,
)
