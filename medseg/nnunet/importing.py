"""nnU-Net's trained models as checkpoints of medseg: the same predictions, from a file without code."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import medseg
from medseg.checkpoints.checkpoint import WEIGHTS, signature
from medseg.checkpoints.run import ENSEMBLE
from medseg.errors import CheckpointError, DataError, UsageError, listed
from medseg.machine.files import whole, write_json
from medseg.nets import build_net
from medseg.nnunet.architecture import Architecture, as_ours, counterpart, is_left_out
from medseg.nnunet.folder import KINDS, ModelFolder, TrainedFold, open_model
from medseg.nnunet.plans import read_plan
from medseg.plan.plan import Plan
from medseg.segmenter import net_spec

_log = logging.getLogger(__name__)

OVERLAP = 0.5
TRAINER = "nnUNetTrainer"
_RECIPE = {"loss": "dice + cross_entropy", "optimizer": "sgd", "lr": 0.01, "schedule": "poly", "overlap": OVERLAP}
"""nnU-Net's, as far as medseg has names for it: what a fine-tuning goes on with."""


def import_model(
    model: Path, out: Path, *, folds: Sequence[str] = (), kind: str = "final", turned: bool = False
) -> tuple[list[Path], tuple[int, ...]]:
    """Write checkpoints that predict what nnU-Net predicts with its trained folds.

    Args:
        model: A folder of a trained configuration, or the zip of nnU-Net's export.
        out: The checkpoint; of several folds the folder of all, which together are an ensemble.
        folds: Their numbers, or ``all`` for the training on every case; those that are there where none are named.
        kind: One of `medseg.nnunet.folder.KINDS`.
        turned: Whether its images were turned to RAS before nnU-Net read them.

    Returns:
        The checkpoints, and the axes along which nnU-Net flips when it predicts with them.

    Raises:
        UsageError: The target is there already, or there is no such kind.
        DataError: The model cannot be read, or does something that medseg cannot.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no checkpoint {kind!r}", f"Choose one of {', '.join(KINDS)}")
    source = open_model(model, turned=turned)
    wanted = list(dict.fromkeys(folds)) or [*source.folds]
    if not wanted:
        raise DataError(model, "holds no trained fold", "Train one, or give another folder")
    if out.exists():
        raise UsageError(f"{out} is there already", "Choose another --out")
    contents = {}
    for fold in wanted:
        trained = source.read_fold(fold, kind)
        contents[fold] = checkpoint_of(source, trained)
        _require_alike(model, contents[wanted[0]], contents[fold])
    return _written(out, contents), tuple(contents[wanted[0]]["medseg"]["flips"])


def checkpoint_of(source: ModelFolder, trained: TrainedFold) -> dict[str, Any]:
    """The content of a checkpoint of medseg.

    Raises:
        DataError: The trainer is a stranger's, or plans and weights do not belong together.
    """
    if not trained.trainer.startswith(TRAINER):
        problem = f"was trained by {trained.trainer}, which is not nnU-Net's: what it changes, medseg cannot know"
        raise CheckpointError(trained.path, problem, "Predict with the program that trained it")
    plan, network, net = network_of(source, trained)
    known = {"program": "nnU-Net", "trainer": trained.trainer, "configuration": trained.configuration}
    signed = signature(
        version=medseg.__version__,
        torch=torch.__version__.split("+")[0],
        scores={},
        peak_gib=0.0,
        flips=plan.mirror_axes,
    )
    return {
        "medseg": {**signed, "as_nnunet": True, "imported": {**known, "fold": trained.fold}},
        "hyper_parameters": _options(plan, network),
        WEIGHTS: {f"net.{name}": weight for name, weight in net.state_dict().items()},
        "epoch": max(trained.epochs - 1, 0),
        "global_step": 0,
    }


def network_of(source: ModelFolder, trained: TrainedFold) -> tuple[Plan, Architecture, nn.Module]:
    """The plan of a trained fold, what its network is, and that network with its weights.

    Raises:
        DataError: Plans and weights do not belong together, or have no counterpart.
    """
    plan, network = read_plan(source, trained.configuration, trained.mirror_axes)
    try:
        net = build_net(network.net, net_spec(plan), {**network.knobs, "deep_supervision": True})
    except (RuntimeError, MemoryError, UsageError) as error:
        problem = f"has plans of a network that cannot be built ({' '.join(str(error).split()).rstrip('.')})"
        raise DataError(source.path, problem, "Give the plans that it was trained with") from None
    _fill(net, trained, len(plan.strides))
    if trained.plans and (others := _told_otherwise(source, trained, plan)):
        told = f"was trained by plans that differ from plans.json in {listed(others)}: the latter are followed"
        _log.warning("%s %s, as by nnU-Net", trained.path, told)
    return plan, network, net


def _told_otherwise(source: ModelFolder, trained: TrainedFold, plan: Plan) -> list[str]:
    """What the plans within a checkpoint say otherwise than those beside it."""
    own = replace(source, plans=trained.plans, dataset=trained.dataset or source.dataset)
    try:
        theirs, _ = read_plan(own, trained.configuration, trained.mirror_axes)
    except DataError:
        return ["what cannot be followed here"]
    names = (one.name for one in fields(Plan) if one.name not in ("name", "reasons"))
    return [name for name in names if getattr(plan, name) != getattr(theirs, name)]


def _fill(net: nn.Module, trained: TrainedFold, stages: int) -> None:
    """Put nnU-Net's weights into the network that is their counterpart.

    Raises:
        CheckpointError: It has weights that those lack, the other way around, or of another shape.
    """
    ours = dict(net.named_parameters())
    named = {name: counterpart(name, stages) for name in ours}
    lacking = [theirs for theirs in named.values() if theirs not in trained.weights]
    strange = trained.weights.keys() - set(named.values())
    strange = {name for name in strange if not is_left_out(name)}
    if lacking or strange:
        told = [f"lacks {listed(map(str, lacking), 2)}"] * bool(lacking)
        told += [f"has {listed(sorted(strange), 2)}"] * bool(strange)
        raise _other_network(trained, " and ".join(told))
    for name, parameter in ours.items():
        weight: Tensor = as_ours(trained.weights[str(named[name])])
        if weight.shape != parameter.shape or not weight.is_floating_point():
            shapes = f"{tuple(weight.shape)} {weight.dtype} where the plans ask for {tuple(parameter.shape)}"
            raise _other_network(trained, f"has {named[name]} of {shapes}")
        parameter.data.copy_(weight)


def _other_network(trained: TrainedFold, what: str) -> CheckpointError:
    problem = f"holds another network than its plans describe: it {what}; {trained.trainer} trained it"
    return CheckpointError(trained.path, problem, "Give the plans that it was trained with")


def _options(plan: Plan, network: Architecture) -> dict[str, Any]:
    """What a task is built with."""
    return {
        "plan": plan.to_dict(),
        "net": network.net,
        "net_options": network.knobs,
        "deep_supervision": True,
        "channels_last": True,
        **_RECIPE,
    }


def _require_alike(model: Path, first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Folds of one ensemble are of one plan."""
    for content in (first, other):
        if content["hyper_parameters"] != first["hyper_parameters"]:
            raise DataError(model, "holds folds of different configurations or flips", "Import them one by one")


def _written(out: Path, contents: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    with whole(out) as partial:
        if len(contents) == 1:
            files = {"": next(iter(contents.values()))}
        else:
            partial.mkdir()
            files = {f"fold_{fold}.ckpt": content for fold, content in contents.items()}
            write_json(partial / ENSEMBLE, {"checkpoints": [*files]})
        for name, content in files.items():
            with (partial / name).open("wb") as file:
                torch.save(content, file)
    return [out / name for name in files]
