"""Adapts a pretrained model to labels: linear probe, fine-tuning, LoRA or prompts.

    fm adapt --model=runs/pretrain --dataset=film_reviews --labels=200
    fm adapt --model=minilm-l6 --adapt=probe,lora --labels=all

--model is the --out of fm pretrain or a published model: a known name, a Hugging Face
folder or a GGUF file. Without it the parameters are fresh. Chooses among the methods'
hyper-parameters on validation data cut from the labels, and scores the test items once. Writes the
adapted model, OUT/model, with which fm predict labels new files; its predictions of the
test items, OUT/predictions.csv; and OUT/summary.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import shlex
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli, config_flags, published_flags, recipe_flags, stages, training_flags
from fm.adaptation.methods import METHODS, FittedModel, check_methods
from fm.config_io import parse, to_plain
from fm.data.datasets import Dataset
from fm.data.media import get_modality
from fm.data.tokenizer import MIN_VOCAB_SIZES
from fm.errors import UserError, error_context
from fm.evaluation.model_selection import select_trial
from fm.hf.encoders import encoder_modality
from fm.hf.model_zoo import MODEL_ZOO
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.parallel.mesh import current_mesh
from fm.progress_lines import phase, say
from fm.study import labeling, presets, run_dir, saved_model
from fm.study.adaptation import ModelArm
from fm.study.adapted_model import READING_FLAGS, AdaptedModel, adapted_model, names_line
from fm.study.built_arm import InitialModel
from fm.study.config import DEFAULT_METHODS, PublishedEncoderConfig, Recipe, TaskConfig
from fm.study.dry_run import adapting_stage
from fm.study.export import exportable_config
from fm.study.head_task_types import HeadTaskType
from fm.study.load_published import load_published_arm
from fm.study.loading import load
from fm.study.model_card import Figure, ModelCard, accuracy_figure, data_source
from fm.study.model_folders import PUBLISHED, ModelLocation, find_model
from fm.study.pretraining import load_pretrained
from fm.study.processing import Processor, build_processor
from fm.study.published_encoder_arm import check_modality
from fm.study.seen_examples import tell_seen_items
from fm.study.task import Task
from fm.study.task_registry import task_spec_or_default
from fm.study.task_types import task_type_of
from fm.study.tasks import prepare_task
from fm.training.run_description import describe_model
from fm.training.train_state import params_digest

# The only method whose result is one model with one head.
_EXPORTABLE_METHOD = "full"
ALL_LABELS, MODEL_DIR = "all", "model"


def define(values: flags.FlagValues) -> None:
    """Defines the flags of model, labels and methods."""
    flags.DEFINE_string("dataset", "film_reviews", "name, file or folder", flag_values=values)
    flags.DEFINE_string(
        "model",
        None,
        f"folder of fm pretrain or a published model ({', '.join(MODEL_ZOO)}, a folder or "
        "a GGUF file); default: fresh parameters",
        flag_values=values,
    )
    recipe_flags.define_model_size(values, "fresh model's", "fm")
    flags.DEFINE_string(
        "labels", "100", f"number of labeled examples, or {ALL_LABELS}", flag_values=values
    )
    flags.DEFINE_list(
        "adapt",
        list(DEFAULT_METHODS),
        f"adaptation methods: some of {', '.join(METHODS)}; the best on validation is used; prompt "
        "needs a published model that generates text",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "for_transformers",
        False,
        "classify texts as LlamaForSequenceClassification does, so that fm export can "
        "write the adapted model: each token attends to earlier ones, and a linear map without "
        "bias reads the last one; for Llama-shaped models of fm pretrain and --adapt=full",
        flag_values=values,
    )
    published_flags.define_prompts(values)
    config_flags.define(values)
    training_flags.define(values, "adapt")
    cli.define_data(values)
    cli.define_mesh(values)
    cli.define_out(values, "runs/adapt")


def main(values: flags.FlagValues) -> None:
    """Chooses hyper-parameters, fits, scores the test items and writes the summary."""
    began = time.perf_counter()
    saved = config_flags.saved_config(values, "adapt")
    if saved is not None:
        config_flags.fill(values, _flags_of(saved))
    out_dir, seed = cli.out_dir(values), values["seed"].value
    _check_labels_flag(values["labels"].value)
    name, source = values["dataset"].value, values["model"].value
    for flag in ("size", "arch"):
        if values[flag].value and source:
            raise UserError(
                f"--{flag}={values[flag].value}: --model={source} has its own; give one of the two"
            )
    methods = _methods(values)
    check_methods(methods)
    published_flags.check_prompts(values)
    location = find_model(source) if source else None
    recipe_flags.check_size(values)
    options = cli.data_options(values)
    data = load(name, **options)
    training_flags.check_text_flags(values, [data.modality], [name])
    task_type = task_type_of(data)
    if "compare" not in task_type.experiments:
        raise UserError(
            f"--dataset={name} is a {task_type.name} task; takes data with classes, numbers, sets "
            f"of classes or tags. {' and '.join(f'fm {n}' for n in task_type.experiments)}"
            f" runs {task_type.name}"
        )
    all_labels = str(values["labels"].value) == ALL_LABELS
    # How many there are is known once near-duplicates of test items are out; this many fit.
    num_labels = task_type.min_labels(data) + 1 if all_labels else int(values["labels"].value)
    recipe = presets.with_fitting_patch_size(
        presets.task_recipe(data.modality, task_type.name), data.info.get("shape")
    )
    recipe = training_flags.with_default_dtype(recipe)
    recipe = presets.with_model(recipe, values["size"].value, values["arch"].value)
    recipe = training_flags.with_flags(recipe, values, "adapt")
    if saved is not None:
        with error_context(f"--config={values['config'].value}"):
            recipe = parse(Recipe, saved.get("recipe"), "recipe")
    recipe = config_flags.with_settings(recipe, values)
    presets.tell_image_size_cost(name, data, recipe.model, recipe.objective, recipe.patch_size)
    published = location is not None and location.kind == PUBLISHED
    if not published and all(METHODS[method].published_models_only for method in methods):
        raise UserError(
            f"--adapt={','.join(methods)}: needs a published model as --model; or add probe"
        )
    if published and values["dtype"].value is not None:
        raise UserError(
            f"--dtype={values['dtype'].value}: --model={source} is a published model, which has "
            "its own; leave this flag out"
        )
    if published and task_type.reads_words:
        raise UserError(
            f"--model={source} is a published model, which {name}, a {task_type.name} task, cannot "
            "be adapted from; takes a model of fm pretrain, or none"
        )
    pretrained = None
    if location is not None and not published:
        pretrained = _load_pretrained(location, data, values["dtype"].value)
    if values["for_transformers"].value:
        model = pretrained[0].model if pretrained is not None else recipe.model
        recipe = _recipe_for_transformers(recipe, model, data, published=published)
    if location is not None and published:
        check_modality(location.name, encoder_modality(location.name), data.modality)
    published_config = (
        published_flags.published_config(values, location.name, task_spec_or_default(name), data)
        if location is not None and published
        else None
    )
    if isinstance(published_config, PublishedEncoderConfig):
        published_config = dataclasses.replace(published_config, finetuned=True)
    task = _prepare_task(
        TaskConfig(name, None, (num_labels,), recipe, published=published_config, **options)
    )
    if all_labels:
        num_labels = task_type.max_labels(task.dataset)
        budgets = dataclasses.replace(task.config, label_budgets=(num_labels,))
        task = dataclasses.replace(task, config=budgets)
    if location is not None:
        tell_seen_items(location.path, task.test)
    train_idx = task_type.draw(task.dataset.train, num_labels, seed)
    task = dataclasses.replace(task, train_idx=(train_idx,))
    config = {
        "experiment": "adapt",
        "dataset": {"name": name, "fingerprint": data.info["fingerprint"], **options},
        "pretrained": source,
        "adapt": list(methods),
        "labels": num_labels,
        "seed": seed,
        "published": dataclasses.asdict(published_config) if published_config else None,
        "recipe": to_plain(recipe),
    }
    if values["dtype"].value is not None:
        config["dtype"] = values["dtype"].value
    if saved is not None:
        fingerprint = saved["dataset"]["fingerprint"]
        config_flags.check_unchanged(values, name, fingerprint, data.info["fingerprint"])
        if not values["set"].value:
            plain = json.loads(json.dumps(config))
            config_flags.tell_differences(values, saved, plain)
    if cli.is_dry_run(values):
        stage = adapting_stage(recipe, data, num_labels, methods, own=not published)
        stages.show("adapt", json.loads(json.dumps(config)), out_dir, [stage])
        return
    published_arm = load_published_arm(task, methods, trainable=True) if published else None
    run_dir.init(config, out_dir)
    if (summary := run_dir.read_summary(out_dir)) is not None:
        print(f"{out_dir} is finished; use another --out to run again")
        _print_summary(summary, out_dir)
        return
    arm = published_arm or _own_arm(task, pretrained, methods, out_dir)
    strata, pool_idx = task.strata[train_idx], task.pool_rows(train_idx)
    mesh = current_mesh()
    config_of_model = arm.model.model_config
    fresh = jax.eval_shape(lambda: init(jax.random.key(0), config_of_model))
    params = next(iter(arm.model.checkpoints), fresh)
    described = describe_model(params, config_of_model, mesh)
    say(f"{name}: adapting to {num_labels:,} labels by {' or '.join(methods)}: {described}")
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        with phase("choosing hyper-parameters on validation data cut from the labels"):
            trials = arm.search(pool_idx, strata, seed)
        hparams = select_trial(trials)["config"]
        with phase(f"fitting by {hparams['method']}"):
            fitted = arm.fit(pool_idx, strata, seed, hparams)
    with phase(f"scoring {len(task.test):,} test items"):
        predictions = np.ascontiguousarray(arm.predict(fitted, hparams).values)
    metrics = {
        task_type.metric.replace(" ", "_"): float(
            task_type.scores(predictions[None], task.test).mean()
        )
    }
    if isinstance(task_type, HeadTaskType):
        metrics |= task_type.main_metrics(predictions, task.test)
    figures = {"hparams": hparams, "num_test_items": len(task.test), "metrics": metrics}
    run = figures | {"num_labels": num_labels, "seed": seed, "model": source}
    adapted = _adapted(task, arm, fitted, run, values)
    if adapted is not None:
        saved_model.save(out_dir / MODEL_DIR, adapted, _card(task, adapted, out_dir))
        _write_predictions(out_dir, task, adapted)
    run_dir.write_summary_json(
        out_dir,
        steps=fitted.steps,
        hparams=hparams,
        **metrics,
        num_test_items=len(task.test),
        trials=trials,
        published=arm.model.description(),
        metrics=metrics,
        digests={
            "params": params_digest(fitted.params),
            "predictions": hashlib.sha256(predictions).hexdigest(),
        },
        seconds=time.perf_counter() - began,
        config=config,
    )
    _print_summary(figures, out_dir)


def _check_labels_flag(text: Any) -> None:
    """Raises UserError unless --labels is a whole number from 2, or "all"."""
    if str(text) != ALL_LABELS and not re.fullmatch(r"0*([2-9]|[1-9][0-9]{1,8})", str(text)):
        raise UserError(f"--labels={text}: takes a whole number from 2, or {ALL_LABELS}")


def _adapted(
    task: Task,
    arm: ModelArm,
    fitted: FittedModel,
    run: dict[str, Any],
    values: flags.FlagValues,
) -> AdaptedModel | None:
    """Returns the model to save; None, after a line that says why, if it cannot be saved."""
    columns = {name: values[name].value for name in READING_FLAGS}
    try:
        return adapted_model(
            arm.model,
            fitted,
            run["hparams"],
            run["seed"],
            dataset=task.dataset,
            task_type=task.task_type,
            tokenizer=arm.tokenizer,
            columns={name: value for name, value in columns.items() if value},
            run=run | {"data": task.name, "fingerprint": task.dataset.info["fingerprint"]},
        )
    except UserError as error:
        print(f"no model is written: {error}", file=sys.stderr)
        return None


def _write_predictions(out_dir: pathlib.Path, task: Task, adapted: AdaptedModel) -> None:
    """Writes what the adapted model predicts for the test items, with their texts if they are."""
    idx = np.arange(len(task.test))
    labeling.write_predictions(
        out_dir / run_dir.PREDICTIONS_FILE,
        adapted,
        adapted.predict(task.task_type.new_inputs(task.test, idx)),
        task.test.row_ids(idx),
        task.task_type.truth_texts(task.test, task.dataset),
        task.test.texts(idx) if task.is_text else None,
    )


def _card(task: Task, adapted: AdaptedModel, out_dir: pathlib.Path) -> ModelCard:
    """Returns the model card of the run."""
    run, noun = adapted.record.run, get_modality(task.modality).noun
    started = f"`{run['model']}`" if run["model"] else "fresh parameters"
    names = f" ({names_line(adapted.names)})" if adapted.names else ""
    model = shlex.quote(str(out_dir / MODEL_DIR))
    return ModelCard(
        title=f"{task.name}, adapted",
        summary=f"Predicts {task.task_type.name.replace('_', ' ')}{names} from {noun}s. Adapted "
        f"from {started} with {run['num_labels']:,} labels by the method "
        f"{run['hparams']['method']}.",
        data=(
            data_source(task.dataset, "labels", run["num_labels"]),
            data_source(task.dataset, "test", run["num_test_items"]),
        ),
        training=run["hparams"] | {"seed": run["seed"]},
        figures=[_figure(name, value, task) for name, value in run["metrics"].items()],
        limits=("Its figures are of test items of the same data alone.",),
        usage=(
            (
                "Label a new file:",
                f"fm predict --model={model} --dataset=FILE",
                "sh",
            ),
        ),
    )


def _figure(name: str, value: float, task: Task) -> Figure:
    """Returns a metric of the test items as a model card shows it."""
    title = f"{name.replace('_', ' ')}, {len(task.test):,} test items"
    if name == "accuracy":
        return accuracy_figure(title, value, len(task.test))
    return Figure(title, value, percent=name == task.task_type.metric.replace(" ", "_"))


def _flags_of(saved: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags of a saved config, but for those of its recipe."""
    names = ("experiment", "dataset", "published", "recipe")
    others = {key: value for key, value in saved.items() if key not in names}
    prompt = dict(saved.get("published") or {})
    for name in ("model", "finetuned"):
        prompt.pop(name, None)
    if "num_fewshot" in prompt:
        prompt["num_fewshot"] = [str(n) for n in prompt["num_fewshot"]]
    others["model"] = others.pop("pretrained", None)
    return config_flags.data_flags(saved["dataset"]) | others | prompt


