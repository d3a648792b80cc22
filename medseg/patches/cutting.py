"""Cases of a store as training crops and as whole volumes: what a loader's workers run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from medseg.errors import DataError, MedsegError
from medseg.losses.beforehand import Wishes
from medseg.patches.batch import Batch, Crops, packed, with_maps
from medseg.patches.draw import draw
from medseg.patches.geometry import Geometry
from medseg.patches.sample import APPEARANCE, WHERE, Schedule, Slot, place_patch
from medseg.patches.settings import Augmentation
from medseg.patches.shared import SharedVolumes
from medseg.plan.plan import Plan
from medseg.space.labels import IGNORED
from medseg.space.patch import PatchLocation
from medseg.space.volume import Shape
from medseg.store.arrays import LazyArray
from medseg.store.store import Store

T = TypeVar("T")
NO_CASE = -1
"""The number of a batch without a case."""

Organs = dict[int, NDArray[np.integer[Any]]]


@dataclass
class Cases:
    """Cases of a store, opened where they are needed and, if asked, kept decoded there.

    Travels to a worker as the store's path and the names; what was decoded stays behind.

    Attributes:
        store: The folder.
        plan: Its plan.
        ids: The cases, in order.
        masks: Per case which classes were annotated, or None when all were in all cases.
        in_memory: Keep decoded volumes.
        shared: Where they are kept, in place of the memory of this process alone.
        reading: Shared between processes: the number of the case that each worker is at, for the day it is killed.
        weighted: Whether the last channel of an image says how many voxels each voxel counts as.
        raters: How many maps follow the labels, one for what each rater drew; none where the labels are the target.
    """

    store: Path
    plan: Plan
    ids: tuple[str, ...]
    masks: tuple[tuple[bool, ...], ...] | None = None
    in_memory: bool = False
    shared: SharedVolumes | None = None
    reading: torch.Tensor | None = None
    weighted: bool = False
    raters: int = 0
    _opened: Store | None = field(default=None, repr=False)
    _kept: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False)
    _organs: dict[str, Organs] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_kept": {}, "_organs": {}}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def opened(self) -> Store:
        """The store, opened once per process."""
        if self._opened is None:
            self._opened = Store(self.store)
        return self._opened

    def arrays(self, case: str) -> tuple[Any, Any]:
        """Image and labels or maps of them, as `Crops` has them, to be sliced; from memory when kept there."""
        worker = get_worker_info()
        if worker is not None and self.reading is not None:
            self.reading[worker.id] = self.ids.index(case)
        if case in self._kept:
            return self._kept[case]
        image, labels = self._layers(case, self.opened.image(case), self.opened.labels(case))
        if not self.in_memory:
            return image, labels

        def decode() -> tuple[Any, Any]:
            return self.part(case, image, labels, (slice(None),) * 3)

        self._kept[case] = decode() if self.shared is None else self.shared.arrays(case, decode)
        return self._kept[case]

    def part(self, case: str, image: Any, labels: Any, where: tuple[slice, ...]) -> tuple[Any, Any]:
        """Read a part of the arrays of a case."""
        maps = (slice(None), *where)[4 - len(labels.shape) :]
        return self._read(case, lambda: (np.asarray(image[(slice(None), *where)]), np.asarray(labels[maps])))

    def _layers(self, case: str, image: LazyArray, labels: LazyArray) -> tuple[LazyArray, LazyArray]:
        """With the weights as a channel and the raters as maps, where any case has such: 1, and ignored, where not."""
        info, shape = self.opened.info(case), labels.shape
        if self.weighted:
            alike = np.broadcast_to(np.float32(1), (1, *shape))
            image = Layers((image, self.opened.weight(case) if info.weighted else alike))
        if self.raters:
            own = self.opened.raters(case) if info.soft else Layers((labels,))
            nobody = np.broadcast_to(np.int16(IGNORED), (self.raters - own.shape[0], *shape))
            labels = Layers((labels, own, nobody))
        return image, labels

    def organs(self, case: str) -> Organs:
        """Voxels of each organ that the case has."""
        if case not in self._organs:
            found = self._read(case, lambda: self.opened.foreground(case))
            self._organs[case] = {name: voxels for name, voxels in found.items() if len(voxels)}
        return self._organs[case]

    def mask(self, numbers: Sequence[int]) -> torch.Tensor | None:
        """Annotated classes ``(b, c)`` of some cases by number, or None."""
        return None if self.masks is None else torch.tensor([self.masks[number] for number in numbers])

    def _read(self, case: str, reading: Callable[[], T]) -> T:
        try:
            return reading()
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise DataError(
                self.opened.folder(case), f"cannot be read ({error})", "Run medseg prepare again for this case"
            ) from error


@dataclass(frozen=True)
class Layers:
    """Arrays ``(n, i, j, k)`` or ``(i, j, k)`` on one grid, read as one array ``(n, i, j, k)``.

    Example:
        >>> Layers((np.zeros((1, 2, 2, 2)), np.ones((2, 2, 2))))[:, :1, :1, 0].ravel().tolist()
        [0.0, 1.0]
    """

    parts: tuple[LazyArray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all layers."""
        layers = sum(part.shape[0] if len(part.shape) == 4 else 1 for part in self.parts)
        return (layers, *self.parts[0].shape[-3:])

    @property
    def dtype(self) -> Any:
        """Of the first, which the others share."""
        return self.parts[0].dtype

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        """Read every layer at the same places ``index[1:]``."""
        _, *where = index
        return np.concatenate(
            [part[index] if len(part.shape) == 4 else np.asarray(part[tuple(where)])[None] for part in self.parts]
        )


