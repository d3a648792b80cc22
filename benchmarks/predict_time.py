"""Time and memory of segmenting a folder of CTs: ``medseg predict`` beside nnU-Net's predictor, with one network.

    python -m venv ENV && ENV/bin/pip install nnunetv2==2.8.1
    python benchmarks/predict_time.py --nnunet ENV/bin
    python benchmarks/predict_time.py --nnunet ENV/bin --size 192 192 80 --cases 1 --mirror

Whole commands, from the files to the written labels, one after the other, alternately, each a process of its own with
two threads. The network is nnU-Net's plain U-Net; one set of random weights is written as a checkpoint of each program
(biases before a normalisation, which it takes away again, are zero in nnU-Net's). Patch, overlap, spacing, clipping and
normalisation are the same. nnU-Net runs without worker processes unless ``--workers`` says otherwise, which is faster
here than with them. Memory is the largest sum, over a program's processes, of what each holds for itself (Pss). Labels
are compared voxel by voxel: random scores have many near ties, which bf16 and another resampling of the image decide
otherwise, so they need not agree wholly. ``--float32`` runs ours in float32 too, which shows that the rest is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from prepare import Cost, measured
from step_time import plain_unet

import medseg
from medseg.phantom.phantom import write_phantom
from medseg.plan.plan import Normalisation, Plan
from medseg.training.task import SegmentationTask

FEATURES = (32, 64, 128, 256, 320)
NAME = "Dataset501_Phantom"
SPACING_MM = (0.8, 0.8, 2.0)
CLIP = {"mean": 60.0, "std": 120.0, "percentile_00_5": -500.0, "percentile_99_5": 600.0}

OURS = """
import sys
from medseg.inference import predict
if sys.argv[1] == "float32":
    predict.best_precision = lambda device: "32-true"
from medseg.cli.main import main
sys.exit(main(sys.argv[2:]))
"""

CONVERT = """
import json, sys
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
weights, plans, target, classes = torch.load(sys.argv[1]), json.load(open(sys.argv[2])), sys.argv[3], int(sys.argv[4])
how = plans["configurations"]["3d_fullres"]["architecture"]
net = get_network_from_plans(how["network_class_name"], how["arch_kwargs"], how["_kw_requires_import"], 1, classes,
                             deep_supervision=False)
stages = how["arch_kwargs"]["n_stages"]
blocks = ["input_block", *(f"downsamples.{n}" for n in range(stages - 2)), "bottleneck"]
pairs = []
def block(theirs, ours):
    for index in (0, 1):
        pairs.append((f"{theirs}.convs.{index}.conv.weight", f"{ours}.conv{index + 1}.conv.weight"))
        for part in ("weight", "bias"):
            pairs.append((f"{theirs}.convs.{index}.norm.{part}", f"{ours}.norm{index + 1}.{part}"))
for number, name in enumerate(blocks):
    block(f"encoder.stages.{number}.0", name)
for number in range(stages - 1):
    block(f"decoder.stages.{number}", f"upsamples.{number}.conv_block")
    pairs.append((f"decoder.transpconvs.{number}.weight", f"upsamples.{number}.transp_conv.conv.weight"))
for part in ("weight", "bias"):
    pairs.append((f"decoder.seg_layers.{stages - 2}.{part}", f"output_block.conv.conv.{part}"))
found = dict(net.named_parameters())
for parameter in found.values():
    parameter.data.zero_()
for theirs, ours in pairs:
    values = weights[f"net.net.{ours}"]
    found[theirs].data.copy_(values.permute(0, 1, 4, 3, 2) if values.ndim == 5 else values)  # its axes are k, j, i
torch.save({"network_weights": net.state_dict(), "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": (0, 1, 2)}, target)
"""


def our_plan(classes: int, patch: tuple[int, int, int]) -> Plan:
    """The plan that both follow."""
    stages = len(FEATURES)
    return Plan(
        name="phantom",
        modalities=("CT",),
        labels={f"organ {value}": value for value in range(1, classes)},
        orientation="RAS",
        spacing_mm=(1.5, 1.5, 2.0),
        patch_size=patch,
        batch_size=2,
        normalisation=(
            Normalisation("ct", CLIP["percentile_00_5"], CLIP["percentile_99_5"], CLIP["mean"], CLIP["std"]),
        ),
        strides=((1, 1, 1), *[(2, 2, 2)] * (stages - 1)),
        kernels=((3, 3, 3),) * stages,
        features=FEATURES,
    )


def write_ours(plan: Plan, target: Path) -> None:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    task = SegmentationTask(plan.to_dict())
    torch.save(
        {
            "hyper_parameters": dict(task.hparams),
            "state_dict": task.state_dict(),
            "medseg": {"version": medseg.__version__, "torch": str(torch.__version__), "scores": {}},
            "epoch": 0,
            "global_step": 0,
        },
        target,
    )


def their_plan(plan: Plan) -> dict:
    """The same plan in nnU-Net's words; its axes are k, j, i."""
    resample = "resample_data_or_seg_to_shape"
    smooth = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.batch_size,
        "patch_size": list(reversed(plan.patch_size)),
        "median_image_size_in_voxels": list(reversed(plan.patch_size)),
        "spacing": list(reversed(plan.spacing_mm)),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resample,
        "resampling_fn_seg": resample,
        "resampling_fn_data_kwargs": smooth,
        "resampling_fn_seg_kwargs": smooth | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": resample,
        "resampling_fn_probabilities_kwargs": smooth | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": plain_unet(FEATURES),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(reversed(plan.spacing_mm)),
        "original_median_shape_after_transp": list(reversed(plan.patch_size)),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": full},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": CLIP},
    }


