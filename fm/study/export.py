"""Writes models pretrained here as Hugging Face folders that `transformers` loads."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fm.data.tokenizer import NUM_SPECIALS, Tokenizer
from fm.errors import UserError
from fm.files import read_json
from fm.hf.io import Classifier, PretrainedModel, save_pretrained
from fm.hf.tokenizer import from_bpe
from fm.hf.weights import choose_family
from fm.model.config import ModelConfig
from fm.model.sizes import format_count, num_layer_params
from fm.study import run_dir
from fm.study.model_card import MODEL_CARD_FILE, DataSource, Figure, ModelCard, public_name, render
from fm.study.pretraining import PretrainedModel as StudyModel
from fm.study.pretraining import load_pretrained
from fm.training.objectives import PretrainingObjective

ARCH_ADVICE = "pretrain with --arch=llama for a model that has one"
_GENERATION_CONFIG_FILE = "generation_config.json"
# In a text the spelling of a special token is text, as in training.
_TOKENIZER_SETTINGS = {"split_special_tokens": True, "clean_up_tokenization_spaces": False}


def export_pretrained(
    folder: pathlib.Path, out_dir: pathlib.Path, *, max_length: int | None = None
) -> ModelCard:
    """Writes a model of `fm pretrain` as a Hugging Face folder; returns its model card.

    The folder has config.json, generation_config.json, model.safetensors, tokenizer.json,
    tokenizer_config.json and README.md, the model card. It appears complete or not at all.

    Args:
      folder: of the run.
      out_dir: the folder, which may not exist yet (or be empty).
      max_length: tokens of a text the model takes; by default those of a sequence in pretraining.

    Raises:
      UserError: `transformers` has no such model, or `out_dir` exists.
    """
    found = load_pretrained(folder)
    objective, tokenizer = _check_text_model(found), found.processor.tokenizer
    assert tokenizer is not None
    if not objective.causal_lm:
        raise UserError(
            "was not trained to predict the next token, as every counterpart in transformers does; "
            "pretrain with --objective=causal_lm:1, or with a share of causal_lm"
        )
    config = exportable_config(found.processor.model, max_length or _pretraining_length(folder))
    card = _card(found, objective, config, folder, out_dir)
    write_folder(out_dir, config, found.params, tokenizer, card)
    return card


def exportable_config(model_config: ModelConfig, max_length: int) -> ModelConfig:
    """Returns the config to write: with a longest input, and one that `transformers` has.

    Raises:
      UserError: no family of `transformers` computes such a model.
    """
    config = dataclasses.replace(model_config, max_seq_len=max_length)
    try:
        choose_family(config)
    except UserError as error:
        raise UserError(
            f"transformers has no model that computes this one; {ARCH_ADVICE} ({error})"
        ) from error
    return config


def write_folder(
    out_dir: pathlib.Path,
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    card: ModelCard,
    classifier: Classifier | None = None,
) -> None:
    """Writes a text model of our own, with a token head or a classifier, as a folder.

    Args:
      out_dir: the folder, which may not exist yet (or be empty).
      config: see `exportable_config`.
      params: of the model.
      tokenizer: of the model.
      card: written as README.md.
      classifier: the head of a classifier, which reads BOS, the text and EOS; None for a model that
        generates text.
    """
    texts = {MODEL_CARD_FILE: render(card)}
    special_token_ids = {
        f"{role}_token_id": getattr(tokenizer, role) for role in ("bos", "eos", "pad")
    }
    if classifier is None:
        # As fm generate does: no special token but EOS is generated.
        suppressed = [token for token in range(NUM_SPECIALS) if token != tokenizer.eos]
        generation = {**special_token_ids, "do_sample": True, "suppress_tokens": suppressed}
        texts[_GENERATION_CONFIG_FILE] = json.dumps(generation, indent=2) + "\n"
    save_pretrained(
        out_dir,
        PretrainedModel(
            config,
            params,
            from_bpe(tokenizer, add_eos=classifier is not None),
            special_token_ids=special_token_ids,
            classifier=classifier,
        ),
        texts=texts,
        tokenizer_settings=_TOKENIZER_SETTINGS,
    )


def _check_text_model(found: StudyModel) -> PretrainingObjective:
    """Returns the objective of a model of text alone; raises UserError for others."""
    if found.processor.layouts:
        modalities = [*found.processor.layouts, *["text"] * (found.processor.tokenizer is not None)]
        raise UserError(
            f"reads {' and '.join(modalities)}, of which transformers has no such model; takes a "
            "model of text alone"
        )
    return found.objective_of("text")


def _pretraining_length(folder: pathlib.Path) -> int:
    """Returns the tokens of a sequence in pretraining, by the config of the run's folder."""
    length = _recipe(folder).get("seq_len")
    if not isinstance(length, int) or length < 1:
        raise UserError(
            f"does not say how long its sequences were ({run_dir.CONFIG_FILE}); give --max_length"
        )
    return length


