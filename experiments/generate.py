"""Continues a prompt with a model of one's own or a published one; makes pictures, sounds, clips.

    python -m experiments.generate --model=runs/pretrain --prompt="The film" --max_tokens=40
    python -m experiments.generate --model=smollm2-135m --prompt="The capital of France is" \\
        --max_tokens=8 --temperature=0
    python -m experiments.generate --modality=image --model=runs/pretrain --given=digits:3

--model is the --out of experiments.pretrain, a Hugging Face folder, a GGUF file or a known name.
Prints the prompt and what follows it. The same seed gives the same text. Other formats take a model
of experiments.pretrain that has them, from nothing, from the beginning of an example (--given) or,
with --captioned data, after the name of its class (--prompt), and write files to --out.
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
from fm.data import load as sources
from fm.data.layouts import Layout
from fm.data.media import CODECS, ArraySpec
from fm.data.tokenizer import NUM_SPECIALS
from fm.errors import UserError
from fm.files import atomic_write, expand_path
from fm.hf import model_zoo
from fm.model.config import ModelConfig
from fm.model.generate import Generation
from fm.model.sampling import SamplingConfig
from fm.model.text_stream import continuation_decoder, stream_text
from fm.parallel import sharding
from fm.study import run_dir, sampling
from fm.study.pretraining import load_pretrained

_OTHERS = ("image", "audio", "video")


def define(values: flags.FlagValues) -> None:
    """The model, the prompt, and how to choose."""
    flags.DEFINE_enum("modality", "text", ["text", *_OTHERS], "what is made", flag_values=values)
    flags.DEFINE_string(
        "given", None, "file to begin as, or a test item as in digits:3; not of text",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "keep", 0.5, "share of what is given that stays", flag_values=values,
        lower_bound=0.0, upper_bound=1.0,
    )  # fmt: skip
    command.define_mesh(values)
    command.define_out(values, "runs/generate")
    flags.DEFINE_string("model", None, "folder, file or name", flag_values=values)
    flags.DEFINE_string("prompt", None, "text to go on from", flag_values=values)
    flags.DEFINE_integer("max_tokens", 64, "the most to add", flag_values=values, lower_bound=1)
    flags.DEFINE_float(
        "temperature",
        0.8,
        "divides the logits, 0 takes the likeliest; of other formats, multiplies the spread",
        flag_values=values,
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
    command.divides(values["samples"].value, f"--samples={values['samples'].value}")
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    given = values["prompt"].value or ""
    if any("\ud800" <= character <= "\udfff" for character in given):
        raise UserError("--prompt is not UTF-8")
    if values["modality"].value != "text":
        _make(values)
        return
    for flag in ("given", "keep", "out"):
        if values[flag].present:
            raise UserError(f"--{flag} goes with --modality={', '.join(_OTHERS)}")
    name, prompt, samples = (values[key].value for key in ("model", "prompt", "samples"))
    for flag, value in (("model", name), ("prompt", prompt)):
        if not value:
            raise UserError(f"--{flag} is needed and must not be empty")
    if "" in values["stop"].value:
        raise UserError("--stop takes at least one character")
    if values["stream"].value and samples > 1:
        raise UserError(f"--stream shows one text; leave it out or --samples={samples}")
    fields = (field.name for field in dataclasses.fields(SamplingConfig))
    decoding = SamplingConfig(**{field: values[field].value for field in fields})
    model = load(name)
    if values["dtype"].value:
        config = dataclasses.replace(model.config, dtype=values["dtype"].value)
        model = dataclasses.replace(model, config=config)
    with sharding.sharded_params(model.params) as params:
        _write(values, dataclasses.replace(model, params=params), decoding)


def _write(values: flags.FlagValues, model: Model, decoding: SamplingConfig) -> None:
    """Writes texts."""
    prompt, samples = values["prompt"].value, values["samples"].value
    seed, ids = values["seed"].value, model.encode(prompt)
    generation = Generation(
        model.params,
        [ids] * samples,
        model.config,
        sampling_config=decoding,
        max_new_tokens=values["max_tokens"].value,
        seeds=range(seed, seed + samples),
        stop_token_ids=model.ends,
        suppress_tokens=model.barred,
    )
    began = time.perf_counter()
    decode, stop = continuation_decoder(ids, model.decode), values["stop"].value
    if values["stream"].value:
        print(prompt, end="", flush=True)
        for (piece,) in stream_text(generation, decode, stop_strings=stop, tokens_per_chunk=4):
            print(piece, end="", flush=True)
        print()
    else:
        # Without stop strings nothing needs a look before the end: one program makes it all.
        every = 16 if stop else values["max_tokens"].value
        pieces = list(stream_text(generation, decode, stop_strings=stop, tokens_per_chunk=every))
        for row, parts in enumerate(zip(*pieces, strict=True)):
            if samples > 1:
                print(f"--- seed {seed + row}")
            print(prompt + "".join(parts))
    print(f"{time.perf_counter() - began:.1f} s, compiling included", file=sys.stderr)


def _make(values: flags.FlagValues) -> None:
    """Writes pictures, sounds or clips."""
    modality, name = values["modality"].value, values["model"].value
    told = [
        field.name for field in dataclasses.fields(SamplingConfig) if field.name != "temperature"
    ]
    for flag in (*told, "max_tokens", "stop", "stream", "dtype"):
        if values[flag].present:
            raise UserError(f"--{flag} goes with --modality=text")
    if values["prompt"].value == "":
        raise UserError("--prompt must not be empty")
    if values["temperature"].value < 0:
        raise UserError(f"--temperature={values['temperature'].value:g} must be at least 0")
    if not name:
        raise UserError("--model is needed and must not be empty")
    try:
        found = load_pretrained(expand_path(name))
        layout = sampling.check_can_sample(
            found, modality, captioned=values["prompt"].value is not None
        )
    except UserError as error:
        raise UserError(f"--model={name}: {error}") from error
    given = values["given"].value
    with sharding.sharded_params(found.params) as params:
        made = sampling.sample_examples(
            dataclasses.replace(found, params=params),
            modality,
            count=values["samples"].value,
            seed=values["seed"].value,
            temperature=values["temperature"].value if values["temperature"].present else 1.0,
            init_example=None if given is None else _given(given, layout),
            keep_fraction=values["keep"].value,
            caption=values["prompt"].value,
        )
    out = command.out(values)
    run_dir.acquire_lock(out)
    for n, example in enumerate(made):
        path = out / f"{modality}-{values['seed'].value}-{n}.{sampling.FILE_EXTENSIONS[modality]}"
        atomic_write(path, sampling.encode_example(example, layout))
        print(path)


def _given(given: str, layout: Layout) -> np.ndarray:
    """An example of the layout's form: a file brought to it, or a test item of a data set."""
    path = expand_path(given)
    if path.exists():
        medium = CODECS[layout.modality]
        try:
            opened = medium.open(path)
        except OSError as error:
            raise UserError(f"--given={given}: {error.strerror or error}") from error
        return medium.to_array(opened, ArraySpec(layout.shape, layout.rate))
    name, _, item = given.rpartition(":")
    if not name or not item.isascii() or not item.isdigit():
        raise UserError(f"--given={given}: takes a file, or a test item such as digits:3")
    data = sources.load(name)
    if data.modality != layout.modality or tuple(data.info["shape"]) != layout.shape:
        raise UserError(f"--given={given}: is not {layout.modality} of the model's shape")
    if int(item) >= len(data.test):
        raise UserError(f"--given={given}: {name} has {len(data.test)} test items, from 0")
    return np.asarray(data.test.inputs([int(item)]))[0]


