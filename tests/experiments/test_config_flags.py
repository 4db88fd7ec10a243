"""--set, --config and --dry_run of every experiment that has a config, and extended runs."""

import json

import pytest

from experiments import cli, stages
from fm.study import presets, run_dir
from fm.study.config import config_hash
from tests.experiments.helpers_texts import two_class_texts
from tests.study.test_joint_pretraining import RECIPE

STUDY = "--tasks=digits", "--arms=scratch,classical", "--label_budgets=12", "--seeds=2"
QUICK = "--profile=quick", "--domains=A,B"


@pytest.fixture
def dry(call, tmp_path):
    """Runs an experiment with --dry_run and returns what it printed."""

    def run(name, *flags, code=0):
        out = tmp_path / "untouched"
        done = call(name, *flags, "--dry_run", f"--out={out}")
        assert done.code == code, done.err
        assert not out.exists()
        return done.error if code else done.out

    return run


def hash_of(text):
    return text.partition("config hash ")[2].partition(";")[0]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("compare", STUDY),
        ("ablate", (*STUDY, "--field=finetune.min_steps", "--values=1,2")),
        ("search", ("--tasks=digits", "--label_budgets=12", "--field=steps=1,2", "--arm=scratch")),
        pytest.param(
            "multitask",
            ("--tasks=digits", "--arms=scratch,classical", "--label_budgets=12"),
            marks=pytest.mark.slow,
        ),
        ("pretrain", ("--dataset=digits",)),
        ("adapt", ("--dataset=digits", "--labels=20")),
    ],
)
def test_set_reaches_the_config_and_errors_are_one_line(dry, tiny, name, flags):
    prefix = "joint." if name == "multitask" else ""
    plain = hash_of(dry(name, *flags))
    given = f"--set={prefix}optimizer.b2=0.5"
    changed = hash_of(dry(name, *flags, given))
    assert len(plain) == len(changed) == 16 and plain != changed
    # A later one replaces an earlier one.
    assert hash_of(dry(name, *flags, f"--set={prefix}optimizer.b2=0.9", given)) == changed
    error = dry(name, *flags, f"--set={prefix}optimizer.b3=0.5", code=2)
    assert f"--set={prefix}optimizer.b3=0.5: no 'b3' here; nearest: " in error
    assert f"{prefix}optimizer.b2" in error or "optimizer.b2" in error
    error = dry(name, *flags, f"--set={prefix}optimizer.b2=much", code=2)
    assert "'much' is not a value of" in error
    assert "--set=steps: takes PATH=VALUE" in dry(name, *flags, "--set=steps", code=2)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("compare", "text_column=review", "the data is read before fields are set; give --text_c"),
        ("compare", "unlabeled=more.txt", "give --unlabeled"),
        ("compare", "tasks.digits.dataset=photos", "give --dataset or --tasks"),
        ("compare", "fingerprint=0", "it follows from the data"),
        ("compare", "experiment=x", "is the name of the command"),
        ("compare", "seeds=0", "--seeds=0: must be 1 to 1000"),
        ("pretrain", "seed=3", "is set by a flag of its own: --seed=3"),
        ("ablate", "steps=3", "is what the ablation varies; give --values"),
    ],
)
def test_what_set_does_not_take(dry, tiny, name, given, says):
    flags = ("--dataset=digits",) if name == "pretrain" else STUDY
    more = ("--field=steps", "--values=1,2") if name == "ablate" else ()
    error = dry(name, *flags, *more, f"--set={given}", code=2)
    assert says in error, error


@pytest.mark.slow
def test_a_saved_config_gives_the_same_results(call, tmp_path, tiny, dry):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = (*STUDY, "--set=finetune.min_steps=2", "--set=label_budgets=14")
    done = call("compare", *flags, f"--out={first}")
    assert done.code == 0, done.err
    results = run_dir.read_results(first)
    assert results["config"]["tasks"]["digits"]["recipe"]["finetune"]["min_steps"] == 2
    assert results["config"]["tasks"]["digits"]["label_budgets"] == [14]
    done = call("compare", f"--config={first}", f"--out={second}")
    assert done.code == 0, done.err
    assert f"config hash {results['config_hash']}, that of the saved config" in done.err
    again = run_dir.read_results(second)
    assert again["config_hash"] == results["config_hash"]
    assert run_dir.results_digest(again) == run_dir.results_digest(results)
    said = dry("compare", f"--config={first / 'results.json'}", "--set=seeds=3")
    assert hash_of(said) != results["config_hash"] and "3 seeds" in said
    error = dry("compare", f"--config={first}", "--seeds=3", code=2)
    assert "--seeds: --config=" in error and "change a field with --set=FIELD=VALUE" in error
    error = dry("multitask", f"--config={first}", code=2)
    assert "is of fm compare, not of fm multitask" in error
    path = tmp_path / "changed.json"
    config = json.loads((first / "config.json").read_text())
    config["tasks"]["digits"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(config))
    assert "the data of digits has changed since" in dry("compare", f"--config={path}", code=2)


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_pretraining_by_a_saved_config(call, tmp_path, tiny, reviews, monkeypatch, several):
    monkeypatch.setattr(presets, "joint_recipe", lambda profile="default": RECIPE)
    text = str(reviews(reviews.rows))
    flags = [f"--dataset={text},digits", f"--mixture={text}:2,digits:1", "--captioned=digits"]
    if not several:
        flags = ["--dataset=digits", "--seed=3", "--set=optimizer.b2=0.9", "--batch_size=4"]
    outs = tmp_path / "first", tmp_path / "second"
    done = call("pretrain", *flags, "--steps=2", f"--out={outs[0]}")
    assert done.code == 0, done.err
    done = call("pretrain", f"--config={outs[0] / 'config.json'}", f"--out={outs[1]}")
    assert done.code == 0, done.err
    first, second = (json.loads((out / "summary.json").read_text()) for out in outs)
    assert first["params_digest"] == second["params_digest"]
    assert first["config"] == second["config"]
    assert f"config hash {config_hash(first['config'])}, that of the saved config" in done.err


