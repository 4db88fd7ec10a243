"""An adapted model becomes a folder of sequence classification with the same probabilities."""

import dataclasses
import json

import numpy as np
import pytest

from fm.errors import UserError
from fm.model.sizes import with_arch
from fm.study import presets, saved_model
from fm.study.adapted_model import adapted_model
from fm.study.export_classifier import export_adapted
from fm.study.processing import build_processor
from fm.study.tasks import prepare_task
from tests.study.helpers_study import config, dataset, loads, recipe, texts

HPARAMS = {
    "full": {"learning_rate": 1e-2, "weight_decay": 0.01, "epochs": 8},
    "probe": {"scale": "l2", "class_weight": None, "l2": 0.1},
}


@pytest.fixture
def saved(monkeypatch, tmp_path):
    """`saved(...)` is the folder of a model adapted to 16 labels, from fresh parameters."""

    def make(name="model", method="full", arch="llama", *, plain=True):
        found = dataset(make=texts)
        loads(monkeypatch, found)
        own = recipe("text")
        own = dataclasses.replace(own, model=with_arch(own.model, arch))
        own = presets.with_plain_head(own) if plain else own
        task = prepare_task(config(label_budgets=(16,), recipe=own), ("scratch",), 1)
        processor = build_processor(found.train, "text", own, tmp_path, None)
        arm = task.task_type.build_model_arm(task, processor, [], (method,))
        idx = np.arange(16)
        hparams = {"method": method, **HPARAMS[method]}
        fitted = arm.fit(task.pool_rows(idx), found.train.labels[idx], 1, hparams)
        adapted = adapted_model(
            arm.model,
            fitted,
            hparams,
            1,
            dataset=found,
            task_type=task.task_type,
            tokenizer=processor.tokenizer,
            run={
                "data": "fruit.csv",
                "fingerprint": "ab12",
                "num_labels": 16,
                "num_test_items": 12,
                "metrics": {"accuracy": 0.75},
            },
        )
        saved_model.save(tmp_path / name, adapted)
        return tmp_path / name

    return make


def test_the_files_of_a_classifier(saved, tmp_path):
    export_adapted(saved(), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["architectures"] == ["LlamaForSequenceClassification"]
    assert found["id2label"] == {"0": "a", "1": "b"} and found["pad_token_id"] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "| fruit.csv | labels | 16 |",
        "accuracy, 12 test items | 75.0% [46.8%, 91.1%]",
        "Classes: a, b.",
    ):
        assert part in card, part


@pytest.mark.parametrize(
    "changes",
    [{"plain": False}, {"method": "probe"}, {"arch": "fm"}],
    ids=str,
)
def test_what_transformers_does_not_compute_is_refused(saved, tmp_path, changes):
    with pytest.raises(UserError, match=r"transformers has no .* that computes this one") as error:
        export_adapted(saved(**changes), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_transformers_gives_the_same_probabilities(saved, tmp_path):
    """Short texts, an empty one and those that are cut, alone and padded in a batch."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = saved()
    export_adapted(folder, tmp_path / "out")
    inputs = [*texts(6, 3)[0], "", "x", " ".join(texts(20, 4)[0]), "<|eos|> is text"]
    expected = saved_model.load(folder).predict(inputs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == "LlamaForSequenceClassification"
    batch = tokenizer(inputs, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits.softmax(-1).numpy()
    np.testing.assert_allclose(together, expected.probabilities, atol=1e-5)
    assert np.ptp(together[:, 0]) > 0.01
    classify = transformers.pipeline(
        "text-classification", model=str(tmp_path / "out"), truncation=True
    )
    labels = [each["label"] for each in classify(inputs)]
    assert labels == [("a", "b")[n] for n in expected.values]
