"""`--group_column`: groups that splits never cut; and ids by `--id_column`."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fm.data.datasets import development_dataset
from fm.data.load import load
from fm.data.splitting import split_by_group
from fm.errors import UserError
from tests.data.helpers_files import reviews, write_table
from tests.data.test_load import prepared


def rows(count=120):
    return [row | {"who": f"w{n // 4 % 12}", "key": n} for n, row in enumerate(reviews(count))]


def groups_of(*splits):
    return [set(split.groups(range(len(split)))) for split in splits]


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_no_group_is_in_two_splits(tmp_path, name):
    path = write_table(tmp_path / name, rows())
    data = load(path, group_column="who")
    train, test = groups_of(data.train, data.test)
    assert not train & test and train | test == {f"w{n}" for n in range(12)}
    assert data.info["split"] == "by who" and data.info["item_group"] == "who"
    assert len(data.test) >= 24 and set(data.test.labels.tolist()) == {0, 1}
    part = development_dataset(data)
    train, development = groups_of(part.train, part.test)
    assert not train & development and not development & test
    by_hash = load(path, item_group="who")
    assert by_hash.info["split"] == "by hash"
    assert set.intersection(*groups_of(by_hash.train, by_hash.test))


def test_unlabeled_rows_of_test_groups_are_left_out(tmp_path):
    own = [row | {"label": "" if n % 3 == 0 else row["label"]} for n, row in enumerate(rows())]
    data = load(write_table(tmp_path / "r.csv", own), group_column="who")
    train, test = groups_of(data.train, data.test)
    assert not train & test
    ignored = data.info["files"][0]["ignored"]["unlabeled, of a group in the test split"]
    assert ignored and len(data.train) + len(data.test) + ignored == 120


def test_unlabeled_rows_of_a_test_files_groups_are_left_out_too(tmp_path):
    train = [row | {"who": f"a{n % 3}"} for n, row in enumerate(rows(20))]
    test = [row | {"text": f"t {n}"} for n, row in enumerate(rows(20))]
    pile = [{"text": f"u {n}", "who": f"w{n}"} for n in range(9)]
    path, other, more = (
        write_table(tmp_path / f"{name}.csv", own)
        for name, own in (("a", train), ("t", test), ("u", pile))
    )
    data = load(path, test=other, unlabeled=more, group_column="who")
    assert (len(data.train), len(data.test)) == (24, 20)
    ignored = {file["name"]: file["ignored"] for file in data.info["files"]}
    assert ignored["u.csv"] == {"unlabeled, of a group in the test split": 5}


def test_a_given_split_that_cuts_groups_is_refused(tmp_path):
    train, test = rows(40), [row | {"text": f"t {row['text']}"} for row in rows(20)]
    path, other = (write_table(tmp_path / f"{name}.csv", own)
                   for name, own in (("a", train), ("b", test)))  # fmt: skip
    with pytest.raises(UserError, match=r"--group_column=who: .*5 groups, such as 'w0', are in b"):
        load(path, test=other, group_column="who")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"group_column": "x"}, "--group_column=x: .*it has: 'text', 'label', 'who', 'key'"),
        ({"group_column": "who", "item_group": "who"}, "--item_group=who and --group_column=who"),
        ({"group_column": "who", "speaker_field": 1}, "--group_column=who and --speaker_field=1"),
        ({"group_column": "one"}, "'same' is the only one; at least two"),
        ({"group_column": "label"}, "no label can be held out for test"),
        ({"id_column": "x"}, "--id_column=x: .*no column 'x'"),
        ({"id_column": "gap"}, "--id_column=gap: .*line 2: 'gap' is missing, empty"),
    ],
)
def test_groups_and_ids_that_do_not_fit_are_refused(tmp_path, flags, says):
    own = [row | {"one": "same", "gap": ""} for row in rows(20)]
    if "x" not in flags.values():
        path = write_table(tmp_path / "r.csv", own)
    else:
        path = write_table(tmp_path / "r.csv", rows(20))
    with pytest.raises(UserError, match=says) as raised:
        load(path, **flags)
    assert "\n" not in str(raised.value)


def test_a_group_with_the_last_examples_of_a_class_stays_in_training():
    groups = [f"g{n // 10}" for n in range(100)]
    labels = [("rare",) if group == "g3" else ("common",) for group in groups]
    for held_out in range(10):
        shifted = [f"{group} {held_out}" for group in groups]
        train, test = split_by_group(shifted, 0.2, labels)
        assert len(test) == 20 and ("rare",) in [labels[n] for n in train]


def test_ids_are_those_of_the_column_or_of_the_row(tmp_path, capsys):
    path = write_table(tmp_path / "r.csv", rows(40))
    data, named = load(path), load(path, id_column="key")
    for split, other in ((data.train, named.train), (data.test, named.test)):
        every = range(len(split))
        assert split.row_ids(every) == [f"r.csv:{int(key) + 1}" for key in other.row_ids(every)]
        numbers = [text.split()[-1] for text in other.texts(every)]
        assert other.row_ids(every) == numbers
        places = split.columns["positions"](split.source_idx)
        assert places == list(map(int, numbers))
    assert named.info["fingerprint"] == data.info["fingerprint"]
    write_table(tmp_path / "r.csv", [row | {"key": n // 2} for n, row in enumerate(rows(40))])
    load(path, id_column="key")
    assert (
        "20 ids of the column 'key' stand in several rows, such as '0'" in capsys.readouterr().err
    )


def test_ids_of_other_files(tmp_path):
    (tmp_path / "a.conll").write_text("\n\n".join(f"w{n} O\nRome B-loc\nsee O" for n in range(20)))
    data = load(str(tmp_path / "a.conll"))
    lines = [int(each.split(":")[1]) for each in data.train.row_ids(range(len(data.train)))]
    assert all(line % 4 == 1 for line in lines) and data.info["target"] == "tags"
    for name in "ab":
        for n in range(6):
            path = tmp_path / "texts" / name / f"{n}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {n}")
    data = load(str(tmp_path / "texts"))
    texts = dict(zip(data.train.row_ids(range(len(data.train))),
                     data.train.texts(range(len(data.train))), strict=True))  # fmt: skip
    assert all(f"{text[0]}/{text[2:]}.txt" == row_id for row_id, text in texts.items())
    digits = load("digits")
    assert digits.test.row_ids([0]) == [digits.test.ids[0][:12]]


FEATURES = {
    "text": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["no", "yes"]),
    "who": tfds.features.Text(),
    "stars": tfds.features.Scalar(np.float32),
}


def _examples(count, prefix):
    return [
        {"text": f"{prefix} {n}", "label": n % 2, "who": f"w{n // 4}", "stars": n / 2}
        for n in range(count)
    ]


def test_features_of_tfds_data(tmp_path):
    path = prepared(tmp_path / "a", FEATURES, train=_examples(60, "a"))
    data = load(path, group_column="who", id_column="text")
    assert data.info["split"] == "by who" and not set.intersection(
        *groups_of(data.train, data.test)
    )
    assert data.train.row_ids([0]) == data.train.texts([0])
    data = load(path, value_column="stars")
    texts = data.train.texts(range(len(data.train)))
    numbers = [int(text.split()[1]) / 2 for text in texts]
    assert data.train.values(range(len(data.train))).tolist() == numbers and data.classes == ()
    with pytest.raises(UserError, match=r"--value_column=who: .*no column 'who' .* has: stars"):
        load(path, value_column="who")
    with pytest.raises(UserError, match=r"--file_column=who: is for .csv"):
        load(path, file_column="who")
    split = {"train": _examples(60, "a"), "test": _examples(8, "b")}
    path = prepared(tmp_path / "b", FEATURES, **split)
    with pytest.raises(UserError, match=r"--group_column=who: .* comes split, and 2 groups"):
        load(path, group_column="who")


def test_label_sets_and_pairs_of_tfds_data(tmp_path):
    features = FEATURES | {
        "second": tfds.features.Text(),
        "topics": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b"])),
    }
    examples = [
        row | {"second": f"s {n}", "topics": [[0], [0, 1], []][n % 3]}
        for n, row in enumerate(_examples(60, "a"))
    ]
    path = prepared(tmp_path, features, train=examples)
    data = load(path, text_column="text", label_column="topics")
    assert data.info["target"] == "label_set" and data.classes == ("a", "b")
    every = range(len(data.train))
    numbers = [int(text.split()[1]) for text in data.train.texts(every)]
    assert data.train.label_sets(every) == [((0,), (0, 1), ())[n % 3] for n in numbers]
    plain = load(path, text_column="text")
    data = load(path, text_column="text", second_text_column="second")
    every = range(len(data.train))
    texts = zip(data.train.texts(every), data.train.second_texts(every), strict=True)
    assert all(text == f"a {second[2:]}\n\n{second}" for text, second in texts)
    assert not set(data.train.ids) & set(plain.train.ids)
    with pytest.raises(UserError, match=r"--second_text_column=x: .* it has: second, text, who"):
        load(path, second_text_column="x")
