"""What fine-tuning is estimated to take before it runs."""

import dataclasses

import pytest

from fm.study.dry_run import finetuning_flops
from tests.study import helpers_multitask
from tests.study.helpers_study import recipe


@pytest.mark.parametrize(("task", "is_cut_into_rows"), [("fruit", True), ("names", False)])
def test_a_sentence_of_words_is_one_row_and_a_text_several(task, is_cut_into_rows):
    """Tagged sentences are not cut into windows, and all of their tokens are read."""
    (data,) = (each for each in helpers_multitask.datasets() if each.name == task)
    one, three = (recipe("text", num_windows=n) for n in (1, 3))
    flops = [finetuning_flops(each, data, 8, ("full",)) for each in (one, three)]
    assert (flops[1] > 2 * flops[0]) == is_cut_into_rows
    assert is_cut_into_rows or flops[0] == flops[1]
    kept = dataclasses.replace(one, finetune=dataclasses.replace(one.finetune, tokens_kept=4))
    assert (finetuning_flops(kept, data, 8, ("full",)) < flops[0]) == is_cut_into_rows
