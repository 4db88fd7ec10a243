import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest

from fm.errors import UserError
from fm.report import attention_maps
from fm.report.attention_maps import (
    AttentionMaps,
    DisplayToken,
    ImageInput,
    TextInput,
    special_token,
    to_display_tokens,
)

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'


class Page(html.parser.HTMLParser):
    """Tags with their attributes, the text outside scripts, and the content of each script."""

    VOID = ("meta", "br", "img", "wbr")

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.scripts, self.open = [], "", [], []
        self.feed(page)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag, **having):
        return [own for name, own in self.tags if name == tag and having.items() <= own.items()]

    @property
    def data(self):
        return json.loads(self.scripts[0])


def softmax(shape, seen, seed=0):
    scores = np.where(seen, np.random.default_rng(seed).normal(size=shape), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def text_maps(N=2, H=3, causal=True, words=HOSTILE, total=None):
    words = re.findall(r" ?\w+|\W", words)
    tokens = [special_token("⟨start⟩"), *to_display_tokens([word.encode() for word in words])]
    L = len(tokens)
    seen = np.tril(np.ones((L, L), bool)) if causal else np.ones((L, L), bool)
    weights = softmax((N, H, L, L), seen)
    return AttentionMaps(
        weights, seen, causal, TextInput(tokens, total or L), (("Model", HOSTILE),)
    )


def image_maps(N=2, H=2, causal=True, channels=1, rows=3, columns=2, patch=2):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows * patch, columns * patch, channels)).astype(np.uint8)
    L = rows * columns + causal
    seen = np.tril(np.ones((L, L), bool)) if causal else np.ones((L, L), bool)
    return AttentionMaps(
        softmax((N, H, L, L), seen), seen, causal, ImageInput(pixels, patch, causal)
    )


MAPS = {
    "text": text_maps(),
    "bidirectional text": text_maps(causal=False, H=1),
    "image": image_maps(),
    "bidirectional image": image_maps(causal=False, channels=3, H=5, N=1),
}


@pytest.fixture(scope="module")
def pages():
    return {name: Page(attention_maps.render(maps)) for name, maps in MAPS.items()}


