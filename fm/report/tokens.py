"""Tokens as a person reads them: spaces marked, lone bytes and invisible characters spelled out."""

import dataclasses
import unicodedata

_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclasses.dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
        parts: what is shown, as (text, whether it is a mark that stands for something else).
        name: the same in plain text, for a title.
        part_of: the character of which the token holds some bytes only; "" if none.
        breaks: how many line breaks it holds.
    """

    parts: tuple[tuple[str, bool], ...]
    name: str
    part_of: str = ""
    breaks: int = 0

    @property
    def letters(self) -> int:
        """How many characters stand for themselves."""
        return sum(len(text) for text, mark in self.parts if not mark)


def special(name: str) -> Token:
    """A token that stands for no text."""
    return Token(((name, True),), name)


def readable(spelled: list[bytes]) -> list[Token]:
    """The tokens of a text from their bytes, in order; a text cut in mid-character is fine."""
    whole = b"".join(spelled)
    owner = _owners(whole)
    tokens, start = [], 0
    for piece in spelled:
        tokens.append(_token(piece, owner[start : start + len(piece)]))
        start += len(piece)
    return tokens


def _owners(whole: bytes) -> list[tuple[str, int]]:
    """For every byte its character and which byte of it this is; "" where it belongs to none."""
    owners: list[tuple[str, int]] = []
    for character in whole.decode("utf-8", "surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            owners.append(("", 0))
        else:
            owners += [(character, n) for n in range(len(character.encode()))]
    return owners


def _token(piece: bytes, owners: list[tuple[str, int]]) -> Token:
    parts: list[tuple[str, bool]] = []
    part_of = ""
    n = 0
    while n < len(piece):
        character, place = owners[n]
        size = len(character.encode())
        if character and place == 0 and n + size <= len(piece):
            text, mark = _shown(character)
            # A mark that has nothing to stand on here gets a circle to stand on.
            alone = unicodedata.category(character)[0] == "M" and (not parts or parts[-1][1])
            parts.append((f"◌{text}" if alone else text, mark))
            n += size
        else:
            parts.append((f"{piece[n]:02X}", True))
            part_of = part_of or character
            n += 1
    joined: list[tuple[str, bool]] = []
    for text, mark in parts:
        if joined and not mark and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + text, False)
        else:
            joined.append((text, mark))
    name = "".join(text for text, _ in parts)
    return Token(tuple(joined), name, part_of, piece.count(b"\n"))


def _shown(character: str) -> tuple[str, bool]:
    """A character as it is shown, and whether that is a mark."""
    if character == " ":
        return "·", True
    if character in _MARKS:
        return _MARKS[character], True
    if not character.isprintable():
        return f"U+{ord(character):04X}", True
    return character, False
