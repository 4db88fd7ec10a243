import pytest

from fm.evaluation.entities import counts_of, spans
from fm.transfer import entity_answers

WORDS = ["Anna", "Lee", "met", "anna", "in", "New", "York", ";", "Anna", "Lee", "left", "York"]
TAGS = [
    *["B-person", "I-person", "O", "B-person", "O", "B-geo-loc", "I-geo-loc", "O"],
    *["B-person", "I-person", "O", "B-geo-loc"],
]
KINDS = ("person", "geo-loc")


def test_an_answer_and_back():
    answer = entity_answers.write(WORDS, TAGS)
    assert answer == "person: Anna Lee; person: anna; geo-loc: New York; geo-loc: York"
    found = entity_answers.read(answer, KINDS)
    assert found == entity_answers.named(WORDS, TAGS) and len(found) == 4
    assert entity_answers.tags(WORDS, found) == TAGS
    assert entity_answers.locate(WORDS, found) == spans([TAGS])[0]


def test_none():
    assert entity_answers.write(["so"], ["O"]) == "none" == entity_answers.write([], [])
    assert entity_answers.read("none", KINDS) == set() == entity_answers.read("", KINDS)


@pytest.mark.parametrize(
    "answer",
    [
        " PERSON:Anna  lee;geo-loc : new york;",
        "person: Anna Lee\ngeo-loc: New York\n",
        "person: Anna Lee; film: Up; person:; nonsense; geo-loc: New York; person: anna lee",
    ],
)
def test_reading_is_lenient(answer):
    assert entity_answers.read(answer, KINDS) == {("person", "anna lee"), ("geo-loc", "new york")}


def test_forms_with_the_marks_of_an_answer_come_back():
    words, tags = ["a;b", "Star", "Wars:", "IV"], ["B-geo-loc", "B-person", "I-person", "I-person"]
    found = entity_answers.read(entity_answers.write(words, tags), KINDS)
    assert found == entity_answers.named(words, tags)
    assert entity_answers.tags(words, found) == tags


def test_f1_by_surface_form():
    gold = [entity_answers.named(WORDS, TAGS), set()]
    predicted = [entity_answers.read("person: Anna Lee; person: York", KINDS), set()]
    found = counts_of(gold, predicted)
    assert (found.right[0], found.predicted[0], found.gold[0]) == (1, 2, 4)
    assert found.f1() == pytest.approx(2 / 6)


def test_an_entity_that_is_not_there_has_no_place():
    assert entity_answers.tags(["so", "it"], {("person", "anna")}) == ["O", "O"]
