"""nnU-Net's networks and their counterparts here: which network, which knobs, and which weight is called what."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from re import Match
from typing import Any

from torch import Tensor

from medseg.errors import DataError
from medseg.plan.plan import Triple

NETS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual_encoder_unet"}
"""nnU-Net's class -> the network of ours that computes the same."""
CONVOLUTIONS = {"unet": ("n_conv_per_stage", 2, 2), "residual_encoder_unet": ("n_blocks_per_stage", None, 1)}
"""Network -> nnU-Net's name of what its encoder repeats, how often ours does (None: as often), and in the decoder."""

_REMEDY = "Predict with nnU-Net itself"


@dataclass(frozen=True)
class Architecture:
    """A network of nnU-Net's, as one of ours.

    Attributes:
        net: Its name here.
        knobs: Its options.
        strides: Per stage.
        kernels: Per stage.
        features: Per stage.
    """

    net: str
    knobs: dict[str, Any]
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    features: tuple[int, ...]


def architecture_of(path: Path, configuration: Mapping[str, Any]) -> Architecture:
    """The network of a configuration of the plans, of their older layout too.

    Raises:
        DataError: It has no counterpart here; the sentence says what is missing.
        KeyError: The plans lack an entry.
        ValueError: An entry is something else than it should be.
    """
    told = configuration.get("architecture") or _older(configuration)
    kind = str(told["network_class_name"]).rpartition(".")[2]
    if kind not in NETS:
        problem = f"has a network {kind}, of which medseg has no counterpart (only of {' and '.join(NETS)})"
        raise DataError(path, problem, _REMEDY)
    kwargs, net = told["arch_kwargs"], NETS[kind]
    stages, axes = int(kwargs["n_stages"]), len(configuration["patch_size"])
    counted, encoder, decoder = CONVOLUTIONS[net]
    blocks = _per_stage(kwargs[counted], stages)
    _require_plain(path, kwargs, stages)
    _require_same(path, counted, blocks, encoder)
    _require_same(path, "n_conv_per_stage_decoder", _per_stage(kwargs["n_conv_per_stage_decoder"], stages - 1), decoder)
    knobs: dict[str, Any] = {"upsampling_bias": bool(kwargs.get("conv_bias", False))}
    knobs |= {"level_kernels": True} if encoder else {"blocks": blocks}
    return Architecture(
        net=net,
        knobs=knobs,
        strides=tuple(triple(one, axes) for one in _per_stage(kwargs["strides"], stages)),
        kernels=tuple(triple(one, axes) for one in _per_stage(kwargs["kernel_sizes"], stages)),
        features=tuple(_per_stage(kwargs["features_per_stage"], stages)),
    )


def counterpart(name: str, stages: int, theirs: int | None = None) -> str | None:
    """What nnU-Net calls a weight of our network; None where it has none.

    Args:
        name: Ours, with or without the wrappings around the network.
        stages: Of our network.
        theirs: Stages of nnU-Net's, where they differ: levels are then matched from the finest on.

    Example:
        >>> counterpart("net.downsamples.0.conv2.conv.weight", 5)
        'encoder.stages.1.0.convs.1.conv.weight'
        >>> counterpart("net.net.heads.0.bias", 5), counterpart("head.bias", 5), counterpart("upsamplers.0.bias", 5, 6)
        ('decoder.seg_layers.2.bias', 'decoder.seg_layers.3.bias', 'decoder.transpconvs.1.bias')
    """
    core = re.sub(r"^(net\.)+", "", name)
    sizes = _Sizes(stages, theirs or stages)
    for pattern, build in _NAMES:
        found = re.fullmatch(pattern, core)
        if found:
            return build(found, sizes)
    return None


def as_ours(weight: Tensor) -> Tensor:
    """The weight of a convolution over slices as one over volumes that are one voxel thick."""
    return weight.unsqueeze(2) if weight.ndim == 4 else weight


def is_left_out(name: str) -> bool:
    """Whether nnU-Net's weight is another name of one, a bias that the norm behind it takes away, or a coarse head.

    Example:
        >>> is_left_out("encoder.stages.0.0.convs.1.conv.bias"), is_left_out("decoder.transpconvs.1.bias")
        (True, False)
    """
    doubles = ".all_modules." in name or name.startswith("decoder.encoder.")
    return doubles or name.endswith(".conv.bias") or name.startswith("decoder.seg_layers.")


def triple(value: Any, axes: int) -> Triple:
    """A number per axis of volumes: one is for all, and slices are one voxel thick."""
    numbers = [*value] if isinstance(value, list | tuple) else [value] * axes
    i, j, k = (1, *numbers) if axes == 2 else numbers
    return int(i), int(j), int(k)


@dataclass(frozen=True)
class _Sizes:
    stages: int
    theirs: int

    def decoder(self, index: str) -> int:
        """Place of a step of our decoder, counted from the bottleneck, in theirs."""
        return int(index) + self.theirs - self.stages

    def head(self, level: int) -> int:
        """Place of the outputs of a level, counted from the finest."""
        return self.theirs - 2 - level


def _conv(found: Match[str]) -> str:
    return f"{found['kind']}.{found['what']}"


def _plain_encoder(stage: Callable[[Match[str], _Sizes], int]) -> Callable[[Match[str], _Sizes], str]:
    def build(found: Match[str], sizes: _Sizes) -> str:
        return f"encoder.stages.{stage(found, sizes)}.0.convs.{int(found['n']) - 1}.{_conv(found)}"

    return build


