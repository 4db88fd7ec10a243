import json
import re

import pytest

from fm.benchmark import runner

QUICK = ("--scale=quick", "--repeats=2")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made" / "bench.json"


@pytest.mark.slow
def test_a_quick_run_end_to_end(call, out):
    done = call("benchmark", *QUICK, "--suite=matmul,attention", "--baseline=jax", f"--out={out}")
    assert done.code == 0, done.err
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "bench-roofline.png", "bench.html", "bench.json",
    ]  # fmt: skip
    results = json.loads(out.read_text())
    assert results["schema"] == 2 and results["finished"]
    assert {"device", "versions", "xla_flags", "command", "rows", "scaling"} <= results.keys()
    assert {row["suite"] for row in results["rows"]} == {"matmul", "attention"}
    for row in results["rows"]:
        assert (row["ratio"] is None) == (row["peer"] == "none")
        assert row["median_seconds"] > 0 and row["repeats"] == 2 and row["flops_per_s"] > 0
    attention = [row for row in results["rows"] if row["suite"] == "attention"]
    assert all(row["peer"] == "jax" and row["gemm_utilization"] > 0 for row in attention)
    page = (out.parent / "bench.html").read_text()
    for part in (
        "Matrix products",
        "dot_product_attention",
        "--suite=matmul,attention",
        "jax",
        "data:image/png",
    ):
        assert part in page
    assert not re.search(r"<script|(src|href)=\"(?!data:|#)", page)
    for row in results["rows"]:
        assert row["case"] in done.out

    again = call("benchmark", *QUICK, "--suite=matmul,attention", "--baseline=jax", f"--out={out}")
    assert again.code == 0 and "is finished" in again.err
    assert json.loads(out.read_text()) == results
    other = call("benchmark", *QUICK, "--suite=matmul", "--baseline=jax", f"--out={out}")
    assert other.code == 2 and "holds another benchmark (config.suite:" in other.error


@pytest.mark.slow
def test_scaling(call, out):
    flags = ("--suite=scaling", "--filter=seq_len", "--baseline=none", f"--out={out}")
    assert call("benchmark", *QUICK, *flags).code == 0
    (fit,) = json.loads(out.read_text())["scaling"]
    assert fit["axis"] == "seq_len" and fit["values"] == [8, 16, 32]
    assert fit["flops_exponent"] == pytest.approx(1.1, abs=0.2)
    assert (out.parent / "bench-scaling.png").exists()
    assert "power of time" in (out.parent / "bench.html").read_text()


@pytest.mark.slow
def test_input(call, out):
    flags = ("--suite=input", "--baseline=none", f"--out={out}")
    assert call("benchmark", *QUICK, *flags).code == 0
    batch, training = json.loads(out.read_text())["rows"]
    assert batch["input_wait_fraction"] is None and batch["tokens_per_s"] > 0
    assert 0 <= training["input_wait_fraction"] < 1
    assert "waited" in (out.parent / "bench.html").read_text()


@pytest.mark.slow
def test_a_stopped_run_keeps_its_rows_and_resumes(call, out, monkeypatch):
    seen, measure_case = [], runner.measure_case

    def stops(case, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(case.key)
        return measure_case(case, *rest)

    flags = (*QUICK, "--suite=matmul,attention", "--baseline=none", f"--out={out}")
    monkeypatch.setattr(runner, "measure_case", stops)
    stopped = call("benchmark", *flags)
    assert stopped.code == 130
    assert "2 of 4 cases are in" in stopped.error and "the same command resumes" in stopped.error
    half = json.loads(out.read_text())
    assert not half["finished"] and "stopped before its last case" in (
        out.with_suffix(".html").read_text()
    )
    seen.clear()
    monkeypatch.setattr(
        runner, "measure_case", lambda *given: seen.append(given[0].key) or measure_case(*given)
    )
    assert call("benchmark", *flags).code == 0
    whole = json.loads(out.read_text())
    assert len(seen) == 2 and whole["rows"][:2] == half["rows"] and len(whole["rows"]) == 4


@pytest.mark.slow
def test_the_page_names_a_baseline_that_is_not_installed(call, out, monkeypatch):
    why = "not installed: pip install -e .[torch]"
    monkeypatch.setattr(
        runner.peer_packages, "unavailable_reason", lambda peer: why if peer == "torch" else None
    )
    monkeypatch.setattr(runner.peer_packages, "torch_device_info", dict)
    done = call("benchmark", *QUICK, "--suite=matmul", "--baseline=torch", f"--out={out}")
    assert done.code == 0, done.err
    (row, _) = json.loads(out.read_text())["rows"]
    assert (row["peer"], row["ratio"], row["note"]) == ("torch", None, why)
    assert why in out.with_suffix(".html").read_text() and why in done.out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--suite=nonsense"], ["--suite=nonsense", "'nonsense'", "matmul, attention, train_step"]),
        (["--suite="], ["--suite=", "one or more of matmul"]),
        (["--suite=matmul,matmul"], ["--suite=matmul,matmul", "each once"]),
        (["--baseline=numpy"], ["--baseline=numpy", "'numpy'", "torch, jax, transformers, none"]),
        (["--scale=huge"], ["--scale=huge: takes one of quick, default, full"]),
        (["--attention=magic"], ["--attention=magic", "'magic'", "reference"]),
        (["--filter=nothing has this"], ["--filter=nothing has this", "matmul"]),
        (["--repeats=0"], ["--repeats=0: takes a positive integer"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(call, out, arguments, parts):
    done = call("benchmark", "--suite=matmul", *QUICK, f"--out={out}", *arguments)
    assert done.code == 2
    assert all(part in done.error for part in parts), done.error
    assert not out.parent.exists()


def test_an_output_that_cannot_be_written(call, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    for name, part in (
        ("file/bench.json", "cannot be used"),
        ("folder.json", "cannot be used (a folder)"),
        ("broken.json", "cannot be used"),
        ("list.json", "holds no benchmark"),
        ("bench.txt", "ends in .json"),
    ):
        done = call("benchmark", *QUICK, "--suite=matmul", f"--out={tmp_path / name}")
        assert done.code == 2 and part in done.error, name
    assert (tmp_path / "list.json").read_text() == "[]"


def test_help(call):
    done = call("benchmark", "--help")
    assert done.code == 0 and "--suite=a,b,..." in done.out and "scaling" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
