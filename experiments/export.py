"""Writes a model of one's own as a Hugging Face folder, which `transformers` loads.

    fm pretrain --dataset=film_reviews --objective=causal_lm:1
    fm export --model=runs/pretrain --out=exported

    fm adapt --model=runs/pretrain --labels=200 --for_transformers
    fm export --model=runs/adapt/model --out=classifier

OUT gets config.json, model.safetensors, tokenizer.json, tokenizer_config.json, of a language model
generation_config.json, and README.md, a model card written from the run. Models of text that were
pretrained with --arch=llama, the default, have a counterpart in `transformers`, and so have
classifiers adapted from them with --for_transformers; others are refused. Nothing is uploaded.
"""

from __future__ import annotations

from absl import flags

from experiments import cli
from fm.errors import UserError, error_context
from fm.study.export import export_pretrained
from fm.study.export_classifier import export_adapted
from fm.study.model_folders import ADAPTED, RUN, find_model


def define(values: flags.FlagValues) -> None:
    """Defines the flags of model and output."""
    flags.DEFINE_string(
        "model",
        None,
        "the --out of fm pretrain, or a model that fm adapt saved",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_length",
        None,
        "tokens of a text that a pretrained model takes; by default those of a sequence in "
        "pretraining",
        flag_values=values,
        lower_bound=2,
    )
    cli.define_out(values, "exported")


def main(values: flags.FlagValues) -> None:
    """Writes the folder and prints what is in it."""
    out_dir = cli.out_dir(values)
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise UserError(f"--out={out_dir} exists already; takes a new folder")
    location = find_model(values["model"].value or "", (RUN, ADAPTED))
    max_length = values["max_length"].value
    if location.kind == ADAPTED and max_length is not None:
        raise UserError(f"--max_length={max_length}: is for pretrained models, not adapted ones")
    with error_context(f"--model={location.name}"):
        if location.kind == ADAPTED:
            card = export_adapted(location.path, out_dir)
        else:
            card = export_pretrained(location.path, out_dir, max_length=max_length)
    names = ", ".join(sorted(path.name for path in out_dir.iterdir()))
    print(f"{card.summary}\n{out_dir}: {names}")
    if location.kind == RUN:
        cli.print_next("continue a text", "generate", model=out_dir, prompt="TEXT")


if __name__ == "__main__":
    cli.run("export", __doc__, define, main)
