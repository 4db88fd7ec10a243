"""Experiments with recipes that take seconds, in a process that can be killed.

The processes are forked from one that has imported everything, so that startup is short.
"""

import dataclasses
import multiprocessing
import os
import resource
import sys
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments import ablate, adapt, cli, compare, multitask, predict, pretrain, text_quality
from fm.study import presets
from fm.study.text_quality import config
from tests.study.helpers_study import recipe
from tests.study.test_joint_pretraining import RECIPE
from tests.study.text_quality.helpers_text_quality import small

STEPS = 400
# JAX warns about threads, but has not started any at the fork.
warnings.filterwarnings("ignore", message=".*fork")
_EXPERIMENTS = {
    **{"ablate": ablate, "adapt": adapt, "compare": compare, "pretrain": pretrain},
    "predict": predict,
    **{"text_quality": text_quality, "multitask": multitask},
}
_TEXT_QUALITY = config.make_config


def start(name: str, flags: list[str], log: Path, max_bytes: int | None = None) -> BaseProcess:
    """Starts an experiment.

    Args:
      name: as in `python -m experiments.NAME`.
      flags: of the command line.
      log: file for its output.
      max_bytes: size limit of files, in place of a full disk.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    environment = {key: os.environ[key] for key in ("FM_CACHE",) if key in os.environ}
    process = context.Process(target=_main, args=(name, flags, str(log), max_bytes, environment))
    process.start()
    return process


def _main(
    name: str, flags: list[str], log: str, max_bytes: int | None, environment: dict[str, str]
) -> None:
    # The fork server has the environment of its first caller.
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(file, standard)
    if max_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    presets.modality_recipe = lambda modality, profile="default": recipe(modality, steps=STEPS)
    presets.joint_recipe = lambda profile="default": dataclasses.replace(RECIPE, steps=STEPS)
    config.make_config = lambda profile, domains, **where: small(
        _TEXT_QUALITY("quick", domains), where
    )
    module = _EXPERIMENTS[name]
    sys.exit(cli.call(name, module.__doc__, module.define, module.main, flags))