def write_theirs(plan: Plan, ours: Path, binaries: Path, work: Path) -> None:
    """The folder of a trained model as nnU-Net keeps it, with the weights of our checkpoint."""
    folder = work / "results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(their_plan(plan)))
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | plan.labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    torch.save(torch.load(ours, weights_only=True)["state_dict"], work / "weights.pt")
    words = [work / "weights.pt", folder / "plans.json", folder / "fold_0" / "checkpoint_final.pth", plan.num_classes]
    subprocess.run([str(binaries / "python"), "-c", CONVERT, *map(str, words)], check=True, env=environment(work))


def environment(work: Path) -> dict[str, str]:
    """Two threads for everybody, and nnU-Net's folders."""
    folders = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    return os.environ | {"OMP_NUM_THREADS": "2", "nnUNet_def_n_proc": "2"} | folders


def commands(options: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    """What is run, by the name of who runs it; each writes to a folder of its name."""
    ours = ["predict", "--ckpt", str(work / "ours.ckpt"), "--input", str(work / "images"), "--device", "cpu"]
    ours += ["--overwrite", *(["--tta"] if options.mirror else []), "--output"]
    python = str(options.python)
    found = {"medseg": [python, "-c", OURS, "auto", *ours, str(work / "medseg")]}
    if options.float32:
        found["medseg, float32"] = [python, "-c", OURS, "float32", *ours, str(work / "medseg, float32")]
    workers = str(options.workers)
    found["nnU-Net"] = [
        str(options.nnunet / "nnUNetv2_predict"), "-d", "501", "-c", "3d_fullres", "-f", "0", "-device", "cpu",
        "-npp", workers, "-nps", workers, "-i", str(work / "images"), "-o", str(work / "nnU-Net"),
        *([] if options.mirror else ["--disable_tta"]),
    ]  # fmt: skip
    return found


def agreement(work: Path, one: str, other: str) -> float:
    """The share of voxels with the same label, over all cases."""
    shares = []
    for path in sorted((work / one).glob("*.nii.gz")):
        a, b = (np.asarray(nib.load(work / who / path.name).dataobj) for who in (one, other))
        shares.append(float((a == b).mean()))
    return float(np.mean(shares))


def race(options: argparse.Namespace, work: Path) -> None:
    """Run everybody, print a row each."""
    write_phantom(work / "phantom", options.cases, size=tuple(options.size), spacing_mm=SPACING_MM)
    (work / "images").mkdir()
    for path in sorted((work / "phantom" / "imagesTr").glob("*.nii.gz")):
        (work / "images" / path.name.replace(".nii.gz", "_0000.nii.gz")).symlink_to(path)
    plan = our_plan(options.classes, tuple(options.patch))
    write_ours(plan, work / "ours.ckpt")
    write_theirs(plan, work / "ours.ckpt", options.nnunet, work)
    todo = commands(options, work)
    costs: dict[str, list[Cost]] = {who: [] for who in todo}
    for _ in range(options.rounds):
        for who, command in todo.items():
            costs[who].append(measured(command, environment(work)))
            print(who, costs[who][-1], flush=True)
    size = " x ".join(map(str, options.size))
    print("| volumes | mirrored | | wall s | processor s | peak MiB | same labels as nnU-Net |")
    print("|---|---|---|--:|--:|--:|--:|")
    for who, some in costs.items():
        wall, cpu, peak = min(c.wall_s for c in some), min(c.cpu_s for c in some), max(c.peak_mib for c in some)
        same = "" if who == "nnU-Net" else f"{agreement(work, who, 'nnU-Net'):.2%}"
        mirrored = "8 times" if options.mirror else "no"
        print(f"| {options.cases} of {size} | {mirrored} | {who} | {wall:.1f} | {cpu:.1f} | {peak:.0f} | {same} |")


def main() -> None:
    """Race both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, required=True, help="folder of nnUNetv2_predict and its python")
    parser.add_argument("--python", type=Path, default=Path(os.sys.executable), help="the python that runs medseg")
    parser.add_argument("--size", type=int, nargs=3, default=(256, 256, 110))
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 64))
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="of nnU-Net, to read and to write; 0 for none")
    parser.add_argument("--mirror", action="store_true", help="average over the eight flips")
    parser.add_argument("--float32", action="store_true", help="also ours in float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        race(options, Path(folder))


if __name__ == "__main__":
    main()
