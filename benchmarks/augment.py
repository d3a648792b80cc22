"""Patches augmented per second: medseg's batch beside MONAI's and batchgeneratorsv2's per-sample transforms.

    python benchmarks/augment.py --threads 1
    python benchmarks/augment.py --patch 96 96 96 --batch 2 --rounds 5
    python benchmarks/augment.py --always

One process, the three run alternately on the same crops: nnU-Net's list with nnU-Net's probabilities (or, with
``--always``, every transform on every patch): rotation and scaling in one interpolation, noise, blur, brightness,
contrast, low resolution, inverted gamma, gamma, mirrors. batchgeneratorsv2 is given the very classes and arguments of
nnU-Net 2.8's trainer, labels by argmax of the interpolated one-hot map, as ours (``--nearest``: both by nearest); MONAI
its nearest counterparts, labels by nearest (it has nothing else), rotation and scaling in one RandAffined, no metadata
tracked. Seconds are of the wall clock and of all processors together; the second is fairer on a busy machine, and one
thread than two. Needs ``pip install batchgeneratorsv2``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from itertools import count

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from monai import transforms as monai
from monai.data import set_track_meta
from scipy import ndimage

from medseg.patches.augment import augment
from medseg.patches.draw import draw
from medseg.patches.geometry import Geometry
from medseg.patches.settings import PRESETS

Batch = tuple[torch.Tensor, torch.Tensor]
ANGLE = math.radians(30)


def crops(shape: tuple[int, ...], *, batch: int, labels: int) -> Batch:
    """Noisy images of smooth regions, as organs are: most voxels lie among their own kind."""
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((batch, labels, *[size // 4 + 2 for size in shape]))
    fields = ndimage.gaussian_filter(fields, (0, 0, 1.5, 1.5, 1.5))
    zoom = (1, 1, *[size / have for size, have in zip(shape, fields.shape[2:], strict=True)])
    regions = ndimage.zoom(fields, zoom, order=1).argmax(1).astype(np.int16)
    image = (regions[:, None] + rng.normal(0, 0.3, (batch, 1, *shape))).astype(np.float32)
    return torch.from_numpy(image), torch.from_numpy(regions)


def ours(patch: tuple[int, int, int], *, always: bool, nearest: bool) -> Callable[[Batch], Batch]:
    """The batch as one."""
    settings, grid, step = PRESETS["full"], Geometry(patch, (1.0, 1.0, 1.0), (0, 1, 2)), count()
    if always:
        names = {one.row.name for one in settings.strengths} - {"elastic", "bias"}
        channels = {f"{name}_channel" for name in ("blur", "low_resolution")}
        settings = settings.but(**{f"{name}_probability": 1.0 for name in names | channels})

    def run(batch: Batch) -> Batch:
        keys = [(0, next(step), sample) for sample in range(len(batch[0]))]
        drawn = draw(settings, grid, modalities=batch[0].shape[1], keys=keys)
        return augment(*batch, drawn, grid, nearest=nearest)

    return run


def batchgenerators(patch: tuple[int, int, int], *, always: bool, nearest: bool) -> Callable[[Batch], Batch]:
    """As nnU-Net's trainer composes them, sample by sample."""

    def sometimes(transform: object, probability: float) -> RandomTransform:
        return RandomTransform(transform, apply_probability=1.0 if always else probability)

    each = 1.0 if always else 0.5
    gamma = {"gamma": BGContrast((0.7, 1.5)), "synchronize_channels": False, "p_per_channel": 1, "p_retain_stats": 1}
    quarter = BGContrast((0.75, 1.25))
    moved = {"p_elastic_deform": 0, "p_rotation": 1.0 if always else 0.2, "p_scaling": 1.0 if always else 0.2}
    moved |= {"mode_seg": "nearest" if nearest else "bilinear"}
    moved |= {"rotation": (-ANGLE, ANGLE), "scaling": (0.7, 1.4), "p_synchronize_scaling_across_axes": 1}
    chain = ComposeTransforms(
        [
            SpatialTransform(patch, patch_center_dist_from_border=0, random_crop=False, **moved),
            sometimes(GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
            sometimes(GaussianBlurTransform((0.5, 1.0), False, False, p_per_channel=each, benchmark=True), 0.2),
            sometimes(MultiplicativeBrightnessTransform(quarter, synchronize_channels=False, p_per_channel=1), 0.15),
            sometimes(
                ContrastTransform(quarter, preserve_range=True, synchronize_channels=False, p_per_channel=1), 0.15
            ),
            sometimes(SimulateLowResolutionTransform((0.5, 1), False, True, None, None, p_per_channel=each), 0.25),
            sometimes(GammaTransform(p_invert_image=1, **gamma), 0.1),
            sometimes(GammaTransform(p_invert_image=0, **gamma), 0.3),
            MirrorTransform(allowed_axes=(0, 1, 2)),
        ]
    )

    def run(batch: Batch) -> Batch:
        done = [chain(image=i.clone(), segmentation=s[None].clone()) for i, s in zip(*batch, strict=True)]
        return torch.stack([d["image"] for d in done]), torch.stack([d["segmentation"][0] for d in done])

    return run


def monais(patch: tuple[int, int, int], *, always: bool, nearest: bool) -> Callable[[Batch], Batch]:
    """MONAI's dictionary transforms, sample by sample; its labels are by nearest either way."""
    set_track_meta(False)

    def p(probability: float) -> float:
        return 1.0 if always else probability

    gamma = {"gamma": (0.7, 1.5), "retain_stats": True}
    moved = {"rotate_range": [ANGLE] * 3, "scale_range": [(-0.3, 0.4)] * 3, "mode": ("bilinear", "nearest")}
    chain = monai.Compose(
        [
            monai.RandAffined(["i", "s"], prob=p(0.36), spatial_size=patch, padding_mode="zeros", **moved),
            monai.RandGaussianNoised("i", prob=p(0.1), std=0.3),
            monai.RandGaussianSmoothd("i", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=p(0.1)),
            monai.RandScaleIntensityd("i", factors=0.25, prob=p(0.15)),
            monai.RandScaleIntensityFixedMeand("i", factors=0.25, preserve_range=True, prob=p(0.15)),
            monai.RandSimulateLowResolutiond("i", prob=p(0.125), zoom_range=(0.5, 1.0)),
            monai.RandAdjustContrastd("i", prob=p(0.1), invert_image=True, **gamma),
            monai.RandAdjustContrastd("i", prob=p(0.3), **gamma),
            *[monai.RandFlipd(["i", "s"], prob=0.5, spatial_axis=axis) for axis in range(3)],
        ]
    ).set_random_state(0)

    def run(batch: Batch) -> Batch:
        done = [chain({"i": i.clone(), "s": s[None].clone()}) for i, s in zip(*batch, strict=True)]
        return torch.stack([d["i"] for d in done]), torch.stack([d["s"][0] for d in done])

    return run


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Patches per second of each, by the wall clock and by processor time."""
    patch: tuple[int, int, int] = tuple(options.patch)
    margins = [2 * math.ceil(size * PRESETS["full"].margin / 2) + size for size in patch]
    batch = crops(tuple(margins), batch=options.batch, labels=options.labels)
    made = {"medseg": ours, "MONAI": monais, "batchgeneratorsv2": batchgenerators}
    runners = {name: make(patch, always=options.always, nearest=options.nearest) for name, make in made.items()}
    wall, processor = dict.fromkeys(runners, 0.0), dict.fromkeys(runners, 0.0)
    for round_number in range(options.rounds + 2):
        for name, run in runners.items():
            begun, used = time.perf_counter(), time.process_time()
            image, labels = run(batch)
            if round_number >= 2:  # the first two warm caches and blur benchmarks
                wall[name] += time.perf_counter() - begun
                processor[name] += time.process_time() - used
            if tuple(image.shape[2:]) != patch or tuple(labels.shape[1:]) != patch:
                raise ValueError(f"{name} returned {tuple(image.shape)} and {tuple(labels.shape)}")
    patches = options.rounds * options.batch
    return {
        name: {"patches_per_s": patches / wall[name], "patches_per_processor_s": patches / processor[name]}
        for name in runners
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--always", action="store_true", help="every transform on every patch")
    parser.add_argument("--nearest", action="store_true", help="labels of the nearest voxel in all three")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    rates = measure(options)
    ratios = {
        f"times {name}": {unit: rates["medseg"][unit] / rate[unit] for unit in rate}
        for name, rate in rates.items()
        if name != "medseg"
    }
    print(json.dumps({"options": vars(options), "rates": rates, "medseg": ratios}, indent=1))


if __name__ == "__main__":
    main()
