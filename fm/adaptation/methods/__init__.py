"""Adaptation methods: the protocol, the registry, and the built-in methods.

A method turns a model with labeled examples (a `TaskModel`) into a predictor. To add one, subclass
`AdaptationMethod` and pass an instance to `register_method`: studies, cost tables and the command
line iterate over `METHODS`.
"""

from fm.adaptation.methods.base import (
    METHODS,
    AdaptationMethod,
    FittedModel,
    HParams,
    check_methods,
    method_of,
    register_method,
)
from fm.adaptation.methods.finetuning import (
    Finetuning,
    LoraFinetuning,
    ProbeThenFinetuning,
    SelfTraining,
    regularization,
)
from fm.adaptation.methods.frozen import LinearProbing, Prompting, SupportVectorProbing

__all__ = [
    "METHODS",
    "AdaptationMethod",
    "Finetuning",
    "FittedModel",
    "HParams",
    "LinearProbing",
    "LoraFinetuning",
    "ProbeThenFinetuning",
    "Prompting",
    "SelfTraining",
    "SupportVectorProbing",
    "check_methods",
    "method_of",
    "register_method",
    "regularization",
]

for _method in (
    Finetuning(),
    LinearProbing(),
    LoraFinetuning(),
    Prompting(),
    ProbeThenFinetuning(),
    SelfTraining(),
    SupportVectorProbing(),
):
    register_method(_method)
