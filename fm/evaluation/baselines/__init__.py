"""Classical models: what a user would do without a neural network.

Per modality a family of feature sets and classifiers, of which the best on validation folds is
taken (`ClassicalFamily`); with unlabeled examples of the task's own data it has more members. Of
tasks whose answer is a text, the first sentence or the nearest training text's answer.
"""

from fm.evaluation.baselines.families import (
    TEXT_PAIR,
    ClassicalFamily,
    Member,
    class_family,
    members_beside,
    members_of,
    reads_unlabeled_beside,
    register_member,
)
from fm.evaluation.baselines.features import Examples, FeatureSet, FeatureStore
from fm.evaluation.baselines.target_families import label_set_family, value_family
from fm.evaluation.baselines.text_generation import first_sentences, nearest_neighbor_targets
from fm.evaluation.baselines.text_pairs import TextPair

__all__ = [
    "TEXT_PAIR",
    "ClassicalFamily",
    "Examples",
    "FeatureSet",
    "FeatureStore",
    "Member",
    "TextPair",
    "class_family",
    "first_sentences",
    "label_set_family",
    "members_beside",
    "members_of",
    "nearest_neighbor_targets",
    "reads_unlabeled_beside",
    "register_member",
    "value_family",
]