@pytest.mark.parametrize("name", MAPS)
class TestEveryPage:
    def test_the_weights_are_in_it_by_layer_head_query_and_key(self, pages, name):
        data, maps = pages[name].data, MAPS[name]
        N, H, L = maps.weights_NHLS.shape[:3]
        assert (data["layers"], data["heads"], data["length"]) == (N, H, L)
        numbers = np.frombuffer(base64.b64decode(data["weights"]), "<u2") / data["unit"]
        np.testing.assert_allclose(
            numbers.reshape(N, H, L, L), maps.weights_NHLS, atol=0.51 / data["unit"]
        )

    def test_every_layer_and_head_has_its_place_and_its_numbers(self, pages, name):
        page, maps = pages[name], MAPS[name]
        N, H = maps.weights_NHLS.shape[:2]
        tag = "button" if isinstance(maps.input, TextInput) else "figure"
        places = {
            (int(own["data-layer"]), int(own["data-head"]))
            for own in page.all(tag)
            if "data-head" in own
        }
        assert places - {(n, -1) for n in range(N)} == set(np.ndindex(N, H))
        rows = page.text.split("Heads")[-1]
        for n, layer in enumerate(maps.head_summaries()):
            assert f"Layer {n + 1}" in page.text
            for each in layer:
                assert f"{each.entropy_bits:.2f}" in rows and f"{each.distance:.2f}" in rows
        assert f"{maps.uniform_summary().entropy_bits:.2f}" in rows
        figures = [own["alt"] for own in page.all("img", **{"class": "plot"})]
        assert len(figures) == N * (1 if tag == "button" else -(-H // 4))

    def test_only_its_own_script_may_run_and_nothing_is_loaded(self, pages, name):
        page = pages[name]
        assert len(page.scripts) == 2
        (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
        digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy["content"]
        assert "default-src 'none'" in policy["content"]
        for _, own in page.tags:
            assert not [key for key in own if key.startswith("on")]
            for key in ("src", "href", "srcset", "action"):
                assert re.match(r"#|data:image/png;base64,", own.get(key, "#"))

    def test_ids_are_unique_and_links_lead_somewhere(self, pages, name):
        ids = [own["id"] for _, own in pages[name].tags if "id" in own]
        assert len(ids) == len(set(ids))
        assert {own["href"][1:] for own in pages[name].all("a")} <= set(ids)
        wanted = set(re.findall(r'getElementById\("(\w+)"\)', pages[name].scripts[1]))
        other = {"board", "overlays"} if "text" in name else {"tokens", "picker", "tops", "looks"}
        assert wanted - other <= set(ids)


def test_text_from_outside_is_text(pages):
    page, maps = pages["text"], MAPS["text"]
    assert not page.all("img", src="x")
    assert HOSTILE in page.text  # the fact about the model
    assert page.data["names"] == [token.name for token in maps.input.tokens]
    titles = [own["title"] for own in page.all("span") if own.get("class", "").startswith("token")]
    assert titles[1:3] == ["token 2: <", "token 3: /"]
    assert len(titles) == len(maps.input.tokens)
    shown = page.text.split("⟨start⟩", 1)[1]
    assert shown.split("· is a space")[0].replace("\n", "").startswith("</script><script>alert")


def test_what_was_cut_is_said():
    cut = Page(attention_maps.render(text_maps(N=1, H=1, words="a b c", total=312)))
    assert "first 4 of 312 tokens" in cut.text
    assert "was cut" not in Page(attention_maps.render(text_maps(N=1, H=1, words="a b c"))).text


def test_a_split_character_is_named_where_its_bytes_are():
    balloon = "🎈".encode()
    tokens = to_display_tokens([balloon[:2], balloon[2:], b" up"])
    maps = text_maps(N=1, H=1, words="a b")
    maps = AttentionMaps(maps.weights_NHLS, maps.visible_LS, True, TextInput(tokens, 3))
    page = Page(attention_maps.render(maps))
    assert page.data["names"] == ["F09F of 🎈", "8E88 of 🎈", "·up"]
    assert page.all("span", title="token 1: F09F (part of 🎈)")


def test_modes_explain_themselves(pages):
    assert "what came before" in pages["text"].text
    assert "each token sees all" in pages["bidirectional text"].text
    assert "on the start token" in pages["image"].text
    assert "start token" not in pages["bidirectional image"].text


def test_the_chosen_patches_have_contrast_and_lie_apart():
    pixels = np.full((8, 8, 1), 128, np.uint8)
    for row, column in ((0, 0), (0, 1), (3, 3)):
        pixels[2 * row, 2 * column] = 255 if column != 1 else 250
    assert ImageInput(pixels, 2, False).queries(most=2) == [0, 15]


def test_an_overlay_is_strongest_where_the_weight_is_and_fades_out_of_sight():
    shown = ImageInput(np.zeros((4, 4, 1), np.uint8), 2, False)
    seen = np.array([True, True, True, False])
    drawn = attention_maps.overlay_weights(shown, np.array([0.7, 0.2, 0.1, 0.0]), seen)[
        ::2, ::2
    ].reshape(4, 3)
    redness = drawn[:, 0].astype(int) - drawn[:, 2]
    assert redness[0] > redness[1] > redness[2] > redness[3] == 0
    assert drawn[3].min() > 200


def test_every_map_is_the_weights(tmp_path):
    maps = MAPS["text"]
    for n, (_, figure) in enumerate(attention_maps.layer_figures(maps)):
        panels = [
            axes.images[0] for axes in figure.axes if axes.get_title(loc="left").startswith("head")
        ]
        assert len(panels) == maps.weights_NHLS.shape[1]
        for h, image in enumerate(panels):
            drawn = image.get_array()
            np.testing.assert_array_equal(drawn.mask, ~maps.visible_LS)
            np.testing.assert_allclose(drawn.filled(0), maps.weights_NHLS[n, h])


def test_one_patch_and_one_head_can_be_drawn(tmp_path):
    page = attention_maps.write(image_maps(1, 1, False, rows=1, columns=1), tmp_path / "a" / "b")
    assert page == tmp_path / "a" / "b" / "attention_maps.html"
    assert Page(page.read_text()).text.count("–") >= 3  # no numbers where there is no choice
    assert [path.name for path in page.parent.iterdir()] == ["attention_maps.html"]


def test_same_maps_same_bytes():
    maps = image_maps(1, 2)
    assert attention_maps.render(maps) == attention_maps.render(maps)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        attention_maps.write(image_maps(1, 1), tmp_path / "taken")


CAUSAL = np.tril(np.ones((4, 4), bool))
FULL = np.ones((4, 4), bool)


def test_a_head_that_attends_to_the_one_before():
    weights = np.eye(4, k=-1)
    weights[0, 0] = 1
    got = attention_maps.summarize_head(weights, CAUSAL, attention_maps.token_distances(4))
    assert (got.distance, got.entropy_bits, got.self_weight, got.previous_weight) == (1, 0, 0, 1)
    assert got.first_weight == pytest.approx(
        1 / 3
    )  # the first row has no choice and does not count


def test_uniform_attention_by_hand():
    got = attention_maps.summarize_head(
        attention_maps.uniform_weights(CAUSAL), CAUSAL, attention_maps.token_distances(4)
    )
    assert got.entropy_bits == pytest.approx(np.mean(np.log2([2, 3, 4])))
    assert got.distance == pytest.approx(np.mean([0.5, 1.0, 1.5]))
    assert got.self_weight == got.first_weight == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4]))
    both = attention_maps.summarize_head(
        attention_maps.uniform_weights(FULL), FULL, attention_maps.token_distances(4)
    )
    assert both.entropy_bits == pytest.approx(2) and both.previous_weight == pytest.approx(0.25)


