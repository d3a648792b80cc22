"""Time and memory of segmenting a folder of CTs: ``medseg predict`` beside nnU-Net's predictor, with one network.

    python -m venv ENV && ENV/bin/pip install nnunetv2==2.8.1
    python benchmarks/predict_time.py --nnunet ENV/bin
    python benchmarks/predict_time.py --nnunet ENV/bin --size 192 192 80 --cases 1 --mirror

Whole commands, from the files to the written labels, one after the other, alternately, each a process of its own with
two threads. The network is nnU-Net's plain U-Net, of random weights: a folder of nnU-Net's, and the checkpoint that
``medseg import-nnunet`` made of it. nnU-Net runs without worker processes unless ``--workers`` says otherwise, which
is faster here than with them. Memory is the largest sum, over a program's processes, of what each holds for itself
(Pss). Labels are compared voxel by voxel: random scores have many near ties, which bf16 and another resampling of the
image decide otherwise, so they need not agree wholly. ``--float32`` runs ours in float32 too, which shows that the
rest is the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from prepare import Cost, measured

import medseg
from medseg.checkpoints.reading import read_checkpoint
from medseg.export import export
from medseg.nnunet.importing import import_model
from medseg.phantom.phantom import write_phantom
from medseg.plan.plan import Normalisation, Plan
from medseg.training.task import SegmentationTask

FEATURES = (32, 64, 128, 256, 320)
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


def our_plan(classes: int, patch: tuple[int, int, int]) -> Plan:
    """The plan that both follow."""
    stages = len(FEATURES)
    return Plan(
        name="phantom",
        modalities=("CT",),
        labels={f"organ {value}": value for value in range(1, classes)},
        orientation="kji",
        spacing_mm=(2.0, 1.5, 1.5),
        patch_size=(patch[2], patch[1], patch[0]),
        batch_size=2,
        normalisation=(
            Normalisation("ct", CLIP["percentile_00_5"], CLIP["percentile_99_5"], CLIP["mean"], CLIP["std"]),
        ),
        strides=((1, 1, 1), *[(2, 2, 2)] * (stages - 1)),
        kernels=((3, 3, 3),) * stages,
        features=FEATURES,
    )


def write_models(plan: Plan, work: Path) -> None:
    """Random weights as a model of nnU-Net's, and what `medseg import-nnunet` makes of it."""
    torch.manual_seed(0)
    task = SegmentationTask(plan.to_dict(), net_options={"upsampling_bias": True, "level_kernels": True})
    kept = {
        "hyper_parameters": dict(task.hparams),
        "state_dict": task.state_dict(),
        "medseg": {"version": medseg.__version__, "torch": str(torch.__version__), "scores": {}, "flips": [0, 1, 2]},
    }
    torch.save(kept, work / "made.ckpt")
    export(read_checkpoint(work / "made.ckpt"), work / "model", form="nnunet")
    import_model(work / "model", work / "ours.ckpt")


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
        str(options.nnunet / "nnUNetv2_predict_from_modelfolder"), "-m", str(work / "model"), "-f", "0",
        "-device", "cpu",
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
    write_models(plan, work)
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
