"""Pictures of patches: colours, orientation and proportions as in the pictures of the cases they were cut from."""

import json

import numpy as np
import pytest

from medseg.cli import main
from medseg.errors import DataError
from medseg.patches.datamodule import VolumesDataModule
from medseg.patches.patch_pictures import draw_patch, write_patch_figures
from medseg.phantom.phantom import write_phantom
from medseg.pictures.panels import colour
from medseg.plan.plan import Normalisation, Plan, read_plan
from medseg.store.prepare import prepare

PLAN = Plan(
    name="toy",
    modalities=("CT", "PET"),
    labels={"liver": 4, "spleen": 17},
    orientation="LPS",
    spacing_mm=(1.0, 1.0, 4.0),
    patch_size=(8, 10, 4),
    batch_size=2,
    normalisation=(Normalisation("ct", -200.0, 300.0, 40.0, 100.0), Normalisation()),
    strides=((1, 1, 1),),
    kernels=((3, 3, 3),),
    features=(4,),
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A dataset with a left and a right kidney, two cases of one patient among them."""
    root = write_phantom(tmp_path_factory.mktemp("phantom") / "data", 4)
    file = root / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["patients"] = {"phantom_000": "anna", "phantom_001": "anna"}
    file.write_text(json.dumps(content))
    return root


def test_labels_have_the_colours_of_their_values_in_the_files():
    labels = np.zeros((8, 10, 4), dtype=np.int16)
    labels[:4], labels[4:6], labels[6:] = 1, 2, -1
    rgb = draw_patch(np.zeros((2, 8, 10, 4), np.float32), labels, PLAN, title="toy")
    legend = rgb[-24:]
    for value, there in ((4, True), (17, True), (1, False), (2, False)):
        assert (legend == np.array(colour(value))).all(-1).any() == there
    assert rgb.shape[0] == 24 + 3 * (16 * 25 + 6) + 24  # the longest edge, 16 mm of slices, takes 400 pixels


def test_a_patch_is_turned_as_a_radiologist_expects():
    image = np.zeros((2, 8, 10, 4), np.float32)
    image[0] = -10.0
    image[0, 0] = 10.0  # LPS: the first plane along axis 0 is the patient's right
    rgb = draw_patch(image, np.zeros((8, 10, 4), np.int16), PLAN, title="toy")
    axial = rgb[24 : 24 + 250, :200]
    assert axial[:, 12:25].mean() > 220
    assert axial[:, 30:].mean() < 15


def test_a_folder_that_cannot_be_written(phantom, tmp_path):
    prepare(phantom, tmp_path / "store", workers=1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="choose another place"):
        write_patch_figures(VolumesDataModule(tmp_path / "store", folds=2, workers=0), tmp_path / "file", 1)


def test_plan_draws_cases_and_patches(phantom, tmp_path, capsys):
    words = ["plan", str(phantom), "--out", str(tmp_path / "plan.yaml"), "--figures", str(tmp_path / "look")]
    assert main([*words, "--workers", "1"]) == 0
    assert "4 pictures of cases and 6 of augmented patches" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "look").iterdir())  # and the store in which they lay is gone
    assert [name[:9] for name in names] == [f"patch_{n:02d}_" for n in range(6)] + ["phantom_0"] * 4
    assert not {"phantom_003"} & {name[9:20] for name in names[:6]}  # held back: no store is trained on whole


def test_verify_draws_what_it_can(phantom, tmp_path, capsys, toy_dataset):
    assert main(["verify", str(phantom), "--figures", str(tmp_path / "look"), "--workers", "1"]) == 0
    assert len(list((tmp_path / "look").iterdir())) == 10
    (toy_dataset / "labelsTr" / "toy_1.nii.gz").unlink()
    assert main(["verify", str(toy_dataset), "--figures", str(tmp_path / "new"), "--workers", "1"]) == 1
    assert "not all pictures could be drawn" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["toy_0.png", "toy_2.png", "toy_3.png"]


def test_one_patient_gives_no_patches(phantom, tmp_path, capsys):
    content = json.loads((phantom / "dataset.json").read_text(encoding="utf-8"))
    alone = phantom / "alone.json"
    alone.write_text(json.dumps(content | {"training": content["training"][:2], "test": []}))
    words = ["plan", str(alone), "--out", str(tmp_path / "plan.yaml"), "--figures", str(tmp_path / "look")]
    assert main([*words, "--workers", "1"]) == 0
    assert "patches need labelled cases of two patients" in capsys.readouterr().out


def test_a_swap_plan_exchanges_the_labels_of_what_is_mirrored(phantom, tmp_path):
    """The right kidney lies to the right in every patch, mirrored or not, and without the swap it does not."""
    store = tmp_path / "store"
    words = ["prepare", str(phantom), "--out", str(store), "--workers", "1"]
    assert main([*words, "--left-right", "swap"]) == 0
    plan = read_plan(store / "plan.yaml")
    assert (plan.mirror_axes, plan.swap_labels) == ((0, 1, 2), (("kidney_left", "kidney_right"),))
    assert "exchanges the labels" in plan.reasons["mirror_axes"]
    assert sides(store) == {True}
    text = (store / "plan.yaml").read_text(encoding="utf-8")
    (store / "plan.yaml").write_text(text.replace("swap_labels: [[kidney_left, kidney_right]]", "swap_labels: []"))
    assert sides(store) == {True, False}


def sides(store):
    """Whether the right kidney lies to the right of the left one, over patches as large as the volumes."""
    only_mirrors = {"preset": "none", "mirror_probability": 0.5}
    size = (80, 80, 64)
    options = {"folds": 2, "workers": 0, "steps_per_epoch": 4, "patch_size": size, "augmentation": only_mirrors}
    data = VolumesDataModule(store, **options)
    left, right = (1 + data.plan.organs.index(name) for name in ("kidney_left", "kidney_right"))
    found = set()
    for crops in data.train_dataloader():
        for labels in data.on_after_batch_transfer(crops, 0).labels:
            places = [(labels == organ).nonzero()[:, 0].float() for organ in (left, right)]
            if all(len(place) for place in places):
                found.add(bool(places[1].mean() > places[0].mean()))
    return found


def test_left_right_is_said_once(phantom, tmp_path, capsys):
    plan = str(tmp_path / "plan.yaml")
    assert main(["plan", str(phantom), "--out", plan, "--workers", "1", "--left-right", "mirror-off"]) == 0
    assert read_plan(tmp_path / "plan.yaml").mirror_axes == (1, 2)
    words = ["prepare", str(phantom), "--out", str(tmp_path / "store"), "--left-right", "swap", "--plan", plan]
    assert main(words) == 2
    assert "Write mirror_axes and swap_labels into it" in capsys.readouterr().err