@pytest.mark.slow
def test_adapting_by_a_saved_config(call, tmp_path, tiny):
    outs = tmp_path / "first", tmp_path / "second"
    flags = "--dataset=digits", "--labels=20", "--adapt=probe", "--set=l2_penalties=0.1,1"
    done = call("adapt", *flags, f"--out={outs[0]}")
    assert done.code == 0, done.err
    done = call("adapt", f"--config={outs[0]}", f"--out={outs[1]}")
    assert done.code == 0, done.err
    first, second = (json.loads((out / "summary.json").read_text()) for out in outs)
    assert first["predictions_digest"] == second["predictions_digest"]
    assert first["config"] == second["config"]


def test_a_text_quality_config_is_set_and_read_back(dry, tmp_path):
    for name in "AB":
        lines = "\n\n".join(f"{n} {line}" for n, line in enumerate(two_class_texts(240)[0]))
        (tmp_path / f"{name}.txt").write_text(f"{name}\n\n{lines}\n")
    flags = (f"--domains={tmp_path}/A.txt,{tmp_path}/B.txt", "--profile=quick")
    said = dry("text_quality", *flags, "--set=steps=8", "--set=training_sets.A.description=x")
    assert "training on A 1/64" in said and "8 steps" in said
    error = dry("text_quality", *flags, "--set=num_text=8", code=2)
    assert "no 'num_text' here; nearest: num_texts" in error
    error = dry("text_quality", *flags, "--set=text_column=a", code=2)
    assert "is set by a flag of its own: --text_column=a" in error


def test_a_dry_run_of_a_comparison_names_its_stages(dry, tiny):
    said = dry("compare", "--tasks=digits", "--arms=scratch,in_domain,out_of_domain",
               "--label_budgets=12,20", "--seeds=4", "--pretrain_seeds=4")  # fmt: skip
    assert said.startswith("dry run of compare: nothing is trained or written\nconfig hash ")
    names = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("stage ")]
    assert [name.partition(",")[0] for name in names] == [
        "digits: pretraining in_domain", "digits: pretraining out_of_domain", "digits: adapting"
    ]  # fmt: skip
    said = " ".join(said.split())
    for part in (
        *("4 models; 1,403 images;", "parameters; 4 steps of up to 32 tokens;", "of memory;"),
        *("3 arms (scratch, in_domain, out_of_domain); 2 label budgets (12, 20);", "on disk"),
        *("6 cells of 4 seeds, 24 fits", "in all: ", "were timed now, on this machine"),
    ):
        assert part in said, part


def test_variants_share_pretraining_in_a_dry_run(dry, tiny):
    flags = "--tasks=digits", "--arms=scratch,in_domain", "--label_budgets=12", "--seeds=2"
    same = dry("ablate", *flags, "--field=finetune.min_steps", "--values=1,2,3")
    assert same.count("pretraining in_domain") == 1 and same.count(": adapting") == 3
    other = dry("ablate", *flags, "--field=steps", "--values=1,2,3")
    assert other.count("pretraining in_domain") == 3


def test_a_dry_run_says_what_the_folder_holds(tmp_path):
    config = {"experiment": "x", "a": 1}
    assert stages.folder_state(config, tmp_path / "new") == "a new folder"
    assert stages.folder_state(config, tmp_path) == "a folder without a run"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "would be resumed" in stages.folder_state(config, tmp_path)
    assert "holds another config (a)" in stages.folder_state(config | {"a": 2}, tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    assert stages.folder_state(config, tmp_path) == "holds this run, finished"
    (tmp_path / "config.json").write_text("{")
    assert "would be refused" in stages.folder_state(config, tmp_path)


def test_a_dry_run_of_pretraining_until_it_is_flat(dry, tiny):
    said = dry("pretrain", "--dataset=digits", "--pretrain_minutes=3")
    assert "pretraining on digits, about 3 min" in said
    assert "until the validation loss is flat, or 3 min are over" in " ".join(said.split())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under a second"),
        (42.4, "about 42 s"),
        (150, "about 2 min"),
        (7000, "about 1.9 h"),
        (90_000, "about 25 h"),
    ],
)
def test_times_are_said_as_roughly_as_they_are_known(seconds, text):
    assert stages.about(seconds) == text


def test_a_command_without_stages_says_what_it_would_run(capsys):
    def fail(_):
        raise AssertionError("ran")

    arguments = ["--dry_run", "--out=a b"]
    code = cli.call("x", "Does it.\n", lambda v: cli.define_out(v, "runs/x"), fail, arguments)
    assert code == 0
    assert capsys.readouterr().out == (
        "would run: fm x '--out=a b'\nDoes it.\nOutput: a b. Only the flags were read; nothing "
        "else was checked.\n"
    )


def test_a_dry_run_does_not_try_what_is_too_large(dry, tiny, monkeypatch):
    monkeypatch.setattr("fm.study.step_estimate._estimated", {})
    monkeypatch.setattr("fm.study.step_estimate._STATE_SHARE_OF_MEMORY", 0.0)
    said = " ".join(dry("pretrain", "--dataset=digits").split())
    assert "too large to try, so the time is from its FLOPs" in said
