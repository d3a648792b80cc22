"""A MONAI bundle: the folder that MONAI's own tools run, with weights, network, transforms and metadata."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

import medseg
from medseg.checkpoints.reading import read_plain
from medseg.errors import UsageError
from medseg.export.definition import Definition, define, needs_medseg
from medseg.export.model import Model
from medseg.export.transforms import left_out, postprocessing, preprocessing
from medseg.machine.files import write_json
from medseg.space.volume import STORED

CASES = (
    "$[@dataset_dir] if os.path.isfile(@dataset_dir) else "
    "sorted(path for path in glob.glob(os.path.join(@dataset_dir, '*.nii*')) "
    "if not re.search(r'_(?!0000)\\d{4}\\.nii', path))"
)
"""One file per case, of which ``_0000`` stands for a file per modality."""
DATALIST = (
    "$[{'image': sorted(glob.glob(glob.escape(path).replace('_0000.nii', '_[0-9][0-9][0-9][0-9].nii')))} "
    "for path in @cases]"
)


def write_bundle(model: Model, facts: dict[str, Any], folder: Path) -> Callable[[Tensor], Tensor]:
    """Write ``configs``, ``models`` and ``docs`` of a bundle.

    Returns:
        What runs the written weights in the network that MONAI's parser builds from the written definition.

    Raises:
        UsageError: MONAI's transforms cannot bring an image onto the plan's grid.

    Source: the MONAI Bundle Specification.
    """
    if set(model.plan.orientation) == STORED or model.plan.own_spacing:
        problem = "MONAI's transforms cannot take the axes as a file stores them, or leave one spacing alone"
        raise UsageError(problem, "Choose --format onnx or nnunet")
    definition, weights = define(model)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save({key: tensor.clone() for key, tensor in weights.items()}, folder / "models" / "model.pt")
    write_json(folder / "configs" / "inference.json", inference(model, definition))
    write_json(folder / "configs" / "metadata.json", metadata(model, definition))
    (folder / "docs" / "README.md").write_text(_readme(model, facts, definition), encoding="utf-8")
    network: torch.nn.Module = ConfigParser({"network_def": definition}).get_parsed_content("network_def")
    network.load_state_dict(read_plain(folder / "models" / "model.pt"))
    return network.eval()


def inference(model: Model, definition: Definition) -> dict[str, Any]:
    """The config that ``python -m monai.bundle run`` executes."""
    return {
        "imports": [
            "$import functools",
            "$import glob",
            "$import itertools",
            "$import os",
            "$import re",
            "$import numpy",
            "$import torch",
        ],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "cases": CASES,
        "data": DATALIST,
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(model)},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(model.window),
            "sw_batch_size": 1,
            "overlap": model.overlap,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing(model)},
        "handlers": [],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$@network.load_state_dict(torch.load(@checkpoint, map_location=@device, weights_only=True))"],
        "run": ["$@evaluator.run()"],
    }


def metadata(model: Model, definition: Definition) -> dict[str, Any]:
    """What the bundle is, with the keys that the specification asks for."""
    plan, name = model.plan, model.checkpoint.net
    classes = [*(["background"] if plan.exclusive else []), *plan.organs]
    packages = {"nibabel": version("nibabel"), "scipy": version("scipy"), "pytorch-ignite": "0.4.11"}
    if needs_medseg(definition):
        packages["medseg"] = medseg.__version__
    tensor = {"type": "image", "spatial_shape": list(model.window), "dtype": "float32", "is_patch_data": True}
    modality = plan.modalities[0] if len(set(plan.modalities)) == 1 else "n/a"
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by medseg {medseg.__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": packages,
        "name": plan.name,
        "task": f"Segmentation of {', '.join(plan.organs)}",
        "description": f"A {name} trained by medseg on {plan.name} to segment {', '.join(plan.organs)} in 3D.",
        "authors": "n/a",
        "copyright": "n/a",
        "data_source": plan.name,
        "data_type": "nibabel",
        "eval_metrics": model.checkpoint.scores,
        "intended_use": "Research only",
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "hounsfield" if modality == "CT" else "magnitude",
                    "modality": modality,
                    "num_channels": len(plan.modalities),
                    "value_range": [],
                    "channel_def": dict(enumerate(plan.modalities)),
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "labels" if plan.exclusive else "classes",
                    "num_channels": plan.num_classes,
                    "value_range": [],
                    "channel_def": dict(enumerate(classes)),
                }
            },
        },
    }


def _readme(model: Model, facts: dict[str, Any], definition: Definition) -> str:
    values = zip(facts["output"]["classes"], facts["output"]["values"], strict=True)
    medseg_too = " medseg" if needs_medseg(definition) else ""
    why = "Rules that remove small parts of one organ, or clean overlapping regions, have no counterpart in MONAI"
    cleaning = f"\n{why} and are left out.\n" if left_out(model) else ""
    return f"""# {model.plan.name}

{model.checkpoint.net}, trained by medseg on {", ".join(model.plan.modalities)}. Research only.

```
pip install "monai[ignite,nibabel,fire]" scipy{medseg_too}
python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir LABELS
```

`IMAGES` is a NIfTI file or a folder of them: one file per case, or one per modality ending in `_0000`, `_0001`, ...
A label file `CASE_seg.nii.gz` is written on the grid of each.
{cleaning}
| label | value |
| --- | --- |
""" + "".join(f"| {name} | {value} |\n" for name, value in values)
