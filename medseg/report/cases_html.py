"""The chapters of the report that show single cases: pictures of the worst and the best, and a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Bool, Num

from medseg.errors import DataError
from medseg.metrics.overlap import values_of
from medseg.pictures.overlays import DASH, PREDICTION_COLOUR, REFERENCE_COLOUR, draw_slice, three_planes
from medseg.report.evaluate import Evaluation
from medseg.report.rows import CaseRow, organs_of
from medseg.report.scoring import read_pair
from medseg.space.nifti import read_volume
from medseg.space.volume import Volume, same_place

_PICTURED = 3
_KEY = (
    '<ul class="legend"><li><svg viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4h28" stroke-width="2" '
    f'stroke="{REFERENCE_COLOUR}"/></svg>reference, solid</li><li><svg viewBox="0 0 28 8" aria-hidden="true">'
    f'<path d="M0 4h28" stroke-width="2" stroke="{PREDICTION_COLOUR}" {DASH}/></svg>prediction, dashed</li></ul>'
)


def picked_cases(evaluation: Evaluation, *, count: int = _PICTURED) -> str:
    """Show the worst and the best cases by mean Dice, each at its worst organ, in three planes."""
    order = _by_mean_dice(evaluation.rows)
    if not order:
        return ""
    worst = order[: min(count, len(order))]
    best = [case for case in order[::-1][:count] if case not in worst]
    chapters = [("Worst", worst), ("Best", best)]
    return _KEY + "".join(
        f"<h3>{heading}</h3>" + "".join(_picture(evaluation, case) for case in cases)
        for heading, cases in chapters
        if cases
    )


def all_cases(rows: Sequence[CaseRow]) -> str:
    """Tabulate every case's Dice, worst case first, folded away."""
    if not rows:
        return ""
    organs, dice = organs_of(rows), {(row.case, row.organ): row for row in rows}
    heads = "".join(f"<th scope=col>{escape(name)}</th>" for name in ("case", *organs))
    lines = "".join(
        f"<tr><th scope=row>{escape(case)}</th>"
        + "".join(f"<td>{_dice_cell(dice.get((case, organ)))}</td>" for organ in organs)
        + "</tr>"
        for case in _by_mean_dice(rows)
    )
    return (
        f"<details><summary>Dice of every case, worst first</summary>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
        "</details>"
    )


def _dice_cell(row: CaseRow | None) -> str:
    if row is None:
        return ""
    note = "" if row.scores.outcome.value == "found" else f' <span class="soft">{row.scores.outcome.value}</span>'
    return f"{row.scores.dice:.3f}{note}"


def _by_mean_dice(rows: Sequence[CaseRow]) -> list[str]:
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row.case, []).append(row.scores.dice)
    return sorted(dice, key=lambda case: (sum(dice[case]) / len(dice[case]), case))


def _picture(evaluation: Evaluation, case: str) -> str:
    rows = [row for row in evaluation.rows if row.case == case]
    worst = min(rows, key=lambda row: row.scores.dice)
    pair = next(pair for pair in evaluation.pairs if pair.case == case)
    prediction, reference = (volume.reoriented("RAS") for volume in read_pair(pair, evaluation.organs))
    index = list(evaluation.organs).index(worst.organ)
    values = values_of(evaluation.organs[worst.organ])
    planes = three_planes(
        _image(evaluation, case, reference),
        _mask(prediction, index, values),
        _mask(reference, index, values),
        spacing_mm=reference.spacing_mm,
    )
    mean = sum(row.scores.dice for row in rows) / len(rows)
    pictures = "".join(draw_slice(plane, case=case, organ=worst.organ) for plane in planes)
    return (
        f'<div class="case"><p><b>{escape(case)}</b> <span class="soft">mean Dice {mean:.3f}; shown at its worst '
        f"organ, {escape(worst.organ)}: Dice {worst.scores.dice:.3f}, HD95 {worst.scores.hd95_mm:.1f} mm, "
        f'{worst.scores.outcome.value}</span></p><div class="planes">{pictures}</div></div>'
    )


def _mask(volume: Volume, index: int, values: tuple[int, ...]) -> Bool[np.ndarray, "i j k"]:
    mask: np.ndarray = volume.array[index] if volume.array.dtype == bool else np.isin(volume.array[0], values)
    return mask


def _image(evaluation: Evaluation, case: str, reference: Volume) -> Num[np.ndarray, "i j k"] | None:
    """Read the case's first channel if there is one on the reference's grid; a picture is worth no failure."""
    path = evaluation.images.get(case)
    if path is None:
        return None
    try:
        image = read_volume(path).reoriented("RAS")
    except DataError:
        return None
    fits = image.shape == reference.shape and same_place(image.affine, reference.affine, reference.shape)
    return np.nan_to_num(image.array[0]) if fits else None
