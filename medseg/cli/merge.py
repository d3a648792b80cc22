"""``medseg merge``: several datasets in which different organs were drawn, as one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medseg.cli.command import Command, Options, say, show, workers_option
from medseg.errors import listed


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="folders with a dataset.json, or NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="folder for its dataset.json and merge.yaml")
    parser.add_argument(
        "--rename", nargs="+", default=[], metavar="OLD=NEW", help="unite organs by name, or SET:OLD=NEW in one set"
    )
    parser.add_argument(
        "--yaml", type=Path, metavar="FILE", help="follow the decisions that an earlier merge has written"
    )
    parser.add_argument(
        "--accept",
        nargs="+",
        default=[],
        metavar="KIND",
        help="go on in spite of such findings",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="write merge.yaml alone, and say what would become of it"
    )
    workers_option(parser)


def _merge(options: Options) -> int:
    from medseg.merge.merge import CHOICES, plan_merge, write_merge

    merged = plan_merge(
        options.datasets,
        options.out,
        yaml=options.yaml,
        renames=options.rename,
        accept=options.accept,
        workers=options.workers,
    )
    written = write_merge(merged, dry_run=options.dry_run)
    show(merged.table())
    follow = f"medseg merge --yaml {options.out / CHOICES} --out {options.out}"
    if written:
        say(f"{options.out / 'dataset.json'} is one dataset of {len(merged.evidence.choices.sets)}; no file was copied")
    elif merged.stopping:
        kinds = listed(dict.fromkeys(finding.kind for finding in merged.stopping))
        sys.stderr.write(f"medseg: not merged, for {kinds}. Mend it, edit {options.out / CHOICES}, or accept it: "
                         f"{follow} --accept {kinds.replace(',', '')}.\n")  # fmt: skip
        return 1
    else:
        say(f"nothing but {options.out / CHOICES} was written; edit it, then: {follow}")
    return 0


MERGE = Command("make one dataset of several in which different organs were drawn", _options, _merge)
