"""Words of a text, and the characters of scripts that put no spaces between words.

Most scripts separate words by spaces, and a run of letters, digits and combining marks is a word.
Written without spaces are:
- letters of Chinese and Japanese; of Korean, Thai, Lao, Khmer, Burmese and their neighbors (Korean
  spaces phrases, each of which is a word with its endings);
- a text of which more than half the letters stand in words of more than 32 letters.

There a character with its marks takes the place of a word, at a part of a word's length. No other
text is read differently because of this.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence

# Lengths are counted in parts of a word, so that a run of 13 words is 20 characters of Chinese, 39
# of Thai or Korean and 65 letters of English.
WORD_LENGTH = 60
_IDEOGRAPH_LENGTH, _SYLLABLE_LENGTH, _LETTER_LENGTH = 39, 20, 12
_LONGEST_WORD = 32

# Without those beyond the first 65,536 characters, a class of `re` is one look-up in a table.
_IDEOGRAPHS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u3041-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
)
_RARE_IDEOGRAPHS = "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
_SYLLABLES = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
    "\u3130-\u318f\ua960-\ua9ff\uaa60-\uaadf\uac00-\ud7ff"
)
# For a character class.
COMBINING_MARKS = "".join(
    chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)).startswith("M")
)

_UNSPACED = rf"(?=\w)(?:[{_IDEOGRAPHS}{_SYLLABLES}]|[{_RARE_IDEOGRAPHS}])"
_CHARACTER = re.compile(rf"{_UNSPACED}[{COMBINING_MARKS}]*")
_RUN = re.compile(rf"(?:{_UNSPACED}[{COMBINING_MARKS}]*)+")
_WORD = re.compile(r"\w+")
_WORD_OR_CHARACTER = re.compile(rf"{_CHARACTER.pattern}|(?:(?!{_UNSPACED})[\w{COMBINING_MARKS}])+")
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}{_RARE_IDEOGRAPHS}]")
_SYLLABLE = re.compile(f"[{_SYLLABLES}]")
_UNSPACED_OR_MARK = re.compile(f"{_IDEOGRAPH.pattern}|{_SYLLABLE.pattern}|[{COMBINING_MARKS}]")
_LONG_WORD = re.compile(rf"\w{{{_LONGEST_WORD + 1},}}")


def words_and_lengths(text: str) -> tuple[list[str], list[int]]:
    """Returns a text's lower-case words, or characters where no spaces part words, and lengths."""
    text = text.lower()
    if _needs_care(text):
        words = _WORD_OR_CHARACTER.findall(unicodedata.normalize("NFKC", text))
        lengths = [_length(word[0]) for word in words]
    else:
        words = _WORD.findall(text)
        lengths = [WORD_LENGTH] * len(words)
    if not _has_long_words(text):
        return words, lengths
    letters, letter_lengths = [], []
    for word, length in zip(words, lengths, strict=True):
        is_long = len(word) > _LONGEST_WORD
        letters += list(word) if is_long else [word]
        letter_lengths += [_LETTER_LENGTH] * len(word) if is_long else [length]
    return letters, letter_lengths


def character_ngrams(text: str, longest: int = 3) -> list[str]:
    """Returns runs of 1 to `longest` characters of those parts of a text that lack word spaces.

    Each has a space before it, so that it is no word.
    """
    text = text.lower()
    runs: list[Sequence[str]] = []
    if _needs_care(text):
        runs += [_CHARACTER.findall(run) for run in _RUN.findall(text)]
    if _has_long_words(text):
        runs += [word for word in _LONG_WORD.findall(text) if not _needs_care(word)]
    return [
        sys.intern(" " + "".join(run[start : start + size]))
        for run in runs
        for size in range(1, longest + 1)
        for start in range(len(run) - size + 1)
    ]


def _needs_care(text: str) -> bool:
    """Returns whether a text has characters of scripts without spaces, or combining marks."""
    return not text.isascii() and any(map(_is_unspaced_or_mark, set(text)))


@functools.cache
def _is_unspaced_or_mark(character: str) -> bool:
    return bool(_UNSPACED_OR_MARK.match(character))


def _has_long_words(text: str) -> bool:
    """Returns whether more than half of a text's letters stand in words of more than 32."""
    long_words = _LONG_WORD.findall(text)
    return bool(long_words) and 2 * sum(map(len, long_words)) > sum(map(len, _WORD.findall(text)))


@functools.cache
def _length(first: str) -> int:
    if _IDEOGRAPH.match(first):
        return _IDEOGRAPH_LENGTH
    return _SYLLABLE_LENGTH if _SYLLABLE.match(first) else WORD_LENGTH