def load(name: str) -> Model:
    """The model of a folder of experiments.pretrain, or a published one."""
    path = expand_path(name)
    return _own(path) if (path / "checkpoints").is_dir() else _published(name)


def _published(name: str) -> Model:
    found = model_zoo.load_published(name)
    if not found.causal:
        raise UserError(f"--model={name} fills in what is hidden; it does not go on with a text")
    return Model(
        found.config,
        found.params,
        lambda text: found.tokenizer.encode_with_specials([text])[0],
        found.tokenizer.decode,
        found.stop_token_ids,
    )


def _own(run: pathlib.Path) -> Model:
    found = load_pretrained(run)
    tokenizer = found.processor.tokenizer
    if tokenizer is None:
        formats = " and ".join(found.processor.layouts)
        raise UserError(f"--model={run} was trained on {formats}; take one of text")
    if not found.objective_of("text").causal_lm:
        raise UserError(
            f"--model={run} was never asked for the next token in training; take one that was"
        )
    return Model(
        found.processor.model,
        found.params,
        lambda text: np.concatenate([[tokenizer.bos], *tokenizer.encode([text])]),
        tokenizer.decode,
        (tokenizer.eos,),
        tuple(token for token in range(NUM_SPECIALS) if token != tokenizer.eos),
    )


if __name__ == "__main__":
    command.run("generate", __doc__, define, main)
