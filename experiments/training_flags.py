"""The flags of every command that trains: one table of flag, field, help and commands.

A flag sets the field of the recipe that `--set` would set. What a command does not define has no
meaning there; docs/settings.md has the table.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from absl import flags

from fm.errors import UserError
from fm.model.config import DTYPES
from fm.parallel.mesh import default_device
from fm.study.epochs import EpochSize
from fm.training.optimizer import OPTIMIZERS, SCHEDULES

_Config = TypeVar("_Config")

STUDIES = ("compare", "ablate", "search")
# Commands by what they train: one model, arms of a study, one joint model, small language models.
PRETRAINING = ("pretrain", *STUDIES, "multitask", "text_quality")
MAX_STEPS = 2**31 - 1
LENGTHS = ("steps", "epochs", "tokens")


@dataclasses.dataclass(frozen=True)
class TrainingFlag:
    """A flag of the commands that train.

    Attributes:
      name: of the flag.
      field: dotted path in the recipe; "" if the flag sets none.
      help: text of --help.
      commands: that define it.
      kind: "int", "float" or "enum".
      choices: values of an enum.
      adapt_field: path in the recipe that `adapt` sets instead; "" if `adapt` does not define it.
      is_of_text: whether it has a meaning for text only, which has a tokenizer.
    """

    name: str
    field: str
    help: str
    commands: tuple[str, ...]
    kind: str = "int"
    choices: tuple[str, ...] = ()
    adapt_field: str = ""
    is_of_text: bool = False

    @property
    def all_commands(self) -> tuple[str, ...]:
        """The commands that define it."""
        return (*self.commands, "adapt") if self.adapt_field else self.commands


FLAGS = (
    TrainingFlag(
        "dtype",
        "model.dtype",
        "of matrix products and activations; parameters, optimizer state, reductions, norms, "
        "softmax and loss are float32 in either. By default bfloat16 on a GPU or TPU and float32 "
        "on a CPU",
        PRETRAINING,
        "enum",
        DTYPES,
        adapt_field="model.dtype",
    ),
    TrainingFlag(
        "learning_rate",
        "optimizer.learning_rate",
        "peak learning rate; under Muon that of the layers' matrices, whose updates it makes "
        "orthogonal, and that of all other parameters, which follow Adam, changes by the same "
        "factor",
        PRETRAINING,
        "float",
        adapt_field="learning_rates",
    ),
    TrainingFlag(
        "schedule",
        "optimizer.schedule",
        "of the learning rate: cosine, or wsd (warm-up, stable, decay over the last fifth)",
        PRETRAINING,
        "enum",
        SCHEDULES,
    ),
    TrainingFlag(
        "warmup_steps",
        "optimizer.warmup_steps",
        "steps over which the learning rate rises from 0; by default a fraction of all steps, "
        "optimizer.warmup",
        PRETRAINING,
    ),
    TrainingFlag(
        "weight_decay",
        "optimizer.weight_decay",
        "decoupled weight decay of the layers' matrices",
        PRETRAINING,
        "float",
    ),
    TrainingFlag(
        "optimizer",
        "optimizer.name",
        "muon (embeddings and heads follow Adam) or adamw, to which --learning_rate applies as a "
        "whole: give a lower one with it",
        PRETRAINING,
        "enum",
        OPTIMIZERS,
    ),
    TrainingFlag(
        "grad_clip",
        "optimizer.clip",
        "the norm of the gradient is scaled down to this",
        PRETRAINING,
        "float",
    ),
    TrainingFlag(
        "grad_accum_steps",
        "grad_accum_steps",
        "microbatches that a batch is split into, to need less memory",
        ("pretrain", *STUDIES),
    ),
    TrainingFlag(
        "batch_size",
        "batch_size",
        "sequences per step, over all devices and microbatches",
        PRETRAINING,
        adapt_field="finetune.batch_size",
    ),
    TrainingFlag(
        "max_seq_len",
        "seq_len",
        "tokens in a sequence of text; longer texts are cut into several",
        PRETRAINING,
        adapt_field="seq_len",
        is_of_text=True,
    ),
    TrainingFlag(
        "vocab_size",
        "vocab_size",
        "of text: entries of the vocabulary of the tokenizer that is trained on it, with 256 bytes "
        "and 4 special tokens",
        PRETRAINING,
        is_of_text=True,
    ),
    TrainingFlag("steps", "steps", "training steps; of --steps, --epochs and --tokens give one",
                 PRETRAINING),
    TrainingFlag(
        "epochs",
        "steps",
        "passes over the training examples, such as 3 or 0.5, instead of --steps",
        ("pretrain", *STUDIES),
        "float",
        adapt_field="finetune.max_epochs",
    ),
    TrainingFlag(
        "tokens",
        "steps",
        "tokens (or patches) to train on without padding, such as 3e8, instead of --steps; where "
        "a batch has rows of several data sets, padding counts",
        PRETRAINING,
        "float",
    ),
    TrainingFlag("eval_every", "", "steps between validations; by default an eighth of all",
                 ("pretrain",)),
    TrainingFlag(
        "checkpoint_every",
        "",
        "steps between checkpoints, of which the last two are kept; by default a quarter of all, "
        "at least 100",
        ("pretrain",),
    ),
    TrainingFlag(
        "keep_period",
        "keep_period",
        "checkpoints at multiples of this step are kept for good",
        ("pretrain", *STUDIES),
    ),
    TrainingFlag("seed", "", "random seed", ("pretrain", "text_quality", "adapt")),
)  # fmt: skip
_BY_NAME = {flag.name: flag for flag in FLAGS}
# Where --help of `adapt` says something else.
_ADAPT_HELP = {
    "learning_rate": "the one learning rate of full fine-tuning, instead of a search",
    "batch_size": "examples per step of fine-tuning",
    "epochs": "most passes over the labels that the search of fine-tuning tries, at least 4",
    "max_seq_len": "tokens in a sequence of text; a text has several",
    "dtype": f"{_BY_NAME['dtype'].help}; a model of fm pretrain has its own unless given",
}


def define(values: flags.FlagValues, command: str) -> None:
    """Defines the flags that a command has."""
    for flag in FLAGS:
        if command not in flag.all_commands:
            continue
        text = _ADAPT_HELP.get(flag.name, flag.help) if command == "adapt" else flag.help
        if flag.kind == "enum":
            flags.DEFINE_enum(flag.name, None, list(flag.choices), text, flag_values=values)
        elif flag.kind == "float" and not (command == "adapt" and flag.name == "epochs"):
            flags.DEFINE_float(flag.name, None, text, flag_values=values)
        elif flag.name == "seed":
            flags.DEFINE_integer("seed", 0, text, flag_values=values, lower_bound=0)
        else:
            flags.DEFINE_integer(flag.name, None, text, flag_values=values, lower_bound=1)


def default_dtype() -> str:
    """Returns the dtype of products on the default device: bfloat16, or on a CPU float32."""
    return "float32" if default_device().platform == "cpu" else "bfloat16"


def with_default_dtype(config: _Config) -> _Config:
    """Returns a recipe whose model has the dtype of the default device."""
    return _with_changes(config, {"model.dtype": default_dtype()})


def with_flags(
    config: _Config,
    values: flags.FlagValues,
    command: str,
    epoch_size: Callable[[_Config], EpochSize] | None = None,
    name: str = "",
    multiple: int = 1,
) -> _Config:
    """Returns a recipe with the fields that the given flags set.

    Args:
      config: recipe, or another config with the same fields.
      values: flags.
      command: its name.
      epoch_size: returns the size of a pass over the data by a recipe; None where a batch has rows
        of several data sets.
      name: of the data, to say how many steps --epochs or --tokens is.
      multiple: the number of steps is one of it.

    Raises:
      UserError: a value does not fit, or several lengths are given.
    """
    check(values)
    changes = {}
    for flag in FLAGS:
        field = flag.adapt_field if command == "adapt" else flag.field
        given = flag.name in values and values[flag.name].value is not None
        is_length = flag.name in LENGTHS[1:] and command != "adapt"
        if given and flag.is_of_text and not config.vocab_size:  # pyright: ignore[reportAttributeAccessIssue]
            print(f"{name}: {_shown(flag, values)} is for text, not used", file=sys.stderr)
            continue
        if given and field and not is_length and hasattr(config, field.partition(".")[0]):
            changes[field] = values[flag.name].value
    length = None if command == "adapt" else _length(values)
    if length in LENGTHS[1:]:
        # Of the other fields only these say how many rows a pass has, and a batch.
        names = ("batch_size", "seq_len", "vocab_size")
        sizes = {name: changes[name] for name in names if name in changes}
        sized = _with_changes_named(config, sizes, values)
        changes["steps"] = _steps(sized, values, length, epoch_size, name, multiple)
    return _with_changes_named(config, changes, values)


def check(values: flags.FlagValues) -> None:
    """Raises UserError for flags that are wrong whatever the data."""
    if _length(values) == "steps" and values["steps"].value > MAX_STEPS:
        raise UserError(f"--steps={values['steps'].value}: takes at most {MAX_STEPS:,}")
    for name in ("learning_rate", "weight_decay", "grad_clip", "epochs", "tokens"):
        value = values[name].value if name in values else None
        least = "from 0" if name == "weight_decay" else "above 0"
        wrong = value is not None and not (value > 0 or (value == 0 and least == "from 0"))
        if wrong or value == math.inf:
            raise UserError(f"--{name}={value:g}: takes a number {least}")


def gives_text_flags(values: flags.FlagValues) -> bool:
    """Returns whether a flag is given that has a meaning for text only."""
    return bool(_text_flags(values))


def check_text_flags(
    values: flags.FlagValues, modalities: Collection[str], data: Iterable[str]
) -> None:
    """Raises UserError for flags of text if no data set has any.

    Args:
      values: flags.
      modalities: of the data sets.
      data: names of the data sets.
    """
    if "text" in modalities:
        return
    for flag in _text_flags(values):
        raise UserError(
            f"{_shown(flag, values)}: is for text, not for {', '.join(data)} "
            f"({', '.join(sorted(set(modalities)))})"
        )


def _text_flags(values: flags.FlagValues) -> list[TrainingFlag]:
    return [
        flag
        for flag in FLAGS
        if flag.is_of_text and flag.name in values and values[flag.name].value is not None
    ]


def check_profile_steps(steps: tuple[int, int] | None, config: Any) -> None:
    """Raises UserError if a run of the recipe ends before the first step of its profile."""
    if steps is not None and steps[0] > config.steps:
        raise UserError(
            f"--profile_steps={steps[0]}:{steps[1]}: the run has {config.steps} steps; the first "
            "of the profile must be one of them"
        )


def _length(values: flags.FlagValues) -> str | None:
    """Returns which of --steps, --epochs and --tokens is given, None for none."""
    given = [name for name in LENGTHS if name in values and values[name].value is not None]
    if len(given) > 1:
        said = " and ".join(f"--{name}={values[name].value:g}" for name in given)
        known = " or ".join(f"--{name}" for name in LENGTHS if name in values)
        raise UserError(f"{said}: each says how long to train; give {known}")
    return given[0] if given else None


def _steps(
    config: Any,
    values: flags.FlagValues,
    length: str,
    epoch_size: Callable[[Any], EpochSize] | None,
    name: str,
    multiple: int,
) -> int:
    """Returns the steps that --epochs or --tokens stands for, and says so on stderr."""
    wanted = values[length].value
    if epoch_size is not None:
        size = epoch_size(config)
        rows = wanted * (size.rows if length == "epochs" else size.rows / size.tokens)
        what = f"a pass is {size.rows:,} rows with {size.tokens:,} {size.noun}"
    elif length == "epochs":
        raise UserError(
            f"--epochs={wanted:g}: is for one data set, since a mixture passes over each at its "
            "own rate; give --steps or --tokens"
        )
    else:
        rows = wanted / config.seq_len
        what = f"a row is {config.seq_len} tokens"
    if rows / config.batch_size > MAX_STEPS:
        raise UserError(f"--{length}={wanted:g}: takes at most {MAX_STEPS:,} steps ({what})")
    steps = multiple * max(1, math.ceil(rows / config.batch_size / multiple - 1e-9))
    of = f"{name}: " if name else ""
    print(
        f"{of}--{length}={wanted:g} is {steps:,} steps of {config.batch_size} rows ({what})",
        file=sys.stderr,
    )
    return steps


def _with_changes_named(config: _Config, changes: dict[str, Any], values: Any) -> _Config:
    """Returns `_with_changes`; an error names the flag whose field it is about."""
    try:
        return _with_changes(config, changes)
    except UserError as error:
        for flag in FLAGS:
            given = flag.name in values and values[flag.name].value is not None
            fields = {path.rpartition(".")[2] for path in (flag.field, flag.adapt_field) if path}
            # `adam_learning_rate` changes with --learning_rate.
            about = any(re.search(rf"\b(adam_)?{field}=", str(error)) for field in fields)
            if given and about:
                raise UserError(f"{_shown(flag, values)}: {error}") from error
        raise


def _shown(flag: TrainingFlag, values: flags.FlagValues) -> str:
    value = values[flag.name].value
    return f"--{flag.name}={value:g}" if flag.kind == "float" else f"--{flag.name}={value}"


def _with_changes(config: _Config, changes: dict[str, Any]) -> _Config:
    """Returns a config with the values at dotted paths replaced, those of one part at once."""
    own: dict[str, Any] = {}
    for path, value in changes.items():
        part, _, field = path.partition(".")
        if field:
            own.setdefault(part, {})[field] = value
        else:
            own[part] = value
    for part, value in own.items():
        if not isinstance(value, dict):
            own[part] = (value,) if part == "learning_rates" else value
            continue
        old = getattr(config, part)
        if "learning_rate" in value and part == "optimizer":
            old = old.with_learning_rate(value.pop("learning_rate"))
        own[part] = dataclasses.replace(old, **value)
    return dataclasses.replace(config, **own)  # pyright: ignore[reportArgumentType]


def markdown_table() -> str:
    """Returns the table of docs/settings.md."""
    lines = ["| flag | sets | commands |", "| --- | --- | --- |"]
    for flag in FLAGS:
        fields = [f"`{flag.field}`"] if flag.field else []
        if flag.adapt_field and flag.adapt_field != flag.field:
            fields.append(f"`{flag.adapt_field}` (`adapt`)")
        commands = ", ".join(f"`{name}`" for name in flag.commands)
        if flag.commands == PRETRAINING:
            commands = "all that pretrain"
        commands += ", `adapt`" if flag.adapt_field else ""
        lines.append(f"| `--{flag.name}` | {', '.join(fields) or 'the run'} | {commands} |")
    return "\n".join(lines)
