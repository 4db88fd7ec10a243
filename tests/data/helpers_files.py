"""Writes small tables and reads data sets back as rows."""

import csv
import json


def write_table(path, rows):
    """Writes dictionaries as a .csv, .tsv or .jsonl file and returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    return str(path)


def reviews(count=40, labels=("no", "yes"), prefix="review"):
    return [{"text": f"{prefix} {n}", "label": labels[n % len(labels)]} for n in range(count)]


def column(split, name):
    """A column of all examples of a split, by text."""
    every = range(len(split))
    values = getattr(split, name)(every)
    return dict(zip(split.texts(every), values, strict=True))


def labels_by_text(data, split):
    """Class names by text, None if unlabeled."""
    names = [None if label < 0 else data.classes[label] for label in split.labels]
    return dict(zip(split.texts(range(len(split))), names, strict=True))
