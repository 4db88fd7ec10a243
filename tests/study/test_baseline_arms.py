"""Arms without a neural network: what they choose, what they predict, what they may look at."""

import dataclasses

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fm.adaptation.task_model import TaskModel
from fm.evaluation.baselines import Examples, FeatureStore
from fm.evaluation.model_selection import select_trial
from fm.study.baseline_arms import (
    ClassicalNerArm,
    UntrainedTextArm,
    build_classical_arm,
    build_network_beside_classical_arm,
)
from tests.study.helpers_multitask import names

NAMES = (
    "words + characters, logistic regression",
    "words, linear SVC",
    "LSA-64 of words, linear SVC",
    "LSA-64 of words + LSA-64 of characters, label spreading",
)


@pytest.mark.parametrize("with_unlabeled", [False, True], ids=["labeled", "unlabeled"])
def test_the_classical_arm_finds_the_words_that_count(with_unlabeled):
    random = np.random.default_rng(0)
    labels = np.arange(90) % 2
    texts = [" ".join(f"w{n}" for n in random.integers(0, 9, 8) + 6 * k) for k in labels]
    unlabeled = (Examples(texts[60:]), 40) if with_unlabeled else ()
    with threadpool_limits(1, user_api="blas"):
        arm = build_classical_arm("text", FeatureStore(Examples(texts[:60]), *unlabeled), 40, 2)
        (family,) = arm.families
        members = {each.name: each for each in family.members}
        assert any("LSA" in name for name in members) == with_unlabeled
        few = [members[name] for name in NAMES if name in members]
        arm = dataclasses.replace(arm, families=[dataclasses.replace(family, members=few)])
        assert arm.prepare(2) >= 0
        train = np.arange(20)
        trials = arm.search(train, labels[:20], 0)
        predictions = arm.fit_predict(train, labels[:20], 0, select_trial(trials)["config"])
    tried = {trial["config"]["member"] for trial in trials}
    assert tried == set(NAMES if with_unlabeled else NAMES[:2])
    assert np.mean(predictions.values == labels[40:60]) > 0.7
    assert predictions.probabilities.shape == (20, 2)


class NetworkOfTwoCheckpoints(TaskModel):
    """Features that give the class away at the first checkpoint and are noise at the second.

    Of 40 labeled examples, 20 test items and then 30 unlabeled ones.
    """

    def __init__(self, labels):
        self.checkpoints = [{}, {}]
        self.test_from = 40
        self.unlabeled_idx = np.arange(60, 90)
        noise = np.random.default_rng(0).normal(size=(len(labels), 4))
        self.rows = [noise + 9.0 * labels[:, None], noise]

    def features(self, seed, idx):
        return self.rows[seed % 2][idx]

    def feature_flops(self):
        return 5.0


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.slow
def test_classical_models_see_the_features_of_the_checkpoint_of_their_seed(modality):
    random = np.random.default_rng(0)
    labels = np.arange(90) % 2
    inputs = random.integers(0, 256, (90, 8, 8, 1), np.uint8)
    if modality == "text":
        inputs = [" ".join(f"w{n}" for n in random.integers(0, 9, 8)) for _ in labels]
    store = FeatureStore(Examples(inputs[:60]), Examples(inputs[60:]), 40)
    network = NetworkOfTwoCheckpoints(labels)
    with threadpool_limits(1, user_api="blas"):
        arm = build_network_beside_classical_arm(modality, store, 40, 2, network)
        arm.prepare(4)
        accuracies = []
        for seed in range(4):
            trials = arm.search(np.arange(20), labels[:20], seed)
            assert all(each["config"]["member"].startswith("network + ") for each in trials)
            chosen = select_trial(trials)["config"]
            predicted = arm.fit_predict(np.arange(20), labels[:20], seed, chosen)
            accuracies.append(np.mean(predicted.values == labels[40:60]))
        if modality == "image":
            spreading = {"member": "network + pixels, label spreading", "restart": 0.5}
            first, second = (
                arm.fit_predict(np.arange(20), labels[:20], seed, spreading) for seed in (0, 1)
            )
            assert np.mean(first.values == labels[40:60]) == 1.0
            assert np.mean(second.values == labels[40:60]) < 0.9
    assert min(accuracies[::2]) == 1.0 and max(accuracies[1::2]) < 0.9
    assert arm.fit_flops(20, chosen) == 100.0


def test_the_classical_tagger_learns_what_follows_to():
    made = names(40, 0)
    every = range(40)
    arm = ClassicalNerArm(made.words(every), made.tags(every), 30)
    drawn, strata = np.arange(30), np.ones(30, int)
    trials = arm.search(drawn, strata, 0)
    assert len(trials) == 15 and max(trial["validation"] for trial in trials) == 1.0
    answers = arm.fit_predict(drawn, strata, 0, select_trial(trials)["config"])
    np.testing.assert_array_equal(answers.values, np.ones((10, 3)))
    assert answers.probabilities is None


def test_the_classical_writer_picks():
    inputs = ["One thing. More.", "Two things here. Less.", "One thing. Again."]
    arm = UntrainedTextArm(inputs, ["One thing.", "a pair", "One thing."], 2)
    first, nearest = arm.grid()
    drawn = np.arange(2)
    assert arm.fit_predict(drawn, drawn * 0, 0, first).values == pytest.approx([1.0])
    assert arm.fit_predict(drawn, drawn * 0, 0, nearest).values == pytest.approx([1.0])
    trials = arm.search(drawn, drawn * 0, 0)
    assert [trial["config"] for trial in trials] == [first, nearest]
