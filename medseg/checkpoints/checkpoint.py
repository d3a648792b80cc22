"""A checkpoint as a type: the only file that knows what is in one, under which names, and what it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medseg.checkpoints.plain import not_plain, require_plain
from medseg.errors import CheckpointError
from medseg.plan.plan import Plan

WEIGHTS = "state_dict"
_NET = "net."
_ANOTHER = "Use a checkpoint that medseg wrote"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training as it was kept, its content checked.

    Attributes:
        path: Its file.
        content: All that is in it: plain data, and tensors (or where they were not read, what stands for them).
        digest: The content's name: copies share it, a retrained one has another; empty where it was not read.
    """

    path: Path
    content: Mapping[str, Any]
    digest: str = ""

    @cached_property
    def plan(self) -> Plan:
        """What the network was trained for.

        Raises:
            CheckpointError: It is none that this version understands.
        """
        try:
            return Plan.from_dict(self.options["plan"])
        except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
            problem = f"holds no plan that this version of medseg understands ({error})"
            raise CheckpointError(self.path, problem, "Start from its weights with --model.init_from") from None

    @property
    def options(self) -> Mapping[str, Any]:
        """What the task was built with, by argument."""
        return _mapping(self.content["hyper_parameters"])

    @property
    def net(self) -> str:
        """The name of the network, or the dotted path of its class."""
        return str(self.options["net"])

    @property
    def knobs(self) -> dict[str, Any]:
        """What the network was built with."""
        supervised = {"deep_supervision": True} if self.options["deep_supervision"] else {}
        return {**(self.options["net_options"] or {}), **supervised}

    @property
    def state(self) -> Mapping[str, Any]:
        """All weights of the task, those of its loss too, by their names."""
        return _mapping(self.content[WEIGHTS])

    @property
    def weights(self) -> dict[str, Any]:
        """The network's, by their names within it; averages where they were averaged."""
        return {name.removeprefix(_NET): weight for name, weight in self.state.items() if name.startswith(_NET)}

    @property
    def signature(self) -> Mapping[str, Any]:
        """What medseg says of it: ``version``, ``torch``, ``scores``, and where known ``peak_gib``."""
        return _mapping(self.content["medseg"])

    @property
    def scores(self) -> dict[str, float]:
        """The last validation's, by name."""
        return dict(self.signature.get("scores", {}))

    @property
    def counted(self) -> dict[str, list[float]]:
        """Of the numbers behind words for class weights those that were counted, by word; all where it does not say."""
        told = self.options.get("class_weights") or {}
        return {word: numbers for word, numbers in told.items() if word in self.options.get("counted", told)}

    @property
    def loops(self) -> dict[str, Any]:
        """Where Lightning's loops are, which the content itself holds."""
        return self.content["loops"]  # type: ignore[no-any-return]  # Lightning's

    @property
    def cleaning(self) -> list[dict[str, Any]]:
        """The rules of `medseg choose-cleaning`, as plain data."""
        return [*self.signature.get("cleaning", ())]

    @property
    def flips(self) -> tuple[int, ...] | None:
        """The axes along which training flipped patches; None where it does not say."""
        told = self.signature.get("flips")
        return None if told is None else tuple(told)

    @property
    def as_nnunet(self) -> bool:
        """Whether it predicts as nnU-Net does: its weights of windows, and logits averaged, not probabilities."""
        return bool(self.signature.get("as_nnunet", False))

    @property
    def config(self) -> dict[str, Any]:
        """The config of the training by dotted key; empty where it does not say."""
        return dict(self.origin.get("config", {}).get("values", {}))

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where it comes from, as `medseg.checkpoints.origin.origin` tells; empty where it does not say."""
        return _mapping(self.content.get("origin", {}))

    @property
    def cases(self) -> set[str]:
        """Letters of all cases of its store, as `medseg.store.identity.identity` tells; empty where it does not say."""
        return set(self.origin.get("data", {}).get("cases", ()))

    @property
    def trained_on(self) -> set[str]:
        """Traces of the cases that it was trained on, as `medseg.store.identity.traces` tells; empty if unknown."""
        return traces_of(self.content)

    @property
    def steps(self) -> int:
        """Optimization steps behind it; 0 where it does not say."""
        return int(self.content.get("global_step", 0))

    @property
    def epochs(self) -> int:
        """Epochs begun."""
        return int(self.content.get("epoch", -1)) + 1

    def with_cleaning(self, rules: list[dict[str, Any]]) -> dict[str, Any]:
        """The content with other cleaning rules."""
        return {**self.content, "medseg": {**self.signature, "cleaning": rules}}

    def require_resumable(self) -> None:
        """Refuse one that a training cannot go on from.

        Raises:
            CheckpointError: It lacks something.
        """
        found = {name: self.content.get(name) for name in _TO_GO_ON}
        lacking = [name for name, kind in _TO_GO_ON.items() if not isinstance(found[name], kind) or found[name] == []]
        remedy = "Go on from another one, or start from its weights with --model.init_from"
        if lacking:
            raise CheckpointError(self.path, f"lacks {', '.join(lacking)}, which a training needs to go on", remedy)
        for place, count in _counts(found["loops"], "loops"):
            if type(count) is not int:
                raise CheckpointError(self.path, f"has {count!r} for {place}, which is a number of steps", remedy)

    def require_same_training(self, plan: Plan, optimizer: str | None) -> None:
        """Refuse other labels or channels, or, where it is to be trained further, another optimizer.

        Raises:
            CheckpointError: It is of another.
        """
        for key in ("labels", "modalities"):
            theirs, ours = getattr(self.plan, key), getattr(plan, key)
            if theirs != ours:
                raise CheckpointError(
                    self.path,
                    f"was trained on the {key} {', '.join(theirs)}, the store has {', '.join(ours)}",
                    "To fine-tune on others, give it as --model.init_from instead",
                )
        theirs = self.options.get("optimizer", optimizer)
        if optimizer is not None and theirs != optimizer:
            raise CheckpointError(
                self.path,
                f"holds the state of the optimizer {theirs}, the config asks for {optimizer}",
                "Keep the optimizer, or start from its weights with --model.init_from",
            )


def require_ours(path: Path, content: Any) -> dict[str, Any]:
    """What was read from a file, if it is a checkpoint of medseg at all: its weights may be taken.

    Raises:
        CheckpointError: It is not.
    """
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("medseg", WEIGHTS)):
        raise CheckpointError(path, "was not written by medseg", "Use a checkpoint of a medseg run")
    if not all(isinstance(name, str) and hasattr(weight, "shape") for name, weight in content[WEIGHTS].items()):
        raise CheckpointError(path, f"has a {WEIGHTS} that is not made of named tensors", _ANOTHER)
    return content


def organs_of(content: Mapping[str, Any]) -> list[str] | None:
    """The organs in the order of their classes, of a content that may be broken; None where it does not say."""
    return _names(_at(content, "hyper_parameters.plan.labels"), dict)


def modalities_of(content: Mapping[str, Any]) -> list[str] | None:
    """The modalities in the order of the channels, of a content that may be broken; None where it does not say."""
    return _names(_at(content, "hyper_parameters.plan.modalities"), list, tuple)


def traces_of(content: Mapping[str, Any]) -> set[str]:
    """As `Checkpoint.trained_on`, of a content that may be broken; it used to stand in the origin."""
    told = (_names(_at(content, f"{entry}.trained_on"), list, tuple) for entry in ("medseg", "origin.data"))
    return {trace for traces in told for trace in traces or ()}


def checked(path: Path, content: Any, digest: str = "") -> Checkpoint:
    """The checkpoint that was read from a file, every entry of the kind that it must be.

    Raises:
        CheckpointError: An entry is missing or something else.
    """
    require_ours(path, content)
    found = {entry: _at(content, entry) for entry in _LAYOUT}
    there = {entry: value for entry, value in found.items() if value is not _MISSING}
    if wrong := [entry for entry, value in there.items() if not _LAYOUT[entry][1](value)]:
        entry = max(wrong, key=lambda entry: entry.count("."))  # what holds it is wrong for its sake
        what, kind = _LAYOUT[entry][0], type(there[entry]).__name__
        raise CheckpointError(path, f"has under {entry} no {what} but a {kind}", _ANOTHER)
    for entry, (_, _, needed) in _LAYOUT.items():
        if needed and entry not in there and (not entry.startswith("origin.") or "origin" in content):
            raise CheckpointError(path, f"lacks {entry}", _ANOTHER)
    made = Checkpoint(path, content, digest)
    _ = made.plan  # whether it is one
    return made


def _names(found: Any, *kinds: type[Any]) -> list[str] | None:
    return [str(name) for name in found] if isinstance(found, kinds) else None


def _at(content: Any, entry: str) -> Any:
    """What lies under an entry, its keys parted by dots."""
    for key in entry.split("."):
        content = content.get(key, _MISSING) if isinstance(content, dict) else _MISSING
    return content


def signature(
    *,
    version: str,
    torch: str,
    scores: Mapping[str, float],
    peak_gib: float,
    flips: Iterable[int] | None,
    trained_on: Iterable[str] = (),
) -> dict[str, Any]:
    """What medseg says of a checkpoint that it writes, see `Checkpoint.signature`.

    Args:
        version: Of medseg.
        torch: Version of torch.
        scores: Of the last validation.
        peak_gib: Most memory of the training.
        flips: The axes that training flips; None if nobody knows.
        trained_on: `medseg.store.identity.traces` of the cases that its weights were ever trained on.
    """
    told = {"trained_on": sorted(trained_on)} | ({} if flips is None else {"flips": [*flips]})
    return {"version": version, "torch": torch, "scores": dict(scores), "peak_gib": peak_gib, **told}


def sign(content: dict[str, Any], signed: Mapping[str, Any]) -> None:
    """Say in a checkpoint that medseg wrote it, and can read it.

    Raises:
        UsageError: Somebody has put something into it that no checkpoint may hold.
    """
    content["medseg"] = dict(signed)
    require_plain(content)


def tell_origin(content: dict[str, Any], origin: Mapping[str, Any]) -> None:
    """Say in a checkpoint where it comes from."""
    content["origin"] = dict(origin)


_MISSING = object()
_TO_GO_ON = {
    **{"hyper_parameters": dict, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list},
    **{"global_step": int, "epoch": int},
}


def _counts(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What Lightning counts in its loops, with where it stands."""
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in ("ready", "started", "processed", "completed"):
            yield f"{place}.{key}", item
        else:
            yield from _counts(item, f"{place}.{key}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value  # type: ignore[no-any-return]  # `checked` has seen to it


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _numbers(value: Any) -> bool:
    return _list(value, _number)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _axes(value: Any) -> bool:
    return _list(value, _whole) and set(value) <= {0, 1, 2} and len(set(value)) == len(value)


def _dict(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(_text(key) and fits(item) for key, item in value.items())


def _list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(fits, value))


def _plain(value: Any) -> bool:
    return next(not_plain(value), None) is None


def _rule(value: Any) -> bool:
    kinds = {"value": _whole, "largest_component": _flag, "minimum_mm3": _number, "fill_holes": _flag}
    known = isinstance(value, dict) and value.keys() - {"organ"} == kinds.keys() and _text(value.get("organ", ""))
    return known and all(fits(value[key]) for key, fits in kinds.items()) and 0 <= value["minimum_mm3"] < math.inf


def _plain_dict(value: Any) -> bool:
    return _dict(value, _plain)


def _texts(value: Any) -> bool:
    return _dict(value, _text)


_LAYOUT: dict[str, tuple[str, Callable[[Any], bool], bool]] = {
    "hyper_parameters": ("mapping of plain data", _plain_dict, True),
    "hyper_parameters.plan": ("mapping of plain data", _plain_dict, True),
    "hyper_parameters.net": ("name", _text, True),
    "hyper_parameters.net_options": ("mapping of plain data", lambda value: value is None or _plain_dict(value), True),
    "hyper_parameters.deep_supervision": ("true or false", _flag, True),
    "hyper_parameters.overlap": ("share below 1", _share, True),
    "hyper_parameters.channels_last": ("true, false or auto", lambda v: v == "auto" or _flag(v), True),
    "hyper_parameters.loss": ("text", _text, False),
    "hyper_parameters.class_weights": ("mapping of lists of numbers", lambda v: v is None or _dict(v, _numbers), False),
    "hyper_parameters.counted": ("list of texts", lambda value: _list(value, _text), False),
    "hyper_parameters.study": ("list of texts", lambda value: value is None or _list(value, _text), False),
    "hyper_parameters.optimizer": ("name", _text, False),
    "hyper_parameters.schedule": ("name", _text, False),
    "hyper_parameters.lr": ("number", _number, False),
    "medseg.version": ("text", _text, True),
    "medseg.torch": ("text", _text, False),
    "medseg.scores": ("mapping of numbers", lambda value: _dict(value, _number), False),
    "medseg.peak_gib": ("number", _number, False),
    "medseg.trained_on": ("list of texts", lambda value: _list(value, _text), False),
    "medseg.flips": ("list of axes", _axes, False),
    "medseg.as_nnunet": ("true or false", _flag, False),
    "medseg.imported": ("mapping of plain data", _plain_dict, False),
    "medseg.cleaning": ("list of rules", lambda value: _list(value, _rule), False),
    "loops": ("mapping of plain data", _plain_dict, False),
    "VolumesDataModule": ("mapping of whole numbers", lambda value: _dict(value, _whole), False),
    "global_step": ("whole number", _whole, False),
    "epoch": ("whole number", _whole, False),
    "origin": ("mapping", lambda value: isinstance(value, dict), False),
    "origin.plan": ("mapping of texts", _texts, True),
    "origin.config": ("mapping of plain data", _plain_dict, True),
    "origin.config.digest": ("text", _text, True),
    "origin.config.values": ("mapping of plain data", _plain_dict, True),
    "origin.data": ("mapping of plain data", _plain_dict, True),
    "origin.data.digest": ("text", _text, True),
    "origin.data.cases": ("list of texts", lambda value: _list(value, _text), True),
    "origin.data.trained_on": ("list of texts", lambda value: _list(value, _text), False),
    "origin.packages": ("mapping of texts", _texts, True),
    "origin.commits": ("mapping of texts", _texts, True),
}
"""Entry -> what it is, how to tell, and whether it must be there; an origin is whole or not there."""
