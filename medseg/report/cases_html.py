"""The chapters of the report that show single cases: pictures of the worst and the best, and a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from jaxtyping import Bool, Num

from medseg.errors import DataError, listed
from medseg.pictures.markup import Markup, element, together
from medseg.pictures.outlines import draw_slice, key, three_planes
from medseg.pictures.page import folded, table
from medseg.report.evaluate import Evaluation
from medseg.report.rows import CaseRow, by_case, organs_of
from medseg.report.scoring import read_pair
from medseg.space.labels import values_of
from medseg.space.reading import read_volume
from medseg.space.volume import Volume, same_place

_PICTURED = 3
_LISTED = 500  # rows that a browser turns over at once, and a mail carries


def picked_cases(evaluation: Evaluation, *, count: int = _PICTURED) -> Markup:
    """Show the worst and the best cases by mean Dice, each at its worst organ and with all, in three planes."""
    order = [*_by_mean_dice(evaluation.rows)]
    worst, best = order[:count], [case for case in order[::-1][:count] if case not in order[:count]]
    chapters = (
        element("h3", heading) + together(_picture(evaluation, case) for case in cases)
        for heading, cases in (("Worst", worst), ("Best", best))
        if cases
    )
    return key() + together(chapters) if order else Markup("")


def all_cases(rows: Sequence[CaseRow], *, count: int = _LISTED) -> Markup:
    """Tabulate the Dice of each case with all its organs, worst case first, folded away; of many the worst."""
    if not rows:
        return Markup("")
    organs, dice, order = organs_of(rows), {(row.case, row.organ): row for row in rows}, _by_mean_dice(rows)
    lines = (
        (case, f"{order[case]:.3f}", *(_dice_cell(dice.get((case, organ))) for organ in organs))
        for case in list(order)[:count]
    )
    told = "every case" if len(order) <= count else f"the {count} worst of {len(order):,} cases (all are in cases.csv)"
    return folded(f"Dice of {told}, worst first", table(("case", "mean", *organs), lines, sortable=True))


def _dice_cell(row: CaseRow | None) -> str:
    if row is None:
        return ""
    outcome = row.scores.outcome.value
    return Markup(f"{row.scores.dice:.3f}") + ("" if outcome == "found" else element("span", f" {outcome}", css="soft"))


def _by_mean_dice(rows: Sequence[CaseRow]) -> dict[str, float]:
    """Case -> its mean Dice, worst first."""
    dice = {case: fmean(row.scores.dice for row in some) for case, some in by_case(rows).items()}
    return dict(sorted(dice.items(), key=lambda case: (case[1], case[0])))


def _picture(evaluation: Evaluation, case: str) -> Markup:
    rows = by_case(evaluation.rows)[case]
    worst = min(rows, key=lambda row: row.scores.dice)
    volumes = read_pair(next(pair for pair in evaluation.pairs if pair.case == case), evaluation.scoring)
    image = _image(evaluation, case, volumes[1])
    text = (
        f"mean Dice {fmean(row.scores.dice for row in rows):.3f}; shown at its worst organ, {worst.organ}: Dice "
        f"{worst.scores.dice:.3f}, HD95 {worst.scores.hd95_mm:.1f} mm, {worst.scores.outcome.value}"
    )
    every = [row.organ for row in rows]
    text += "; then with all organs" * (len(every) > 1)
    shown = {worst.organ: [worst.organ]} | ({f"all organs ({listed(every)})": every} if len(every) > 1 else {})
    return element(
        "div",
        element("p", element("b", case), " ", element("span", text, css="soft")),
        *(_planes(evaluation, case, organs, image, volumes, name) for name, organs in shown.items()),
        css="case",
    )


def _planes(
    evaluation: Evaluation,
    case: str,
    organs: Sequence[str],
    image: Num[np.ndarray, "i j k"] | None,
    volumes: tuple[Volume, Volume],
    name: str,
) -> Markup:
    """Some organs of a case in three planes, all turned by the reference's axes: near 45 degrees others may differ."""
    upright = [
        Volume(np.stack([_mask(volume, organ, evaluation) for organ in organs]), volumes[1].affine).reoriented("RAS")
        for volume in volumes
    ]
    grey = None if image is None else Volume(image[None], volumes[1].affine).reoriented("RAS").array[0]
    planes = three_planes(grey, upright[0].array, upright[1].array, spacing_mm=upright[1].spacing_mm)
    return element("div", *(draw_slice(plane, case=case, organ=name) for plane in planes), css="planes")


def _mask(volume: Volume, organ: str, evaluation: Evaluation) -> Bool[np.ndarray, "i j k"]:
    index, values = list(evaluation.organs).index(organ), values_of(evaluation.organs[organ])
    mask: np.ndarray = volume.array[index] if volume.array.dtype == bool else np.isin(volume.array[0], values)
    return mask


def _image(evaluation: Evaluation, case: str, reference: Volume) -> Num[np.ndarray, "i j k"] | None:
    """Read the case's first channel if there is one on the reference's grid; a picture is worth no failure."""
    path = evaluation.images.get(case)
    if path is None:
        return None
    try:
        image = read_volume(path)
    except DataError:
        return None
    for placed in (image, image.reoriented(reference.orientation)):
        if placed.shape == reference.shape and same_place(placed.affine, reference.affine, reference.shape):
            first: np.ndarray = np.nan_to_num(placed.array[0])
            return first
    return None
