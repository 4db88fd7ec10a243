"""Of models tuned for every seed and budget, predictions stay and few parameters."""

import types

import numpy as np
import pytest

from fm.study.multitask_instructions import InstructionTunedArm, InstructionTunedModels

BUDGETS, SEEDS, RATES = (8, 16), 8, (0.1, 0.2)


@pytest.fixture
def models(monkeypatch):
    def task(number):
        config = types.SimpleNamespace(label_budgets=BUDGETS)
        return types.SimpleNamespace(
            task=types.SimpleNamespace(config=config),
            test_idx=np.arange(3),
            predict=lambda params, encoder, idx: params["w"] + number + idx,
        )

    made = InstructionTunedModels(
        None, None, None, RATES, {"a": task(0), "b": task(100)}, keeps_params=True
    )
    tuned = []

    def tune(self, num_labels, seed, hparams, hold_out):
        tuned.append((num_labels, seed, hparams["learning_rate"], hold_out))
        return {"w": np.float32(1000 * num_labels + seed)}

    monkeypatch.setattr(InstructionTunedModels, "_tune", tune)
    monkeypatch.setattr(InstructionTunedModels, "fold", lambda *_: (np.arange(2), np.array([7])))
    made.tuned = tuned
    return made


def test_each_model_is_tuned_once_and_few_are_kept(models):
    for name in ("a", "b"):
        arm = InstructionTunedArm(models, name)
        for num_labels in BUDGETS:
            for seed in range(SEEDS):
                for rate in RATES:
                    rows, hparams = np.arange(num_labels), {"learning_rate": rate}
                    found = arm.fit_predict(rows, rows, seed, hparams).values
                    expected = 1000 * num_labels + seed + 100 * (name == "b") + np.arange(3)
                    np.testing.assert_array_equal(found, expected)
            hparams = {"learning_rate": RATES[0]}
            assert models.predictions(name, num_labels, 0, hparams, hold_out=True).size == 1
    assert len(models.tuned) == len(set(models.tuned)) == len(BUDGETS) * (SEEDS * len(RATES) + 1)
    # Those that the table of changed instructions asks for.
    before = len(models.tuned)
    for seed in range(3):
        assert models.tuned_params(16, seed, {"learning_rate": 0.1})["w"] == 16000 + seed
    assert len(models.tuned) == before and len(models._kept) == 3


def test_the_first_task_asked_pays_for_all_and_all_share_it(models):
    first, second = (InstructionTunedArm(models, name) for name in ("a", "b"))
    assert first.share_cpu_seconds(8, 9.0) == 9.0 / len(models.tasks)
    assert second.share_cpu_seconds(8, 0.1) == 9.0 / len(models.tasks)
    assert second.share_cpu_seconds(16, 2.0) == 2.0 / len(models.tasks)
