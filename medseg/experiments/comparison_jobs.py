"""One data set, one network, one budget, the same seeds, many losses: the jobs of a comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from medseg.errors import UsageError
from medseg.experiments.job import Job, seeded
from medseg.losses.expression import parse

_EPOCHS = (0, 1, 10, 100, 1000)
"""Where two weights that change with the epoch are held against each other."""


def comparison_jobs(
    words: Sequence[str], losses: Sequence[str], nets: Sequence[str], output: Path, seeds: Sequence[int] = ()
) -> tuple[Job, ...]:
    """A job per loss, or per network and loss, none of which leaves the config's; nothing else differs between them.

    With ``seeds`` one for each of them: they begin with other weights, and see other patches in another order. Which
    cases are held back must not hang on the seed: ``words`` name a split.

    Raises:
        UsageError: There is nothing to compare, or one is given twice.
    """
    if not all(name.strip() for name in (*nets, *losses)):
        raise UsageError("a loss or network without a name is given", "Leave the empty one out")
    pairs = [(net, loss) for net in nets or [""] for loss in losses or [""]]
    if len(pairs) < 2:
        raise UsageError("a comparison needs at least two losses or networks", "Name more with --losses or --nets")
    titles = [
        " · ".join(name for name in ((net if len(nets) > 1 or not loss else ""), loss) if name) for net, loss in pairs
    ]
    for names in (nets, losses, list(map(str, seeds))):
        _require_different(names)
    jobs: list[Job] = []
    each = [*map(str, seeds)] or [""]
    for title, (net, loss), seed in ((*named, s) for named in zip(titles, pairs, strict=True) for s in each):
        chosen = {"--model.net": net, "--model.loss": loss, "--seed_everything": seed, "--data.seed": seed}
        overrides = [part for option, value in chosen.items() if value for part in (option, value)]
        facts = {name: value for name, value in (("net", net), ("loss", loss), ("seed", seed)) if value}
        name = seeded(title, seed)
        jobs.append(Job(name, output / _slug(name, [job.run.name for job in jobs]), (*words, *overrides), facts))
    return tuple(jobs)


def _require_different(names: Sequence[str]) -> None:
    """Refuse two spellings of one thing: trained twice, they would be told apart by nothing."""
    seen: dict[object, str] = {}
    for name in names:
        meaning = _meaning(name)
        if meaning in seen:
            same = "is given twice" if seen[meaning] == name else f"is the same as {seen[meaning]!r}"
            raise UsageError(f"{name!r} {same}", "Name each once")
        seen[meaning] = name


def _meaning(name: str) -> object:
    """What a loss expression comes to, however it is written; anything else is its own meaning."""
    try:
        terms = parse(name)
    except ValueError:  # a network, or a mistake that is told when its training is built
        return name
    return tuple(sorted((t.row.name, repr(sorted(t.knobs.items())), *map(t.weight, _EPOCHS)) for t in terms))


def _slug(title: str, taken: Sequence[str]) -> str:
    """A folder's name from a title."""
    name = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")[:80] or "job"
    return next(slug for slug in chain((name,), (f"{name}-{n}" for n in count(2))) if slug not in taken)
