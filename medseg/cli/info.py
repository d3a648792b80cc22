"""What a path is: a checkpoint, a store, an exported network or a dataset, in a few lines and at once.

Torch and its friends take seconds to import, and are asked only for what nobody else knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.checkpoints.facts import read_facts
from medseg.checkpoints.run import ENSEMBLE, Run, checkpoints_in
from medseg.errors import DataError, listed
from medseg.plan.cleaning import rules_from_plain
from medseg.plan.plan import Plan


def describe_path(path: Path, net: str = "unet") -> dict[str, Any]:
    """Facts about a checkpoint (of a run, its best), a store, an exported network or a dataset, as plain data.

    Raises:
        DataError: The path is missing or none of these.
        UsageError: There is no such network.
    """
    if Run(path).checkpoints.is_dir():
        path = Run(path).checkpoint()
    if (path / ENSEMBLE).is_file():
        held = [one.as_posix() for one in checkpoints_in([path])]
        raise DataError(path, f"holds {len(held)} checkpoints", f"Name one of them: {listed(held)}")
    if path.is_file() and path.suffix == ".ckpt":
        return _checkpoint(path)
    if (path / "medseg.json").is_file():
        return _exported(path)
    if (path / "plan.yaml").is_file():
        return _store(path, net)
    if path.exists():
        return _dataset(path)
    raise DataError(path, "does not exist", "Give a .ckpt file, a run, a store, or a folder with a dataset.json")


def _checkpoint(path: Path) -> dict[str, Any]:
    kept = read_facts(path)
    signed, options = kept.signature, {"loss": "unknown", "optimizer": "unknown", **kept.options}
    peak_gib, rate = signed.get("peak_gib"), options.get("lr")
    return {
        "what": "checkpoint",
        "written by": f"medseg {signed['version']}, torch {signed.get('torch', 'unknown')}",
        **_plan(kept.plan),
        "network": kept.net,
        **({"net_options": options["net_options"]} if options["net_options"] else {}),
        **_imported(signed.get("imported", {})),
        "parameters": sum(math.prod(weight.shape) for weight in {w.place: w for w in kept.weights.values()}.values()),
        "training memory": "unknown" if peak_gib is None else f"{peak_gib:.1f} GiB at its peak",
        "flips in training": "unknown" if kept.flips is None else ", ".join(map(str, kept.flips)) or "none",
        "loss": options["loss"],
        "optimizer": ", ".join(filter(None, (options["optimizer"], rate and f"lr {rate:g}", options.get("schedule")))),
        "cleaning": _cleaning(kept),
        "trained": f"{kept.steps} steps, {kept.epochs} epochs",
        "scores": {name: round(score, 4) for name, score in kept.scores.items()},
        **(_origin(kept) if kept.origin else {}),
    }


def _cleaning(kept: Checkpoint) -> dict[str, str] | str:
    return {organ: str(rule) for organ, rule in rules_from_plain(kept.cleaning, kept.plan).items()} or "none"


def _imported(told: Mapping[str, Any]) -> dict[str, Any]:
    """Whose network it was, where it was not trained here."""
    further = ", ".join(f"{name} {value}" for name, value in told.items() if name != "program")
    return {"imported from": f"{told['program']}, {further}"} if told else {}


def _origin(kept: Checkpoint) -> dict[str, Any]:
    """Where it comes from; the whole config is in the file."""
    origin, fold = kept.origin, kept.config.get("data.fold")
    commits = ", ".join(f"{of} {commit}" for of, commit in origin["commits"].items() if commit)
    return {
        "data": f"{len(origin['data']['cases'])} cases, "
        + ("" if fold is None else f"of which fold {fold} was held back from training, ")
        + f"fingerprint {origin['data']['digest']}",
        "config": f"fingerprint {origin['config']['digest']}",
        "packages": ", ".join(f"{name} {version}" for name, version in origin["packages"].items()),
        "commits": commits or "of no repository",
    }


def _store(path: Path, net: str) -> dict[str, Any]:
    from medseg.nets import build_net, estimate
    from medseg.segmenter import net_spec
    from medseg.store.store import Store

    store = Store(path)
    spec = net_spec(store.plan)
    cost = estimate(build_net(net, spec), spec, batch_size=store.plan.batch_size)
    return {
        "what": "store",
        "cases": len(store.ids),
        **_plan(store.plan),
        net: f"{cost.parameters} parameters, about {cost.training_bytes / 2**30:.1f} GiB to train in float32",
    }


def _exported(path: Path) -> dict[str, Any]:
    from medseg.export import read_facts as read_exported

    facts = read_exported(path)
    return {
        "what": f"network exported as {facts['format']}",
        "written by": f"medseg {facts['medseg']}",
        **_plan(Plan.from_dict(facts["plan"])),
        "network": facts["network"],
        "window": " x ".join(map(str, facts["input"]["window"])),
        "differs from PyTorch": f"by at most {facts['checked']['largest_difference']:.1e}",
    }


def _dataset(path: Path) -> dict[str, Any]:
    from medseg.datasets.case import read_dataset

    dataset = read_dataset(path)
    return {
        "what": "dataset",
        "name": dataset.name,
        "cases": len(dataset.cases),
        "test cases": len(dataset.test),
        "modalities": ", ".join(dataset.modalities),
        "organs": ", ".join(dataset.labels),
    }


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "dataset": plan.name,
        "modalities": ", ".join(plan.modalities),
        "organs": ", ".join(plan.organs),
        "spacing": " x ".join(f"{edge:g}" for edge in plan.spacing_mm) + " mm",
        "patch": " x ".join(map(str, plan.patch_size)),
        "batch": plan.batch_size,
    }
