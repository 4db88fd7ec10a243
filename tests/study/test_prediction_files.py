"""Files of predictions are aligned by name, or refused in one line that names file and line."""

import gzip

import numpy as np
import pytest

from fm.errors import UserError
from fm.study.prediction_files import SCORES, read_predictions

GOOD = "item,truth,prediction\nx,a,a\ny,b,a\nz,c,c\n"


@pytest.fixture
def read(tmp_path):
    """Writes texts (or bytes) as a.csv, b.csv, ... and reads them."""

    def write_and_read(*contents, names="abc", **options):
        paths = []
        for name, content in zip(names, contents, strict=False):
            path = tmp_path / f"{name}.csv"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            paths.append(path)
        return read_predictions(paths, **options)

    return write_and_read


def test_items_and_seeds_are_paired_by_name(read):
    found = read(
        "item,seed,truth,prediction,probability,note\n"
        "x,1,a,a,0.9,\ny,1,b,a,0.8,\nx,2,a,b,0.7,\ny,2,b,b,0.6,\n",
        "prediction;truth;seed;item;probability\nb;b;2;y;0.1\na;a;2;x;0.2\nb;b;1;y;0.3\nb;a;1;x;0.4\n",
    )
    assert (found.seeds, found.items) == (("1", "2"), ("x", "y"))
    assert found.truth_N is not None and found.truth_N.tolist() == ["a", "b"]
    first, second = found.files
    assert (first.name, first.unused_columns, second.unused_columns) == ("a", ("note",), ())
    assert first.prediction_SN.tolist() == [["a", "a"], ["b", "b"]]
    assert second.prediction_SN.tolist() == [["b", "b"], ["a", "b"]]
    np.testing.assert_array_equal(second.probabilities["probability"], [[0.4, 0.3], [0.2, 0.1]])


def test_what_other_tools_write_is_read(read, tmp_path):
    windows = ("﻿" + GOOD.replace("\n", "\r\n") + "\r\n").encode()
    floats = "item\ttruth\tprediction\nx\t1.0\t1\ny\t2.0\t-3.0\nz\t0\t0.50\n"
    assert read(windows, GOOD).files[0].prediction_SN.tolist() == [["a", "a", "c"]]
    found = read(floats, floats.replace("\t", ","))
    assert found.truth_N is not None and found.truth_N.tolist() == ["1", "2", "0"]
    assert found.files[0].prediction_SN.tolist() == [["1", "-3", "0.50"]]
    quoted = 'item,truth,prediction\n"x,\n1",a,a\ny,b,b\n'
    assert read(quoted, quoted).items == ("x,\n1", "y")
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(GOOD.encode()))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "packed.csv").write_text(GOOD)
    pair = read_predictions([packed, tmp_path / "d" / "packed.csv"])
    assert [file.name for file in pair.files] == [str(file.path) for file in pair.files]
    cp1252 = GOOD.replace("c,c", "é,é").encode("cp1252")
    assert read(cp1252, cp1252, encoding="cp1252").files[0].prediction_SN[0, 2] == "é"


def test_scores_and_groups(read):
    text = "item,group,prediction\n" + "".join(f"i{n},g{n % 8},{n}e-1\n" for n in range(16))
    found = read(text, text, kind=SCORES)
    assert found.truth_N is None and found.group_N is not None
    assert found.group_N.tolist() == [n % 8 for n in range(16)]
    np.testing.assert_allclose(found.files[1].prediction_SN, [np.arange(16) / 10])


SEEDED = "item,seed,truth,prediction\nx,1,a,a\ny,1,b,b\nx,2,a,a\ny,2,b,a\n"
GROUPED = "item,truth,prediction,group\n" + "".join(f"i{n},a,a,{n}\n" for n in range(8))

LOPSIDED = GROUPED + "".join(f"j{n},a,a,other\n" for n in range(8))


