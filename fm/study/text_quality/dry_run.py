"""What a text quality study would do, before it does it."""

from __future__ import annotations

import dataclasses

from fm.study.dry_run import StageEstimate, pretraining_stage
from fm.study.step_estimate import estimate_step, text_batch
from fm.study.text_quality.config import TextQualityConfig
from fm.training.objectives import PretrainingObjective


def study_stages(config: TextQualityConfig) -> list[StageEstimate]:
    """Returns the stages of a text quality study in order; measures a training step."""
    model = dataclasses.replace(config.model, vocab_size=config.vocab_size)
    objective = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
    batch = text_batch(config.batch_size, config.seq_len, config.vocab_size)
    step = estimate_step(model, objective, config.optimizer, batch)
    stages = [
        pretraining_stage(f"training on {each.name}", config.steps_of(each), step, config)
        for each in config.training_sets
    ]
    samples = sum(
        len(config.sampling_configs_at(stage)) * len(each.prompt_domains)
        for each in config.training_sets
        for stage in config.checkpoint_steps(each)
    )
    details = (
        f"{samples} samples of {config.num_texts} texts of {config.max_new_tokens} tokens",
        f"{len(config.sampling_configs)} sampling configs",
    )
    return [*stages, StageEstimate("sampling and measuring", details)]
