"""Makes text of any size for tests: documents of pseudo-words, one a line.

    python -m tests.data.streaming.made_text --megabytes=3000 --out=/tmp/made_text

Words follow Zipf's law; documents are 3 to 300 of 50,000 sentences, and 1% are exact copies.
"""

import argparse
import pathlib

import numpy as np

NUM_WORDS, NUM_SENTENCES = 30_000, 50_000
_SYLLABLES = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")]


def make_sentences(rng, count):
    """Returns sentences of 4 to 16 words; the most frequent words are the shortest."""
    lengths = np.sort(rng.integers(2, 5, NUM_WORDS))
    syllables = np.split(rng.choice(_SYLLABLES, lengths.sum()), np.cumsum(lengths)[:-1])
    words = np.array(["".join(each) for each in syllables])
    shares = np.cumsum(1.0 / np.arange(1, NUM_WORDS + 1))
    sizes = rng.integers(4, 17, count)
    drawn = words[np.searchsorted(shares / shares[-1], rng.random(sizes.sum()))]
    return [" ".join(each) + "." for each in np.split(drawn, np.cumsum(sizes)[:-1])]


def make_documents(num_bytes, seed=0):
    """Yields documents without line ends until they have so many bytes."""
    rng = np.random.default_rng(seed)
    sentences = make_sentences(rng, min(NUM_SENTENCES, num_bytes // 40 + 10))
    made, last = 0, ""
    while made < num_bytes:
        sizes = np.clip(rng.lognormal(2.6, 0.8, 500), 3, 300).astype(int)
        drawn = rng.integers(0, len(sentences), sizes.sum()).tolist()
        is_copy = rng.random(500) < 0.01
        start = 0
        for size, copied in zip(sizes.tolist(), is_copy.tolist(), strict=True):
            own = drawn[start : start + size]
            start += size
            last = last if copied and last else " ".join([sentences[n] for n in own])
            made += len(last) + 1
            yield last


def write_text(folder, megabytes, files=10, seed=0):
    """Writes .txt files of one document a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(files):
        with (folder / f"part-{index:02d}.txt").open("w") as file:
            for document in make_documents(megabytes * 10**6 // files, 1000 * seed + index):
                file.write(document + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    given = parser.parse_args()
    write_text(given.out, given.megabytes)
