"""Named entities as an answer in words: "person: Anna; location: New York", or "none"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fm.evaluation.entities import Span, spans

NONE = "none"
# Kind, and surface form as `surface` has it.
Named = tuple[str, str]


def surface(words: str | Iterable[str]) -> str:
    """A form that compares: words with one space between, lower case, no semicolon."""
    text = words if isinstance(words, str) else " ".join(words)
    return " ".join(text.replace(";", ",").casefold().split())


def write(words: Sequence[str], tags: Sequence[str]) -> str:
    """The answer for a tagged sentence: its entities in order, the same one once."""
    said: dict[Named, str] = {}
    (found,) = spans([tags])
    for kind, first, end in sorted(found, key=lambda span: span[1:]):
        own = " ".join(words[first:end]).replace(";", ",")
        said.setdefault((kind, surface(own)), f"{kind}: {own}")
    return "; ".join(said.values()) or NONE


def named(words: Sequence[str], tags: Sequence[str]) -> set[Named]:
    """The entities of a tagged sentence by kind and surface form."""
    (found,) = spans([tags])
    return {(kind, surface(words[first:end])) for kind, first, end in found}


def read(answer: str, kinds: Iterable[str]) -> set[Named]:
    """The entities an answer names; what is not of the form, or of no known kind, is none.

    Lenient: case, spaces, line ends for semicolons, and an entity named twice do not matter.

    Args:
      answer: any text.
      kinds: those that are known.
    """
    known = {surface(kind): kind for kind in kinds}
    found = set()
    for part in answer.replace("\n", ";").split(";"):
        kind, colon, form = part.partition(":")
        if colon and surface(kind) in known and surface(form):
            found.add((known[surface(kind)], surface(form)))
    return found


def locate(words: Sequence[str], entities: Iterable[Named]) -> set[Span]:
    """Where entities stand in a sentence: every place of a surface form, longer forms first.

    No two places overlap; a form that does not occur has none.
    """
    plain = [surface(word) for word in words]
    free = [True] * len(words)
    found: set[Span] = set()
    for kind, form in sorted(entities, key=lambda each: (-len(each[1]), each)):
        wanted = form.split()
        for first in range(len(words) - len(wanted) + 1):
            here = slice(first, first + len(wanted))
            if plain[here] == wanted and all(free[here]):
                free[here] = [False] * len(wanted)
                found.add((kind, here.start, here.stop))
    return found


def tags(words: Sequence[str], entities: Iterable[Named]) -> list[str]:
    """BIO tags of a sentence in which these entities are named; see `locate`."""
    made = ["O"] * len(words)
    for kind, first, end in locate(words, entities):
        made[first:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - first - 1)]
    return made
