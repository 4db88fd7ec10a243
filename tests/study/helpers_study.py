"""Small data in memory, and recipes whose runs take seconds."""

import numpy as np

from fm.adaptation.features import FeatureConfig
from fm.adaptation.finetune import FinetuneConfig
from fm.data.datasets import Dataset, Split
from fm.data.splitting import array_digest, text_digest
from fm.model.config import ModelConfig
from fm.study.cells import Cell
from fm.study.config import Recipe, TaskConfig
from fm.study.task import Task
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig

MODEL = ModelConfig(num_layers=1, d_model=16, num_heads=1, num_kv_heads=1, mlp_dim=32)


def recipe(modality="image", **changes):
    """A recipe of two settings and four steps."""
    own = (
        {"patch_size": 4, "objective": PretrainingObjective(causal_lm=0.5, masked_lm=0.5)}
        if modality == "image"
        else {
            "vocab_size": 280,
            "seq_len": 16,
            "num_windows": 2,
            "objective": PretrainingObjective(causal_lm=0.0, masked_lm=0.0, bag_of_words=1.0),
        }
    )
    common = {
        "model": MODEL,
        "optimizer": OptimizerConfig(),
        "steps": 4,
        "batch_size": 8,
        "finetune": FinetuneConfig(
            min_steps=4,
            batch_size=8,
            feature_config=FeatureConfig("concat" if modality == "image" else "mean"),
        ),
        "learning_rates": (3e-3,),
        "l2_penalties": (0.03,),
    }
    return Recipe(**common | own | changes)


def split(inputs, labels):
    """Texts or images in memory."""
    digest = text_digest if isinstance(inputs, list) else array_digest

    def read(rows):
        return [inputs[n] for n in rows] if isinstance(inputs, list) else inputs[rows]

    return Split(
        None if labels is None else np.asarray(labels, np.int32),
        tuple(digest(each) for each in inputs),
        np.arange(len(inputs)),
        read,
    )


def texts(count, seed, words="apple pear plum fig"):
    """Texts of 20 words drawn from two vocabularies by class."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    choices = [np.array(words.split()), np.array([word[::-1] for word in words.split()])]
    return [" ".join(draws.choice(choices[label], 20)) for label in labels], labels


def images(count, seed, side=8):
    """Noise whose left or right half is bright, by class."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = draws.integers(0, 128, (count, side, side, 1))
    pixels[labels == 0, :, : side // 2] += 127
    pixels[labels == 1, :, side // 2 :] += 127
    return pixels.astype(np.uint8), labels


def dataset(name="fruit", make=texts, train=40, test=12):
    """A labelled data set of two classes."""
    parts = split(*make(train, 0)), split(*make(test, 1))
    info = {
        "description": "made up",
        "licence": "none",
        "fingerprint": name,
        "split": "by hash",
        "shape": [8, 8, 1] if make is images else None,
        "rate": None,
    }
    return Dataset(name, "image" if make is images else "text", ("a", "b"), *parts, info)


def loads(monkeypatch, *datasets):
    """Makes `fm.study.tasks` load these."""
    known = {each.name: each for each in datasets}
    monkeypatch.setattr("fm.study.tasks.load", lambda name, **_: known[name])


def config(dataset="fruit", **changes):
    """A task with two budgets."""
    given = {
        "dataset": dataset,
        "out_of_domain_dataset": None,
        "label_budgets": (8, 16),
        "recipe": recipe("text"),
    }
    return TaskConfig(**given | changes)


def guessed(task: Task, arms: dict[str, float], seeds=3, seed=0):
    """Cells with random predictions: each arm right with a probability of its own."""
    draws = np.random.default_rng(seed)
    truth = np.asarray(task.test.labels)
    cells = []
    for arm, skill in arms.items():
        for labels in task.config.label_budgets:
            right = draws.random((seeds, len(truth))) < skill
            hparams = [{"method": "probe"}] * seeds
            trials = [[{"config": each, "validation": 0.5}] for each in hparams]
            predictions = np.where(right, truth, 1 - truth)
            flops = [1e6] * seeds
            cells.append(
                Cell(
                    task.name, arm, labels, hparams, trials, predictions, None, flops, 0.1, 0.0, 0.0
                )
            )
    return cells
