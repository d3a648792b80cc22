"""What nnU-Net or nnssl has trained, as weights that a training of medseg can begin with, and the plan they know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg.checkpoints.reading import Beginning, require_numbers
from medseg.errors import CheckpointError
from medseg.nnunet.architecture import as_ours, counterpart
from medseg.nnunet.folder import ModelFolder, read_pickle, table, trained_fold
from medseg.nnunet.plans import modalities_of, organs_of, read_plan
from medseg.plan.plan import Plan

RES_ENC_L = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": 1,
    "conv_bias": True,
}
"""The network that nnssl calls ResEncL and has trained on OpenMind (Wald et al. 2024, arXiv:2410.23132)."""

_STAGE = re.compile(r"encoder\.stages\.(\d+)\.")
_STEP = re.compile(r"(?:net\.)*(?:upsamples|upsamplers)\.(\d+)\.")


def is_foreign(content: Any) -> bool:
    """Whether what was read from a file is a checkpoint of nnU-Net's trainer or of nnssl."""
    return isinstance(content, dict) and isinstance(content.get("network_weights"), dict)


def plan_in(path: Path) -> Plan:
    """The plan of a checkpoint of nnU-Net's trainer or of nnssl: grid, normalisation, patch and network to adopt.

    Of nnssl's, which knew no labels, these stand for any, and patches are of the size that it recommends.

    Raises:
        CheckpointError: It cannot be read, or is neither.
        DataError: It says what medseg cannot do.
    """
    content = read_pickle(path)
    if not is_foreign(content):
        raise CheckpointError(path, "is no checkpoint of nnU-Net or nnssl", "Give one, or a plan.yaml, or a .ckpt")
    adaptation = content.get("nnssl_adaptation_plan")
    if isinstance(adaptation, dict):
        dataset = {"channel_names": {"0": "image"}, "labels": {"background": 0, "organ": 1}}
        return read_plan(ModelFolder(path, path, _pretrained(adaptation), dataset), "pretrained", (0, 1, 2))[0]
    trained = trained_fold(path, "", content)
    source = ModelFolder(path, path, trained.plans, trained.dataset)
    return read_plan(source, trained.configuration, trained.mirror_axes)[0]


def beginning_for(path: Path, content: Mapping[str, Any], names: Iterable[str]) -> Beginning:
    """What a training can begin with in such a file, its weights under the names of our network.

    Of nnssl's only the encoder is taken: what its decoder learned was not to segment.

    Args:
        path: The file.
        content: What `medseg.nnunet.folder.read_pickle` found in it.
        names: Of the weights of the network that begins with them.

    Returns:
        The weights of the names that have a counterpart there, whatever its shape; of its cases it does not say.

    Raises:
        CheckpointError: Its weights are no numbers.
    """
    kept = content["network_weights"]
    require_numbers(path, kept)
    adaptation = content.get("nnssl_adaptation_plan")
    if isinstance(adaptation, dict):
        kept = _encoder(path, kept, adaptation)
    ours = [*names]
    steps = [int(found[1]) for name in ours if (found := _STEP.match(name))]
    levels = [int(found[1]) for name in kept if (found := _STAGE.match(str(name)))]
    if not steps or not levels:
        problem = "holds none of the networks that unet and residual_encoder_unet are counterparts of"
        raise CheckpointError(path, problem, "Train one of these, or start from another file")
    named = {name: counterpart(name, 2 + max(steps), 1 + max(levels)) for name in ours}
    found_there = {name: as_ours(kept[theirs]) for name, theirs in named.items() if theirs in kept}
    arguments = content.get("init_args")
    described = table(arguments.get("dataset_json") if isinstance(arguments, dict) else None)
    return Beginning(found_there, organs_of(described), modalities_of(described), set())


def _pretrained(adaptation: Mapping[str, Any]) -> dict[str, Any]:
    """What nnssl says for fine-tuning, as plans of nnU-Net's; what is missing there is missing here."""
    plans, network = (table(adaptation.get(key)) for key in ("pretrain_plan", "architecture_plans"))
    preset = str(network.get("arch_class_name")).endswith("ResEncL")
    architecture = {
        "network_class_name": "ResidualEncoderUNet" if preset else network.get("arch_class_name"),
        "arch_kwargs": RES_ENC_L if preset else network.get("arch_kwargs"),
    }
    configuration = {
        **table(next(iter(table(plans.get("configurations")).values()), None)),
        "architecture": architecture,
        "patch_size": adaptation.get("recommended_downstream_patchsize"),
        "batch_size": 2,
    }
    return {**plans, "configurations": {"pretrained": configuration}}


def _encoder(path: Path, kept: Mapping[str, Tensor], adaptation: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder and its stem under nnU-Net's names, wherever nnssl's network keeps them."""
    told = {"encoder.stages": adaptation.get("key_to_encoder"), "encoder.stem": adaptation.get("key_to_stem")}
    places = {name: place for name, place in told.items() if isinstance(place, str)}
    if len(places) < len(told):
        raise CheckpointError(path, "does not say where its encoder is", "Use a file that nnssl wrote for fine-tuning")
    return {
        f"{name}{key[len(place) :]}": weight
        for name, place in places.items()
        for key, weight in kept.items()
        if key.startswith(f"{place}.")
    }
