import pytest

from fm.evaluation.baselines import first_sentences, nearest_neighbor_targets


def test_first_sentences():
    texts = ["One, e.g. this.  Two.", "No end\n\nNext", "What? Yes.", ""]
    assert first_sentences(texts) == ["One, e.g. this.", "No end", "What?", ""]


def test_nearest_targets():
    train = ["how to sort a long list", "open the file for reading", "the mean of an array"]
    found = nearest_neighbor_targets(
        train, ["s", "o", "m"], ["reading a file", "a mean value", "sort it"]
    )
    assert found == ["o", "m", "s"]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("这部电影很好。我喜欢。", "这部电影很好。"),
        ("「本当？！」と言った。次。", "「本当？！」と言った。"),
        ("यह अच्छा है। वह नहीं।", "यह अच्छा है।"),
        ("Это кино. Оно хорошее.", "Это кино."),
        ("이 영화는 좋다. 저 영화는 나쁘다.", "이 영화는 좋다."),
        ("هل هو جيد؟ نعم.", "هل هو جيد؟"),
        (
            "It cost 3.5 dollars, i.e. too much. Then it ended.",
            "It cost 3.5 dollars, i.e. too much.",
        ),
    ],
)
def test_sentences_end_in_every_script(text, first):
    assert first_sentences([text]) == [first]


@pytest.mark.parametrize(
    ("texts", "asked"),
    [
        (["这部电影很好看", "明天去北京上班", "我的手机坏了"], "今天又去北京"),
        (["ภาพยนตร์ดีมาก", "พรุ่งนี้ไปทำงาน", "โทรศัพท์เสีย"], "วันนี้ไปทำงาน"),
    ],
)
def test_texts_without_spaces_have_neighbors(texts, asked):
    assert nearest_neighbor_targets(texts, ["film", "work", "phone"], [asked]) == ["work"]
