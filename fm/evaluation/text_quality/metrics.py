"""Registry of the text metrics: names, titles, and which direction counts as better."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class MetricDisplay:
    """A text quality metric as reports show it: name, title, better direction and format.

    Attributes:
      name: key in results.
      title: on a report page.
      better_direction: "high" or "low", the direction a user who selects by it would choose.
      description: one sentence.
      format_spec: format specification of a value.
      of_sample: whether it is measured on a sample; otherwise on the model alone.
    """

    name: str
    title: str
    better_direction: str
    description: str
    format_spec: str = ".2f"
    of_sample: bool = True

    def signed(self, value: float) -> float:
        """Returns the value, negated if lower is better, so that higher is always better."""
        return value if self.better_direction == "high" else -value


METRICS = (
    MetricDisplay(
        *("bits_per_byte", "bits/byte, held-out", "low"),
        "Model bits per byte of unseen real text; independent of how samples are drawn.",
        format_spec=".3f",
        of_sample=False,
    ),
    MetricDisplay(
        *("mauve", "MAUVE-style area", "high"),
        "Overlap of the embeddings of sample and real text; 1 if their distributions are equal.",
    ),
    MetricDisplay(
        *("scorer_bits_per_byte", "scorer bits/byte", "low"),
        "Bits per byte of the sample under a model trained on other texts. Dull text scores best.",
    ),
    MetricDisplay(
        *("scorer_gap", "scorer gap to real", "low"),
        "Absolute difference of the scorer's bits per byte between sample and real text.",
    ),
    MetricDisplay(
        "distinct_2", "distinct-2", "high", "Distinct word pairs over all pairs of a sample."
    ),
    MetricDisplay(
        "self_bleu", "self-BLEU", "low", "BLEU of a text against 16 others of its sample."
    ),
    MetricDisplay(
        *("repetition", "repetition", "low"),
        "Fraction of a text's 4-grams that occurred earlier in the same text.",
        format_spec=".3f",
    ),
    MetricDisplay(
        *("zipf_gap", "Zipf gap to real", "low"),
        "Absolute difference of the Zipf exponent between sample and real text.",
    ),
    MetricDisplay(
        *("novelty", "novel 4-grams", "high"),
        "Fraction of 4-grams that do not occur in the training text.",
    ),
    MetricDisplay(
        *("longest_copy", "longest copy", "low"),
        "Words in the longest run of a text that occurs verbatim in the training text; the mean.",
        format_spec=".1f",
    ),
    MetricDisplay(
        *("invalid", "invalid", "low"),
        "Fraction of texts that are empty, broken or stuck on one word.",
        format_spec=".3f",
    ),
)
# Measured and reported, but not selected by.
ZIPF = MetricDisplay(
    "zipf", "Zipf exponent", "low", "Slope of log frequency on log rank of the words."
)
METRICS_BY_NAME = {metric.name: metric for metric in (*METRICS, ZIPF)}
