import importlib
import json
import lzma
import re
import shutil
import sys
from pathlib import Path

import pytest

from fm.report import claims as report
from fm.study.claims import CLAIMS, register_claim
from fm.study.claims.registry import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED
from tests.study.claims.helpers_claims import claim


@pytest.fixture
def made_up(monkeypatch):
    """Registers the made-up claim, with changes, for one test."""

    def register(**changes):
        monkeypatch.setitem(CLAIMS, "made_up", claim(**changes))

    register()
    return register


def test_a_claim_from_end_to_end(call, tmp_path, made_up):
    out = tmp_path / "out"
    done = call("claims", "--claim=made_up", f"--out={out}")
    assert done.code == 0, done.err
    assert f"made_up: {REPRODUCED} (full profile)" in done.out
    results = json.loads((out / "results.json").read_text())
    assert results["verdict"]["verdict"] == REPRODUCED
    assert results["measured"] == {"interval": [0.5, 1.5]} and "jax" in results["versions"]
    assert results["config"]["criterion"] == ["the gap is above 0"]
    assert (out / "plots" / "made_up.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "Doe and Roe" in page and "+3.0 points (Table 1)" in page and "holds" in page
    # The report can be made again from the results alone.
    shutil.rmtree(out / "plots")
    assert call("report", f"--out={out}").code == 0
    assert (out / "plots" / "made_up.png").exists()


def test_only_the_full_profile_is_judged(call, tmp_path, made_up):
    for profile in ("quick", "pilot"):
        out = tmp_path / profile
        done = call("claims", "--claim=made_up", f"--profile={profile}", f"--out={out}")
        assert f"made_up: {NOT_JUDGED} ({profile} profile)" in done.out
        assert "holds: the gap is above 0 (+0.5 to +1.5)" in done.out
    assert done.out.count("Smoke test") == 0


def test_what_was_measured_is_not_measured_again(call, tmp_path, made_up):
    calls = []

    def measure(profile, out_dir, data_dir):
        calls.append(profile)
        return {"interval": [-2.0, -1.0]}

    made_up(measure=measure)
    arguments = "--claim=made_up", f"--out={tmp_path / 'out'}"
    call("claims", *arguments)
    # As if killed between the measurement and the results.
    (tmp_path / "out" / "results.json").unlink()
    done = call("claims", *arguments)
    assert calls == ["full"] and f"made_up: {NOT_REPRODUCED}" in done.out
    done = call("claims", *arguments)
    assert done.code == 0 and "is finished" in done.out and f"made_up: {NOT_REPRODUCED}" in done.out


def test_a_folder_begun_with_another_criterion_is_refused(call, tmp_path, made_up):
    arguments = "--claim=made_up", f"--out={tmp_path / 'out'}"
    call("claims", *arguments)
    made_up(criterion=("the gap is above -5",))
    done = call("claims", *arguments)
    assert done.code == 2 and "holds a run with another config (criterion: " in done.error


def test_predictions_of_all_studies_are_one_compressed_table(call, tmp_path, made_up):
    head = "task,arm,num_labels,seed,row,item,truth,group,prediction,probability\n"

    def measure(profile, out_dir, data_dir):
        for name, rows in (
            ("a", "t,scratch,20,0,0,x,1,,1,0.9\nt,scratch,20,0,1,y,0,,1,0.8\n"),
            ("b", "t,scratch,20,1,1,y,0,,0,0.7\nu,scratch,20,0,0,x,2,,0,0.6\n"),
        ):
            (out_dir / "studies" / name).mkdir(parents=True)
            (out_dir / "studies" / name / "predictions.csv").write_text(head + rows)
        return {"interval": [0.5, 1.5]}

    made_up(measure=measure)
    assert call("claims", "--claim=made_up", f"--out={tmp_path / 'out'}").code == 0
    table = lzma.decompress((tmp_path / "out" / "predictions.csv.xz").read_bytes()).decode()
    runs = "studies/a/scratch/20/0", "studies/b/scratch/20/1", "studies/b/scratch/20/0"
    assert table.splitlines() == [
        ",".join(("task", "row", "item", "truth", "group", *runs)),
        "t,0,x,1,,1,,",
        "t,1,y,0,,1,0,",
        "u,0,x,2,,,,0",
    ]


def test_the_list_has_paper_protocol_criterion_and_minutes(call, made_up):
    done = call("claims", "--list")
    assert done.code == 0
    for text in ("made_up: More is more.", "Doe and Roe (2020)", "Two numbers are made up."):
        assert text in done.out
    assert "criterion: the gap is above 0" in done.out and "1 min full" in done.out


def test_bad_flags(call, tmp_path, made_up):
    made_up(minutes={"quick": 0.1})
    for arguments, text in (
        ((), "--claim=: must be one of "),
        (("--claim=phlogiston",), "--claim=phlogiston: must be one of "),
        (("--claim=made_up", "--profile=huge"), "--profile=huge: takes one of quick, pilot, full"),
        (("--claim=made_up",), "--profile=full: made_up has only quick"),
        (
            ("--claim=made_up", "--profile=quick", "--data_dir=x"),
            "--data_dir=x: made_up reads no TFDS data set; leave it out",
        ),
    ):
        done = call("claims", *arguments, f"--out={tmp_path / 'out'}")
        assert done.code == 2 and text in done.error
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(call, tmp_path, made_up):
    done = call("claims", "--claim=made_up", f"--out={tmp_path / 'out'}", "--dry_run")
    assert done.code == 0 and "Two numbers are made up" in done.out and "about 60 s" in done.out
    assert not (tmp_path / "out").exists()


def test_results_of_a_claim_that_is_not_registered_are_refused(call, tmp_path, made_up):
    out = tmp_path / "out"
    call("claims", "--claim=made_up", f"--out={out}")
    del CLAIMS["made_up"]
    done = call("report", f"--out={out}")
    assert done.code == 2 and "the claim made_up is not registered" in done.error


def test_registering_twice_replaces(made_up):
    register_claim(claim(statement="Less is more."))
    assert CLAIMS["made_up"].statement == "Less is more."
    assert report.citation({"authors": "A", "year": 1, "venue": "B"}) == "A 1, B"


PAGE = Path(__file__).parents[2] / "docs" / "claims.md"


def test_the_guide_names_every_claim():
    page = PAGE.read_text()
    for name in CLAIMS:
        assert f"`--claim={name}" in page, name


@pytest.mark.slow
def test_a_claim_from_a_file_of_its_own(call, tmp_path, monkeypatch, made_up):
    ((code, name),) = re.findall(r'```python\n("""(\w+)\.py.*?)```', PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 60
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(CLAIMS)
    try:
        importlib.import_module(name)
        out = tmp_path / "out"
        done = call("claims", "--claim=more_labels", "--profile=quick", f"--out={out}")
        assert done.code == 0, done.err
        assert f"more_labels: {NOT_JUDGED} (quick profile)" in done.out
        rows = json.loads((out / "results.json").read_text())["measured"]["differences"]
        assert [row["num_labels"] for row in rows] == [20, 100]
        predictions = lzma.decompress((out / "predictions.csv.xz").read_bytes()).decode()
        runs = predictions.splitlines()[0].split(",")[5:]
        assert runs[0] == "studies/labels/scratch/20/0" and len(runs) == len(set(runs)) == 8
        listed = call("claims", "--claim=more_labels", "--profile=full", "--dry_run")
        assert listed.code == 0 and "labels: digits: pretraining in_domain" in listed.out
    finally:
        CLAIMS.clear()
        CLAIMS.update(before)
        sys.modules.pop(name, None)