def test_a_head_that_attends_to_itself():
    got = attention_maps.summarize_head(np.eye(4), FULL, attention_maps.token_distances(4))
    assert (
        got.distance,
        got.entropy_bits,
        got.self_weight,
        got.previous_weight,
        got.first_weight,
    ) == (0, 0, 1, 0, 0.25)


def test_patches_lie_on_a_grid_and_a_start_token_has_no_distance():
    apart = attention_maps.patch_distances(2, 3, start=False)
    assert apart[0, 5] == pytest.approx(np.sqrt(1 + 4)) and apart[1, 4] == 1
    led = attention_maps.patch_distances(2, 3, start=True)
    np.testing.assert_array_equal(led[1:, 1:], apart)
    assert np.isnan(led[0]).all() and np.isnan(led[:, 0]).all()


def test_weight_on_the_start_token_does_not_count_as_distance():
    apart = attention_maps.patch_distances(1, 2, start=True)
    seen = np.tril(np.ones((3, 3), bool))
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]])
    got = attention_maps.summarize_head(weights, seen, apart)
    assert got.distance == pytest.approx(np.mean([0, 0.5]))
    assert got.first_weight == pytest.approx(0.5)
    without_distance = attention_maps.summarize_head(np.eye(3)[[0, 0, 0]], seen, apart)
    assert without_distance.distance is None and without_distance.first_weight == 1


def test_nothing_to_choose_among_is_no_number():
    one = attention_maps.summarize_head(
        np.ones((1, 1)), np.ones((1, 1), bool), attention_maps.token_distances(1)
    )
    assert one == attention_maps.HeadSummary(None, None, None, None, None)


def parts(*spelled):
    return [token.parts for token in to_display_tokens(list(spelled))]


def test_spaces_and_breaks_are_marks():
    assert parts(b"the", b" film", b"  ", b"\n\n", b"\ta") == [
        (("the", False),),
        (("·", True), ("film", False)),
        (("·", True), ("·", True)),
        (("↵", True), ("↵", True)),
        (("⇥", True), ("a", False)),
    ]
    assert [token.line_breaks for token in to_display_tokens([b"a", b"\n\n"])] == [0, 2]


def test_a_character_split_among_tokens_is_spelled_in_bytes():
    whole = "a🎈b".encode()
    first, second = to_display_tokens([whole[:3], whole[3:]])
    assert first.parts == (("a", False), ("F0", True), ("9F", True))
    assert second.parts == (("8E", True), ("88", True), ("b", False))
    assert first.partial_character == second.partial_character == "🎈"
    assert first.name == "aF09F"


def test_a_text_cut_in_mid_character_belongs_to_no_character():
    (token,) = to_display_tokens(["é".encode()[:1]])
    assert token == DisplayToken((("C3", True),), "C3")


def test_characters_whole_in_one_token_are_themselves():
    assert parts("naïve 日本".encode()) == [(("naïve", False), ("·", True), ("日本", False))]


def test_what_cannot_be_seen_or_turns_the_line_is_named():
    assert parts("\u202ex\x00".encode()) == [(("U+202E", True), ("x", False), ("U+0000", True))]


def test_a_lone_accent_stands_on_a_circle():
    assert parts(b"e", "\u0301".encode()) == [(("e", False),), (("◌\u0301", False),)]
    assert parts("e\u0301".encode()) == [(("e\u0301", False),)]


def test_letters_are_what_stands_for_itself():
    (word,) = to_display_tokens([b" film"])
    assert word.num_letters == 4 and special_token("⟨end⟩").num_letters == 0
