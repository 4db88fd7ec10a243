from fm.report.attention_maps import DisplayToken, display_tokens, special_token


def parts(*spelled):
    return [token.parts for token in display_tokens(list(spelled))]


def test_spaces_and_breaks_are_marks():
    assert parts(b"the", b" film", b"  ", b"\n\n", b"\ta") == [
        (("the", False),),
        (("·", True), ("film", False)),
        (("·", True), ("·", True)),
        (("↵", True), ("↵", True)),
        (("⇥", True), ("a", False)),
    ]
    assert [token.line_breaks for token in display_tokens([b"a", b"\n\n"])] == [0, 2]


def test_a_character_split_among_tokens_is_spelled_in_bytes():
    whole = "a🎈b".encode()
    first, second = display_tokens([whole[:3], whole[3:]])
    assert first.parts == (("a", False), ("F0", True), ("9F", True))
    assert second.parts == (("8E", True), ("88", True), ("b", False))
    assert first.partial_character == second.partial_character == "🎈"
    assert first.name == "aF09F"


def test_a_text_cut_in_mid_character_belongs_to_no_character():
    (token,) = display_tokens(["é".encode()[:1]])
    assert token == DisplayToken((("C3", True),), "C3")


def test_characters_whole_in_one_token_are_themselves():
    assert parts("naïve 日本".encode()) == [(("naïve", False), ("·", True), ("日本", False))]


def test_what_cannot_be_seen_or_turns_the_line_is_named():
    assert parts("\u202ex\x00".encode()) == [(("U+202E", True), ("x", False), ("U+0000", True))]


def test_a_lone_accent_stands_on_a_circle():
    assert parts(b"e", "\u0301".encode()) == [(("e", False),), (("◌\u0301", False),)]
    assert parts("e\u0301".encode()) == [(("e\u0301", False),)]


def test_letters_are_what_stands_for_itself():
    (word,) = display_tokens([b" film"])
    assert word.num_letters == 4 and special_token("⟨end⟩").num_letters == 0
