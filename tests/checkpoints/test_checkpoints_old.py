"""What version 0.1.0 wrote still loads; prediction and export need no trainer and no loss."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.prediction import write_checkpoint
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.checkpoints.facts import read_facts
from medseg.checkpoints.reading import read_checkpoint, read_to_go_on
from medseg.cli import main
from medseg.cli.info import describe_path
from medseg.segmenter import Segmenter
from medseg.space.reading import read_labels

OLD = Path(__file__).parents[1] / "support" / "version_0.1.0.ckpt"


def test_a_checkpoint_of_version_0_1_0_is_read_whole():
    kept = read_checkpoint(OLD)
    assert kept.plan == read_facts(OLD).plan == Segmenter.from_checkpoint(kept).plan
    assert (kept.plan.organs, kept.steps, kept.net) == (("liver", "spleen"), 3, "unet")
    assert read_to_go_on(OLD).steps == 3
    assert kept.flips is None
    assert Segmenter.from_checkpoint(kept).flips == ()  # as its config says


@pytest.mark.parametrize(("scores", "value"), [((9, -9), 1), ((9, 9), 5), ((-9, 9), 5), ((-9, -9), 0)])
def test_overlapping_regions_of_version_0_1_0_are_predicted_as_they_were(tmp_path, scores, value):
    """A head of sigmoids in the place of the softmax, as that version kept it: the same output everywhere."""
    content = torch.load(OLD, weights_only=True)
    content["hyper_parameters"]["plan"] |= {"labels": {"abdomen": [1, 5], "spleen": [5]}, "paint_order": [1, 5]}
    for name, weight in content["state_dict"].items():
        if "output_block" in name:
            content["state_dict"][name] = 0 * weight[:2] if name.endswith("weight") else torch.tensor(scores).float()
    torch.save(content, tmp_path / "regions.ckpt")
    image = write_nifti(tmp_path / "in" / "a.nii.gz", toy_case(0)[0], oblique_affine(0))
    words = ["--ckpt", tmp_path / "regions.ckpt", "--input", image, "--output", tmp_path / "out", "--device", "cpu"]
    assert main(["predict", *map(str, words)]) == 0
    assert set(read_labels(tmp_path / "out" / "a.nii.gz").array.ravel().tolist()) == {value}


def test_averages_are_no_second_network():
    """Nor are weights that the network has under two names."""
    described = describe_path(OLD)["parameters"]
    net = Segmenter.from_checkpoint(read_checkpoint(OLD)).net
    assert described == sum(weight.numel() for weight in net.parameters())


USES = """
import sys
from medseg.cli import main
ckpt, images, out = sys.argv[1:]
assert main(["predict", "--ckpt", ckpt, "--input", images, "--output", out, "--device", "cpu"]) == 0
assert main(["export", "--ckpt", ckpt, "--format", "monai-bundle", "--output", out + "/bundle"]) == 0
print(*[name for name in ("pytorch_lightning", "lightning_fabric", "medseg.losses", "medseg.training", "medseg.metrics")
        if name in sys.modules])
"""


@pytest.mark.slow
def test_prediction_and_export_import_no_trainer_and_no_loss(tmp_path):
    write_nifti(tmp_path / "in" / "a.nii.gz", toy_case(0)[0], oblique_affine(0))
    path = write_checkpoint(tmp_path / "a.ckpt")
    words = [sys.executable, "-c", USES, str(path), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
