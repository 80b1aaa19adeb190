"""How far a long thing is: a bar on a terminal, a line now and then elsewhere.

    with progress("training", total=40, unit="iterations") as bar:
        for _ in range(40):
            bar.advance()

The outermost thing whose end is known has the rate and the time left; what runs around it and
within it is named. On a terminal, standard error has one line below
the log lines, of which nothing is left in the end. Elsewhere there is neither a bar nor a control
character: what has said nothing for SILENCE seconds says in words how far it is. Ranks but the
first, and everything within `silent()`, say nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from rich.text import Text

from align.launched import rank
from align.summary import duration, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

SILENCE = 30.0
"""Seconds without a line after which one says how far things are, where there is no terminal."""
REFRESHES = 5
"""Times a second that the bar is drawn."""
WIDEST = 30
"""Columns of the bar itself, at most."""
T = TypeVar("T")


@dataclass(eq=False)
class Bar:
    """Something that takes long, while it runs."""

    what: str
    total: int | None
    """None where the end is not known"""
    unit: str
    done: int
    within: tuple[int, int] | None = None
    """What came before it, and the total, of which this is a part: a member of an ensemble"""
    _begun: float = field(default_factory=lambda: time.monotonic())
    _moved: float = field(default_factory=lambda: time.monotonic())
    _first: int = field(init=False)

    def __post_init__(self) -> None:
        self._first = self.done

    def advance(self, more: int = 1, share: float | None = None) -> None:
        """So many more are done. `share` says which part of all that is, where the total is not
        known but, say, the bytes of a file are."""
        self.done += more
        self._moved = time.monotonic()
        if share:
            self.total = max(self.done, round(self.done / share))
        _display.changed()

    @property
    def seconds(self) -> float:
        """since it was begun, in this process"""
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float | None:
        """Units a second so far, in this process; None before the first."""
        took, made = self._moved - self._begun, self.done - self._first
        return made / took if made > 0 and took > 0 else None

    def left(self) -> float | None:
        """Seconds to the end at the rate so far; None where one of them is not known."""
        if self.total is None or self.rate is None:
            return None
        waited = time.monotonic() - self._moved
        return max(0.0, (self.total - self.done) / self.rate - waited)

    def left_after(self, done: int, total: int) -> float | None:
        """Seconds to a `total`, where `done` are done just now."""
        made = done - self._first
        return (total - done) * self.seconds / made if made > 0 else None

    def counted(self, joint: str = "/") -> str:
        """`12/40`; nothing where nothing is counted."""
        if self.total is None:
            return f"{self.done:,}" if self.done else ""
        return f"{self.done:,}{joint}{self.total:,}"

    def words(self, joint: str = "/", rate: bool = True) -> str:
        """`12/40 iterations, 3.1/s, 9 s left`, as much of it as is known."""
        count, left = self.counted(joint), self.left()
        parts = [
            f"{count} {self.unit}" if count else "",
            _rate_in_words(self.rate) if rate else "",
            duration(self.seconds) if left is None else left_in_words(left),
        ]
        return ", ".join(part for part in parts if part)


def left_in_words(seconds: float) -> str:
    """`9 s left`, `3 min 20 s left`."""
    return f"{round(seconds)} s left" if seconds < 59.5 else f"{duration(seconds)} left"


def _rate_in_words(rate: float | None) -> str:
    """`3.1/s`, or by the minute or hour where that is a number above 1."""
    if rate is None:
        return ""
    if rate >= 1:
        return f"{number(rate)}/s"
    return f"{number(rate * 60)}/min" if rate * 60 >= 1 else f"{number(rate * 3600)}/h"


@contextmanager
def progress(
    what: str,
    total: int | None = None,
    unit: str = "steps",
    *,
    done: int = 0,
    within: tuple[int, int] | None = None,
) -> Iterator[Bar]:
    """Shows a thing while the block runs. `done` of its `total` were done in an earlier process;
    `within` is (what came before, the total) where it is a part of what log lines count."""
    bar = Bar(what, total, unit, done, within)
    _display.begin(bar)
    try:
        yield bar
    finally:
        _display.end(bar)


def tracked(
    items: Iterable[T], what: str, unit: str, *, total: int | None = None, done: int = 0
) -> Iterator[T]:
    """The items, shown as they are gone through; there are `total`, of which `done` came before."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(what, total, unit, done=done) as bar:
        for item in items:
            yield item
            bar.advance()


