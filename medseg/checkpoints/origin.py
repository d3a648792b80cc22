"""Where a checkpoint comes from: software, commits, config and data, as plain values; and what differs between two."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

Origin = dict[str, Any]

PACKAGES = ("torch", "monai", "pytorch-lightning", "numpy", "scipy", "nibabel", "blosc2")
MAY_DIFFER = (
    *("config", "run", "ckpt_path", "checkpoint_minutes", "weights_only", "model.plan", "model.init_from"),
    *("data.store", "data.workers", "data.cache", "data.split", "trainer.default_root_dir", "trainer.enable_"),
    *("trainer.max_", "trainer.min_", "trainer.logger", "trainer.log_every", "trainer.profiler", "trainer.limit_"),
    *("trainer.callbacks", "trainer.num_sanity", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    "seed_everything",
)
"""Beginnings of config keys that a resumed run may change without a word: places, budgets, machines, what is shown.

The seed is the run's own, of which `medseg.training.steps.SeedSteps` tells.
"""

_SECONDS_FOR_GIT = 10


def origin(
    plan: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    cases: Mapping[str, str],
) -> Origin:
    """Everything that decides how a training goes, beside the seed that is in the config.

    Args:
        plan: The plan as plain data.
        config: The config of the run as plain data, where there is one.
        cases: Case -> letters, as `medseg.store.identity.identity` tells; none where the data are no store.
    """
    return {
        "plan": {name: _digest(value) for name, value in plan.items()},
        "config": {"digest": _digest(flat(config or {})), "values": flat(config or {})},
        "data": {"digest": _digest(sorted(cases.values())), "cases": sorted(cases.values())},
        "packages": versions(),
        "commits": {
            "medseg": commit(Path(__file__).parent, tracked="origin.py"),
            "working directory": commit(Path.cwd()),
        },
    }


def versions() -> dict[str, str]:
    """Package -> its version; Python too."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path, *, tracked: str | None = None) -> str:
    """The git commit of a folder, ``-dirty`` behind it where files were edited since; empty where it has none.

    Args:
        folder: Anywhere within a repository.
        tracked: A file of that folder which the repository must know: an installed package may lie in a stranger's.
    """
    if tracked is not None and not _git(folder, "ls-files", "--error-unmatch", tracked):
        return ""
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], cases: Mapping[str, str]) -> list[str]:
    """What is not as it was, a phrase each, most important first; empty when all is.

    Args:
        theirs: Of the checkpoint.
        ours: Of now.
        cases: Case -> letters of now, to name those that are new or changed.
    """
    told = data_differs(set(theirs["data"]["cases"]), cases)
    if theirs["plan"] != ours["plan"]:
        fields = [name for name in ours["plan"] if theirs["plan"].get(name) != ours["plan"][name]]
        told.append(f"the plan has another {', '.join(fields)}")
    before, now = theirs["config"]["values"], ours["config"]["values"]
    if before and now:
        keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        told += [f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys if not key.startswith(MAY_DIFFER)]
    for name in sorted({*theirs["packages"], *ours["packages"]}):
        was, is_now = theirs["packages"].get(name), ours["packages"].get(name)
        if was != is_now:
            told.append(f"{name} was {was} and is {is_now}")
    was, is_now = (of["commits"].get("medseg", "") for of in (theirs, ours))
    return [
        *told,
        *([f"medseg was at commit {_short(was)} and is at {_short(is_now)}"] if was != is_now and was else []),
    ]


def _short(commit: str) -> str:
    """As much of a commit as tells it from others, and whether files were edited since."""
    letters, *edited = commit.split("-")
    return "-".join([letters[:12], *edited]) or "none"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys.

    Example:
        >>> flat({"model": {"lr": 0.1, "net_options": {}}, "run": "a"})
        {'model.lr': 0.1, 'run': 'a'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def data_differs(before: set[str], now: Mapping[str, str]) -> list[str]:
    """What is not as it was of the data, in a phrase; empty when all is.

    Args:
        before: Letters of all cases.
        now: Case -> letters.
    """
    new = [case for case, letters in now.items() if letters not in before]
    gone = len(before - set(now.values()))
    if not new and not gone:
        return []
    named = f" ({', '.join(new[:3])}{', ...' if len(new) > 3 else ''})" if new else ""
    return [f"of the data, {len(new)} of {len(now)} cases are new or changed{named} and {gone} of before are gone"]


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_GIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
