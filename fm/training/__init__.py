"""Training: objectives, optimiser, one jitted step, the loop round it, checkpoints."""

from fm.training.checkpoint import load_params
from fm.training.interrupt import Interrupted
from fm.training.joint import Joint
from fm.training.loop import train
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.run import RunConfig, Trained
from fm.training.state import params_digest
from fm.training.trainer import validate
from fm.training.unit import BitsPerByte, BitsPerDimension, Each

__all__ = [
    "BitsPerByte",
    "BitsPerDimension",
    "Each",
    "Interrupted",
    "Joint",
    "Objective",
    "OptimizerConfig",
    "RunConfig",
    "Trained",
    "load_params",
    "params_digest",
    "train",
    "validate",
]
