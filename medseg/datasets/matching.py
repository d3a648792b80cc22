"""Which prediction belongs to which reference, and every file that belongs to none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.datasets.case import read_dataset
from medseg.datasets.drawn import Meaning
from medseg.datasets.names import by_suffix, names_of, single, volumes
from medseg.errors import DataError, listed
from medseg.space.labels import LabelValue, others_value, values_of
from medseg.space.reading import ENDINGS


@dataclass(frozen=True)
class Pair:
    """The two files of one case.

    Attributes:
        case: Its name.
        prediction: What a network drew.
        reference: What a rater drew.
        image: What both were drawn on, where known.
        raters: What others drew, whose agreement with `reference` is the reference; mostly nothing.
        meaning: What the reference says, where that is not as in all others.
    """

    case: str
    prediction: Path
    reference: Path
    image: Path | None = None
    raters: tuple[Path, ...] = ()
    meaning: Meaning | None = None


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
    """A pool of references by case.

    Attributes:
        labels: Case -> label file.
        images: Case -> its first image, where known.
        organs: Organ name -> value or values, where known.
        ignore: The value of voxels that count for nothing.
        all_expected: Whether each reference must be predicted.
        others: The value that undeclared ones count as, None where they are refused.
        raters: Case -> the labels of further raters, where there are several.
        annotated: Case -> the organs its reference covers, where that is not all of them.
        names: Case -> what else a prediction of it may be called, such as its image.
        meanings: Case -> what its reference says, where that is not as in all others.
        datasets: Case -> which of several merged datasets it comes from.
    """

    labels: Mapping[str, Path]
    images: Mapping[str, Path]
    organs: Mapping[str, LabelValue]
    ignore: int | None
    all_expected: bool
    annotated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[str, Collection[str]] = field(default_factory=dict)
    others: int | None = None
    raters: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    meanings: Mapping[str, Meaning] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)

    @property
    def meaning(self) -> Meaning:
        """What the label files say."""
        return Meaning(self.organs, self.ignore, self.others)

    def covered(self, organs: Mapping[str, LabelValue]) -> dict[str, set[str]]:
        """Case -> the organs that its reference covers, where that is not all: those of which every value is drawn.

        The organs may be others than the dataset's, which says by its own names what was drawn.
        """
        values = {name: {*values_of(organ)} for name, organ in self.organs.items()}
        known = set().union(*values.values())
        found = {}
        for case, names in self.annotated.items():
            undrawn = known - set().union(*(values.get(name, set()) for name in names))
            found[case] = {name for name, organ in organs.items() if not undrawn & {*values_of(organ)}}
        return found

    def pair(self, case: str, prediction: Path) -> Pair:
        """The reference of a case beside what was predicted of it."""
        image, raters = self.images.get(case), self.raters.get(case, ())
        return Pair(case, prediction, self.labels[case], image, raters, self.meanings.get(case))

    @property
    def cases_by_name(self) -> dict[str, list[str]]:
        """Name of a prediction -> the cases that it could be of."""
        table: dict[str, list[str]] = {}
        for case in self.labels:
            for name in {case, *self.names.get(case, ())}:
                table.setdefault(name, []).append(case)
        return table


def read_references(place: Path) -> References:
    """List the references of a folder of label maps, or of a dataset.

    A folder of label maps that belongs to a dataset further up takes its names, images, and what is annotated; it is
    the reference itself, though other raters may have drawn the cases, too.

    Raises:
        DataError: The folder is missing or holds no label file, or the dataset's description is at fault.
    """
    if place.name == "dataset.json" or (place / "dataset.json").is_file():
        return _of_dataset(place)
    labels = label_files(place)
    nameless = References(labels, {}, {}, None, all_expected=True)
    root = next((root for root in place.resolve().parents if (root / "dataset.json").is_file()), None)
    try:
        around = _of_dataset(root) if root else nameless
    except DataError:
        return nameless
    drawn = ((case, path) for case in around.labels for path in (around.labels[case], *around.raters.get(case, ())))
    here = {case: path for case, path in drawn if path.parent.resolve() == place.resolve()}
    known = {name for case in here for name in (case, *around.names.get(case, ()))}
    others = {name: path for name, path in labels.items() if name not in known}
    return replace(around, labels={**here, **others}, raters={}, all_expected=True) if here else nameless


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
        names={case.id: names_of(case.id, case.images, case.label, dataset.modalities) for case in cases},
        others=others_value(dataset.others, dataset.ignore),
        raters={case.id: case.raters for case in cases if case.raters},
        meanings={case.id: case.meaning for case in cases if case.meaning},
        datasets={case.id: case.dataset for case in cases if case.dataset},
    )


def match(predictions: Path, references: References, *, cases: Sequence[str] | None = None) -> Matched:
    """Pair the predictions of a folder with references, whether they are called by case, by image or by label.

    Args:
        predictions: Folder of ``CASE.nii.gz``.
        references: What they are to be held against.
        cases: The cases that count, such as one fold; None for all.

    Raises:
        DataError: The folder is missing or holds no label file, or two of one name.
    """
    table, failures = references.cases_by_name, list[Failure]()
    found: dict[str, list[Path]] = {}
    counting = None if cases is None else set(cases)
    for name, path in label_files(predictions).items():
        owners = table.get(name, [])
        if counting is not None and counting.isdisjoint((name, *owners)):
            continue
        if len(owners) == 1:
            found.setdefault(owners[0], []).append(path)
        else:
            failures.append(Failure(name, _nobodys(path, owners)))
    required = cases if cases is not None else references.labels if references.all_expected else ()
    lacking = sorted(set(required) - set(found) - {failure.case for failure in failures})
    failures += [
        Failure(case, f"{predictions} holds no prediction {case}. Predict the case, or rename its file")
        for case in lacking
    ]
    failures += [
        Failure(case, f"{paths[0]} and {paths[1].name} could both be the prediction of {case}. Remove one of them")
        for case, paths in found.items()
        if len(paths) > 1
    ]
    pairs = (references.pair(case, paths[0]) for case, paths in sorted(found.items()) if len(paths) == 1)
    wanted = set(references.labels) if counting is None else counting & set(references.labels)
    return Matched(tuple(pairs), tuple(failures), len(wanted - set(found) - set(required)))


def _nobodys(prediction: Path, owners: Sequence[str]) -> str:
    if not owners:
        return f"{prediction} has no reference of that name. Rename it, or add the reference"
    return f"{prediction} could be the prediction of {listed(owners)}. Call it by the name of its case"


def label_files(folder: Path) -> dict[str, Path]:
    """List the label maps of a folder by name; hidden ones are somebody's unfinished work.

    Raises:
        DataError: The folder is missing, holds no label file, or two of one name.
    """
    if not folder.is_dir():
        raise DataError(folder, "is not a folder", "Give the folder that holds the label files")
    found = by_suffix(volumes(folder, labels=True))
    if not found:
        raise DataError(folder, f"holds no label file ({', '.join(ENDINGS)})", "Check the path, or predict first")
    return {name: files[0] for name, files in single(found).items()}
