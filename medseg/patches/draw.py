"""Where chance enters augmentation: every random number of a batch is drawn here, and nowhere else."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.patches.augmentations import AugmentationRow, Field, Matrix, Strength
from medseg.patches.geometry import Geometry
from medseg.patches.settings import Augmentation

SHARED = (
    *("rotation", "scale", "elastic", "noise", "bias"),
    *("blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"),
)
"""Drawn one after the other from one stream, in this order since version 0.1.0; every other augmentation has a stream
of its own, so that it moves no number of these."""

_THROWN = set(SHARED) - {"bias"}
"""Of those, the ones whose coin is thrown although their probability is 0."""


class Applied(NamedTuple):
    """One function to apply to one sample.

    Attributes:
        function: Of the table.
        modality: Its number, or None for all together.
        values: What was drawn, by keyword.
        seed: Of the device's own generator; the only chance left to it. None where it needs none.
    """

    function: Callable[..., None]
    modality: int | None
    values: dict[str, Any]
    seed: int | None


class Draw(NamedTuple):
    """What was drawn for each sample of a batch, on the host.

    Attributes:
        spatial: ``(b,)`` whether the patch is interpolated anew.
        affine: ``(b, 3, 3)`` offset from the centre of the patch to offset in the source, in voxels.
        fields: Displacements of control points, of each sample those that bend it.
        flips: ``(b, 3)`` axes that are mirrored.
        changes: Of intensities, of each sample those that happen, in order.
    """

    spatial: NDArray[np.bool_]
    affine: NDArray[np.float32]
    fields: tuple[tuple[Field, ...], ...]
    flips: NDArray[np.bool_]
    changes: tuple[tuple[Applied, ...], ...]

    def moved(self) -> Draw:
        """What remains to be done once all that moves voxels is done."""
        still = [np.zeros_like(part) for part in (self.spatial, self.flips)]
        return self._replace(spatial=still[0], flips=still[1], fields=((),) * len(self.fields))


def draw(settings: Augmentation, geometry: Geometry, *, modalities: int, keys: Sequence[Sequence[int]]) -> Draw:
    """Draw the parameters of a batch; each sample depends on its own key only, not on its neighbours.

    Example:
        >>> from medseg.patches.settings import augmentation
        >>> grid = Geometry((8, 8, 8), (1.0, 1.0, 1.0))
        >>> first = draw(augmentation("full"), grid, modalities=1, keys=[(7, 0), (7, 1)])
        >>> again = draw(augmentation("full"), grid, modalities=1, keys=[(7, 1)])
        >>> bool((first.affine[1] == again.affine[0]).all())
        True
    """
    samples = [_draw_sample(settings, geometry, modalities, key) for key in keys]
    spatial, affine, fields, flips, changes = zip(*samples, strict=True)
    return Draw(np.array(spatial), np.stack(affine), fields, np.stack(flips), changes)


def _draw_sample(
    settings: Augmentation, geometry: Geometry, modalities: int, key: Sequence[int]
) -> tuple[bool, NDArray[np.float32], tuple[Field, ...], NDArray[np.bool_], tuple[Applied, ...]]:
    """One sample's share of each field of `Draw`."""
    shared = np.random.default_rng(key)
    in_order = sorted(settings.strengths, key=lambda one: (*SHARED, one.row.name).index(one.row.name))
    active = [(one, _stream(one, shared, key)) for one in in_order if one.probability > 0 or one.row.name in _THROWN]
    moving = [(one, rng, rng.random() < one.probability) for one, rng in active if one.row.spatial]
    moves = [(one.row, one.row.function(rng, geometry, **one.own)) for one, rng, happens in moving if happens]
    allowed = np.array([axis in geometry.mirror_axes for axis in range(3)])
    flips = allowed & (shared.random(3) < settings.mirror_probability)
    drawn = {one.row.name: _changes(one, geometry, modalities, rng) for one, rng in active if not one.row.spatial}
    changes = tuple(change for one in settings.strengths for change in drawn.get(one.row.name, ()))
    fields = tuple(move for row, move in moves if row.kind == "field")
    affine = _affine([move for row, move in moves if row.kind == "matrix"], geometry)
    return bool(moves), affine, fields, flips, changes


def _stream(strength: Strength, shared: np.random.Generator, key: Sequence[int]) -> np.random.Generator:
    """Where an augmentation takes its numbers from."""
    name = strength.row.name
    return shared if name in SHARED else np.random.default_rng((*key, zlib.crc32(name.encode())))


def _affine(matrices: Sequence[Matrix], geometry: Geometry) -> NDArray[np.float32]:
    """One after the other, in millimetres, expressed in voxels."""
    if not matrices:
        return np.eye(3, dtype=np.float32)
    spacing_mm = np.array(geometry.spacing_mm)
    return np.asarray(reduce(np.matmul, matrices) * spacing_mm / spacing_mm[:, None], np.float32)


def _changes(strength: Strength, geometry: Geometry, modalities: int, rng: np.random.Generator) -> list[Applied]:
    """What one augmentation does to the intensities of one sample."""
    row, settings = strength.row, strength.own
    whole = row.kind == "image"
    chosen = np.full(1 if whole else modalities, rng.random() < strength.probability)
    columns: dict[str, list[Any]] = {}
    if chosen.any():
        if "channel_probability" in strength.values:
            chosen = rng.random(len(chosen)) < strength.values["channel_probability"]
        columns = {name: _column(row, name, settings, rng, chosen, geometry) for name in settings}
    seed = int(rng.integers(2**62)) if row.seeded else None
    return [
        Applied(
            row.function, None if whole else number, {name: column[number] for name, column in columns.items()}, seed
        )
        for number in np.flatnonzero(chosen).tolist()
    ]


def _column(
    row: AugmentationRow,
    name: str,
    settings: Mapping[str, Any],
    rng: np.random.Generator,
    chosen: NDArray[np.bool_],
    geometry: Geometry,
) -> list[Any]:
    """The values of one setting, for each modality or for all together."""
    setting = settings[name]
    if (draws := row.settings[name].draws) is not None:
        others = {other: value for other, value in settings.items() if other != name}
        drawn = draws(rng, chosen, geometry, setting, **others)
        return [value if value.ndim > 1 else value.tolist() for value in drawn]
    if isinstance(setting, tuple):
        return list(rng.uniform(setting[0], setting[1], len(chosen)).tolist())
    return [setting] * len(chosen)
