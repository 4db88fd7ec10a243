import dataclasses

import jax
import numpy as np
import pytest

from fm.adaptation import prompting
from fm.adaptation.prompting import PromptEncoder, PromptTemplate
from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import ArchConfig
from fm.model.transformer import forward, init
from tests.adaptation.helpers_models import MODEL

WORDS = "Review: {text} Mood: {answer}"
TEMPLATE = PromptTemplate(WORDS, ("sad", "glad"))


class Letters:
    """One token a character."""

    bos = 1

    def encode(self, texts):
        return [np.array([ord(each) for each in text], np.int32) for text in texts]


def decoded(ids):
    return "".join(chr(each) if each > 1 else "^" for each in ids)


def prompter(length=60, template=TEMPLATE):
    return PromptEncoder(template, Letters(), length)


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied"])
def model(request):
    config = dataclasses.replace(
        MODEL, vocab_size=128, arch=ArchConfig(tie_embeddings=request.param)
    )
    leaves, shape = jax.tree.flatten(init(jax.random.key(0), config))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    made = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(shape, made), config


def plainly(params, config, prompt, answer):
    """Nats of each token of an answer, one forward pass of a single row, in float64 at the end."""
    whole = np.concatenate([prompt, answer])
    inputs = {"tokens": whole[None], "positions": np.arange(len(whole))[None]}
    final = forward(params, inputs, config, mask=Mask(causal=True))["final"][0]
    streams = params["streams"]
    head = streams.get("token_head", streams["token_embedding"].T)
    logits = np.asarray(final, np.float64) @ np.asarray(head, np.float64)
    nats = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return nats[np.arange(len(prompt) - 1, len(whole) - 1), answer]


def test_a_prompt_reads_as_the_template_says():
    made = prompter().encode_prompts(["good  film", ""])
    assert [decoded(each) for each in made] == [
        "^Review: good  film Mood:",
        "^Review:  Mood:",
    ]
    assert [decoded(each) for each in prompter().encode_answers()] == [" sad", " glad"]


def test_solved_examples_lead():
    made = prompter(100).encode_prompts(["new"], [("old", 1), ("worn", 0)])
    assert decoded(made[0]) == (
        "^Review: old Mood: glad\n\nReview: worn Mood: sad\n\nReview: new Mood:"
    )


def test_a_long_text_is_cut_never_the_template():
    for length in (30, 31, 45):
        (made,) = prompter(length).encode_prompts(["x" * 99])
        assert len(made) + len(" glad") == length
        assert decoded(made).startswith("^Review: x") and decoded(made).endswith("x Mood:")
    (made,) = prompter(70).encode_prompts(["x" * 99], [("y" * 99, 0)])
    assert decoded(made).count("Mood:") == 2 and len(made) + len(" glad") <= 70
    assert abs(decoded(made).count("x") - decoded(made).count("y")) <= 1


def test_no_room_for_the_text_is_refused():
    with pytest.raises(UserError, match=r"19 tokens leave no room .* with 0 solved examples"):
        prompter(19).encode_prompts(["good"])


@pytest.mark.slow
def test_scores_of_long_answers_equal_a_plain_computation(model):
    params, config = model
    texts = ["good", "a rather longer review, of many tokens", "bad"]
    asked, answers = prompter().encode_prompts(texts), prompter().encode_answers()
    by_token = [[plainly(params, config, p, a) for a in answers] for p in asked]
    summed = prompting.answer_logprobs(params, config, asked, answers)
    np.testing.assert_allclose(summed, [[x.sum() for x in row] for row in by_token], atol=2e-4)
    mean = prompting.answer_logprobs(params, config, asked, answers, mean_over_tokens=True)
    np.testing.assert_allclose(mean, [[x.mean() for x in row] for row in by_token], atol=1e-4)


def test_scores_of_one_token_answers_take_one_pass(model, monkeypatch):
    params, config = model
    asked = prompter().encode_prompts(["good", "a rather longer review, of many tokens"])
    answers = [np.array([token], np.int32) for token in (40, 41, 42)]
    wanted = [[plainly(params, config, p, a).sum() for a in answers] for p in asked]
    calls, ragged = [], prompting.map_bucketed
    monkeypatch.setattr(
        prompting, "map_bucketed", lambda *a, **k: calls.append(a) or ragged(*a, **k)
    )
    np.testing.assert_allclose(
        prompting.answer_logprobs(params, config, asked, answers), wanted, atol=1e-4
    )
    assert len(calls) == 1


def test_calibration_is_the_papers():
    draws = np.random.default_rng(0)
    scores, free = draws.normal(-5, 2, (6, 3)), draws.normal(-5, 2, (2, 3))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)

    bias = softmax(free).mean(axis=0)
    wanted = softmax(scores) @ np.linalg.inv(np.diag(bias))
    got = np.exp(prompting.calibrate(scores, free))
    np.testing.assert_allclose(got / got.sum(1, keepdims=True), wanted / wanted.sum(1)[:, None])


def test_calibration_takes_out_a_liking_for_one_answer():
    liking = np.array([3.0, 0.0])
    scores = np.log([[0.6, 0.4], [0.3, 0.7]]) + liking
    assert scores.argmax(axis=1).tolist() == [0, 0]
    free = np.log([[0.5, 0.5]]) + liking
    assert prompting.calibrate(scores, free).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    "words",
    ["Mood: {answer}", "{text}", "{answer} {text}", "{text} {answer}!", "{text} {mood} {answer}"],
)
def test_a_template_without_its_places_is_refused(words):
    with pytest.raises(UserError, match=r"takes \{text\}, then at its end \{answer\}"):
        PromptTemplate(words, ("a", "b"))


@pytest.mark.parametrize("answers", [("a",), ("a", "a"), ("a", " ")], ids=str)
def test_bad_answers_are_refused(answers):
    with pytest.raises(UserError, match="answers"):
        PromptTemplate(WORDS, answers)


def test_answers_the_tokenizer_cannot_tell_apart():
    class Deaf(Letters):
        def encode(self, texts):
            return [np.array([5], np.int32) for _ in texts]

    with pytest.raises(UserError, match="cannot tell the answers sad, glad apart"):
        PromptEncoder(TEMPLATE, Deaf(), 60).encode_answers()


def test_over_the_context_is_refused(model):
    params, config = model
    short = dataclasses.replace(config, max_seq_len=20)
    with pytest.raises(UserError, match=r"exceeds the model.s max_seq_len of 20"):
        prompting.answer_logprobs(
            params, short, prompter().encode_prompts(["x" * 30]), prompter().encode_answers()
        )
