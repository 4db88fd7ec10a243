"""Counts what became of every row of the user's files, in one line."""

from collections import Counter

import numpy as np

from fm.data.datasets import Dataset, Split


def tell_files(
    dataset: Dataset, corpus: Split | None = None, duplicate_idx: np.ndarray | None = None
) -> None:
    """Prints `describe_files` to stderr, once in a process; nothing for other data.

    Args:
        dataset: the data as loaded.
        corpus: the training examples drawn from it; None for all.
        duplicate_idx: indices into `corpus` of near-duplicates of test items, which are removed.
    """
    # TFDS, which this imports, takes seconds; data that was loaded has imported it.
    from fm.data.prepare import tell_once

    line = describe_files(dataset, corpus, duplicate_idx)
    if line:
        tell_once(dataset.name, line)


def describe_files(
    dataset: Dataset, corpus: Split | None = None, duplicate_idx: np.ndarray | None = None
) -> str:
    """Returns a line with the rows of every file and what each is used for; "" for other data.

    The numbers of a file add up to its rows. Arguments as for `tell_files`.
    """
    files = dataset.info.get("files")
    if not files or "files" not in dataset.train.columns:
        return ""
    corpus = dataset.train if corpus is None else corpus
    removed = np.zeros(len(corpus), bool)
    removed[[] if duplicate_idx is None else duplicate_idx] = True
    labeled = _is_labeled(corpus)
    file_of = np.array(_files_of(corpus), int)
    drawn, available = Counter(file_of.tolist()), Counter(_files_of(dataset.train))
    test = Counter(_files_of(dataset.test))
    is_development = dataset.info["split"].startswith("development")
    parts = []
    for index, file in enumerate(files):
        own = file_of == index
        counts = {
            "labeled for training": int(np.sum(own & labeled & ~removed)),
            "unlabeled for training": int(np.sum(own & ~labeled & ~removed)),
            "development items" if is_development else "set aside for test": test[index],
            "removed as near-duplicates of test items": int(np.sum(own & removed)),
            "beyond the profile's limit": available[index] - drawn[index],
            **{f"ignored ({reason})": count for reason, count in file["ignored"].items()},
        }
        counts["test items left alone"] = file["rows"] - sum(counts.values())
        said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        parts.append(f"{file['name']}: {file['rows']:,} {file['noun']}: {said}")
    return "; ".join(parts)


def _files_of(split: Split) -> list[int]:
    return split.columns["files"](split.source_idx)


def _is_labeled(split: Split) -> np.ndarray:
    """Returns whether each example is labeled, bool [N]."""
    every = range(len(split))
    if split.labels is not None:
        return np.asarray(split.labels) >= 0
    if "values" in split.columns:
        return ~np.isnan(split.values(every))
    if "label_sets" in split.columns:
        return np.array([each is not None for each in split.label_sets(every)], bool)
    if "targets" in split.columns:
        return np.array([bool(each) for each in split.targets(every)], bool)
    if "tags" in split.columns:
        return np.array([bool(each) for each in split.tags(every)], bool)
    return np.zeros(len(split), bool)
