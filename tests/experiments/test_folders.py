"""Every command refuses a folder that another process works in."""

import json

import pytest

from fm.study.run_dir import SCHEMA
from tests.report import helpers_results
from tests.study.text_quality.helpers_text_quality import write_domains

STUDY = [
    "--tasks=digits",
    "--label_budgets=20",
    "--seeds=2",
    "--profile=quick",
    "--arms=scratch,in_domain",
]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("adapt", ["--dataset=digits", "--labels=20"]),
        ("compare", STUDY),
        ("ablate", [*STUDY, "--field=steps", "--values=2,3"]),
        ("multitask", ["--tasks=digits", "--arms=scratch,classical", "--profile=quick"]),
        ("text_quality", ["--profile=quick"]),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_refused(call, tmp_path, tiny, held, name, flags, finished):
    if name == "text_quality":
        flags = [*flags, f"--domains={','.join(write_domains(tmp_path, 600))}"]
    out = tmp_path / "out"
    out.mkdir()
    if finished:
        (out / "results.json").write_text(json.dumps({"schema": SCHEMA}))
    before = sorted(path.name for path in out.iterdir())
    with held(out) as holder:
        done = call(name, *flags, f"--out={out}")
    assert done.code == 2
    assert f"--out={out}" in done.error or f"{out} is in use by" in done.error
    assert f"in use by process {holder.pid} on " in done.error
    assert sorted(path.name for path in out.iterdir()) == [".lock", *before]


def test_a_report_is_refused(call, tmp_path, held):
    (tmp_path / "results.json").write_text(json.dumps(helpers_results.results()))
    with held(tmp_path) as holder:
        done = call("report", f"--out={tmp_path}")
    assert done.code == 2 and f"in use by process {holder.pid}" in done.error
    assert not (tmp_path / "report.html").exists()


def test_a_benchmark_is_refused_its_file_alone(call, tmp_path, held):
    flags = ["--scale=quick", "--suite=matmul", "--repeats=1", "--baseline=none"]
    with held(tmp_path, ".a.json.lock") as holder:
        done = call("benchmark", *flags, f"--out={tmp_path / 'a.json'}")
        assert done.code == 2 and f"in use by process {holder.pid}" in done.error
        assert not (tmp_path / "a.json").exists()
        assert call("benchmark", *flags, f"--out={tmp_path / 'b.json'}").code == 0
