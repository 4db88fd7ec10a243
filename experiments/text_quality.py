"""How good and how diverse is a model's text, by training set, sampling and metric?

    fm text_quality

Takes 15 minutes on two cores: trains a small model on each of eleven training sets (one domain, the
other, mixtures, repeats, noise, subsets, pretrained and fine-tuned) at equal tokens, generates at
three checkpoints with up to seven sampling configs, and measures every sample with every metric.
Writes report.html, results.json and table.csv to runs/text_quality: quality against diversity, what
each metric selects, and how much the other metrics lose by it. The same command resumes an
interrupted run, or says that it is finished.

Two domains of your own:

    fm text_quality --domains=mails.txt,manuals.txt --out=runs/mine
"""

from __future__ import annotations

from absl import flags

from experiments import cli, config_flags, stages, training_flags
from experiments.finish import finish
from fm.errors import UserError, error_context
from fm.files import expand_path
from fm.study.loading import load
from fm.study.presets import PROFILES
from fm.study.runner import run_study
from fm.study.text_quality import config as text_quality_config
from fm.study.text_quality import scoring
from fm.study.text_quality.config import EXPERIMENT, STEPS_MULTIPLE, TextQualityConfig
from fm.study.text_quality.dry_run import study_stages
from fm.study.text_quality.runner import TextQualityStudy

_DATA_FLAGS = ("data_dir", "text_column", "encoding")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list(
        "domains", ["film_reviews", "docstrings"], "data sets A and B", flag_values=values
    )
    flags.DEFINE_enum("profile", "default", PROFILES, "size of the study", flag_values=values)
    flags.DEFINE_string(
        "embedder",
        None,
        "embedder of the MAUVE-style area: a published model (a known name, a Hugging Face folder "
        "or a GGUF file), or tfidf of the study's own texts; default: minilm-l6, downloaded "
        "once (84 MB), and tfidf in the quick profile",
        flag_values=values,
    )
    training_flags.define(values, "text_quality")
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder with prepared TFDS data sets; the user's cache if not given",
        flag_values=values,
    )
    flags.DEFINE_string(
        "text_column",
        "text",
        "column or key with the text, of csv and jsonl files",
        flag_values=values,
    )
    config_flags.define(values)
    cli.define_tracker(values)
    cli.define_encoding(values)
    cli.define_mesh(values)
    cli.define_out(values, "runs/text_quality")


def main(values: flags.FlagValues) -> None:
    """Runs the study, or reports the finished one."""
    out = cli.out_dir(values)
    config, embedder = configure(values)
    finish(run_study(TextQualityStudy(config, embedder), out), out)


def dry_run(values: flags.FlagValues) -> None:
    """Prints the stages of the study."""
    config, _ = configure(values)
    plain = text_quality_config.to_json(config)
    stages.show("text_quality", plain, cli.out_dir(values), study_stages(config))


def configure(values: flags.FlagValues) -> tuple[TextQualityConfig, scoring.EmbedderSpec]:
    """Returns the study that the flags describe, and its embedder.

    Raises:
      UserError: a flag names something that does not exist or does not fit.
    """
    saved = config_flags.saved_config(values, EXPERIMENT)
    if saved is not None:
        with error_context(expand_path(values["config"].value)):
            config = text_quality_config.from_json(saved)
        embedder = scoring.find_embedder(config.embedder.name)
        if embedder.info != config.embedder:
            raise UserError(
                f"--config={values['config'].value}: the embedder {config.embedder.name} is "
                "another one now"
            )
        where = {key: getattr(config, key) for key in _DATA_FLAGS}
        for name, fingerprint in zip(config.domains, config.fingerprints, strict=True):
            found = load(name, **where).info["fingerprint"]
            config_flags.check_unchanged(values, name, fingerprint, found)
        config_flags.tell_differences(values, saved, text_quality_config.to_json(config))
    else:
        config, embedder = _from_flags(values)
    also = ("domains", "embedder", *_DATA_FLAGS)
    return config_flags.with_settings(config, values, also), embedder


def _from_flags(values: flags.FlagValues) -> tuple[TextQualityConfig, scoring.EmbedderSpec]:
    names, profile = values["domains"].value, values["profile"].value
    if len(names) != 2 or len(set(names)) < 2:
        raise UserError(f"--domains={','.join(names)}: takes two different data sets, as in a,b")
    name = values["embedder"].value or text_quality_config.DEFAULT_EMBEDDERS[profile]
    embedder = scoring.find_embedder(name)
    where = {key: values[key].value for key in _DATA_FLAGS}
    training_flags.check(values)
    fingerprints = tuple(load(name, **where).info["fingerprint"] for name in names)
    config = text_quality_config.make_config(
        profile,
        (names[0], names[1]),
        seed=values["seed"].value,
        embedder=embedder.info,
        fingerprints=fingerprints,
        **where,
    )
    config = training_flags.with_default_dtype(config)
    config = training_flags.with_flags(config, values, EXPERIMENT, multiple=STEPS_MULTIPLE)
    return config, embedder


if __name__ == "__main__":
    cli.run("text_quality", __doc__, define, main, dry_run=dry_run)
