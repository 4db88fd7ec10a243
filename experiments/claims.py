"""Does a published claim about pretraining hold here, in shape? One experiment for each claim.

    fm claims --list
    fm claims --claim=scratch_catches_up --profile=full --out=runs/scratch_catches_up

Every claim has a protocol and a criterion that was written before its run and is part of the run's
config. The full profile is judged: reproduced in shape, not reproduced, or undecided at this power.
The quick profile checks that everything runs, and the pilot looks, on a development part of the
training split, whether a setting can show anything; neither is judged.
Writes report.html, results.json, predictions.csv.xz and the picture. The same command resumes.
"""

from __future__ import annotations

import textwrap

from absl import flags

from experiments import cli, stages
from experiments.finish import finish
from fm.errors import UserError
from fm.files import expand_path
from fm.study.claims import CLAIMS, Claim, find_claim
from fm.study.claims.registry import FULL, PROFILES
from fm.study.claims.runner import EXPERIMENT, ClaimStudy, run_claim
from fm.study.dry_run import StageEstimate, variant_stages


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("claim", None, f"one of {', '.join(CLAIMS)}", flag_values=values)
    flags.DEFINE_boolean(
        "list",
        False,
        "print every claim: paper, protocol, criterion",
        flag_values=values,
    )
    flags.DEFINE_enum("profile", FULL, PROFILES, "size of the experiment", flag_values=values)
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder with prepared TFDS data sets; the user's cache if not given",
        flag_values=values,
    )
    cli.define_tracker(values)
    cli.define_out(values, "runs/claims")


def main(values: flags.FlagValues) -> None:
    """Runs a claim, or lists all."""
    if values["list"].value:
        print("\n\n".join(map(_described, CLAIMS.values())))
        return
    study, out = configure(values), cli.out_dir(values)
    finish(run_claim(study, out), out, summary=False)


def dry_run(values: flags.FlagValues) -> None:
    """Prints the stages of the claim's studies, or its protocol where it has none."""
    study = configure(values)
    claim = study.claim
    if claim.studies is not None:
        steps = variant_stages(claim.studies(study.profile, study.data_dir))
    else:
        seconds = 60 * claim.minutes[study.profile]
        steps = [StageEstimate(claim.name, (claim.protocol,), seconds)]
    stages.show(EXPERIMENT, study.to_dict(), cli.out_dir(values), steps)


def configure(values: flags.FlagValues) -> ClaimStudy:
    """Returns the claim and profile that the flags name.

    Raises:
      UserError: there is no such claim, it has no such profile, or a folder is given that it does
        not read.
    """
    claim, folder = find_claim(values["claim"].value), values["data_dir"].value
    if folder is not None and claim.tfds_name is None:
        raise UserError(f"--data_dir={folder}: {claim.name} reads no TFDS data set; leave it out")
    data_dir = None if folder is None else str(expand_path(folder))
    return ClaimStudy(claim, str(values["profile"].value), data_dir)


def _described(claim: Claim) -> str:
    minutes = ", ".join(f"{value:g} min {name}" for name, value in claim.minutes.items())
    lines = [
        f"{claim.name}: {claim.statement}",
        f"paper: {claim.paper.authors} ({claim.paper.year}), {claim.paper.title}, "
        f"{claim.paper.venue}, {claim.paper.link}",
        *(f"paper's figure: {each.text} ({each.where})" for each in claim.figures),
        f"protocol: {claim.protocol}",
        *(f"criterion: {each}" for each in claim.criterion),
        f"time on two cores: {minutes}",
    ]
    return "\n".join(
        textwrap.fill(line, 98, initial_indent="  " if n else "", subsequent_indent="    ")
        for n, line in enumerate(lines)
    )


if __name__ == "__main__":
    cli.run("claims", __doc__, define, main, dry_run=dry_run)
