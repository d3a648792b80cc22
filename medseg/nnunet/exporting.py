"""A network of medseg as a trained model of nnU-Net v2: what its predictor runs, where it has a counterpart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.nnunet.architecture import CONVOLUTIONS, NETS, counterpart
from medseg.nnunet.plans import RESAMPLER, RESAMPLING, STORED, TURNED
from medseg.plan.plan import Normalisation, Plan
from medseg.space.volume import STORED as OF_THE_FILE

SCHEMES = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "zscore_nonzero": "ZScoreNormalization",
    "rescale": "RescaleTo01Normalization",
    "none": "NoNormalization",
}
_ELSE = "Choose another --format"
_ENCODER = re.compile(r"encoder\.stages\.(\d+)\.(?:0\.convs\.0|blocks\.0\.conv1)\.conv\.weight")


@dataclass(frozen=True, eq=False)
class Counterpart:
    """What nnU-Net's folder will hold.

    Attributes:
        plans: Content of ``plans.json``.
        dataset: Content of ``dataset.json``.
        checkpoint: Content of ``fold_0/checkpoint_final.pth``.
    """

    plans: dict[str, Any]
    dataset: dict[str, Any]
    checkpoint: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the three files."""
        (folder / "fold_0").mkdir()
        for name, content in (("plans.json", self.plans), ("dataset.json", self.dataset)):
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        torch.save(self.checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def counterpart_of(
    net: nn.Module, name: str, knobs: Mapping[str, Any], plan: Plan, flips: tuple[int, ...] | None
) -> Counterpart:
    """Say a network and its plan in nnU-Net's words.

    Args:
        net: The network itself, with its weights.
        name: Of the network.
        knobs: Its options.
        plan: What it was trained on.
        flips: Axes that training flipped; None if nobody knows.

    Raises:
        UsageError: nnU-Net has no counterpart; the sentence says of what.
    """
    if name not in NETS.values() or knobs.get("residual"):
        given = f"{name} with residual blocks" if knobs.get("residual") else name
        raise UsageError(f"nnU-Net has no counterpart of {given}, only of {' and '.join(NETS.values())}", _ELSE)
    flat = _flat(plan)
    weights = _weights(net, flat=flat)
    reader, forward = _reader(plan)
    dataset = _dataset(plan)
    configuration = "2d" if flat else "3d_fullres"
    plans = _plans(plan, reader, forward) | {
        "configurations": {configuration: _configuration(plan, flat=flat) | _architecture(plan, name, weights)}
    }
    unpaired = 1 if plan.swap_labels else 0  # nnU-Net does not exchange labels in what it flips along the first axis
    axes = [axis - flat for axis in flips or () if axis >= max(flat, unpaired)]
    content = {
        "network_weights": dict(_with_doubles(weights)),
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "dataset_json": dataset},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": tuple(axes) or None,
        "current_epoch": 0,
    }
    return Counterpart(plans, dataset, content)


def _flat(plan: Plan) -> bool:
    """Whether it is a network of slices, as nnU-Net's 2d."""
    if not plan.own_spacing:
        return False
    steps = {triple[0] for triple in (plan.patch_size, *plan.kernels, *plan.strides)}
    if plan.own_spacing != (0,) or steps != {1}:
        raise UsageError("nnU-Net leaves a spacing alone across slices of the first axis only, of one each", _ELSE)
    return True


def _weights(net: nn.Module, *, flat: bool) -> dict[str, Tensor]:
    """By nnU-Net's names, each once; heads of coarser levels, which only training reads, are zero."""
    ours = dict(net.named_parameters())
    steps = [re.match(r"(?:net\.)*(?:upsamples|upsamplers)\.(\d+)\.", name) for name in ours]
    stages = 2 + max(int(found[1]) for found in steps if found)
    named = {counterpart(name, stages): weight.detach() for name, weight in ours.items()}
    if None in named:
        raise UsageError("nnU-Net has no counterpart of all of the network's weights", _ELSE)
    weights = {str(name): weight.squeeze(2) if flat and weight.ndim == 5 else weight for name, weight in named.items()}
    finest = weights[f"decoder.seg_layers.{stages - 2}.weight"]
    for step in range(stages - 2):
        wide = weights[f"decoder.transpconvs.{step}.weight"].shape[1]
        weights[f"decoder.seg_layers.{step}.weight"] = finest.new_zeros(len(finest), wide, *finest.shape[2:])
        weights[f"decoder.seg_layers.{step}.bias"] = finest.new_zeros(len(finest))
    if "decoder.transpconvs.0.bias" in weights:  # nnU-Net has a bias everywhere or nowhere
        for name in [name for name in weights if name.endswith(".conv.weight") and ".skip." not in name]:
            weights[f"{name[:-6]}bias"] = finest.new_zeros(len(weights[name]))
    return {name: weight.clone() for name, weight in weights.items()}


