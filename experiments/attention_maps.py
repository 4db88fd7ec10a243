"""Draws where a token looks: the attention of one input by layer and head, as a page.

    python -m experiments.attention_maps --pretrained=RUN --text="A film to see twice."

RUN is the folder of one pretrained model: the --out of experiments.pretrain, or one that
experiments.compare left, such as runs/compare/pretrained/film_reviews-self/seed-0. Takes a text, a
picture, or a test item of a data set, and writes OUT/attention_maps.html, one file that needs
nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags

from experiments import command
from fm.data.load import load
from fm.data.media import image
from fm.data.tokenizer import NUM_SPECIALS
from fm.errors import UserError
from fm.files import expand_path, read_bytes
from fm.report import attention_maps as page
from fm.report.attention_maps import (
    AttentionMaps,
    DisplayToken,
    ImageInput,
    TextInput,
    display_tokens,
    special_token,
)
from fm.study import attention_maps, run_dir
from fm.study.pretraining import PretrainedModel, load_pretrained
from fm.parallel import sharding
from fm.training.multitask import MultitaskObjective

_SPECIAL = ("⟨padding⟩", "⟨start⟩", "⟨end⟩", "⟨mask⟩")


def define(values: flags.FlagValues) -> None:
    """The model, the input, the mode."""
    flags.DEFINE_string(
        "pretrained", None, "folder of one pretrained model, with checkpoints", flag_values=values
    )
    flags.DEFINE_string("text", None, "text to look at", flag_values=values)
    flags.DEFINE_string("image", None, "file of a picture to look at", flag_values=values)
    flags.DEFINE_string("dataset", None, "name, file or folder to take it from", flag_values=values)
    flags.DEFINE_integer(
        "item", 0, "which test item of --dataset", flag_values=values, lower_bound=0
    )
    flags.DEFINE_enum(
        "mode",
        None,
        attention_maps.MODES,
        "causal or bidirectional; the one most used in pretraining if not given",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tokens",
        128,
        "a text is cut to this many",
        flag_values=values,
        lower_bound=2,
        upper_bound=512,
    )
    command.define_data(values)
    command.define_mesh(values)
    command.define_out(values, "runs/attention_maps")


def main(values: flags.FlagValues) -> None:
    """Loads the model, looks, writes the page."""
    run, out = values["pretrained"].value, command.out(values)
    command.divides(1, "one input is looked at")
    given = [name for name in ("text", "image", "dataset") if values[name].value is not None]
    if len(given) != 1:
        had = " and ".join(f"--{name}" for name in given) or "none"
        raise UserError(f"takes one of --text, --image, --dataset, not {had}")
    if not run:
        raise UserError("--pretrained: takes the folder of a pretrained model")
    if values["item"].present and given != ["dataset"]:
        raise UserError("--item: goes with --dataset")
    try:
        found = load_pretrained(expand_path(run))
    except UserError as error:
        raise UserError(
            f"--pretrained={run}: {error}; takes the --out of experiments.pretrain or a folder "
            "like OUT/pretrained/TASK-self/seed-0 of experiments.compare"
        ) from error
    if isinstance(found.objective, MultitaskObjective):
        raise UserError(f"--pretrained={run} reads several formats; takes a model of one")
    mode = values["mode"].value or attention_maps.default_mode(found.objective)
    flag = f"--{given[0]}"
    source, named = _source(values, given[0], found)
    try:
        with sharding.sharded_params(found.params) as params:
            spread = dataclasses.replace(found, params=params)
            look = _look(spread, source, mode, values["tokens"].value, _facts(run, found, named))
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error
    run_dir.acquire_lock(out)
    path = page.write(look, out)
    N, H, L = look.weights_NHLS.shape[:3]
    print(f"{L} pieces, {N} layers of {H} heads, {mode}: {path}")


def _source(
    values: flags.FlagValues, kind: str, found: PretrainedModel
) -> tuple[str | np.ndarray, str]:
    """The input, a text or uint8 [height, width, channels], and what to call it."""
    given = values[kind].value
    if kind == "text":
        return given, "a text given"
    if kind == "image":
        path = expand_path(given)
        _, channels = _patches(found, kind)
        try:
            opened = image.open_image(read_bytes(path))
        except OSError as error:
            reason = error.strerror or "not a picture that can be read"
            raise UserError(f"--image={given}: {reason}") from error
        return image.image_to_array(opened, (opened.height, opened.width, channels)), path.name
    where = command.data_options(values)
    data, item = load(given, **where), values["item"].value
    if item >= len(data.test):
        raise UserError(
            f"--item={item}: {given} has {len(data.test)} test items; takes 0 to "
            f"{len(data.test) - 1}"
        )
    # TFDS marks a withheld label by -1.
    known = data.test.labels is not None and data.test.labels[item] >= 0
    label = data.classes[data.test.labels[item]] if known else ""
    named = f"test item {item} of {data.name}{f', labelled {label}' if label else ''}"
    if (data.modality == "image") == (found.processor.tokenizer is not None):
        reads = "pictures" if found.processor.tokenizer is None else "text"
        raise UserError(f"--dataset={given}: is {data.modality}, but this model reads {reads}")
    return data.test.inputs([item])[0], named


def _patches(found: PretrainedModel, kind: str) -> tuple[int, int]:
    try:
        return attention_maps.patch_shape(found.processor.model)
    except UserError as error:
        raise UserError(f"--{kind}: {error}") from error


def _look(
    found: PretrainedModel,
    source: str | np.ndarray,
    mode: str,
    most: int,
    facts: tuple[tuple[str, str], ...],
) -> AttentionMaps:
    if isinstance(source, str):
        looked, ids, total = attention_maps.text_attention_maps(found, source, mode, most)
        shown = TextInput(_tokens(found, ids), total)
    else:
        looked = attention_maps.image_attention_maps(found, source, mode)
        side, _ = attention_maps.patch_shape(found.processor.model)
        shown = ImageInput(source, side, has_start_token=mode == "causal")
    read = f"{mode}; {attention_maps.mode_share(found.objective, mode):.0%} of pretraining read this way"
    agreement = f"{looked.kernel}; its outputs and the weights shown agree to {looked.error:.0e}"
    return AttentionMaps(
        weights_NHLS=looked.weights_NHLS,
        visible_LS=looked.visible_LS,
        causal=mode == "causal",
        input=shown,
        facts=(*facts, ("Mode", read), ("Attention kernel", agreement)),
    )


def _tokens(found: PretrainedModel, ids: np.ndarray) -> list[DisplayToken]:
    """The tokens as they are shown; specials have no spelling of their own."""
    assert found.processor.tokenizer is not None
    spelled = iter(display_tokens(found.processor.tokenizer.token_bytes(ids[ids >= NUM_SPECIALS])))
    return [
        next(spelled) if token >= NUM_SPECIALS else special_token(_SPECIAL[token]) for token in ids
    ]


def _facts(run: str, found: PretrainedModel, named: str) -> tuple[tuple[str, str], ...]:
    model, objective = found.processor.model, found.objective
    shares = {
        "next piece": objective.causal_lm,
        f"masked pieces ({objective.mask_ratio:.0%} hidden)": objective.masked_lm,
        f"bag of hidden tokens ({objective.mask_ratio:.0%} hidden and left out)": objective.bag_of_words,
    }
    asked = ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share)
    layers = f"{model.num_layers} layer{'s' if model.num_layers > 1 else ''}"
    heads = f"{model.num_heads} head{'s' if model.num_heads > 1 else ''}"
    return (
        ("Input", named),
        ("Model", f"{run}: {layers} of {heads}, {model.d_model} wide"),
        ("Pretrained on", asked),
    )


if __name__ == "__main__":
    command.run("attention_maps", __doc__, define, main)
