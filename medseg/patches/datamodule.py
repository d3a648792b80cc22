"""The data of a run: patches to train on, whole volumes to validate and test on."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float64
from lightning_utilities.core.rank_zero import rank_zero_warn

from medseg.datasets.split import Fold, folds, read_split
from medseg.errors import DataError, MedsegError, UsageError, listed
from medseg.losses.beforehand import Wishes
from medseg.machine.devices import beside
from medseg.patches.batch import Batch, Crops, augmented
from medseg.patches.cutting import Cases, TrainingCrops, WholeVolumes
from medseg.patches.geometry import Geometry, geometry_of
from medseg.patches.loader import CaseLoader, EpochOrder, RankShare, case_loader
from medseg.patches.loading import Loading, Sizes, decide
from medseg.patches.margin import crop_size
from medseg.patches.sample import Balance, Schedule, decks
from medseg.patches.settings import Augmentation, without_effect
from medseg.patches.settings import augmentation as named_settings
from medseg.patches.shared import CAN_SHARE, SharedVolumes
from medseg.plan.plan import Plan
from medseg.space.volume import Shape
from medseg.store.store import CaseInfo, Store, plan_of

__all__ = ["Batch", "VolumesDataModule"]

_log = logging.getLogger(__name__)


class VolumesDataModule(pl.LightningDataModule):
    """Patches of one fold's training cases, augmented on the device, and whole volumes of its other cases.

    Which patch comes when depends on seed, epoch, batch number and rank only: runs repeat exactly whatever the number
    of workers, and a resumed run continues with the patch that would have come next.

    Args:
        store: The folder that ``medseg prepare`` wrote.
        fold: Which fold's cases are held back for validation and test, from 0.
        folds: Into how many folds the cases are parted, grouped by patient.
        split: A JSON or YAML file with explicit folds, as nnU-Net's splits_final.json, instead of ``folds``.
        batch_size: Patches per step and device; the plan's if left out.
        patch_size: Voxels of a patch; the plan's if left out.
        workers: Processes that read ahead; if left out, none when the volumes fit into memory and the CPU trains, else
            up to four, for a GPU up to eight. Fewer where shared memory is too small for what they would have ready.
        seed: Of the folds, the patches and their augmentation.
        oversample_foreground: Least share of each batch whose patches contain an organ.
        augmentation: ``none``, ``light``, ``moderate`` (for minutes), ``full`` (nnU-Net's, for days), or a mapping of
            settings such as ``{preset: moderate, rotation_deg: 10}``, see docs/augmentations.md.
        cache: ``memory`` keeps decoded volumes, once for all processes of a machine; ``disk`` never does; ``auto`` does
            when they fit into 40 % of the free memory.
        steps_per_epoch: Batches per epoch and device.
        organs: The organs that a config is made for, in any order; a store of others is refused.
        balance: What the patches are dealt evenly over: ``datasets`` of a merged store, ``organs``, ``both``, or
            ``none``, which deals every case as often as another.

    Raises:
        DataError: The store or the split file is at fault.
        UsageError: The fold does not exist.
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        store: str | Path,
        fold: int = 0,
        folds: int = 5,
        split: Path | None = None,
        batch_size: int | None = None,
        patch_size: tuple[int, int, int] | None = None,
        workers: int | None = None,
        seed: int = 0,
        oversample_foreground: float = 1 / 3,
        augmentation: str | dict[str, Any] = "moderate",
        cache: Literal["auto", "memory", "disk"] = "auto",
        steps_per_epoch: int = 250,
        organs: list[str] | None = None,
        balance: Balance = "none",
    ) -> None:
        super().__init__()
        self.store = Path(store)
        self.fold, self.folds, self.split = fold, folds, None if split is None else Path(split)
        self.workers, self.seed, self.cache = workers, seed, cache
        self.oversample_foreground, self.steps_per_epoch = oversample_foreground, steps_per_epoch
        self.balance = balance
        self.settings: Augmentation = named_settings(augmentation)
        self._in_vain = without_effect(augmentation)
        self.plan: Plan = _with_sizes(plan_of(self.store), batch_size, patch_size)
        if organs is not None:
            _require_organs(self.plan, organs, self.store)
        self.geometry: Geometry = geometry_of(self.plan)
        self._examined: _Examined | None = None
        self._loading: Loading | None = None
        self._shared: SharedVolumes | None = None
        self._train_loader: CaseLoader | None = None
        self._resume: dict[str, int] | None = None
        self.tests_voxels = True
        self.wishes: Wishes | None = None  # of the loss

    @property
    def cases(self) -> Fold:
        """Names of the training cases and of those held back."""
        return self._look().fold

    @property
    def fold_count(self) -> int:
        """Into how many folds the cases are parted."""
        return self._look().fold_count

    @property
    def flips(self) -> tuple[int, ...]:
        """The axes along which training patches are flipped."""
        return self.plan.mirror_axes if self.settings.mirror_probability > 0 else ()

    @property
    def dataset_folder(self) -> Path | None:
        """See `CaseInfo.dataset_folder`, of the first case."""
        examined = self._look()
        return examined.infos[examined.fold.train[0]].dataset_folder

    @property
    def unmoved(self) -> float:
        """The share of training patches that nothing turns, scales, bends or flips."""
        moves = [one.probability for one in self.settings.strengths if one.row.spatial]
        return math.prod(1 - share for share in (*moves, *[self.settings.mirror_probability] * len(self.flips)))

    @property
    def validation_shapes(self) -> tuple[Shape, ...]:
        """Voxels of the cases held back, on the plan's grid."""
        examined = self._look()
        return tuple(examined.infos[case].change.shape for case in examined.fold.val)

    @property
    def datasets(self) -> dict[str, str]:
        """Case -> which of several merged datasets it comes from; empty where there is but one."""
        infos = self._look().infos
        return {case: info.dataset for case, info in infos.items()} if _parts(infos.values()) > 1 else {}

    @property
    def targets(self) -> tuple[bool, bool]:
        """Whether the mean of several raters is the target, and whether voxels count differently, in any case."""
        return self._look().raters > 0, self._look().weighted

    @property
    def _channels(self) -> int:
        """Of an image as it is read: with the weights."""
        return len(self.plan.modalities) + self._look().weighted

    def class_counts(self) -> Float64[np.ndarray, "cases classes"]:
        """Voxels of every class in each of the fold's training cases, NaN where an organ was not annotated."""
        examined = self._look()
        infos = [examined.infos[case] for case in examined.fold.train]
        atoms = range(self.plan.membership.shape[1])
        voxels = np.array([[info.voxels.get(atom, 0) for atom in atoms] for info in infos], dtype=np.float64)
        return np.where(_class_masks(self.plan, infos), voxels @ self.plan.membership.T, np.nan)

    def train_dataloader(self) -> CaseLoader:
        """Each pass is another epoch of crops; `on_after_batch_transfer` makes patches of them."""
        for told in self._in_vain:
            rank_zero_warn(f"data.augmentation.{told}")
        examined = self._look()
        cases = self._cases(examined.fold.train)
        infos = [examined.infos[case] for case in cases.ids]
        rank, ranks = self._place()
        rows = [_classes_in(self.plan, info) for info in infos]
        anywhere, on_organs = decks(self.balance, [info.dataset for info in infos], rows)
        schedule = Schedule(
            anywhere,
            on_organs,
            batch_size=self.plan.batch_size,
            steps=self.steps_per_epoch,
            ranks=ranks,
            seed=self.seed,
            oversample=self.oversample_foreground,
        )
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        size, on_gpu = self._crop_size(), device.type == "cuda"
        short = on_gpu and self.trainer is not None and "16" in str(self.trainer.precision)
        dataset = TrainingCrops(cases, schedule, rank, self.settings, self.geometry, size, self.wishes, packed=short)
        loading, order = self._load(), EpochOrder(self.steps_per_epoch)
        self._train_loader = case_loader(dataset, order, workers=loading.workers, ahead=loading.ahead)
        if on_gpu:
            self._train_loader.prepared = partial(beside, device=device, prepare=partial(self._ready, device))
        if self._resume is not None:
            self._train_loader.load_state_dict(self._resume)
            self._resume = None
        return self._train_loader

    def val_dataloader(self) -> CaseLoader:
        """The fold's held-back cases, each whole and exactly once over all ranks."""
        return self._whole_volumes()

    def _whole_volumes(self, *, voxels: bool = True) -> CaseLoader:
        dataset = WholeVolumes(self._cases(self._look().fold.val), voxels)
        rank, ranks = self._place()
        sizes = [math.prod(shape) for shape in self.validation_shapes]
        share, workers = RankShare(sizes, rank=rank, ranks=ranks), self._load().volume_workers if voxels else 0
        return case_loader(dataset, share, workers=workers, ahead=1, pinned=False)  # pinned volumes stay for ever

    def test_dataloader(self) -> CaseLoader:
        """The same cases as for validation; their names alone where ``tests_voxels`` is false."""
        return self._whole_volumes(voxels=self.tests_voxels)

    def predict_dataloader(self) -> CaseLoader:
        """The same cases as for validation."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Voxels to the device; what is asked of a batch in a step stays on the host, which then need not wait."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if not isinstance(batch, Crops | Batch):
            return moved
        return moved._replace(spacing_mm=batch.spacing_mm, class_mask=batch.class_mask)

    def _ready(self, device: torch.device, batch: Crops | MedsegError) -> Batch | MedsegError:
        """A batch as a step takes it, or what is wrong with it, for the step that would have had it."""
        if isinstance(batch, MedsegError):
            return batch
        return self.on_after_batch_transfer(self.transfer_batch_to_device(batch, device, 0), 0)

    def on_after_batch_transfer(self, batch: Crops | Batch, dataloader_idx: int) -> Batch:
        """Augment training crops where they have arrived; leave whole volumes alone."""
        if isinstance(batch, Crops):
            return augmented(batch, self.geometry, nearest=self.settings.label_interpolation == "nearest")
        return batch

    def state_dict(self) -> dict[str, int]:
        """Which batch of which epoch comes next."""
        return self._resume or (self._train_loader.state_dict() if self._train_loader else {})

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue the interrupted epoch where it was, once the trainer has set that epoch."""
        self._resume = dict(state_dict) or None

    def _cases(self, ids: tuple[str, ...]) -> Cases:
        examined = self._look()
        masks = _class_masks(self.plan, [examined.infos[case] for case in ids]) if examined.partial else None
        in_memory = self._load().in_memory  # which makes room to share
        soft, heavy = examined.raters, examined.weighted
        return Cases(self.store, self.plan, ids, masks, in_memory, self._shared, weighted=heavy, raters=soft)

    def _look(self) -> _Examined:
        if self._examined is None:
            self._examined = _examine(self.store, self.fold, self.folds, self.split, self.seed)
            if self.balance in ("datasets", "both") and _parts(self._examined.infos.values()) < 2:
                problem = f"data.balance is {self.balance}, but {self.store} comes from one dataset"
                raise UsageError(problem, "Leave it out, choose organs, or make one of several with medseg merge")
        return self._examined

    def _load(self) -> Loading:
        if self._loading is None:
            neighbours = self.trainer.num_devices if self.trainer else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self._loading, self._shared = self._agreed(
                decide(self.workers, self.cache, self._sizes(), neighbours=neighbours), neighbours
            )
        return self._loading

    def _agreed(self, loading: Loading, neighbours: int) -> tuple[Loading, SharedVolumes | None]:
        """What the first process of this machine has decided, and the memory that it shares with the others."""
        examined, shared = self._look(), None
        trainer = self.trainer
        first = trainer is None or trainer.local_rank == 0
        if first and CAN_SHARE and loading.in_memory and (loading.workers or neighbours > 1):
            shapes = {case: examined.infos[case].change.shape for case in (*examined.fold.train, *examined.fold.val)}
            shared = SharedVolumes.make(shapes, self._channels, 1 + examined.raters)
        decided = loading, shared
        if trainer is not None and trainer.world_size > 1:
            told = [trainer.strategy.broadcast(decided, src=node * neighbours) for node in range(trainer.num_nodes)]
            decided = told[trainer.node_rank]
        return decided

    def _sizes(self) -> Sizes:
        examined = self._look()
        voxel = 4 * self._channels + 2 * (1 + examined.raters)
        maps = self.wishes.bytes_per_voxel if self.wishes else 0
        shapes = {case: math.prod(info.change.shape) * voxel for case, info in examined.infos.items()}
        train, val = ([shapes[case] for case in cases] for cases in (examined.fold.train, examined.fold.val))
        batch = self.plan.batch_size * math.prod(self._crop_size()) * (voxel + maps)
        return Sizes(sum(train) + sum(val), batch, max(val, default=0))

    def _crop_size(self) -> Shape:
        examined = self._look()
        i, j, k = np.max([examined.infos[case].change.shape for case in examined.fold.train], axis=0).tolist()
        return crop_size(self.settings, self.geometry, (i, j, k))

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


