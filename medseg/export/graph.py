"""One file with the network as a graph, which runs without medseg: ONNX, or a program of `torch.export`."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from medseg.errors import CheckpointError, UsageError
from medseg.export.model import Model

AXES = ("i", "j", "k")
_REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError)


def write_onnx(model: Model, facts: dict[str, Any], path: Path) -> Callable[[Tensor], Tensor]:
    """Write ``model.onnx`` with the facts as JSON in its metadata under ``medseg``.

    The batch is of any size; so are, by multiples of the network's strides, those axes that `Model.resizable` names.

    Returns:
        What runs the written file, in onnxruntime.

    Raises:
        UsageError: onnx, onnxscript or onnxruntime is not installed.
        CheckpointError: The network cannot be exported.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    import onnx
    import onnxruntime

    image, sizes = example(model)
    with _explained(model.checkpoint.path, "ONNX"):
        program = torch.onnx.export(
            model.net,
            (image,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(sizes,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise CheckpointError(
            model.checkpoint.path, "holds a network that came out of ONNX empty", "Choose another --format"
        )
    program.model.metadata_props["medseg"] = json.dumps(facts)
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda patches: torch.from_numpy(session.run(["logits"], {"image": patches.numpy()})[0])


def write_program(model: Model, facts: dict[str, Any], path: Path) -> Callable[[Tensor], Tensor]:
    """Write ``model.pt2``, a program of `torch.export`, with the facts in its extra file ``medseg.json``.

    PyTorch deprecates TorchScript in its favour.

    Returns:
        What runs the written file.

    Raises:
        CheckpointError: The network cannot be exported.
    """
    image, sizes = example(model)
    with _explained(model.checkpoint.path, "torch.export"):
        program = torch.export.export(model.net, (image,), dynamic_shapes=(sizes,))
        torch.export.save(program, path, extra_files={"medseg.json": json.dumps(facts)})
        run: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return run


def example(model: Model) -> tuple[Tensor, dict[int, Any]]:
    """An input to trace with, and which of its axes stay free.

    It is no tile: every free axis has another number of steps, so that no two sizes agree by chance and are taken for
    one.
    """
    sizes: dict[int, Any] = {0: Dim("batch")}
    extents = list(model.window)
    for axis, (name, step, free) in enumerate(zip(AXES, model.multiple, model.resizable, strict=True)):
        if free:
            extents[axis] = (3 + axis) * step
            sizes[axis + 2] = step * Dim(f"{name}_steps") if step > 1 else Dim(name, min=2)
    return torch.zeros(2, len(model.plan.modalities), *extents), sizes


@contextmanager
def _explained(checkpoint: Path, what: str) -> Iterator[None]:
    """Quiet while the network is traced; a sentence where that fails."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxscript tells every step of its optimisation
    try:
        with warnings.catch_warnings(), torch.no_grad(), redirect_stderr(io.StringIO()):  # a failure prints its graph
            warnings.simplefilter("ignore")  # on torch's own inner workings
            yield
    except _REFUSALS as error:
        causes = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        reason = causes[0] if causes else type(error).__name__
        raise CheckpointError(
            checkpoint,
            f"holds a network that {what} cannot express ({reason})",
            "Choose another --format, or train one of medseg's own networks",
        ) from None
    finally:
        logging.disable(level)


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UsageError(f"export to ONNX needs {', '.join(missing)}", "Run pip install 'medseg[export]'")