@pytest.mark.parametrize(
    ("second", "where", "parts"),
    [
        ("", "b.csv is empty", ["item, truth, prediction", "seed, group"]),
        ("item,truth,prediction\n", "b.csv has no line below", ["takes a table"]),
        ("item,truth,label\nx,a,a\n", "b.csv, line 1: no column prediction", ["label;"]),
        ("item,item,truth,prediction\n", "b.csv, line 1: the column item is there twice", []),
        ("item,truth,prediction\nx,a,a,b\n", "b.csv, line 2: has 4 cells", ["names 3 columns"]),
        (GOOD + 'w,a,"a\nv,b,b\n', "b.csv, line 5: not CSV", ["takes a table"]),
        (GOOD + "\nx,a,b\n", "b.csv, line 6: item 'x' is also on line 2", ["a column seed"]),
        (SEEDED + "y,2,b,b\n", "b.csv, line 6: item 'y' of seed '2' is also on line 5", []),
        (GOOD + "w,,a\n", "b.csv, line 5: truth is empty", []),
        (GOOD + "w,a,NaN\n", "b.csv, line 5: prediction is NaN", []),
        (GOOD + ",a,a\n", "b.csv, line 5: item is empty", []),
        (GOOD + "w,a,a\n", "b.csv, line 5: item 'w' is not among those of", ["a.csv"]),
        (GOOD.replace("z,c,c\n", ""), "b.csv: item 'z' is missing, which is on line 4", ["a.csv"]),
        (GOOD.replace("y,b", "y,c"), "b.csv, line 3: truth of item 'y' is 'c', but 'b' on", []),
        (b"item,truth,prediction\nx,\xe9,a\n", "b.csv is not UTF-8 text: byte 24", ["--encoding"]),
        (b"PK\x03\x04\xff", "b.csv is not UTF-8 text", ["a zip file (as .xlsx files are)"]),
        (SEEDED, "a.csv has no column seed, which", ["b.csv has"]),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused(read, second, where, parts):
    with pytest.raises(UserError) as caught:
        read(GOOD, second)
    text = str(caught.value)
    assert where in text and all(part in text for part in parts), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [
        (SEEDED, SEEDED.replace(",2,", ",3,"), "b.csv has the seed '3', which"),
        (SEEDED, SEEDED.replace("y,2,b,a\n", ""), "b.csv: item 'y' of seed '2' is missing"),
        (SEEDED, SEEDED.replace("y,2,b", "y,2,a"), "b.csv, line 5: truth of item 'y' is 'a'"),
        (GROUPED, GROUPED.replace("i3,a,a,3", "i3,a,a,4"), "b.csv, line 5: group of item 'i3'"),
        (GROUPED, GROUPED.replace(",group", ",speaker"), "b.csv has no column group"),
        (GROUPED.replace(",7\n", ",6\n"), GROUPED.replace(",7\n", ",6\n"),
         "a.csv: the column group has 7 different values"),
        (LOPSIDED, LOPSIDED, "a.csv: the column group has 9 different values, worth 3.6 of equal"),
        ("item,truth,prediction\nx,a,a\n", "item,truth,prediction\nx,a,a\n", "a.csv has one item"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_together_are_refused(read, first, second, where):
    with pytest.raises(UserError) as caught:
        read(first, second)
    assert where in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("cells", "where"),
    [
        ("high,0.5", "b.csv, line 3: prediction is 'high'; takes a finite number"),
        ("inf,0.5", "b.csv, line 3: prediction is 'inf'; takes a finite number"),
        ("nan,0.5", "b.csv, line 3: prediction is nan; takes a value"),
        ("1,1.5", "b.csv, line 3: probability is '1.5'; takes a number from 0 to 1"),
        ("1,", "b.csv, line 3: probability is empty"),
    ],
)
def test_cells_that_are_no_numbers_are_refused(read, cells, where):
    good = "item,prediction,probability\nx,1,0.5\ny,0.5,0.5\n"
    with pytest.raises(UserError) as caught:
        read(good, good.replace("0.5,0.5\n", f"{cells}\n"), kind=SCORES)
    assert where in str(caught.value), str(caught.value)


def test_two_different_files_are_needed(read, tmp_path):
    with pytest.raises(UserError, match="1 files of predictions given; takes two or more"):
        read(GOOD)
    with pytest.raises(UserError, match=r"a.csv is given twice"):
        read(GOOD, GOOD, names="aa")
    with pytest.raises(UserError, match=r"cannot read .*none.csv: No such file"):
        read_predictions([tmp_path / "a.csv", tmp_path / "none.csv"])
