"""The door: logits and targets of every accepted form become one `Comparison`, or an error that says what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias
from torch import Tensor

from medseg.losses.comparison import Comparison
from medseg.losses.statistics import working_dtype
from medseg.losses.table import Mode
from medseg.machine.devices import uploaded

FORMS = {
    "multiclass": "class indices (b, *s) or (b, 1, *s), or one-hot (b, c, *s)",
    "binary": "zeros and ones (b, *s) or (b, 1, *s)",
    "multilabel": "zeros and ones (b, c, *s)",
}


WIDENED = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""Types of labels that torch cannot compare or count, and what holds the same numbers."""


def compare(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int | None = None,
    voxel_weight: Tensor | None = None,
    class_mask: Tensor | None = None,
    spacing_mm: Tensor | Sequence[float] | None = None,
    soft_allowed: bool = True,
    looks: bool = True,
    **options: Any,
) -> Comparison:
    """Hold logits against a target of any accepted form.

    Args:
        logits: Raw network outputs, (b, c, i, j) or (b, c, i, j, k), in any floating type.
        target: Labels, one-hot maps or fractions; see `FORMS`. A one-hot column of zeros is an ignored voxel.
        mode: ``multiclass``, ``binary`` or ``multilabel``.
        ignore_index: The target value of voxels that count nowhere; it may be a class index, or negative.
        voxel_weight: How many voxels each voxel counts as, (b, *s) or (b, 1, *s), in every numerator and denominator.
        class_mask: Which classes were annotated, (b, c), 1 or 0. In ``multiclass`` the background of a sample is then
            "background or one of its undrawn classes", whose probabilities are added up.
        spacing_mm: Voxel size, one number per axis or (b, axes).
        soft_allowed: Whether fractional targets are meaningful to every term.
        looks: Whether to refuse labels that are no class; who has looked already need not wait for a GPU again.
        **options: ``instances``, ``skeleton``, ``distance_map``, ``beforehand`` and ``reduction``, as in `Comparison`.

    Raises:
        ValueError: If shapes, types or values are not among those; the message names them.
    """
    check_logits(logits, mode)
    labels, dense, valid, soft = _read(
        _with_channel(target, logits, mode), logits.shape[1], mode, ignore_index, looks=looks
    )
    if soft and not soft_allowed:
        raise ValueError(
            "the target holds fractions, which a term of this loss has no meaning for. Give hard labels, or use "
            "losses that take soft targets: bce, cross_entropy, focal, dice_squared, dice(soft_target=True), "
            "jaccard_metric, compatible_tversky, noise_robust_dice."
        )
    dtype = working_dtype(logits)
    _check_class_mask(class_mask, logits)
    undrawn = _undrawn(class_mask, logits.device) if mode == "multiclass" else None
    if undrawn is not None:
        labels, dense = _to_background(labels, dense, undrawn)
    for name in ("instances", "skeleton", "distance_map"):
        _check_space(options.get(name), logits, name)
    return Comparison(
        raw=logits,
        mode=mode,
        labels=labels,
        target=dense,
        soft=soft,
        weight=_weight(valid, voxel_weight, logits, mode, looks=looks),
        class_mask=None if class_mask is None else uploaded(class_mask, logits.device, dtype),
        undrawn=undrawn,
        spacing_mm=_spacing(spacing_mm, logits),
        **options,
    )


def check_logits(logits: Tensor, mode: str) -> None:
    """Refuse what cannot be logits in this mode."""
    shape = tuple(logits.shape)
    if not logits.is_floating_point():
        raise ValueError(f"logits must be raw network outputs in a floating type, got {logits.dtype}")
    if logits.ndim not in (4, 5):
        raise ValueError(f"logits must be (b, c, i, j) or (b, c, i, j, k), got shape {shape}")
    if logits.numel() == 0:
        raise ValueError(f"the batch is empty: logits have shape {shape}")
    if mode == "multiclass" and shape[1] < 2:
        raise ValueError(f"mode 'multiclass' needs 2 channels or more, got logits of shape {shape}. Use mode='binary'.")
    if mode == "binary" and shape[1] != 1:
        raise ValueError(
            f"mode 'binary' needs 1 channel, got logits of shape {shape}. Use mode='multiclass' (softmax over the "
            "channels) or mode='multilabel' (a sigmoid for each)."
        )


