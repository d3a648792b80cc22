"""Planning against the plans that nnU-Net 2.8.1 writes for the same geometries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.datasets.case import Dataset, read_dataset
from medseg.datasets.sides import side_pairs
from medseg.errors import DataError
from medseg.plan.adopt import adopt, stale
from medseg.plan.budget import Budget, work
from medseg.plan.fingerprint import CaseFingerprint, Fingerprint, Intensities, fingerprint
from medseg.plan.plan import Normalisation, read_plan, write_plan
from medseg.plan.planning import make_plan
from medseg.plan.topology import topology_for
from medseg.space.resample import resampled_shape

HIPPOCAMPUS = Path(__file__).parents[3] / "shared" / "data" / "Task04_Hippocampus"


@dataclass(frozen=True)
class Geometry:
    """A dataset's shape, and what nnU-Net's ExperimentPlanner 2.8.1 answers to it (its axes reversed to ours)."""

    modalities: tuple[str, ...]
    organs: int
    memory_gb: float
    cases: tuple[tuple[tuple[int, int, int], tuple[float, float, float]], ...]  # shape, spacing
    patch_size: tuple[int, int, int]
    batch_size: int
    strides: str  # per stage, the strides of i, j and k
    kernels: str
    scheme: str
    kept: float = 1.0


THIN = tuple(
    ((512, 512, 60 + 3 * n), (0.7 + 0.005 * n, 0.7 + 0.005 * n, (5.0, 5.0, 5.0, 2.5, 1.5)[n % 5])) for n in range(41)
)
GEOMETRIES = {
    "hippocampus": Geometry(
        ("MRI",), 2, 8.0, (((35, 50, 36), (1.0, 1.0, 1.0)),) * 208, (40, 56, 40), 7,
        "111 222 222 222", "333 333 333 333", "zscore",
    ),
    "spleen": Geometry(
        ("CT",), 1, 8.0, (((512, 512, 90), (0.8, 0.8, 5.0)),) * 41, (224, 224, 32), 2,
        "111 221 221 222 222 222", "331 331 333 333 333 333", "ct",
    ),
    "spleen with thin slices among thick ones": Geometry(
        ("CT",), 1, 8.0, THIN, (160, 160, 96), 2,
        "111 222 222 222 222 221", "333 333 333 333 333 333", "ct",
    ),
    "prostate": Geometry(
        ("T2", "ADC"), 2, 8.0, (((320, 320, 20), (0.6, 0.6, 3.6)),) * 32, (256, 320, 20), 2,
        "111 221 221 222 222 221 221", "331 331 333 333 333 333 333", "zscore",
    ),
    "brain tumour": Geometry(
        ("FLAIR", "T1w", "t1gd", "T2w"), 3, 8.0, (((138, 170, 140), (1.0, 1.0, 1.0)),) * 484, (128, 128, 128), 2,
        "111 222 222 222 222 222", "333 333 333 333 333 333", "zscore_nonzero", kept=0.37,
    ),
    "liver in 24 GB": Geometry(
        ("CT",), 2, 24.0, (((512, 512, 432), (0.77, 0.77, 1.0)),) * 131, (192, 224, 160), 2,
        "111 222 222 222 222 222", "333 333 333 333 333 333", "ct",
    ),
    "lung in 11 GB": Geometry(
        ("CT",), 1, 11.0, (((512, 512, 252), (0.79, 0.79, 1.24)),) * 63, (192, 192, 96), 2,
        "111 222 222 222 222 221", "333 333 333 333 333 333", "ct",
    ),
}  # fmt: skip


def a_fingerprint(cases, *, modalities=("CT",), labels=None, kept=1.0, foreground=True, paint_order=None):
    ramp = np.linspace(-100, 300, 2000, dtype=np.float32)
    intensities = (Intensities(ramp, 100.0, 115.0, -150.0, 900.0),) * len(modalities) if foreground else ()
    measured = {
        f"case_{index}": CaseFingerprint(shape, spacing, kept, intensities, {1: 5000} if foreground else {})
        for index, (shape, spacing) in enumerate(cases)
    }
    labels = labels or {"organ": 1}
    return Fingerprint(Dataset("toy", modalities, labels, None, (), paint_order=paint_order), measured)


CUBES = (((64, 64, 64), (1.0, 1.0, 1.0)),) * 10


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_plan_is_nnunets(name):
    geometry = GEOMETRIES[name]
    labels = {f"organ{index}": index for index in range(1, geometry.organs + 1)}
    measured = a_fingerprint(geometry.cases, modalities=geometry.modalities, labels=labels, kept=geometry.kept)
    plan = make_plan(measured, geometry.memory_gb)
    assert (plan.patch_size, plan.batch_size) == (geometry.patch_size, geometry.batch_size)
    assert " ".join("".join(map(str, stride)) for stride in plan.strides) == geometry.strides
    assert " ".join("".join(map(str, kernel)) for kernel in plan.kernels) == geometry.kernels
    assert plan.features == (32, 64, 128, 256, 320, 320, 320)[: len(plan.strides)]
    assert {how.scheme for how in plan.normalisation} == {geometry.scheme}


SQUARES = (((512, 512, 1), (1.0, 1.0, 1.0)),) * 400


def test_pictures_get_nnunets_plan_of_two_dimensions():
    plan = make_plan(a_fingerprint(SQUARES, modalities=("image",)))
    assert (plan.patch_size, plan.batch_size) == ((512, 512, 1), 12)
    assert plan.features == (32, 64, 128, 256, 512, 512, 512, 512)
    assert plan.strides == ((1, 1, 1), *[(2, 2, 1)] * 7)
    assert plan.kernels == ((3, 3, 1),) * 8
    assert plan.mirror_axes == (0, 1)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("thickness_mm", [0.1, 1.0, 30.0])
def test_the_thickness_of_one_slice_changes_nothing(axis, thickness_mm):
    def turned(edges, inserted):
        return (*edges[:axis], inserted, *edges[axis:])

    def flat(triple):
        return tuple(number for place, number in enumerate(triple) if place != axis)

    case = turned((300, 200), 1), turned((0.7, 0.9), thickness_mm)
    plan = make_plan(a_fingerprint((case,) * 40, modalities=("image",)))
    other = make_plan(a_fingerprint((((300, 200, 1), (0.7, 0.9, 1.0)),) * 40, modalities=("image",)))
    assert flat(plan.patch_size) == other.patch_size[:2]
    assert [flat(kernel) for kernel in plan.kernels] == [kernel[:2] for kernel in other.kernels]
    assert [flat(stride) for stride in plan.strides] == [stride[:2] for stride in other.strides]
    assert {kernel[axis] for kernel in plan.kernels} == {1}


def test_thicker_slices_of_pictures_never_become_two():
    cases = [((64, 64, 1), (1.0, 1.0, thick)) for thick in (1.0, 3.0, 8.0)]
    assert make_plan(a_fingerprint(cases)).spacing_mm == (1.0, 1.0, 8.0)


def test_thin_slices_are_kept_where_some_cases_have_them():
    plan = make_plan(a_fingerprint(THIN))
    np.testing.assert_allclose(plan.spacing_mm, (0.8, 0.8, 1.5))  # the 10th percentile of the slices, not their median
    assert "10th percentile" in plan.reasons["spacing_mm"]


def test_the_tenth_percentile_never_makes_slices_finer_than_pixels():
    cases = [((512, 512, 40), (0.9, 0.9, edge)) for edge in (0.5, 0.5, *[5.0] * 8)]
    assert make_plan(a_fingerprint(cases)).spacing_mm[2] == pytest.approx(0.9 + 1e-5)


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="needs the real hippocampus cases beside the repository")
@pytest.mark.slow
def test_the_real_hippocampus_cases_get_nnunets_plan(tmp_path):
    measured = fingerprint(read_dataset(HIPPOCAMPUS), workers=1)
    plan = make_plan(measured)
    assert (plan.spacing_mm, plan.patch_size, plan.batch_size) == ((1.0, 1.0, 1.0), (40, 56, 40), 7)
    assert (plan.features, plan.normalisation) == ((32, 64, 128, 256), (Normalisation(),))
    write_plan(tmp_path / "plan.yaml", plan)
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert "Anterior in 208 of 208 cases" in text
    assert read_plan(tmp_path / "plan.yaml") == plan


@pytest.mark.parametrize(
    ("modality", "scheme"), [("nonorm", "none"), ("rescale_to_0_1", "rescale"), ("ct", "ct"), ("T1", "zscore")]
)
def test_the_name_of_a_channel_chooses_its_normalisation(modality, scheme):
    assert make_plan(a_fingerprint(CUBES, modalities=(modality,))).normalisation[0].scheme == scheme


def test_ct_is_clipped_to_what_organs_show():
    how = make_plan(a_fingerprint(CUBES)).normalisation[0]
    np.testing.assert_allclose((how.lower, how.upper), (-98, 298), atol=0.1)
    assert (how.mean, how.std) == (100.0, 115.0)


def test_each_modality_says_its_own_reason_where_they_differ():
    reason = make_plan(a_fingerprint(CUBES, modalities=("CT", "PET"))).reasons["normalisation"]
    assert "CT: Hounsfield" in reason
    assert "PET: intensities have no unit" in reason


def test_ct_without_any_label_cannot_be_planned():
    with pytest.raises(DataError, match="no labelled voxels"):
        make_plan(a_fingerprint(CUBES, foreground=False))


def test_other_images_without_any_label_can():
    plan = make_plan(a_fingerprint(CUBES, modalities=("T1",), foreground=False))
    assert plan.reasons["labels"] == "organ in 0 of 10 cases."


def test_numbers_are_short_and_the_grid_is_still_that_of_the_files():
    edges = tuple(float(np.float32(edge)) for edge in (0.7, 0.7421875, 1.1))
    plan = make_plan(a_fingerprint((((512, 512, 300), edges),) * 9))
    assert plan.spacing_mm == (0.7, 0.742188, 1.1)
    shapes = [resampled_shape((n, n, n), edges, plan.spacing_mm) for n in (1, 64, 300, 512, 1024)]
    assert shapes == [(n, n, n) for n in (1, 64, 300, 512, 1024)]
    for number in (*plan.spacing_mm, *plan.normalisation[0].to_dict().values()):
        assert len(str(number)) <= 8


@pytest.mark.parametrize("memory_gb", [0.0, -1.0])
def test_memory_must_be_positive(memory_gb):
    with pytest.raises(ValueError, match="memory_gb must be positive"):
        make_plan(a_fingerprint(CUBES), memory_gb)


PAIRED = {"kidney_left": 1, "liver": 2, "kidney_right": 3}


def test_sides_are_not_flipped_into_each_other():
    plan = make_plan(a_fingerprint(CUBES, labels=PAIRED))
    assert (plan.mirror_axes, plan.swap_labels) == ((1, 2), ())
    assert "swap_labels: [[kidney_left, kidney_right]]" in plan.reasons["mirror_axes"]


def test_or_they_are_swapped():
    plan = make_plan(a_fingerprint(CUBES, labels=PAIRED), swap_sides=True)
    assert (plan.mirror_axes, plan.swap_labels) == ((0, 1, 2), (("kidney_left", "kidney_right"),))
    assert "exchanges the labels" in plan.reasons["mirror_axes"]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("Left Hippocampus", "Right Hippocampus"), [("Left Hippocampus", "Right Hippocampus")]),
        (("opticNerveL", "opticNerveR", "L1", "R1x"), [("opticNerveL", "opticNerveR")]),
        (("kidney_r", "kidney_l"), [("kidney_l", "kidney_r")]),
        (("L-parotid", "R-parotid", "parotid"), [("L-parotid", "R-parotid")]),
        (("left ventricle", "right atrium", "colleft", "colright"), []),
        (("liver", "spleen"), []),
    ],
)
def test_pairs_are_told_by_name(names, pairs):
    assert side_pairs(names) == tuple(pairs)


def test_regions_without_a_paint_order_go_from_large_to_small():
    labels = {"enhancing": 3, "whole": (1, 2, 3), "core": (2, 3)}
    plan = make_plan(a_fingerprint(CUBES, labels=labels))
    assert plan.organs == ("whole", "core", "enhancing")
    assert plan.paint_order == (1, 2, 3)


def test_a_declared_paint_order_is_kept():
    labels = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    assert make_plan(a_fingerprint(CUBES, labels=labels, paint_order=(2, 1, 3))).paint_order == (2, 1, 3)


SPACINGS = st.tuples(*[st.floats(0.3, 8.0)] * 3)


@given(st.tuples(*[st.integers(1, 600)] * 3), SPACINGS, st.integers(1, 50), st.floats(0.5, 80.0))
def test_any_geometry_gets_a_plan_that_fits(shape, spacing, cases, memory_gb):
    plan = make_plan(a_fingerprint(((shape, spacing),) * cases), memory_gb)
    assert plan.batch_size >= 2
    assert plan.strides[0] == (1, 1, 1)
    bottleneck = np.array(plan.patch_size) // np.prod(plan.strides, axis=0)
    assert (bottleneck >= 1).all()
    assert topology_for(plan.patch_size, plan.spacing_mm).strides == plan.strides
    assert not list(stale(plan)), "nobody has edited it"


def test_more_memory_never_shrinks_the_patch():
    volumes = [np.prod(make_plan(a_fingerprint(THIN), gb).patch_size) for gb in (2.0, 4.0, 8.0, 16.0, 40.0)]
    assert volumes == sorted(volumes)


def test_a_budget_too_small_for_anything_still_answers():
    plan = make_plan(a_fingerprint(CUBES), 1e-9)
    assert (plan.batch_size, plan.patch_size) == (2, (1, 1, 1))


def test_where_time_shrinks_the_network_alone_the_batch_says_whose_it_is():
    """Two patches are the least, of the largest network too: what fits into the memory would be more of the chosen."""
    large = a_fingerprint((((256, 256, 256), (1.0, 1.0, 1.0)),) * 20)

    def seconds_of(topology, batch):
        return work(topology, batch) / 1e10

    memory, time = make_plan(large), make_plan(large, budget=Budget(10.0, seconds_of, "a test"))
    assert time.batch_size == memory.batch_size == 2
    assert time.features != memory.features
    assert time.reasons["batch_size"].startswith("As many as of the largest network")


def test_an_edit_names_what_it_leaves_behind():
    plan = make_plan(a_fingerprint(CUBES))
    assert not list(stale(plan))
    edited = replace(plan, spacing_mm=(1.0, 1.0, 5.0))
    assert [line.split(" are")[0] for line in stale(edited)] == ["the plan's strides", "the plan's kernels"]


def test_an_adopted_plan_keeps_its_numbers_and_takes_names():
    plan = make_plan(a_fingerprint(CUBES))
    sides = Dataset("MR", ("T1",), {"kidney_left": 4, "kidney_right": 7}, None, (), others="background")
    adopted = adopt(plan, sides)
    taken = ("spacing_mm", "patch_size", "batch_size", "normalisation", "strides", "kernels", "features")
    assert all(getattr(adopted, name) == getattr(plan, name) for name in taken)
    assert (adopted.name, adopted.modalities, adopted.labels) == ("MR", ("T1",), sides.labels)
    assert (adopted.mirror_axes, adopted.others) == ((1, 2), "background")
    assert "labels" not in adopted.reasons
    stored = adopt(replace(plan, orientation="kji"), sides, swap_sides=True)  # left and right lie along its last axis
    assert (stored.mirror_axes, stored.swap_labels) == ((0, 1), ())
    two = replace(sides, modalities=("T1", "T2"))
    assert adopt(replace(plan, normalisation=(Normalisation("zscore"),)), two).normalisation == (Normalisation(),) * 2
    calibrated, none = Normalisation("ct", -1.0, 1.0), Normalisation("none")
    for modalities, normalisation in (
        (("CT",), (calibrated,)),
        (("A", "B", "C"), (Normalisation("zscore"), none, none)),
    ):
        with pytest.raises(DataError, match="T1, T2"):
            adopt(replace(plan, modalities=modalities, normalisation=normalisation), two)
