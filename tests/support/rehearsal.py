"""What is rehearsed on `support.shadow_cuda`, and tried on a GPU by benchmarks/gpu_check.py."""

from __future__ import annotations

import torch

from medseg.losses.table import rows
from medseg.nets import NetSpec
from medseg.patches.batch import Crops
from medseg.patches.draw import draw
from medseg.patches.geometry import geometry_of
from medseg.patches.margin import crop_size
from medseg.patches.settings import augmentation
from medseg.plan.plan import Normalisation, Plan
from support.shadow_cuda import to_host

CELLS = [(row.name, mode) for row in rows().values() for mode in row.modes]
CHANNELS = {"multiclass": 3, "binary": 1, "multilabel": 2}

SPEC = NetSpec(1, 3, (32, 16, 16), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (4, 8, 8))


def example(mode):
    """Logits and a target of few voxels, with every class and some that are ignored."""
    generator = torch.Generator().manual_seed(0)
    channels, space = CHANNELS[mode], (16, 14, 12)
    maps = torch.zeros(2, max(channels, 3), *space, dtype=torch.int16)
    for sample in range(2):
        maps[sample, 0, 1:6, 1:7, 2:9] = 1
        maps[sample, 0, 12:, :3] = 1
        maps[sample, 1, 7:11, 5 - sample : 10] = 1
    target = maps[:, 0] + 2 * maps[:, 1] if mode == "multiclass" else maps[:, :channels].to(torch.int8)
    target[..., :1] = -1
    return torch.randn(2, channels, *space, generator=generator), target, torch.tensor([[1.5, 1.5, 4.0]] * 2)


def value_and_gradient(loss, logits, target, spacing_mm):
    logits = logits.detach().requires_grad_()
    value = loss(logits, target, spacing_mm)
    value.backward()
    return to_host((value.detach(), logits.grad))


def plan(classes=3, swap=()):
    labels = {f"organ_{number}": number for number in range(1, classes)}
    return Plan("toy", ("CT",), labels, "RAS", (1.0, 1.0, 1.5), (32, 32, 16), 2, (Normalisation(),), SPEC.strides,
                ((3, 3, 3),) * 3, (4, 8, 8), ignore=99, swap_labels=swap)  # fmt: skip


def crops(preset, number):
    settings, geometry = augmentation(preset), geometry_of(plan(swap=(("organ_1", "organ_2"),)))
    size = crop_size(settings, geometry, (200, 200, 200))
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(number))
    labels = torch.zeros(2, *size, dtype=torch.int16)
    labels[:, 8:20, 3:20, 2:14], labels[:, 22:30, 9:25, 4:12] = 1, 2
    drawn = draw(settings, geometry, modalities=1, keys=[(number, key) for key in range(2)])
    mask = torch.tensor([[True, True, False]] * 2)
    spacing_mm = torch.tensor([geometry.spacing_mm] * 2)
    return (
        Crops(tuple(image), tuple(labels), spacing_mm, ("a", "b"), mask, drawn),
        geometry,
        settings.label_interpolation == "nearest",
    )
