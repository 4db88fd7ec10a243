"""Two small domains of made-up prose, a study of them that takes seconds, a published model."""

import dataclasses

import numpy as np

from fm.hf import PretrainedModel, save_pretrained
from fm.hf.tokenizer import HFTokenizer
from fm.model.config import ModelConfig
from fm.model.sampling import SamplingConfig
from fm.study.text_quality import config as profiles
from tests.hf import helpers_hf as published
from tests.hf.helpers_gguf import byte_bpe

_NOUNS = {
    "films": "film actor story scene plot music hero ending camera director",
    "manuals": "array value index matrix column function argument shape result error",
}
_VERBS = {
    "films": "loves spoils carries ruins follows hates",
    "manuals": "returns raises computes holds takes ignores",
}


def texts(name, count, seed):
    """Texts of about 60 words with the grammar of one sentence."""
    draws = np.random.default_rng(seed)

    def sentence():
        first, second = draws.choice(_NOUNS[name].split(), 2)
        number = draws.integers(1000)
        return f"The {first} {draws.choice(_VERBS[name].split())} the {second} {number} times."

    return [" ".join(sentence() for _ in range(8)) for _ in range(count)]


def write_domains(folder, count=400):
    """A text file a domain, a text a line; their paths."""
    paths = []
    for seed, name in enumerate(_NOUNS):
        path = folder / f"{name}.jsonl"
        lines = [f'{{"text": "{text}"}}' for text in texts(name, count, seed)]
        path.write_text("\n".join(lines))
        paths.append(str(path))
    return tuple(paths)


def write_model(folder, family="bert", seed=0):
    """A published model of random numbers that reads any text."""
    tokenizer = HFTokenizer(byte_bpe())
    config = dataclasses.replace(published.CASES[family][1], vocab_size=tokenizer.vocab_size)
    made = PretrainedModel(config, published.params(config, seed), tokenizer, family=family)
    save_pretrained(folder, made)
    return folder


def study(domains, **changes):
    """Five arms of 16 steps, three decodings, 12 texts a sample."""
    return small(profiles.make_config("quick", domains), changes)


def small(quick, changes):
    """The quick study made quicker, with changes."""
    sizes = {
        "model": ModelConfig(num_layers=1, d_model=16, num_heads=1, num_kv_heads=1, mlp_dim=32),
        "sampling_configs": (
            SamplingConfig(),
            SamplingConfig(temperature=0.5),
            SamplingConfig(top_p=0.9),
        ),
        "steps": 16,
        "batch_size": 4,
        "vocab_size": 300,
        "seq_len": 40,
        "train_bytes": 60_000,
        "num_texts": 12,
        "prompt_tokens": 6,
        "max_new_tokens": 24,
        "num_held_out": 40,
    }
    return dataclasses.replace(quick, **sizes | changes)
