"""The studies by size, and the training sets they compare."""

from __future__ import annotations

import dataclasses

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.sampling import Decoding
from fm.study.text_quality.config import Diet, Part, TextQualityConfig
from fm.training.optimizer import OptimizerConfig

# Whose vectors a profile compares texts by: in the quick one nothing is fetched.
FEATURES = {"quick": "terms", "default": "minilm-l6", "full": "minilm-l6"}
PROFILES = tuple(FEATURES)
FEW = 1 / 16


def diets(profile: str) -> tuple[Diet, ...]:
    """The arms, for a first and a second domain."""
    a, b, few = Part("A"), Part("B"), Part("B", texts=FEW)
    every = (
        Diet("A", "A alone.", (a,), ("A",)),
        Diet("A75 B25", "Three parts A, one part B.", (Part("A", 3.0), b), ("A", "B")),
        Diet("A50 B50", "A and B in equal parts.", (a, b), ("A", "B")),
        Diet("A25 B75", "One part A, three parts B.", (a, Part("B", 3.0)), ("A", "B")),
        Diet("B", "B alone.", (b,), ("B",)),
        Diet(
            "A repeats",
            "Half of it all of A, half of it one in 64 of its texts, over and over.",
            (a, Part("A", texts=1 / 64)),
            ("A",),
        ),
        Diet(
            "A noisy",
            "Half of it A, half of it A with one character in ten dropped, doubled or replaced.",
            (a, Part("A", noise=0.1)),
            ("A",),
        ),
        Diet("A 1/8", "One in 8 texts of A, in more passes.", (Part("A", texts=1 / 8),), ("A",)),
        Diet("A 1/64", "One in 64 texts of A, in many passes.", (Part("A", texts=1 / 64),), ("A",)),
        Diet("few B", "One in 16 texts of B, from scratch.", (few,), ("B",)),
        Diet(
            "A, few B",
            "Pretrained on A for half of the tokens, then tuned on the same few texts of B.",
            (few,),
            ("B",),
            start="A",
        ),
    )
    if profile != "quick":
        return every
    kept = ("A", "A50 B50", "A 1/64", "few B", "A, few B")
    return tuple(diet for diet in every if diet.name in kept)


DECODINGS = (
    Decoding(),
    Decoding(temperature=0.7),
    Decoding(temperature=0.4),
    Decoding(temperature=1.3),
    Decoding(top_p=0.6),
    Decoding(top_p=0.9),
    Decoding(min_p=0.1),
)


def study(profile: str, domains: tuple[str, str], **where) -> TextQualityConfig:
    """The study of a profile.

    Args:
      profile: one of `PROFILES`.
      domains: data sets A and B.
      **where: fields that say where data lies.

    Raises:
      UserError: an unknown profile.
    """
    if profile not in PROFILES:
        raise UserError(f"profile {profile!r} is not known; accepted are {', '.join(PROFILES)}")
    default = TextQualityConfig(
        domains=domains,
        diets=diets(profile),
        decodings=DECODINGS,
        model=ModelConfig(depth=2, width=128, heads=2, kv_heads=2, hidden=512),
        optimizer=OptimizerConfig(learning_rate=0.02, adam_learning_rate=0.01),
        steps=160,
        batch_size=40,
        vocab=1024,
        length=96,
        train_bytes=3_500_000,
        texts=128,
        prompt_tokens=12,
        new_tokens=64,
        held_out=512,
        **where,
    )
    if profile == "full":
        return dataclasses.replace(
            default,
            steps=12 * default.steps,
            texts=512,
            train_bytes=40_000_000,
            held_out=2048,
            early=len(DECODINGS),
        )
    if profile == "quick":
        return dataclasses.replace(
            default,
            model=ModelConfig(depth=1, width=64, heads=2, kv_heads=2, hidden=128),
            decodings=(DECODINGS[0], DECODINGS[2], DECODINGS[5]),
            steps=24,
            batch_size=16,
            vocab=512,
            train_bytes=300_000,
            texts=24,
            held_out=96,
        )
    return default
