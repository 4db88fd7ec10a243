"""Text that streams: when it does, and that it trains as well as from memory."""

import dataclasses
import json

import numpy as np
import pytest

from fm.data.streaming.sources import TEST_SHARE
from fm.errors import UserError
from fm.study import streamed_text
from fm.study.pretraining import load_pretrained, pretrain_streamed, shares_rows
from fm.study.seen_examples import IDS_FILE, save_corpus_hashes, tell_seen_items
from fm.study.streamed_text import open_streamed
from fm.training import params_digest
from tests.data.streaming.made_text import make_documents
from tests.study.helpers_study import recipe, split

OPTIONS = {"text_column": "text", "label_column": "label", "encoding": "utf-8"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(make_documents(60_000)) + "\n")
    return path


def trained(path, out, seed=0, **changes):
    text = open_streamed(str(path), "always", OPTIONS)
    own = recipe("text", **changes)
    processor = text.build_processor(own, out)
    corpus = text.tokenized()
    return pretrain_streamed(corpus, own, processor, seed=seed, out_dir=out, run_name="toy")


def test_a_model_is_trained_and_loaded(path, tmp_path):
    result = trained(path, tmp_path / "a")
    assert result.steps == 4 and len(result.curve["validation"]) == 4
    found = load_pretrained(tmp_path / "a")
    assert params_digest(found.params) == params_digest(result.params)
    again = trained(path, tmp_path / "b")
    assert params_digest(again.params) == params_digest(result.params)
    other = trained(path, tmp_path / "c", seed=1)
    assert params_digest(other.params) != params_digest(result.params)


@pytest.mark.slow
def test_resumed_from_a_checkpoint_equals_an_unbroken_run(path, tmp_path, monkeypatch):
    given = {"keep_period": 2, "steps": 6}
    whole = trained(path, tmp_path / "whole", **given)
    from fm.training.train_loop import Trainer

    saving = Trainer._save

    def save_and_fail(self, data_states):
        saving(self, data_states)
        self._store.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", save_and_fail)
    with pytest.raises(KeyboardInterrupt):
        trained(path, tmp_path / "cut", **given)
    monkeypatch.undo()
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    resumed = trained(path, tmp_path / "cut", **given)
    assert params_digest(resumed.params) == params_digest(whole.params)


def test_auto_streams_by_size_and_says_so(path, monkeypatch, capsys):
    assert open_streamed(str(path), "auto", OPTIONS) is None
    assert not capsys.readouterr().err
    monkeypatch.setattr(streamed_text, "MAX_BYTES_IN_MEMORY", 2**14)
    assert open_streamed(str(path), "never", OPTIONS) is None
    assert open_streamed(str(path), "auto", OPTIONS) is not None
    assert "stream from disk, as over 0 MB do; --stream=never" in capsys.readouterr().err
    beside = OPTIONS | {"unlabeled": "b.txt"}
    assert open_streamed(str(path), "auto", beside) is None
    assert "as they cannot stream: --unlabeled=b.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("film_reviews", {}, "built-in data sets fit in memory"),
        (None, {"group_column": "author"}, "--group_column=author: is for data that fits"),
        (None, {"test": "b.txt"}, "--test=b.txt: is for data that fits"),
    ],
)
def test_always_is_refused_where_it_cannot_be(path, name, options, message):
    with pytest.raises(UserError, match="--stream=always: .*" + message):
        open_streamed(name or str(path), "always", OPTIONS | options)


def test_a_prepared_tfds_data_set_streams_its_train_split(tmp_path):
    from fm.data.load import load

    rows = "".join(f'"{text}",{n % 2}\n' for n, text in enumerate(make_documents(30_000)))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    loaded = load(str(tmp_path / "a.csv"))
    (folder,) = (tmp_path / "cache" / "files").glob("*/plain_files/*")
    text = open_streamed(str(folder), "always", OPTIONS)
    assert text.plan.files[0].kind == "tfds"
    scanned = text.scanned()
    kept = scanned.train + scanned.validation + scanned.duplicates
    assert kept + scanned.test == scanned.documents
    # Prepared with a test split, whose items are not in the train split.
    assert kept == len(loaded.train) and text.plan.test_share in (0.0, TEST_SHARE)


def test_a_pass_over_the_corpus(path, tmp_path):
    text, own = open_streamed(str(path), "always", OPTIONS), recipe("text")
    size = text.epoch_size(own)
    text.build_processor(own, tmp_path / "run")
    rows = text.tokenized().rows()
    tokens = sum(int((rows[n]["segments"] > 0).sum()) for n in range(len(rows)))
    assert (size.rows, size.tokens, size.noun) == (len(rows), tokens, "tokens")


def test_ids_of_the_corpus_find_test_items(tmp_path, capsys):
    texts = [f"text {n}" for n in range(50)]
    test = split(texts[:20], [0, 1] * 10)
    hashes = np.array([int(each[:16], 16) for each in split(texts[10:], None).ids], np.uint64)
    save_corpus_hashes(hashes, tmp_path)
    ids = np.load(tmp_path / IDS_FILE)
    assert ids.tolist() == sorted(each[:16].encode() for each in split(texts[10:], None).ids)
    tell_seen_items(tmp_path, test)
    assert "10 of 20 test items are copies" in capsys.readouterr().err


def test_rows_are_shared_as_in_memory():
    own = recipe("text")
    assert not shares_rows(own.objective)
    assert shares_rows(dataclasses.replace(own.objective, bag_of_words=0.0, causal_lm=1.0))


def test_the_columns_of_a_table(tmp_path):
    rows = [json.dumps({"body": text}) for text in make_documents(30_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"--text_column=text: .*it has: 'body'"):
        open_streamed(str(tmp_path / "a.jsonl"), "always", OPTIONS)
    found = open_streamed(str(tmp_path / "a.jsonl"), "always", OPTIONS | {"text_column": "body"})
    assert found.scanned().documents == len(rows)
