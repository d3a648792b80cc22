"""To the plan's grid and back: the one way that preparation and prediction share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int16
from numpy.typing import NDArray
from scipy import ndimage

from medseg.datasets.hounsfield import is_ct, unlike_window
from medseg.plan.plan import Normalisation, Plan
from medseg.space.distance import nonzero_box
from medseg.space.labels import replaced, strangers
from medseg.space.resample import (
    is_absurd,
    resample_image,
    resample_labels,
    resampled_shape,
    through_plane_axis,
)
from medseg.space.volume import Affine, Shape, Volume, turn_to

Box = tuple[slice, slice, slice]

_UNKNOWN = -2  # in place of an atom's index: the plan has none for the value


@dataclass(frozen=True)
class GridChange:
    """What was done to one case's grid; enough to undo it.

    Attributes:
        source_shape: Voxels of the file.
        source_affine: Its affine, four rows of four.
        orientation: Axis codes after turning the axes.
        corner: First voxel of the box that was kept, after turning.
        size: Voxels of that box.
        spacing_mm: Edge lengths of its voxels.
        shape: Voxels of the plan's grid.
        target_mm: Edge lengths of the plan's voxels, of this case's own along an axis that the plan leaves alone.
    """

    source_shape: Shape
    source_affine: tuple[tuple[float, ...], ...]
    orientation: str
    corner: Shape
    size: Shape
    spacing_mm: tuple[float, float, float]
    shape: Shape
    target_mm: tuple[float, float, float]

    @property
    def through_plane(self) -> int | None:
        """The axis along which slices are copied rather than blended on the way to the plan's grid."""
        return through_plane_axis(self.spacing_mm, self.target_mm)

    @property
    def through_plane_back(self) -> int | None:
        """The same on the way back, where the plan's grid is the source: another axis if both have thick slices."""
        return through_plane_axis(self.target_mm, self.spacing_mm)

    @property
    def box(self) -> Box:
        """The part of the turned volume that was kept."""
        i, j, k = (slice(start, start + count) for start, count in zip(self.corner, self.size, strict=True))
        return i, j, k

    @property
    def affine(self) -> Affine:
        """Voxel indices of the plan's grid to mm: where the prepared volume lies in the scanner."""
        turned = np.array(self.source_affine) @ nib.orientations.inv_ornt_aff(self._turn(), self.source_shape)
        step = np.array(self.size) / np.array(self.shape)
        to_turned = np.diag([*step, 1.0])
        to_turned[:3, 3] = np.array(self.corner) + step / 2 - 0.5
        affine: Affine = turned @ to_turned
        return affine

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GridChange:
        """Rebuild from plain data."""
        known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        known["source_affine"] = tuple(tuple(float(number) for number in row) for row in data["source_affine"])
        return cls(**known)

    def _turn(self) -> NDArray[np.float64]:
        """The turn from the file's axes to the plan's, as nibabel writes it."""
        return turn_to(self.orientation, np.array(self.source_affine))


def to_plan_grid(volume: Volume, plan: Plan) -> tuple[Float[np.ndarray, "m i j k"], GridChange]:
    """Turn, crop to the non-zero box, normalise and resample an image.

    Args:
        volume: The image as read, one channel per modality.
        plan: Orientation, spacing and normalisation.

    Returns:
        Normalised float32 intensities on the plan's grid, and the change, which `kept_box` helps to undo.

    Raises:
        ValueError: If the image does not have one channel per modality of the plan, or the plan's voxels are so small
            that no memory would hold the image, or larger than all of it.
    """
    if len(volume.array) != len(plan.modalities):
        raise ValueError(
            f"the image has {len(volume.array)} channels, the plan expects {len(plan.modalities)}: "
            f"{', '.join(plan.modalities)}"
        )
    turned = volume.reoriented(plan.orientation)
    box = nonzero_box(turned.array)
    cropped = turned.array[:, box[0], box[1], box[2]]
    change = _change(volume, turned, box, plan)
    return resample_image(
        normalise(cropped, plan.normalisation), change.shape, through_plane=change.through_plane
    ), change


def labels_to_plan_grid(labels: Volume, plan: Plan, change: GridChange) -> Int16[np.ndarray, "i j k"]:
    """Take a label volume the way its image went, file values to the store's atom indices (−1 ignored).

    Args:
        labels: As read, values of the file.
        plan: Names the values.
        change: What `to_plan_grid` returned for the image.

    Raises:
        ValueError: If a value is not in the plan, or the shape is not the image's.
    """
    if labels.shape != change.source_shape:
        raise ValueError(f"labels have shape {labels.shape}, their image has {change.source_shape}")
    on_image_grid = Volume(labels.array, np.array(change.source_affine))  # the two agree but for rounding
    cropped = on_image_grid.reoriented(plan.orientation).array[0][change.box]
    atoms = _look_up(cropped, plan.atom_of_value)
    return resample_labels(atoms, change.shape, through_plane=change.through_plane)


def weight_to_plan_grid(weight: Volume, change: GridChange) -> Float[np.ndarray, "1 i j k"]:
    """Take a map of weights the way its image went, interpolated linearly: no weight falls below 0.

    Args:
        weight: As read, one channel.
        change: What `to_plan_grid` returned for the image.
    """
    kept = kept_box(weight.array[0], change)[None]
    return resample_image(kept, change.shape, order=1, through_plane=change.through_plane)


