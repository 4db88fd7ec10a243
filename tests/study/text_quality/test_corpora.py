import dataclasses

import numpy as np
import pytest

from fm.errors import UserError
from fm.study.text_quality import config as profiles
from fm.study.text_quality import corpora
from fm.study.text_quality.config import CorpusPart
from fm.study.text_quality.corpora import Domain
from fm.study.text_quality.scoring import decode_tokens, draw_real_samples, encode_for_scoring
from fm.study.text_quality.training import slug
from tests.study.text_quality import helpers_text_quality as helpers


@pytest.fixture(scope="module")
def found():
    return {
        letter: Domain(letter, name, helpers.texts(name, 64, 0), [], [], {}, {})
        for letter, name in zip("AB", ("films", "manuals"), strict=True)
    }


@pytest.fixture(scope="module")
def tokenizer(found, tmp_path_factory):
    return corpora.load_or_train_tokenizer(found, 300, tmp_path_factory.mktemp("run"))


def test_the_groups_share_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    config = helpers.study(helpers.write_domains(tmp_path))
    for domain in corpora.load_domains(config).values():
        groups = [set(domain.train), set(domain.scorer_train), set(domain.held_out)]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert len(domain.held_out) == config.num_held_out
        size = sum(len(text.encode()) for text in domain.train)
        assert size <= config.train_bytes
        assert 0.3 < len(domain.scorer_train) / len(domain.train) < 0.7
    with pytest.raises(UserError, match="this study needs 800, of which 200"):
        corpora.load_domains(dataclasses.replace(config, num_held_out=200))


def test_near_duplicates_of_what_is_set_aside_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    copies = [text for text in helpers.texts("films", 100, 0) for _ in range(4)]
    lines = [f'{{"text": "{text} Copy {n}."}}' for n, text in enumerate(copies)]
    (tmp_path / "copies.jsonl").write_text("\n".join(lines))
    other = helpers.write_domains(tmp_path)[1]
    config = helpers.study((str(tmp_path / "copies.jsonl"), other))
    domain = corpora.load_domains(config)["A"]
    assert domain.decontamination["found"] > 30 and domain.decontamination["removed"] > 30
    kept = {text.rsplit(" Copy", 1)[0] for text in domain.train + domain.scorer_train}
    assert not kept & {text.rsplit(" Copy", 1)[0] for text in domain.held_out}


def test_ingredients(found):
    every = found["A"].train
    assert corpora.part_texts(CorpusPart("A"), found) == every
    assert corpora.part_texts(CorpusPart("A", fraction=1 / 8), found) == every[:8]
    assert corpora.part_texts(CorpusPart("A", fraction=1e-9), found) == every[:1]
    noisy = corpora.part_texts(CorpusPart("A", noise_rate=0.1), found)
    assert len(noisy) == 64 and not set(noisy) & set(every)
    assert noisy == corpora.part_texts(CorpusPart("A", noise_rate=0.1), found)


def test_an_arm_has_read_what_the_one_it_started_from_read(found):
    training_sets = profiles.make_training_sets("default")
    tuned = next(training_set for training_set in training_sets if training_set.init_from)
    read = set(corpora.all_training_texts(tuned, found, training_sets))
    assert read == {*found["A"].train, *found["B"].train[:4]}
    repeats = next(
        training_set for training_set in training_sets if training_set.name == "A repeats"
    )
    assert corpora.all_training_texts(repeats, found, training_sets) == found["A"].train


def test_noise_is_as_much_as_asked_for():
    text = "abcdefghij" * 2000
    made = corpora.add_noise(text, 0.3, np.random.default_rng(0))
    assert corpora.add_noise(text, 0.0, np.random.default_rng(0)) == text
    # A third dropped, a third doubled: the length stays; a third replaced.
    assert len(made) == pytest.approx(len(text), rel=0.02)
    foreign = sum(character not in "abcdefghij" for character in made)
    assert foreign == pytest.approx(0.1 * len(text) * 84 / 94, rel=0.1)


def test_rows_count_every_token_but_the_first(tokenizer):
    texts = ["The film loves the plot 7 times.", "é"]
    tokens, counted, sizes = encode_for_scoring(tokenizer, texts, 40)
    assert tokens[:, 0].tolist() == [tokenizer.bos] * 2 and not counted[:, 0].any()
    assert sizes.tolist() == [len(text.encode()) for text in texts]
    assert counted.sum(1).tolist() == [len(ids) for ids in tokenizer.encode(texts)]
    assert encode_for_scoring(tokenizer, texts, 4)[1].sum(1).tolist()[0] == 3


def test_a_character_cut_by_the_end_is_no_fault_but_a_broken_one_is(tokenizer):
    ids = np.concatenate(tokenizer.encode(["a€b"]))
    assert decode_tokens(tokenizer, ids) == "a€b"
    assert decode_tokens(tokenizer, ids[:2]) == "a"
    assert decode_tokens(tokenizer, ids[[0, 1, -1]]) == "a\N{REPLACEMENT CHARACTER}b"


def test_real_samples_are_of_one_length_and_of_different_texts(tokenizer):
    texts = helpers.texts("films", 30, 5)
    first, second = draw_real_samples(tokenizer, texts, 5, 20, 12)
    assert first.tokens_NL.shape == second.tokens_NL.shape == (12, 26)
    assert first.prompts[0] + first.texts[0] == texts[0][: len(first.prompts[0] + first.texts[0])]
    assert not set(first.texts) & set(second.texts)
    with pytest.raises(UserError, match="32 are needed"):
        draw_real_samples(tokenizer, texts, 5, 20, 16)


def test_names_become_folders():
    names = [training_set.name for training_set in profiles.make_training_sets("full")]
    assert len({slug(name) for name in names}) == len(names)
    assert slug("A, few B") == "a-few-b"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 12}, "steps=12"),
        ({"num_texts": 4}, "num_texts=4"),
        ({"max_new_tokens": 60}, "max_new_tokens=60"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(UserError, match=named):
        helpers.study(("a", "b"), **changes)


def test_an_unknown_profile_names_those_that_are():
    with pytest.raises(UserError, match="quick, default, full"):
        profiles.make_config("huge", ("a", "b"))
