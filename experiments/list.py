"""Lists what there is: tasks, arms, methods, modalities, models, sizes, kernels and more.

fm list
fm list arms
"""

from __future__ import annotations

import difflib
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# (name, line) pairs. What they are read from is imported when they are asked for.
Rows = Iterator[tuple[str, str]]


def _tasks() -> Rows:
    from fm.study.task_registry import TASKS

    for spec in TASKS.values():
        question = spec.phrasings[0] if spec.phrasings else spec.dataset or spec.name
        suites = dict.fromkeys(each.removesuffix("_full") for each in spec.suites)
        yield spec.name, f"{question} ({', '.join(suites) or 'in no suite'})"


def _arms() -> Rows:
    from fm.study.arms import ARMS

    for spec in ARMS.values():
        yield spec.name, f"{spec.description} ({', '.join(spec.experiments)})"


def _methods() -> Rows:
    from fm.adaptation.methods import METHODS

    for method in METHODS.values():
        yield method.name, method.description


def _modalities() -> Rows:
    from fm.data.media import MODALITIES

    for each in MODALITIES.values():
        reads = ", ".join(each.codec.extensions) if each.codec else ".txt, .jsonl, .csv and others"
        yield each.name, f"reads {reads}; loss in {each.metric_unit.replace('_', ' ')}"


def _models() -> Rows:
    from fm.hf.model_zoo import MODEL_ZOO

    for name, entry in MODEL_ZOO.items():
        yield name, f"{entry.source}; {entry.license}"


def _families() -> Rows:
    from fm.hf.config import FAMILIES
    from fm.hf.encoders import ENCODER_FAMILIES

    for family in FAMILIES.values():
        yield family.name, f"text, {'a decoder' if family.causal else 'an encoder'}"
    for encoder in ENCODER_FAMILIES.values():
        yield encoder.name, f"{encoder.modality}, {encoder.title}"


def _kernels() -> Rows:
    from fm.attention.api import IMPLEMENTATIONS, KERNELS_BY_PLATFORM

    for name, each in IMPLEMENTATIONS.items():
        platforms = [key for key, names in KERNELS_BY_PLATFORM.items() if name in names]
        where = f" ({', '.join(platforms)})" if platforms else ""
        yield name, _first_line(sys.modules[each.attend.__module__].__doc__) + where


def _task_types() -> Rows:
    from fm.study.task_types import TASK_TYPES

    for name, each in TASK_TYPES.items():
        metric = each.metric.replace("_", " ")
        what = _first_line(type(each).__doc__).partition(";")[0].rstrip(".")
        yield name, f"{what}; metric: {metric}"


def _ablations() -> Rows:
    from fm.study import config_ablations
    from fm.study.ablations import ABLATIONS

    assert config_ablations  # registers those of configs
    for each in ABLATIONS.values():
        how = f"ablate --ablation={each.name}" if each.of_configs else "multitask --ablations"
        yield each.name, f"{each.title} ({how})"


def _claims() -> Rows:
    from fm.study.claims import CLAIMS

    for each in CLAIMS.values():
        yield each.name, f"{each.statement} ({each.paper.authors} {each.paper.year})"


def _recipes() -> Rows:
    from fm.study import presets

    built = {**presets.RECIPES, **presets.TASK_TYPE_RECIPES}
    for name, build in built.items():
        recipe = build("default")
        length = f"{recipe.steps:,} steps of {recipe.batch_size} sequences"
        yield name, f"{_shape(recipe.model)}, pretrained for {length}"
    for modality, others in presets.OTHER_RECIPES.items():
        for name, change in others.items():
            yield name, f"for {modality}: {_first_line(change.__doc__).removeprefix('Returns ')}"


def _trackers() -> Rows:
    from fm.training.trackers import TRACKERS

    for each in TRACKERS.values():
        yield each.name, each.description


def _sizes() -> Rows:
    from fm.model.sizes import SIZE_ALIASES, SIZES, config_for_size, format_count, num_layer_params

    for name in SIZES:
        config = config_for_size(name)
        count = format_count(num_layer_params(config))
        others = [alias for alias, of in SIZE_ALIASES.items() if of == name]
        also = f"; also called {', '.join(others)}" if others else ""
        yield name, f"{_shape(config)}, {count} parameters in the layers{also}"


KINDS: dict[str, tuple[str, Callable[[], Rows]]] = {
    "tasks": ("built-in tasks, for --tasks; every other data set is one too", _tasks),
    "arms": ("ways to a model that a study compares, for --arms", _arms),
    "methods": ("adaptation methods, for --adapt", _methods),
    "modalities": ("kinds of data, and the files they are read from", _modalities),
    "models": ("published models by name", _models),
    "families": ("model_type of Hugging Face folders that are read, for --model", _families),
    "sizes": ("model sizes, for --size", _sizes),
    "kernels": ("attention implementations; fm doctor says which are selected here", _kernels),
    "task_types": ("kinds of task, and their metrics", _task_types),
    "ablations": ("registered ablations", _ablations),
    "claims": ("published claims with a protocol here, for fm claims", _claims),
    "trackers": ("what can show metrics while a run goes on, for --tracker", _trackers),
    "recipes": ("default recipes by modality and task type, and --more_recipes", _recipes),
}


def run(arguments: Sequence[str]) -> int:
    """Prints the kinds that the arguments name, all by default; returns the exit code."""
    names = [each for each in arguments if not each.startswith("-")]
    options = [each for each in arguments if each.startswith("-")]
    if any(each in ("-h", "--help") for each in options):
        print(help_text())
        return 0
    if options:
        return _fail(f"{options[0]} is not a flag; fm list takes {', '.join(KINDS)}")
    for name in names:
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return _fail(f"fm list takes {', '.join(KINDS)}, not {name!r}{hint}")
    print("\n\n".join(_section(name) for name in names or KINDS))
    return 0


def help_text() -> str:
    """Returns what --help prints."""
    rows = "\n".join(aligned((name, line) for name, (line, _) in KINDS.items()))
    return (
        f"fm list KIND ...   (or: python -m experiments.list KIND ...)\n\n{__doc__.strip()}\n\n"
        f"kinds:\n{rows}"
    )


def aligned(rows: Rows, width: int = 100) -> list[str]:
    """Returns lines of names and texts in two columns, the texts wrapped."""
    pairs = list(rows)
    column = max((len(name) for name, _ in pairs), default=0) + 4
    lines = []
    for name, text in pairs:
        lines += textwrap.wrap(
            " ".join(text.split()),
            width,
            initial_indent=f"  {name}".ljust(column),
            subsequent_indent=" " * column,
            break_on_hyphens=False,
        )
    return lines


def _section(name: str) -> str:
    title, rows = KINDS[name]
    return "\n".join([f"{name}: {title}", *aligned(rows())])


def _shape(config: Any) -> str:
    layers = "1 layer" if config.num_layers == 1 else f"{config.num_layers} layers"
    return f"{layers} of width {config.d_model}"


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _fail(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
