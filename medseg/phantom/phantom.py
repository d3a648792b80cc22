"""The embedded synthetic dataset: honest input in the Decathlon's layout, drawn from a recipe and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medseg.errors import DataError
from medseg.machine.files import read_json, whole, write_json
from medseg.phantom.anatomy import ABDOMEN, PhantomRecipe, Real, Structure, Triple
from medseg.space.labels import paint_order
from medseg.space.volume import Affine, Shape, Volume

Floats = NDArray[np.float32]
Box = tuple[slice, slice, slice]

_VOXELS_AT_ONCE = 100_000  # what fits into a processor's cache is several times as fast
_OBLIQUE = (1,)  # indices of the cases whose grid is turned against the body
_LPS_EVERY = 4  # index 2, 6, 10, ... are stored left-posterior-superior


@dataclass(frozen=True)
class _Lattice:
    """Where the voxels of a case lie: ``matrix`` turns their indices into the fractions that recipes are written in."""

    shape: Shape
    affine: Affine
    unit_mm: NDArray[np.float64]

    @property
    def matrix(self) -> Affine:
        scaled: Affine = self.affine / np.append(self.unit_mm, 1)[:, None]
        return scaled

    def points(self, box: Box) -> list[Floats]:
        """Coordinates of the voxels of a box, one broadcastable array per axis of the body."""
        steps = [step.astype(np.float32) for step in np.ogrid[box]]
        rows = self.matrix[:3].astype(np.float32)
        return [sum((row[a] * steps[a] for a in range(3) if row[a]), row[3]) for row in rows]

    def boxes(self, centre: Triple, reach: float) -> Iterator[Box]:
        """Cover a ball by boxes of voxels, none of them too large for memory."""
        inverse = np.linalg.inv(self.matrix)
        middle = inverse[:3, :3] @ centre + inverse[:3, 3]
        extent = np.linalg.norm(inverse[:3, :3], axis=1) * reach
        starts = np.clip(np.floor(middle - extent), 0, self.shape).astype(int)
        stops = np.clip(np.ceil(middle + extent) + 1, starts, self.shape).astype(int)
        area = (stops[1] - starts[1]) * (stops[2] - starts[2])
        if area == 0:
            return
        step = max(1, _VOXELS_AT_ONCE // area)
        for first in range(starts[0], stops[0], step):
            last = min(first + step, stops[0])
            yield slice(first, last), slice(starts[1], stops[1]), slice(starts[2], stops[2])


@dataclass(frozen=True)
class _Waves:
    """A smooth random field: a few plane waves, the same in the body whatever the grid.

    cos(a(i, j) + b(k)) = cos a cos b - sin a sin b: on a grid the sum over waves is a product of two thin matrices.
    """

    vectors: NDArray[np.float64]  # (waves, 3) radians per unit of length
    phases: NDArray[np.float64]  # (waves,)
    amplitudes: NDArray[np.float64]  # (waves, outputs)

    @staticmethod
    def draw(
        rng: np.random.Generator, waves: int, outputs: int, *, frequency: float | NDArray[np.float64], amplitude: float
    ) -> _Waves:
        vectors = rng.normal(size=(waves, 3)) * frequency
        amplitudes = rng.normal(size=(waves, outputs)) * amplitude / np.sqrt(waves)
        return _Waves(vectors, rng.uniform(0, 2 * np.pi, waves), amplitudes)

    def on(self, grid: _Lattice, box: Box) -> list[Floats]:
        """The field on the voxels of a box, one array per output."""
        along = self.vectors @ grid.matrix[:3]  # (waves, 4): radians per step along i, j and k, and at voxel zero
        i, j, k = (np.arange(part.start, part.stop) for part in box)
        plane = np.outer(i, along[:, 0])[:, None] + np.outer(j, along[:, 1])
        plane = (plane + along[:, 3] + self.phases).reshape(len(i) * len(j), -1)
        line = np.outer(along[:, 2], k)
        left = np.concatenate([np.cos(plane), -np.sin(plane)], axis=1).astype(np.float32)
        right = np.concatenate([np.cos(line), np.sin(line)]).astype(np.float32)
        weights = np.concatenate([self.amplitudes, self.amplitudes]).astype(np.float32)
        shape = (len(i), len(j), len(k))
        return [np.asarray((left * weight) @ right, dtype=np.float32).reshape(shape) for weight in weights.T]


def write_phantom(
    root: Path,
    cases: int = 24,
    *,
    seed: int = 0,
    test: int = 0,
    size: tuple[int, int, int] | None = None,
    spacing_mm: Triple | None = None,
    recipe: PhantomRecipe = ABDOMEN,
) -> Path:
    """Invent a dataset and write it as the Decathlon is laid out: ``dataset.json``, imagesTr, labelsTr, imagesTs.

    The default recipe is a CT of the abdomen with five organs, noise that is partly correlated, a bias field, and
    anatomy that varies in position, size and shape. Spacing differs from case to case; the second case lies obliquely
    in its grid, the third is stored in LPS, the fourth lacks an organ. A case depends on the seed and its own number
    only, so a larger dataset begins with the smaller one.

    Args:
        root: Folder to write to; ``dataset.json`` appears in it last.
        cases: Labelled cases.
        seed: Another seed, another dataset.
        test: Further cases without a label in ``dataset.json``; their references lie in labelsTs.
        size: Mean voxels along x, y and z in place of the recipe's.
        spacing_mm: Mean spacing in place of the recipe's.
        recipe: Anatomy and geometry.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no case to write.
        DataError: The folder holds another dataset, or cannot be written to.
    """
    if cases < 1 or test < 0:
        raise ValueError(f"expected at least one case and no fewer than 0 test cases, got {cases} and {test}")
    recipe = replace(recipe, size=size or recipe.size, spacing_mm=spacing_mm or recipe.spacing_mm)
    root = Path(root)
    _require_free(root, recipe)
    listed: dict[str, list[Any]] = {"training": [], "test": []}
    for index in range(cases + test):
        part = "Tr" if index < cases else "Ts"
        name = f"{recipe.name.lower()}_{index:03d}.nii.gz"
        image, labels = draw_case(recipe, index, seed=seed)
        _save(image, root / f"images{part}" / name)
        _save(labels, root / f"labels{part}" / name)
        entry = {"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"}
        listed["training" if part == "Tr" else "test"].append(entry if part == "Tr" else entry["image"])
    write_json(root / "dataset.json", _describe(recipe) | _annotated(recipe, cases) | listed)
    return root


def draw_case(recipe: PhantomRecipe, index: int, *, seed: int = 0) -> tuple[Volume, Volume]:
    """Draw one case of a recipe without writing it.

    Args:
        recipe: Anatomy and geometry.
        index: Number of the case; decides orientation, what is missing and, with the seed, everything random.
        seed: Seed of the dataset.

    Returns:
        The image ``(m, i, j, k)`` in int16 and the labels ``(1, i, j, k)`` in uint8.
    """
    rng = np.random.default_rng([seed, index])
    grid = _draw_grid(recipe, index, rng)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    outside = recipe.outside * (len(recipe.modalities) // len(recipe.outside))
    image = np.stack([np.full(grid.shape, value, dtype=np.float32) for value in outside])
    warp = _Waves.draw(rng, 4, 3, frequency=2.0, amplitude=0.06)
    centres: dict[str, Triple] = {}
    for structure in recipe.structures:
        for varied in _vary(structure, centres, rng):
            shape = _draw_shape(varied, rng)
            if structure.label is None or recipe.without.get(index) != structure.label:
                _paint(image, labels, grid, shape, warp, recipe.labels)
    labels[np.isin(labels, [recipe.labels[organ] for organ in recipe.unannotated.get(index, ())])] = 0
    inside = np.any(image != np.reshape(outside, (-1, 1, 1, 1)), axis=0)
    for channel, modality in zip(image, recipe.modalities, strict=True):
        _acquire(channel, grid, rng, noise=recipe.noise, is_ct=modality == "CT")
    if recipe.zero_outside:
        image *= inside
    return Volume(np.rint(image).astype(np.int16), grid.affine), Volume(labels[None], grid.affine)


def _draw_grid(recipe: PhantomRecipe, index: int, rng: np.random.Generator) -> _Lattice:
    spread = recipe.spacing_variation
    in_plane, through_plane = 1 + rng.uniform(-spread, spread, 2)
    spacing = np.array(recipe.spacing_mm) * (in_plane, in_plane, through_plane)
    most = [max(1, round(n * spread / 3)) for n in recipe.size]
    shape = tuple(n + int(rng.integers(-m, m + 1)) for n, m in zip(recipe.size, most, strict=True))
    turn = np.eye(3)
    if index in _OBLIQUE:
        turn = _rotation(np.radians([9.0, -6.0, 13.0]))
    signs = np.array([-1.0, -1.0, 1.0]) if index % _LPS_EVERY == 2 else np.ones(3)
    affine = np.eye(4)
    affine[:3, :3] = turn * (signs * spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    unit = np.array(recipe.size) * recipe.spacing_mm / 2
    return _Lattice((shape[0], shape[1], shape[2]), affine, unit)


def _vary(structure: Structure, centres: dict[str, Triple], rng: np.random.Generator) -> Iterator[Structure]:
    """Copies of a structure as this case has them; remembers where labelled ones came to lie."""
    fewest, most = structure.count
    for _ in range(int(rng.integers(fewest, most + 1))):
        anchor = centres.get(structure.within, (0.0, 0.0, 0.0)) if structure.within else (0.0, 0.0, 0.0)
        x, y, z = (float(c) for c in np.add(structure.centre, anchor) + rng.normal(size=3) * structure.wander)
        sizes = 0.03 if _is_column(structure) else 0.08  # the layers of the trunk must not swallow each other
        a, b, c = (float(r) for r in np.multiply(structure.radii, np.exp(rng.normal(size=3) * sizes)))
        shift = rng.normal() * structure.spread
        if structure.label:
            centres[structure.label] = (x, y, z)
        yield replace(
            structure, centre=(x, y, z), radii=(a, b, c), intensity=tuple(v + shift for v in structure.intensity)
        )


@dataclass(frozen=True)
class _Shape:
    """A structure with its turn and its rough surface."""

    structure: Structure
    turn: NDArray[np.float64]
    surface: _Waves

    @property
    def reach(self) -> float:
        return 1.3 * max(self.structure.radii) + 0.15  # the warp and the rough surface stay within this

    def covers(self, points: list[Floats], roughness: Floats) -> NDArray[np.bool_]:
        offsets = [p - np.float32(c) for p, c in zip(points, self.structure.centre, strict=True)]
        matrix = (self.turn / np.array(self.structure.radii)[:, None]).astype(np.float32)
        local = [row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2] for row in matrix]
        inside: NDArray[np.bool_] = local[0] ** 2 + local[1] ** 2 + local[2] ** 2 < 1 + roughness
        return inside


def _draw_shape(structure: Structure, rng: np.random.Generator) -> _Shape:
    turn = _rotation(rng.normal(size=3) * (0.01 if _is_column(structure) else 0.2))
    surface = _Waves.draw(rng, 3, 1, frequency=2.5 / np.array(structure.radii), amplitude=0.12)
    return _Shape(structure, turn, surface)


def _is_column(structure: Structure) -> bool:
    return max(structure.radii) > 2


def _paint(image: Floats, labels: NDArray[np.uint8], grid: _Lattice, shape: _Shape, warp: _Waves, values: Any) -> None:
    structure = shape.structure
    for box in grid.boxes(structure.centre, shape.reach):
        points = [p + d for p, d in zip(grid.points(box), warp.on(grid, box), strict=True)]
        inside = shape.covers(points, shape.surface.on(grid, box)[0])
        if structure.within is not None:
            inside &= labels[box] == values[structure.within]
        for channel, intensity in zip(image, structure.intensity, strict=True):
            channel[box][inside] = intensity
        labels[box][inside] = values[structure.label] if structure.label else 0


def _acquire(channel: Floats, grid: _Lattice, rng: np.random.Generator, *, noise: Real, is_ct: bool) -> None:
    """What a scanner does to the truth: partial volume, a bias field, white and correlated noise."""
    ndimage.gaussian_filter(channel, 0.5, output=channel)
    field = _Waves.draw(rng, 3, 1, frequency=1.5, amplitude=1.0)
    gain = float(rng.uniform(0.7, 1.4))
    correlated = ndimage.gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), 1.0)
    correlated *= np.float32(noise * 2 / 3 / max(float(correlated.std()), 1e-6))
    for box in grid.boxes((0.0, 0.0, 0.0), 100.0):
        (bias,) = field.on(grid, box)
        if is_ct:
            channel[box] += np.float32(8) * bias
        else:
            channel[box] *= gain * np.exp(np.float32(0.12) * bias)
    channel += correlated
    channel += rng.standard_normal(grid.shape, dtype=np.float32) * np.float32(noise)
    np.clip(channel, -1024 if is_ct else 0, 3071 if is_ct else 32767, out=channel)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn about x, then y, then z, by angles in radians."""
    turn: NDArray[np.float64] = Rotation.from_euler("xyz", angles).as_matrix()
    return turn


