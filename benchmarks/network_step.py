"""What a training step of each network takes beside the `unet`'s, for one plan: forward, loss and backward.

    python benchmarks/network_step.py                   # processor time: other work on the machine counts little
    python benchmarks/network_step.py --device cuda     # wall clock

All networks take turns, so that a machine that slows down does so for each; the least of several rounds counts.
"""

from __future__ import annotations

import argparse
import time

import torch

from medseg.losses import build_loss
from medseg.nets import NetSpec, build_net, keep_short_ones_whole, list_nets

EDGE, CLASSES = 64, 3
SPEC = NetSpec(
    in_channels=1,
    out_channels=CLASSES,
    patch_size=(EDGE, EDGE, EDGE),
    strides=((1, 1, 1), *[(2, 2, 2)] * 4),
    kernels=((3, 3, 3),) * 5,
    features=(32, 64, 128, 256, 320),
)


def main() -> None:
    """Print a row per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loss, dtype = build_loss("dice + cross_entropy"), getattr(torch, options.precision)
    image = torch.randn(1, 1, EDGE, EDGE, EDGE, device=options.device).contiguous(memory_format=torch.channels_last_3d)
    labels = torch.randint(CLASSES, (1, EDGE, EDGE, EDGE), device=options.device)

    def seconds(name: str) -> float:
        torch.manual_seed(0)
        net = build_net(name, SPEC).to(options.device, memory_format=torch.channels_last_3d).train()
        keep_short_ones_whole(net)
        clock = time.process_time if options.device == "cpu" else time.perf_counter
        for _ in range(2):  # the first warms up
            began = clock()
            with torch.autocast(options.device, dtype=dtype, enabled=dtype != torch.float32):
                logits = net(image)
            loss(logits, labels).backward()
            if options.device != "cpu":
                torch.cuda.synchronize()
            taken = clock() - began
        return taken

    best = dict.fromkeys(list_nets(), float("inf"))
    for _ in range(options.rounds):
        best = {name: min(found, seconds(name)) for name, found in best.items()}
    for name, taken in best.items():
        print(f"{name:22} {taken:7.2f} s  {taken / best['unet']:6.2f} of the unet's", flush=True)


if __name__ == "__main__":
    main()
