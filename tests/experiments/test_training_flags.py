"""The flags of training: one table, the same in every command, resolved in the config."""

import json
import pathlib
import re

import pytest
from absl import flags

from experiments import ablate, adapt, compare, multitask, pretrain, search, text_quality
from experiments import training_flags as table
from fm.study.config import JointRecipe, Recipe, config_hash
from tests.study.test_joint_pretraining import RECIPE

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = {
    "ablate": ablate, "adapt": adapt, "compare": compare, "multitask": multitask,
    "pretrain": pretrain, "search": search, "text_quality": text_quality,
}  # fmt: skip
STUDY = "--arms=scratch,classical", "--label_budgets=12", "--seeds=2"
GIVEN = {
    "dtype": ("bfloat16", "model.dtype", "bfloat16"),
    "learning_rate": ("0.01", "optimizer.learning_rate", 0.01),
    "schedule": ("cosine", "optimizer.schedule", "cosine"),
    "warmup_steps": ("5", "optimizer.warmup_steps", 5),
    "weight_decay": ("0", "optimizer.weight_decay", 0.0),
    "optimizer": ("adamw", "optimizer.name", "adamw"),
    "grad_clip": ("0.5", "optimizer.clip", 0.5),
    "grad_accum_steps": ("2", "grad_accum_steps", 2),
    "batch_size": ("8", "batch_size", 8),
    "steps": ("40", "steps", 40),
    "keep_period": ("20", "keep_period", 20),
}


def parsed(name, *arguments):
    values = flags.FlagValues()
    COMMANDS[name].define(values)
    flags.DEFINE_boolean("dry_run", True, "", flag_values=values)
    values([name, *arguments])
    return values


def recipe_of(name, *arguments):
    """The recipe that a command's flags describe."""
    found = COMMANDS[name].configure(parsed(name, *arguments))
    if name == "pretrain":
        return found.recipe
    if name == "text_quality":
        return found[0]
    if name == "ablate":
        return next(iter(found[2].values())).config.tasks[0].recipe
    return found.joint if name == "multitask" else found.tasks[0].recipe


