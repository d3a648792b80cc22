"""What would poison a merge, found in the facts of its cases: a sentence each, and whether it stops the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medseg.datasets.case import Dataset
from medseg.datasets.hounsfield import AIR, NARROW, Spread, is_ct, odd_ones
from medseg.datasets.sides import side_pairs
from medseg.errors import listed
from medseg.merge.choices import Choices, Twins, alike
from medseg.merge.details import shared
from medseg.merge.facts import CaseFacts, ChannelFacts, Member, channel_of, overlap_of

SAME = 0.99
"""Correlation of two coarse copies from which on their volumes are taken for one."""

SHARED = 5
"""Details that two volumes have in common from which on they are taken for parts of one."""

_AT_ONCE = 1000  # cases that are held against all others
FEW = 2  # cases; less is no evidence of how a set is
_SIDED = 0.8  # share of cases in which an organ lies on one side, for a set to have it there
_OFF_CENTRE_MM = 5.0
_APART = 1.5  # times as large a voxel or field of view, with no case in between
_VOLUME = 2.0  # times as large an organ: perhaps another one
_ONE, _OTHER = 0.8, 0.5  # Dice of two masks of one volume that mean one organ, or two


@dataclass(frozen=True)
class Finding:
    """One thing that is odd about a merge.

    Attributes:
        kind: One word, by which a kind that stops the merge is accepted.
        problem: A sentence without its full stop.
        remedy: What to do.
        stops: Whether the merge waits for somebody to mend or accept it.
    """

    kind: str
    problem: str
    remedy: str
    stops: bool = False


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that findings are made from."""

    choices: Choices
    members: Mapping[str, Member]
    facts: Mapping[str, CaseFacts]

    def of(self, name: str) -> list[CaseFacts]:
        """The facts of a set's cases."""
        return [self.facts[one] for one, member in self.members.items() if member.set == name]

    def organ(self, name: str, organ: str) -> list[tuple[float, float]]:
        """Volume in ml and place in mm right of the centre of a merged organ, in each case of a set that has it."""
        parts = self.choices.sets[name].parts(organ)
        found = []
        for case in self.of(name):
            own = [case.organs[part] for part in parts if part in case.organs]
            if own:
                volume = sum(one.ml for one in own)
                found.append((volume, sum(one.ml * one.right_mm for one in own) / volume))
        return found


def find_twins(evidence: Evidence) -> list[Twins]:
    """Cases of different sets that show one body: the same voxels, or coarse copies or details that agree."""
    ids = list(evidence.members)
    alike: dict[tuple[int, int], str] = {}
    for find in (_sharing, _coarsely_alike, _equal):  # what is found later says more
        for name in evidence.choices.modalities:
            sets = (evidence.choices.sets[evidence.members[one].set] for one in ids)
            channels = [channel_of(choice, evidence.facts[one], name) for choice, one in zip(sets, ids, strict=True)]
            alike |= dict(find(channels))
    found = []
    for (one, other), told in sorted(alike.items()):
        first, second = evidence.members[ids[one]], evidence.members[ids[other]]
        if first.set == second.set:
            continue
        if first.test and not second.test:
            first, second = second, first
        found.append(Twins((first.id, second.id), told, "leave_out" if first.test != second.test else "one_patient"))
    return found


Alike = Iterator[tuple[tuple[int, int], str]]
"""Pairs of places, the smaller first, whose channels are alike, and how much."""


def _sharing(channels: Sequence[ChannelFacts]) -> Alike:
    """Parts of one scan, cropped, padded or mirrored."""
    for pair, count in shared([channel.details for channel in channels]).items():
        if count >= SHARED:
            yield pair, f"{count} details in common, as of parts or mirror images of one scan"


def _coarsely_alike(channels: Sequence[ChannelFacts]) -> Alike:
    """One scan in other voxels, units or types."""
    rows = np.stack([channel.coarse for channel in channels])
    for start in range(0, len(rows), _AT_ONCE):
        near = rows[start : start + _AT_ONCE] @ rows.T
        for row, other in np.argwhere(near >= SAME).tolist():
            if start + row < other:
                yield (start + row, other), f"correlation {min(float(near[row, other]), 1.0):.4f} when coarse"


def _equal(channels: Sequence[ChannelFacts]) -> Alike:
    """The same to the last bit."""
    places: dict[str, list[int]] = {}
    for place, channel in enumerate(channels):
        places.setdefault(channel.digest, []).append(place)
    for digest, several in places.items():
        yield from ((pair, "the same voxels") for pair in combinations(several, 2) if digest)


def find_all(evidence: Evidence, datasets: Mapping[str, Dataset]) -> list[Finding]:
    """Everything but the twins themselves, those that stop the merge first."""
    finders = (_unshared, _units, _sides, _overlaps_of_twins(datasets), _alike, _volumes, _geometry, _twins)
    found = [finding for finder in finders for finding in finder(evidence)]
    return sorted(found, key=lambda finding: not finding.stops)


