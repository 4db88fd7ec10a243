"""Damaged files of runs and of models: read, or refused in a line that names them."""

import dataclasses
import json
import pathlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.data.layouts import Layout
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import joint
from fm.training.objectives import Objective
from fm.transfer.pretrained import folder as published
from tests.fuzz import guard, junk
from tests.model.styles import LLAMA
from tests.report import synthetic
from tests.transfer.pretrained import problems

STRETCHED = dataclasses.replace(LLAMA, rope_scaling=problems.STRETCHED)
MODEL = dataclasses.replace(problems.CASES["llama"][1], style=STRETCHED)
PLAIN = json.loads(json.dumps(dataclasses.asdict(MODEL)))
ASKED = json.loads(json.dumps(joint.plain(joint.Joint((("image", Objective()),)))))
LAYOUT = json.loads(json.dumps(Layout("image", (8, 8, 1), (4,)).plain()))
RESULTS = json.loads(json.dumps(synthetic.results()))


@guard.cases
@given(junk.altered(PLAIN))
def test_the_config_of_a_model(plain):
    try:
        made = ModelConfig.from_plain(plain)
    except UserError as error:
        assert str(error)
    else:
        hash(made)
        again = json.loads(json.dumps(dataclasses.asdict(made)))
        assert ModelConfig.from_plain(again) == made


@guard.cases
@given(junk.altered(ASKED), junk.altered(LAYOUT))
def test_what_a_run_was_asked_and_how_it_reads(asked, layout):
    for read, plain in ((joint.from_plain, asked), (Layout.from_plain, layout)):
        try:
            hash(read(plain))
        except UserError as error:
            assert str(error)


@guard.few
@given(junk.damaged(json.dumps(RESULTS).encode()))
def test_the_file_of_results(content):
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "results.json").write_bytes(content)
        done = guard.run("report", [f"--out={folder}"], pathlib.Path(folder, "none"))
        assert done.code == 0 or "results.json" in done.error


@guard.cases
@given(
    junk.damaged(b'{"experiment": "pretrain", "seed": 3}'), st.sampled_from(["pretrain", "compare"])
)
def test_the_config_of_a_run(content, experiment):
    with tempfile.TemporaryDirectory() as folder:
        data, out = pathlib.Path(folder, "data.csv"), pathlib.Path(folder, "out")
        data.write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(120)))
        out.mkdir()
        (out / "config.json").write_bytes(content)
        given = [f"--dataset={data}", f"--out={out}"]
        if experiment == "compare":
            given += ["--imported=", "--budgets=20"]
        done = guard.run(experiment, given, pathlib.Path(folder, "none"))
        assert done.code == 2 and str(out) in done.error
        assert (out / "config.json").read_bytes() == content


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The files of a small published model, as `transformers` has them."""
    folder = tmp_path_factory.mktemp("llama")
    published.write(folder, problems.pretrained("llama"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_published_folder(llama):
    @guard.cases
    @given(st.sampled_from(sorted(llama)), st.data())
    def check(name, data):
        content = data.draw(junk.damaged(llama[name]))
        if name == "config.json" and data.draw(st.booleans()):
            content = json.dumps(data.draw(junk.altered(json.loads(llama[name])))).encode()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model")
            path.mkdir()
            for each, whole in llama.items():
                (path / each).write_bytes(content if each == name else whole)
            done = guard.run("generate", [f"--model={path}", "--prompt=w1 w2"], path / "none")
            if done.code == 2:
                assert str(path) in done.error or name in done.error, done.error

    check()
