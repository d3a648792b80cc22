"""Pages that are made from tables of the package: ``python docs/tables.py`` writes them anew, the tests compare."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch

import medseg.metrics.measures  # noqa: F401  # it files the metrics
from medseg.losses import catalogue as losses_catalogue
from medseg.losses import table as losses_table
from medseg.machine.docstrings import arguments, summary
from medseg.metrics import table as measures
from medseg.nets import build_net, catalogue, deeply_supervised_nets, estimate
from medseg.nets.table import NetSpec
from medseg.patches.augmentations import AugmentationRow, key_of, rows
from medseg.patches.settings import PRESETS, WHOLE

AUGMENTATIONS = """# Augmentations

Generated from the docstrings in `medseg/patches` by `python docs/tables.py`.

Patches are augmented on the device they are trained on. Every random number depends on seed, epoch, step and sample
only, so a resumed run goes on with the patch that would have come next. What moves voxels is joined to one
interpolation, of image and labels alike; then come the changes of intensity, in the order in which they stand here.

A config names a preset, or changes single settings of one (of `moderate`, the default, if none is named):

```yaml
data:
  augmentation: {preset: light, rotation_probability: 0.2, rotation_deg: 10}
```

A later config or the command line may do either: `--data.augmentation.rotation_deg 10` changes that setting of the
preset that was named before; another preset has none of the changes to the first.

The probability is that of a patch; from a range each patch or modality draws a number. `none` has nothing of all this;
[Extending](extending.md) shows how to add one of your own.
"""


def augmentations() -> str:
    """The whole of docs/augmentations.md."""
    names, ordered = list(PRESETS)[1:], sorted(rows().values(), key=lambda row: not row.spatial)
    lines = [AUGMENTATIONS, "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in ordered:
        lines.append(f"| [`{row.name}`](#{row.name}) | " + " | ".join(_strength(row, name) for name in names) + " |")
    for key in WHOLE:
        lines.append(f"| `{key}` | " + " | ".join(_told(getattr(PRESETS[name], key)) for name in names) + " |")
    for row in ordered:
        lines += ["", f"## {row.name}", "", _summary(row.function), "", *_settings(row)]
    lines += [
        "",
        "## Settings of the whole",
        "",
        *(f"* `{key}` = {_told(v)}: {text}" for key, (v, text) in WHOLE.items()),
    ]
    return "\n".join(lines) + "\n"


def _strength(row: AugmentationRow, preset: str) -> str:
    """Probability in a preset, and what differs there."""
    values = next(one.values for one in PRESETS[preset].strengths if one.row.name == row.name)
    if not values["probability"]:
        return ""
    other = [f"{key} {_told(value)}" for key, value in values.items() if value != row.settings[key].default]
    return ", ".join([f"{values['probability']:g}", *other])


def _settings(row: AugmentationRow) -> list[str]:
    meanings = {"probability": "Patches that are changed.", "channel_probability": "Modalities of such a patch."}
    meanings |= _arguments(row.function)
    return [
        f"* `{key_of(row, name)}` = {_told(setting.default)} ({setting.bounds}): {meanings[name]}"
        for name, setting in row.settings.items()
    ]


def _told(value: Any) -> str:
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{value}"


def _summary(function: Any) -> str:
    return re.sub(r":math:`(.*?)`", r"$\1$", summary(inspect.getdoc(function))).replace("``", "`")


def _arguments(function: Any) -> dict[str, str]:
    return {name: meaning.replace("``", "`") for name, meaning in arguments(inspect.getdoc(function)).items()}


MADE = "<!-- made by docs/tables.py -->\n"


def _made_anew(name: str, lines: list[str]) -> str:
    """A page of docs/ with other lines between its two marks."""
    before, _, after = (Path(__file__).parent / name).read_text(encoding="utf-8").split(MADE)
    return before + MADE + "\n" + "\n".join(lines) + "\n\n" + MADE + after


def metrics() -> str:
    """docs/metrics.md with its table made anew."""
    lines = ["| column | meaning | best | one side empty | both |", "|---|---|--:|--:|--:|"]
    empty = {"overlap": ("0", "1"), "distance": ("diagonal", "0"), "computed": ("as computed", "as computed")}
    for row in measures.rows().values():
        cells = (f"`{row.name}`", row.meaning, "" if row.best is None else f"{row.best:g}", *empty[row.empty])
        lines.append("| " + " | ".join(cells) + " |")
    outcomes = "`found`, `missed` (not one voxel of it), `false` (invented) or `absent` (rightly left out)"
    return _made_anew("metrics.md", [*lines, f"| `outcome` | {outcomes} | | | |"])


def losses() -> str:
    """docs/losses.md with the table of all losses and an entry for each made anew."""
    table = losses_table.rows().values()
    head = ["loss", "family", *losses_catalogue.HANDLES.values(), "alone", "cost", "range", "paper"]
    lines = ["## All losses", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in table:
        marks = ["✓" if key in row.handles else "" for key in losses_catalogue.HANDLES]
        cells = [f"[`{row.name}`](#{row.name})", row.family, *marks, "✓" if row.alone else "", row.cost, row.range]
        lines.append("| " + " | ".join([*cells, row.paper.split(",")[0]]) + " |")
    for family, title in losses_catalogue.FAMILIES.items():
        lines += ["", f"## {title}"]
        for row in table:
            lines += _loss(row) if row.family == family else []
    return _made_anew("losses.md", lines)


def _loss(row: losses_table.Row) -> list[str]:
    text = losses_catalogue.sections(row)
    lines = ["", f"### {row.name}", "", text["summary"], "", "```text", text["equation"], "```", ""]
    for paragraph in text["prose"]:
        lines += [re.sub(r"^(Use|Known trouble(?: and public code)?|Public code)\b", r"**\1**", paragraph), ""]
    knobs = [f"* {line.strip()}" for line in losses_catalogue.knob_lines(row)]
    return [*lines, *knobs, "", " · ".join(f"{title}: {value}" for title, value in losses_catalogue.facts(row).items())]


NETWORKS = """# Networks

