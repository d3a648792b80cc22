"""Checkpoints as files: read so that no code in them can run, refused with a sentence when they are not ours."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.checkpoints.facts import ours
from medseg.errors import CheckpointError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain data and tensors, on the CPU.

    Raises:
        CheckpointError: The file is missing, unreadable, holds code, or was not written by medseg.
    """

    def read() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on a foreign pickle's protocol; `ours` says more
            return torch.load(path, map_location="cpu", weights_only=True)

    return ours(path, read)


def read_to_go_on(path: Path) -> dict[str, Any]:
    """A checkpoint that a training can go on from: all of its parts are there, and its weights are numbers.

    Raises:
        CheckpointError: As `read_checkpoint`, or it lacks something.
    """
    checkpoint = read_checkpoint(path)
    lacking = [name for name, kind in _PARTS.items() if not isinstance(checkpoint.get(name), kind)]
    if lacking:
        remedy = "Go on from another one, or start from its weights with --model.init_from"
        raise CheckpointError(path, f"lacks {', '.join(lacking)}, which a training needs to go on", remedy)
    _require_numbers(path, checkpoint["state_dict"])
    return checkpoint


def require_same_training(checkpoint: dict[str, Any], plan: dict[str, Any], optimizer: str) -> None:
    """Refuse to go on from the checkpoint of another program, of other labels or channels, or of another optimizer.

    Args:
        checkpoint: As it was read.
        plan: The run's, as plain data.
        optimizer: The run's, by name.

    Raises:
        CheckpointError: It is of another.
    """
    options = checkpoint.get("hyper_parameters", {})
    theirs = options.get("plan")
    if "medseg" not in checkpoint or theirs is None:
        raise CheckpointError("--ckpt_path", "was not written by medseg", "Use a checkpoint of a medseg run")
    for key in ("labels", "modalities"):
        if theirs[key] != plan[key]:
            raise CheckpointError(
                "--ckpt_path",
                f"was trained on the {key} {', '.join(theirs[key])}, the store has {', '.join(plan[key])}",
                "To fine-tune on others, give it as --model.init_from instead",
            )
    if options.get("optimizer", optimizer) != optimizer:
        raise CheckpointError(
            "--ckpt_path",
            f"holds the state of the optimizer {options['optimizer']}, the config asks for {optimizer}",
            "Keep the optimizer, or start from its weights with --model.init_from",
        )


_PARTS = {
    **{"hyper_parameters": dict, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list},
    **{"global_step": int, "epoch": int},
}


def _stem(name: str) -> str:
    """A weight's name without the wrappings around a network, which deep supervision has one more of."""
    while name.startswith("net.net."):
        name = name.removeprefix("net.")
    return name


def _require_numbers(path: Path, weights: dict[str, Tensor]) -> None:
    """Refuse the weights of a training that has gone wrong."""
    bad = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(
            path,
            f"holds weights that are NaN or infinite, such as {bad[0]}",
            "Use another one, such as best.ckpt, with a lower model.lr",
        )


def matching_weights(
    path: Path, state: dict[str, Tensor], prefix: str = "net."
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str] | None]:
    """The weights of a checkpoint that fit a network, for fine-tuning on other labels or channels.

    Args:
        path: The checkpoint to start from.
        state: The weights of the new task, by name.
        prefix: Only names that begin so are taken: the network's, not the loss's.

    Returns:
        The weights whose name and shape fit, the names of the new task that keep their initial values, and the organs
        that the checkpoint was trained on, in the order of its classes; None if it does not say.

    Raises:
        CheckpointError: As `read_checkpoint`, or nothing fits: another network.
    """
    content = read_checkpoint(path)
    kept = content["state_dict"]
    _require_numbers(path, kept)
    stems = {_stem(name): tensor for name, tensor in kept.items()}
    theirs = {name: stems[_stem(name)] for name in state if _stem(name) in stems}
    wanted = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    fitting = {
        name: theirs[name] for name, tensor in wanted.items() if name in theirs and theirs[name].shape == tensor.shape
    }
    if 2 * len(fitting) < len(wanted):
        raise CheckpointError(
            path,
            f"holds another network: {len(fitting)} of {len(wanted)} weights fit",
            "Start from a checkpoint of the same net and net_options",
        )
    labels = content.get("hyper_parameters", {}).get("plan", {}).get("labels")
    organs = [str(organ) for organ in labels] if isinstance(labels, dict) else None
    return fitting, tuple(name for name in wanted if name not in fitting), organs
