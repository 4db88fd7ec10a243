# ruff: noqa: D102 (methods inherit the docstrings of `AdaptationMethod`)
"""Methods that leave the network as it is: linear probe, support vectors, prompts."""

from __future__ import annotations

from fm.adaptation.finetune import MemoryFootprint
from fm.adaptation.linear_probe import CLASS_WEIGHTS, SCALES
from fm.adaptation.methods.base import (
    AdaptationMethod,
    FittedModel,
    cross_validated_trials,
    num_bytes,
)
from fm.adaptation.svc import fit_svc, svc_grid
from fm.adaptation.targets import class_weight_choices
from fm.evaluation.model_selection import from_the_middle


class LinearProbing(AdaptationMethod):
    """Fits logistic regression, or ridge regression of numbers, to frozen features."""

    name = "probe"
    description = "logistic regression on frozen features"
    search_order = 0
    reads_features = True

    def supports(self, model):
        return True

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [
            {"method": self.name, "scale": scale, "class_weight": weight, "l2": penalty}
            for scale in SCALES
            for weight in CLASS_WEIGHTS
            for penalty in from_the_middle(recipe.l2_penalties)
        ]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        probe = model.fit_probe(seed, train_idx, labels, hparams)
        return FittedModel(probe.params, probe.steps, (probe, seed))

    def predict(self, model, fitted, idx):
        probe, seed = fitted.state
        return model.predict_probe(probe, seed, idx)

    def predict_proba(self, model, fitted, idx):
        probe, seed = fitted.state
        return model.predict_probe_proba(probe, seed, idx)

    def dump(self, fitted):
        probe, _ = fitted.state
        return probe.dump()

    def restore(self, model, arrays, state, hparams):
        probe = model.restore_probe(arrays, state)
        return FittedModel(probe.params, probe.steps, (probe, 0))

    def search(self, model, train_idx, labels, seed, folds):
        return [
            {"config": {"method": self.name} | hparams, "validation": score, "flops": 0.0}
            for hparams, score in model.search_probe(seed, train_idx, labels, folds)
        ]

    def flops(self, model, num_labels, hparams):
        return num_labels * model.feature_flops()

    def footprint(self, model, train_idx, labels, hparams):
        return MemoryFootprint(
            self.num_task_params(model), num_bytes(model.initial_params(0)), None
        )

    def num_task_params(self, model):
        return (model.num_features() + 1) * model.head_target.num_probe_vectors


class SupportVectorProbing(LinearProbing):
    """Fits a support-vector classifier with an RBF kernel to frozen features."""

    name = "svc"
    description = "RBF support-vector classifier on frozen features"
    search_order = 6

    def supports(self, model):
        return model.predicts_classes

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [{"method": self.name} | hparams for hparams in svc_grid(SCALES, CLASS_WEIGHTS)]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        probe = model.fit_svc(seed, train_idx, labels, hparams)
        return FittedModel(probe.params, probe.steps, (probe, seed))

    def predict_proba(self, model, fitted, idx):
        return None

    def restore(self, model, arrays, state, hparams):
        # Fitted again to the same features: scikit-learn has no other way in.
        probe = fit_svc(arrays["features"], arrays["labels"], hparams)
        return FittedModel(probe.params, probe.steps, (probe, 0))

    def search(self, model, train_idx, labels, seed, folds):
        weights = class_weight_choices(labels)
        grid = [h for h in self.search_space(model.recipe) if h["class_weight"] in weights]
        trials = cross_validated_trials(self, model, train_idx, labels, seed, folds, grid)
        return [trial | {"flops": 0.0} for trial in trials]

    def num_task_params(self, model):
        # At most all examples are support vectors.
        return model.pad_to * (model.num_features() + model.num_classes - 1)


class Prompting(AdaptationMethod):
    """Predicts the likeliest answer to a prompt, zero-shot or few-shot; nothing is trained."""

    name = "prompt"
    description = "zero- or few-shot prompts of a causal language model"
    search_order = 3
    published_models_only = True

    def supports(self, model):
        return bool(model.num_fewshot)

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [
            {"method": self.name, "shots": shots, "calibrated": calibrated}
            for shots in num_fewshot
            for calibrated in (False, True)
        ]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        solved = model.solved_examples(train_idx[: hparams["shots"]], labels)
        return FittedModel(model.initial_params(seed), 0, (solved, hparams))

    def predict(self, model, fitted, idx):
        return model.predict_prompted(idx, *fitted.state)

    def dump(self, fitted):
        solved, _ = fitted.state
        return {}, {"solved": solved}

    def restore(self, model, arrays, state, hparams):
        solved = [(str(text), int(label)) for text, label in state["solved"]]
        return FittedModel(model.initial_params(0), 0, (solved, hparams))

    def flops(self, model, num_labels, hparams):
        return 0.0

    def footprint(self, model, train_idx, labels, hparams):
        return MemoryFootprint(0, num_bytes(model.initial_params(0)), None)

    def num_task_params(self, model):
        return 0