def _methods(values: flags.FlagValues) -> tuple[str, ...]:
    """Returns the adaptation methods to try; with --for_transformers full fine-tuning alone."""
    methods = tuple(values["adapt"].value)
    if not values["for_transformers"].value:
        return methods
    if values["adapt"].using_default_value:
        return (_EXPORTABLE_METHOD,)
    if methods != (_EXPORTABLE_METHOD,):
        raise UserError(
            f"--for_transformers: takes --adapt={_EXPORTABLE_METHOD}, not {','.join(methods)}"
        )
    return methods


def _recipe_for_transformers(
    recipe: Recipe, model: ModelConfig, data: Dataset, *, published: bool
) -> Recipe:
    """Returns the recipe of a classifier that `transformers` has, too."""
    task_type = task_type_of(data)
    for what, fits in (
        (data.modality, data.modality == "text"),
        (task_type.name.replace("_", " "), task_type.predicts_classes),
        ("a published model", not published),
    ):
        if not fits:
            raise UserError(
                "--for_transformers: takes texts with one class each, and a model of "
                f"fm pretrain, not {what}"
            )
    # Of fresh parameters it is not known yet.
    vocab_size = model.vocab_size or MIN_VOCAB_SIZES["bpe"]
    with error_context("--for_transformers"):
        exportable_config(dataclasses.replace(model, vocab_size=vocab_size), recipe.seq_len)
    return presets.with_plain_head(recipe)


