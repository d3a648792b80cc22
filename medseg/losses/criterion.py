"""A loss as a module: the expression's terms, their learnable numbers, and the epoch its weights follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from medseg.losses.beforehand import Wish, Wishes
from medseg.losses.class_weights import class_weights, weighted, words_in
from medseg.losses.comparison import Comparison
from medseg.losses.expression import Term, parse
from medseg.losses.inputs import compare
from medseg.losses.ranks import mean_over_ranks
from medseg.losses.reduction import reduced
from medseg.losses.table import MODES, Mode

NO_TRANSFORM = (
    "this loss looks at values while it runs and cannot run under torch.vmap, or measures shapes on the CPU and cannot "
    "run under torch.func: give it one batch, and take gradients with backward() or torch.autograd.grad"
)

_SAID_UNDER_TRANSFORMS = ("have storage", "saved tensor hooks", "setup_context")
"""What torch's errors say of values on the CPU, of checkpoints and of functions without a transform."""


class NonFiniteLogitsError(ValueError):
    """A network's logits are not finite: no loss can be told, but a training can leave the step out."""


class Criterion(nn.Module):
    """A weighted sum of losses of one comparison; made by `build_loss`.

    Attributes:
        expression: What it was built from.
        looks: Whether labels that are no class and logits that are not finite are told, for which a GPU is waited for.
        terms: Each term's value in the last call, detached and before its weight, for logging.
    """

    def __init__(
        self,
        expression: str,
        *,
        mode: Mode,
        ignore_index: int | None,
        reduction: str,
        class_weights: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__()
        self.expression, self.mode = expression, mode
        self.ignore_index, self.reduction = ignore_index, reduction
        self.epoch = 0
        self.looks = True
        self.terms: dict[str, Tensor] = {}
        self.set_class_weights(class_weights)
        self.learnable = nn.ModuleDict({name: _parameters(term) for name, term in self._terms.items()})
        for term in self._terms.values():
            _check_mode(term, mode)

    @property
    def soft_allowed(self) -> bool:
        """Whether every term has a meaning for fractional targets."""
        return all(
            term.row.soft is True or (isinstance(term.row.soft, str) and bool(term.knobs.get(term.row.soft)))
            for term in self._terms.values()
        )

    def set_class_weights(self, weights: Mapping[str, Sequence[float]]) -> None:
        """Tell the words that stand for class weights, such as ``balanced``, their numbers, one per class."""
        terms = parse(weighted(self.expression, weights))
        self._terms = {_unique(i, term, terms): term for i, term in enumerate(terms)}

    def set_epoch(self, epoch: int) -> None:
        """Tell the schedules which epoch it is, counted from 0; call it again after resuming."""
        self.epoch = epoch

    def weights(self) -> dict[str, float]:
        """Each term's weight at the present epoch."""
        return {name: term.weight(self.epoch) for name, term in self._terms.items()}

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        spacing_mm: Tensor | Sequence[float] | None = None,
        *,
        voxel_weight: Tensor | None = None,
        class_mask: Tensor | None = None,
        instances: Tensor | None = None,
        skeleton: Tensor | None = None,
        distance_map: Tensor | None = None,
        beforehand: Mapping[Wish, Tensor] | None = None,
    ) -> Tensor:
        """Compare raw logits with a target.

        Args:
            logits: Raw outputs (b, c, i, j) or (b, c, i, j, k) in any floating type.
            target: Labels (b, *s) or (b, 1, *s), one-hot maps (b, c, *s), or fractions where every term allows them.
            spacing_mm: Voxel size per axis, or (b, axes); only distance-based terms read it.
            voxel_weight: How many voxels each voxel counts as, (b, *s) or (b, 1, *s).
            class_mask: Which classes were annotated, (b, c); the others cost nothing.
            instances: Numbered objects for blob, cc_dice_ce and unet_weighted_cross_entropy.
            skeleton: Skeleton of the target for skeleton_recall.
            distance_map: Distance map of the target for boundary and Hausdorff losses.
            beforehand: What `wishes` asks for, made by a data pipeline.

        Returns:
            A scalar, or (b,) with ``reduction="none"``; 0 with a gradient of 0 where every voxel is ignored.

        Raises:
            ValueError: If shapes, types or values are wrong.
            NonFiniteLogitsError: If the value is not finite because logits are not; every process has then taken part
                in what they share.
        """
        try:
            with torch.autocast(logits.device.type, enabled=False):
                comparison = compare(
                    logits,
                    target,
                    mode=self.mode,
                    ignore_index=self.ignore_index,
                    voxel_weight=voxel_weight,
                    class_mask=class_mask,
                    spacing_mm=spacing_mm,
                    soft_allowed=self.soft_allowed,
                    instances=instances,
                    skeleton=skeleton,
                    distance_map=distance_map,
                    beforehand=dict(beforehand or {}),  # a comparison adds its own
                    reduction=self.reduction,
                    looks=self.looks,
                )
                total = self.judge(comparison)
        except RuntimeError as error:
            if not any(words in str(error) for words in _SAID_UNDER_TRANSFORMS):
                raise
            raise NotImplementedError(NO_TRANSFORM) from error
        if self.looks:
            _refuse_nan(total, logits)
        return total

    @torch.no_grad()  # so that no process waits for another
    def wishes(self, channels: int) -> Wishes | None:
        """What a data pipeline may make beforehand for logits of so many channels, found by a try; None for nothing.

        A loss that cannot be tried on 512 voxels makes its maps in every step.
        """
        pattern = (torch.arange(8**3) % max(2, channels)).reshape(1, 8, 8, 8)
        target = pattern if self.mode == "multiclass" else (pattern % 2).expand(1, channels, 8, 8, 8)
        device = next((each.device for each in self.parameters()), torch.device("cpu"))
        comparison = compare(torch.zeros(1, channels, 8, 8, 8, device=device), target.to(device), mode=self.mode)
        try:
            self.judge(comparison)
        except (RuntimeError, ValueError):
            return None
        found = comparison.beforehand
        size = sum(each.numel() * each.element_size() for each in found.values()) // 8**3
        return Wishes(tuple(found), size, self.mode, channels, self.ignore_index) if found else None

    def judge(self, comparison: Comparison) -> Tensor:
        """The same for a comparison that is there already, so that several criteria can share one."""
        counted = self._counted(comparison)
        values = {name: self._evaluate(name, term, comparison, counted) for name, term in self._terms.items()}
        total = sum(term.weight(self.epoch) * values[name] for name, term in self._terms.items())
        assert isinstance(total, Tensor)  # there is at least one term
        self.terms = {name: value.detach() for name, value in values.items()}
        return total

    def _counted(self, x: Comparison) -> Tensor:
        """What the voxels count together, over all ranks, or per sample."""
        weight = torch.ones(x.shape[0], 1, device=x.raw.device) if x.weight is None else x.weight.flatten(1)
        return mean_over_ranks(weight.sum()) if self.reduction == "mean" else weight.sum(1)

    def _evaluate(self, name: str, term: Term, x: Comparison, counted: Tensor) -> Tensor:
        learnt: dict[str, Any] = dict(self.learnable[name].named_parameters())
        value = reduced(term.row.function, x, {**term.knobs, **learnt})
        return torch.where(counted > 0, value, value * 0)

    def extra_repr(self) -> str:
        """Show what it was built from."""
        return f"{self.expression!r}, mode={self.mode!r}, ignore_index={self.ignore_index}"


