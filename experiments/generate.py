"""Continues a prompt with a model, or generates images, sounds or clips.

    fm generate --model=runs/pretrain --prompt="The film" --max_new_tokens=40
    fm generate --model=smollm2-135m --prompt="The capital of France is" \\
        --max_new_tokens=8 --temperature=0
    fm generate --modality=image --model=runs/pretrain --init_example=digits:3

--model is the --out of fm pretrain, a Hugging Face folder, a GGUF file or a known name.
Text is printed after its prompt; the same seed gives the same text. With --chat the prompt is put
into the model's chat template, and the reply alone is printed. The other modalities take a
model of fm pretrain that was trained on them. They start from nothing, from the beginning
of an example (--init_example) or, for models trained with --captioned data, from a class name
(--prompt), and write files to --out; images also as one enlarged sheet.
"""

from __future__ import annotations

import base64
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from experiments import cli
from fm.data.datasets import example_split
from fm.data.load import load as load_dataset
from fm.data.media import MediaSpec, PatchLayout, get_modality
from fm.data.tokenizer import NUM_SPECIALS
from fm.errors import UserError
from fm.files import atomic_write, expand_path
from fm.hf.model_zoo import load_published
from fm.hf.tokenizer import HFTokenizer
from fm.model.config import ModelConfig
from fm.model.generate import IncrementalGenerator
from fm.model.sampling import SamplingConfig
from fm.model.text_stream import continuation_decoder, stream_text
from fm.parallel import sharding
from fm.study import run_dir, sampling
from fm.study.model_folders import RUN, find_model
from fm.study.pretraining import load_pretrained

_CONTINUOUS = ("image", "audio", "video")


def define(values: flags.FlagValues) -> None:
    """Defines the flags of model, prompt and sampling."""
    flags.DEFINE_enum(
        "modality", "text", ["text", *_CONTINUOUS], "what is generated", flag_values=values
    )
    flags.DEFINE_string("model", None, "folder, file or known name", flag_values=values)
    flags.DEFINE_string("prompt", None, "text to continue", flag_values=values)
    flags.DEFINE_boolean(
        "chat", False, "the prompt is a message in the model's chat template; prints the reply",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "parse_special_tokens", False,
        "special tokens that the prompt spells, such as <|im_start|>, are the model's own tokens, "
        "not text",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "init_example",
        None,
        "example to continue: a file, or a test item such as digits:3 (not for text)",
        flag_values=values,
    )
    flags.DEFINE_float(
        "keep_fraction", 0.5, "fraction of --init_example to keep as a prefix",
        flag_values=values, lower_bound=0.0, upper_bound=1.0,
    )  # fmt: skip
    flags.DEFINE_integer(
        "max_new_tokens", 64, "maximum number of generated tokens", flag_values=values,
        lower_bound=1,
    )  # fmt: skip
    flags.DEFINE_float(
        "temperature",
        0.8,
        "divides the logits, 0 is greedy; for other modalities (default 1) it multiplies the "
        "standard deviation",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k", 0, "sample among the k likeliest tokens; 0: all", flag_values=values
    )
    flags.DEFINE_float(
        "top_p", 1.0, "sample among the likeliest tokens of this total probability",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "min_p", 0.0, "drop tokens below this fraction of the likeliest token's probability",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "repetition_penalty", 1.0, "above 1 makes repeated tokens less likely", flag_values=values
    )
    flags.DEFINE_multi_string(
        "stop", [], "text that ends the output; repeatable", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "seed of the first sample", flag_values=values, lower_bound=0)
    flags.DEFINE_integer("samples", 1, "number of samples", flag_values=values, lower_bound=1)
    flags.DEFINE_boolean("stream", False, "print the text as it is generated", flag_values=values)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "dtype of activations; default: the model's",
        flag_values=values,
    )  # fmt: skip
    cli.define_mesh(values)
    cli.define_out(values, "runs/generate")


@dataclasses.dataclass(frozen=True, eq=False)
class TextModel:
    """A model that generates text.

    Attributes:
      config: architecture.
      params: parameters.
      encode: turns a prompt into token ids, the start token included.
      decode: turns token ids into text, special tokens left out.
      stop_token_ids: tokens that end the text.
      suppress_tokens: tokens that are never generated.
      tokenizer: the tokenizer of a published model, None for one of experiments.pretrain.
    """

    config: ModelConfig
    params: dict
    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]
    stop_token_ids: tuple[int, ...]
    suppress_tokens: tuple[int, ...] = ()
    tokenizer: HFTokenizer | None = None