Generated from the docstrings in `medseg/nets` by `python docs/tables.py`; `medseg nets NAME` says the same.

A network is one line of a config, its options another; the numbers of the plan (channels, classes, strides, kernels,
patch) come to it by themselves, and what an option leaves open is the plan's:

```yaml
model:
  net: segresnet
  net_options: {width: 32}
  deep_supervision: true
```

`medseg compare --nets unet vnet` trains several alike and ranks them per organ; the dotted path of a class is
[a network of your own](extending.md). `medseg info STORE --net NAME` estimates the memory for your own plan.

The numbers below are for one plan: one channel, three classes, two patches of 128 x 128 x 128 voxels, six stages of
32, 64, 128, 256, 320 and 320 channels, strides of 2 and kernels of 3, in float32. The memory is what a training step
with SGD is expected to take, by the tensors that it keeps (`medseg.nets.estimate` says how well that holds). The time
of a training step, beside that of the `unet`, is of one core of a CPU and a patch of 64 x 64 x 64 voxels
(`benchmarks/network_step.py`); on a GPU nobody has measured it.
"""

_STEP = {
    **{"anatomynet": 0.55, "attention_unet": 1.1, "mednext": 2.9, "residual_encoder_unet": 1.8, "segresnet": 1.7},
    **{"swin_unetr": 3.1, "unet": 1.0, "unetr": 0.7, "vnet": 1.3},
}
"""Measured by ``benchmarks/network_step.py``: AMD EPYC, float32, torch 2.13.0+cpu, processor time beside other work."""

_PLAN = NetSpec(
    in_channels=1,
    out_channels=3,
    patch_size=(128, 128, 128),
    strides=((1, 1, 1), *[(2, 2, 2)] * 5),
    kernels=((3, 3, 3),) * 6,
    features=(32, 64, 128, 256, 320, 320),
)


def networks() -> str:
    """The whole of docs/networks.md."""
    rows, deep = catalogue.rows(), deeply_supervised_nets()
    heads = ("network", "parameters in millions", "memory in GiB", "a step, of `unet`'s", "deep supervision")
    lines = [NETWORKS, f"| {' | '.join(heads)} |", "|---|--:|--:|--:|---|"]
    for row in rows:
        with torch.device("cpu" if row["name"] == "swin_unetr" else "meta"):  # MONAI's reads a value as it is built
            network = build_net(row["name"], _PLAN)
        cost = estimate(network, _PLAN)
        cells = [
            f"[`{row['name']}`](#{row['name']})",
            f"{cost.parameters / 1e6:.1f}",
            f"{cost.training_bytes / 2**30:.1f}",
            f"{_STEP[row['name']]:g}",
        ]
        lines.append(f"| {' | '.join(cells)} | {'yes' if row['name'] in deep else 'no'} |")
    for row in rows:
        lines += ["", f"## {row['name']}", "", row["summary"], "", *row["use"], ""]
        lines += [f"* `{name}` = {knob['default']}: {knob['meaning']}" for name, knob in row["knobs"].items()]
        lines += ["", f"Paper: {row['paper']}"]
    return re.sub("(?<!`)``(?!`)", "`", "\n".join(lines)) + "\n"


PAGES = {
    "augmentations.md": augmentations,
    "losses.md": losses,
    "metrics.md": metrics,
    "networks.md": networks,
}
"""File in docs/ -> what is in it."""


if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