@dataclass(frozen=True)
class _Examined:
    """What a store says about its cases."""

    infos: Mapping[str, CaseInfo]
    fold: Fold
    fold_count: int

    @property
    def partial(self) -> bool:
        """Whether any case lacks the annotation of some organ."""
        return any(info.annotated is not None for info in self.infos.values())

    @property
    def weighted(self) -> bool:
        """Whether voxels of any case count differently."""
        return any(info.weighted for info in self.infos.values())

    @property
    def raters(self) -> int:
        """Most raters of a case whose mean is the target; 0 where the labels of all cases are theirs."""
        return max(len(info.drawn) if info.soft else 0 for info in self.infos.values())


def _with_sizes(plan: Plan, batch_size: int | None, patch_size: tuple[int, int, int] | None) -> Plan:
    chosen: dict[str, Any] = {}  # numbers of Python, for the plan goes into checkpoints
    if batch_size is not None:
        chosen["batch_size"] = index(batch_size)
    if patch_size is not None:
        chosen["patch_size"] = tuple(map(index, patch_size))
    return replace(plan, **chosen) if chosen else plan


def _require_organs(plan: Plan, organs: list[str], store: Path) -> None:
    if set(organs) != set(plan.organs):
        raise DataError(
            store,
            f"holds {listed(plan.organs)}; the config is made for {listed(organs)}",
            "Give the store of its dataset, the config of yours, or --data.organs null",
        )


