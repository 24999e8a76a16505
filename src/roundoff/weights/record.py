"""A `Diff` as plain JSON data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from roundoff.metrics.weights import WeightDistance
from roundoff.weights.checkpoint import Checkpoint, dtype_name
from roundoff.weights.tensors import TensorDiff

if TYPE_CHECKING:
    from roundoff.weights.diff import Diff, GroupDiff

__all__ = ["metrics_of", "record_of"]


def record_of(found: Diff) -> dict[str, Any]:
    """Return a comparison as what JSON can hold; each number under the name of its metric."""
    pairing = found.pairing
    return {
        "a": _checkpoint(found.a),
        "b": _checkpoint(found.b),
        "base": None if found.base is None else _checkpoint(found.base),
        "cast": None if found.cast is None else str(found.cast),
        "overall": _group(found.overall),
        "groups": [_group(group) for group in found.groups],
        "optimizer": [_group(group) for group in found.optimizer],
        "tensors": [_tensor(tensor) for tensor in found.tensors],
        "worst": [tensor.pair.name for tensor in found.worst()],
        "only_a": list(pairing.only_a),
        "only_b": list(pairing.only_b),
        "reshaped": {n: [list(a), list(b)] for n, (a, b) in pairing.reshaped.items()},
        "tied": dict(pairing.tied),
        "notes": list(found.notes),
    }


def metrics_of(distance: WeightDistance) -> dict[str, Any]:
    """Return the metrics of what was gathered, and the counts behind them."""
    return {
        "elements": distance.n,
        "max_diff": distance.max_diff,
        "rel_l2": distance.rel_l2,
        "rel_l1": distance.rel_l1,
        "cosine": distance.cosine,
        "ulp_mean": distance.ulp_mean,
        "ulp_max": distance.ulp_max,
        "sign_flips": distance.sign_flips,
        "differing": distance.differing,
        "nonfinite_a": distance.nonfinite_a,
        "nonfinite_b": distance.nonfinite_b,
        "mean_abs_a": distance.abs_a / distance.n if distance.n else math.nan,
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path": checkpoint.path,
        "format": checkpoint.kind,
        "tensors": len(checkpoint.entries),
        "left_out": dict(checkpoint.left_out),
    }


def _group(group: GroupDiff) -> dict[str, Any]:
    return {
        "name": group.name,
        "tensors": group.tensors,
        **metrics_of(group.distance),
        "wasserstein_pooled": group.wasserstein_pooled,
        "wasserstein_per_tensor": group.wasserstein_per_tensor,
        "update": _update(group.update),
    }


def _tensor(tensor: TensorDiff) -> dict[str, Any]:
    pair = tensor.pair
    return {
        "name": pair.name,
        "name_a": pair.name_a,
        "name_b": pair.name_b,
        "shape": list(pair.a.shape),
        "dtype_a": dtype_name(pair.a.dtype),
        "dtype_b": dtype_name(pair.b.dtype),
        **metrics_of(tensor.distance),
        "wasserstein": tensor.wasserstein,
        "tied": pair.tied,
        "cast": None if tensor.cast is None else str(tensor.cast),
        "update": _update(tensor.update),
    }


def _update(update: WeightDistance | None) -> dict[str, float] | None:
    """The two ways from the base: how long each is, the angle between them, and how they differ."""
    if update is None:
        return None
    return {
        "norm_a": math.sqrt(update.aa),
        "norm_b": math.sqrt(update.bb),
        "cosine": update.cosine,
        "rel_l2": update.rel_l2,
    }
