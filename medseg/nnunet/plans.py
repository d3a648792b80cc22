"""nnU-Net's plans and dataset.json, said in medseg's plan; what medseg cannot do as nnU-Net does is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from medseg.errors import DataError, listed
from medseg.nnunet.architecture import Architecture, architecture_of, triple
from medseg.nnunet.folder import ModelFolder
from medseg.plan.plan import Normalisation, Plan
from medseg.space.labels import LabelValue

STORED = "kji"
"""The axes in which ITK hands over a file, and nibabel once nnU-Net has turned it around."""
TURNED = "SAR"
"""The same of a volume that was turned to RAS before."""
READERS = {
    "SimpleITKIO": STORED,
    "NibabelIO": STORED,
    "NaturalImage2DIO": STORED,
    "SimpleITKIOWithReorient": TURNED,
    "NibabelIOWithReorient": TURNED,
}
"""nnU-Net's reader -> the order of axes that its networks see before ``transpose_forward``."""
RESAMPLING = {
    "resampling_fn_data": {"order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": {"order": 1, "order_z": 0, "force_separate_z": None},
}
RESAMPLER = "resample_data_or_seg_to_shape"
ANOTHER = "Predict with nnU-Net itself"

_OWN_PARTS = {"preprocessor_name": "DefaultPreprocessor", "label_manager": "LabelManager"}
"""Entry of the plans or of a configuration -> the class of nnU-Net's whose work medseg does as well."""
_BYTE = 255.0


def settled(model: ModelFolder, name: str) -> dict[str, Any]:
    """A configuration of the plans, with what it inherits.

    Raises:
        DataError: There is none of this name, it needs another network's output, or resamples in a way of its own.
    """
    known: Mapping[str, Any] = model.plans["configurations"]
    found: dict[str, Any] = {}
    heirs: list[str] = []
    while name:
        if name in heirs or not isinstance(known.get(name), dict):
            problem = f"has no configuration {name!r} in its plans, but {listed(known)}"
            raise DataError(model.path, problem, "Give the plans that the model was trained with")
        heirs.append(name)
        found = {**known[name], **found}
        name = str(known[name].get("inherits_from") or "")
    if found.get("previous_stage"):
        problem = f"is the second stage of a cascade: it needs the labels of {found['previous_stage']}, which medseg"
        raise DataError(model.path, f"{problem} does not hand on", "Import that stage instead, or its 3d_fullres")
    for key, own in _OWN_PARTS.items():
        given = found.get(key, model.plans.get(key, own))
        if given != own:
            raise DataError(model.path, f"works with a {given} ({key}), which medseg has no counterpart of", ANOTHER)
    for key, wanted in RESAMPLING.items():
        options = {**wanted, **(found.get(f"{key}_kwargs") or {})}
        if found.get(key, RESAMPLER) != RESAMPLER or any(options[name] != wanted[name] for name in wanted):
            problem = f"resamples by {found.get(key)} with {options}, medseg by {RESAMPLER} with {wanted}"
            raise DataError(model.path, problem, ANOTHER)
    return found


def read_plan(model: ModelFolder, name: str, mirror_axes: tuple[int, ...]) -> tuple[Plan, Architecture]:
    """The plan of a configuration, and its network.

    A configuration in two dimensions becomes one of slices: patches one voxel thick, along whose first axis each case
    keeps its own spacing.

    Args:
        model: Plans and dataset.
        name: Of the configuration.
        mirror_axes: Of the trained network, by the axes of its patches.

    Raises:
        DataError: Something is missing, or is not what medseg can do.
    """
    try:
        return _plan(model, settled(model, name), mirror_axes)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        told = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        problem = f"has plans or a dataset.json that cannot be followed ({told})"
        raise DataError(model.path, problem, "Copy the model again") from None


def organs_of(dataset: Mapping[str, Any]) -> list[str] | None:
    """The organs of a dataset.json in the order of the network's outputs; None where it cannot be followed."""
    try:
        return [*_labels(dataset)[0]]
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def modalities_of(dataset: Mapping[str, Any]) -> list[str] | None:
    """The modalities of a dataset.json in the order of the channels; None where it cannot be followed."""
    try:
        return _channels(dataset)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _channels(dataset: Mapping[str, Any]) -> list[str]:
    channels = dataset.get("channel_names") or dataset["modality"]
    return [str(channels[key]) for key in sorted(channels, key=int)]


def _plan(model: ModelFolder, found: Mapping[str, Any], mirror_axes: tuple[int, ...]) -> tuple[Plan, Architecture]:
    plans, dataset = model.plans, model.dataset
    flat = len(found["patch_size"]) == 2
    network = architecture_of(model.path, found)
    modalities = tuple(_channels(dataset))
    labels, order = _labels(dataset)
    spacing = [float(step) for step in found["spacing"]]
    if flat:
        spacing = [float(plans["original_median_spacing_after_transp"][0]), *spacing]
    plan = Plan(
        name=str(plans["dataset_name"]),
        modalities=modalities,
        labels=labels,
        orientation=_axes(model),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        patch_size=triple(found["patch_size"], len(found["patch_size"])),
        batch_size=int(found["batch_size"]),
        normalisation=tuple(
            _normalisation(model, found, index, plain) for index, plain in enumerate(found["normalization_schemes"])
        ),
        strides=network.strides,
        kernels=network.kernels,
        features=network.features,
        ignore=dataset["labels"].get("ignore"),
        paint_order=order,
        mirror_axes=tuple(axis + flat for axis in mirror_axes),
        own_spacing=(0,) * flat,
        independent=order is not None,
        reasons=_reasons(model, flat=flat),
    )
    return plan, network


def _labels(dataset: Mapping[str, Any]) -> tuple[dict[str, LabelValue], tuple[int, ...] | None]:
    """Organs in the order of the network's outputs, and for regions the values that they are painted with."""
    named = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    lists = {name: sorted({int(one) for one in _several(value)}) for name, value in named.items()}
    foreground = {name: values for name, values in lists.items() if values != [0]}
    if any(isinstance(value, list) and len(value) > 1 for value in named.values()):
        order = tuple(int(value) for value in dataset["regions_class_order"])
        return {name: tuple(values) for name, values in foreground.items()}, order
    ordered = sorted(foreground.items(), key=lambda item: item[1])
    return {name: values[0] for name, values in ordered}, None


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _axes(model: ModelFolder) -> str:
    reader = str(model.plans.get("image_reader_writer"))
    if reader not in READERS:
        raise DataError(model.path, f"reads its images by {reader}, which medseg has no counterpart of", ANOTHER)
    order = TURNED if model.turned else READERS[reader]
    return "".join(order[axis] for axis in model.plans["transpose_forward"])


def _normalisation(model: ModelFolder, found: Mapping[str, Any], index: int, name: str) -> Normalisation:
    """How nnU-Net normalises one channel."""
    if name not in _SCHEMES:
        raise DataError(model.path, f"normalises by {name}, which medseg has no counterpart of", ANOTHER)
    plans = model.plans
    measured = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    return _SCHEMES[name](bool(found["use_mask_for_norm"][index]), measured.get(str(index), {}))


def _ct(masked: bool, measured: Mapping[str, Any]) -> Normalisation:
    edges = (measured[key] for key in ("percentile_00_5", "percentile_99_5", "mean", "std"))
    return Normalisation("ct", *map(float, edges))


_SCHEMES: dict[str, Callable[[bool, Mapping[str, Any]], Normalisation]] = {
    "CTNormalization": _ct,
    "ZScoreNormalization": lambda masked, _: Normalisation("zscore_nonzero" if masked else "zscore"),
    "NoNormalization": lambda masked, _: Normalisation("none"),
    "RescaleTo01Normalization": lambda masked, _: Normalisation("rescale"),
    "RGBTo01Normalization": lambda masked, _: Normalisation("ct", 0.0, _BYTE, 0.0, _BYTE),
}


def _reasons(model: ModelFolder, *, flat: bool) -> dict[str, str]:
    source = f"As in nnU-Net's {model.plans.get('plans_name', 'plans')}"
    kept = {"own_spacing": "A network of slices: along this axis nothing is resampled."} if flat else {}
    return {
        **kept,
        "orientation": f"{source}: the axes of the network, named by those of the file where these are not turned.",
        "spacing_mm": f"{source}.",
        "patch_size": f"{source}.",
        "normalisation": f"{source}.",
    }