def _examine(path: Path, fold: int, n: int, split: Path | None, seed: int) -> _Examined:
    store = Store(path)
    if edited := store.edited():
        told = ", ".join(edited[:5]) + (" and others" if len(edited) > 5 else "")
        _log.warning("%s was prepared before the files of %s changed; medseg prepare takes them in", path, told)
    infos = {case: info for case in store.ids if (info := store.info(case)).label is not None}
    if not infos:
        raise DataError(path, "holds no case with a label", "Prepare a dataset with labels")
    parted = folds(infos.values(), n, seed=seed) if split is None else read_split(split, infos.values())
    if not 0 <= fold < len(parted):
        raise UsageError(f"there is no fold {fold}, only 0 to {len(parted) - 1}", "Choose one of these")
    return _Examined(infos, parted[fold], len(parted))


def _parts(infos: Iterable[CaseInfo]) -> int:
    """Of how many datasets a store was made."""
    return len({info.dataset for info in infos})


def _classes_in(plan: Plan, info: CaseInfo) -> set[int]:
    """The classes but the background that a case has voxels of, as `Store.foreground` counts them."""
    there = [atom for atom, count in info.voxels.items() if atom > 0 and count > 0]
    rows = plan.membership[:, there].any(axis=1)
    return {row for row in np.flatnonzero(rows).tolist() if row >= int(plan.exclusive)}


def _class_masks(plan: Plan, infos: list[CaseInfo]) -> tuple[tuple[bool, ...], ...]:
    background = (True,) if plan.exclusive else ()
    return tuple(
        background + tuple(info.annotated is None or organ in info.annotated for organ in plan.organs) for info in infos
    )
