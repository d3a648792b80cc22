"""A network as the entry of a MONAI config: its class and arguments, so that MONAI builds it without medseg."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any
from unittest import mock

from torch import Tensor, nn

from medseg.export.model import Model, innermost
from medseg.machine.typed import to_plain
from medseg.nets import NetSpec, build_net
from medseg.segmenter import net_spec

Definition = dict[str, Any]


def define(model: Model) -> tuple[Definition, dict[str, Tensor]]:
    """The definition of a network for MONAI's `ConfigParser`, and its weights under the names of that definition.

    A network of MONAI is defined by its own class, with the arguments that medseg gave it; plain instance
    normalisation takes the place of ours, which has the same weights. Any other is built by medseg, which must then be
    installed where the bundle runs.
    """
    inner = innermost(model.net)
    arguments = _constructor_arguments(model, type(inner)) if type(inner).__module__.startswith("monai.") else None
    if arguments is None or not _is_plain(arguments):
        return _by_medseg(model), model.net.state_dict()
    name = f"{type(inner).__module__}.{type(inner).__qualname__}"
    fresh: dict[str, Tensor] = type(inner)(**arguments).state_dict()  # some have weights that nothing uses and we drop
    return {"_target_": name, **to_plain(arguments)}, {**fresh, **inner.state_dict()}


def needs_medseg(definition: Definition) -> bool:
    """Whether medseg must be installed to build it."""
    return str(definition["_target_"]).startswith("medseg.")


def _constructor_arguments(model: Model, kind: type[nn.Module]) -> dict[str, Any] | None:
    """Build the network once more and note what its class was called with; None if it was not, or more than once."""
    signature, construct = inspect.signature(kind.__init__), kind.__init__
    calls: list[dict[str, Any]] = []

    def noted(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs).arguments
        calls.append({**{k: v for k, v in bound.items() if k not in ("self", "kwargs")}, **bound.get("kwargs", {})})
        construct(self, *args, **kwargs)

    with mock.patch.object(kind, "__init__", noted):
        build_net(model.checkpoint.net, net_spec(model.plan), model.checkpoint.knobs)
    return calls[0] if len(calls) == 1 else None


def _by_medseg(model: Model) -> Definition:
    spec = net_spec(model.plan)
    numbers = {field.name: getattr(spec, field.name) for field in fields(NetSpec)}
    written = {key: f"${value!r}" if isinstance(value, tuple) else value for key, value in numbers.items()}
    knobs = {key: value for key, value in model.checkpoint.knobs.items() if key != "deep_supervision"}
    target = {"_target_": "medseg.nets.build_net", "name": model.checkpoint.net}
    return {**target, "spec": {"_target_": "medseg.nets.NetSpec", **written}, "knobs": knobs}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
