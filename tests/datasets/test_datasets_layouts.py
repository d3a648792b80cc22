"""Public datasets are read as their publishers ship them: the trees of docs/layouts.md, built small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.toys import write_nifti

from medseg.cli import main
from medseg.datasets.case import read_case, read_dataset

PAGE = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text(encoding="utf-8")
LAYOUTS = {
    name: (files, json.loads(content))
    for files, name, content in re.findall(
        r'```text\n(.*?)```\n\n```json title="data/raw/(.+?)/dataset\.json"\n(.*?)```', PAGE, re.S
    )
}
REFUSED = {name for name in LAYOUTS if name.startswith("refused/")}
SHAPE, AFFINE = (20, 16, 8), np.diag([-1.0, -1.5, 3.0, 1.0])  # as DICOM counts: to the left, to the back, up


def build(root, files, labels):
    """Every file of a tree, by the word that stands beside it."""
    rng = np.random.default_rng(0)
    scan = rng.normal(0, 100, SHAPE).astype(np.int16)
    values = sorted({value for organ in labels.values() for value in (organ if isinstance(organ, list) else [organ])})
    drawn = np.zeros(SHAPE, np.int16)
    drawn[2:-2, 2:-2, 1:-1].flat[: 20 * len(values)] = np.repeat(values, 20)
    for number, (path, kind) in enumerate(re.findall(r"^(\S.*?) {2,}(.+)$", files, re.M)):
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        voxels = {"label": drawn, "mask": (np.arange(scan.size).reshape(SHAPE) % 30 == number).astype(np.uint8)}.get(
            kind, scan + number
        )
        if kind in ("table", "picture"):
            place.write_text("") if kind == "table" else Image.fromarray(np.zeros(SHAPE[:2], np.uint8)).save(place)
        elif kind == "DICOM":
            pytest.importorskip("pydicom")
            from support.series import write_ct

            write_ct(place, scan, AFFINE)
        elif kind == "4D":
            write_nifti(place, np.stack([scan] * 3, axis=-1), AFFINE)
        elif kind == "image on another grid":
            write_nifti(place, scan[::2, ::2], AFFINE @ np.diag([2, 2, 1, 1]))
        elif place.suffix in (".nrrd", ".mha", ".mhd"):
            itk = pytest.importorskip("SimpleITK")
            image = itk.GetImageFromArray(voxels.T)
            image.SetSpacing([1.0, 1.5, 3.0])
            itk.WriteImage(image, str(place))
        else:
            write_nifti(place, voxels, AFFINE)


@pytest.fixture
def unpacked(request, tmp_path):
    files, content = LAYOUTS[request.param]
    labels = {n: v for n, v in content["labels"].items() if v != 0 and n != "0"}
    build(tmp_path, files, {"organ": 1} if "0" in content["labels"] else labels)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("unpacked", sorted(set(LAYOUTS) - REFUSED), indirect=True)
def test_what_is_published_is_read_as_it_lies(unpacked, capsys):
    assert main(["verify", str(unpacked), "--workers", "1"]) == 0, capsys.readouterr().out
    dataset = read_dataset(unpacked)
    assert dataset.cases
    for case in dataset.cases:
        image, labels = read_case(case, dataset)
        assert image.array.shape == (len(dataset.modalities), *SHAPE)
        drawn = set(dataset.values) - {0}
        assert set(np.unique(labels.array)) - {0} == drawn


@pytest.mark.parametrize("unpacked", sorted(REFUSED), indirect=True)
def test_what_is_not_read_is_refused_in_a_sentence_before_anything_is_written(unpacked, capsys):
    pytest.importorskip("SimpleITK")
    assert main(["verify", str(unpacked), "--workers", "1"]) == 1
    assert main(["prepare", str(unpacked), "--out", str(unpacked / "store"), "--workers", "1"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not (unpacked / "store" / "plan.yaml").exists()


def test_the_page_tells_of_twenty_layouts_and_more():
    assert len(LAYOUTS) >= 24
    assert len(REFUSED) == 3
