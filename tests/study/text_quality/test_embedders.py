"""Vectors of a published model: its own final output, averaged; and whose they are."""

import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.model.transformer import forward
from fm.study.text_quality import scoring
from fm.study.text_quality.runner import TextQualityStudy
from tests.study.text_quality import helpers_text_quality as helpers

TEXTS = ["the cat sat on the mat", "the", "and the naïve dog didn't. " * 3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("family", "causal"), [("bert", False), ("llama", True)])
@pytest.mark.slow
def test_a_vector_is_the_mean_of_the_final_output(family, causal, tmp_path):
    found = scoring.find_embedder(str(helpers.write_model(tmp_path / "model", family)))
    model = found.model
    assert model.causal == causal
    got = found.build([])(TEXTS)
    assert got.shape == (3, model.config.d_model) and got.dtype == np.float32
    for text, vector in zip(TEXTS, got, strict=True):
        ids = model.encode([text], model.config.max_seq_len)[0]
        inputs = {"tokens": jnp.array(ids)[None], "positions": jnp.arange(len(ids))[None]}
        final = forward(model.params, inputs, model.config, mask=Mask(causal))["final"]
        mean = np.asarray(final[0], np.float64).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_long_text_is_read_at_both_ends(tmp_path):
    make = scoring.find_embedder(str(helpers.write_model(tmp_path / "model"))).build([])
    base, middle, end = make(
        ["cat " * 200, "cat " * 100 + "dog " + "cat " * 99, "cat " * 199 + "dog "]
    )
    np.testing.assert_allclose(base, middle, atol=1e-6)
    assert np.abs(base - end).max() > 1e-4


def test_whose_they_are_is_told(tmp_path):
    path = str(helpers.write_model(tmp_path / "model"))
    found = scoring.find_embedder(path)
    assert (found.info.name, found.info.source) == (path, "a file of your own")
    told = found.build([]).name
    assert path in told and "a file of your own" in told and "license not known" in told
    other = scoring.find_embedder(str(helpers.write_model(tmp_path / "other", seed=1)))
    assert found.info.digest != other.info.digest


def test_terms_are_of_the_texts_given():
    found = scoring.find_embedder("tfidf")
    assert found.model is None and found.info.digest == ""
    texts = helpers.texts("films", 20, 0)
    assert "20 real texts" in found.build(texts).name


def test_a_model_that_is_none_is_one_line_that_says_what_is_taken():
    with pytest.raises(
        UserError, match=r"^--embedder=gpt9: must be tfidf, .*minilm-l6.* GGUF file$"
    ):
        scoring.find_embedder("gpt9")


def test_other_vectors_than_the_study_names_are_refused(tmp_path):
    found = scoring.find_embedder(str(helpers.write_model(tmp_path / "model")))
    with pytest.raises(ValueError, match="'tfidf'"):
        TextQualityStudy(helpers.study(("a", "b")), found)