def main(values: flags.FlagValues) -> None:
    """Loads the model, generates, and prints the text or writes the files."""
    cli.check_divisible(values["samples"].value, f"--samples={values['samples'].value}")
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    if any("\ud800" <= char <= "\udfff" for char in values["prompt"].value or ""):
        raise UserError("--prompt is not UTF-8")
    if values["modality"].value == "text":
        _generate_text(values)
    else:
        _generate_examples(values)


def _generate_text(values: flags.FlagValues) -> None:
    for flag in ("init_example", "keep_fraction", "out"):
        if values[flag].present:
            raise UserError(f"--{flag} is for --modality={', '.join(_CONTINUOUS)}")
    name, prompt, samples = (values[key].value for key in ("model", "prompt", "samples"))
    for flag, value in (("model", name), ("prompt", prompt)):
        if not value:
            raise UserError(f"--{flag} is needed and must not be empty")
    if "" in values["stop"].value:
        raise UserError("--stop takes at least one character")
    if values["stream"].value and samples > 1:
        raise UserError(f"--stream shows one text; leave it out or --samples={samples}")
    fields = (field.name for field in dataclasses.fields(SamplingConfig))
    sampling_config = SamplingConfig(**{field: values[field].value for field in fields})
    model = load_text_model(name)
    if values["dtype"].value:
        config = dataclasses.replace(model.config, dtype=values["dtype"].value)
        model = dataclasses.replace(model, config=config)
    with sharding.sharded_params(model.params) as params:
        _print_text(values, dataclasses.replace(model, params=params), sampling_config)


def _print_text(
    values: flags.FlagValues, model: TextModel, sampling_config: SamplingConfig
) -> None:
    samples, seed = values["samples"].value, values["seed"].value
    ids = _encode_prompt(values, model)
    # A chat's prompt is not what the reply goes on from.
    prompt = "" if values["chat"].value else values["prompt"].value
    generation = IncrementalGenerator(
        model.params,
        [ids] * samples,
        model.config,
        sampling_config=sampling_config,
        max_new_tokens=values["max_new_tokens"].value,
        seeds=range(seed, seed + samples),
        stop_token_ids=model.stop_token_ids,
        suppress_tokens=model.suppress_tokens,
        # Special ones have no text, but an ordinary token may end a text too.
        return_stop_tokens=True,
    )
    began = time.perf_counter()
    decode, stop = continuation_decoder(ids, model.decode), values["stop"].value
    if values["stream"].value:
        print(prompt, end="", flush=True)
        for (chunk,) in stream_text(generation, decode, stop_strings=stop, tokens_per_chunk=4):
            print(chunk, end="", flush=True)
        print()
    else:
        # Without stop strings nothing has to be read before the end: one program generates all.
        every = 16 if stop else values["max_new_tokens"].value
        chunks = list(stream_text(generation, decode, stop_strings=stop, tokens_per_chunk=every))
        for row, parts in enumerate(zip(*chunks, strict=True)):
            if samples > 1:
                print(f"--- seed {seed + row}")
            print(prompt + "".join(parts))
    print(f"{time.perf_counter() - began:.1f} s, including compilation", file=sys.stderr)


def _encode_prompt(values: flags.FlagValues, model: TextModel) -> np.ndarray:
    """Returns the prompt's token ids; tells on stderr of special tokens that it spells."""
    name, prompt, tokenizer = values["model"].value, values["prompt"].value, model.tokenizer
    chat, parse = values["chat"].value, values["parse_special_tokens"].value
    if tokenizer is None:
        if chat or parse:
            flag = "--chat" if chat else "--parse_special_tokens"
            raise UserError(f"{flag} takes a published model; --model={name} is one of pretrain")
        return model.encode(prompt)
    if chat:
        try:
            return tokenizer.encode_chat(prompt)
        except UserError as error:
            raise UserError(f"--chat: --model={name}: {error}") from error
    if parse:
        return tokenizer.encode_with_specials([prompt], parse_specials=True)[0]
    if spelled := tokenizer.spelled_specials(prompt):
        print(
            f"--prompt: {', '.join(spelled)} are read as text; --parse_special_tokens reads them "
            "as special tokens",
            file=sys.stderr,
        )
    return model.encode(prompt)


