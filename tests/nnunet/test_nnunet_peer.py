"""nnU-Net itself beside the bridge: its networks, its predictor on imported models, its predictor on exported ones."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.nnunet import NNUNET, PLAN, REGIONS, SLICES, edited, exported, trained_by_nnunet
from support.prediction import random_affine, smooth
from support.toys import write_nifti

from medseg.checkpoints.reading import read_checkpoint
from medseg.inference.images import read_case_image
from medseg.inference.predict import Predictor
from medseg.nnunet.importing import import_model
from medseg.plan.plan import Normalisation
from medseg.segmenter import Segmenter
from medseg.space.reading import read_labels

pytestmark = [pytest.mark.usefixtures("without_shape_checks"), pytest.mark.filterwarnings("ignore")]

CASES = [
    (PLAN, "unet"),
    (SLICES, "unet"),
    (REGIONS, "residual_encoder_unet"),
    (replace(PLAN, orientation="jki"), "residual_encoder_unet"),
]


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))


def write_case(folder, plan, seed):
    """An image that no orientation of the plan's knows, with a border of zeros."""
    affine = random_affine(seed, [1, -1, 1], [2, 0, 1], np.array([1.1, 1.6, 4.5 if seed else 2.0]))
    files = []
    for channel in range(len(plan.modalities)):
        voxels = 50 * smooth((30, 26, 19), 7 * seed + channel)[0]
        voxels[:3], voxels[..., -2:] = 0, 0
        files.append(folder / f"case_{channel:04d}.nii.gz")
        write_nifti(files[-1], voxels.astype(np.float32), affine)
    return files


def their_labels(folder, files, target, *, mirror):
    module = pytest.importorskip("nnunetv2.inference.predict_from_raw_data", reason=NNUNET)
    threads = torch.get_num_threads()
    predictor = module.nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), None, "checkpoint_final.pth")
    reader = predictor.plans_manager.image_reader_writer_class()
    data, properties = reader.read_images([os.fspath(file) for file in files])
    reader.write_seg(predictor.predict_single_npy_array(data, properties), os.fspath(target), properties)
    torch.set_num_threads(threads)
    return read_labels(target).array[0]


@pytest.mark.parametrize(("plan", "net"), CASES)
def test_its_network_and_ours_give_the_same_logits(tmp_path, plan, net):
    network, folder = trained_by_nnunet(tmp_path, plan, net)
    paths, _ = import_model(folder, tmp_path / "a.ckpt")
    ours = Segmenter.from_checkpoint(read_checkpoint(*paths))
    image = torch.randn(1, len(plan.modalities), *plan.patch_size)
    with torch.inference_mode():
        theirs = network(image[:, :, 0] if plan.own_spacing else image)[0]
        found = ours(image)
    torch.testing.assert_close(found[:, :, 0] if plan.own_spacing else found, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("plan", "net"), CASES)
def test_its_predictor_and_ours_label_the_same(tmp_path, plan, net, seed):
    """Noise as weights has many near ties, which its sums in float16 make ties: ours are in float16 as well."""
    _, folder = trained_by_nnunet(tmp_path, plan, net)
    paths, _ = import_model(folder, tmp_path / "a.ckpt")
    files = write_case(tmp_path, plan, seed)
    ours = Predictor.load(paths, mirror=True, device="cpu")
    ours.half = None
    found = ours.predict(read_case_image(tuple(files), plan))
    theirs = their_labels(folder, files, tmp_path / "theirs.nii.gz", mirror=True)
    assert (found == theirs).mean() > 0.9998


def test_a_network_of_pictures_labels_a_png_as_its_predictor_does(tmp_path):
    plan = replace(SLICES, normalisation=(Normalisation("zscore"),))
    _, folder = trained_by_nnunet(tmp_path, plan)
    edited(folder, "plans.json", lambda plans: plans.update(image_reader_writer="NaturalImage2DIO"))
    paths, _ = import_model(folder, tmp_path / "a.ckpt")
    file = tmp_path / "case_0000.png"
    pixels = smooth((41, 30, 1), 2)[0, ..., 0]
    Image.fromarray((255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)).save(file)
    ours = Predictor.load(paths, mirror=True, device="cpu")
    ours.half = None
    found = ours.predict(read_case_image((file,), plan))
    theirs = their_labels(folder, [file], tmp_path / "theirs.png", mirror=True)
    assert (found == theirs).mean() > 0.9998
    assert len(np.unique(found)) > 1


def test_its_predictor_runs_what_was_exported(tmp_path):
    plan = replace(PLAN, orientation="RAS")
    ours, folder = exported(tmp_path, plan)
    files = write_case(tmp_path, plan, 1)
    predictor = Predictor.load([ours], device="cpu")
    predictor.half = None
    found = predictor.predict(read_case_image(tuple(files), plan))
    theirs = their_labels(folder, files, tmp_path / "theirs.nii.gz", mirror=False)
    assert (found == theirs).mean() > 0.998
