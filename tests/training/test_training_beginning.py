"""A training begins with what others have trained: nnU-Net's files, nnssl's, checkpoints of other modalities."""

import json
from dataclasses import replace
from unittest.mock import ANY

import pytest
import torch
from support.nnunet import NETS, PLAN, exported, pretrained_by_nnssl

from medseg.cli.main import main
from medseg.errors import CheckpointError, DataError
from medseg.nnunet.folder import read_pickle
from medseg.nnunet.starting import RES_ENC_L, plan_in
from medseg.phantom.phantom import write_phantom
from medseg.plan.plan import Normalisation
from medseg.store.store import Store
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
    assert "the 1 that read the image are of other modalities (CT): spread over a, b, c, d" in said
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


@pytest.mark.parametrize("net", ["unet", "residual_encoder_unet", "anatomynet"])
def test_weights_that_read_the_image_follow_the_modalities_by_name(tmp_path, net):
    def task_on(*modalities, **options):
        plan = replace(PLAN, modalities=modalities, normalisation=(Normalisation(),) * len(modalities))
        task = SegmentationTask(plan.to_dict(), net=net, net_options=NETS.get(net), **options)
        task.setup("fit")
        return task.eval()

    source, image = task_on("T1", "T2", "CT"), torch.randn(1, 3, 8, 16, 16)
    hyper_parameters = {"plan": {"modalities": ["T1", "T2", "CT"], "labels": PLAN.labels}}
    torch.save({"medseg": {}, "state_dict": source.state_dict(), "hyper_parameters": hyper_parameters}, tmp_path / "a")
    zero = torch.zeros_like(image[:, :1])
    t1, t2, ct = image.split(1, dim=1)
    cases = {  # what one is given, what the source would have to be given for the same answer, and what is said
        ("T2", "CT", "T1"): ([t2, ct, t1], [t1, t2, ct], "follow the modalities by name"),
        ("T2", "PD", "T1"): ([t2, ct, t1], [t1, t2, ct], "(T1, T2, CT): T2, T1 by name, the others spread over PD"),
        ("CT", "T2", "T1", "PD"): ([ct, t2, t1, t1], [t1, t2, ct], "CT, T2, T1 by name, PD from zero"),
        ("T2",): ([t2], [zero, t2, zero], "(T1, T2, CT): T2 by name"),
        ("a", "b"): ([t2, t2], [t2, t2, t2], "(T1, T2, CT): spread over a, b"),
    }
    for modalities, (given, theirs, said) in cases.items():
        task = task_on(*modalities, init_from=str(tmp_path / "a"))
        assert task._begin().endswith(said)
        with torch.no_grad():
            torch.testing.assert_close(task(torch.cat(given, 1)), source(torch.cat(theirs, 1)), rtol=1e-4, atol=1e-4)


def test_an_encoder_of_nnssl_is_found_where_it_says(tmp_path):
    _, folder = exported(tmp_path, net="residual_encoder_unet")
    content = read_pickle(folder / "fold_0" / "checkpoint_final.pth")
    weights = {name.replace("encoder.", "backbone.encoder.", 1): w for name, w in content["network_weights"].items()}
    path = pretrained_by_nnssl(tmp_path / "nnssl.pth", weights, "backbone.encoder")
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


def test_the_plan_of_what_others_trained_is_there_to_adopt(tmp_path):
    _, folder = exported(tmp_path / "nnunet")
    assert plan_in(folder / "fold_0" / "checkpoint_final.pth") == replace(PLAN, mirror_axes=(0, 1, 2), reasons=ANY)
    plan = plan_in(pretrained_by_nnssl(tmp_path / "preset.pth", {}, patch=(160, 160, 160)))
    assert (plan.spacing_mm, plan.patch_size, plan.orientation) == ((1, 1, 1), (160, 160, 160), "kji")
    assert (plan.features, plan.strides[1], plan.normalisation) == (
        (32, 64, 128, 256, 320, 320),
        (2, 2, 2),
        (Normalisation("zscore"),),
    )
    kwargs = {**RES_ENC_L, "n_stages": 3, "features_per_stage": [4, 8, 8], "n_blocks_per_stage": 1}
    kwargs |= {"kernel_sizes": 3, "strides": [1, 2, 2], "dropout_op": None, "nonlin": "torch.nn.modules.LeakyReLU"}
    own = {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": kwargs}
    assert plan_in(pretrained_by_nnssl(tmp_path / "own.pth", {}, **own)).strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    with pytest.raises(DataError, match="a network PrimusM, of which medseg has no counterpart"):
        plan_in(pretrained_by_nnssl(tmp_path / "primus.pth", {}, "eva", arch_class_name="PrimusM"))
    with pytest.raises(DataError, match="cannot be followed"):
        plan_in(pretrained_by_nnssl(tmp_path / "none.pth", {}, patch=None))
    torch.save({"state_dict": {}}, tmp_path / "strange.pt")
    with pytest.raises(CheckpointError, match="is no checkpoint of nnU-Net or nnssl"):
        plan_in(tmp_path / "strange.pt")


def test_preparing_follows_the_plan_of_a_checkpoint_of_nnunet(tmp_path, capsys):
    _, folder = exported(tmp_path)
    data = write_phantom(tmp_path / "data", 2, size=(20, 18, 10), spacing_mm=(1.5, 1.5, 3.0))
    words = ["prepare", str(data), "--plan", str(folder / "fold_0/checkpoint_final.pth"), "--workers", "1", "--out"]
    assert main([*words, str(tmp_path / "store"), "--adopt"]) == 0
    assert "follows the plan for Dataset501_Toy (CT)" in capsys.readouterr().out
    assert Store(tmp_path / "store").plan.patch_size == PLAN.patch_size


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
