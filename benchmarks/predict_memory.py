"""Peak memory of segmenting one CT with many classes: medseg beside MONAI's sliding window and plain resampling.

    python benchmarks/predict_memory.py                # where MONAI can still do it, both
    python benchmarks/predict_memory.py --large        # and medseg alone on 512 x 512 x 600 voxels with 105 classes

Each is a process of its own, for peaks are of processes, from reading the file to the written labels. The network is a
convolution of 1 x 1 x 1, so that what is measured is the way there and back: every class is a stretch of intensities.
Voxels are 0.75 mm, the plan's 1.5 mm; the network runs in float32, in which its output is twice as large as in bf16.
Both read the file and bring it onto the plan's grid with medseg's code; beyond that MONAI's path is
``sliding_window_inference`` (Gaussian, overlap 0.5), ``interpolate(mode="trilinear")`` and ``argmax``.
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
from scipy import ndimage

from medseg.inference.folder import predict_cases
from medseg.inference.predict import Predictor
from medseg.plan.plan import Normalisation, Plan
from medseg.task import SegmentationTask

SIZES = (((192, 192, 160), 27, 64), ((256, 256, 200), 53, 96))
LARGE = ((512, 512, 600), 105, 128)


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


def measure(shape: tuple[int, int, int], classes: int, patch: int, who: tuple[str, ...]) -> None:
    """A row per predictor."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "image.nii"
        write_image(source, shape, classes)
        written = {}
        for each in who:
            output = Path(name) / each
            output.mkdir()
            words = ["--one", each, str(source), str(output), str(classes), str(patch)]
            found = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
            peak, wall, processor = json.loads(found.stdout.splitlines()[-1])
            size = " x ".join(map(str, shape))
            sys.stdout.write(f"| {size} | {classes} | {each} | {peak:.2f} GiB | {wall:.0f} s | {processor:.0f} s |\n")
            sys.stdout.flush()
            written[each] = next(path for path in output.iterdir() if path.name.startswith("image.nii"))
        if len(written) == 2:
            ours, theirs = (np.asarray(nib.load(path).dataobj) for path in written.values())
            sys.stdout.write(f"labels that agree: {100 * (ours == theirs).mean():.3f} %\n")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also medseg alone on the large volume")
    parser.add_argument("--only-large", action="store_true", help="nothing else")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        who, source, output, classes, patch = options.one
        one(who, Path(source), Path(output), int(classes), int(patch))
        return
    sys.stdout.write("| voxels | classes | | peak memory | wall | processor |\n|---|---|---|---|---|---|\n")
    if not options.only_large:
        for size in SIZES:
            measure(*size, who=("medseg", "MONAI"))
    if options.large or options.only_large:
        measure(*LARGE, who=("medseg",))


if __name__ == "__main__":
    main()
