import pytest

from fm.adaptation import token_classification
from fm.evaluation.ner import count_matches, entity_spans

WORDS = ["Anna", "Lee", "met", "anna", "in", "New", "York", ";", "Anna", "Lee", "left", "York"]
TAGS = [
    *["B-person", "I-person", "O", "B-person", "O", "B-geo-loc", "I-geo-loc", "O"],
    *["B-person", "I-person", "O", "B-geo-loc"],
]
KINDS = ("person", "geo-loc")


def test_an_answer_and_back():
    answer = token_classification.format_entities(WORDS, TAGS)
    assert answer == "person: Anna Lee; person: anna; geo-loc: New York; geo-loc: York"
    found = token_classification.parse_entities(answer, KINDS)
    assert found == token_classification.entity_set(WORDS, TAGS) and len(found) == 4
    assert token_classification.entities_to_tags(WORDS, found) == TAGS
    assert token_classification.locate_entities(WORDS, found) == entity_spans([TAGS])[0]


def test_none():
    assert (
        token_classification.format_entities(["so"], ["O"])
        == "none"
        == token_classification.format_entities([], [])
    )
    assert (
        token_classification.parse_entities("none", KINDS)
        == set()
        == token_classification.parse_entities("", KINDS)
    )


@pytest.mark.parametrize(
    "answer",
    [
        " PERSON:Anna  lee;geo-loc : new york;",
        "person: Anna Lee\ngeo-loc: New York\n",
        "person: Anna Lee; film: Up; person:; nonsense; geo-loc: New York; person: anna lee",
    ],
)
def test_reading_is_lenient(answer):
    assert token_classification.parse_entities(answer, KINDS) == {
        ("person", "anna lee"),
        ("geo-loc", "new york"),
    }


def test_forms_with_the_marks_of_an_answer_come_back():
    words, tags = ["a;b", "Star", "Wars:", "IV"], ["B-geo-loc", "B-person", "I-person", "I-person"]
    found = token_classification.parse_entities(
        token_classification.format_entities(words, tags), KINDS
    )
    assert found == token_classification.entity_set(words, tags)
    assert token_classification.entities_to_tags(words, found) == tags


def test_f1_by_surface_form():
    gold = [token_classification.entity_set(WORDS, TAGS), set()]
    predicted = [
        token_classification.parse_entities("person: Anna Lee; person: York", KINDS),
        set(),
    ]
    found = count_matches(gold, predicted)
    assert (found.correct[0], found.predicted[0], found.gold[0]) == (1, 2, 4)
    assert found.f1() == pytest.approx(2 / 6)


def test_an_entity_that_is_not_there_has_no_place():
    assert token_classification.entities_to_tags(["so", "it"], {("person", "anna")}) == ["O", "O"]