def _with_channel(target: Tensor, logits: Tensor, mode: str) -> Tensor:
    """Give the target its channel axis, and refuse shapes that do not fit."""
    b, c, *space = logits.shape
    if target.device != logits.device:
        raise ValueError(f"logits are on {logits.device}, the target on {target.device}: move one of them")
    if tuple(target.shape) == (b, *space) and mode != "multilabel":
        target = target.unsqueeze(1)
    channels = {"multiclass": (1, c), "binary": (1,), "multilabel": (c,)}[mode]
    if (
        target.ndim != logits.ndim
        or (b, *space) != (target.shape[0], *target.shape[2:])
        or target.shape[1] not in channels
    ):
        raise ValueError(
            f"the target must be {FORMS[mode]} for logits of shape {tuple(logits.shape)} in mode {mode!r}, "
            f"got shape {tuple(target.shape)}"
        )
    return target


def _read(
    target: Tensor, classes: int, mode: str, ignore_index: int | None, *, looks: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool]:
    """Class indices, or dense maps; a map of the voxels that are not ignored; and whether any value is a fraction."""
    if mode == "multiclass" and target.shape[1] == 1:
        labels, valid = _indices(target.squeeze(1), classes, ignore_index, looks=looks)
        return labels, None, valid, False
    maps, valid, soft = _maps(target, ignore_index, mode, looks=looks)
    if mode == "multiclass" and not soft:
        return maps.to(torch.uint8).argmax(1), None, valid, False
    return None, maps, valid, soft


def _equals(target: Tensor, value: int | None) -> Tensor | None:
    """Where the target is ``value``; None if its type cannot even hold it."""
    if value is None or target.dtype == torch.bool:
        return None
    if not target.is_floating_point():
        limits = torch.iinfo(target.dtype)
        if not limits.min <= value <= limits.max:
            return None
    return target == value


def _indices(labels: Tensor, classes: int, ignore_index: int | None, *, looks: bool) -> tuple[Tensor, Tensor | None]:
    """Class indices with ignored voxels set to 0, and a map (b 1 *s) of the others."""
    if labels.is_floating_point():
        raise ValueError(
            f"class indices must be integers, got {labels.dtype}: convert them with target.long(), "
            "or give one-hot or soft maps with a channel per class"
        )
    labels = labels.to(WIDENED.get(labels.dtype, labels.dtype))
    ignored = _equals(labels, ignore_index)
    if ignored is not None:
        labels = labels.masked_fill(ignored, 0)
    low, high = (int(v) for v in torch.stack(torch.aminmax(labels)).tolist()) if looks else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(
            f"the target holds values from {low} to {high}, but logits with {classes} channels have the classes 0 to "
            f"{classes - 1} (ignore_index is {ignore_index})"
        )
    return labels, None if ignored is None else ~ignored.unsqueeze(1)


def _maps(target: Tensor, ignore_index: int | None, mode: str, *, looks: bool) -> tuple[Tensor, Tensor | None, bool]:
    """Dense maps with ignored elements set to 0, a map of the others, and whether any value is a fraction.

    Of exclusive classes a voxel is ignored that holds the value to ignore, or is wholly of the class to ignore.
    """
    if mode == "multiclass":
        ignored = None if ignore_index in (0, 1) else _equals(target, ignore_index)
        ignored = None if ignored is None else ignored.any(1, keepdim=True)
        if ignore_index is not None and 0 <= ignore_index < target.shape[1]:
            wholly = target[:, ignore_index : ignore_index + 1] == 1
            ignored = wholly if ignored is None else ignored | wholly
    else:
        ignored = _equals(target, ignore_index)
    if ignored is not None:
        target = target.masked_fill(ignored, 0)
    low, high, fractions = 0.0, 0.0, target.is_floating_point()
    if not looks and fractions:  # whoever has looked already knows them for shares
        empty = (target == 0).all(1, keepdim=True) if mode == "multiclass" else None
        ignored = empty if ignored is None or empty is None else ignored | empty
        return target, None if ignored is None else ~ignored, True
    if looks:
        countable = target.to(WIDENED.get(target.dtype, target.dtype))
        low, high = (float(v) for v in torch.stack(torch.aminmax(countable)).tolist())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"target maps in mode {mode!r} must hold values in [0, 1], got {low:g} to {high:g} "
            f"(ignore_index is {ignore_index})"
        )
    soft = fractions and bool(((target != 0) & (target != 1)).any())
    if mode == "multiclass":
        columns = target.sum(1, keepdim=True, dtype=torch.float32)
        empty = columns == 0
        wrong = (columns - 1).abs() > (1e-2 if soft else 0)
        if bool((wrong & ~empty).any()):
            raise ValueError(
                f"the {target.shape[1]} maps of a multiclass target must add up to 1 in every voxel (or be all 0 where "
                f"ignored), got sums from {columns.min().item():g} to {columns.max().item():g}"
            )
        if bool(empty.any()):
            ignored = empty if ignored is None else ignored | empty
    return target, None if ignored is None else ~ignored, soft


