"""Cases whose grid is unlike the others': a remark, or a mistake that planning refuses."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.datasets.agreement import FAR, IMPOSSIBLE, odd_cases
from medseg.space.nifti import Header


def headers(odd: float = 1.0, *, unit: str = "mm", shape=(24, 20, 12)) -> dict[str, Header]:
    """Nine cases of 1.5 x 1.5 x 4 mm, and one whose edges are so many times as long."""
    affine = np.diag([1.5, 1.5, 4.0, 1.0])
    same = {f"case_{n}": Header((24, 20, 12), 1, affine) for n in range(9)}
    return same | {"odd": Header(shape, 1, np.diag([odd, odd, odd, 1.0]) @ affine, unit)}


@pytest.mark.parametrize("factor", [1.0, 2.0, FAR * 0.99, 1 / (FAR * 0.99)])
def test_what_scanners_do_is_not_odd(factor):
    assert odd_cases(headers(factor)) == {}


POSSIBLE = {FAR * 1.01: True, 0.2: True, 10.0: True, IMPOSSIBLE * 1.01: False, 1000.0: False, 0.001: False}


@pytest.mark.parametrize("factor", POSSIBLE)
def test_what_is_far_is_named_and_what_cannot_be_is_refused(factor):
    (found,) = odd_cases(headers(factor)).values()
    assert found.impossible is not POSSIBLE[factor]
    assert "those of the other cases have about 1.5 x 1.5 x 4 mm" in found.problem


def test_a_unit_of_its_own_is_named():
    (found,) = odd_cases(headers(1.0, unit="metres")).values()
    assert not found.impossible
    assert "its header counts in metres, those of the others in mm" in found.problem


def test_a_volume_that_no_memory_holds_at_the_others_spacing():
    (found,) = odd_cases(headers(9.0, shape=(512, 512, 512))).values()
    assert found.impossible


def test_axes_in_another_order_are_the_same_spacing():
    turned = Header((12, 24, 20), 1, np.diag([1.5, 1.5, 4.0, 1.0])[:, [2, 0, 1, 3]])
    assert odd_cases(headers() | {"turned": turned}) == {}


def test_one_case_has_no_others():
    assert odd_cases({"odd": headers(1000.0)["odd"]}) == {}
