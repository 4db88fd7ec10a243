"""results.json as records: fields validated by name, arms completed, schema 1 upgraded."""

import json
import math
from pathlib import Path

import pytest

from fm.errors import UserError
from fm.report.parsing import parse, sanitize, upgrade

SCHEMA_1 = Path(__file__).parent / "schema_1.json"
PUBLISHED = {"name": "published", "pretrained_on": "published data"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cells": [{}, {"value": "high"}]}, r"cells\[1\].value: expected a number, got str"),
        ({"cells": [{"value": 2**70}]}, r"cells\[0\].value"),
        ({"cells": [3]}, r"cells\[0\]: expected an object, got int"),
        ({"comparisons": "many"}, "comparisons: expected a list, got str"),
        ({"xla_flags": 3}, "xla_flags: expected a text, got int"),
        ({"curves": [{"value": [0.5, "x"]}]}, r"curves\[0\].value\[1\]: expected a number"),
        ({"break_even": [{"tasks": [3]}]}, r"break_even\[0\].tasks\[0\]: expected a text, got int"),
        ({"ablations": [{"figure": {"field": "a"}}]}, "ablations: expected entries with a name"),
        ({"arms": [PUBLISHED], "tasks": [{"published": "x"}]}, r"tasks\[0\].published_models"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_in_one_line(content, message):
    with pytest.raises(UserError, match=f"^results: {message}") as error:
        parse({"schema": 2} | content)
    assert "\n" not in str(error.value) and "`" not in str(error.value)


def test_published_models_are_those_of_arms_of_published_data():
    arms = [*(PUBLISHED | {"name": name} for name in ("published", "own", "third"))]
    arms.append({"name": "scratch"})
    task = {"name": "x", "own": {"model": "a"}, "third": {"model": "b"}, "scratch": {"model": "c"}}
    results = parse({"schema": 2, "arms": arms, "tasks": [task]})
    assert results.published_arms == ["published", "own", "third"]
    found = {name: each.model for name, each in results.task("x").published_models.items()}
    assert found == {"own": "a", "third": "b"}
    with pytest.raises(UserError, match=r"arms\[0\].name: expected a text, got array"):
        parse({"schema": 2, "arms": [PUBLISHED | {"name": []}], "tasks": [task]})


@pytest.mark.parametrize("other", [{"schema": 3}, {"schema": "2"}, {}, [], None])
def test_another_schema_is_named(other):
    with pytest.raises(UserError, match="expected a mapping of schema 1 or 2, found"):
        parse(other)


def test_what_cannot_be_printed_or_counted_is_replaced():
    assert sanitize({"a\x1b": ["x\udc80\ny", math.nan, 1.5]}) == {"a�": ["x�\ny", None, 1.5]}


def test_what_is_absent_is_empty_and_unknown_fields_are_ignored():
    results = parse({"schema": 2, "cells": None, "curves": [{"new": 1}], "new": {}})
    assert results.cells == [] and results.curves[0].value is None and results.arms == []
    assert results.task("film_reviews").title == "Film_reviews"
    assert results.task(None).title == "All tasks"


def test_every_arm_that_occurs_gets_a_look_of_its_own():
    arms = [
        {"name": "scratch", "color": "#000000", "linestyle": [0, [5, 2]], "marker": "s"},
        {"name": "mine", "color": "red; x", "linestyle": "wavy", "marker": "$x$"},
    ]
    comparisons = [{"arm": "other", "baseline": "reference"}, {"arm": "mine"}]
    results = parse({"schema": 2, "arms": arms, "comparisons": comparisons})
    assert [arm.name for arm in results.arms] == ["scratch", "mine", "other", "reference"]
    assert len({arm.color for arm in results.arms}) == 4
    assert len({arm.marker for arm in results.arms}) == 4
    assert results.arm("scratch").linestyle == (0, (5, 2)) and results.arm("mine").linestyle == "-"
    assert results.arm("other").pretrained_on and not results.arm("reference").pretrained_on
    assert results.arm_names({"reference", "scratch", "nobody"}) == ["scratch", "reference"]


def test_more_arms_than_looks():
    comparisons = [{"arm": f"arm{n}", "baseline": "scratch"} for n in range(40)]
    arms = parse({"schema": 2, "comparisons": comparisons}).arms
    assert all(arm.color and arm.marker for arm in arms)


def test_a_file_of_schema_1_says_the_same_in_new_names():
    old = json.loads(SCHEMA_1.read_text())
    new = upgrade(old)
    assert old["schema"] == 1 and new["schema"] == 2 and upgrade(new) is new
    results = parse(old)
    assert [arm.name for arm in results.arms] == [
        *("scratch", "in_domain", "out_of_domain", "published", "classical")
    ]
    assert results.arm("in_domain").pretrained_on and not results.arm("classical").pretrained_on
    renamed = {"self": "in_domain", "upstream": "out_of_domain", "imported": "published"}
    for section, before in (
        ("cells", "cells"),
        ("comparisons", "comparisons"),
        ("label_efficiency", "equivalents"),
        ("compute_cost", "ledger"),
        ("decontamination", "leakage"),
        ("mistakes", "mistakes"),
        ("methods", "methods"),
    ):
        rows = getattr(results, section)
        assert len(rows) == len(old[before]) > 0
        for row, was in zip(rows, old[before], strict=True):
            assert row.arm == renamed.get(was["arm"], was["arm"])
            if "labels" in was:
                assert row.num_labels == was["labels"]
    assert [row.censored for row in results.label_efficiency] == [
        row["beyond"] for row in old["equivalents"]
    ]
    assert [row.value for row in results.cells] == [row["value"] for row in old["cells"]]
    assert results.task("film_reviews").published_models["published"].model == "minilm-l6"
    assert results.published_arms == ["published"]
    assert results.task("film_reviews").data_noun == "text"
    assert results.attention == {"film_reviews": "xla_tiled", "digits": "xla_tiled"}


def test_a_multitask_file_of_schema_1():
    old = {
        "schema": 1,
        "experiment": "unify",
        "comparisons": [{"arm": "instructed", "baseline": "joint", "labels": 30}],
        "bill": [{"way": "self", "labels": 30, "tasks": 2, "flops": 5}],
        "break_even": [
            {"way": "self", "against": "scratch", "tasks": ["a"], "never": [{"way": "self"}]}
        ],
        "mixture": [{"format": "text", "factor": 2.0}],
    }
    results = parse(old)
    assert results.experiment == "multitask" and results.claims
    assert results.comparisons[0].arm == "instruction_tuned"
    cost, even = results.amortized_cost[0], results.break_even[0]
    assert (cost.arm, cost.num_labels, cost.num_tasks) == ("in_domain", 30, 2)
    assert (even.arm, even.baseline, even.tasks) == ("in_domain", "scratch", ["a"])
    assert even.never[0].arm == "in_domain"
    (ablation,) = results.ablations
    assert ablation.name == "mixture" and ablation.rows[0].changed_modality == "text"
    assert ablation.rows[0].level == 2.0
    assert old["bill"][0]["way"] == "self"