def _weight(
    valid: Tensor | None, voxel_weight: Tensor | None, logits: Tensor, mode: str, *, looks: bool
) -> Tensor | None:
    """What each element counts: validity times the caller's weight, (b 1|c *s)."""
    dtype = working_dtype(logits)
    if voxel_weight is None:
        return None if valid is None else valid.to(dtype)
    _check_space(voxel_weight, logits, "voxel_weight")
    if voxel_weight.requires_grad:
        raise ValueError("voxel_weight is a constant to every loss and gets no gradient: give voxel_weight.detach()")
    weight = voxel_weight.to(dtype)
    weight = weight.unsqueeze(1) if weight.ndim == logits.ndim - 1 else weight
    if mode == "multiclass" and weight.shape[1] != 1:
        raise ValueError(f"voxel_weight must be one map per sample in mode 'multiclass', got {tuple(weight.shape)}")
    if looks and not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError(f"voxel_weight must be finite and at least 0, got {weight.min():g} to {weight.max():g}")
    return weight if valid is None else weight * valid


def _check_space(values: Tensor | None, logits: Tensor, name: str) -> None:
    """Refuse a map that does not lie over the logits."""
    if values is None:
        return
    b, c, *space = logits.shape
    if tuple(values.shape) not in ((b, *space), (b, 1, *space), (b, c, *space)):
        raise ValueError(
            f"{name} must be {(b, *space)}, {(b, 1, *space)} or {(b, c, *space)}, got {tuple(values.shape)}"
        )


def _check_class_mask(mask: Tensor | None, logits: Tensor) -> None:
    if mask is not None and tuple(mask.shape) != tuple(logits.shape[:2]):
        raise ValueError(f"class_mask must be (b, c) = {tuple(logits.shape[:2])}, got {tuple(mask.shape)}")
    if mask is not None and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"class_mask must hold 1 for what was annotated and 0 for what was not, got {mask.tolist()}")


def _undrawn(mask: Tensor | None, device: torch.device) -> Tensor | None:
    """Classes, of each sample, that no voxel tells from the background; None if there is none."""
    if mask is None:
        return None
    undrawn = F.pad(mask[:, 1:] == 0, (1, 0))  # where the mask lies: a host that has it need not wait
    return uploaded(undrawn, device) if bool(undrawn.any()) else None


def _to_background(labels: Tensor | None, maps: Tensor | None, undrawn: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The target without undrawn classes: should a voxel be labelled so all the same, it is background or that."""
    if labels is not None:
        hidden = undrawn.gather(1, labels.flatten(1).long()).reshape(labels.shape)
        return labels.masked_fill(hidden, 0), maps
    assert maps is not None  # one of the two is always there
    hidden = undrawn.reshape(*undrawn.shape, *[1] * (maps.ndim - 2))
    kept = maps.masked_fill(hidden, 0)
    return labels, torch.cat([kept[:, :1] + (maps - kept).sum(1, keepdim=True), kept[:, 1:]], 1)


def _spacing(spacing_mm: Tensor | Sequence[float] | None, logits: Tensor) -> Tensor | None:
    """Voxel sizes (b axes) on the CPU, where distances start from."""
    if spacing_mm is None:
        return None
    axes = logits.ndim - 2
    spacing = torch.as_tensor(spacing_mm, dtype=torch.float64, device="cpu")
    if spacing.shape not in ((axes,), (logits.shape[0], axes)) or not bool(((spacing > 0) & spacing.isfinite()).all()):
        raise ValueError(
            f"spacing_mm must be {axes} positive numbers, or ({logits.shape[0]}, {axes}) of them, "
            f"got {spacing.tolist()}"
        )
    return spacing.expand(logits.shape[0], axes)
