"""Processors: tokenizers of symbols and images as raster sequences."""

import dataclasses
import json

import numpy as np
import pytest

from fm.config_io import to_plain
from fm.data.media import PatchLayout, layout_of
from fm.errors import UserError
from fm.study.pretraining import load_pretrained, pretrain
from fm.study.processing import build_processor
from fm.training.objectives import PretrainingObjective
from tests.study.helpers_study import MODEL, images, recipe, split, texts


def test_a_raster_layout_has_one_position_and_the_same_patches():
    plain, raster = (layout_of("image", (8, 8, 1), None, 2, raster=each) for each in (False, True))
    assert (plain.num_axes, raster.num_axes) == (2, 1)
    assert raster.positions().tolist() == [[n] for n in range(16)]
    examples = images(3, 0)[0]
    np.testing.assert_array_equal(raster.to_patches(examples), plain.to_patches(examples))
    saved = json.loads(json.dumps(raster.to_dict()))
    assert PatchLayout.from_dict(saved) == raster and "raster" not in plain.to_dict()


def test_fields_of_earlier_recipes_are_not_written():
    assert not {"tokenizer", "raster"} & to_plain(recipe()).keys()
    changed = to_plain(recipe(tokenizer="symbols", raster=True))
    assert (changed["tokenizer"], changed["raster"]) == ("symbols", True)
    with pytest.raises(UserError, match="tokenizer='words': must be one of bpe, symbols"):
        recipe(tokenizer="words")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["rotary", "learned"])
def test_images_as_raster_sequences_are_pretrained(tmp_path, encoding):
    arch = dataclasses.replace(MODEL.arch, position_encoding=encoding)
    model = dataclasses.replace(MODEL, arch=arch, max_seq_len=17)
    own = recipe("image", raster=True, patch_size=2, model=model)
    corpus = split(*images(60, 0))
    processor = build_processor(corpus, "image", own, tmp_path)
    assert processor.model.position_axes == 1
    pretrain(corpus, "image", own, processor, seed=0, out_dir=tmp_path, run_name="toy")
    found = load_pretrained(tmp_path).processor
    assert found.layouts["image"].raster
    assert found.model.arch.position_encoding == encoding


@pytest.mark.slow
def test_texts_of_symbols_are_pretrained(tmp_path):
    objective = PretrainingObjective(causal_lm=0.5, masked_lm=0.5)
    own = recipe("text", tokenizer="symbols", objective=objective, seq_len=24)
    corpus = split(*texts(60, 0))
    processor = build_processor(corpus, "text", own, tmp_path)
    # Eight words, the unknown one and four special tokens.
    assert processor.model.vocab_size == 13
    pretrain(corpus, "text", own, processor, seed=0, out_dir=tmp_path, run_name="toy")
    assert load_pretrained(tmp_path).processor.tokenizer.vocab_size == 13