def _with_doubles(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every name that nnU-Net's network has for a weight."""
    for name, weight in weights.items():
        again = name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        for one in {name, again}:
            yield one, weight
            if one.startswith("encoder."):
                yield f"decoder.{one}", weight


def _architecture(plan: Plan, name: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entry of the plans, read off the weights."""
    found = {int(match[1]): weights[one] for one in weights if (match := _ENCODER.fullmatch(one))}
    stages, axes = len(found), found[0].ndim - 2
    for step in range(stages - 1):
        if weights[f"decoder.stages.{step}.convs.0.conv.weight"].shape[2:] != found[stages - 2 - step].shape[2:]:
            problem = (
                "nnU-Net has the same kernels on the way up as on the way down, this network those of the level below"
            )
            raise UsageError(problem, "Train with --model.net_options.level_kernels true, or choose another --format")
    strides = [list(step[-axes:]) for step in plan.strides] + [[1] * axes] * (stages - len(plan.strides))
    kind = {ours: theirs for theirs, ours in NETS.items()}[name]
    counted, encoder, decoder = CONVOLUTIONS[name]
    blocks = [len({key for key in weights if re.match(rf"encoder\.stages\.{s}\.blocks\.\d+\.conv1\.conv\.weight", key)})
              for s in range(stages)]  # fmt: skip
    kwargs = {
        "n_stages": stages,
        "features_per_stage": [len(found[stage]) for stage in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [list(found[stage].shape[2:]) for stage in range(stages)],
        "strides": strides,
        counted: [encoder] * stages if encoder else blocks,
        "n_conv_per_stage_decoder": [decoder] * (stages - 1),
        "conv_bias": "decoder.transpconvs.0.bias" in weights,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }


def _configuration(plan: Plan, *, flat: bool) -> dict[str, Any]:
    resampling: dict[str, Any] = {}
    for key, options in (*RESAMPLING.items(), ("resampling_fn_seg", RESAMPLING["resampling_fn_probabilities"])):
        resampling |= {key: RESAMPLER, f"{key}_kwargs": {"is_seg": key.endswith("seg"), **options}}
    return {
        "data_identifier": "nnUNetPlans_2d" if flat else "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.batch_size,
        "patch_size": [*plan.patch_size[flat:]],
        "spacing": [*plan.spacing_mm[flat:]],
        "normalization_schemes": [SCHEMES[how.scheme] for how in plan.normalisation],
        "use_mask_for_norm": [how.scheme == "zscore_nonzero" for how in plan.normalisation],
        "batch_dice": False,
        **resampling,
    }


def _plans(plan: Plan, reader: str, forward: list[int]) -> dict[str, Any]:
    return {
        "dataset_name": plan.name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [*plan.spacing_mm],
        "image_reader_writer": reader,
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): _measured(how) for index, how in enumerate(plan.normalisation)
        },
    }


def _measured(how: Normalisation) -> dict[str, float]:
    return {"mean": how.mean, "std": how.std, "percentile_00_5": how.lower, "percentile_99_5": how.upper}


def _reader(plan: Plan) -> tuple[str, list[int]]:
    """nnU-Net's reader, and the order in which it then takes the axes."""
    stored = set(plan.orientation) == OF_THE_FILE
    if not stored and set(plan.orientation) != set(TURNED):
        raise UsageError(f"nnU-Net turns volumes to RAS or not at all, never to {plan.orientation}", _ELSE)
    order = STORED if stored else TURNED
    reader = "SimpleITKIO" if stored else "NibabelIOWithReorient"
    return reader, [order.index(code) for code in plan.orientation]


def _dataset(plan: Plan) -> dict[str, Any]:
    """Content of dataset.json; nnU-Net wants labels without a gap, so that they may have other values there."""
    known: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(plan.modalities)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    if plan.exclusive:
        labels: dict[str, Any] = {"background": 0, **{name: n for n, name in enumerate(plan.organs, start=1)}}
        highest = len(plan.organs)
    else:
        values = dict(zip(plan.organs, plan.values, strict=True))
        if all(len(several) == 1 for several in values.values()):
            raise UsageError("nnU-Net decides organs for themselves only where one consists of several labels", _ELSE)
        labels = {"background": 0, **{name: [*several] for name, several in values.items()}}
        known["regions_class_order"] = [*plan.painted.values()]
        highest = max(plan.atoms)
    if plan.ignore is not None and plan.ignore == highest + 1:
        labels["ignore"] = plan.ignore
    return known | {"labels": labels}