def build_loss(
    expression: str,
    mode: str = "multiclass",
    ignore_index: int | None = None,
    reduction: str = "mean",
    counts: ArrayLike | None = None,
) -> Criterion:
    """Build a loss from an expression.

    Args:
        expression: A weighted sum of names with literal knobs: ``"dice + 0.5 * focal(gamma=2)"``. A weight may be a
            schedule: ``"dice + linear(0.01, 1, epochs=100) * boundary"``; see `Criterion.set_epoch`.
        mode: ``multiclass`` (softmax over the channels), ``binary`` (one channel, sigmoid) or ``multilabel``
            (a sigmoid per channel).
        ignore_index: The target value of voxels that count nowhere.
        reduction: ``mean`` for a scalar, ``none`` for a value per sample.
        counts: Voxels per class of the training set, ``(classes,)`` or ``(cases, classes)``, for words in place of
            class weights: ``"cross_entropy(weight=balanced)"``; see `medseg.losses.class_weights`.

    Returns:
        A module: ``loss(logits, target, spacing_mm=None)``.

    Raises:
        ValueError: If the expression, a knob or the mode is not legal; the message names what is.

    Example:
        >>> loss = build_loss("dice(include_background=False) + cross_entropy")
        >>> logits = torch.zeros(1, 3, 4, 4)
        >>> round(loss(logits, torch.zeros(1, 4, 4, dtype=torch.long)).item(), 4)
        2.0986
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    weights = {} if counts is None else {word: class_weights(counts, word) for word in words_in(expression)}
    return Criterion(expression, mode=mode, ignore_index=ignore_index, reduction=reduction, class_weights=weights)


def _unique(index: int, term: Term, terms: list[Term]) -> str:
    """A term's name, numbered from its second appearance on; torch and logs want no dots in it."""
    name, seen = term.row.name.replace(".", "_"), sum(other.row.name == term.row.name for other in terms[:index])
    return f"{name}_{seen + 1}" if seen else name


def _parameters(term: Term) -> nn.ParameterDict:
    """The numbers a term learns, at the first values its knobs give."""
    knobs = {**term.row.knobs, **term.knobs}
    return nn.ParameterDict(
        {name: nn.Parameter(torch.tensor(float(knobs[knob]))) for name, knob in term.row.learnable.items()}
    )


def _check_mode(term: Term, mode: str) -> None:
    if mode not in term.row.modes:
        raise ValueError(f"{term.row.name} has no meaning in mode {mode!r}, only in: {', '.join(term.row.modes)}")
    if mode == "multilabel" and term.knobs.get("include_background") is False:
        raise ValueError(
            f"{term.row.name}(include_background=False): mode 'multilabel' has no background channel. Leave it out."
        )


def _refuse_nan(total: Tensor, logits: Tensor) -> None:
    """Look for the culprit only once the sum shows that there is one."""
    if bool(total.detach().isfinite().all()):
        return
    bad = int((~logits.detach().isfinite()).sum())
    if bad:
        raise NonFiniteLogitsError(
            f"{bad} of {logits.numel()} logits are not finite (NaN or infinite). Lower the learning rate, clip "
            "gradients, or train in bf16 instead of fp16."
        )
