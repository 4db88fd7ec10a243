"""Files such as a user has, of every kind that docs/own_data.md walks through, with the answers."""

from __future__ import annotations

import csv
import json
import pathlib
import wave

import numpy as np
from PIL import Image

LABELED, UNLABELED, NEW = 80, 200, 40
SIDE, RATE = 16, 8000
_WORDS = {
    "good": ["bright", "warm", "lovely", "clever", "moving", "honest", "gentle"],
    "bad": ["dull", "cold", "awful", "clumsy", "boring", "false", "harsh"],
}
_FILLER = [
    "the",
    "film",
    "and",
    "its",
    "cast",
    "make",
    "a",
    "story",
    "of",
    "two",
    "hours",
    "that",
    "we",
    "saw",
    "last",
    "night",
]
_TOPICS = {
    "sport": ["match", "goal", "team", "coach"],
    "money": ["bank", "price", "market", "loan"],
    "weather": ["rain", "storm", "cloud", "wind"],
}
_NAMES = {"PER": ["Anna", "Boris", "Carla", "Dora"], "LOC": ["Paris", "Quito", "Rome", "Oslo"]}


def write_all(folder: pathlib.Path) -> dict[str, list[str]]:
    """Writes the files of the walk into `folder`; returns the answers to each file of new items."""
    rng = np.random.default_rng(0)
    return {
        "new_reviews.csv": _reviews(folder, rng),
        "new_images": _images(folder, rng),
        "new_sounds": _sounds(folder, rng),
        "new_clips": _clips(folder, rng),
        "new_sentences.conll": _sentences(folder, rng),
        "new_stars.csv": _stars(folder, rng),
        "new_topics.csv": _topics(folder, rng),
    }


def _text(rng: np.random.Generator, words: list[str], own: int = 5, filler: int = 8) -> str:
    chosen = [*rng.choice(words, own), *rng.choice(_FILLER, filler)]
    return " ".join(rng.permutation(chosen))


