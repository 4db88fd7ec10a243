"""Writes a model of one's own as a Hugging Face folder, which `transformers` loads.

    python -m experiments.pretrain --dataset=film_reviews --objective=causal_lm:1
    python -m experiments.export --model=runs/pretrain --out=exported

OUT gets config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json and README.md, a model card written from the run. Models of text that were
pretrained with --arch=llama, the default, have a counterpart in `transformers`; others are refused.
Nothing is uploaded.
"""

from __future__ import annotations

from absl import flags

from experiments import cli
from fm.errors import UserError, error_context
from fm.study.export import export_pretrained
from fm.study.model_folders import RUN, find_model


def define(values: flags.FlagValues) -> None:
    """Defines the flags of model and output."""
    flags.DEFINE_string("model", None, "the --out of experiments.pretrain", flag_values=values)
    flags.DEFINE_integer(
        "max_length",
        None,
        "tokens of a text that the model takes; by default those of a sequence in pretraining",
        flag_values=values,
        lower_bound=2,
    )
    cli.define_out(values, "exported")


def main(values: flags.FlagValues) -> None:
    """Writes the folder and prints what is in it."""
    out_dir = cli.out_dir(values)
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise UserError(f"--out={out_dir} exists already; takes a new folder")
    location = find_model(values["model"].value or "", (RUN,))
    with error_context(f"--model={location.name}"):
        card = export_pretrained(location.path, out_dir, max_length=values["max_length"].value)
    names = ", ".join(sorted(path.name for path in out_dir.iterdir()))
    print(f"{card.summary}\n{out_dir}: {names}")
    cli.print_next("continue a text", "generate", model=out_dir, prompt="TEXT")


if __name__ == "__main__":
    cli.run("export", __doc__, define, main)