def _residual(found: Match[str], part: str, place: str) -> str:
    kind = ("conv", "norm")[int(place)]
    return f"encoder.stages.{found['s']}.blocks.{found['b']}.{part}.{kind}.{found['what']}"


_WHAT = r"(?P<what>weight|bias)"
_PART = rf"(?P<kind>conv|norm)(?P<n>\d)\.(?:conv\.)?{_WHAT}"
_KINDS = ("conv", "norm")
_NAMES: tuple[tuple[str, Callable[[Match[str], _Sizes], str]], ...] = (
    (rf"input_block\.{_PART}", _plain_encoder(lambda found, sizes: 0)),
    (rf"downsamples\.(?P<s>\d+)\.{_PART}", _plain_encoder(lambda found, sizes: int(found["s"]) + 1)),
    (rf"bottleneck\.{_PART}", _plain_encoder(lambda found, sizes: sizes.stages - 1)),
    (
        rf"(?:upsamples\.(?P<s>\d+)\.transp_conv\.conv|upsamplers\.(?P<r>\d+))\.{_WHAT}",
        lambda found, sizes: f"decoder.transpconvs.{sizes.decoder(found['s'] or found['r'])}.{found['what']}",
    ),
    (
        rf"upsamples\.(?P<s>\d+)\.conv_block\.{_PART}",
        lambda found, sizes: f"decoder.stages.{sizes.decoder(found['s'])}.convs.{int(found['n']) - 1}.{_conv(found)}",
    ),
    (
        rf"decoder\.(?P<s>\d+)\.(?P<k>\d)\.{_WHAT}",
        lambda found, sizes: (
            f"decoder.stages.{sizes.decoder(found['s'])}.convs.0.{_KINDS[int(found['k'])]}.{found['what']}"
        ),
    ),
    (
        rf"(?:output_block\.conv\.conv|head)\.{_WHAT}",
        lambda found, sizes: f"decoder.seg_layers.{sizes.head(0)}.{found['what']}",
    ),
    (
        rf"heads\.(?P<s>\d+)\.{_WHAT}",
        lambda found, sizes: f"decoder.seg_layers.{sizes.head(int(found['s']) + 1)}.{found['what']}",
    ),
    (
        rf"stem\.(?P<k>\d)\.{_WHAT}",
        lambda found, sizes: f"encoder.stem.convs.0.{_KINDS[int(found['k'])]}.{found['what']}",
    ),
    (
        rf"encoder\.(?P<s>\d+)\.(?P<b>\d+)\.(?P<n>first|second)\.(?P<k>\d)\.{_WHAT}",
        lambda found, sizes: _residual(found, {"first": "conv1", "second": "conv2"}[found["n"]], found["k"]),
    ),
    (
        rf"encoder\.(?P<s>\d+)\.(?P<b>\d+)\.short_cut\.(?P<n>\d)\.(?P<k>\d)\.{_WHAT}",
        lambda found, sizes: _residual(found, f"skip.{found['n']}", found["k"]),
    ),
)
"""Pattern of our name -> how nnU-Net's is built from it."""


def _older(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The entry ``architecture`` of plans that were written before there was one."""
    kind = str(configuration["UNet_class_name"])
    counts = configuration["n_conv_per_stage_encoder"]
    base, most = int(configuration["UNet_base_num_features"]), int(configuration["unet_max_num_features"])
    encoder = CONVOLUTIONS[NETS[kind]][0] if kind in NETS else "n_conv_per_stage"
    return {
        "network_class_name": kind,
        "arch_kwargs": {
            "n_stages": len(counts),
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(counts))],
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            encoder: counts,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
            "conv_bias": True,
        },
    }


def _require_plain(path: Path, kwargs: Mapping[str, Any], stages: int) -> None:
    """Instance normalisation, leaky ReLU, nothing dropped: what our counterparts are made of."""
    features = _per_stage(kwargs["features_per_stage"], stages)
    norm, activation = kwargs.get("norm_op_kwargs") or {}, kwargs.get("nonlin_kwargs") or {}
    expected = {
        "norm_op": str(kwargs.get("norm_op", "InstanceNorm3d")).rpartition(".")[2][:12] == "InstanceNorm",
        "norm_op_kwargs": norm.get("affine", True) is True and norm.get("eps", 1e-5) == 1e-5,
        "dropout_op": kwargs.get("dropout_op") is None,
        "nonlin": str(kwargs.get("nonlin", "LeakyReLU")).rpartition(".")[2] == "LeakyReLU",
        "nonlin_kwargs": activation.get("negative_slope", 0.01) == 0.01,
        "nonlin_first": not kwargs.get("nonlin_first", False),
        "block": str(kwargs.get("block", "BasicBlockD")).rpartition(".")[2] == "BasicBlockD",
        "bottleneck_channels": kwargs.get("bottleneck_channels") is None,
        "stem_channels": kwargs.get("stem_channels") in (None, features[0]),
    }
    for name, fits in expected.items():
        if not fits:
            problem = f"has a network with {name} {kwargs[name]!r}, of which medseg has no counterpart"
            raise DataError(path, problem, _REMEDY)


def _require_same(path: Path, name: str, counts: list[Any], ours: int | None) -> None:
    if ours is not None and set(counts) - {ours}:
        raise DataError(path, f"has {name} {counts}, medseg's counterpart has {ours} everywhere", _REMEDY)


def _per_stage(value: Any, stages: int) -> list[Any]:
    """One entry per stage."""
    found = [*value] if isinstance(value, list | tuple) else [value] * stages
    if len(found) != stages:
        raise ValueError(f"{found} has {len(found)} entries for {stages} stages")
    return found
