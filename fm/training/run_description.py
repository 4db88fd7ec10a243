"""The first line of a training run: what is trained, on what, and with which kernel."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
from jax.sharding import Mesh

from fm.attention import Choice, explain_choice
from fm.model.config import ModelConfig
from fm.model.layers import layer_mask, scale_and_softcap
from fm.model.sizes import format_count
from fm.parallel.mesh import MESH_AXES, config_from_mesh, default_device
from fm.training.multitask import AnyObjective, group_batches
from fm.training.objectives import Batch, attention_inputs


def describe_run(
    params: dict,
    batch: Batch,
    model_config: ModelConfig,
    objective: AnyObjective,
    *,
    steps: int,
    mesh: Mesh | None,
    trials: int = 1,
) -> str:
    """Returns one line: steps, parameters, tokens a step, dtype, attention kernels and devices.

    Args:
      params: of one trial.
      batch: the first one, of one trial and all processes.
      model_config: of the model.
      objective: what is predicted.
      steps: optimizer steps at most.
      mesh: None is the default device.
      trials: number of models that train as one program.
    """
    groups = [group_batch for _, group_batch, _ in group_batches(batch, objective)]
    parts = [
        f"{steps:,} steps of {_tokens_per_step(groups)}",
        f"attention by {describe_attention(model_config, batch, objective)}",
        describe_model(params, model_config, mesh),
    ]
    return ", ".join([*([f"{trials} models at once"] if trials > 1 else []), *parts])


def describe_model(params: Any, model_config: ModelConfig, mesh: Mesh | None) -> str:
    """Returns a clause: number of parameters (arrays or their shapes), dtype and devices."""
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(params))
    return f"{format_count(count)} parameters, {model_config.dtype}, {_devices(mesh)}"


def describe_attention(
    model_config: ModelConfig, batch: dict[str, Any], objective: AnyObjective
) -> str:
    """Returns the attention implementations of a training step, each with why it was selected.

    Args:
      model_config: of the model.
      batch: the batch, or its shapes, of all processes.
      objective: what is predicted.
    """
    choices = _attention_choices(model_config, batch, objective)
    distinct = dict.fromkeys(choices.values())
    parts = []
    for choice in distinct:
        users = [name for name, each in choices.items() if each == choice]
        whose = f" for {' and '.join(users)}" if len(distinct) > 1 else ""
        parts.append(f"{choice.name}{whose} ({choice.reason})")
    return " and ".join(parts)


def _attention_choices(
    model_config: ModelConfig, batch: dict[str, Any], objective: AnyObjective
) -> dict[str, Choice]:
    """Returns the attention implementation of each objective of each group, by name.

    Where a model has full and sliding layers, each kind has an entry.
    """
    choices = {}
    _, softcap = scale_and_softcap(model_config)
    for prefix, group, each in group_batches(batch, objective):
        for name, (B, L, mask) in attention_inputs(group, each).items():
            q, k = (
                jax.ShapeDtypeStruct((B, L, heads, model_config.head_dim), model_config.dtype)
                for heads in (model_config.num_heads, model_config.num_kv_heads)
            )
            named = model_config.attention
            kinds = dict.fromkeys(model_config.layer_kinds) or {"full": None}
            for kind in kinds:
                whose = f" in {kind} layers" if len(kinds) > 1 else ""
                own_mask = layer_mask(mask, kind, model_config)
                choices[f"{prefix}{name}{whose}"] = (
                    Choice(named, "named in the config")
                    if named
                    else explain_choice(q, k, own_mask, softcap=softcap)
                )
    return choices


def _tokens_per_step(groups: list[Batch]) -> str:
    """Returns the positions of all rows of a batch, and how many rows of which length."""
    total, rows = 0, []
    for group in groups:
        B, L = group["segments"].shape
        total += B * L
        rows.append(f"{B} x {L}")
    nouns = {"tokens" if "tokens" in group else "patches" for group in groups}
    return f"{total:,} {' and '.join(sorted(nouns, reverse=True))} ({' + '.join(rows)})"


def _devices(mesh: Mesh | None) -> str:
    if mesh is not None:
        by_axis = dataclasses.asdict(config_from_mesh(mesh))
        sizes = [f"{axis}:{by_axis[axis]}" for axis in MESH_AXES if by_axis[axis] > 1]
        kind = mesh.devices.flat[0].device_kind
        return f"mesh {','.join(sizes) or 'of one device'} of {mesh.devices.size} x {kind}"
    device = default_device()
    if device.platform == "cpu":
        return f"no mesh, cpu ({os.cpu_count()} cores)"
    return f"no mesh, one {device.device_kind}"
