"""Images in, label files out: everything needed is in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from torch import Tensor

from medseg.checkpoints.reading import read_checkpoint
from medseg.errors import CheckpointError, UsageError
from medseg.inference.clean import clean
from medseg.inference.restore import restore
from medseg.machine.dotted import Trust
from medseg.machine.hardware import AUTO, best_precision, precision_named
from medseg.patches.geometry import geometry_of
from medseg.patches.stitch import Predict, mirrored
from medseg.plan.cleaning import Rule, Rules, rules_from_plain, rules_to_plain
from medseg.plan.grid import GridChange, to_plan_grid
from medseg.plan.plan import Plan
from medseg.segmenter import Segmenter, slabs_of
from medseg.space.volume import Volume

_HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image on the plan's grid.

    Attributes:
        image: Normalised intensities ``(m, i, j, k)``.
        change: How to go back.
    """

    image: NDArray[np.float32]
    change: GridChange


class Predictor:
    """One trained network, or several averaged in probabilities.

    Args:
        segmenters: Trained on one plan.
        mirror: Average over every combination of flips along these axes (test-time augmentation).
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        rules: How finished labels are cleaned; not at all where empty.
        digests: Names of the checkpoints' contents, for `settings`.
        precision: As Lightning names it; if left out, the best of the device.

    Raises:
        UsageError: The device is not there.
    """

    def __init__(
        self,
        segmenters: Sequence[Segmenter],
        *,
        mirror: Sequence[int] = (),
        device: str = "auto",
        rules: Rules | None = None,
        digests: Sequence[str] = (),
        precision: str | None = None,
    ) -> None:
        if not segmenters:
            raise ValueError("expected at least one trained network, got none")
        self.device = _device(device)
        self.segmenters = [segmenter.on(self.device) for segmenter in segmenters]
        self.mirror = tuple(mirror)
        self.rules: dict[str, Rule] = dict(rules or {})
        self.digests = tuple(digests)
        if self.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
            torch.backends.cudnn.benchmark = True  # windows have one size
        self.precision = precision
        self.half = _HALVES.get(precision or best_precision(self.device.type))

    @classmethod
    def load(
        cls,
        checkpoints: Sequence[Path],
        *,
        mirror: bool | Sequence[int] = False,
        device: str = "auto",
        cleaning: bool = True,
        trust: Trust | None = None,
        precision: str = AUTO,
        overlap: float | None = None,
    ) -> Predictor:
        """Load checkpoints; those of an ensemble must share their plan, their cleaning rules and their flips.

        Args:
            checkpoints: Their files.
            mirror: Average over flips along the axes that training flipped, or along some of these.
            device: See `Predictor`.
            cleaning: Whether to follow their cleaning rules.
            trust: The classes beyond medseg's own networks that they may name.
            precision: One of `medseg.machine.hardware.PRECISIONS`; ``"auto"`` is the best of the device.
            overlap: Share by which neighbouring windows overlap; if left out, that of the first checkpoint.

        Raises:
            CheckpointError: One is missing, not ours, of another plan than the first, or its training diverged.
            UsageError: Flips are asked for that training did not make, or an option has no such value.
        """
        chosen = precision_named(precision)
        if overlap is not None and not 0 <= overlap < 1:
            raise UsageError(f"the overlap of windows is {overlap:g}", "Choose at least 0 and less than 1, such as 0.5")
        kept = [read_checkpoint(path) for path in checkpoints]
        segmenters = [Segmenter.from_checkpoint(one, trust) for one in kept]
        if overlap is not None:
            segmenters = [replace(segmenter, overlap=overlap) for segmenter in segmenters]
        for one in kept[1:]:
            if one.plan != kept[0].plan:
                raise CheckpointError(
                    one.path, f"was trained on another plan than {kept[0].path}", "Average only folds of one plan"
                )
            if cleaning and one.cleaning != kept[0].cleaning:
                raise CheckpointError(
                    one.path,
                    f"cleans otherwise than {kept[0].path}",
                    "Choose the rules for all of them with medseg choose-cleaning, or predict with --no-cleaning",
                )
        rules = rules_from_plain(kept[0].cleaning, kept[0].plan) if cleaning else {}
        flips = _flips_of(dict(zip(checkpoints, segmenters, strict=True)), mirror)
        digests = [one.digest for one in kept]
        told: dict[str, Any] = {
            "rules": rules,
            "digests": digests,
            "precision": None if chosen == AUTO else chosen,
        }
        return cls(segmenters, mirror=flips, device=device, **told)

    def on(self, device: str) -> Predictor:
        """The same on another device, with networks of its own.

        Raises:
            UsageError: It is not there.
        """
        segmenters = [replace(segmenter, net=deepcopy(segmenter.net)) for segmenter in self.segmenters]
        told: dict[str, Any] = {"rules": self.rules, "digests": self.digests, "precision": self.precision}
        return Predictor(segmenters, mirror=self.mirror, device=device, **told)

    @property
    def plan(self) -> Plan:
        """What the networks were trained on."""
        return self.segmenters[0].plan

    @property
    def averages(self) -> bool:
        """Whether scores are probabilities: logits of different networks or flips have no common scale.

        Those of imported networks are averaged nevertheless, for that is how they were judged.
        """
        of_logits = all(segmenter.as_nnunet for segmenter in self.segmenters)
        return (bool(self.mirror) or len(self.segmenters) > 1) and not of_logits

    @property
    def settings(self) -> dict[str, Any]:
        """Plain data that, with the image, decides the prediction."""
        return {
            "checkpoints": self.digests,
            "mirror": self.mirror,
            "cleaning": rules_to_plain(self.rules, self.plan),
            "precision": self.precision or AUTO,  # of which whoever says auto does not care
            "overlap": self.segmenters[0].overlap,
        }

    def prepare(self, image: Volume) -> Prepared:
        """Bring an image onto the plan's grid.

        Raises:
            UsageError: It has other channels than the network was trained on.
        """
        found, wanted = len(image.array), self.plan.modalities
        if found != len(wanted):
            problem = f"the image has {found} channels, the network was trained on {len(wanted)} ({', '.join(wanted)})"
            raise UsageError(problem, "Give one of the shape (m, i, j, k), with a channel for each")
        return Prepared(*to_plan_grid(image, self.plan))

    def predict(self, image: Volume) -> Integer[np.ndarray, "i j k"]:
        """Segment one image; label values as in the dataset's files, on the image's own grid."""
        prepared = self.prepare(image)
        return self.clean(self.segment(prepared), prepared.change)

    @torch.inference_mode()
    def segment(
        self, prepared: Prepared, *, probabilities: Float[np.ndarray, "c i j k"] | None = None
    ) -> Integer[np.ndarray, "i j k"]:
        """Predict and go back to the image's grid slab by slab, before any cleaning.

        All classes are held for one tile's depth of the plan's grid only, one class at a time on the image's.

        Args:
            prepared: What `prepare` returned.
            probabilities: Where to write them, see `medseg.inference.restore.restore`.

        Raises:
            FloatingPointError: The network's scores are NaN or infinite.
        """
        image, first = torch.from_numpy(prepared.image)[None].to(self.device), self.segmenters[0]
        axis, slabs = slabs_of(image, self.plan, self._network(), overlap=first.overlap, tiling=first.tiling)
        return restore(
            map(_require_finite, slabs),
            prepared.change,
            self.plan,
            axis=axis,
            averaged=self.averages,
            probabilities=probabilities,
        )

    def clean(self, labels: Integer[np.ndarray, "i j k"], change: GridChange) -> Integer[np.ndarray, "i j k"]:
        """Apply the cleaning rules of the checkpoint."""
        voxel_mm3 = abs(float(np.linalg.det(np.array(change.source_affine)[:3, :3])))
        return clean(labels, voxel_mm3, self.rules, self.plan)

    def _network(self) -> Predict:
        """From tiles to logits, or to logits or probabilities averaged over networks and flips."""
        networks = [self._in_precision(segmenter) for segmenter in self.segmenters]
        if len(networks) == 1 and not self.mirror:
            return networks[0]
        activate = self._activated if self.averages else Tensor.float

        def averaged(tiles: Tensor) -> Tensor:
            total: Tensor | None = None
            for network in networks:
                one = activate(network(tiles))
                total = one if total is None else total.add_(one)
            return tiles.new_zeros(()) if total is None else total.div_(len(networks))

        if not self.mirror:
            return averaged
        return mirrored(averaged, self.mirror, pairs=geometry_of(self.plan).swap_labels)

    def _activated(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1, dtype=torch.float32) if self.plan.exclusive else logits.float().sigmoid_()

    def _in_precision(self, network: Segmenter) -> Predict:
        def predict(tiles: Tensor) -> Tensor:
            with self._autocast():
                return network(tiles)

        return predict

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)


