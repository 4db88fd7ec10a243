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
    ImageInput,
    TextInput,
    display_tokens,
    special_token,
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


def text_look(N=2, H=3, causal=True, words=HOSTILE, total=None):
    pieces = re.findall(r" ?\w+|\W", words)
    tokens = [special_token("⟨start⟩"), *display_tokens([piece.encode() for piece in pieces])]
    L = len(tokens)
    seen = np.tril(np.ones((L, L), bool)) if causal else np.ones((L, L), bool)
    weights = softmax((N, H, L, L), seen)
    return AttentionMaps(
        weights, seen, causal, TextInput(tokens, total or L), (("Model", HOSTILE),)
    )


def picture_look(N=2, H=2, causal=True, channels=1, rows=3, columns=2, patch=2):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows * patch, columns * patch, channels)).astype(np.uint8)
    L = rows * columns + causal
    seen = np.tril(np.ones((L, L), bool)) if causal else np.ones((L, L), bool)
    return AttentionMaps(
        softmax((N, H, L, L), seen), seen, causal, ImageInput(pixels, patch, causal)
    )


LOOKS = {
    "text": text_look(),
    "text both ways": text_look(causal=False, H=1),
    "picture": picture_look(),
    "picture both ways": picture_look(causal=False, channels=3, H=5, N=1),
}


@pytest.fixture(scope="module")
def pages():
    return {name: Page(attention_maps.render(look)) for name, look in LOOKS.items()}


@pytest.mark.parametrize("name", LOOKS)
class TestEveryPage:
    def test_the_weights_are_in_it_by_layer_head_query_and_key(self, pages, name):
        data, look = pages[name].data, LOOKS[name]
        N, H, L = look.weights_NHLS.shape[:3]
        assert (data["layers"], data["heads"], data["length"]) == (N, H, L)
        numbers = np.frombuffer(base64.b64decode(data["weights"]), "<u2") / data["unit"]
        np.testing.assert_allclose(
            numbers.reshape(N, H, L, L), look.weights_NHLS, atol=0.51 / data["unit"]
        )

    def test_every_layer_and_head_has_its_place_and_its_numbers(self, pages, name):
        page, look = pages[name], LOOKS[name]
        N, H = look.weights_NHLS.shape[:2]
        tag = "button" if isinstance(look.input, TextInput) else "figure"
        places = {
            (int(own["data-layer"]), int(own["data-head"]))
            for own in page.all(tag)
            if "data-head" in own
        }
        assert places - {(n, -1) for n in range(N)} == set(np.ndindex(N, H))
        rows = page.text.split("Heads")[-1]
        for n, layer in enumerate(look.head_summaries()):
            assert f"Layer {n + 1}" in page.text
            for each in layer:
                assert f"{each.entropy_bits:.2f}" in rows and f"{each.distance:.2f}" in rows
        assert f"{look.uniform_summary().entropy_bits:.2f}" in rows
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
    page, look = pages["text"], LOOKS["text"]
    assert not page.all("img", src="x")
    assert HOSTILE in page.text  # the fact about the model
    assert page.data["names"] == [token.name for token in look.input.tokens]
    titles = [own["title"] for own in page.all("span") if own.get("class", "").startswith("token")]
    assert titles[1:3] == ["token 2: <", "token 3: /"]
    assert len(titles) == len(look.input.tokens)
    shown = page.text.split("⟨start⟩", 1)[1]
    assert shown.split("· is a space")[0].replace("\n", "").startswith("</script><script>alert")


def test_what_was_cut_is_said():
    cut = Page(attention_maps.render(text_look(N=1, H=1, words="a b c", total=312)))
    assert "first 4 of 312 tokens" in cut.text
    assert "was cut" not in Page(attention_maps.render(text_look(N=1, H=1, words="a b c"))).text


def test_a_split_character_is_named_where_its_bytes_are():
    balloon = "🎈".encode()
    tokens = display_tokens([balloon[:2], balloon[2:], b" up"])
    look = text_look(N=1, H=1, words="a b")
    look = AttentionMaps(look.weights_NHLS, look.visible_LS, True, TextInput(tokens, 3))
    page = Page(attention_maps.render(look))
    assert page.data["names"] == ["F09F of 🎈", "8E88 of 🎈", "·up"]
    assert page.all("span", title="token 1: F09F (part of 🎈)")


def test_modes_explain_themselves(pages):
    assert "what came before" in pages["text"].text
    assert "each token sees all" in pages["text both ways"].text
    assert "on the start piece" in pages["picture"].text
    assert "start piece" not in pages["picture both ways"].text


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
    look = LOOKS["text"]
    for n, (_, figure) in enumerate(attention_maps.layer_figures(look)):
        panels = [
            axes.images[0] for axes in figure.axes if axes.get_title(loc="left").startswith("head")
        ]
        assert len(panels) == look.weights_NHLS.shape[1]
        for h, image in enumerate(panels):
            drawn = image.get_array()
            np.testing.assert_array_equal(drawn.mask, ~look.visible_LS)
            np.testing.assert_allclose(drawn.filled(0), look.weights_NHLS[n, h])


def test_one_piece_and_one_head_can_be_drawn(tmp_path):
    page = attention_maps.write(picture_look(1, 1, False, rows=1, columns=1), tmp_path / "a" / "b")
    assert page == tmp_path / "a" / "b" / "attention_maps.html"
    assert Page(page.read_text()).text.count("–") >= 3  # no numbers where there is no choice
    assert [path.name for path in page.parent.iterdir()] == ["attention_maps.html"]


def test_same_look_same_bytes():
    look = picture_look(1, 2)
    assert attention_maps.render(look) == attention_maps.render(look)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        attention_maps.write(picture_look(1, 1), tmp_path / "taken")
