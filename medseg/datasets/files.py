"""The files of a case: images, what was drawn on them, by one rater or several, and how much each voxel counts."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from medseg.datasets.manifest import Manifest
from medseg.datasets.names import by_suffix, composed, single, volumes
from medseg.datasets.patterns import FIELDS, find_files, mistake_in
from medseg.errors import DataError
from medseg.space.reading import ENDINGS, case_name, is_drawn, is_image


@dataclass(frozen=True)
class Files:
    """The files of one case before anything but their names is known, and what to do if one is missing.

    Attributes:
        id: The name of the case.
        images: One per channel, or one for all.
        label: What was drawn, by the first rater who drew it.
        remedy: What to do.
        raters: What the others drew.
        weight: How much each voxel counts.
        dataset: Of a merged dataset, the one that the case comes from.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    remedy: str
    raters: tuple[Path, ...] = ()
    weight: Path | None = None
    dataset: str = ""

    @property
    def every(self) -> tuple[Path, ...]:
        """All of them, images first."""
        drawn = (self.label, *self.raters, self.weight)
        return (*self.images, *(path for path in drawn if path is not None))


def with_raters(root: Path, manifest: Manifest, training: list[Files]) -> list[Files]:
    """The labelled cases, with what further raters drew and how much each voxel counts.

    Raises:
        DataError: A case has several labels and nothing says how they agree, or a weight map is no case's.
    """
    further, weights = _drawn_beside(root, manifest)
    if strays := sorted(set(weights) - {files.id for files in training}):
        raise DataError(weights[strays[0]], "is the weight map of no case", "Call it as its case is called")
    cases = []
    for files in training:
        drawn = [*files.raters, *(labels[files.id] for labels in further if files.id in labels)]
        if files.label is not None and drawn and not is_drawn(files.label):  # who is named first did not draw this one
            files = replace(files, label=drawn.pop(0))
        if drawn and manifest.raters is None:
            problem = f"lists {len(drawn) + 1} label files of case {files.id!r}, and nothing says how they agree"
            remedy = 'Write "raters": "majority", or "raters": "mean" for the share of them as a soft target'
            raise DataError(manifest.file, problem, remedy)
        cases.append(replace(files, raters=tuple(drawn), weight=weights.get(files.id, files.weight)))
    return cases


def _drawn_beside(root: Path, manifest: Manifest) -> tuple[list[dict[str, Path]], dict[str, Path]]:
    """Case -> label of each rater but the first, and case -> weight map, where folders or patterns say so."""
    content, suffix = manifest.content, composed(str(manifest.content.get("label_suffix", "")))

    def by_case(place: str, suffix: str = "") -> dict[str, Path]:
        return {case: files[0] for case, files in single(by_suffix(volumes(root / place, labels=True), suffix)).items()}

    def fitting(pattern: str) -> dict[str, Path]:
        found = single(find_files(root, pattern.removeprefix("./"), labels=True))
        return {case: files[0] for case, files in found.items()}

    further = [by_case(str(folder), suffix) for folder in several(content.get("label_folder"))[1:]]
    further += [fitting(checked_pattern(manifest, "label", label)) for label in several(content.get("label"))[1:]]
    weights = by_case(str(content["weight_folder"])) if "weight_folder" in content else {}
    weights |= fitting(checked_pattern(manifest, "weight", content["weight"])) if "weight" in content else {}
    return further, weights


def several(value: Any) -> list[Any]:
    """A value, or each of a list."""
    return value if isinstance(value, list) else [value]


def checked_pattern(manifest: Manifest, key: str, pattern: Any) -> str:
    """A pattern of paths, without what means nothing.

    Raises:
        DataError: It is none.
    """
    fields = FIELDS if key not in ("label", "weight") else FIELDS[:1]
    if pattern != "" and (mistake := mistake_in(pattern, fields=fields)):
        legal = " and ".join(f"{{{name}}}" for name in fields)
        raise DataError(manifest.file, f'has a "{key}" that {mistake}', f"Write a path with {legal} in it")
    return str(pattern).removeprefix("./")


def why_absent(path: Path) -> str:
    """What is there in place of a file, as the end of a sentence.

    Example:
        >>> why_absent(Path("nowhere.nii.gz"))
        'is missing'
    """
    if path.is_dir():
        return "is a folder, " + (
            "though it is named like a file" if path.name.endswith(ENDINGS) else "without DICOM slices"
        )
    if path.is_symlink():
        return f"is missing: a link leads to {os.readlink(path)}, where there is none"
    beside = sorted(path.parent.glob(f"{escape(case_name(path))}*"))
    other = next((one for one in beside if case_name(one) == case_name(path)), None)
    if other is None:
        return "is missing"
    return f"is missing, though there is {other.name}" + ("" if is_image(other) else ", which is no image")
