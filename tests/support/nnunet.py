"""Models of nnU-Net: written by our own export, or by nnU-Net's own classes where they are installed."""

import json
from dataclasses import replace

import pytest
import torch

from medseg.checkpoints.reading import read_checkpoint
from medseg.export import export
from medseg.plan.plan import Normalisation, Plan
from support.prediction import write_checkpoint

NNUNET = "nnU-Net is not installed: pip install 'medseg[nnunet]'"

PLAN = Plan(
    name="Dataset501_Toy",
    modalities=("CT",),
    labels={"liver": 1, "spleen": 2},
    orientation="kji",
    spacing_mm=(3.0, 1.5, 1.5),
    patch_size=(8, 16, 16),
    batch_size=2,
    normalisation=(Normalisation("ct", lower=-100.0, upper=200.0, mean=50.0, std=60.0),),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    features=(4, 6, 8),
)
SLICES = replace(
    PLAN,
    patch_size=(1, 16, 16),
    own_spacing=(0,),
    strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
    kernels=((1, 3, 3),) * 3,
)
REGIONS = replace(
    PLAN,
    modalities=("T1", "T2"),
    normalisation=(Normalisation("zscore_nonzero"), Normalisation("rescale")),
    labels={"whole": (1, 2), "rest": (3,)},
    paint_order=(1, 3),
    independent=True,
    ignore=4,
    orientation="RAS",
)
NETS = {
    "unet": {"upsampling_bias": True, "level_kernels": True},
    "residual_encoder_unet": {"blocks": [1, 2, 2], "upsampling_bias": True},
}


def exported(folder, plan=PLAN, net="unet", knobs=None, *, flips=(0, 1, 2)):
    """A checkpoint of random weights, and the folder of nnU-Net that our export made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"flips": [*flips], "as_nnunet": True}
    path = write_checkpoint(
        folder / "ours.ckpt", plan, net=net, net_options=NETS[net] if knobs is None else knobs, signature=told
    )
    export(read_checkpoint(path), folder / "model", form="nnunet")
    return path, folder / "model"


def edited(folder, name, change):
    """The JSON file of a model, changed."""
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def respelt(folder, change, fold="fold_0"):
    """The pickle of a model, changed."""
    path = folder / fold / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def trained_by_nnunet(folder, plan=PLAN, net="unet"):
    """A folder with nnU-Net's own network and its random weights, under plans and labels that our export writes."""
    plans = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler", reason=NNUNET)
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    _, model = exported(folder, plan, net)
    known = plans.PlansManager(json.loads((model / "plans.json").read_text()))
    how = known.get_configuration(known.available_configurations[0])
    torch.manual_seed(3)
    network = get_network_from_plans(
        how.network_arch_class_name,
        how.network_arch_init_kwargs,
        how.network_arch_init_kwargs_req_import,
        len(plan.modalities),
        plan.num_classes,
        deep_supervision=True,
    )
    for parameter in network.parameters():  # biases and norms of a trained network are not zeros and ones
        parameter.data += 0.1 * torch.randn_like(parameter)
    respelt(model, lambda content: content.update(network_weights=network.state_dict()))
    return network, model


def pretrained_by_nnssl(path, weights, prefix="encoder", patch=(16, 16, 16), **architecture):
    """A checkpoint in the shape in which nnssl's trainers write it, entry by entry."""
    configuration = {
        "data_identifier": "nnsslPlans_onemmiso",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "onemmiso",
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "spacing": [1, 1, 1],
        "patch_size": [160, 160, 160],
    }
    plan = {
        "dataset_name": "Dataset745_OpenMind",
        "plans_name": "nnsslPlans",
        "original_median_spacing_after_transp": [1, 1, 1],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"onemmiso": configuration},
        "experiment_planner_used": "FixedResEncUNetPlanner",
    }
    adaptation = {
        "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, **architecture},
        "pretrain_plan": plan,
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": f"{prefix}.stages",
        "key_to_stem": f"{prefix}.stem",
        "keys_to_in_proj": (f"{prefix}.stem.convs.0.conv", f"{prefix}.stem.convs.0.all_modules.0"),
        "key_to_lpe": None,
    }
    arguments = {"plan": plan, "configuration_name": "onemmiso", "fold": 0, "pretrain_json": {}}
    content = {
        "network_weights": weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": {"scale": 65536.0},
        "logging": {"train_losses": [0.5], "epoch_start_timestamps": [1.7e9]},
        "_best_ema": 0.25,
        "current_epoch": 1000,
        "init_args": {**arguments, "device": torch.device("cpu")},
        "trainer_name": "BaseMAETrainer",
        "nnssl_adaptation_plan": adaptation,
    }
    torch.save(content, path)
    return path
