"""Continues a prompt with a model of one's own or a published one.

    python -m experiments.generate --model=runs/pretrain --prompt="The film" --max_tokens=40
    python -m experiments.generate --model=smollm2-135m --prompt="The capital of France is" \\
        --max_tokens=8 --temperature=0

--model is the --out of experiments.pretrain, a Hugging Face folder, a GGUF file or a known name.
Prints the prompt and what follows it. The same seed gives the same text.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from experiments import command
from fm.data.tokenizer import SPECIALS
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.generate import Generation
from fm.model.sampling import Decoding
from fm.model.writing import after, write
from fm.study.pretraining import restore
from fm.transfer import published


def define(values: flags.FlagValues) -> None:
    """The model, the prompt, and how to choose."""
    flags.DEFINE_string("model", None, "folder, file or name", flag_values=values)
    flags.DEFINE_string("prompt", None, "text to go on from", flag_values=values)
    flags.DEFINE_integer("max_tokens", 64, "the most to add", flag_values=values, lower_bound=1)
    flags.DEFINE_float(
        "temperature", 0.8, "divides the logits; 0 takes the likeliest", flag_values=values
    )
    flags.DEFINE_integer("top_k", 0, "how many of the likeliest stay; 0 all", flag_values=values)
    flags.DEFINE_float(
        "top_p", 1.0, "the likeliest that together reach this stay", flag_values=values
    )
    flags.DEFINE_float(
        "min_p", 0.0, "those with this share of the likeliest's stay", flag_values=values
    )
    flags.DEFINE_float(
        "repetition_penalty", 1.0, "over 1 makes tokens seen less likely", flag_values=values
    )
    flags.DEFINE_multi_string(
        "stop", [], "text to end before; may be given several times", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "of the first sample", flag_values=values, lower_bound=0)
    flags.DEFINE_integer("samples", 1, "how many texts", flag_values=values, lower_bound=1)
    flags.DEFINE_boolean("stream", False, "show the text while it is made", flag_values=values)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "of the arithmetic; the model's if not given",
        flag_values=values,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What a name, folder or file holds.

    Attributes:
      config: of the model.
      params: its parameters.
      encode: a prompt as token ids, beginning as the model's texts do.
      decode: ids to text, specials left out.
      ends: tokens after which nothing follows.
      barred: tokens no text holds.
    """

    config: ModelConfig
    params: dict
    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]
    ends: tuple[int, ...]
    barred: tuple[int, ...] = ()


def main(values: flags.FlagValues) -> None:
    """Reads the model, writes the text."""
    name, prompt, samples = (values[key].value for key in ("model", "prompt", "samples"))
    for flag, value in (("model", name), ("prompt", prompt)):
        if not value:
            raise UserError(f"--{flag} is needed and must not be empty")
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError("--prompt is not UTF-8")
    if "" in values["stop"].value:
        raise UserError("--stop takes at least one character")
    if values["stream"].value and samples > 1:
        raise UserError(f"--stream shows one text; leave it out or --samples={samples}")
    fields = (field.name for field in dataclasses.fields(Decoding))
    decoding = Decoding(**{field: values[field].value for field in fields})
    model = load(name)
    if values["dtype"].value:
        config = dataclasses.replace(model.config, dtype=values["dtype"].value)
        model = dataclasses.replace(model, config=config)
    seed, ids = values["seed"].value, model.encode(prompt)
    generation = Generation(
        model.params,
        [ids] * samples,
        model.config,
        decoding=decoding,
        max_tokens=values["max_tokens"].value,
        seeds=range(seed, seed + samples),
        ends=model.ends,
        barred=model.barred,
    )
    began = time.perf_counter()
    decode, stop = after(ids, model.decode), values["stop"].value
    if values["stream"].value:
        print(prompt, end="", flush=True)
        for (piece,) in write(generation, decode, stop=stop, every=4):
            print(piece, end="", flush=True)
        print()
    else:
        # Without stop strings nothing needs a look before the end: one program makes it all.
        every = 16 if stop else values["max_tokens"].value
        pieces = list(write(generation, decode, stop=stop, every=every))
        for row, parts in enumerate(zip(*pieces, strict=True)):
            if samples > 1:
                print(f"--- seed {seed + row}")
            print(prompt + "".join(parts))
    print(f"{time.perf_counter() - began:.1f} s, compiling included", file=sys.stderr)


def load(name: str) -> Model:
    """The model of a folder of experiments.pretrain, or a published one."""
    path = pathlib.Path(name).expanduser()
    return _own(path) if (path / "checkpoints").is_dir() else _published(name)


def _published(name: str) -> Model:
    found = published.find(name)
    if not found.causal:
        raise UserError(f"--model={name} fills in what is hidden; it does not go on with a text")
    return Model(
        found.config,
        found.params,
        lambda text: found.tokenizer.encode_with_specials([text])[0],
        found.tokenizer.decode,
        found.ends,
    )


def _own(folder: pathlib.Path) -> Model:
    found = restore(folder)
    tokenizer = found.reads.tokenizer
    if tokenizer is None:
        raise UserError(f"--model={folder} was trained on images; take one of text")
    if not found.objective.next:
        raise UserError(
            f"--model={folder} was never asked for the next token in training; take one that was"
        )
    return Model(
        found.reads.model,
        found.params,
        lambda text: np.concatenate([[tokenizer.bos], *tokenizer.encode([text])]),
        tokenizer.decode,
        (tokenizer.eos,),
        tuple(token for token in range(SPECIALS) if token != tokenizer.eos),
    )


if __name__ == "__main__":
    command.run("generate", __doc__, define, main)
