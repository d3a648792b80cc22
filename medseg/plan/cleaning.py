"""Rules of cleaning, organ by organ: what a checkpoint keeps of them, and how they are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medseg.plan.plan import Plan


@dataclass(frozen=True)
class Rule:
    """What is done to one organ, in this order.

    Attributes:
        largest_component: Keep only the largest part (26-neighbourhood in 3D).
        minimum_mm3: Remove parts smaller than this.
        fill_holes: Give enclosed background to the organ; never a voxel that could then not be another's any more.

    Example:
        >>> str(Rule(largest_component=True, fill_holes=True)), str(Rule())
        ('keep the largest part, fill holes', 'left alone')
    """

    largest_component: bool = False
    minimum_mm3: float = 0.0
    fill_holes: bool = False

    @property
    def idle(self) -> bool:
        """Whether it does nothing."""
        return self == Rule()

    def __str__(self) -> str:
        steps = [
            "keep the largest part" * self.largest_component,
            f"remove parts below {self.minimum_mm3:g} mm³" * bool(self.minimum_mm3),
            "fill holes" * self.fill_holes,
        ]
        return ", ".join(filter(None, steps)) or "left alone"


Rules = Mapping[str, Rule]
"""Organ -> what is done to it."""


def rules_to_plain(rules: Rules, plan: Plan) -> list[dict[str, Any]]:
    """Rules as a checkpoint keeps them, idle ones left out; the value is that of the organ in predicted files."""
    kept = ((organ, rule) for organ, rule in rules.items() if not rule.idle)
    return [{"organ": organ, "value": plan.painted[organ], **asdict(rule)} for organ, rule in kept]


def rules_from_plain(data: Iterable[Mapping[str, Any]], plan: Plan) -> dict[str, Rule]:
    """What `rules_to_plain` wrote; before it named the organ, the value did."""
    by_value = {value: organ for organ, value in plan.painted.items()}
    named = ((row.get("organ", by_value.get(row["value"])), row) for row in data)
    return {
        organ: Rule(bool(row["largest_component"]), float(row["minimum_mm3"]), bool(row["fill_holes"]))
        for organ, row in named
        if organ in plan.labels
    }