def _prepare_task(config: TaskConfig) -> Task:
    try:
        return prepare_task(config, ("scratch",), 1, validated=True)
    except UserError as error:
        raise UserError(str(error).replace("--label_budgets", "--labels", 1)) from error


def _own_arm(
    task: Task,
    pretrained: tuple[Processor, dict] | None,
    methods: tuple[str, ...],
    out_dir: pathlib.Path,
) -> ModelArm:
    """Returns the arm of a model of fm pretrain, or of fresh parameters."""
    if pretrained:
        processor, params = pretrained
        initial = InitialModel(processor, given_params=(params,))
    else:
        train, rate = task.dataset.train, task.dataset.info.get("rate")
        processor = build_processor(train, task.modality, task.config.recipe, out_dir, rate)
        initial = InitialModel(processor)
    arm = task.task_type.build_head(task, initial, None, methods)
    assert isinstance(arm, ModelArm)
    if not arm.supported_methods():
        raise UserError(
            f"--adapt={','.join(methods)}: cannot adapt a model to a {task.task_type.name} task; "
            "add full or probe"
        )
    return arm


def _print_summary(summary: dict[str, Any], out_dir: pathlib.Path) -> None:
    hparams = ", ".join(f"{key} {value}" for key, value in summary["hparams"].items())
    metrics = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in summary["metrics"].items()
    )
    print(
        f"{metrics} on {summary['num_test_items']} test items "
        f"({hparams}), {out_dir / run_dir.SUMMARY_FILE}"
    )
    model = out_dir / MODEL_DIR
    if saved_model.is_saved_model(model):
        print(f"model {model}, its predictions {out_dir / run_dir.PREDICTIONS_FILE}")
        cli.print_next("label new files", "predict", model=model, dataset="FILE")


def _load_pretrained(
    location: ModelLocation, data: Dataset, dtype: str | None
) -> tuple[Processor, dict]:
    """Returns processor and parameters of a model that reads such data, its dtype changed."""
    with error_context(f"--model={location.name}"):
        found = load_pretrained(location.path)
    processor, shape = found.processor, data.info.get("shape")
    if data.modality == "text":
        fits = processor.tokenizer is not None
    else:
        layout = processor.layouts.get(data.modality)
        fits = layout is not None and layout.shape == tuple(shape)
    if not fits:
        modalities = [*processor.layouts, *["text"] * (processor.tokenizer is not None)]
        raise UserError(
            f"--model={location.name} reads {' and '.join(modalities)}, not {data.modality} like "
            f"{data.name}; takes a model pretrained on such {data.modality}"
        )
    if dtype is not None:
        model = dataclasses.replace(processor.model, dtype=dtype)
        processor = dataclasses.replace(processor, model=model)
    return processor, found.params


if __name__ == "__main__":
    cli.run("adapt", __doc__, define, main, dry_run=main, resumes=False)