def _unshared(evidence: Evidence) -> Iterator[Finding]:
    """Sets that have no organ in common with any other."""
    choices = evidence.choices
    drawn = {name: {t for organ in one.organs for t in one.targets(organ)} for name, one in choices.sets.items()}
    for name, organs in drawn.items():
        others = set().union(*(theirs for other, theirs in drawn.items() if other != name))
        if not organs & others:
            problem = (
                f"{name} ({listed(sorted(organs))}) shares no organ with the other sets ({listed(sorted(others))})"
            )
            yield Finding("nothing-shared", problem, "Unite organs with --rename, if two of them are one", stops=True)


def _alike(evidence: Evidence) -> Iterator[Finding]:
    """Names that may mean one organ and were not united."""
    for one, other in alike(evidence.choices.organs):
        problem = f"{one!r} and {other!r} stay two organs, though their names are alike"
        yield Finding("alike", problem, f"If they are one: --rename '{other}={one}'")


def _volumes(evidence: Evidence) -> Iterator[Finding]:
    """An organ that is far larger in one set than in another."""
    for organ in evidence.choices.organs:
        told = {name: evidence.organ(name, organ) for name in evidence.choices.sets}
        medians = {name: float(np.median([ml for ml, _ in found])) for name, found in told.items() if len(found) >= FEW}
        if medians and max(medians.values()) > _VOLUME * min(medians.values()):
            sizes = listed(f"{ml:.3g} ml in {name}" for name, ml in medians.items())
            problem = f"{organ!r} has {sizes}: perhaps two organs are called so, or half of one was drawn"
            yield Finding("volume", problem, "Look at both; if they are two, --rename 'SET:ORGAN=NAME'")


def _units(evidence: Evidence) -> Iterator[Finding]:
    """A modality whose intensities cannot be of one unit in all sets, or in all cases."""
    for name in evidence.choices.modalities:
        medians = {}
        for one, choice in evidence.choices.sets.items():
            rows = [channel_of(choice, case, name).spread for case in evidence.of(one)]
            medians[one] = Spread(*np.median(rows, axis=0).tolist())
        spreads = {one: rows.high - rows.low for one, rows in medians.items() if rows.high > rows.low}
        warm = [one for one, rows in medians.items() if rows.low >= AIR]
        told = listed(f"{one} {rows}" for one, rows in medians.items())
        if is_ct(name) and warm and len(warm) < len(medians):
            problem = f"{name} holds no air in {listed(warm)}, as if 1024 had been added or it was clipped: {told}"
            yield Finding("units", problem, "Bring it to Hounsfield units, or leave that set out", stops=True)
        elif spreads and max(spreads.values()) > NARROW * min(spreads.values()):
            problem = f"{name} is measured in different units: 99 % of the voxels are {told}"
            remedy = (
                "Bring them to one unit"
                if is_ct(name)
                else "Nothing to do, as long as every case is normalised by itself"
            )
            yield Finding("units", problem, remedy, stops=is_ct(name))
        elif is_ct(name):
            yield from _odd_cases(evidence, name)


def _odd_cases(evidence: Evidence, name: str) -> Iterator[Finding]:
    """Cases whose CT cannot be in Hounsfield units, though that of most can."""
    choices, members = evidence.choices.sets, evidence.members
    found = odd_ones(
        {one: channel_of(choices[members[one].set], case, name).spread for one, case in evidence.facts.items()}
    )
    for case, told in found.items():
        yield Finding("units", f"{name} of {case} has {told}", "Look at it with medseg verify")


def _geometry(evidence: Evidence) -> Iterator[Finding]:
    """Spacings, and fields of view, of which two sets have no size in common."""
    for kind, what in (("spacing", "voxels"), ("extent", "fields of view")):
        sizes = {
            name: np.array([getattr(case, f"{kind}_mm") for case in evidence.of(name)])
            for name in evidence.choices.sets
        }
        for one, other in combinations(sizes, 2):
            low, high = sorted((sizes[one], sizes[other]), key=lambda rows: float(np.prod(np.median(rows, axis=0))))
            ratio = np.maximum(*(np.median(a, axis=0) / np.median(b, axis=0) for a, b in ((low, high), (high, low))))
            parted = (low.max(axis=0) < high.min(axis=0)) | (high.max(axis=0) < low.min(axis=0))
            if (parted & (ratio > _APART)).any():
                told = listed(
                    f"{_edges(np.median(rows, axis=0))} mm in {name}"
                    for name, rows in ((one, sizes[one]), (other, sizes[other]))
                )
                problem = f"{what} of {one} and {other} do not overlap: {told}"
                remedy = (
                    "Look at spacing_mm in the plan" if kind == "spacing" else "Look at what each set shows of the body"
                )
                yield Finding("spacing" if kind == "spacing" else "field-of-view", problem, remedy)


