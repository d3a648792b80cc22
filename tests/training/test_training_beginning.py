"""A training begins with what others have trained: nnU-Net's files, nnssl's, checkpoints of other modalities."""

import json
from dataclasses import replace

import pytest
import torch
from support.nnunet import NETS, PLAN, exported

from medseg.errors import CheckpointError
from medseg.nnunet.folder import read_pickle
from medseg.plan.plan import Normalisation
from medseg.training.task import SegmentationTask

pytestmark = pytest.mark.usefixtures("without_shape_checks")


def begun(path, plan=PLAN, net="unet", **options):
    """A task that starts from a file, what it said, and which of its weights came from there."""
    task = SegmentationTask(plan.to_dict(), net=net, net_options=NETS[net], init_from=str(path), **options)
    before = {name: weight.clone() for name, weight in task.net.named_parameters()}
    task.setup("fit")
    came = {name for name, weight in task.net.named_parameters() if not torch.equal(weight, before[name])}
    return task, task._begin(), came


def same(task, path, net):
    other = SegmentationTask(PLAN.to_dict(), net=net, net_options=NETS[net], init_from=str(path))
    other.setup("fit")
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        return torch.equal(task.eval()(image), other.eval()(image))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("deep", [True, False])
def test_a_file_of_nnunet_begins_what_its_import_begins(tmp_path, net, deep):
    ours, folder = exported(tmp_path, net=net)
    task, said, _ = begun(folder / "fold_0" / "checkpoint_final.pth", net=net, deep_supervision=deep)
    assert same(task, ours, net)
    assert "0 start afresh" in said


def test_other_labels_channels_and_depth_keep_what_fits_and_say_what_does_not(tmp_path):
    _, folder = exported(tmp_path)
    path = folder / "fold_0" / "checkpoint_final.pth"
    _, said, came = begun(path, replace(PLAN, labels={"kidney": 1, "tumour": 2, "cyst": 3}))
    assert "for other organs (liver, spleen)" in said
    assert said.endswith("start afresh, for other organs (liver, spleen): output_block")
    assert not [name for name in came if "output_block" in name]
    four = {"modalities": ("a", "b", "c", "d"), "normalisation": (Normalisation(),) * 4}
    task, said, _ = begun(path, replace(PLAN, **four))
    assert "1 are spread over 4 modalities" in said
    image = torch.randn(1, 1, 8, 16, 16)
    single, *_ = begun(path)
    with torch.no_grad():
        torch.testing.assert_close(task.eval()(image.expand(-1, 4, -1, -1, -1)), single.eval()(image))
    deeper = replace(
        PLAN,
        patch_size=(8, 32, 32),
        strides=(*PLAN.strides, (1, 2, 2)),
        kernels=(*PLAN.kernels, (3, 3, 3)),
        features=(*PLAN.features, 8),
    )
    _, said, came = begun(path, deeper)
    assert {name.split(".")[2] for name in came if "upsamples" in name} == {"1", "2"}  # those of its own levels
    assert "bottleneck, upsamples.0" in said


def test_an_encoder_of_nnssl_is_found_where_it_says(tmp_path):
    _, folder = exported(tmp_path, net="residual_encoder_unet")
    content = read_pickle(folder / "fold_0" / "checkpoint_final.pth")
    weights = {name.replace("encoder.", "backbone.encoder.", 1): w for name, w in content["network_weights"].items()}
    plan = {"key_to_encoder": "backbone.encoder.stages", "key_to_stem": "backbone.encoder.stem"}
    path = tmp_path / "nnssl.pt"
    torch.save({"network_weights": weights, "nnssl_adaptation_plan": plan}, path)
    task, said, came = begun(path, net="residual_encoder_unet")
    original, *_ = begun(folder / "fold_0" / "checkpoint_final.pth", net="residual_encoder_unet")
    theirs = dict(original.net.named_parameters())
    for name, weight in task.net.named_parameters():
        assert torch.equal(weight, theirs[name]) == (".stem." in name or ".encoder." in name or weight.ndim == 1), name
    assert {name.split(".")[1] for name in came if theirs[name].ndim > 1} <= {"stem", "encoder"}
    assert "start afresh: upsamplers.0" in said or "start afresh: decoder.0" in said
    torch.save({"network_weights": weights, "nnssl_adaptation_plan": {}}, path)
    with pytest.raises(CheckpointError, match="does not say where its encoder is"):
        begun(path, net="residual_encoder_unet")


def test_little_that_fits_is_a_warning_and_nothing_is_refused(tmp_path):
    _, folder = exported(tmp_path)
    path = folder / "fold_0" / "checkpoint_final.pth"
    _, said, _ = begun(path, replace(PLAN, features=(4, 10, 12)))
    assert "fewer than half" in said
    with pytest.raises(CheckpointError, match="none of its weights fit"):
        begun(path, replace(PLAN, features=(5, 10, 12), labels={"other": 1}))
    torch.save({"network_weights": {"mamba.weight": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="holds none of the networks"):
        begun(path)
    assert json.loads((folder / "dataset.json").read_text())["labels"]
