"""A plan, a network that is read off by hand, and volumes that lie anywhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

import medseg
from medseg.inference.predict import Predictor
from medseg.nets import build_net
from medseg.plan.plan import Normalisation, Plan
from medseg.segmenter import Segmenter, net_spec

SHARED = Path(__file__).parents[3] / "shared" / "data"


PLAN = Plan(
    name="toy",
    modalities=("CT",),
    labels={"liver": 1, "spleen": 5},
    orientation="RAS",
    spacing_mm=(1.5, 1.5, 3.0),
    patch_size=(8, 8, 4),
    batch_size=1,
    normalisation=(Normalisation("none"),),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
    features=(2, 4),
)


REGIONS = replace(PLAN, labels={"abdomen": (1, 5), "spleen": (5,)}, paint_order=(1, 5))


NET = {"net_options": {"features": [2, 4]}}


def write_checkpoint(path, plan=PLAN, *, signature=(), net="unet", net_options=NET["net_options"], **options):
    """A network that was never trained, as a run would keep it."""
    weights = build_net(net, net_spec(plan), net_options).state_dict()
    content = {
        "medseg": {"version": medseg.__version__, "torch": "2", "scores": {}, **dict(signature)},
        "hyper_parameters": {
            **{"plan": plan.to_dict(), "net": net, "net_options": net_options, "deep_supervision": False},
            **{"overlap": 0.5, "channels_last": True, "loss": "dice", "optimizer": "sgd", "lr": 0.01},
            **{"schedule": "poly", **options},
        },
        "state_dict": {f"net.{name}": weight for name, weight in weights.items()},
        **{"epoch": 0, "global_step": 0},
    }
    torch.save(content, path)
    return path


class Brightness(torch.nn.Module):
    """A network that knows nothing but the voxel itself: class scores are straight lines over the intensity."""

    def __init__(self, slopes, offsets):
        super().__init__()
        self.slopes, self.offsets = torch.tensor(slopes), torch.tensor(offsets)

    def forward(self, image):
        shape = (1, -1, 1, 1, 1)
        return image * self.slopes.view(shape) + self.offsets.view(shape)


def predictor(plan=PLAN, *, networks=1, mirror=False, slopes=None, offsets=None):
    """Bright voxels are class 1, very bright ones class 2; of regions, bright voxels the first, very bright both."""
    first = ([0.0, 1.0, 2.0], [0.0, -1.0, -3.0]) if plan.exclusive else ([1.0, 1.0], [-1.0, -2.0])
    nets = [Brightness(*((slopes, offsets) if slopes else first)) for _ in range(networks)]
    flips = plan.mirror_axes if mirror else ()
    made = Predictor([Segmenter(net, plan, channels_last=False) for net in nets], mirror=flips, device="cpu")
    made.half = None
    return made


def random_affine(seed, flips, order, spacing):
    """Any orientation, oblique, anisotropic, far from the origin."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform(-0.4, 0.4, 3)
    turns = [
        np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]),
        np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]),
        np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]]),
    ]
    affine = np.eye(4)
    affine[:3, :3] = turns[0] @ turns[1] @ turns[2] @ np.eye(3)[:, list(order)] @ np.diag(np.array(flips) * spacing)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


affines = st.builds(
    random_affine,
    st.integers(0, 2**16),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.floats(0.5, 6.0)] * 3).map(np.array),
)


def smooth(shape, seed):
    """Blobs larger than voxels, far from ties."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 3, 3, 3)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, shape, mode="trilinear", align_corners=True)
    return 4 * fine[0].numpy() + 2
