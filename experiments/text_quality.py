"""What is a model's text like, by what it was trained on and by the metric that judges it?

    python -m experiments.text_quality

About a quarter of an hour on two cores: trains a small model on each of eleven training sets (one
domain, another, mixtures, repeats, noise, subsets, pretrained and tuned) at equal tokens, lets each
write at three checkpoints and up to seven decodings, and takes every metric of every sample. Writes
runs/text_quality/report.html, results.json and table.csv: the frontier of quality and diversity,
what each metric would choose, and how the others fare when it does. The same command again goes on
where it was, or says that it is finished.

Two domains of your own:

    python -m experiments.text_quality --domains=mails.txt,manuals.txt --out=runs/mine
"""

from __future__ import annotations

from absl import flags

from experiments import cli
from fm.data.load import load
from fm.errors import UserError
from fm.report import text_quality as report
from fm.study import run_dir
from fm.study.text_quality import config as profiles
from fm.study.text_quality import scoring
from fm.study.text_quality.runner import run_study


def define(values: flags.FlagValues) -> None:
    """The domains and how much of everything."""
    flags.DEFINE_list(
        "domains", ["film_reviews", "docstrings"], "data sets A and B", flag_values=values
    )
    flags.DEFINE_enum(
        "profile", "default", profiles.PROFILES, "how much of everything", flag_values=values
    )
    flags.DEFINE_string(
        "embedder",
        None,
        "whose vectors the MAUVE-style area compares texts by: a published model's (a known name, "
        "a Hugging Face folder or a GGUF file), or terms, TF-IDF of the study's own texts; if not "
        "given minilm-l6, fetched once (84 MB), and terms in the quick profile",
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "of everything random", flag_values=values, lower_bound=0)
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
    cli.define_mesh(values)
    cli.define_out(values, "runs/text_quality")


def main(values: flags.FlagValues) -> None:
    """Runs the study, or shows the one that is there."""
    out, names = cli.out_dir(values), values["domains"].value
    if len(names) != 2 or len(set(names)) < 2:
        raise UserError(f"--domains={','.join(names)}: takes two different data sets, as in a,b")
    profile = values["profile"].value
    found = scoring.find_embedder(values["embedder"].value or profiles.DEFAULT_EMBEDDERS[profile])
    where = {key: values[key].value for key in ("data_dir", "text_column")}
    fingerprints = tuple(load(name, **where).info["fingerprint"] for name in names)
    config = profiles.make_config(
        profile,
        (names[0], names[1]),
        seed=values["seed"].value,
        features=found.info,
        fingerprints=fingerprints,
        **where,
    )
    results = run_study(config, out, found)
    results["headline"] = report.headline(results)
    run_dir.write_results(results, out)
    page = report.write(results, out)
    run_dir.write_study_summary(results, out)
    print(f"\n{results['headline']}\n\nreport: {page}")


if __name__ == "__main__":
    cli.run("text_quality", __doc__, define, main)
