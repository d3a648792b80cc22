"""The command that writes a trained network for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from medseg.cli.command import Command, Options, say, trust_option

FORMATS = ("onnx", "pt2", "monai-bundle", "nnunet")
"""As `medseg.export.FORMATS`, which would load torch to print a help."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, or the folder of a run: its best")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="ONNX, a program of torch.export, a MONAI bundle, or nnU-Net"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the network and its plan")
    parser.add_argument("--check", type=Path, metavar="IMAGE", help="compare with PyTorch on this image, not on noise")
    trust_option(parser)


def _run(options: Options) -> int:
    from medseg.checkpoints.reading import read_checkpoint
    from medseg.checkpoints.run import checkpoints_in
    from medseg.errors import UsageError
    from medseg.export import export
    from medseg.inference.images import list_cases, read_case_image
    from medseg.machine.dotted import Trust

    checkpoint, *more = checkpoints_in([options.ckpt])
    if more:
        raise UsageError(f"{options.ckpt} holds {1 + len(more)} checkpoints", "Name one of them, such as its fold0")
    kept, image = read_checkpoint(checkpoint), None
    if options.check:
        image = read_case_image(next(iter(list_cases(options.check, kept.plan).values())), kept.plan)
    done = export(kept, options.output, form=options.format, image=image, trust=Trust.of(options.trust))
    for path in done.files:
        say(f"wrote {path}")
    for remark in done.facts.get("remarks", ()):
        say(remark)
    on = options.check or "noise"
    say(f"on {done.verdict.patches} patches of {on} it differs from PyTorch by {done.verdict.largest_difference:.1e}")
    return 0


EXPORT = Command("write a network for onnxruntime, torch.export, MONAI or nnU-Net, checked first", _options, _run)
