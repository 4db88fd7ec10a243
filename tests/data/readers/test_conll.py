import pytest

from fm.data.readers.conll import check_entity_types, find_conll_files, read_conll
from fm.errors import UserError


def write(path, content):
    path.write_text(content)
    return path


def test_words_and_tags(tmp_path):
    path = write(
        tmp_path / "a.conll",
        "-DOCSTART- -X- O O\n\n# text = Anna left .\nAnna NNP B-person\nleft VBD O\n# O\n\n\t\n"
        "New York\tX\tB-geo-loc\nCity\tX\tI-geo-loc",
    )
    found = read_conll(path)
    assert [sentence.words for sentence in found.sentences] == [
        ("Anna", "left", "#"),
        ("New York", "City"),
    ]
    assert found.sentences[1].tags == ("B-geo-loc", "I-geo-loc")
    assert [sentence.line for sentence in found.sentences] == [4, 9]
    assert found.sentences[0].entity_types() == {"person"} and not found.num_repaired


def test_an_entity_that_begins_with_i_is_repaired_and_counted(tmp_path):
    path = write(tmp_path / "a.bio", "Anna I-per\nof O\nRome I-loc\nItaly I-loc\nBob I-per\n")
    found = read_conll(path)
    assert found.sentences[0].tags == ("B-per", "O", "B-loc", "I-loc", "B-per")
    assert (found.num_repaired, found.first_repaired_line) == (3, 1)


@pytest.mark.parametrize("marks", ["SBIE", "UBIL"])
def test_schemes_that_mark_the_end_of_an_entity_are_read_as_bio(tmp_path, marks):
    single, begin, inside, end = marks
    tags = [f"{single}-loc", f"{begin}-loc", f"{inside}-loc", f"{end}-loc", f"{single}-per", "O"]
    words = "".join(f"w{n} {tag}\n" for n, tag in enumerate(tags))
    found = read_conll(write(tmp_path / "a.conll", words))
    assert found.sentences[0].tags == ("B-loc", "B-loc", "I-loc", "I-loc", "B-per", "O")
    assert not found.num_repaired


ERRORS = {
    "one.conll": ("Anna B-per\nleft\n", "one.conll, line 2: expected a word and its tag"),
    "word.conll": ("\tO\n", "line 1: expected a word"),
    "tag.conll": ("Anna B-per\nleft X-per\n", "line 2: unknown tag 'X-per'; accepted: O, B-type"),
    "bare.conll": ("Anna B-\n", "line 1: unknown tag 'B-'"),
    "none.conll": ("# nothing but this\n", "holds no sentence"),
    "comment.conll": ("Anna O\n# said so\nleft O\n", "line 2: a comment inside a sentence"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, tmp_path):
    content, expected = ERRORS[name]
    with pytest.raises(UserError, match=expected) as raised:
        read_conll(write(tmp_path / name, content))
    assert "\n" not in str(raised.value)


def test_a_type_that_training_lacks_is_named(tmp_path):
    train = write(tmp_path / "train.conll", "Anna B-per\n\nRome B-loc\n")
    test = write(tmp_path / "test.conll", "so O\n\non O\nMars B-planet\n")
    expected = r"test.conll, line 4: 'B-planet' is not in train.conll, which has: loc, per"
    with pytest.raises(UserError, match=expected):
        check_entity_types(read_conll(train).sentences, read_conll(test).sentences, test, train)


def test_the_files_of_a_folder(tmp_path):
    assert find_conll_files(tmp_path) == {}
    for name in ("README.md", "some17train.conll", "x.dev.conll", "x.test.annotated"):
        write(tmp_path / name, "a O\n")
    found = {split: path.name for split, path in find_conll_files(tmp_path).items()}
    assert found == {
        "train": "some17train.conll",
        "validation": "x.dev.conll",
        "test": "x.test.annotated",
    }
    write(tmp_path / "my_train.bio", "a O\n")
    with pytest.raises(UserError, match=r"my_train\.bio and some17train\.conll both say train"):
        find_conll_files(tmp_path)


def test_a_train_file_alone_is_not_enough(tmp_path):
    write(tmp_path / "train.bio", "a O\n")
    with pytest.raises(UserError, match="no dev or test file"):
        find_conll_files(tmp_path)


def test_other_folders_are_left_alone(tmp_path):
    for name in ("train.csv", "test.csv"):
        write(tmp_path / name, "text,label\n")
    assert find_conll_files(tmp_path) == {}
