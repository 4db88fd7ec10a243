"""The metrics by name: what each says, how it reads, and which way it is usually pushed."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
      name: in results.
      title: on a page.
      better_direction: "high" or "low", what counts as better when it is used to choose.
      format_spec: how a value is written, a format specification.
      description: one sentence.
      of_sample: whether it is taken of a sample; otherwise of the model alone.
    """

    name: str
    title: str
    better_direction: str
    format_spec: str
    description: str
    of_sample: bool = True

    def higher_is_better(self, value: float) -> float:
        """The value, turned so that higher is better."""
        return value if self.better_direction == "high" else -value


METRICS = (
    Metric(
        "bits_per_byte",
        "bits/byte, held-out",
        "low",
        ".3f",
        "What the model needs for a byte of real text it has not seen; says nothing of decoding.",
        of_sample=False,
    ),
    Metric(
        "divergence",
        "MAUVE-style area",
        "high",
        ".2f",
        "How far sample and real text share one distribution of features, 1 if wholly.",
    ),
    Metric(
        "judged",
        "bits/byte by the judge",
        "low",
        ".2f",
        "How likely a model trained on other texts finds the sample. Dull text scores best.",
    ),
    Metric(
        "judged_gap",
        "judge's gap to real",
        "low",
        ".2f",
        "Distance of the judge's bits per byte from those of real text, either way.",
    ),
    Metric(
        "distinct_2",
        "distinct-2",
        "high",
        ".2f",
        "Different pairs of words by all pairs of words, over the whole sample.",
    ),
    Metric(
        "self_bleu",
        "self-BLEU",
        "low",
        ".2f",
        "BLEU of a text against 16 others of its sample: how alike the texts are.",
    ),
    Metric(
        "repetition",
        "repetition",
        "low",
        ".3f",
        "Share of a text's runs of 4 words that came before in the same text.",
    ),
    Metric(
        "zipf_gap",
        "Zipf gap to real",
        "low",
        ".2f",
        "Distance of the Zipf exponent of the words from that of real text.",
    ),
    Metric(
        "novelty",
        "novel 4-grams",
        "high",
        ".2f",
        "Share of runs of 4 words that the training text does not have.",
    ),
    Metric(
        "copied",
        "longest copy",
        "low",
        ".1f",
        "Words of a text's longest stretch that stands in the training text as it is, on average.",
    ),
    Metric(
        "invalid",
        "invalid",
        "low",
        ".3f",
        "Share of texts that are empty, broken or stuck on one word.",
    ),
)
# Measured and shown, but no one chooses by it.
ZIPF = Metric(
    "zipf", "Zipf exponent", "low", ".2f", "Slope of log frequency on log rank of the words."
)
METRICS_BY_NAME = {metric.name: metric for metric in (*METRICS, ZIPF)}
