"""Experiments with recipes that take seconds, in a process that can be killed.

The processes are forks of one that has imported everything and computed nothing: what is killed is
work, not the reading of libraries.
"""

import dataclasses
import multiprocessing
import os
import resource
import sys
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments import ablate, adapt, cli, compare, multitask, pretrain, text_quality
from fm.study import presets
from fm.study.text_quality import config
from tests.study.helpers_study import recipe
from tests.study.test_joint_pretraining import RECIPE
from tests.study.text_quality.helpers_text_quality import small

STEPS = 400  # a hundred between checkpoints, where no flag says otherwise
# JAX warns of threads, which it has not started by then.
warnings.filterwarnings("ignore", message=".*fork")
_EXPERIMENTS = {
    **{"ablate": ablate, "adapt": adapt, "compare": compare, "pretrain": pretrain},
    **{"text_quality": text_quality, "multitask": multitask},
}
_TEXT_QUALITY = config.make_config


def start(name: str, flags: list[str], said: Path, room: int | None = None) -> BaseProcess:
    """Starts an experiment.

    Args:
      name: as in `python -m experiments.NAME`.
      flags: of the command line.
      said: file for what it prints.
      room: most bytes a file may have: what a full disk does, without one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    environment = {key: os.environ[key] for key in ("FM_CACHE",) if key in os.environ}
    process = context.Process(target=_main, args=(name, flags, str(said), room, environment))
    process.start()
    return process


def _main(
    name: str, flags: list[str], said: str, room: int | None, environment: dict[str, str]
) -> None:
    # The server keeps the environment of whoever was first.
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(file, standard)
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    presets.modality_recipe = lambda modality, profile="default": recipe(modality, steps=STEPS)
    presets.joint_recipe = lambda profile="default": dataclasses.replace(RECIPE, steps=STEPS)
    config.make_config = lambda profile, domains, **where: small(
        _TEXT_QUALITY("quick", domains), where
    )
    module = _EXPERIMENTS[name]
    sys.exit(cli.call(name, module.__doc__, module.define, module.main, flags))