def kept_box(array: NDArray[Any], change: GridChange) -> NDArray[Any]:
    """See only the box that was kept of an array on the file's grid, its axes turned to the plan's.

    Args:
        array: ``(i, j, k)`` with the shape of the file.
        change: What `to_plan_grid` returned.

    Returns:
        A view, ``change.size``: writing to it writes to the array.
    """
    turn = change._turn()
    axes = [int(axis) for axis in turn[:, 0]]  # the file's axis n became the turned axis axes[n]
    flips = [slice(None)] * 3
    for position, direction in turn:
        if direction < 0:
            flips[int(position)] = slice(None, None, -1)
    box: NDArray[Any] = array.transpose(np.argsort(axes))[tuple(flips)][change.box]
    return box


def normalise(
    image: Float[np.ndarray, "m i j k"], normalisation: tuple[Normalisation, ...]
) -> Float[np.ndarray, "m i j k"]:
    """Make each channel's intensities numbers around zero, as the plan says.

    Example:
        >>> ct = np.array([[[[-2000.0, 0.0, 50.0, 3000.0]]]], dtype=np.float32)
        >>> normalise(ct, (Normalisation("ct", lower=-100.0, upper=200.0, mean=50.0, std=100.0),)).tolist()
        [[[[-1.5, -0.5, 0.0, 1.5]]]]
    """
    out = np.empty(image.shape, dtype=np.float32)
    inside = None
    if any(how.scheme == "zscore_nonzero" for how in normalisation):
        inside = filled((image != 0).any(axis=0))
    for channel, how, target in zip(image, normalisation, out, strict=True):
        _normalise_channel(channel, how, target, inside)
    return out


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and every hole that it encloses: what no path along faces from the border can reach."""
    numbered, count = ndimage.label(~mask)
    reached = np.zeros(count + 1, dtype=bool)
    for axis in range(mask.ndim):
        for side in (0, -1):
            reached[np.unique(np.take(numbered, side, axis=axis))] = True
    reached[0] = False
    outside: NDArray[np.bool_] = reached[numbered]
    return ~outside


def _normalise_channel(
    channel: NDArray[np.float32], how: Normalisation, target: NDArray[np.float32], inside: NDArray[np.bool_] | None
) -> None:
    """Write the normalised channel into the target."""
    if how.scheme == "ct":
        np.clip(channel, how.lower, how.upper, out=target)
        target -= np.float32(how.mean)
        target /= np.float32(how.std)
    elif how.scheme == "zscore":
        np.subtract(channel, np.float32(channel.mean(dtype=np.float64)), out=target)
        target /= max(_root_mean_square(target), 1e-8)
    elif how.scheme == "zscore_nonzero" and inside is not None:
        values = channel[inside]
        deviation = max(float(values.std(dtype=np.float64)), 1e-8) if values.size else 1.0
        target[...] = 0
        target[inside] = (values - (values.mean(dtype=np.float64) if values.size else 0.0)) / deviation
    elif how.scheme == "rescale":
        lowest, highest = float(channel.min()), float(channel.max())
        np.subtract(channel, np.float32(lowest), out=target)
        target /= max(highest - lowest, 1e-8)
    else:
        target[...] = channel


def foreign_unit(image: Volume, plan: Plan) -> str:
    """The end of a sentence about an image with a CT that cannot be in the plan's unit; empty where nothing is odd.

    Args:
        image: A channel per modality of the plan, not normalised.
        plan: Has the range of the organs' intensities.
    """
    for modality, channel, how in zip(plan.modalities, image.array, plan.normalisation, strict=True):
        if is_ct(modality) and how.scheme == "ct" and (told := unlike_window(channel, how.lower, how.upper)):
            window = f"where organs have {how.lower:g} to {how.upper:g}"
            return f"may be no {modality} in the unit of the training, {window}: it has {told}"
    return ""


def _root_mean_square(values: NDArray[np.float32]) -> float:
    """In float64, a slice at a time: numpy's own std would copy the volume twice over."""
    return float(np.sqrt(sum(float(np.vdot(part, part)) for part in values) / values.size))


def _change(volume: Volume, turned: Volume, box: Box, plan: Plan) -> GridChange:
    i, j, k = (side.start for side in box)
    size = (box[0].stop - i, box[1].stop - j, box[2].stop - k)
    own, planned = turned.spacing_mm, plan.spacing_mm
    x, y, z = (own[axis] if axis in plan.own_spacing else planned[axis] for axis in range(3))
    shape = resampled_shape(size, own, (x, y, z))
    if is_absurd(size, shape):
        became, was, will = (" x ".join(f"{edge:.4g}" for edge in edges) for edges in (shape, own, planned))
        raise ValueError(f"would have {became} voxels: its own are of {was} mm, the plan's of {will} mm")
    return GridChange(
        source_shape=volume.shape,
        source_affine=tuple(tuple(float(number) for number in row) for row in volume.affine),
        orientation=plan.orientation,
        corner=(i, j, k),
        size=size,
        spacing_mm=own,
        shape=shape,
        target_mm=(x, y, z),
    )


def _look_up(values: NDArray[np.integer[Any]], table: dict[int, int]) -> NDArray[np.int16]:
    """Replace file values by atom indices."""
    highest = int(values.max())
    if int(values.min()) >= 0 and highest < len(table) and all(table.get(v) == v for v in range(highest + 1)):
        return values.astype(np.int16)  # the usual case: the file already counts its organs from 1 on
    atoms = replaced(values, table, other=_UNKNOWN).astype(np.int16)
    if problem := strangers(values, table) if (atoms == _UNKNOWN).any() else "":
        raise ValueError(f"the label file {problem}; name them in dataset.json")
    return atoms
