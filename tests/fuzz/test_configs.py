"""Configs from files and flags with one bad value: read, or refused with a line that names it."""

import dataclasses
import importlib
import json
import pathlib
import pkgutil
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fm
from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.lora import LoraConfig
from fm.benchmark.core import BenchConfig, TimingConfig
from fm.data.log_mel import LogMelConfig
from fm.data.media import PatchLayout
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.sampling import SamplingConfig
from fm.model.stems import EncoderConfig, StemConfig
from fm.parallel.mesh import MeshConfig
from fm.study import presets
from fm.study.config import (
    MultitaskConfig,
    PublishedConfig,
    PublishedEncoderConfig,
    StudyConfig,
    TaskConfig,
)
from fm.study.config_fields import with_config_field
from fm.study.paired import PairedConfig
from fm.study.search import SearchConfig
from fm.study.text_quality import config as profiles
from fm.training import TrainConfig, multitask
from fm.training.objectives import PretrainingObjective
from tests.fuzz import helpers_guard as guard
from tests.fuzz import helpers_junk as junk
from tests.hf import helpers_hf
from tests.model.helpers_archs import LLAMA
from tests.report import helpers_results
from tests.report.helpers_multitask import multitask_results

STRETCHED = dataclasses.replace(LLAMA, rope_scaling=helpers_hf.STRETCHED)
MODEL = dataclasses.replace(helpers_hf.CASES["llama"][1], arch=STRETCHED)
PLAIN = json.loads(json.dumps(dataclasses.asdict(MODEL)))
OBJECTIVE = json.loads(
    json.dumps(
        multitask.to_dict(multitask.MultitaskObjective((("image", PretrainingObjective()),)))
    )
)
LAYOUT = json.loads(json.dumps(PatchLayout("image", (8, 8, 1), (4,)).to_dict()))
RESULTS = json.loads(json.dumps([helpers_results.results(), multitask_results()]))


@guard.cases
@given(junk.altered(PLAIN))
def test_a_model_config(plain):
    try:
        made = ModelConfig.from_dict(plain)
    except UserError as error:
        assert str(error)
    else:
        hash(made)
        again = json.loads(json.dumps(dataclasses.asdict(made)))
        assert ModelConfig.from_dict(again) == made


@guard.cases
@given(junk.altered(OBJECTIVE), junk.altered(LAYOUT))
def test_an_objective_and_a_layout(objective, layout):
    for read, plain in ((multitask.from_dict, objective), (PatchLayout.from_dict, layout)):
        try:
            hash(read(plain))
        except UserError as error:
            assert str(error)


@guard.few
@given(st.sampled_from(RESULTS), st.data())
def test_a_results_file(results, data):
    content = data.draw(junk.damaged(json.dumps(results).encode()))
    if data.draw(st.integers(0, 3)):
        content = json.dumps(data.draw(junk.altered(results))).encode()
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "results.json").write_bytes(content)
        done = guard.run("report", [f"--out={folder}"], pathlib.Path(folder, "none"))
        assert done.code == 0 or "results.json" in done.error


@guard.cases
@given(
    junk.damaged(b'{"experiment": "pretrain", "seed": 3}'), st.sampled_from(["pretrain", "compare"])
)
def test_a_run_config(content, experiment):
    with tempfile.TemporaryDirectory() as folder:
        data, out = pathlib.Path(folder, "data.csv"), pathlib.Path(folder, "out")
        data.write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(120)))
        out.mkdir()
        (out / "config.json").write_bytes(content)
        given = [f"--dataset={data}", f"--out={out}"]
        if experiment == "compare":
            given += ["--model=", "--label_budgets=20"]
        done = guard.run(experiment, given, pathlib.Path(folder, "none"))
        assert done.code == 2 and str(out) in done.error
        assert (out / "config.json").read_bytes() == content


# Every config class of the package is one of these or a part of one.
WHOLE = [
    StudyConfig(
        tasks=(
            TaskConfig(
                *("digits", None, (20,), presets.modality_recipe("text")),
                published=PublishedConfig("minilm-l6", 64, "{text} {answer}", ("a", "b")),
            ),
            TaskConfig(
                *("photos", None, (20,), presets.modality_recipe("image")),
                published=PublishedEncoderConfig("dinov2"),
            ),
        ),
    ),
    MultitaskConfig(
        tasks=(TaskConfig("digits", None, (20,), presets.modality_recipe("image")),),
        joint=presets.joint_recipe(),
        weights=(("digits", 1.0),),
        instruction_tuning=FinetuneConfig(lora=LoraConfig()),
        instruction_learning_rates=(1e-3,),
        max_instruction_length=64,
    ),
    SearchConfig(
        tasks=(
            TaskConfig(
                "digits", None, (20,), presets.modality_recipe("image"), split="development"
            ),
        ),
        arms=("in_domain",),
    ),
    profiles.make_config("default", ("a", "b")),
    TrainConfig(steps=1),
    MeshConfig(),
    SamplingConfig(),
    MODEL,
    EncoderConfig(
        *(1, 16, 1, 1, 32),
        stem=StemConfig("image", "image", (8, 8, 3), (4, 4), (4, 4)),
    ),
]
# Built from checked values, never read from a file or a flag.
INTERNAL = {BenchConfig, TimingConfig, LogMelConfig, PairedConfig}


def within(config):
    """Returns a config and all configs inside it."""
    if isinstance(config, tuple):
        return [each for part in config for each in within(part)]
    if not dataclasses.is_dataclass(config):
        return []
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    return [config, *(each for value in values for each in within(value))]


FOUND = {type(each): each for each in within(tuple(WHOLE))}
odd = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6)),
    st.lists(st.one_of(st.integers(-3, 3), st.floats(), st.text(max_size=3)), max_size=3).map(
        tuple
    ),
)


def test_every_config_class_is_covered():
    modules = pkgutil.walk_packages(fm.__path__, "fm.")
    named = {
        thing
        for module in modules
        if ".peers." not in module.name  # they need PyTorch
        for name, thing in vars(importlib.import_module(module.name)).items()
        if isinstance(thing, type) and name.endswith("Config") and dataclasses.is_dataclass(thing)
    }
    assert named > INTERNAL and named - INTERNAL <= FOUND.keys()


def shown(text):
    """Returns a value as messages show it."""
    try:
        return repr(json.loads(text))[:40]
    except (ValueError, RecursionError):
        return repr(text)[:40]


@pytest.mark.parametrize("kind", FOUND, ids=lambda kind: kind.__name__)
def test_a_field_of_any_config(kind):
    """Set from text as `ablate` does: refused, or a config that can be hashed and saved."""
    whole = FOUND[kind]
    names = [field.name for field in dataclasses.fields(kind)]

    @guard.cases
    @given(st.sampled_from(names), st.one_of(odd.map(json.dumps), junk.values))
    def check(name, text):
        try:
            made = with_config_field(whole, name, text, where=name)
        except UserError as error:
            message = str(error)
            named = (name, shown(text), repr(text)[:40])
            assert any(each in message for each in named), message
        else:
            hash(made)
            json.dumps(dataclasses.asdict(made), allow_nan=False)

    check()