def _flips_of(networks: Mapping[Path, Segmenter], asked: bool | Sequence[int]) -> tuple[int, ...]:
    """The axes to flip: those that all trainings flipped, of which some may be asked for by number.

    Raises:
        UsageError: A training did not flip them, or nobody knows what it flipped.
    """
    if asked is False:
        return ()
    known = {path: network.flips for path, network in networks.items()}
    for path, flips in known.items():
        allowed = networks[path].plan.mirror_axes if flips is None else flips
        if flips is None and asked is True:
            remedy = f"Leave --tta out, or name them: --tta {' '.join(map(str, allowed)) or 'AXIS'}"
            raise UsageError(f"{path} does not say along which axes its training flipped", remedy)
        if not allowed:
            problem = f"{path} was trained without flips, and flipped images would be strange to it"
            raise UsageError(problem, "Leave --tta out, or train with data.augmentation.mirror_probability above 0")
        never = [] if asked is True else [axis for axis in asked if axis not in allowed]
        if never:
            problem = f"the training of {path} never flipped axis {never[0]}"
            raise UsageError(problem, f"Take --tta, or --tta {' '.join(map(str, allowed))}")
    if asked is not True:
        return tuple(dict.fromkeys(asked))
    (first, flips), *others = known.items()
    for path, theirs in others:
        if theirs != flips:
            told = [", ".join(map(str, axes or ())) for axes in (flips, theirs)]
            problem = f"{first} was trained with flips along the axes {told[0]}, {path} along {told[1]}"
            raise UsageError(problem, "Name axes that all of them know after --tta")
    return flips or ()


def _require_finite(slab: tuple[slice, Tensor]) -> tuple[slice, Tensor]:
    """No score is below NaN, so that it would be background without a word."""
    ends = torch.stack([end for one_class in slab[1] for end in torch.aminmax(one_class)])
    if not bool(ends.isfinite().all()):
        raise FloatingPointError("the network's scores are NaN or infinite")
    return slab


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UsageError(f"there is no device {name!r} here ({reason})", "Use --device auto or cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not supported", "Use --device auto, cpu or cuda")
    return device
