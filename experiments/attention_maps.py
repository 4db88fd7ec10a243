"""Writes a page that shows where each token of one input attends, by layer and head.

    fm attention_maps --model=RUN --text="A film to see twice."

RUN is the folder of one pretrained model: the --out of fm pretrain, or one that
fm compare left, such as runs/compare/pretrained/film_reviews-in_domain/seed-0. The input
is a text, an image, or a test item of a data set. Writes OUT/attention_maps.html, one file that
needs nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags

from experiments import cli
from fm.data.datasets import example_split
from fm.data.load import load
from fm.data.media import image
from fm.data.tokenizer import NUM_SPECIALS
from fm.errors import UserError, error_context
from fm.files import expand_path, read_bytes
from fm.parallel import sharding
from fm.report import attention_maps as page
from fm.report import formats
from fm.report.attention_maps import (
    AttentionMaps,
    DisplayToken,
    ImageInput,
    TextInput,
    special_token,
    to_display_tokens,
)
from fm.study import attention_maps, run_dir
from fm.study.model_folders import RUN, find_model
from fm.study.pretraining import PretrainedModel, load_pretrained
from fm.training.multitask import MultitaskObjective

_SPECIAL = ("⟨padding⟩", "⟨start⟩", "⟨end⟩", "⟨mask⟩")


def define(values: flags.FlagValues) -> None:
    """Defines the flags of model, input and mode."""
    flags.DEFINE_string(
        "model", None, "folder of one pretrained model, with checkpoints", flag_values=values
    )
    flags.DEFINE_string("text", None, "text to show", flag_values=values)
    flags.DEFINE_string("image", None, "image file to show", flag_values=values)
    flags.DEFINE_string("dataset", None, "data set to take the input from", flag_values=values)
    flags.DEFINE_integer(
        "item", 0, "index of the test item of --dataset", flag_values=values, lower_bound=0
    )
    flags.DEFINE_enum(
        "mode",
        None,
        attention_maps.MODES,
        "causal or bidirectional; default: the one most used in pretraining",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_length",
        128,
        "maximum number of text tokens",
        flag_values=values,
        lower_bound=2,
        upper_bound=512,
    )
    cli.define_data(values)
    cli.define_mesh(values)
    cli.define_out(values, "runs/attention_maps")


def main(values: flags.FlagValues) -> None:
    """Computes the attention maps and writes the page."""
    run, out_dir = values["model"].value, cli.out_dir(values)
    cli.check_divisible(1, "one input is shown")
    given = [name for name in ("text", "image", "dataset") if values[name].value is not None]
    if len(given) != 1:
        had = " and ".join(f"--{name}" for name in given) or "none"
        raise UserError(f"takes one of --text, --image, --dataset, not {had}")
    if not run:
        raise UserError("--model: takes the folder of a pretrained model")
    if values["item"].present and given != ["dataset"]:
        raise UserError("--item: goes with --dataset")
    location = find_model(run, (RUN,))
    with error_context(f"--model={location.name}"):
        found = load_pretrained(location.path)
    if isinstance(found.objective, MultitaskObjective):
        raise UserError(f"--model={run} was trained on several modalities; takes a model of one")
    mode = values["mode"].value or attention_maps.default_mode(found.objective)
    flag = f"--{given[0]}"
    source, description = _input(values, given[0], found)
    try:
        with sharding.sharded_params(found.params) as params:
            sharded = dataclasses.replace(found, params=params)
            maps = _attention_maps(
                sharded, source, mode, values["max_length"].value, _facts(run, found, description)
            )
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error
    run_dir.acquire_lock(out_dir)
    path = page.write(maps, out_dir)
    N, H, L = maps.weights_NHLS.shape[:3]
    print(f"{L} tokens, {N} layers of {H} heads, {mode}: {path}")


def _input(
    values: flags.FlagValues, kind: str, found: PretrainedModel
) -> tuple[str | np.ndarray, str]:
    """Returns the input, a text or a uint8 image [height, width, channels], and its description."""
    given = values[kind].value
    if kind == "text":
        return given, "text of --text"
    if kind == "image":
        path = expand_path(given)
        _, channels = _patches(found, kind)
        try:
            opened = image.open_image(read_bytes(path))
        except OSError as error:
            reason = error.strerror or "not an image that can be read"
            raise UserError(f"--image={given}: {reason}") from error
        return image.image_to_array(opened, (opened.height, opened.width, channels)), path.name
    where = cli.data_options(values)
    data, item = load(given, **where), values["item"].value
    split, kind = example_split(data)
    if item >= len(split):
        raise UserError(
            f"--item={item}: {given} has {len(split)} {kind} items; takes 0 to {len(split) - 1}"
        )
    # TFDS marks a withheld label with -1.
    known = split.labels is not None and split.labels[item] >= 0
    label = data.classes[split.labels[item]] if split.labels is not None and known else ""
    description = f"{kind} item {item} of {data.name}{f', labeled {label}' if label else ''}"
    if (data.modality == "image") == (found.processor.tokenizer is not None):
        reads = "images" if found.processor.tokenizer is None else "text"
        raise UserError(f"--dataset={given}: is {data.modality}, but this model reads {reads}")
    return split.inputs([item])[0], description


def _patches(found: PretrainedModel, kind: str) -> tuple[int, int]:
    try:
        return attention_maps.patch_shape(found.processor.model)
    except UserError as error:
        raise UserError(f"--{kind}: {error}") from error


def _attention_maps(
    found: PretrainedModel,
    source: str | np.ndarray,
    mode: str,
    most: int,
    facts: tuple[tuple[str, str], ...],
) -> AttentionMaps:
    if isinstance(source, str):
        computed, ids, total = attention_maps.text_attention_maps(found, source, mode, most)
        shown = TextInput(_tokens(found, ids), total)
    else:
        computed = attention_maps.image_attention_maps(found, source, mode)
        side, _ = attention_maps.patch_shape(found.processor.model)
        shown = ImageInput(source, side, has_start_token=mode == "causal")
    share = attention_maps.mode_share(found.objective, mode)
    read = f"{mode}; {share:.0%} of pretraining attended this way"
    agreement = (
        f"{computed.kernel}; its output and the weights shown agree within "
        f"{formats.power_of_ten(computed.error)}"
    )
    return AttentionMaps(
        weights_NHLS=computed.weights_NHLS,
        visible_LS=computed.visible_LS,
        causal=mode == "causal",
        input=shown,
        facts=(*facts, ("Mode", read), ("Attention kernel", agreement)),
    )


def _tokens(found: PretrainedModel, ids: np.ndarray) -> list[DisplayToken]:
    """Returns the tokens as the page shows them."""
    assert found.processor.tokenizer is not None
    spelled = iter(
        to_display_tokens(found.processor.tokenizer.token_bytes(ids[ids >= NUM_SPECIALS]))
    )
    return [
        next(spelled) if token >= NUM_SPECIALS else special_token(_SPECIAL[token]) for token in ids
    ]


def _facts(run: str, found: PretrainedModel, description: str) -> tuple[tuple[str, str], ...]:
    model, objective = found.processor.model, found.objective
    shares = {
        "next token": objective.causal_lm,
        f"masked tokens ({objective.mask_ratio:.0%} masked)": objective.masked_lm,
        f"bag of words ({objective.mask_ratio:.0%} masked and left out)": objective.bag_of_words,
    }
    objectives = ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share)
    layers = f"{model.num_layers} layer{'s' if model.num_layers > 1 else ''}"
    heads = f"{model.num_heads} head{'s' if model.num_heads > 1 else ''}"
    return (
        ("Input", description),
        ("Model", f"{run}: {layers} of {heads}, {model.d_model} wide"),
        ("Pretrained on", objectives),
    )


if __name__ == "__main__":
    cli.run("attention_maps", __doc__, define, main, resumes=False)
