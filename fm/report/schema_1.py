"""Upgrades a results.json of schema 1 (until November 2026) to the names of schema 2."""

from typing import Any

_SECTIONS = {
    "equivalents": "label_efficiency",
    "ledger": "compute_cost",
    "leakage": "decontamination",
    "following": "instruction_following",
    "bill": "amortized_cost",
    "matrix": "transfer_matrix",
    "amount": "data_amount",
}
_FIELDS = {
    "labels": "num_labels",
    "beyond": "censored",
    "setting": "hparams",
    "imported": "published",
    "upstream": "out_of_domain_dataset",
    "way": "arm",
    "against": "baseline",
    "format": "changed_modality",
}
_ARMS = {
    "self": "in_domain",
    "upstream": "out_of_domain",
    "imported": "published",
    "instructed": "instruction_tuned",
}
_EXPERIMENTS = {"unify": "multitask"}
_DATA_NOUNS = {"text": "text", "image": "images", "audio": "sound", "video": "video"}
_KERNELS = {
    "cpu": "xla_tiled",
    "chunked": "xla_chunked",
    "tpu": "splash",
    "pallas_gpu": "mosaic_gpu",
}

# What schema 1 files leave out: title, description, pretraining data and look of each arm.
_ARM_ROWS = (
    (
        "scratch",
        "training from scratch",
        "Random initial weights, trained on the labeled examples only.",
        *(None, "#000000", (0, (5, 2)), "s"),
    ),
    (
        "in_domain",
        "pretraining on your own unlabeled {data}",
        "Pretrained on the task's own data without its labels, then trained on the same labeled "
        "examples.",
        *("the task's own data", "#0072B2", "-", "o"),
    ),
    (
        "out_of_domain",
        "pretraining on other {data}",
        "Pretrained on other data of the same kind, then trained on the same labeled examples.",
        *("other data of the same modality", "#009E73", "-", "^"),
    ),
    (
        "joint",
        "pretraining on all modalities together",
        "Pretrained on every modality at once, then trained on the same labeled examples.",
        *("all modalities", "#CC79A7", "-", "D"),
    ),
    (
        "instruction_tuned",
        "instruction tuning",
        "One model tuned to follow written instructions over many tasks, then asked this one.",
        *("all modalities", "#56B4E9", (0, (7, 1, 1, 1)), "v"),
    ),
    (
        "published",
        "starting from published weights",
        "Published weights, pretrained elsewhere, then trained on the same labeled examples; "
        "they may have seen these test items before.",
        *("published data", "#8A7700", "-", "P"),
    ),
    (
        "classical",
        "the classical baseline",
        "No neural network: word counts, pixels or sound statistics with logistic regression.",
        *(None, "#E69F00", (0, (1, 1)), "X"),
    ),
)
_ARM_FIELDS = ("name", "title", "description", "pretrained_on", "color", "linestyle", "marker")
# Of a study of one model for many tasks: arm, baseline, words, points it may be behind and hold.
_CLAIM_ROWS = (
    ("joint", "scratch", "joint pretraining against distinct networks from scratch", None),
    ("joint", "in_domain", "joint pretraining against pretraining on the one modality", 1.0),
    ("instruction_tuned", "joint", "one instructed network against a head for each task", 2.0),
    ("instruction_tuned", "scratch", "one instructed network against networks from scratch", None),
    ("joint", "classical", "joint pretraining against the classical baselines", None),
)
_CLAIM_FIELDS = ["arm", "baseline", "text", "margin"]

_ABLATIONS = {
    "transfer_matrix": ("Pretrained on one modality, adapted to the tasks of every one", "source"),
    "mixture": ("The weight of one modality in the mixture changed", "factor"),
    "data_amount": ("A share of the pretraining examples", "share"),
}


def upgrade(results: dict[str, Any]) -> dict[str, Any]:
    """Returns results of schema 1 under the names of schema 2, with the same values."""
    upgraded = {_SECTIONS.get(name, name): _upgraded(name, rows) for name, rows in results.items()}
    experiment = upgraded.get("experiment")
    if isinstance(experiment, str):
        upgraded["experiment"] = _EXPERIMENTS.get(experiment, experiment)
    if isinstance(kernels := upgraded.get("attention"), dict):
        upgraded["attention"] = {
            task: _KERNELS.get(str(kernel), kernel) for task, kernel in kernels.items()
        }
    for task in _records(upgraded.get("tasks")):
        task.setdefault("data_noun", _DATA_NOUNS.get(str(task.get("modality"))))
    names = {
        row.get(side)
        for section in ("cells", "comparisons", "curves", "amortized_cost")
        for row in _records(upgraded.get(section))
        for side in ("arm", "baseline")
    }
    arms = [dict(zip(_ARM_FIELDS, row, strict=True)) for row in _ARM_ROWS if row[0] in names]
    upgraded.setdefault("arms", arms)
    ablations = [
        {
            "name": name,
            "title": title,
            "figure": {"kind": "curve" if field == "share" else "grid", "field": field},
        }
        for name, (title, field) in _ABLATIONS.items()
        if upgraded.get(name)
    ]
    upgraded.setdefault("ablations", ablations)
    if upgraded.get("experiment") == "multitask":
        claims = [dict(zip(_CLAIM_FIELDS, row, strict=True)) for row in _CLAIM_ROWS]
        upgraded.setdefault("claims", claims)
    return upgraded


def _records(rows: Any) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _upgraded(section: str, rows: Any) -> Any:
    """A section with its rows' fields and arms renamed; anything else as it is."""
    if not isinstance(rows, list):
        return rows
    fields = _FIELDS | ({"tasks": "num_tasks"} if section == "bill" else {})
    return [
        {fields.get(name, name): _arm_renamed(name, value) for name, value in row.items()}
        if isinstance(row, dict)
        else row
        for row in rows
    ]


def _arm_renamed(field: str, value: Any) -> Any:
    if field in ("arm", "baseline", "way", "against") and isinstance(value, str):
        return _ARMS.get(value, value)
    if field == "never" and isinstance(value, list):
        return _upgraded("never", value)
    return value
