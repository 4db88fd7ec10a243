"""Attention and its gradients in float64 numpy, the mask by two plain loops."""

import numpy as np


def visible(mask, rows, length, keys):
    """bool [rows, length, keys], from the rule in `Mask`'s docstring, pair by pair."""
    seen = np.zeros((rows, length, keys), bool)
    fields = {
        name: values if values is None else np.asarray(values).tolist()
        for name, values in vars(mask).items()
        if name not in ("causal", "window", "window_right", "packed")
    }
    q_segments, kv_segments = fields["q_segments"], fields["kv_segments"]

    def field(name, b, default):
        return default if fields[name] is None else fields[name][b]

    for b, i, j in np.ndindex(rows, length, keys):
        at = i + field("q_start", b, 0)
        past = not mask.causal or j <= at or j < field("prefix", b, 0)
        near = mask.window is None or j > at - mask.window
        near &= mask.window_right is None or j < at + mask.window_right
        valid = j < field("kv_length", b, keys)
        together = q_segments is None or q_segments[b][i] == kv_segments[b][j]
        seen[b, i, j] = past and near and valid and together
    return seen


def attend(q, k, v, do, seen, scale, softcap=None):
    """Output and the gradients of sum(output * do) by q, k and v."""
    q, k, v, do = (np.asarray(x, np.float64) for x in (q, k, v, do))
    groups = q.shape[2] // k.shape[2]
    wide_k, wide_v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = scale * np.einsum("blhc,bshc->bhls", q, wide_k)
    slope = np.ones_like(scores)
    if softcap is not None:
        slope = 1 - np.tanh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    seen = np.broadcast_to(seen[:, None], scores.shape)
    top = np.max(np.where(seen, scores, -1e300), axis=-1, keepdims=True)
    weights = np.where(seen, np.exp(np.where(seen, scores - top, 0.0)), 0.0)
    total = weights.sum(-1, keepdims=True)
    p = weights / np.where(total == 0, 1.0, total)
    o = np.einsum("bhls,bshc->blhc", p, wide_v)
    dp = np.einsum("blhc,bshc->bhls", do, wide_v)
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True)) * slope * scale

    def narrow(grad):
        return grad.reshape(*k.shape[:3], groups, k.shape[3]).sum(3)

    dq = np.einsum("bhls,bshc->blhc", ds, wide_k)
    dk = narrow(np.einsum("bhls,blhc->bshc", ds, q))
    dv = narrow(np.einsum("bhls,blhc->bshc", p, do))
    return o, dq, dk, dv