def _save(volume: Volume, path: Path) -> None:
    voxels = volume.array[0] if len(volume.array) == 1 else np.moveaxis(volume.array, 0, -1)
    image = nib.Nifti1Image(voxels, volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    with whole(path) as partial:
        nib.save(image, partial)


def _describe(recipe: PhantomRecipe) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": recipe.name,
        "description": "Synthetic volumes for trying medseg out; no patient was scanned",
        "tensorImageSize": "3D" if len(recipe.modalities) == 1 else "4D",
        "modality": {str(index): name for index, name in enumerate(recipe.modalities)},
    }
    if recipe.regions:
        regions = {name: list(values) for name, values in recipe.regions.items()}
        return described | {
            "labels": {"background": 0, **regions},
            "regions_class_order": list(paint_order(recipe.regions.values())),
        }
    return described | {"labels": {"0": "background", **{str(v): name for name, v in recipe.labels.items()}}}


def _annotated(recipe: PhantomRecipe, cases: int) -> dict[str, Any]:
    table = {
        f"{recipe.name.lower()}_{index:03d}": [organ for organ in recipe.labels if organ not in missing]
        for index, missing in recipe.unannotated.items()
        if index < cases
    }
    return {"annotated": table} if table else {}


def _require_free(root: Path, recipe: PhantomRecipe) -> None:
    file = root / "dataset.json"
    if not file.is_file():
        return
    try:
        name = read_json(file).get("name")
    except (ValueError, AttributeError):
        name = None
    if name != recipe.name:
        raise DataError(root, "holds another dataset", "Choose another folder for the phantom")