def _edges(lengths: NDArray[np.float64]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)


def _sides(evidence: Evidence) -> Iterator[Finding]:
    """Left organs that lie on the right, and organs that lie on another side in each set."""
    remedy = "Correct the affines (or the names) of the set that is mirrored"
    reversed_in: list[str] = []
    for name, choice in evidence.choices.sets.items():
        names = tuple(dict.fromkeys(target for organ in choice.organs for target in choice.targets(organ)))
        for one, other in side_pairs(names):
            where = _towards_right(evidence, name, (one, other))
            if where is not None and where > 0:  # a left organ, which side_pairs names first, further to the right
                problem = f"{one!r} lies to the right of {other!r} in {name}, by the affines of its files"
                reversed_in.append(name)
                yield Finding("sides", problem, remedy, stops=True)
    for one, other in combinations([name for name in evidence.choices.sets if name not in reversed_in], 2):
        shared = [
            organ for organ in evidence.choices.organs if evidence.organ(one, organ) and evidence.organ(other, organ)
        ]
        for pair in combinations(shared, min(2, len(shared))) if shared else ():
            here, there = (_towards_right(evidence, name, pair) for name in (one, other))
            if here is not None and there is not None and here * there < 0:
                what = f"{pair[0]!r} lies " + (f"beyond {pair[1]!r} " if len(pair) > 1 else "off the centre ")
                sides = [("to the right" if where > 0 else "to the left") for where in (here, there)]
                problem = f"{what}{sides[0]} in {one} and {sides[1]} in {other}: one of the two is mirrored"
                yield Finding("sides", problem, remedy, stops=True)
                break


def _towards_right(evidence: Evidence, name: str, organs: Sequence[str]) -> float | None:
    """How far the first organ lies to the right of the second (or the centre), in mm; None where it is not clear."""
    rows = []
    for case in evidence.of(name):
        places = []
        for organ in organs:
            own = [case.organs[part] for part in evidence.choices.sets[name].parts(organ) if part in case.organs]
            places += [sum(one.ml * one.right_mm for one in own) / sum(one.ml for one in own)] if own else []
        if len(places) == len(organs):
            rows.append(places[0] - (places[1] if len(places) > 1 else 0.0))
    middle = float(np.median(rows)) if rows else 0.0
    agree = np.mean(np.sign(rows) == np.sign(middle)) if rows else 0.0
    return middle if len(rows) >= FEW and agree >= _SIDED and abs(middle) > _OFF_CENTRE_MM else None


def _twins(evidence: Evidence) -> Iterator[Finding]:
    """What becomes of volumes that are in two sets."""
    becomes = {
        "one_patient": "both stay, on one side of every fold",
        "leave_out": "the second is left out",
        "apart": "both stay, as two people's",
    }
    for twins in evidence.choices.twins:
        problem = f"{twins.cases[0]} and {twins.cases[1]} are one volume ({twins.found}): {becomes[twins.decision]}"
        yield Finding("twins", problem, "Decide otherwise under twins in the YAML")


def _overlaps_of_twins(datasets: Mapping[str, Dataset]) -> Callable[[Evidence], Iterator[Finding]]:
    """Where two sets drew on one volume: one organ under two names, or two under one."""

    def find(evidence: Evidence) -> Iterator[Finding]:
        told: set[tuple[str, ...]] = set()
        for twins in evidence.choices.twins:
            first, second = (evidence.members[name] for name in twins.cases)
            if not _show_as_much(evidence, first, second):
                continue
            for (a, b), dice in overlap_of(first, second, datasets).items():
                ours, theirs = (evidence.choices.sets[one.set].targets(o) for one, o in ((first, a), (second, b)))
                united, key = bool(set(ours) & set(theirs)), (first.set, a, second.set, b)
                if not ours or not theirs or key in told or (dice >= _OTHER if united else dice < _ONE):
                    continue
                told.add(key)
                where = (
                    f"{first.id} and {second.id} are one volume, where {a!r} of {first.set} and {b!r} of {second.set}"
                )
                if united:
                    remedy = f"If they are two: --rename '{second.set}:{b}=NAME'"
                    yield Finding("two-organs", f"{where}, united, have Dice {dice:.2f}", remedy, stops=True)
                else:
                    remedy = f"If they are one: --rename '{second.set}:{b}={ours[0]}'"
                    yield Finding("two-names", f"{where}, called apart, have Dice {dice:.2f}", remedy, stops=True)

    return find


def _show_as_much(evidence: Evidence, *members: Member) -> bool:
    """Whether two twins are neither cropped nor mirrored, so that their masks can be laid upon each other."""
    choices, names = evidence.choices, evidence.choices.modalities
    one, other = (
        [channel_of(choices.sets[member.set], evidence.facts[member.id], name).coarse for name in names]
        for member in members
    )
    return any(float(mine @ theirs) >= SAME for mine, theirs in zip(one, other, strict=True))