def _generate_examples(values: flags.FlagValues) -> None:
    """Writes images, sounds or clips to --out."""
    modality, name = values["modality"].value, values["model"].value
    text_only = [
        field.name for field in dataclasses.fields(SamplingConfig) if field.name != "temperature"
    ]
    for flag in (
        *(*text_only, "max_new_tokens", "stop", "stream", "dtype"),
        *("chat", "parse_special_tokens"),
    ):
        if values[flag].present:
            raise UserError(f"--{flag} is for --modality=text")
    if values["prompt"].value == "":
        raise UserError("--prompt must not be empty")
    if values["temperature"].value < 0:
        raise UserError(f"--temperature={values['temperature'].value:g} must be at least 0")
    if not name:
        raise UserError("--model is needed and must not be empty")
    location = find_model(name, (RUN,))
    try:
        found = load_pretrained(location.path)
        layout = sampling.check_can_sample(
            found, modality, captioned=values["prompt"].value is not None
        )
    except UserError as error:
        raise UserError(f"--model={name}: {error}") from error
    source = values["init_example"].value
    with sharding.sharded_params(found.params) as params:
        examples = sampling.sample_examples(
            dataclasses.replace(found, params=params),
            modality,
            count=values["samples"].value,
            seed=values["seed"].value,
            temperature=values["temperature"].value if values["temperature"].present else 1.0,
            init_example=None if source is None else _init_example(source, layout),
            keep_fraction=values["keep_fraction"].value,
            caption=values["prompt"].value,
        )
    out_dir = cli.out_dir(values)
    run_dir.acquire_lock(out_dir)
    stem, pictures = f"{modality}-{values['seed'].value}", []
    for n, example in enumerate(examples):
        content, extension = sampling.encode_example(example, layout)
        path = out_dir / f"{stem}-{n}.{extension}"
        atomic_write(path, content)
        print(path)
        if extension == "png":
            pictures.append(content)
    if pictures:
        _write_sheet(pictures, out_dir / f"{stem}-sheet.png")


def _write_sheet(pictures: list[bytes], path: pathlib.Path) -> None:
    """Writes all pictures, numbered and enlarged, as one."""
    # Drawing is loaded where it is needed: a text has no use for it.
    from fm.report.contact_sheet import contact_sheet
    from fm.report.records import Sample
    from fm.report.style import to_png

    encoded = [base64.b64encode(each).decode() for each in pictures]
    sheet = contact_sheet([Sample(caption=str(n), png=png) for n, png in enumerate(encoded)])
    if sheet is not None:
        atomic_write(path, to_png(sheet, 256))
        print(path)


def _init_example(source: str, layout: PatchLayout) -> np.ndarray:
    """Returns an example in the layout's shape: a file, converted, or a test item of a data set."""
    path = expand_path(source)
    if path.exists():
        codec = get_modality(layout.modality).codec
        assert codec is not None
        try:
            opened = codec.open(path)
        except OSError as error:
            raise UserError(f"--init_example={source}: {error.strerror or error}") from error
        return codec.to_array(opened, MediaSpec(layout.shape, layout.rate))
    name, _, item = source.rpartition(":")
    if not name or not item.isascii() or not item.isdigit():
        raise UserError(f"--init_example={source}: takes a file, or a test item such as digits:3")
    data = load_dataset(name)
    if data.modality != layout.modality or tuple(data.info["shape"]) != layout.shape:
        raise UserError(
            f"--init_example={source}: is not {layout.modality} of the shape that the model was "
            "trained on"
        )
    split, kind = example_split(data)
    if int(item) >= len(split):
        raise UserError(f"--init_example={source}: {name} has {len(split)} {kind} items, from 0")
    return np.asarray(split.inputs([int(item)]))[0]


def load_text_model(name: str) -> TextModel:
    """Returns the model in a folder of fm pretrain, or a published one."""
    found = find_model(name)
    return _own_model(found.path) if found.kind == RUN else _published_model(found.name)


def _published_model(name: str) -> TextModel:
    found = load_published(name)
    if not found.causal:
        raise UserError(f"--model={name} is an encoder; it cannot generate text")
    return TextModel(
        found.config,
        found.params,
        lambda text: found.tokenizer.encode_with_specials([text])[0],
        found.tokenizer.decode,
        found.stop_token_ids,
        found.suppress_tokens,
        tokenizer=found.tokenizer,
    )


def _own_model(path: pathlib.Path) -> TextModel:
    found = load_pretrained(path)
    tokenizer = found.processor.tokenizer
    if tokenizer is None:
        modalities = " and ".join(found.processor.layouts)
        raise UserError(f"--model={path} was trained on {modalities}; takes a model of text")
    if not found.objective_of("text").causal_lm:
        raise UserError(
            f"--model={path} was not trained to predict the next token; takes one with a "
            "causal_lm objective"
        )
    return TextModel(
        found.processor.model,
        found.params,
        lambda text: np.concatenate([[tokenizer.bos], *tokenizer.encode([text])]),
        tokenizer.decode,
        (tokenizer.eos,),
        tuple(token for token in range(NUM_SPECIALS) if token != tokenizer.eos),
    )


if __name__ == "__main__":
    cli.run("generate", __doc__, define, main, resumes=False)
