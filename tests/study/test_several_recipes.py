"""A task with several recipes: every network arm is built by each, and seeds choose."""

import pytest

from fm.errors import UserError
from fm.study.config import StudyConfig
from fm.study.runner import run_compare
from tests.study.helpers_study import config, dataset, loads, recipe

ARMS = "scratch", "in_domain", "in_domain_with_classical"


@pytest.mark.slow
def test_every_network_arm_chooses_among_the_recipes(monkeypatch, tmp_path):
    loads(monkeypatch, dataset())
    own = config(recipe=recipe("text"), other_recipes=(recipe("text", name="short", seq_len=8),))
    study = StudyConfig(tasks=(own,), arms=ARMS, seeds=2, methods=("full",))
    results = run_compare(study, tmp_path / "out")
    for row in results["cells"]:
        assert {trial["config"]["recipe"] for trial in row["trials"]} == {"", "short"}
        assert row["hparams"]["recipe"] in ("", "short")
    names = {row["name"] for row in results["pretrained"]}
    own = "in_domain", "in_domain_with_classical"
    assert names == {f"fruit/{arm}{recipe}/0" for arm in own for recipe in ("", "/short")}
    cost = next(row for row in results["compute_cost"] if row["arm"] == "in_domain")
    one = run_compare(
        StudyConfig(
            tasks=(config(recipe=recipe("text")),),
            arms=("scratch", "in_domain"),
            seeds=2,
            methods=("full",),
        ),
        tmp_path / "one",
    )
    alone = next(row for row in one["compute_cost"] if row["arm"] == "in_domain")
    assert cost["pretrain_flops"] > alone["pretrain_flops"] > 0


def test_recipes_have_different_names():
    with pytest.raises(UserError, match=r"recipes '', '': must have different names"):
        config(other_recipes=(recipe("text"),))