def at(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


ARGUMENTS = {
    "pretrain": ("--dataset=digits",),
    "compare": ("--tasks=digits", *STUDY),
    "ablate": ("--tasks=digits", *STUDY, "--field=finetune.min_steps", "--values=1,2"),
    "search": ("--tasks=digits", "--label_budgets=12", "--field=finetune.min_steps=1,2"),
    "multitask": ("--tasks=digits", "--arms=scratch,classical", "--label_budgets=12"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_flag_sets_its_field(tiny, name):
    # Digits have no tokenizer.
    flags_of_all = [flag for flag in table.FLAGS if not flag.is_of_text]
    own = {flag.name: flag for flag in flags_of_all if name in flag.commands}
    given = {key: value for key, value in GIVEN.items() if key in own}
    assert own.keys() - given.keys() <= {"epochs", "tokens", "eval_every", "checkpoint_every",
                                         "seed"}  # fmt: skip
    arguments = [f"--{key}={value[0]}" for key, value in given.items()]
    recipe = recipe_of(name, *ARGUMENTS[name], *arguments)
    for flag, (_, path, value) in given.items():
        assert path == own[flag].field and at(recipe, path) == value, flag
    default = recipe_of(name, *ARGUMENTS[name])
    ratio = default.optimizer.adam_learning_rate / default.optimizer.learning_rate
    assert recipe.optimizer.adam_learning_rate == pytest.approx(0.01 * ratio)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_defines_the_flags_of_the_table_and_no_other(name):
    values = parsed(name)
    for flag in table.FLAGS:
        own = name in flag.all_commands
        # A flag of this name may have another meaning elsewhere; none has.
        assert (flag.name in values) == own, flag.name


def test_the_guide_has_the_table():
    assert table.markdown_table() in (ROOT / "docs/settings.md").read_text()


@pytest.mark.parametrize(
    ("flags_given", "says"),
    [
        (["--steps=5", "--epochs=2"], "--steps=5 and --epochs=2: each says how long to train; "
                                      "give --steps or --epochs or --tokens"),
        (["--epochs=0"], "--epochs=0: takes a number above 0"),
        (["--tokens=nan"], "--tokens=nan: takes a number above 0"),
        (["--grad_clip=-1"], "--grad_clip=-1: takes a number above 0"),
        (["--warmup_steps=9", "--steps=9"], "--warmup_steps=9: warmup_steps=9: must be below"),
        (["--grad_accum_steps=3"], "--grad_accum_steps=3: "),
        (["--dtype=float16"], "--dtype=float16: takes one of float32, bfloat16"),
        (["--validate_every=5"], "--validate_every is now called --eval_every"),
        (["--profile_steps=1:3"], "--profile_steps=1:3: takes the first and the last step, from 2"),
        (["--profile_steps=7"], "such as 10:15"),
        (["--steps=4", "--profile_steps=5:6"], "--profile_steps=5:6: the run has 4 steps"),
        (["--learning_rate=1e308"], "--learning_rate=1e+308: optimizer: adam_learning_rate=inf"),
        (["--epochs=1e300"], "--epochs=1e+300: takes at most 2,147,483,647 steps"),
    ],
)  # fmt: skip
def test_what_is_refused(call, tiny, tmp_path, flags_given, says):
    done = call("pretrain", "--dataset=digits", *flags_given, f"--out={tmp_path / 'out'}")
    assert done.code == 2 and says in done.error, done.error
    assert not (tmp_path / "out").exists()


def test_vocabulary_and_sequences_have_the_size_asked_for(call, tiny, reviews, tmp_path):
    data, out = f"--dataset={reviews(reviews.rows)}", tmp_path / "out"
    flags_given = "--steps=2", "--vocab_size=263", "--max_seq_len=64"
    done = call("pretrain", data, *flags_given, f"--out={out}")
    assert done.code == 0, done.err
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"]["vocab_size"] == 263 and config["recipe"]["seq_len"] == 64
    assert len(json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]) == 263 - 4


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pretrain", ["--dataset=digits"]),
        ("pretrain", ["--dataset=digits,spoken_words"]),
        ("compare", ARGUMENTS["compare"]),
        ("multitask", ARGUMENTS["multitask"]),
        ("adapt", ["--dataset=digits"]),
    ],
)
@pytest.mark.slow
def test_flags_of_text_are_refused_without_text(tiny, call, tmp_path, command, arguments):
    flags = ["--max_seq_len=300"]
    flags += ["--vocab_size=300"] * (command != "adapt")
    for flag in flags:
        done = call(command, *arguments, flag, f"--out={tmp_path / 'out'}")
        assert done.code == 2, done.err
        assert f"{flag}: is for text, not for digits" in done.error
        assert not (tmp_path / "out").exists()


def test_a_vocabulary_too_small_is_refused_before_anything_is_written(
    tiny, call, reviews, tmp_path
):
    arguments = f"--dataset={reviews(reviews.rows)}", "--vocab_size=259", f"--out={tmp_path / 'o'}"
    done = call("pretrain", *arguments)
    assert done.code == 2
    assert "--vocab_size=259: vocab_size=259: must be at least 260 for bpe" in done.error
    assert not (tmp_path / "o").exists()


def test_a_study_says_which_tasks_have_no_vocabulary(tiny, reviews, capsys):
    own = str(reviews(reviews.rows))
    values = parsed("compare", f"--tasks={own},digits", *STUDY, "--vocab_size=300")
    config = compare.configure(values)
    assert [task.recipe.vocab_size for task in config.tasks] == [300, 0]
    assert "digits: --vocab_size=300 is for text, not used" in capsys.readouterr().err


