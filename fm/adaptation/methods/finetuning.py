# ruff: noqa: D102 (methods inherit the docstrings of `AdaptationMethod`)
"""Methods that train the network: full fine-tuning, LoRA, LP-FT and self-training."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from fm.adaptation import lora
from fm.adaptation.augment import AUGMENTATIONS
from fm.adaptation.batching import take
from fm.adaptation.features import extract_features
from fm.adaptation.finetune import FinetuneConfig, FinetuningRun, split_prediction_heads
from fm.adaptation.linear_probe import fit_probe
from fm.adaptation.methods.base import AdaptationMethod, FittedModel, HParams, num_entries
from fm.adaptation.search import best_epochs, last_gain, successive_halving
from fm.adaptation.self_training import max_examples, pseudo_labels, repeats
from fm.adaptation.task_model import AdaptationRecipe, TaskModel
from fm.errors import UserError
from fm.evaluation.model_selection import from_the_middle, select_trial

# Weight decay and dropout, of which a regularizer raises one.
BASE_WEIGHT_DECAY, STRONG_WEIGHT_DECAY, STRONG_DROPOUT = 0.01, 0.3, 0.3
# Pseudo-labeling rounds that self-training tries, after the teacher alone.
SELF_TRAINING_ROUNDS = 2


def regularization(name: str) -> HParams:
    """Returns the hyper-parameters of a regularizer, by name.

    "none" leaves the weak weight decay that all have, "weight_decay" and "dropout" raise theirs,
    and others are augmentations.

    Raises:
      UserError: none is called so.
    """
    hparams = {"weight_decay": BASE_WEIGHT_DECAY, "dropout": 0.0, "augment": None}
    strong = {"weight_decay": STRONG_WEIGHT_DECAY, "dropout": STRONG_DROPOUT}
    if name == "none":
        return hparams
    if name in strong:
        return hparams | {name: strong[name]}
    if name in AUGMENTATIONS:
        return hparams | {"augment": name}
    accepted = ", ".join(["none", *strong, *AUGMENTATIONS])
    raise UserError(f"regularizers: {name!r} is not known; accepted are {accepted}")


class Finetuning(AdaptationMethod):
    """Fine-tunes every parameter and a new classification head, for as long as it gains."""

    name = "full"
    description = "fine-tunes every parameter with a new head"
    search_order = 1
    updates_model = True
    reads_initial_params = False
    relative_flops = 1.0

    def supports(self, model):
        return model.trainable

    def search_space(self, recipe, *, num_fewshot=(0,)):
        rates, (first, *others) = self.learning_rates(recipe), recipe.regularizers
        if recipe.search_grid == "star":
            pairs = [(rate, first) for rate in rates] + [(rates[0], each) for each in others]
        else:
            pairs = itertools.product(rates, recipe.regularizers)
        return [
            {"method": self.name, "learning_rate": rate} | regularization(regularizer)
            for rate, regularizer in pairs
        ]

    def learning_rates(self, recipe: AdaptationRecipe) -> tuple[float, ...]:
        """Returns the grid of learning rates."""
        return recipe.learning_rates

    def config(self, recipe: AdaptationRecipe, hparams: HParams) -> FinetuneConfig:
        """Returns the fine-tuning config for the given hyper-parameters."""
        names = ("learning_rate", "weight_decay", "dropout", "augment")
        chosen = {name: hparams[name] for name in names if name in hparams}
        return dataclasses.replace(recipe.finetune, **chosen)

    def start(
        self,
        model: TaskModel,
        train_idx: np.ndarray,
        labels: np.ndarray,
        seed: int,
        hparams: HParams,
        pad_to: int = 0,
    ) -> FinetuningRun:
        """Returns a run of no steps yet on the labeled examples `train_idx`."""
        return FinetuningRun(
            model.initial_params(seed),
            take(model.examples, train_idx),
            model.targets(train_idx, labels),
            model.model_config,
            self.config(model.recipe, hparams),
            num_classes=model.num_classes,
            seed=seed,
            pad_to=pad_to or model.pad_to,
            layout=model.layout,
            head=self.init_head(model, train_idx, labels, seed),
            loss=type(model.head_target).loss,
            finish_head=lambda head: model.finish_head(head, train_idx, labels),
        )

    def init_head(self, model: TaskModel, train_idx, labels, seed: int) -> dict | None:
        """Returns the head that training starts from; None for zeros."""
        return None

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        config = self.config(model.recipe, hparams)
        run = self.start(model, train_idx, labels, seed, hparams)
        whole = config.num_steps(len(labels), hparams.get("epochs"))
        run.advance(whole if num_steps is None else num_steps)
        return FittedModel(run.finetuned(), run.num_steps)

    def predict(self, model, fitted, idx):
        return model.predict_finetuned(fitted.params, idx)

    def predict_proba(self, model, fitted, idx):
        return model.predict_finetuned_proba(fitted.params, idx)

    def dump(self, fitted):
        # Heads that predict tokens or patches are no part of what predicts classes.
        _, used = split_prediction_heads(fitted.params["model"]["streams"])
        return fitted.params | {"model": fitted.params["model"] | {"streams": used}}, None

    def restore(self, model, arrays, state, hparams):
        return FittedModel(jax.tree.map(jnp.asarray, arrays), 0)

    def only_setting(self, model, num_labels):
        configs = self.search_space(model.recipe)
        # Without a fixed length there are epochs to choose; other targets fit a decision.
        if len(configs) > 1 or not model.recipe.finetune.is_fixed or not model.predicts_classes:
            return None
        return configs[0] | {"epochs": model.recipe.finetune.epoch_grid(num_labels)[0]}

    def search(self, model, train_idx, labels, seed, folds):
        # Of the smallest part, so that every fold is read after the same passes over its examples.
        smallest = min(len(fit) for fit, _ in folds)
        num_held_out = sum(len(held) for _, held in folds)
        epoch_grid = model.recipe.finetune.epoch_grid(smallest)
        configs = self.search_space(model.recipe)
        start = functools.partial(self._start_folds, model, train_idx, labels, seed, folds)
        # By setting and epochs, the hyper-parameters fitted to the outputs read.
        fitted: list[dict[int, HParams]] = [{} for _ in configs]
        candidates = [functools.partial(start, *each) for each in zip(configs, fitted, strict=True)]
        min_epochs = model.recipe.finetune.min_search_epochs(smallest)
        readings = successive_halving(candidates, epoch_grid, min_epochs)
        ranked = [
            {epochs: score for epochs, score in each.items() if epochs >= min_epochs} or each
            for each in readings
        ]
        epochs = [best_epochs(each, num_held_out, model.standard_error) for each in ranked]
        return [
            {
                "config": hparams | {"epochs": chosen} | fitted[n][chosen],
                "validation": max(scores.values()),
                "last_gain": last_gain(each),
                "readings": [[epochs, score] for epochs, score in each.items()],
                "flops": sum(
                    self.flops(model, len(fit), hparams | {"epochs": max(each)}) for fit, _ in folds
                ),
            }
            for n, (hparams, each, scores, chosen) in enumerate(
                zip(configs, readings, ranked, epochs, strict=True)
            )
        ]

    def _start_folds(self, model, train_idx, labels, seed, folds, hparams, fitted):
        """Starts a run in each fold; returns a function: epochs to validation score.

        It adds to `fitted`, by epochs, the hyper-parameters fitted to the outputs.
        """
        config = self.config(model.recipe, hparams)
        runs = [self.start(model, train_idx[fit], labels[fit], seed, hparams) for fit, _ in folds]
        held_out = np.concatenate([each for _, each in folds])

        def read(epochs: int) -> float:
            predictions = []
            for run, (fit, held) in zip(runs, folds, strict=True):
                run.advance(config.num_steps(len(fit), epochs))
                predictions.append(model.predict_finetuned(run.finetuned(), train_idx[held]))
            score, fitted[epochs] = model.tune(
                np.concatenate(predictions), train_idx[held_out], labels[held_out]
            )
            return score

        return read

    def flops(self, model, num_labels, hparams):
        # LoRA forms no gradient of a kernel, one product in three; its own products are small.
        config = model.recipe.finetune
        return (
            self.relative_flops
            * config.num_steps(num_labels, hparams.get("epochs"))
            * config.batch_size
            * model.train_flops(config.tokens_kept)
        )

    def footprint(self, model, train_idx, labels, hparams):
        return self.start(model, train_idx, labels, 0, hparams).footprint()

    def num_task_params(self, model):
        return num_entries(model.init_head())


class LoraFinetuning(Finetuning):
    """Trains LoRA adapters and a new classification head; the model stays frozen."""

    name = "lora"
    description = "trains low-rank adapters and a new head, the model frozen"
    search_order = 2
    reads_initial_params = True
    relative_flops = 2 / 3

    def learning_rates(self, recipe):
        return recipe.lora_learning_rates

    def config(self, recipe, hparams):
        return dataclasses.replace(super().config(recipe, hparams), lora=recipe.lora)

    def dump(self, fitted):
        return {name: fitted.params[name] for name in ("adapters", "head")}, None

    def restore(self, model, arrays, state, hparams):
        arrays = jax.tree.map(jnp.asarray, arrays)
        params = lora.attach(model.initial_params(0), arrays["adapters"], model.recipe.lora)
        return FittedModel(arrays | {"model": params}, 0)

    def num_task_params(self, model):
        adapters = jax.eval_shape(
            lambda: lora.init(
                jax.random.key(0), model.initial_params(0)["layers"], model.recipe.lora
            )
        )
        return num_entries(adapters) + super().num_task_params(model)


class ProbeThenFinetuning(Finetuning):
    """Fine-tunes from a linear probe's head instead of zeros (LP-FT, Kumar et al. 2022)."""

    name = "lp_ft"
    description = "fits the head alone, then fine-tunes every parameter from there"
    search_order = 4

    def supports(self, model):
        return model.trainable and model.predicts_classes

    def init_head(self, model, train_idx, labels, seed):
        options = {"feature_config": model.recipe.finetune.feature_config, "final_only": True}
        states = extract_features(
            model.initial_params(seed),
            take(model.examples, train_idx),
            model.model_config,
            **options,
        )
        penalty = from_the_middle(model.recipe.l2_penalties)[0]
        probe = fit_probe(states[:, 0], labels, {"scale": "l2", "l2": penalty})
        return _head_of_probe(probe.params, probe.classifier.classes_, model.num_classes)


