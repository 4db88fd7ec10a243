"""Writes adapted models as Hugging Face folders of sequence classification."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fm.data.tokenizer import Tokenizer
from fm.errors import UserError
from fm.hf.io import Classifier
from fm.model.config import ModelConfig
from fm.model.sizes import format_count, num_layer_params
from fm.study import saved_model
from fm.study.adapted_model import AdaptedModel
from fm.study.export import exportable_config, write_folder
from fm.study.model_card import DataSource, Figure, ModelCard, accuracy_figure


def export_adapted(folder: pathlib.Path, out_dir: pathlib.Path) -> ModelCard:
    """Writes a saved adapted model as a sequence classification folder; returns its model card.

    Args:
      folder: of `fm.study.saved_model`.
      out_dir: the folder, which may not exist yet (or be empty).

    Raises:
      UserError: `transformers` has no such classifier, or `out_dir` exists.
    """
    adapted = saved_model.load(folder)
    tokenizer, fitted = adapted.tokenizer, adapted.fitted.params
    if not _is_plain_classifier(adapted) or not isinstance(tokenizer, Tokenizer):
        raise UserError(
            "transformers has no classifier that computes this one; adapt a Llama-shaped model "
            "of text to classes with --for_transformers for one that it has"
        )
    # Without a token head, as with tied embeddings.
    own = adapted.model.model_config
    arch = dataclasses.replace(own.arch, tie_embeddings=True)
    config = exportable_config(dataclasses.replace(own, arch=arch), adapted.model.recipe.seq_len)
    streams = {
        name: leaf for name, leaf in fitted["model"]["streams"].items() if name != "token_head"
    }
    head = Classifier(np.asarray(fitted["head"]["kernel"]), adapted.names)
    card = _card(adapted, config, out_dir)
    params = fitted["model"] | {"streams": streams}
    write_folder(out_dir, config, params, tokenizer, card, head)
    return card


def _is_plain_classifier(adapted: AdaptedModel) -> bool:
    """Whether all that predicts is one model and a linear map of its last token, without bias."""
    feature_config, params = adapted.model.recipe.finetune.feature_config, adapted.fitted.params
    whole = isinstance(params, dict) and params.keys() == {"model", "head"}
    return (
        adapted.task_type.predicts_classes
        and adapted.record.published is None
        and feature_config.plain_head
        and feature_config.causal
        and whole
        and params["head"].keys() == {"kernel"}
    )


def _card(adapted: AdaptedModel, config: ModelConfig, out_dir: pathlib.Path) -> ModelCard:
    """The model card of a classifier, from what its saved model says of its run."""
    record, classes = adapted.record, ", ".join(adapted.names)
    run = record.run
    path = str(out_dir)
    return ModelCard(
        title=out_dir.resolve().name,
        summary=f"A text classifier fine-tuned with `fm`. Classes: {classes}.",
        data=_data(run),
        training={
            **record.hparams,
            "parameters of the layers": format_count(num_layer_params(config)),
            "layers x width": f"{config.num_layers} x {config.d_model}",
            "vocabulary": f"byte-level BPE of {config.vocab_size:,} tokens",
        },
        figures=_figures(run),
        limits=[
            f"It reads {config.max_seq_len} tokens of a text at most, from the beginning; "
            "`truncation=True` cuts longer ones.",
            "It answers with one of its classes whatever the text.",
        ],
        usage=[
            (
                "With `transformers`:",
                "from transformers import pipeline\n\n"
                f'classify = pipeline("text-classification", model={path!r}, truncation=True)\n'
                'print(classify(["A text."], top_k=None))',
                "python",
            ),
            (
                "The model that it was written from labels files of any size with `fm`:",
                "fm predict --model=OUT/model --dataset=FILE --out=DIR",
                "sh",
            ),
        ],
        metadata={
            "library_name": "transformers",
            "pipeline_tag": "text-classification",
            "tags": ["fm"],
        },
    )


def _data(run: Mapping[str, Any]) -> list[DataSource]:
    """The labeled and the test examples, as the run that adapted the model has recorded them."""
    if not run.get("data"):
        return []
    fingerprint = str(run.get("fingerprint", ""))
    return [
        DataSource(str(run["data"]), use, run.get(key), fingerprint=fingerprint)
        for use, key in (("labels", "num_labels"), ("test", "num_test_items"))
    ]


def _figures(run: Mapping[str, Any]) -> list[Figure]:
    count = run.get("num_test_items")
    of_items = "" if count is None else f", {count:,} test items"
    return [
        accuracy_figure(f"{name}{of_items}", value, count)
        if name == "accuracy" and count
        else Figure(f"{name.replace('_', ' ')}{of_items}", value, percent=False)
        for name, value in (run.get("metrics") or {}).items()
    ]
