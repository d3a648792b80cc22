"""The plan's way from a file to the network and back, as MONAI transforms in a bundle's config."""

from __future__ import annotations

import math
from typing import Any

from medseg.export.model import Model
from medseg.plan.plan import Normalisation, Plan
from medseg.space.labels import Painting
from medseg.space.resample import through_plane_axis

Step = dict[str, Any]


def preprocessing(model: Model) -> list[Step]:
    """Read, turn, crop to the non-zero box, normalise, resample: what `medseg.plan.grid.to_plan_grid` does."""
    plan = model.plan
    return [
        _step("LoadImaged", reader="NibabelReader", image_only=True),
        _step("EnsureChannelFirstd"),
        _step("Orientationd", axcodes=plan.orientation, labels=[["L", "R"], ["P", "A"], ["I", "S"]]),
        _step("CropForegroundd", source_key="image", select_fn="$lambda image: image != 0", allow_smaller=False),
        *_normalisation(plan),
        *_resampling(plan),
        _step("EnsureTyped", dtype="$torch.float32"),
    ]


def postprocessing(model: Model) -> list[Step]:
    """Go back to the grid of the file with the logits, decide, clean, name the values as the dataset does, and save."""
    plan = model.plan
    values = plan.painted_classes
    dtype = "uint8" if plan.highest < 2**8 else "uint16" if plan.highest < 2**16 else "int32"
    return [
        _step("Invertd", "pred", transform="@preprocessing", orig_keys="image", nearest_interp=False, to_tensor=True),
        *(_exclusive(values) if plan.exclusive else _painted(plan.painting)),
        *(_cleaning(model.checkpoint.cleaning) if plan.exclusive else ()),
        _step(
            "SaveImaged",
            "pred",
            output_dir="@output_dir",
            output_postfix="seg",
            output_dtype=f"$numpy.{dtype}",
            resample=False,
            separate_folder=False,
        ),
    ]


def _step(name: str, keys: str = "image", **arguments: Any) -> Step:
    return {"_target_": name, "keys": keys, **arguments}


def _normalisation(plan: Plan) -> list[Step]:
    """One transform where all modalities are treated alike, else one per modality, taken apart and put together."""
    if len(set(plan.normalisation)) == 1:
        return _normalise(plan.normalisation[0], "image")
    parts = [f"image_{index}" for index in range(len(plan.modalities))]
    return [
        _step("SplitDimd", dim=0, keepdim=True, output_postfixes=[str(index) for index in range(len(parts))]),
        *[step for part, how in zip(parts, plan.normalisation, strict=True) for step in _normalise(how, part)],
        {"_target_": "ConcatItemsd", "keys": parts, "name": "image", "dim": 0},
        {"_target_": "DeleteItemsd", "keys": parts},
    ]


def _normalise(how: Normalisation, key: str) -> list[Step]:
    if how.scheme == "ct":
        low, high = ((bound - how.mean) / how.std for bound in (how.lower, how.upper))
        return [_step("ScaleIntensityRanged", key, a_min=how.lower, a_max=how.upper, b_min=low, b_max=high, clip=True)]
    if how.scheme in ("zscore", "zscore_nonzero"):
        return [_step("NormalizeIntensityd", key, nonzero=how.scheme == "zscore_nonzero", channel_wise=True)]
    return [_step("ScaleIntensityd", key, minv=0.0, maxv=1.0, channel_wise=True)] if how.scheme == "rescale" else []


def _resampling(plan: Plan) -> list[Step]:
    """Cubic, and where the plan's voxels are long, the nearest slice along their long axis."""
    spline: Step = {"mode": 3, "padding_mode": "nearest", "align_corners": True, "scale_extent": True}
    axis = through_plane_axis(plan.spacing_mm, plan.spacing_mm)
    if axis is None:
        return [_step("Spacingd", pixdim=list(plan.spacing_mm), **spline)]
    in_plane = [-1.0 if place == axis else edge for place, edge in enumerate(plan.spacing_mm)]
    through = [edge if place == axis else -1.0 for place, edge in enumerate(plan.spacing_mm)]
    nearest: Step = {"mode": "nearest", "padding_mode": "border", "align_corners": True, "scale_extent": True}
    return [_step("Spacingd", pixdim=in_plane, **spline), _step("Spacingd", pixdim=through, **nearest)]


def _exclusive(values: tuple[int, ...]) -> list[Step]:
    decided = [_step("AsDiscreted", "pred", argmax=True)]
    if values == tuple(range(len(values))):
        return decided
    return [*decided, _step("MapLabelValued", "pred", orig_labels=list(range(len(values))), target_labels=list(values))]


def _painted(painting: Painting) -> list[Step]:
    """Where a logit is above zero its organ is painted, later organs over earlier ones; then what that gets wrong."""
    paint = "lambda painted, organ: painted.masked_fill(organ[0][None] > 0, organ[1])"
    func = f"$lambda logits: functools.reduce({paint}, {{}}, torch.zeros_like(logits[:1]))"
    layers = f"zip(logits, {list(painting.order)})"
    if painting.exact:
        sets = [[index in members for index in range(len(painting.order))] for members in painting.exact]
        alike = "((logits > 0).movedim(0, -1) == torch.tensor(members, device=logits.device)).all(-1)"
        exact = f"(({alike}, value) for members, value in zip({sets}, {[*painting.exact.values()]}))"
        layers = f"itertools.chain({layers}, {exact})"
    return [_step("Lambdad", "pred", func=func.format(layers))]


def _cleaning(rules: list[dict[str, Any]]) -> list[Step]:
    """What `medseg choose-cleaning` decided, organ by organ in the order of their values."""
    steps = []
    for rule in sorted(rules, key=lambda rule: rule["value"]):
        labels = {"applied_labels": [rule["value"]]}
        if rule.get("largest_component"):
            steps.append(_step("KeepLargestConnectedComponentd", "pred", is_onehot=False, **labels))
        if rule.get("fill_holes"):
            steps.append(_step("FillHolesd", "pred", connectivity=1, **labels))
    return steps


def left_out(model: Model) -> bool:
    """Whether a rule has no counterpart among MONAI's transforms: a least volume for one organ, or regions."""
    rules = model.checkpoint.cleaning
    minima = (rule.get("minimum_mm3", 0.0) for rule in rules)
    return any(not math.isclose(least, 0.0) for least in minima) or bool(rules and not model.plan.exclusive)
