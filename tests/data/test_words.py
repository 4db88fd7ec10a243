import re

import numpy as np
import pytest

from fm.data.dedup.text import find_text_duplicate_pairs
from fm.data.words import WORD_LENGTH, character_ngrams, words_and_lengths

ALPHABETS = {
    "Chinese": "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出",
    "Japanese": "あいうえおかきくけこアイウエオカキクケコ日本語映画最高悪人生",
    "Korean": "가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허",
    "Thai": "กขคงจฉชซญดตถทธนบปผฝพ",
    "Lao": "ກຂຄງຈສຊຍດຕຖທນບປຜ",
    "Khmer": "កខគឃងចឆជឈញដឋឌឍណត",
    "Burmese": "ကခဂဃငစဆဇဈညဋဌဍဎဏတ",
    "DNA": "acgt",
}
RNG = np.random.default_rng(0)


def letters(script, count):
    return "".join(RNG.choice(list(ALPHABETS[script]), count))


@pytest.mark.parametrize("script", ALPHABETS)
def test_copies_are_found_in_scripts_without_spaces(script):
    pretrain = [letters(script, 90) for _ in range(40)]
    test = [letters(script, 90) for _ in range(10)]
    pretrain[7] = test[3][:45] + letters(script, 1) + test[3][45:]
    pretrain[8] = letters(script, 5) + test[4][:70] + "。" + letters(script, 5)
    pretrain[9] = test[5][:-1] + letters(script, 1)
    expected = [[8, 4], [9, 5]] if script == "DNA" else [[7, 3], [8, 4], [9, 5]]
    assert find_text_duplicate_pairs(pretrain, test).tolist() == expected


def test_twelve_words_of_characters_are_too_few():
    text = letters("Chinese", 60)
    assert len(find_text_duplicate_pairs([text[:20]], [text])) == 1
    assert not len(find_text_duplicate_pairs([text[:19]], [text]))
    mixed = f"iPhone {text[:17]} 2024"
    assert len(find_text_duplicate_pairs([f"{mixed}。{text[30:]}"], [mixed.upper()])) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("한국 영화는 재미있다", "한국영화는 재미 있다"),
        ("ひどい映画！", "ひどい 映画"),
        ("ﾋﾄﾞｲ映画", "ヒドイ映画"),
        ("हिन्दी फ़िल्म", "हिन्दी  फ़िल्म!"),
        ("cafe\u0301 noir", "café NOIR"),
    ],
)
def test_the_same_words_are_found_however_they_are_written(one, other):
    assert find_text_duplicate_pairs([one], [other]).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "text",
    [
        "A film -- don't miss it: 10/10, caf\u00e9 \u043a\u0438\u043d\u043e_2, \u00bd x\u00b2",
        "boo" + 40 * "o" + "! I did not like it at all, and neither did any of my friends.",
    ],
)
def test_other_texts_are_read_as_words(text):
    words, lengths = words_and_lengths(text)
    assert words == re.findall(r"\w+", text.lower()) and set(lengths) == {WORD_LENGTH}
    assert character_ngrams(text) == []


def test_marks_belong_to_the_letter_before_them():
    assert words_and_lengths("हिन्दी फ़िल्म")[0] == ["हिन्दी", "फ़िल्म"]
    assert words_and_lengths("ที่ดี")[0] == ["ที่", "ดี"]
    assert character_ngrams("ที่ดี!") == [" ที่", " ดี", " ที่ดี"]