def _head_of_probe(weights: dict, seen: np.ndarray, num_classes: int) -> dict:
    """Returns a probe of rows of length 1 as the head that reads rows of root mean square 1."""
    kernel_KE, bias_K = weights["kernel"], weights["bias"]
    if len(kernel_KE) == 1:
        # Logistic regression has one vector for two classes.
        kernel_KE = np.concatenate([-kernel_KE, kernel_KE]) / 2
        bias_K = np.array([-0.5, 0.5]) * bias_K
    kernel = np.zeros((kernel_KE.shape[1], num_classes), np.float32)
    # A class without examples is as good as excluded, but can be learned.
    bias = np.full(num_classes, bias_K.min() - 5.0, np.float32)
    kernel[:, seen] = kernel_KE.T / kernel_KE.shape[1] ** 0.5
    bias[seen] = bias_K
    return {"kernel": kernel, "bias": bias}


class SelfTraining(Finetuning):
    """Fine-tunes on labels and on the fitted model's confident answers to unlabeled examples.

    Unlabeled to a seed is every example that is neither a test item nor among its own labels; the
    labels that other seeds draw are not looked at. Where none is left, the teacher is all.
    """

    name = "self_training"
    description = "fine-tunes again with its own confident answers to unlabeled examples"
    search_order = 5
    reads_unlabeled = True

    def supports(self, model):
        return model.trainable and model.predicts_classes

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [hparams | {"rounds": 0} for hparams in super().search_space(recipe)]

    def only_setting(self, model, num_labels):
        rounds = model.recipe.finetune.self_training_rounds
        hparams = super().only_setting(model, num_labels)
        if rounds is None or hparams is None:
            return None
        # Where nothing is left unlabeled, the teacher is all.
        return hparams | {"rounds": rounds if len(model.corpus_idx) > num_labels else 0}

    def search(self, model, train_idx, labels, seed, folds):
        trials = super().search(model, train_idx, labels, seed, folds)
        best = select_trial(trials)
        held_out = np.concatenate([each for _, each in folds])
        unlabeled_idx = unlabeled_sample(model, train_idx, seed)
        if not len(unlabeled_idx):
            return trials
        fixed = model.recipe.finetune.self_training_rounds
        most = fixed or SELF_TRAINING_ROUNDS
        predictions = [[] for _ in range(most)]
        hparams = best["config"] | {"rounds": most}
        for fit, held in folds:
            rounds = self._rounds(model, train_idx[fit], labels[fit], unlabeled_idx, seed, hparams)
            for n, (params, _) in enumerate(list(rounds)[1:]):
                predictions[n].append(model.predict_finetuned(params, train_idx[held]))
        for n, each in enumerate(predictions, start=1):
            config = best["config"] | {"rounds": n}
            trials.append(
                {
                    "config": config,
                    "validation": model.tune(
                        np.concatenate(each), train_idx[held_out], labels[held_out]
                    )[0],
                    "last_gain": best["last_gain"],
                    "flops": sum(self.flops(model, len(fit), config) for fit, _ in folds),
                }
            )
        return trials if fixed is None else trials[-1:]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        unlabeled_idx = unlabeled_sample(model, train_idx, seed)
        rounds = list(
            self._rounds(model, train_idx, labels, unlabeled_idx, seed, hparams, num_steps)
        )
        return FittedModel(rounds[-1][0], sum(steps for _, steps in rounds))

    def _rounds(self, model, train_idx, labels, unlabeled_idx, seed, hparams, num_steps=None):
        """Yields (parameters, steps) of the teacher, then of the student of each round."""
        fitted = super().fit(model, train_idx, labels, seed, hparams, num_steps=num_steps)
        yield fitted.params, fitted.steps
        params = fitted.params
        for _ in range(hparams["rounds"]):
            chosen, classes = pseudo_labels(model.predict_finetuned_proba(params, unlabeled_idx))
            times = repeats(len(labels), len(chosen))
            run = self.start(
                model,
                np.concatenate([np.tile(train_idx, times), unlabeled_idx[chosen]]),
                np.concatenate([np.tile(labels, times), classes]),
                seed,
                hparams,
                pad_to=max_examples(model.pad_to, model.recipe.finetune.max_unlabeled),
            )
            run.advance(self.student_steps(model, len(labels), hparams, len(unlabeled_idx)))
            params = run.finetuned()
            yield params, run.num_steps

    def student_steps(
        self, model: TaskModel, num_labels: int, hparams: HParams, num_unlabeled: int
    ) -> int:
        """Returns a student's steps: at least its teacher's, and 4 epochs of all it may get."""
        config = model.recipe.finetune
        every = num_unlabeled >= config.max_unlabeled
        most = max_examples(num_labels, config.max_unlabeled) if every else num_labels * 2
        return max(config.num_steps(num_labels, hparams.get("epochs")), config.num_steps(most, 4))

    def flops(self, model, num_labels, hparams):
        teacher = super().flops(model, num_labels, hparams)
        config, others = model.recipe.finetune, len(model.corpus_idx) - num_labels
        looked_at = min(max(others, 0), config.max_unlabeled)
        steps = self.student_steps(model, num_labels, hparams, looked_at)
        student = steps * config.batch_size * model.train_flops(config.tokens_kept)
        return teacher + hparams.get("rounds", 0) * (student + looked_at * model.feature_flops())


def unlabeled_sample(model: TaskModel, train_idx: np.ndarray, seed: int) -> np.ndarray:
    """Returns at most `max_unlabeled` examples that are not labeled, drawn by the seed, ascending.

    Args:
      model: with the examples.
      train_idx: the labeled examples of the seed.
      seed: draws them.
    """
    others = np.setdiff1d(model.corpus_idx, train_idx)
    order = np.random.default_rng([seed, 1]).permutation(len(others))
    return others[np.sort(order[: model.recipe.finetune.max_unlabeled])]
