"""Peak memory of segmenting one CT with many classes: medseg beside MONAI's sliding window and nnU-Net's predictor.

    python -m venv ENV && ENV/bin/pip install nnunetv2==2.8.1
    python benchmarks/predict_memory.py --nnunet ENV/bin     # where the peers can still do it, all three
    python benchmarks/predict_memory.py --only-large         # medseg alone: 512 x 512 x 600 voxels, 105 classes

Each is a process of its own, for peaks are of processes, from reading the file to the written labels. The network is a
convolution of 1 x 1 x 1, so that what is measured is the way there and back: every class is a stretch of intensities.
Voxels are 0.75 mm, the plan's 1.5 mm; the network runs in float32, in which its output is twice as large as in bf16.
MONAI's path reads the file and brings it onto the plan's grid with medseg's code; beyond that it is
``sliding_window_inference`` (Gaussian, overlap 0.5), ``interpolate(mode="trilinear")`` and ``argmax``. nnU-Net's is
``nnUNetPredictor.predict_from_files_sequential``, which works in one process. Labels are compared with medseg's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from predict_time import environment, their_plan
from scipy import ndimage

from medseg.inference.folder import predict_cases
from medseg.inference.predict import Predictor
from medseg.plan.plan import Normalisation, Plan
from medseg.training.task import SegmentationTask

SIZES = (((192, 192, 160), 27, 64), ((256, 256, 200), 53, 96), ((224, 224, 160), 105, 96))
LARGE = ((512, 512, 600), 105, 128)


NNUNET = """
import json, resource, sys, time
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
plans, source, output, classes = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
centres = torch.arange(classes, dtype=torch.float32)
network = torch.nn.Conv3d(1, classes, 1)
network.weight.data.copy_((2 * centres / classes).view(-1, 1, 1, 1, 1))
network.bias.data.copy_(-(centres**2) / classes)
dataset = {"channel_names": {"0": "MR"}, "labels": {"background": 0} | {f"o{n}": n for n in range(1, classes)},
           "file_ending": ".nii"}
manager = PlansManager(plans)
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.manual_initialization(network, manager, manager.get_configuration("3d_fullres"), [network.state_dict()],
                                dataset, "nnUNetTrainer", None)
start = time.perf_counter()
predictor.predict_from_files_sequential([[source]], [output + "/image"])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([peak, time.perf_counter() - start, time.process_time()]))
"""


class Stretches(torch.nn.Module):
    """Class c wins where the intensity is nearest to c: the scores are tangents of a parabola."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        centres = torch.arange(classes, dtype=torch.float32)
        self.convolution = torch.nn.Conv3d(1, classes, 1)
        self.convolution.weight.data.copy_((2 * centres / classes).view(-1, 1, 1, 1, 1))
        self.convolution.bias.data.copy_(-(centres**2) / classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores per class."""
        return self.convolution(image)


def predictor(classes: int, patch: int) -> Predictor:
    """A trained task whose network is exchanged."""
    plan = Plan(
        name="many organs",
        modalities=("CT",),
        labels={f"organ {value}": value for value in range(1, classes)},
        orientation="RAS",
        spacing_mm=(1.5, 1.5, 1.5),
        patch_size=(patch, patch, patch),
        batch_size=1,
        normalisation=(Normalisation("none"),),
        strides=((1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3)),
        features=(2, 4),
        mirror_axes=(),
    )
    task = SegmentationTask(plan.to_dict(), net_options={"features": [2, 4]})
    task.net = Stretches(classes)
    made = Predictor([task], device="cpu")
    made.half = None  # rounding to bf16 makes ties of neighbouring classes, which two orders of summation break at will
    return made


def write_image(path: Path, shape: tuple[int, ...], classes: int) -> None:
    """Smooth blobs that pass through every class, as int16."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.normal(size=(16, 16, 16)), 1.0)
    coarse = (coarse - coarse.min()) / np.ptp(coarse) * classes
    voxels = np.empty(shape, np.int16)
    lines = [np.linspace(0, 15, size) for size in shape]
    plane = np.stack(np.meshgrid(lines[0], lines[1], indexing="ij"))
    for k, depth in enumerate(lines[2]):
        voxels[..., k] = ndimage.map_coordinates(coarse, [*plane, np.full(shape[:2], depth)], order=1)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.75, 0.75, 0.75, 1.0])), path)


def by_monai(made: Predictor, source: Path, output: Path) -> None:
    """MONAI's window, then all classes on the image's grid at once."""
    from monai.inferers import sliding_window_inference

    from medseg.inference.images import read_case_image
    from medseg.space.nifti import write_labels

    image = read_case_image((source,), made.plan)
    shape = image.shape
    prepared = made.prepare(image)
    del image
    with torch.inference_mode(), made._autocast():
        tensor = torch.from_numpy(prepared.image)[None]
        logits = sliding_window_inference(tensor, made.plan.patch_size, 1, made.tasks[0].net, 0.5, mode="gaussian")
        large = torch.nn.functional.interpolate(logits.float(), shape, mode="trilinear")
        labels = large.argmax(dim=1)[0].numpy()
    write_labels(output / source.name, labels, like=source)


def one(who: str, source: Path, output: Path, classes: int, patch: int) -> None:
    """Segment the file, and say on standard output what it took."""
    made = predictor(classes, patch)
    start = time.perf_counter()
    if who == "MONAI":
        by_monai(made, source, output)
    else:
        outcome = predict_cases(made, source, output)
        for failure in outcome.failures:
            raise failure
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(json.dumps([peak, time.perf_counter() - start, time.process_time()]))


def command(who: str, source: Path, output: Path, classes: int, patch: int, nnunet: Path | None) -> list[str]:
    """What runs one predictor."""
    if who != "nnU-Net":
        return [sys.executable, __file__, "--one", who, str(source), str(output), str(classes), str(patch)]
    plan = predictor(classes, patch).plan
    plans = their_plan(plan)
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
    return [str(nnunet / "python"), "-c", NNUNET, json.dumps(plans), str(source), str(output), str(classes)]


def measure(shape: tuple[int, int, int], classes: int, patch: int, who: tuple[str, ...], nnunet: Path | None) -> None:
    """A row per predictor."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "image.nii"
        write_image(source, shape, classes)
        written: dict[str, np.ndarray] = {}
        for each in who:
            output = Path(name) / each
            output.mkdir()
            words = command(each, source, output, classes, patch, nnunet)
            found = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment(Path(name)))
            peak, wall, processor = json.loads(found.stdout.splitlines()[-1])
            written[each] = np.asarray(nib.load(next(output.glob("image.nii*"))).dataobj)
            same = "" if each == "medseg" else f"{(written[each] == written['medseg']).mean():.2%}"
            size = " x ".join(map(str, shape))
            sys.stdout.write(
                f"| {size} | {classes} | {each} | {peak:.2f} GiB | {wall:.0f} s | {processor:.0f} s | {same} |\n"
            )
            sys.stdout.flush()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nnunet", type=Path, help="folder of the python that has nnU-Net")
    parser.add_argument("--only-large", action="store_true", help="medseg alone on the large volume")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        who, source, output, classes, patch = options.one
        one(who, Path(source), Path(output), int(classes), int(patch))
        return
    sys.stdout.write("| voxels | classes | | peak memory | wall | processor | labels as medseg's |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    if options.only_large:
        measure(*LARGE, who=("medseg",), nnunet=None)
        return
    for size in SIZES:
        measure(*size, who=("medseg", "MONAI", *(["nnU-Net"] if options.nnunet else [])), nnunet=options.nnunet)


if __name__ == "__main__":
    main()
