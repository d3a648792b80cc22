"""What a path is: a checkpoint, a store, an exported network or a dataset, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.checkpoints import read_checkpoint
from medseg.checkpoints.origin import Origin
from medseg.datasets.case import read_dataset
from medseg.errors import DataError
from medseg.export import FACTS, read_facts
from medseg.nets import build_net, estimate
from medseg.nets.cost import Cost
from medseg.plan.plan import Plan
from medseg.store.store import Store
from medseg.task import net_spec


def describe_path(path: Path) -> dict[str, Any]:
    """Facts about a checkpoint, a prepared store, an exported network or a dataset, as plain data.

    Raises:
        DataError: The path is missing or none of these.
    """
    if path.is_file() and path.suffix == ".ckpt":
        return _checkpoint(path)
    if (path / FACTS).is_file():
        return _exported(path)
    if (path / "plan.yaml").is_file():
        return _store(path)
    if path.exists():
        return _dataset(path)
    raise DataError(path, "does not exist", "Give a .ckpt file, a store, or a folder with a dataset.json")


def _checkpoint(path: Path) -> dict[str, Any]:
    from medseg.plan.plan import Plan

    checkpoint = read_checkpoint(path)
    options = checkpoint["hyper_parameters"]
    plan = Plan.from_dict(options["plan"])
    cost = _cost(plan, options["net"], options["net_options"])
    return {
        "what": "checkpoint",
        "written by": f"medseg {checkpoint['medseg']['version']}, torch {checkpoint['medseg']['torch']}",
        **_plan(plan),
        "network": options["net"],
        "parameters": cost.parameters,
        "training memory": f"about {cost.training_bytes / 2**30:.1f} GiB in float32",
        "loss": options["loss"],
        "optimizer": f"{options['optimizer']}, lr {options['lr']:g}, {options['schedule']}",
        "trained": f"{checkpoint['global_step']} steps, {checkpoint['epoch'] + 1} epochs",
        "scores": {name: round(score, 4) for name, score in checkpoint["medseg"].get("scores", {}).items()},
        **(_origin(checkpoint["origin"]) if "origin" in checkpoint else {}),
    }


def _origin(origin: Origin) -> dict[str, Any]:
    """Where it comes from; the whole config is in the file."""
    commits = ", ".join(f"{of} {commit}" for of, commit in origin["commits"].items() if commit)
    return {
        "data": f"{len(origin['data']['cases'])} cases, fingerprint {origin['data']['digest']}",
        "config": f"fingerprint {origin['config']['digest']}",
        "packages": ", ".join(f"{name} {version}" for name, version in origin["packages"].items()),
        "commits": commits or "of no repository",
    }


def _store(path: Path) -> dict[str, Any]:

    store = Store(path)
    cost = _cost(store.plan, "unet", None)
    return {
        "what": "store",
        "cases": len(store.ids),
        **_plan(store.plan),
        "unet": f"{cost.parameters} parameters, about {cost.training_bytes / 2**30:.1f} GiB to train in float32",
    }


def _exported(path: Path) -> dict[str, Any]:
    facts = read_facts(path)
    return {
        "what": f"network exported as {facts['format']}",
        "written by": f"medseg {facts['medseg']}",
        **_plan(Plan.from_dict(facts["plan"])),
        "network": facts["network"],
        "window": " x ".join(map(str, facts["input"]["window"])),
        "differs from PyTorch": f"by at most {facts['checked']['largest_difference']:.1e}",
    }


def _dataset(path: Path) -> dict[str, Any]:

    dataset = read_dataset(path)
    return {
        "what": "dataset",
        "name": dataset.name,
        "cases": len(dataset.cases),
        "test cases": len(dataset.test),
        "modalities": ", ".join(dataset.modalities),
        "organs": ", ".join(dataset.labels),
    }


def _cost(plan: Plan, name: str, knobs: dict[str, Any] | None) -> Cost:
    """What the plan's network costs on one of its batches."""
    spec = net_spec(plan)
    return estimate(build_net(name, spec, knobs), spec, batch_size=plan.batch_size)


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "dataset": plan.name,
        "modalities": ", ".join(plan.modalities),
        "organs": ", ".join(plan.organs),
        "spacing": " x ".join(f"{edge:g}" for edge in plan.spacing_mm) + " mm",
        "patch": " x ".join(map(str, plan.patch_size)),
        "batch": plan.batch_size,
    }
