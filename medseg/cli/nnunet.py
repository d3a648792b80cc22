"""The command that makes checkpoints of what nnU-Net has trained."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from medseg.cli.command import Command, Options, say


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder TRAINER__PLANS__CONFIGURATION of nnU-Net v2, or a zip of it")
    parser.add_argument("--out", type=Path, required=True, metavar="CKPT", help="checkpoint; of several folds a folder")
    parser.add_argument(
        "--folds", nargs="+", default=[], metavar="FOLD", help="0 1 2 3 4, or all (default: those that are there)"
    )
    parser.add_argument(
        "--turned", action="store_true", help="its images were turned to RAS for it, as TotalSegmentator does"
    )
    parser.add_argument("--checkpoint", default="final", metavar="KIND", help="final, best or latest (default: final)")


def _run(options: Options) -> int:
    from medseg.nnunet.importing import import_model

    written, flipped = import_model(
        options.model, options.out, folds=options.folds, kind=options.checkpoint, turned=options.turned
    )
    for path in written:
        say(f"wrote {path}")
    how = f"--ckpt {shlex.quote(str(options.out))}{' --tta' if flipped else ''}"
    say(f"as nnU-Net predicts by default: medseg predict {how} --input IMAGES --output LABELS")
    return 0


IMPORT = Command("make a checkpoint of a model that nnU-Net v2 trained", _options, _run)
