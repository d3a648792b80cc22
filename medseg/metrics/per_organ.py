"""A torchmetrics shell: it remembers cases, and combines processes so that each case counts once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Real
from torch import Tensor
from torchmetrics import Metric

from medseg.metrics.overlap import Counts, Organs, checked_values, count_labels, count_masks, dice

_NOT_ANNOTATED = -1


class PerOrganDice(Metric):  # type: ignore[misc]  # mypy skips torchmetrics, see pyproject.toml
    r"""Dice per organ, averaged over whole cases: $\frac1N \sum_n 2 TP_n / (2 TP_n + FP_n + FN_n)$.

    Each case counts once however often it is seen, so the padding of a distributed sampler changes nothing. Missed and
    invented organs score 0, organs absent on both sides 1 (see `medseg.metrics.empty`).

    Args:
        organs: Organ name -> label value, or values of a region.
        ignore: Reference value of voxels that count for nothing.
        torchmetrics_options: Passed to `torchmetrics.Metric`.

    Example:
        >>> metric = PerOrganDice({"liver": 1, "spleen": 2})
        >>> metric.update(torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 1, 2, 2]]]), "case_1")
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'liver': 0.667, 'spleen': 0.667, 'mean': 0.667}
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    keys: list[Tensor]
    rows: list[Tensor]

    def __init__(self, organs: Organs, *, ignore: int | None = None, **torchmetrics_options: Any) -> None:
        super().__init__(**torchmetrics_options)
        if not organs:
            raise ValueError("expected at least one organ, got none; name the organs of the dataset")
        self.organs, self.ignore = {name: checked_values(values) for name, values in organs.items()}, ignore
        self._nothing = (torch.empty(0, dtype=torch.int64), torch.empty(0, 3 * len(organs), dtype=torch.int64))
        self.add_state("keys", default=[], dist_reduce_fx="cat")
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        prediction: Real[Tensor, "*space"] | Bool[Tensor, "c *space"],
        reference: Real[Tensor, "*reference_space"],
        case_id: str,
        *,
        annotated: Collection[str] | None = None,
    ) -> None:
        """Count one whole case.

        Args:
            prediction: Label values in the reference's vocabulary, or one mask per organ in the order of ``organs``.
            reference: Label values.
            case_id: Name of the case; a second update under it is left out.
            annotated: The organs that the reference covers, None for all; the others do not count in this case.

        Raises:
            ValueError: Shape, number of masks or a label value does not fit.
        """
        count = count_masks if prediction.dtype == torch.bool else count_labels
        counts = count(prediction, reference, self.organs, ignore=self.ignore)
        row = [
            [one.tp, one.fp, one.fn] if annotated is None or name in annotated else [_NOT_ANNOTATED] * 3
            for name, one in counts.items()
        ]
        self._remember(case_id, torch.tensor(row).reshape(-1))

    def compute(self, groups: Mapping[str, str] | None = None) -> dict[str, float]:
        """Give the mean over cases by organ, without organs that no case covers, and their mean under ``mean``.

        Args:
            groups: Case -> a group, such as the hospital that it comes from; the mean of an organ over the cases of a
                group is told under ``GROUP/ORGAN``.
        """
        keys, rows = self._each_case_once()
        cases, group_of = (
            rows.reshape(-1, len(self.organs), 3).tolist(),
            {_key(c): g for c, g in (groups or {}).items()},
        )
        owners = [group_of.get(key) for key in keys.tolist()]
        means = self._means(cases)
        told = {**means, "mean": sum(means.values()) / max(1, len(means))}
        for group in sorted(set(group_of.values())):
            own = [case for case, owner in zip(cases, owners, strict=True) if owner == group]
            told |= {f"{group}/{name}": mean for name, mean in self._means(own).items()}
        return told

    def _means(self, cases: list[list[list[int]]]) -> dict[str, float]:
        """Mean Dice of each organ that some of the cases cover."""
        scores = {
            name: [dice(Counts(*case[index])) for case in cases if case[index][0] != _NOT_ANNOTATED]
            for index, name in enumerate(self.organs)
        }
        return {name: sum(several) / len(several) for name, several in scores.items() if several}

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Gather over processes; one that saw no case joins with none, in the right shape and dtype."""
        if not self._is_synced and not self.keys:
            keys, rows = self._nothing
            self.keys, self.rows = [keys.to(self.device)], [rows.to(self.device)]
        super().sync(*arguments, **options)

    def _remember(self, case_id: str, row: Tensor) -> None:
        self.keys.append(torch.tensor([_key(case_id)], device=self.device))
        self.rows.append(row[None].to(self.device))

    def _each_case_once(self) -> tuple[Tensor, Tensor]:
        """Give keys and rows (case, column), the first of each case, in an order that no process count changes."""
        keys = torch.cat(list(self.keys) or [self._nothing[0]]) if isinstance(self.keys, list) else self.keys
        rows = torch.cat(list(self.rows) or [self._nothing[1]]) if isinstance(self.rows, list) else self.rows
        order = torch.argsort(keys, stable=True)
        keys, rows = keys[order].cpu(), rows[order].cpu()
        first = torch.ones(len(keys), dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        return keys[first], rows[first]


def _key(case_id: str) -> int:
    """A number for a case, the same in every process."""
    return int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest(), "big", signed=True)
