"""A folder of checkpoints, and what comes back from it."""

from fm.training import optimizer, train_state
from fm.training.checkpoint import CheckpointStore
from tests.training.helpers_models import ADAM, TEXT, params

CONFIG = {"model": {"num_layers": 2, "d_model": 32}, "run": {"seed": 0}}


def new_state(seed=0):
    return train_state.init_train_state(params(TEXT, seed), optimizer.build(ADAM, 10))


def save_steps(folder, steps=(1, 2, 3), **options):
    with CheckpointStore(folder, **options) as store:
        for step in steps:
            progress = {"step": step, "data": {"next": step}}
            store.save(step, new_state(step), progress, CONFIG)


def restore(folder, config=CONFIG):
    with CheckpointStore(folder) as store:
        return store.restore(new_state(), config)
