"""A corpus is tokenized once, resumably, into rows equal to those of the way through memory."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fm.data import tokenizer as bpe
from fm.data.batches import text_batches
from fm.data.readers.examples import TextFormat
from fm.data.splitting import is_test, text_digest
from fm.data.streaming import corpus, jobs, pool
from fm.data.streaming.sources import plan_text
from fm.data.tokenizer import tokenize_chunks
from fm.errors import UserError
from fm.files import read_checked_json
from tests.data.streaming.made_text import make_documents

ROOT = Path(__file__).parents[3]
LENGTH = 64


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def documents():
    return list(make_documents(200_000, seed=3))


@pytest.fixture
def tokenizer(tmp_path, documents):
    path = tmp_path / "tokenizer.json"
    bpe.train(documents[:100], 300).save(path)
    return path


def scan(path, part_bytes=40_000, workers=0, **options):
    plan = plan_text(path, TextFormat(**options))
    fingerprint = corpus.corpus_fingerprint(plan)
    return corpus.scan_corpus(plan, fingerprint, workers=workers, part_bytes=part_bytes)


def tokenize(scanned, tokenizer, workers=0, seq_len=LENGTH, share_rows=True):
    return corpus.tokenize_corpus(
        scanned, tokenizer, seq_len=seq_len, share_rows=share_rows, workers=workers
    )


def write(path, documents):
    path.write_text("\n".join(documents) + "\n")
    return path


def own_texts(scanned, action):
    """Texts that became so."""
    found = []
    for part in scanned.parts:
        becomes = np.load(scanned.actions_file(part.index))
        texts = [each.text for each in part.documents(jobs.Counter())]
        found += [text for text, own in zip(texts, becomes, strict=True) if own == action]
    return found


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("share_rows", [True, False])
def test_rows_equal_those_of_memory_on_the_same_documents(
    tmp_path, documents, tokenizer, share_rows
):
    scanned = scan(write(tmp_path / "a.txt", documents), part_bytes=10**9)
    assert len(scanned.parts) == 1
    found = tokenize(scanned, tokenizer, share_rows=share_rows)
    own, encoder = own_texts(scanned, jobs.TRAIN), bpe.load(tokenizer)
    chunks = tokenize_chunks(encoder, own, LENGTH)
    options = {"batch_size": 4, "seed": 1}
    expected = text_batches([chunks], length=LENGTH, share_rows=share_rows, **options)
    batches = found.batches(**options)
    for _ in range(2 * len(found.rows()) // 4 + 3):  # into the third epoch
        a, b = next(batches), next(expected)
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    counts = np.bincount(np.concatenate(chunks), minlength=encoder.vocab_size)
    counts[:4] = 0
    np.testing.assert_array_equal(found.counts_V, counts)
    assert found.manifest["bytes"] == sum(len(text.encode()) for text in own)


def test_processes_read_their_own_rows_of_the_same_batches(tmp_path, documents, tokenizer):
    found = tokenize(scan(write(tmp_path / "a.txt", documents)), tokenizer)
    whole = found.batches(8, 5)
    shards = [found.batches(8, 5).shard(index, 4) for index in range(4)]
    assert all(shard.from_disk for shard in shards)
    for n in range(12):
        if n == 7:  # resumed with another number of processes
            state = json.loads(json.dumps(shards[1].get_state()))
            shards = [found.batches(8, 5).shard(index, 2) for index in range(2)]
            for shard in shards:
                shard.set_state(state)
        expected, own = next(whole), [next(shard) for shard in shards]
        for key, value in expected.items():
            np.testing.assert_array_equal(np.concatenate([each[key] for each in own]), value)


def test_every_document_is_accounted_for(tmp_path, documents, tokenizer):
    lines = [*documents, *documents[:7], documents[0]]
    scanned = scan(write(tmp_path / "a.txt", lines))
    different = set(documents)
    assert len(scanned.parts) > 3
    assert scanned.documents == len(lines)
    assert scanned.duplicates == len(lines) - len(different)
    assert scanned.validation == round(0.02 * len(different))
    train = own_texts(scanned, jobs.TRAIN)
    held_out = own_texts(scanned, jobs.VALIDATION)
    assert len(train) == len(set(train)) == scanned.train
    assert set(train) | set(held_out) == different and not set(train) & set(held_out)
    assert "exact duplicates, left out" in scanned.describe()
    found = tokenize(scanned, tokenizer)
    tokens = found.manifest["tokens"]
    rows = list(found.rows()[n] for n in range(len(found.rows())))
    assert tokens == sum(int((row["tokens"] >= 4).sum()) for row in rows)
    ends = sum(int((row["tokens"] == 2).sum()) for row in rows)
    assert ends == scanned.train == found.manifest["validation"]["documents"] * 0 + ends


def test_the_manifest_says_what_was_made_of_what(tmp_path, documents, tokenizer):
    path = write(tmp_path / "a.txt", documents)
    found = tokenize(scan(path), tokenizer)
    manifest = read_checked_json(found.folder / corpus.MANIFEST_FILE)
    assert manifest["sources"] == [
        {"name": "a.txt", "bytes": path.stat().st_size, "sha256": manifest["sources"][0]["sha256"]}
    ]
    assert manifest["tokenizer"]["digest"] == bpe.load(tokenizer).digest()
    assert manifest["seq_len"] == LENGTH and manifest["rows"] == len(found.rows())
    assert manifest["validation"]["seed"] == 0 and manifest["validation"]["share"] == 0.02
    assert all(len(shard["sha256"]["rows"]) == 64 for shard in manifest["shards"])


def test_labeled_documents_of_the_test_share_are_left_out(tmp_path, documents):
    labels = ["good" if n % 2 else "" for n in range(len(documents))]
    rows = [
        json.dumps({"text": text, "label": label})
        for text, label in zip(documents, labels, strict=True)
    ]
    scanned = scan(write(tmp_path / "a.jsonl", rows))
    test = {
        text
        for text, label in zip(documents, labels, strict=True)
        if label and is_test(text_digest(text), 0.2)
    }
    assert test and set(own_texts(scanned, jobs.TEST)) == test
    assert not test & set(own_texts(scanned, jobs.TRAIN))
    unlabeled = scan(tmp_path / "a.jsonl", label_column="")
    assert unlabeled.test == 0


def test_several_processes_write_the_same(tmp_path, documents, tokenizer, monkeypatch):
    path = write(tmp_path / "a.txt", documents)
    here = tokenize(scan(path), tokenizer)
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "other"))
    there = tokenize(scan(path, workers=2), tokenizer, workers=2)
    assert here.folder != there.folder and contents(here.folder) == contents(there.folder)


def test_finished_shards_are_kept_and_damaged_ones_made_again(
    tmp_path, documents, tokenizer, monkeypatch
):
    path = write(tmp_path / "a.txt", documents)
    first = tokenize(scan(path), tokenizer)
    before = contents(first.folder)
    (first.folder / "manifest.json").unlink()
    (first.folder / "rows-00001.array_record").write_bytes(b"noise")
    (first.folder / "shard-00002.json").unlink()
    made = []
    writing = jobs.JOBS["write_shard"]
    monkeypatch.setitem(
        jobs.JOBS,
        "write_shard",
        lambda **given: made.append(given["part"]["index"]) or writing(**given),
    )
    again = tokenize(scan(path), tokenizer)
    assert made == [1, 2] and contents(again.folder) == before


def test_other_text_has_files_of_its_own(tmp_path, documents, tokenizer):
    path = write(tmp_path / "a.txt", documents)
    first = tokenize(scan(path), tokenizer)
    assert tokenize(scan(path), tokenizer, seq_len=32).folder != first.folder
    write(path, documents[:-1])
    os.utime(path, (1, 1))
    assert tokenize(scan(path), tokenizer).folder != first.folder


def test_a_file_that_changes_between_the_passes_is_told(tmp_path, documents, tokenizer):
    path = write(tmp_path / "a.txt", documents)
    scanned = scan(path, part_bytes=10**9)
    write(path, documents[:50])
    with pytest.raises(UserError, match="has changed while it was read"):
        tokenize(scanned, tokenizer)


def test_too_little_text(tmp_path):
    with pytest.raises(UserError, match="too little to pretrain on"):
        scan(write(tmp_path / "a.txt", ["one", "one"]))


def test_copies_are_found_in_buckets_too(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = [rng.integers(0, 2**64, 50, np.uint64) for _ in range(4)]
    hashes[2][5], hashes[3][0], hashes[1][7] = hashes[0][3], hashes[0][3], hashes[1][6]
    plain = corpus._repeated(hashes)
    assert [np.flatnonzero(each).tolist() for each in plain] == [[], [7], [5], [0]]
    monkeypatch.setattr(corpus, "_MAX_SORTED", 30)
    for a, b in zip(plain, corpus._repeated(hashes), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_killed_while_tokenizing_and_resumed(tmp_path, cache):
    from tests.data.streaming.made_text import write_text

    write_text(tmp_path / "text", 12, files=3)
    code = (
        "import sys, pathlib; from tests.data.streaming import test_corpus as t;"
        "from fm.data.streaming import corpus;"
        "s = t.scan(pathlib.Path(sys.argv[1]), part_bytes=1_000_000, workers=2);"
        "corpus.bpe.train(s.sample()[:200], 400).save(sys.argv[2]);"
        "print(t.tokenize(s, pathlib.Path(sys.argv[2]), workers=2).digest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "text"), str(tmp_path / "t.json")]

    def start(cache):
        env = os.environ | {"FM_CACHE": str(cache)}
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)

    killed, kept = start(cache), []
    while killed.poll() is None and len(kept) < 3:
        time.sleep(0.02)
        kept = list(cache.glob("text_rows/*/shard-*.json"))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert len(times) >= 3 and not list(cache.glob("text_rows/*/manifest.json"))
    resumed, whole = start(cache), start(tmp_path / "whole")
    digests = [each.communicate(timeout=300)[0].split()[-1] for each in (resumed, whole)]
    assert digests[0] == digests[1]
    assert all(path.stat().st_mtime_ns == own for path, own in times.items())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(jobs, "_WINDOW_CHARS", 2**18)
    peaks = []
    for name, size in (("small", 2 * 10**6), ("large", 12 * 10**6)):
        path = write(tmp_path / f"{name}.txt", make_documents(size))
        tracemalloc.start()
        scanned = scan(path, part_bytes=2**19)
        found = tokenize(scanned, tokenizer)
        batches = found.batches(8, 0)
        for _ in range(50):
            next(batches)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] < 60e6, peaks


def test_an_error_of_a_process_is_that_of_the_run(tmp_path):
    rows = ['{"text": "a"}\n' * 3000 + "broken\n", '{"text": "b"}\n' * 3000]
    for n, content in enumerate(rows):
        (tmp_path / f"{n}.jsonl").write_text(content)
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(2):
        (tmp_path / f"{n}.jsonl").rename(folder / f"{n}.jsonl")
    with pytest.raises(UserError, match=r"0\.jsonl, line [0-9]+ after byte .*: not JSON"):
        scan(folder, workers=2)


def test_a_process_that_is_ended_is_told(monkeypatch):
    monkeypatch.setattr(pool.subprocess, "Popen", _dying_worker(pool.subprocess.Popen))
    with pytest.raises(UserError, match="was ended; with little memory the system does that"):
        list(pool.run_jobs("digest_files", [{"paths": []}] * 4, workers=2))


def _dying_worker(popen):
    return lambda command, **options: popen([command[0], "-c", "import sys; sys.stdin"], **options)
