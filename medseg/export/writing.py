"""A checkpoint to a folder that other programs run, checked against PyTorch before it appears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg.checkpoints.checkpoint import Checkpoint
from medseg.errors import CheckpointError, DataError, UsageError, meant
from medseg.export.bundle import write_bundle
from medseg.export.folder import remarks, write_nnunet
from medseg.export.graph import write_onnx, write_program
from medseg.export.model import Model, facts, model_of, patches_of
from medseg.export.verdict import Verdict, compare
from medseg.machine.dotted import Trust
from medseg.machine.files import read_json, scratch, whole, write_json
from medseg.plan.plan import Plan, write_plan
from medseg.space.volume import Volume

FORMATS = {
    "onnx": "model.onnx for onnxruntime and whatever else reads ONNX",
    "pt2": "model.pt2 for torch.export.load, which replaces TorchScript",
    "monai-bundle": "a folder for python -m monai.bundle run",
    "nnunet": "a folder for nnUNetv2_predict_from_modelfolder",
}
FACTS = "medseg.json"


@dataclass(frozen=True)
class Exported:
    """What an export came to; the facts are the content of ``medseg.json``."""

    files: tuple[Path, ...]
    verdict: Verdict
    facts: dict[str, Any]


def export(
    checkpoint: Checkpoint, output: Path, *, form: str = "onnx", image: Volume | None = None, trust: Trust | None = None
) -> Exported:
    """Write the network of a checkpoint for other programs, and everything that its input and output mean.

    Beside the network stand ``plan.yaml`` and ``medseg.json``. Whatever is written was read back and run on patches
    first; nothing is left in the folder where that fails.

    Args:
        checkpoint: Of a run, with its tensors.
        output: Folder; other files in it are left alone, those of an earlier export replaced.
        form: A name of `FORMATS`.
        image: A real image to compare on; noise where not given.
        trust: The classes beyond medseg's own networks that the checkpoint may name.

    Raises:
        UsageError: There is no such format, or a package is missing.
        CheckpointError: The checkpoint is not ours, or its network cannot be exported or comes out different.
        DataError: The folder cannot be written, or the image does not fit.
    """
    if form not in FORMATS:
        raise UsageError(
            f"there is no export format {form!r}{meant(form, FORMATS)}", f"Choose one of {', '.join(FORMATS)}"
        )
    model = model_of(checkpoint, trust)
    patches = _patches(model, image)
    try:
        with scratch(output) as partial:
            model, run = _written(model, partial, form)
            verdict = compare(model, run, patches, what=form)
            known = facts(model) | {"format": form, "checked": verdict.to_dict()}
            known |= {"remarks": remarks(model)} if form == "nnunet" else {}
            write_json(partial / FACTS, known)
            write_plan(partial / "plan.yaml", model.plan)
            return Exported(_moved(partial, output), verdict, known)
    except OSError as error:
        raise DataError(
            output, f"cannot be written ({error.strerror})", "Free space or choose another --output"
        ) from None


def read_facts(folder: Path) -> dict[str, Any]:
    """What an exported network says of itself.

    Raises:
        DataError: The file is missing, or not what `export` wrote.
    """
    path = folder / FACTS
    try:
        known: dict[str, Any] = read_json(path)
        Plan.from_dict(known["plan"])
        _ = [f"{known[name]}" for name in ("format", "medseg", "network")], [*map(int, known["input"]["window"])]
        _ = float(known["checked"]["largest_difference"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(path, f"is not what medseg export wrote ({error})", "Export the checkpoint again") from None
    return known


def _patches(model: Model, image: Volume | None) -> Tensor:
    try:
        return patches_of(model, image)
    except ValueError as error:
        raise UsageError(
            f"the image to check on does not fit: {error}", "Give one as the network was trained on"
        ) from None


def _written(model: Model, folder: Path, form: str) -> tuple[Model, Callable[[Tensor], Tensor]]:
    """Write with free sizes, or where the network does not allow that, for its window alone."""
    if form == "monai-bundle":
        return model, write_bundle(model, facts(model), folder)
    if form == "nnunet":
        return model, write_nnunet(model, folder)
    write, name = {"onnx": (write_onnx, "model.onnx"), "pt2": (write_program, "model.pt2")}[form]
    try:
        return model, write(model, facts(model), folder / name)
    except CheckpointError:
        if not any(model.resizable):
            raise
        model = replace(model, fixed=True)
        return model, write(model, facts(model), folder / name)


def _moved(partial: Path, output: Path) -> tuple[Path, ...]:
    """Every file to its place, under its final name only when it is whole."""
    files = sorted(path.relative_to(partial) for path in partial.rglob("*") if path.is_file())
    for file in files:
        with whole(output / file) as place:
            (partial / file).rename(place)
    return tuple(output / file for file in files)
