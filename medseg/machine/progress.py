"""How far a command is: a bar that moves in a terminal, and anywhere a line that stays for each case it has done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[str], None]
"""Says that one more is done, and its name; one without a name moves the bar only."""


@contextmanager
def progress(title: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Show how far something is while it is done.

    Args:
        title: What is done, such as ``predicting``.
        total: How many there are.
        console: Where to show it; the standard error if left out.

    Example:
        >>> import sys
        >>> with progress("scoring", 2, Console(file=sys.stdout)) as advance:
        ...     advance("liver_1")
        scoring 1 of 2: liver_1
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal and total > 0
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        row, done = bar.add_task(title, total=total), 0

        def advance(name: str) -> None:
            nonlocal done
            done += 1
            if name:
                console.print(f"{title} {done} of {total}: {name}", highlight=False, markup=False, soft_wrap=True)
            bar.advance(row)

        yield advance
