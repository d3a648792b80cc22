"""What a ``dataset.json`` says, in any of its dialects, checked and turned into plain values; no other file is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medseg.datasets.bids import derivative_folder, read_names
from medseg.datasets.drawn import Meaning
from medseg.datasets.names import composed
from medseg.errors import DataError, listed, meant, nearest
from medseg.machine.documents import parse_document, read_text
from medseg.machine.files import digest_of, portable
from medseg.space.labels import IGNORED, LabelValue, Others, values_of

KEYS = (
    *("name", "labels", "modality", "modalities", "channel_names", "others", "regions_class_order"),
    *("patient", "patients", "annotated", "training", "test", "dataset", "file_ending", "numTraining", "sources"),
    *("image", "label", "test_image", "image_folder", "label_folder", "label_suffix", "test_folder"),
    *("suffix", "derivative", "raters", "weight", "weight_folder", "weight_suffix"),
)
"""What is read of a ``dataset.json``, in all dialects."""

Raters = Literal["majority", "mean"]
"""How several label files of a case become one target: what most of them say, or the share of them that says it."""

_ALIKE = 0.8  # of two keys, from which on one is taken for the other, misspelt
_BACKGROUND = (
    *("background", "bg", "clear label", "clear", "none", "nothing", "unlabeled", "unlabelled", "unknown", "void"),
    *("empty", "exterior", "outside", "other", "others", "rest", "null", "0"),
)


@dataclass(frozen=True)
class MergedSource:
    """One of the datasets that a merged one was made of.

    Attributes:
        meaning: What its label files say, in its own words, and what becomes of it.
        description: Its ``dataset.json``, None where it is not told.
        digest: Of that file when it was merged; empty where it is not told.
    """

    meaning: Meaning
    description: Path | None = None
    digest: str = ""

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Plain data for JSON, with its path as seen from a folder."""
        told = {"description": portable(self.description, folder), "digest": self.digest} if self.description else {}
        return self.meaning.to_dict() | told


@dataclass(frozen=True)
class Manifest:
    """A ``dataset.json`` after checking; ``content`` keeps what only the layout reads (lists, folders, file ending)."""

    file: Path
    name: str
    modalities: tuple[str, ...]
    labels: dict[str, LabelValue]
    ignore: int | None = None
    others: Others | None = None
    raters: Raters | None = None
    paint_order: tuple[int, ...] | None = None
    patients: dict[str, str] = field(default_factory=dict)
    patient_pattern: str | None = None
    annotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    sources: dict[str, MergedSource] = field(default_factory=dict)


def read_manifest(file: Path) -> Manifest:
    """Read and check a ``dataset.json``.

    Raises:
        DataError: It is empty, not JSON, not an object, lacks labels, or declares something contradictory.
    """
    content = _load(file)
    _require_spelling(file, content)
    labels, ignore = _labels(file, content)
    others, raters = _others(file, content), _raters(file, content)
    return Manifest(
        file=file,
        name=str(content.get("name") or file.resolve().parent.name),
        modalities=_modalities(file, content),
        labels=labels,
        ignore=IGNORED if ignore is None and (raters or others == "ignore") else ignore,
        others=others,
        raters=raters,
        paint_order=_paint_order(file, content, labels),
        patients=_patients(file, content),
        patient_pattern=_patient_pattern(file, content),
        annotated=_annotated(file, content, tuple(labels)),
        content=content,
        sources=_sources(file, content, labels, ignore),
    )


def _load(file: Path) -> dict[str, Any]:
    text = read_text(file, remedy="Check the path, or save it as UTF-8")
    if not text.strip():
        raise DataError(file, "is empty", 'Declare at least "labels" and the cases in it')
    content = parse_document(file, text, remedy="Correct the file at that place")
    if not isinstance(content, dict):
        raise DataError(file, f"holds a JSON {type(content).__name__}, expected an object", "Start it with { ... }")
    if not content:
        raise DataError(file, "declares nothing", 'Declare at least "labels" and the cases in it')
    return content


def _require_spelling(file: Path, content: Mapping[str, Any]) -> None:
    """Keys of others may be there; one that is all but ours would be left out without a word."""
    for key in content:
        close = "" if key in KEYS else nearest(key.casefold(), list(KEYS), alike=_ALIKE)
        if close:
            remedy = "Correct it, or call it something else if it is not for medseg"
            raise DataError(file, f"has the key {key!r}, which means nothing; did you mean {close!r}", remedy)


