"""Training: objectives, optimizer, train step, training loop, sweeps, checkpoints and logs."""

from fm.training.checkpoint import load_params
from fm.training.config import TrainConfig, TrainResult
from fm.training.metric_units import BitsPerByte, BitsPerDimension, PerGroupUnits
from fm.training.multitask import MultitaskObjective
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig
from fm.training.signals import Interrupted
from fm.training.train_loop import train, validate
from fm.training.train_state import params_digest
from fm.training.trial import Trial

__all__ = [
    "BitsPerByte",
    "BitsPerDimension",
    "Interrupted",
    "MultitaskObjective",
    "OptimizerConfig",
    "PerGroupUnits",
    "PretrainingObjective",
    "TrainConfig",
    "TrainResult",
    "Trial",
    "load_params",
    "params_digest",
    "train",
    "validate",
]
