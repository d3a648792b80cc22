"""The estimate of a network's memory, against what a training step takes; and compiling."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from medseg.nets import NetSpec, build_net, estimate, list_nets

SPEC = NetSpec(1, 3, (48, 48, 48), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (16, 32, 64))
SMALL = {"swin_unetr": {"width": 12}, "unetr": {"hidden": 24, "mlp": 24}, "mednext": {"width": 4}}
RESET = Path("/proc/self/clear_refs")

MEASURED = """
import sys, torch
from pathlib import Path
from medseg.nets import NetSpec, build_net
def kibibytes(key):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
spec = NetSpec(1, 3, (48, 48, 48), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (16, 32, 64))
net = build_net(sys.argv[1], spec, {"features": [16, 32, 32]})
image = torch.randn(2, 1, *spec.patch_size)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
Path("/proc/self/clear_refs").write_text("5")
before = kibibytes("VmRSS")
net(image).square().mean().backward()
optimizer.step()
print(1024 * (kibibytes("VmHWM") - before))
"""


@pytest.mark.slow  # of imports; what is counted by hand below is not
@pytest.mark.skipif(not os.access(RESET, os.W_OK), reason="only Linux tells the peak of a process's memory")
@pytest.mark.parametrize("name", ["unet", "residual_encoder_unet"])
def test_the_estimate_is_within_a_factor_of_a_half_of_the_measured_peak(name):
    net = build_net(name, SPEC, {"features": [16, 32, 32]})
    cost = estimate(net, SPEC, batch_size=2)
    script = [sys.executable, "-c", MEASURED, name]  # a process of its own: nobody else's freed memory is in the way
    step = int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    measured = step + 4 * cost.parameters  # the weights were there before
    assert cost.training_bytes / 1.5 < measured < 1.5 * cost.training_bytes


def test_the_activations_of_two_layers_are_counted_by_hand():
    net = nn.Sequential(nn.Conv3d(1, 4, kernel_size=1), nn.ReLU(), nn.Conv3d(4, 3, kernel_size=1))
    spec = NetSpec(1, 3, (8, 8, 8), SPEC.strides, SPEC.kernels, SPEC.features)
    cost = estimate(net, spec, batch_size=2)
    voxels = 2 * 8**3
    assert cost.parameters == (4 + 4) + (12 + 3)
    assert cost.activation_bytes == 4 * voxels * (1 + 4)  # the image, and the ReLU's output that the last layer reads
    assert cost.largest_bytes == 4 * voxels * 4


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", list_nets())
def test_every_net_has_an_estimate_that_grows_with_the_batch_and_leaves_the_net_alone(name):
    spec = NetSpec(1, 3, (64, 32, 32), SPEC.strides, SPEC.kernels, (4, 8, 8))
    net = build_net(name, spec, SMALL.get(name)).eval()
    one, two = (estimate(net, spec, batch_size=count) for count in (1, 2))
    assert one.parameters == two.parameters == sum(p.numel() for p in net.parameters())
    assert 1.5 * one.activation_bytes < two.activation_bytes <= 2 * one.activation_bytes
    assert not net.training
    assert next(net.parameters()).device.type == "cpu"


COMPILED = """
import sys, torch
from medseg.nets import NetSpec, build_net
strides, kernels = ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3
net = build_net(sys.argv[1], NetSpec(1, 2, (16, 16, 16), strides, kernels, (4, 8, 8)), {"deep_supervision": True})
image = torch.randn(2, 1, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
results = []
for function in (net, torch.compile(net, fullgraph=True)):
    net.zero_grad()
    levels = function(image)
    sum(level.square().mean() for level in levels).backward()
    results.append([*(level.detach() for level in levels), *(p.grad.clone() for p in net.parameters())])
for plain, compiled in zip(*results, strict=True):
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), reason="there is no C++ compiler"
)
def test_a_compiled_unet_gives_the_same_levels_and_gradients(tmp_path):
    script = [sys.executable, "-c", COMPILED, "unet"]  # a process of its own: checked shapes do not compile
    fresh = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}  # not what an interrupted run left half-written
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=fresh)
    assert done.returncode == 0, done.stderr
