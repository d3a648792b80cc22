"""The table of networks: a name, a function that builds it, the knobs it takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter
from typing import get_type_hints

from torch import nn

from medseg.errors import UsageError, meant
from medseg.machine.dotted import named
from medseg.machine.typed import typed
from medseg.nets.padding import PadToMultiple, times

Triple = tuple[int, int, int]
Knob = int | float | str | bool | list[int] | list[float] | None


@dataclass(frozen=True)
class NetSpec:
    """What a plan decides about a network, as plain numbers.

    Attributes:
        in_channels: Modalities.
        out_channels: Classes, background included unless the labels overlap.
        patch_size: Voxels per axis of a training patch.
        strides: Per stage, the down-sampling along i, j, k; the first is (1, 1, 1).
        kernels: Per stage, the convolution kernel; 1 along an axis that is still too coarse to mix.
        features: Per stage, the channels.
    """

    in_channels: int
    out_channels: int
    patch_size: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    features: tuple[int, ...]

    @property
    def multiple(self) -> Triple:
        """Per axis, what the input size must be a multiple of: the product of the strides."""
        i, j, k = 1, 1, 1
        for stride in self.strides:
            i, j, k = i * stride[0], j * stride[1], k * stride[2]
        return i, j, k

    def reshaped(self, fewest_stages: int, features: list[int] | None) -> NetSpec:
        """These numbers with other channels, where given, and for tiny volumes with stages added: deeper, not coarser.

        Channels beyond the last stage are left out; where there are too few, the last number goes on.
        """
        missing = max(0, fewest_stages - len(self.strides))
        stages = len(self.strides) + missing
        widths = [*(features or self.features)][:stages]
        return replace(
            self,
            strides=(*self.strides, *[(1, 1, 1)] * missing),
            kernels=(*self.kernels, *[(3, 3, 3)] * missing),
            features=(*widths, *widths[-1:] * (stages - len(widths))),
        )

    def require_context(self, net: str, multiple: Triple) -> None:
        """Refuse a patch of which the network's deepest stage would see a single voxel: nothing is left to normalise.

        Raises:
            UsageError: The patch is too small for so many halvings.
        """
        if math.prod(-(-n // m) for n, m in zip(self.patch_size, multiple, strict=True)) == 1:
            raise UsageError(
                f"{net} reduces its input by {times(multiple)}, which leaves one voxel of the patch of "
                f"{times(self.patch_size)}",
                f"Plan patches of more than {min(multiple)} voxels along an axis, or take a network that follows the "
                "plan, such as unet",
            )


Builder = Callable[..., nn.Module]
NETS: dict[str, Builder] = {}


def net(builder: Builder) -> Builder:
    """File a builder ``f(spec, *, knob=default, ...)`` under its own name."""
    NETS[builder.__name__] = builder
    return builder


def list_nets() -> list[str]:
    """The names that `build_net` knows."""
    return sorted(NETS)


def deeply_supervised_nets() -> list[str]:
    """The names that take the knob ``deep_supervision``."""
    return [name for name in list_nets() if "deep_supervision" in inspect.signature(NETS[name]).parameters]


def build_net(name: str, spec: NetSpec, knobs: Mapping[str, Knob] | None = None) -> nn.Module:
    """Build a network that maps ``(b, m, i, j, k)`` to logits ``(b, c, i, j, k)`` for any input size.

    With the knob ``deep_supervision``, where a network has it, the network returns in training a tuple of logits, full
    resolution first, then each coarser level on its own grid; see `medseg.nets.padding.PadToMultiple` for how the
    levels lie on the labels.

    Args:
        name: A name of `list_nets`, or the dotted path of any ``nn.Module`` class, which is then called with
            ``in_channels``, ``out_channels`` and the knobs.
        spec: The numbers of the plan.
        knobs: Options of that network; the plan's numbers where not given.

    Raises:
        UsageError: The name or a knob is unknown, and the nearest legal one is proposed; or the network cannot work on
            such patches.

    Example:
        >>> spec = NetSpec(1, 3, (16, 16, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (8, 16))
        >>> sum(p.numel() for p in build_net("unet", spec).parameters()) > 0
        True
    """
    chosen = dict(knobs or {})
    if name in NETS:
        _check_knobs(name, NETS[name], chosen)
        build = partial(NETS[name], spec)
    elif "." in name:
        factory = named(name, nn.Module, option="model.net")
        build = partial(factory, in_channels=spec.in_channels, out_channels=spec.out_channels)
    else:
        raise UsageError(
            f"there is no network {name!r}{meant(name, list_nets())}",
            f"Choose one of {', '.join(list_nets())}, or the dotted path of an nn.Module class",
        )
    try:
        network = build(**chosen)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:  # of torch and MONAI
        told = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{name} cannot be built with {chosen} ({told})", "Correct net_options") from None
    return network if name in NETS else PadToMultiple(network, spec.multiple)


def _check_knobs(name: str, builder: Builder, knobs: Mapping[str, Knob]) -> None:
    legal = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for knob in knobs:
        if knob == "deep_supervision" and knob not in legal:
            raise UsageError(
                f"network {name!r} has no deep supervision",
                f"Those that have are {', '.join(deeply_supervised_nets())}",
            )
        if knob not in legal:
            problem = f"network {name!r} has no knob {knob!r}{meant(knob, legal)}"
            raise UsageError(problem, f"Its knobs are {', '.join(legal) or 'none'}")
        _check_value(name, inspect.signature(builder).parameters[knob], knobs[knob])


def _check_value(name: str, knob: Parameter, value: Knob) -> None:
    """A value is of the knob's type, and sizes are numbers from 1 up."""
    hint = get_type_hints(NETS[name])[knob.name]
    try:
        found = typed(value, hint)
    except ValueError as error:
        raise UsageError(f"the knob {knob.name} of {name}: {error}", "Correct net_options") from None
    sizes = found if isinstance(found, list) else [found]
    if value != knob.default and "int" in str(hint) and not (sizes and all(size >= 1 for size in sizes)):
        raise UsageError(
            f"the knob {knob.name} of {name} needs numbers from 1 up, got {value!r}", "Correct net_options"
        )
