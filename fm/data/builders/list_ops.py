"""Nested list operations on digits, made by a generator of our own (ListOps)."""

import random
from collections.abc import Iterator

import tensorflow_datasets as tfds

from fm.data.prepare import BuiltinBuilder, Examples
from fm.data.splitting import text_digest

# Symbols of an expression, brackets included; the shortest ones show little of the operations.
MIN_SYMBOLS, MAX_SYMBOLS = 16, 128
NUM_EXAMPLES = 33_000
# As in the published generator: probability of an operation instead of a digit, arguments of an
# operation at most, and operations inside one another at most.
OPERATION_PROBABILITY, MAX_ARGUMENTS, MAX_DEPTH = 0.25, 5, 20


def _median(values: list[int]) -> int:
    ordered, middle = sorted(values), len(values) // 2
    if len(values) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) // 2


OPERATIONS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda values: sum(values) % 10,
}
END = "]"
SYMBOLS = (*OPERATIONS, END, *map(str, range(10)))


class ListOps(BuiltinBuilder):
    """33,000 nested list operations labeled by their value, 0 to 9; split by hash, a tenth test.

    Features: text, symbols separated by spaces, such as "[MAX 2 9 [MIN 4 7 ] 0 ]"; label, here 9.

    Operations, arguments and depth are drawn as Nangia and Bowman (2018, sec. 3) publish them, and
    lengths are limited as in Long Range Arena (Tay et al. 2021, sec. 2.2.1), here to 16 to 128
    symbols. No expression occurs twice.
    """

    DESCRIPTION = (
        "Nested minimum, maximum, median and sum modulo 10 of digits, made by a seeded generator."
    )
    CITATION = (
        "Nangia and Bowman (2018), ListOps: A Diagnostic Dataset for Latent Tree Learning, NAACL "
        "SRW.\nTay et al. (2021), Long Range Arena, ICLR."
    )
    LICENSE = "Apache-2.0, as this project: it is generated"
    FEATURES = {  # noqa: RUF012
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
    }
    METADATA = {"symbols": list(SYMBOLS)}  # noqa: RUF012
    TEST_SHARE = 0.1

    def _examples(self) -> Examples:
        for text, value in expressions(NUM_EXAMPLES, seed=0):
            yield text_digest(text), {"text": text, "label": str(value)}


def expressions(count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yields different expressions of `MIN_SYMBOLS` to `MAX_SYMBOLS` symbols, and their values."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        symbols: list[str] = []
        value = _draw(rng, symbols, depth=1)
        text = " ".join(symbols)
        if MIN_SYMBOLS <= len(symbols) <= MAX_SYMBOLS and text not in seen:
            seen.add(text)
            yield text, value


def evaluate(text: str) -> int:
    """Returns the value of an expression, 0 to 9.

    Raises:
        ValueError: it is not one.
    """
    arguments: list[list[int]] = [[]]
    operations = []
    for symbol in text.split():
        if symbol in OPERATIONS:
            operations.append(OPERATIONS[symbol])
            arguments.append([])
        elif symbol == END:
            if not operations or not arguments[-1]:
                raise ValueError(f"{text!r} ends an operation that has no arguments")
            value = operations.pop()(arguments.pop())
            arguments[-1].append(value)
        elif len(symbol) == 1 and symbol in SYMBOLS:
            arguments[-1].append(int(symbol))
        else:
            raise ValueError(f"{text!r} has {symbol!r}; symbols are {', '.join(SYMBOLS)}")
    if operations or len(arguments[0]) != 1:
        raise ValueError(f"{text!r} is not one whole expression")
    return arguments[0][0]


def _draw(rng: random.Random, symbols: list[str], depth: int) -> int:
    """Appends the symbols of a random expression; returns its value."""
    # The outermost is an operation: a single digit is no expression.
    is_digit = depth > 1 and rng.random() >= OPERATION_PROBABILITY
    if is_digit or depth > MAX_DEPTH:
        digit = rng.randrange(10)
        symbols.append(str(digit))
        return digit
    name = rng.choice(list(OPERATIONS))
    symbols.append(name)
    count = rng.randint(2, MAX_ARGUMENTS)
    values = [_draw(rng, symbols, depth + 1) for _ in range(count)]
    symbols.append(END)
    return OPERATIONS[name](values)
