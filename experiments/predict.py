"""Labels new examples with an adapted model.

    fm predict --model=runs/adapt/model --dataset=new.csv --out=runs/labels
    fm predict --model=runs/adapt/model --dataset=held_out.csv --score

--model is the folder `model` that fm adapt writes in its --out. --dataset is a file,
folder or archive of any kind that experiments read, or the name of a data set, whose test split is
read. Writes OUT/predictions.csv, with a row for each example: its id, the prediction and the
probability of each class. Labels are not needed; --score compares with them. The same command
resumes.
"""

from __future__ import annotations

import contextlib
import sys
import time

import jax
from absl import flags

from experiments import cli, stages
from fm.data.new_examples import NewExamples, open_new_examples
from fm.data.readers.examples import TextFormat
from fm.data.readers.folders import FileNameFieldPositions
from fm.errors import UserError
from fm.files import file_digest
from fm.parallel.mesh import current_mesh
from fm.progress_lines import say
from fm.study import labeling, run_dir, saved_model
from fm.study.adapted_model import READING_FLAGS, AdaptedModel, names_line
from fm.study.dry_run import StageEstimate
from fm.study.model_folders import ADAPTED, find_model


def define(values: flags.FlagValues) -> None:
    """Defines the flags of model, data and output."""
    flags.DEFINE_string("model", None, "folder of an adapted model", flag_values=values)
    flags.DEFINE_string(
        "dataset", None, "file, folder or archive to label, or a name", flag_values=values
    )
    for name, text in _COLUMNS.items():
        flags.DEFINE_string(name, None, f"{text}; by default as in adapting", flag_values=values)
    for name, text in (
        ("label_field", "for --score, index of the label in file names"),
        ("speaker_field", "for --score, index of the speaker in file names"),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values, lower_bound=0)
    cli.define_encoding(values)
    flags.DEFINE_string(
        "data_dir", None, "folder of prepared TFDS data sets, for a name", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size",
        64,
        "examples read, labeled and written at once; their numbers do not depend on it",
        flag_values=values,
        lower_bound=1,
    )
    flags.DEFINE_boolean("score", False, "compare with the labels of the data", flag_values=values)
    cli.define_mesh(values)
    cli.define_out(values, "runs/predict")


_COLUMNS = {
    "text_column": "column or key of the text",
    "label_column": "for --score, column or key of the label",
    "target_column": "for --score, column or key of the text to generate",
    "value_column": "for --score, column or key of the number",
    "label_separator": "for --score, what separates the classes of a label set",
    "second_text_column": "column or key of the second text of a pair",
    "file_column": "column or key of the file that is the input",
    "id_column": "column or key of the id of an example",
}
assert set(_COLUMNS) == set(READING_FLAGS)


def main(values: flags.FlagValues) -> None:
    """Labels all examples and prints where the predictions are."""
    began = time.perf_counter()
    out_dir, name = cli.out_dir(values), values["dataset"].value
    for flag in ("model", "dataset"):
        if not (values[flag].value or "").strip():
            takes = "the folder of an adapted model" if flag == "model" else "data to label"
            raise UserError(f"--{flag}: takes {takes}")
    location = find_model(values["model"].value, (ADAPTED,))
    adapted = saved_model.load(location.path)
    score = values["score"].value
    with _open(values, adapted, with_labels=score) as examples:
        if score:
            labeling.check_labels(adapted, examples)
        config = {
            "experiment": "predict",
            "model": {"name": location.name, "digest": file_digest(location.path / "digests.json")},
            "dataset": {"name": name, "fingerprint": examples.fingerprint},
            "score": score,
            **{flag: values[flag].value for flag in (*_COLUMNS, "encoding", "data_dir")},
        }
        if cli.is_dry_run(values):
            details = (
                f"{len(examples):,} examples of {name}",
                f"the model {location.name}, {_summary_of(adapted)}",
            )
            stages.show("predict", config, out_dir, [StageEstimate("labeling", details)])
            return
        run_dir.init(config, out_dir)
        if run_dir.read_summary(out_dir) is not None:
            print(f"{out_dir} is finished; use another --out to run again")
            return
        mesh = current_mesh()
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            path = labeling.label_examples(
                adapted,
                examples,
                out_dir,
                batch_size=values["batch_size"].value,
                score=score,
            )
        for line in examples.changes():
            say(f"{name}: {line}")
        count, labels = len(examples), examples.labels
    metrics = {}
    if score:
        metric, figure, num_labeled = labeling.score_file(adapted, path, labels)
        metrics = {metric: figure}
        print(f"{metric} {figure:.3f} on {num_labeled:,} labeled examples of {count:,}")
    run_dir.write_summary_json(
        out_dir,
        steps=0,
        num_examples=count,
        metrics=metrics,
        digests={"predictions": file_digest(path)},
        seconds=time.perf_counter() - began,
        config=config,
    )
    print(f"{count:,} examples labeled: {path}")


def _summary_of(adapted: AdaptedModel) -> str:
    """Returns what a model predicts and how it was adapted, in a few words."""
    names = f" ({names_line(adapted.names)})" if adapted.names else ""
    return f"{adapted.record.task_type}{names} by {adapted.record.hparams['method']}"


@contextlib.contextmanager
def _open(values: flags.FlagValues, adapted: AdaptedModel, *, with_labels: bool):
    """Yields the examples of --dataset, read as the model's own data were."""
    name, record = values["dataset"].value, adapted.record
    columns = dict(record.reading.get("columns") or {})
    columns |= {flag: values[flag].value for flag in _COLUMNS if values[flag].value is not None}
    form = TextFormat(encoding=values["encoding"].value, **columns)
    fields = FileNameFieldPositions(values["label_field"].value, values["speaker_field"].value)
    with open_new_examples(
        name,
        record.modality,
        adapted.spec,
        form,
        words=adapted.task_type.reads_words,
        with_labels=with_labels,
        fields=fields,
        data_dir=values["data_dir"].value,
    ) as examples:
        _tell_labels(name, examples, score=with_labels)
        yield examples


def _tell_labels(name: str, examples: NewExamples, *, score: bool) -> None:
    labeled = sum(label is not None for label in examples.labels)
    if labeled and not score:
        print(
            f"{name}: the labels of {labeled:,} examples are not looked at; --score compares with "
            "them",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    cli.run("predict", __doc__, define, main, dry_run=main)