def _recipe(folder: pathlib.Path) -> dict[str, Any]:
    """The recipe in the config of a run, or of the study that the run is a part of."""
    recipe = _run_config(folder).get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _run_config(folder: pathlib.Path) -> dict[str, Any]:
    """The config of a run; of one that is a part of a study the config of its task there.

    Empty if neither is found.
    """
    folder = folder.absolute()
    for place in (folder, *folder.parents[:3]):
        config = _json_object(place / run_dir.CONFIG_FILE)
        if isinstance(config.get("recipe"), dict):
            return config
        tasks, below = config.get("tasks"), folder.relative_to(place).parts
        for name, task in tasks.items() if isinstance(tasks, dict) else ():
            if isinstance(task, dict) and any(part.startswith(f"{name}-") for part in below):
                return task
    return {}


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _card(
    found: StudyModel,
    objective: PretrainingObjective,
    config: ModelConfig,
    folder: pathlib.Path,
    out_dir: pathlib.Path,
) -> ModelCard:
    """The model card of a pretrained model, from the config and the summary of its run."""
    run, recipe = _run_config(folder), _recipe(folder)
    summary = _json_object(folder / run_dir.SUMMARY_FILE)
    data = _data(run, summary)
    names = " and ".join(source.name for source in data)
    shares = ", ".join(
        f"{name} {share:g}"
        for name in ("causal_lm", "masked_lm", "bag_of_words")
        if (share := getattr(objective, name))
    )
    optimizer = recipe.get("optimizer")
    training = {
        "objective, shares of the sequences": shares,
        "steps": summary.get("steps", recipe.get("steps")),
        "tokens": summary.get("tokens"),
        "sequences per step": recipe.get("batch_size"),
        "tokens per sequence": recipe.get("seq_len"),
        "optimizer": optimizer.get("name") if isinstance(optimizer, dict) else None,
        "peak learning rate": (
            optimizer.get("learning_rate") if isinstance(optimizer, dict) else None
        ),
        "seed": run.get("seed"),
        "parameters of the layers": format_count(num_layer_params(config)),
        "layers x width": f"{config.num_layers} x {config.d_model}",
        "vocabulary": f"byte-level BPE of {config.vocab_size:,} tokens",
        "fm": _version(summary),
    }
    limits = [
        f"It was trained on sequences of at most {config.max_seq_len} tokens and was not tested on "
        "longer ones.",
        "It is small and knows the language of its training data alone; what it writes is not "
        "checked to be true.",
    ]
    if objective.causal_lm < 1:
        limits.append(
            f"{objective.causal_lm:.1%} of its training sequences predicted the next token; the "
            "others attended to tokens on both sides, which the exported model does not."
        )
    return ModelCard(
        title=out_dir.resolve().name,
        summary="A language model pretrained from scratch with `fm` on "
        f"{names or 'data that its folder does not name'}.",
        data=data,
        training={name: value for name, value in training.items() if value is not None},
        figures=_figures(summary),
        limits=limits,
        usage=[
            (
                "With `transformers`:",
                "from transformers import pipeline\n\n"
                f'generate = pipeline("text-generation", model={str(out_dir)!r})\n'
                'print(generate("The", max_new_tokens=40)[0]["generated_text"])',
                "python",
            ),
            (
                "With `fm`:",
                f"fm generate --model={out_dir} --prompt=The\n"
                f"fm adapt --model={out_dir} --dataset=FILE",
                "sh",
            ),
        ],
        metadata={
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["fm", "pretrained-from-scratch"],
        },
    )


def _data(run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[DataSource]:
    """The data of a run, as its summary lists them, or else its config names them."""
    listed = summary.get("data")
    if isinstance(listed, list):
        return [DataSource(**each) for each in listed]
    several, dataset = run.get("datasets"), run.get("dataset")
    if isinstance(dataset, dict):
        several = {dataset.get("name", ""): dataset.get("fingerprint", "")}
    elif isinstance(dataset, str):
        several = {dataset: run.get("fingerprint", "")}
    names = several.items() if isinstance(several, dict) else ()
    return [DataSource(public_name(name), "pretraining", fingerprint=mark) for name, mark in names]


def _figures(summary: Mapping[str, Any]) -> list[Figure]:
    value = (summary.get("metrics") or {}).get("validation")
    if not isinstance(value, (int, float)):
        return []
    name = "loss of the objective on held-out training examples, bits per byte"
    return [Figure(name, value, percent=False)]


def _version(summary: Mapping[str, Any]) -> str | None:
    return (summary.get("versions") or {}).get("fm")