def _others(file: Path, content: Mapping[str, Any]) -> Others | None:
    others = content.get("others")
    if others in (None, "background", "ignore"):
        return others
    remedy = 'Write "others": "background" or "others": "ignore", or leave it out to have such values refused'
    raise DataError(file, f'says "others": {others!r} of the values that "labels" leaves out', remedy)


def _raters(file: Path, content: Mapping[str, Any]) -> Raters | None:
    raters = content.get("raters")
    if raters in (None, "majority", "mean"):
        return raters
    remedy = 'Write "raters": "majority", or "raters": "mean" for the share of them as a soft target'
    raise DataError(file, f'says "raters": {raters!r}, which is no way to agree', remedy)


def _labels(file: Path, content: dict[str, Any]) -> tuple[dict[str, LabelValue], int | None]:
    declared = content.get("labels")
    if declared is None and "derivative" in content:
        declared = read_names(file, derivative_folder(file, content["derivative"]))
    if isinstance(declared, list):
        declared = {str(value): name for value, name in enumerate(declared)}
    if not isinstance(declared, dict) or not declared:
        raise DataError(file, 'has no "labels"', 'Add them, such as "labels": {"background": 0, "liver": 1}')
    table: dict[str, LabelValue] = {}
    for key, entry in declared.items():
        name, value = (entry, key) if isinstance(entry, str) and _is_whole(key) else (key, entry)
        if name in table:
            raise DataError(file, f"gives the name {name!r} to two labels", "Give every label a name of its own")
        table[name] = _value(file, name, value)
    return _split_roles(file, table)


def _value(file: Path, name: str, value: Any) -> LabelValue:
    if not name.strip():
        raise DataError(file, f"has a label without a name (value {value!r})", "Name it")
    if not name.isprintable():
        raise DataError(file, f"has a label {name!r} with a line break or the like in its name", "Rename it")
    several = value if isinstance(value, list) else [value]
    if not several or not all(_is_whole(v) for v in several):
        raise DataError(
            file,
            f"gives the label {name!r} the value {value!r}, expected a whole number or a list of them",
            'Write it as "liver": 1, or for overlapping regions "whole tumour": [1, 2]',
        )
    return tuple(sorted({int(v) for v in several})) if isinstance(value, list) else int(value)


def _split_roles(file: Path, table: dict[str, LabelValue]) -> tuple[dict[str, LabelValue], int | None]:
    spelt = [name for name in table if name.casefold() == "ignore"]
    ignore = table.pop(spelt[0]) if spelt else None
    if isinstance(ignore, tuple) or ignore == 0:
        raise DataError(file, 'has an "ignore" label that is not one value other than 0', 'Write it as "ignore": 255')
    for name, value in table.items():
        if value in (0, (0,)) and name.strip().casefold() not in _BACKGROUND:
            problem = f"gives {name!r} the value 0, which is what everything has that is no organ"
            raise DataError(file, problem, 'Give it a value of its own, and 0 to "background"')
    organs = {name: value for name, value in table.items() if value not in (0, (0,))}
    if not organs:
        raise DataError(file, "declares no label besides background", 'Add one to "labels", such as "liver": 1')
    seen: dict[tuple[int, ...], str] = {}
    for name, value in organs.items():
        values = values_of(value)
        if min(values) < 0 or 0 in values or ignore in values:
            raise DataError(
                file,
                f"gives the label {name!r} the value {value}, which is negative, background or ignored",
                "Give it positive values of its own",
            )
        if values in seen:
            raise DataError(
                file, f"gives {seen[values]!r} and {name!r} the same value {value}", "Give every label its own value"
            )
        seen[values] = name
    return organs, ignore


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\s*-?\d+\s*", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _modalities(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    key = next((key for key in ("channel_names", "modality", "modalities") if key in content), None)
    if key is None:
        return suffixes_of(file, content) if "derivative" in content else ("image",)
    declared = content[key]
    if isinstance(declared, str):
        declared = [declared]
    if isinstance(declared, dict):
        if not all(_is_whole(index) for index in declared):
            raise DataError(file, f'has a "{key}" whose keys are not channel numbers', f'Write "{key}": {{"0": "CT"}}')
        declared = [declared[index] for index in sorted(declared, key=int)]
    if not isinstance(declared, list) or not declared or not all(isinstance(name, str) for name in declared):
        raise DataError(file, f'has a "{key}" that names no channels', f'Write "{key}": {{"0": "CT"}}')
    if "derivative" in content and len(declared) != len(suffixes := suffixes_of(file, content)):
        raise DataError(file, f'has {len(declared)} in "{key}", but the "suffix" {listed(suffixes)}', "Name as many")
    return tuple(declared)