def _table(path: pathlib.Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _reviews(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    """Writes labeled and unlabeled rows of one file, and a file of new ones."""
    rows, answers = [], []
    for n in range(LABELED + UNLABELED):
        label = ("good", "bad")[n % 2]
        rows.append([f"r{n:04d}", _text(rng, _WORDS[label]), label if n < LABELED else ""])
    _table(folder / "reviews.csv", ["id", "text", "label"], rows)
    with (folder / "reviews.jsonl").open("w", encoding="utf-8") as file:
        for key, text, label in rows:
            file.write(json.dumps({"id": key, "text": text, "label": label or None}) + "\n")
    new = []
    for n in range(NEW):
        answers.append(("good", "bad")[n % 2])
        new.append([f"n{n:04d}", _text(rng, _WORDS[answers[-1]])])
    _table(folder / "new_reviews.csv", ["id", "text"], new)
    return answers


def _image(rng: np.random.Generator, label: str) -> np.ndarray:
    """Returns noise with a bright bar, upright or lying."""
    pixels = rng.integers(0, 60, (SIDE, SIDE, 3))
    place = rng.integers(2, SIDE - 5)
    if label == "upright":
        pixels[:, place : place + 3] = 220
    else:
        pixels[place : place + 3] = 220
    return pixels.astype(np.uint8)


def _images(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    for label in ("upright", "lying"):
        (folder / "images" / label).mkdir(parents=True)
        for n in range(LABELED // 2):
            Image.fromarray(_image(rng, label)).save(folder / "images" / label / f"{n}.png")
    (folder / "new_images").mkdir()
    answers = [("upright", "lying")[n % 2] for n in range(NEW)]
    for n, label in enumerate(answers):
        Image.fromarray(_image(rng, label)).save(folder / "new_images" / f"{n:03d}.png")
    return answers


def _write_wav(path: pathlib.Path, rng: np.random.Generator, label: str) -> None:
    """Writes half a second of a low or high tone of random phase, with noise."""
    time = np.arange(RATE // 2) / RATE
    pitch = {"low": 300, "high": 1500}[label] * rng.uniform(0.9, 1.1)
    samples = np.sin(2 * np.pi * (pitch * time + rng.uniform())) + rng.normal(0, 0.1, len(time))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 8000).astype("<i2").tobytes())


def _sounds(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    (folder / "sounds").mkdir()
    for n in range(LABELED):
        label = ("low", "high")[n % 2]
        _write_wav(folder / "sounds" / f"{label}_voice{n % 5}_{n}.wav", rng, label)
    (folder / "new_sounds").mkdir()
    answers = [("low", "high")[n % 2] for n in range(NEW)]
    for n, label in enumerate(answers):
        _write_wav(folder / "new_sounds" / f"{n:03d}.wav", rng, label)
    return answers


def _write_clip(path: pathlib.Path, rng: np.random.Generator, label: str) -> None:
    """Writes four frames in which a bright square moves to the left or right."""
    row, frames = rng.integers(2, SIDE - 6), []
    for n in range(4):
        pixels = rng.integers(0, 40, (SIDE, SIDE, 3)).astype(np.uint8)
        column = 3 * n if label == "right" else 3 * (3 - n)
        pixels[row : row + 4, column : column + 4] = 230
        frames.append(Image.fromarray(pixels))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)


def _clips(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    for label in ("left", "right"):
        (folder / "clips" / label).mkdir(parents=True)
        for n in range(LABELED // 2):
            _write_clip(folder / "clips" / label / f"{n}.webp", rng, label)
    (folder / "new_clips").mkdir()
    answers = [("left", "right")[n % 2] for n in range(NEW)]
    for n, label in enumerate(answers):
        _write_clip(folder / "new_clips" / f"{n:03d}.webp", rng, label)
    return answers


def _sentence(rng: np.random.Generator) -> list[tuple[str, str]]:
    words = [(word, "O") for word in rng.choice(_FILLER, 6)]
    for kind, names in _NAMES.items():
        words.insert(rng.integers(0, len(words) + 1), (str(rng.choice(names)), f"B-{kind}"))
    return words


def _sentences(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    def write(path: pathlib.Path, sentences: list, *, tags: bool) -> None:
        lines = ["\n".join("\t".join(row) if tags else row[0] for row in s) for s in sentences]
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")

    (folder / "sentences").mkdir()
    write(folder / "sentences/train.conll", [_sentence(rng) for _ in range(LABELED)], tags=True)
    write(folder / "sentences/test.conll", [_sentence(rng) for _ in range(NEW)], tags=True)
    new = [_sentence(rng) for _ in range(NEW)]
    write(folder / "new_sentences.conll", new, tags=False)
    return [" ".join(tag for _, tag in sentence) for sentence in new]


def _stars(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    """Writes texts whose share of good words is the number to predict."""

    def row(key: str) -> tuple[list[str], str]:
        good = int(rng.integers(0, 7))
        words = [*rng.choice(_WORDS["good"], good), *rng.choice(_WORDS["bad"], 6 - good)]
        text = " ".join(rng.permutation([*words, *rng.choice(_FILLER, 6)]))
        return [key, text], f"{good / 2:.1f}"

    rows = [row(f"s{n:04d}") for n in range(LABELED)]
    _table(
        folder / "stars.csv", ["id", "text", "stars"], [[*first, stars] for first, stars in rows]
    )
    new = [row(f"n{n:04d}") for n in range(NEW)]
    _table(folder / "new_stars.csv", ["id", "text"], [first for first, _ in new])
    return [stars for _, stars in new]


def _topics(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    """Writes texts of one or several topics, joined by semicolons."""

    def row(key: str) -> tuple[list[str], str]:
        chosen = [topic for topic in _TOPICS if rng.uniform() < 0.5] or ["money"]
        words = [word for topic in chosen for word in rng.choice(_TOPICS[topic], 4)]
        text = " ".join(rng.permutation([*words, *rng.choice(_FILLER, 6)]))
        return [key, text], ";".join(sorted(chosen))

    rows = [[*first, own] for first, own in (row(f"t{n:04d}") for n in range(LABELED))]
    _table(folder / "topics.csv", ["id", "text", "topics"], rows)
    new = [row(f"n{n:04d}") for n in range(NEW)]
    _table(folder / "new_topics.csv", ["id", "text"], [first for first, _ in new])
    return [own for _, own in new]