@dataclass
class TrainingCrops(TorchDataset[Any]):
    """Batches by number: ``dataset[epoch * steps + batch]`` is the same whoever asks, and in whatever order.

    Attributes:
        cases: What is trained on.
        schedule: Which cases a batch holds.
        rank: This process.
        settings: The augmentation.
        geometry: The grid.
        crop_size: Voxels that are cut: the patch and, if anything rotates, a margin.
        wishes: Maps of the labels that go with a batch.
        packed: Whether they go to a GPU that computes in 16 bits, see `medseg.patches.batch.packed`.
    """

    cases: Cases
    schedule: Schedule
    rank: int
    settings: Augmentation
    geometry: Geometry
    crop_size: Shape
    wishes: Wishes | None = None
    packed: bool = False

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, number: int) -> Crops | MedsegError:
        """Cut one batch; what is wrong with a case is returned, for a worker could not raise it unharmed."""
        try:
            crops = self.cut(*divmod(number, self.schedule.steps))
            return packed(crops) if self.packed else crops
        except MedsegError as error:
            return error

    def cut(self, epoch: int, batch: int) -> Crops:
        """The crops of one batch and all that chance has to say about them."""
        slots = self.schedule.batch(epoch, batch, self.rank)
        key = (self.schedule.seed, epoch, batch)
        modalities = len(self.cases.plan.modalities)
        keys = [(*key, APPEARANCE, slot.sample) for slot in slots]
        drawn = draw(self.settings, self.geometry, modalities=modalities, keys=keys)
        # the margin only where something will look at it: it is two thirds of what goes to the device
        sizes = [self.crop_size if moved else self.geometry.patch_size for moved in drawn.spatial]
        image, labels = zip(
            *(self._crop(slot, key, size) for slot, size in zip(slots, sizes, strict=True)), strict=True
        )
        ids = tuple(self.cases.ids[slot.case] for slot in slots)
        spacing_mm = torch.tensor([self.geometry.spacing_mm] * len(slots))
        masks = self.cases.mask([slot.case for slot in slots])
        crops = Crops(image, labels, spacing_mm, ids, masks, drawn, self.cases.weighted)
        if self.wishes is None:
            return crops
        plan, nearest = self.cases.plan, self.settings.label_interpolation == "nearest"
        membership = None if plan.exclusive else torch.from_numpy(plan.membership).bool()
        return with_maps(crops, self.geometry, self.wishes, membership, nearest=nearest)

    def _crop(self, slot: Slot, key: tuple[int, ...], size: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and labels of one sample: its patch, with an equal margin on both sides if it is to be that large."""
        case, rng = self.cases.ids[slot.case], np.random.default_rng((*key, WHERE, slot.sample))
        volume, reference = self.cases.arrays(case)
        shape: Shape = tuple(reference.shape[-3:])
        organs = self.cases.organs(case) if slot.foreground else None
        if organs and slot.organ in organs:
            organs = {slot.organ: organs[slot.organ]}
        patch = place_patch(rng, shape, self.geometry.patch_size, organs)
        i, j, k = (c - (n - p) // 2 for c, n, p in zip(patch.corner, size, patch.size, strict=True))
        inner, padding = PatchLocation((i, j, k), size).inside(shape)
        filled = tuple(slice(before, before + extent) for (before, _), extent in zip(padding, inner.size, strict=True))
        voxels, known = self.cases.part(case, volume, reference, inner.slices)
        self._require_known(case, known)
        image = np.zeros((len(voxels), *size), np.float32)
        labels = np.full((*known.shape[:-3], *size), IGNORED, np.int16)
        maps = (slice(None),) * (known.ndim - 3)
        image[(slice(None), *filled)], labels[(*maps, *filled)] = voxels, known
        return torch.from_numpy(image), torch.from_numpy(labels)

    def _require_known(self, case: str, labels: NDArray[np.integer[Any]]) -> None:
        """Refuse labels that the plan has no name for: on a GPU they would end the process without a sentence."""
        names = self.cases.plan.membership.shape[1]
        if labels.size and not (labels.min() >= IGNORED and labels.max() < names):
            problem = f"holds labels from {labels.min()} to {labels.max()}, the plan names 0 to {names - 1}"
            raise DataError(self.cases.opened.folder(case), problem, "Delete it and run medseg prepare again")


@dataclass
class WholeVolumes(TorchDataset[Any]):
    """Each case once, entire, as a batch of one; or its name alone."""

    cases: Cases
    voxels: bool = True

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, number: int) -> Batch | MedsegError:
        """Read one case, or none at all; what is wrong with it is returned, as in `TrainingCrops`."""
        if number == NO_CASE:
            return _nothing(len(self.cases.plan.modalities))
        case = self.cases.ids[number]
        if not self.voxels:
            return _nothing(len(self.cases.plan.modalities))._replace(id=(case,))
        try:
            volume, reference = self.cases.arrays(case)
            image, labels = self.cases.part(case, volume, reference, (slice(None),) * 3)
            image = image[: len(self.cases.plan.modalities)]
            labels = labels[0] if labels.ndim == 4 else labels
        except MedsegError as error:
            return error
        spacing_mm = torch.tensor([self.cases.plan.spacing_mm])
        pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
        return Batch(
            pixels, torch.from_numpy(np.ascontiguousarray(labels))[None], spacing_mm, (case,), self.cases.mask([number])
        )


def _nothing(modalities: int) -> Batch:
    image, labels = torch.zeros(0, modalities, 1, 1, 1), torch.zeros(0, 1, 1, 1, dtype=torch.int16)
    return Batch(image, labels, torch.zeros(0, 3), (), None)
