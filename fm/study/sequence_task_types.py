# ruff: noqa: D102 (methods inherit the docstrings of `TaskType`)
"""Task types whose answer is a sequence: tags of words, or a text."""

from __future__ import annotations

import dataclasses

import numpy as np

from fm.adaptation import token_classification
from fm.adaptation.token_classification import (
    PER_TOKEN,
    TaggingTaskModel,
    WordExamples,
    tokenize_words,
)
from fm.evaluation.metrics import chrf
from fm.evaluation.ner import entity_strata
from fm.evaluation.statistics import linearized_ratio
from fm.study.adaptation import ModelArm
from fm.study.baseline_arms import ClassicalNerArm, UntrainedTextArm, entity_count_predictions
from fm.study.task import TaskType


class NamedEntityRecognition(TaskType):
    """Task type of word tagging; predictions are (correct, predicted, gold) counts, int [N, 3]."""

    name, metric = "ner", "entity F1"
    reads_words = True
    max_answer_tokens = 24

    def matches(self, dataset):
        return "tags" in dataset.train.columns and len(dataset.info["tags"]) > 1

    def names(self, dataset):
        return tuple(dataset.info["tags"])

    def restore_model(self, names, saved, **fields):
        nothing = WordExamples({}, np.zeros((0, 0), np.int32), np.zeros(0, int))
        return TaggingTaskModel(**fields, sentences=nothing, tags=None, tag_names=names)

    def new_inputs(self, split, idx):
        return split.words(idx)

    def prediction_texts(self, values, names):
        return [" ".join(tags) for tags in values]

    def truth_texts(self, split, dataset):
        return [" ".join(tags) for tags in split.tags(range(len(split)))]

    def score_texts(self, truths, predictions):
        counts = entity_count_predictions(
            [tags.split() for tags in truths], [tags.split() for tags in predictions]
        )
        correct, predicted, gold = counts.sum(axis=0)
        return float(2 * correct / (predicted + gold)) if predicted + gold else 0.0

    def strata(self, split):
        tags = split.tags(range(len(split)))
        return np.where([bool(own) for own in tags], entity_strata(tags), -1)

    def scores(self, predictions, split):
        correct, predicted, gold = np.moveaxis(predictions, -1, 0)
        return linearized_ratio(2 * correct, predicted + gold)

    def prediction_rows(self, predictions, split, classes):
        return [
            (gold, f"{correct}/{predicted}") for correct, predicted, gold in predictions.tolist()
        ]

    def predictions_from_rows(self, rows):
        counts = [(*prediction.split("/"), gold) for gold, prediction in rows]
        return np.array([gold for gold, _ in rows], int), np.array(counts, int)

    def build_head(self, task, initial, context, methods):
        tokenizer = initial.processor.tokenizer
        assert tokenizer is not None, "named entities are recognized in text"
        recipe = task.config.recipe
        words, tags = task.words_and_tags()
        sentences = tokenize_words(tokenizer, words, recipe.seq_len)
        tag_names = tuple(task.dataset.info["tags"])
        finetune = dataclasses.replace(recipe.finetune, tokens_kept=0, feature_config=PER_TOKEN)
        model = TaggingTaskModel(
            checkpoints=initial.checkpoints,
            model_config=initial.processor.model,
            recipe=dataclasses.replace(recipe, finetune=finetune),
            examples=sentences.examples,
            test_from=len(task.labeled_pool),
            num_classes=len(tag_names),
            pad_to=max(task.config.label_budgets),
            sentences=sentences,
            tags=tags,
            tag_names=tag_names,
        )
        return ModelArm(model, tuple(methods), tokenizer)

    def build_baseline(self, task):
        return ClassicalNerArm(*task.words_and_tags(), len(task.labeled_pool))

    def answers(self, task, class_answers):
        return list(map(token_classification.format_entities, *task.words_and_tags()))

    def parse(self, task, generated, idx):
        words, tags = task.words_and_tags()
        entity_types = {tag[2:] for tag in task.dataset.info["tags"] if tag != "O"}
        predicted = [
            token_classification.entities_to_tags(
                words[n], token_classification.parse_entities(answer, entity_types)
            )
            for n, answer in zip(idx, generated, strict=True)
        ]
        return entity_count_predictions([tags[n] for n in idx], predicted)


class TextGeneration(TaskType):
    """Task type of generating a text; `predictions` are each example's chrF, 0 to 1, float [N]."""

    name, metric = "text_generation", "chrF"
    max_answer_tokens = 20
    experiments = ("multitask",)

    def matches(self, dataset):
        return "targets" in dataset.train.columns

    def strata(self, split):
        targets = split.targets(range(len(split)))
        return np.where([bool(target) for target in targets], 0, -1)

    def scores(self, predictions, split):
        return np.asarray(predictions, float)

    def prediction_rows(self, predictions, split, classes):
        return [(1, round(float(score), 6)) for score in predictions]

    def build_head(self, task, initial, context, methods):
        return context.own_instruction_arm(task, initial)

    def build_baseline(self, task):
        return UntrainedTextArm(task.texts(), task.column("targets"), len(task.labeled_pool))

    def answers(self, task, class_answers):
        return task.column("targets")

    def parse(self, task, generated, idx):
        targets = task.column("targets")
        return chrf(generated, [targets[n] for n in idx])
