"""Four tiny tasks in memory, of three kinds and two formats, and a study of them in seconds."""

import dataclasses

import numpy as np

from fm.adaptation.finetune import FinetuneConfig
from fm.data.datasets import Dataset
from fm.model.config import ModelConfig
from fm.study.config import JointRecipe, MultitaskConfig
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig
from tests.study.helpers_study import config as task_config
from tests.study.helpers_study import dataset, images, recipe, split, texts

BUDGETS = (8,)
BOTH = PretrainingObjective(causal_lm=0.5, masked_lm=0.5)
JOINT = JointRecipe(
    model=ModelConfig(num_layers=1, d_model=16, num_heads=1, num_kv_heads=1, mlp_dim=16),
    objectives=(("text", PretrainingObjective(causal_lm=1.0, masked_lm=0.0)), ("image", BOTH)),
    optimizer=OptimizerConfig("adamw", learning_rate=0.01),
    steps=3,
    batch_size=8,
    vocab_size=280,
    seq_len=16,
)


def with_columns(inputs, **columns):
    """Texts with further columns."""
    return dataclasses.replace(
        split(inputs, None),
        columns={
            name: lambda rows, values=values: [values[n] for n in rows]
            for name, values in columns.items()
        },
    )


def names(count, seed):
    """Sentences in which what follows "to" is a place."""
    draws = np.random.default_rng(seed)
    words, tags = [], []
    for _ in range(count):
        words.append(["we", "go", "to", "".join(draws.choice(list("abc"), 4))])
        tags.append(["O", "O", "O", "B-loc"])
    return with_columns([" ".join(own) for own in words], words=words, tags=tags)


def titles(count, seed):
    """Texts to be summed up by their first word."""
    made, _ = texts(count, seed)
    return with_columns(made, targets=[text.split()[0] for text in made])


def datasets():
    """Reviews, pictures, names and titles."""
    plain = {"description": "made up", "licence": "none", "split": "by hash", "rate": None}
    plain |= {"shape": None}
    tags = plain | {"fingerprint": "names", "tags": ["O", "B-loc", "I-loc"]}
    return [
        dataset("fruit", texts),
        dataset("halves", images),
        Dataset("names", "text", (), names(40, 0), names(12, 1), tags),
        Dataset("titles", "text", (), titles(40, 2), titles(12, 3), plain | {"fingerprint": "t"}),
    ]


def study(**changes):
    """All tasks, two seeds."""
    text = recipe("text", model=JOINT.model)
    image = recipe("image", model=JOINT.model, patch_size=2)
    recipes = {"fruit": text, "halves": image, "names": text, "titles": text}
    given = {
        "tasks": tuple(
            task_config(name, label_budgets=BUDGETS, recipe=own) for name, own in recipes.items()
        ),
        "joint": JOINT,
        "weights": (("fruit", 2.0),),
        "instruction_tuning": FinetuneConfig(min_steps=3, batch_size=8),
        "instruction_learning_rates": (3e-3,),
        "max_instruction_length": 128,
        "seeds": 2,
    }
    return MultitaskConfig(**given | changes)
