"""A folder of checkpoints, and what comes back from it."""

from fm.training import optimizer, train_state
from fm.training.checkpoint import CheckpointStore
from tests.training.helpers_models import ADAM, TEXT, params

CONFIG = {"model": {"depth": 2, "width": 32}, "run": {"seed": 0}}


def fresh(seed=0):
    return train_state.init_train_state(params(TEXT, seed), optimizer.build(ADAM, 10))


def filled(folder, steps=(1, 2, 3), keep=2, keep_every=None):
    store = CheckpointStore(folder, max_to_keep=keep, keep_period=keep_every)
    for step in steps:
        store.save(step, fresh(step), {"step": step, "data": {"next": step}}, CONFIG)
    store.close()


def restored(folder, config=CONFIG):
    store = CheckpointStore(folder)
    try:
        return store.restore(fresh(), config)
    finally:
        store.close()