def suffixes_of(file: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """The suffixes of a BIDS dataset's images, one per channel.

    Raises:
        DataError: There is none, or one twice.
    """
    suffix = content.get("suffix")
    several = suffix if isinstance(suffix, list) else [suffix]
    remedy = 'Write "suffix": "T1w", or a list for several channels'
    if not several or not all(isinstance(one, str) and one for one in several):
        raise DataError(file, 'names a "derivative" of BIDS, but no "suffix" of its images', remedy)
    if len(set(several)) < len(several):
        raise DataError(file, f'names a "suffix" twice: {listed(several)}', remedy)
    return tuple(several)


def _paint_order(file: Path, content: dict[str, Any], labels: dict[str, LabelValue]) -> tuple[int, ...] | None:
    order = content.get("regions_class_order")
    if order is None:
        return None
    legal = {v for value in labels.values() for v in values_of(value)}
    if not isinstance(order, list) or len(order) != len(labels) or not all(_is_whole(v) for v in order):
        raise DataError(
            file,
            f'has a "regions_class_order" of {order!r}, expected one value for each of the {len(labels)} labels',
            "List one value per label, in the order of the labels",
        )
    if strays := [int(v) for v in order if int(v) not in legal]:
        raise DataError(file, f'paints the value {strays[0]} in "regions_class_order", no label has it', "Correct it")
    return tuple(int(v) for v in order)


def _patients(file: Path, content: dict[str, Any]) -> dict[str, str]:
    patients = content.get("patients", {})
    if not isinstance(patients, dict) or not all(isinstance(p, (str, int)) for p in patients.values()):
        raise DataError(file, 'has "patients" that are not an object', 'Write "patients": {"scan_1": "Anna"}')
    return {composed(case): str(patient) for case, patient in patients.items()}


def _patient_pattern(file: Path, content: dict[str, Any]) -> str | None:
    pattern = content.get("patient")
    if pattern is None:
        return r"^(sub-[^_]+)" if "derivative" in content else None
    remedy = 'Write a regular expression with one group, such as "patient": "^(\\\\w+)_visit"'
    if not isinstance(pattern, str):
        raise DataError(file, f'has a "patient" that is {type(pattern).__name__}, not text', remedy)
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise DataError(file, f'has a "patient" pattern that is not a regular expression ({error})', remedy) from None
    if groups != 1:
        raise DataError(file, f'has a "patient" pattern with {groups} groups', remedy)
    return pattern


def _annotated(file: Path, content: dict[str, Any], organs: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    table = content.get("annotated", {})
    remedy = 'Write "annotated": {"case_7": ["liver"]}'
    if not isinstance(table, dict) or not all(isinstance(names, list) for names in table.values()):
        raise DataError(file, 'has "annotated" that is not an object of lists', remedy)
    for case, names in table.items():
        for name in names:
            if name not in organs:
                problem = f'names an unknown label {name!r} in "annotated" for case {case!r}{meant(name, organs)}'
                raise DataError(file, problem, f"Choose from {listed(organs)}")
    return {composed(case): tuple(names) for case, names in table.items()}


def _sources(
    file: Path, content: dict[str, Any], labels: Mapping[str, LabelValue], ignore: int | None
) -> dict[str, MergedSource]:
    table: Any = content.get("sources", {})
    legal = {0, ignore, *(v for value in labels.values() for v in values_of(value))}
    found = {}
    for name, told in (table if isinstance(table, dict) else {"": table}).items():
        try:
            meaning = Meaning.from_dict(
                {key: value for key, value in told.items() if key not in ("description", "digest")}
            )
            strays = sorted(set(meaning.numbering.table.values()) - legal)
            place, digest = told.get("description"), str(told.get("digest", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            remedy = 'Run medseg merge again, or write "sources": {"A": {"labels": {"liver": 1}, "becomes": {"1": 3}}}'
            raise DataError(
                file, f'has "sources" that do not say what becomes of the values of {name!r}', remedy
            ) from None
        if strays:
            problem = f'turns values of {name!r} into {listed(strays)} under "sources", which no label has'
            raise DataError(file, problem, "Correct it, or run medseg merge again")
        description = file.parent / place if isinstance(place, str) else None
        if description is not None and description.is_file() and digest_of(description, "md5") != digest:
            problem = f"was merged from {description} as it was before that file changed"
            raise DataError(file, problem, "Run medseg merge again: values may mean something else now")
        found[name] = MergedSource(meaning, description, digest)
    return found