def test_a_mixture_takes_tokens_and_no_epochs(tiny, reviews, capsys, monkeypatch):
    monkeypatch.setattr("fm.study.presets.joint_recipe", lambda profile="default": RECIPE)
    several = f"--dataset={reviews(reviews.rows)},digits"
    recipe = recipe_of("pretrain", several, "--tokens=10000")
    assert recipe.steps == -(-10000 // (recipe.batch_size * recipe.seq_len))
    assert f"is {recipe.steps} steps of {recipe.batch_size} rows" in capsys.readouterr().err
    with pytest.raises(Exception, match=r"--epochs=2: is for one data set"):
        recipe_of("pretrain", several, "--epochs=2")


def test_passes_over_images_are_rows_and_patches(tiny, capsys):
    recipe = recipe_of("pretrain", "--dataset=digits", "--epochs=2", "--batch_size=10")
    said = capsys.readouterr().err
    rows, patches = (int(part.replace(",", "")) for part in
                     re.search(r"a pass is ([\d,]+) rows with ([\d,]+) patches",
                                             said).groups())  # fmt: skip
    assert recipe.steps == -(-2 * rows // 10) and patches % rows == 0
    assert f"digits: --epochs=2 is {recipe.steps} steps of 10 rows" in said
    tokens = recipe_of("pretrain", "--dataset=digits", f"--tokens={3 * patches}", "--batch_size=10")
    assert tokens.steps == -(-3 * rows // 10)


@pytest.mark.parametrize("objective", ["causal_lm:1", "bag_of_words:1"])
@pytest.mark.slow
def test_passes_over_texts_are_those_that_are_trained(call, tiny, reviews, tmp_path, objective):
    flags_given = f"--dataset={reviews(reviews.rows)}", f"--objective={objective}"
    out = tmp_path / "out"
    done = call("pretrain", *flags_given, "--epochs=2", "--batch_size=4", f"--out={out}")
    assert done.code == 0, done.err
    summary = json.loads((out / "summary.json").read_text())
    (said,) = [line for line in done.err.splitlines() if "--epochs=2 is" in line]
    tokens = int(said.partition(" rows with ")[2].partition(" tokens")[0].replace(",", ""))
    rows = int(said.partition("a pass is ")[2].partition(" rows")[0].replace(",", ""))
    assert summary["steps"] == -(-2 * rows // 4) == summary["config"]["recipe"]["steps"]
    # Two passes, and the first rows of a third where the last batch is not full.
    assert 2 * tokens <= summary["tokens"] < 2 * tokens + 4 * 2 * tokens / rows
    assert f": {summary['steps']} steps of " in done.err
    again = call("pretrain", f"--config={out}", f"--out={tmp_path / 'again'}")
    assert again.code == 0, again.err
    repeated = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert repeated["params_digest"] == summary["params_digest"]
    assert repeated["config"] == summary["config"]


@pytest.mark.slow
def test_flags_are_refused_beside_a_config_but_for_those_of_the_run(call, tiny, tmp_path):
    out = tmp_path / "out"
    flags_given = "--dataset=digits", "--steps=4", "--warmup_steps=2", "--weight_decay=0.5"
    assert call("pretrain", *flags_given, f"--out={out}").code == 0
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"]["optimizer"]["warmup_steps"] == 2
    for flag in ("--grad_clip=2", "--dtype=float32", "--tokens=9"):
        refused = call("pretrain", f"--config={out}", flag, f"--out={tmp_path / 'b'}", "--dry_run")
        assert refused.code == 2 and "is a whole config already" in refused.error
    done = call("pretrain", f"--config={out}", "--eval_every=2", "--checkpoint_every=2",
                "--dry_run", f"--out={tmp_path / 'c'}")  # fmt: skip
    assert done.code == 0 and f"config hash {config_hash(config)}" in done.out
    changed = call("pretrain", f"--config={out}", "--set=optimizer.warmup_steps=null",
                   "--dry_run", f"--out={tmp_path / 'c'}")  # fmt: skip
    assert changed.code == 0 and config_hash(config) not in changed.out


def test_products_are_bfloat16_on_accelerators_unless_said_otherwise(tiny, monkeypatch):
    class Device:
        platform = "gpu"

    monkeypatch.setattr(table, "default_device", lambda: Device)
    for name, arguments in ARGUMENTS.items():
        assert recipe_of(name, *arguments).model.dtype == "bfloat16", name
        assert recipe_of(name, *arguments, "--dtype=float32").model.dtype == "float32", name
    assert recipe_of("pretrain", "--dataset=digits", "--size=nano").model.dtype == "bfloat16"
    monkeypatch.undo()
    assert table.default_dtype() == "float32"


@pytest.mark.slow
def test_adapt_sets_what_fine_tuning_reads(call, reviews, tmp_path):
    given = {
        "dtype": "bfloat16", "learning_rate": "0.02", "batch_size": "6", "epochs": "8",
        "max_seq_len": "32", "seed": "4",
    }  # fmt: skip
    arguments = [f"--{key}={value}" for key, value in given.items()]
    out = tmp_path / "out"
    done = call("adapt", f"--dataset={reviews(reviews.rows)}", "--labels=20", "--adapt=full",
                *arguments, f"--out={out}")  # fmt: skip
    assert done.code == 0, done.err
    config = json.loads((out / "config.json").read_text())
    recipe, tuned = config["recipe"], config["recipe"]["finetune"]
    assert recipe["learning_rates"] == [0.02] and recipe["seq_len"] == 32 and config["seed"] == 4
    assert (tuned["batch_size"], tuned["max_epochs"]) == (6, 8)
    assert recipe["model"]["dtype"] == config["dtype"] == "bfloat16"
    summary = json.loads((out / "summary.json").read_text())
    assert {trial["config"]["learning_rate"] for trial in summary["trials"]} == {0.02}
    few = call("adapt", "--dataset=digits", "--labels=20", "--epochs=2", f"--out={tmp_path / 'b'}")
    assert few.code == 2 and "--epochs=2" in few.error


def test_fields_of_the_table_are_those_of_the_recipes():
    for flag in table.FLAGS:
        for path in filter(None, (flag.field, flag.adapt_field)):
            assert path.partition(".")[0] in Recipe.__dataclass_fields__
        if flag.field and "multitask" in flag.commands:
            assert flag.field.partition(".")[0] in JointRecipe.__dataclass_fields__


def test_a_profile_is_beside_the_run_and_the_last_line_says_how_to_open_it(call, tiny, tmp_path):
    out = tmp_path / "out"
    flags_given = "--dataset=digits", "--steps=5"
    plain = call("pretrain", *flags_given, f"--out={tmp_path / 'plain'}")
    done = call("pretrain", *flags_given, "--profile_steps=2:3", f"--out={out}")
    assert done.code == plain.code == 0, done.err
    assert f"profile: {out / 'profile'}; open it by" in done.out.splitlines()[-1]
    digests = [json.loads((each / "summary.json").read_text())["params_digest"]
               for each in (out, tmp_path / "plain")]  # fmt: skip
    assert digests[0] == digests[1]
    again = call("pretrain", *flags_given, "--profile_steps=2:3", f"--out={out}")
    assert "no profile of steps 2 to 3: 5 steps are done" in again.err


def test_a_dry_run_shows_what_the_flags_come_to(call, tiny, tmp_path):
    given = ("--steps=40", "--warmup_steps=5", "--optimizer=adamw", "--learning_rate=0.001",
             "--schedule=cosine", "--grad_accum_steps=2", "--batch_size=8", "--grad_clip=0.5",
             "--dtype=bfloat16", "--weight_decay=0.1")  # fmt: skip
    done = call("pretrain", "--dataset=digits", *given, "--dry_run", f"--out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    for part in (
        *("40 steps of up to", "bfloat16 products", "adamw at 0.001;", "2 microbatches"),
        *("cosine after 5 steps of warm-up", "weight decay 0.1, gradient norm up to 0.5"),
    ):
        assert part in said, part
