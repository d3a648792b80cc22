"""Which prediction belongs to which reference, and every file that belongs to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.datasets.case import read_dataset
from medseg.errors import DataError
from medseg.metrics.overlap import Organs
from medseg.space.labels import others_value
from medseg.space.reading import ENDINGS, case_name, images_in
from medseg.store.store import Store


@dataclass(frozen=True)
class Pair:
    """The two files of one case."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Failure:
    """A case that could not be scored, and why."""

    case: str
    reason: str


@dataclass(frozen=True)
class Matched:
    """What two folders have in common, and what they have not.

    Attributes:
        pairs: Cases with both files, by name.
        failures: Cases that lack one file and should have it.
        not_predicted: References of a whole dataset that nobody predicted, which is no fault.
    """

    pairs: tuple[Pair, ...]
    failures: tuple[Failure, ...]
    not_predicted: int


@dataclass(frozen=True)
class References:
    """A pool of references by case name.

    Attributes:
        labels: Case name -> label file.
        images: Case name -> its first image, where known.
        organs: Organ name -> value or values, where known.
        ignore: The value of voxels that count for nothing.
        others: The value that undeclared ones count as, None where they are refused.
        all_expected: Whether each reference must be predicted.
        annotated: Case name -> the organs its reference covers, where that is not all of them.
    """

    labels: dict[str, Path]
    images: dict[str, Path]
    organs: Organs
    ignore: int | None
    all_expected: bool
    annotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    others: int | None = None


def read_references(place: Path) -> References:
    """List the references of a folder of label maps, or of a dataset.

    A folder of label maps that belongs to the dataset one level up takes its names and images.

    Raises:
        DataError: The folder is missing or holds no label file, or the dataset's description is at fault.
    """
    if place.name == "dataset.json" or (place / "dataset.json").is_file():
        return _of_dataset(place)
    labels = labels_in(place)
    nameless = References(labels, {}, {}, None, all_expected=True)
    try:
        around = _of_dataset(place.parent)
    except DataError:
        return nameless
    belongs = any(path.parent.resolve() == place.resolve() for path in around.labels.values())
    return replace(around, labels=labels, all_expected=True) if belongs else nameless


def _of_dataset(place: Path) -> References:
    dataset = read_dataset(place, missing_ok=True)
    cases = [case for case in (*dataset.cases, *dataset.test) if case.label is not None]
    return References(
        {case.id: case.label for case in cases if case.label},
        {case.id: case.images[0] for case in cases},
        dataset.labels,
        dataset.ignore,
        all_expected=False,
        annotated={case.id: case.annotated for case in cases if case.annotated is not None},
        others=others_value(dataset.others, dataset.ignore),
    )


def references_of(store: Store, cases: Sequence[str]) -> References:
    """The labels that cases of a store were prepared from, each of which must be predicted."""
    infos = {case: store.info(case) for case in cases}
    return References(
        {case: Path(str(info.label)) for case, info in infos.items()},
        {case: Path(info.images[0]) for case, info in infos.items()},
        store.plan.labels,
        store.plan.ignore,
        all_expected=True,
        annotated={case: info.annotated for case, info in infos.items() if info.annotated is not None},
        others=store.plan.others_value,
    )


def match(
    predictions: Path, references: dict[str, Path], *, cases: Sequence[str] | None, all_expected: bool
) -> Matched:
    """Pair the predictions of a folder with references by case name; without ``cases``, all of them count.

    Raises:
        DataError: The folder is missing or holds no label file.
    """
    found = labels_in(predictions)
    wanted = set(cases) if cases is not None else set(references) | set(found)
    required = set(cases) if cases is not None else set(references) if all_expected else set()
    both = sorted(wanted & set(found) & set(references))
    failures = [
        Failure(case, f"{found[case]} has no reference of that name. Rename it, or add the reference")
        for case in sorted(wanted & set(found) - set(references))
    ]
    failures += [
        Failure(case, f"{predictions} holds no prediction {case}. Predict the case, or rename its file")
        for case in sorted(required - set(found))
    ]
    unpredicted = len((wanted & set(references)) - set(found) - required)
    return Matched(tuple(Pair(case, found[case], references[case]) for case in both), tuple(failures), unpredicted)


def labels_in(folder: Path) -> dict[str, Path]:
    """List the label files of a folder by case name; hidden ones are somebody's unfinished work.

    Raises:
        DataError: The folder is missing, holds no image, or two of one case.
    """
    if not folder.is_dir():
        raise DataError(folder, "is not a folder", "Give the folder that holds the label files")
    files = images_in(folder)
    if not files:
        raise DataError(folder, f"holds no label file ({', '.join(ENDINGS)})", "Check the path, or predict first")
    named = {case_name(path): path for path in files}
    for path in files:
        if named[case_name(path)] != path:
            both = f"{path.name} and {named[case_name(path)].name}"
            raise DataError(folder, f"holds {both}, two files of one case", "Remove one of them")
    return named