@dataclass(frozen=True)
class Place:
    """Where a log line stands."""

    step: int
    total: int | None
    left: float | None
    """seconds to the end, if that can be said"""


def place_of(step: int) -> Place:
    """Where the `step` of a log line stands in the innermost thing that has an end.

    It is done, though the line may be written before that is said to the bar.
    """
    bar = next((one for one in reversed(_display.bars) if one.total is not None), None)
    if bar is not None and bar.total is not None:
        part = next((one.within for one in _display.bars if one.within), None)
        before, total = part or (0, bar.total)
        if step - before in (bar.done, bar.done + 1):
            return Place(step, total, bar.left_after(step - before, total - before))
    return Place(step, None, None)


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is shown, and no line of a tracker, while the block runs."""
    before, _display.off = _display.off, True
    try:
        yield
    finally:
        _display.off = before


def is_silent() -> bool:
    return _display.off


def console() -> Console:
    """Standard error as rich sees it: the one console that log lines and the bar share."""
    return _display.console


def said() -> None:
    """Something else has just written a line."""
    _display.spoke = time.monotonic()


def on_terminal() -> bool:
    """Whether standard error is a terminal that a line can be drawn on again."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class _Display:
    """All that runs, the outermost first, and where it is shown."""

    def __init__(self) -> None:
        self.bars: list[Bar] = []
        self.off = False
        self.spoke = time.monotonic()
        self._live: Live | None = None
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        from rich.console import Console

        if self._console is None:
            self._console = Console(stderr=True)
        return self._console

    def begin(self, bar: Bar) -> None:
        if not self.bars:
            self.spoke = time.monotonic()
            self._console = None  # another terminal, or another width, than last time
        self.bars.append(bar)
        if self._live is None and not self.off and rank() == 0 and on_terminal():
            self._live = self._started()

    def end(self, bar: Bar) -> None:
        if bar in self.bars:  # it and what an exception has left within it
            del self.bars[self.bars.index(bar) :]
        if not self.bars and self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def changed(self) -> None:
        """Where there is no terminal: a line, if nothing was said for long."""
        if self._live is not None or self.off or not self.bars or rank() != 0:
            return
        if time.monotonic() - self.spoke >= SILENCE:
            self.spoke = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """`ppo, training: 3 of 40 iterations, 2.1/min, 17 min 37 s left (sampling)`."""
        around, bar, within = _apart(self.bars)
        names = ", ".join([*(one.what for one in around), bar.what])
        return f"{names}: {bar.words(' of ')}{f' ({within.what})' if within else ''}"

    def _started(self) -> Live:
        from rich.live import Live

        live = Live(
            console=self.console,
            transient=True,
            refresh_per_second=REFRESHES,
            get_renderable=self.drawn,
            # Printed through this console, what goes to standard error and, on a terminal, to
            # standard output does not tear the bar; a file or a pipe stays what it is.
            redirect_stdout=sys.stdout.isatty(),
        )
        live.start()
        # A process that is killed could not bring it back.
        self.console.show_cursor(True)
        return live

    def drawn(self) -> Table | Text:
        """One line, however narrow the terminal is."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        bars = list(self.bars)
        if not bars:
            return Text()
        around, bar, within = _apart(bars)
        now = [f"{within.what} {within.counted()}".strip()] if within else []
        title = " › ".join([*(one.what for one in around), bar.what, *now])
        words, width = bar.words(), self.console.width
        if len(title) + len(words) + 3 > width:
            words = bar.words(rate=False)
        room = width - len(title) - len(words) - 3
        if room < 0:  # what it is doing is at the end
            title = f"…{title[1 - room :]}" if len(title) + room > 4 else ""
        cells: list[Text | ProgressBar] = [Text(title, "bold cyan"), Text(words, "dim")]
        if bar.total is not None and room >= 5:
            cells.insert(1, ProgressBar(bar.total, bar.done, min(room, WIDEST)))
        grid = Table.grid(padding=(0, 1))
        for _ in cells:
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(*cells)
        return grid


def _apart(bars: Sequence[Bar]) -> tuple[Sequence[Bar], Bar, Bar | None]:
    """What runs around the one to show, that one, and the innermost within it."""
    at = next((i for i, bar in enumerate(bars) if bar.total is not None), len(bars) - 1)
    return bars[:at], bars[at], bars[-1] if at < len(bars) - 1 else None


_display = _Display()
