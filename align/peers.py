"""What the processes of a run know of each other: whether one of them failed, and why, or is gone.

Each rank says in the process group's store, from a thread, that it is alive. Rank 0 listens to
all, the others to rank 0. The first rank that fails leaves a note with its reason; every other one
then ends too, also while it waits for the failed one inside a collective operation, and rank 0
alone says why. So no launcher has to kill anybody, and nothing waits for a machine that is down.

The operations themselves may take hours: rank 0 alone imports data while the others wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

BEAT = 1.0
"""Seconds between two signs of life."""
LIMIT = 40.0
"""Seconds without a sign of life after which a rank counts as gone. Those that wait for one that is
killed notice it at once; so long may a library keep all threads of a rank from running."""
GRACE = 3.0
"""Seconds in which a rank may end by itself after another one failed."""
NOTE = "failure"
BROKEN = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket timeout")
"""Words of an error that a rank has because another one has left a collective operation."""


class Store(Protocol):
    """The part of torch.distributed.Store that is used here."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


@dataclass(frozen=True)
class Failure:
    """Why a run ends, as the first rank that noticed it wrote it down."""

    rank: int
    """that failed, or is gone; -1 if nobody knows which"""
    by: int
    """that wrote the note"""
    text: str
    code: int = 1
    """exit code of the ranks that it ends"""

    @property
    def sentence(self) -> str:
        return self.text if self.rank != self.by else f"rank {self.rank}: {self.text}"


class Peers:
    """The other ranks, watched from two threads: one talks to the store, the other one judges, for
    a store whose machine is down may never answer. `talking` and `asking` are clients of the same
    store, for a thread each."""

    def __init__(self, talking: Store, asking: Store, rank: int, world_size: int):
        self.rank = rank
        self._talking, self._asking = talking, asking
        self._watched = list(range(1, world_size)) if rank == 0 else [0]
        now = time.monotonic()
        self._heard = dict.fromkeys(self._watched, now)
        self._answered = now
        self._beats: dict[int, bytes] = {}
        self._failure: Failure | None = None
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=loop, name=f"align-{loop.__name__}", daemon=True)
            for loop in (self._talk, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, *, well: bool = True) -> None:
        """Nobody listens any longer; for the end of a run, before the process group's.

        A thread that still talks to the store when Python ends would abort the process, so it is
        waited for; not for long where the run ends with an error, and the store may be down.
        """
        self._stop.set()
        until = time.monotonic() + (LIMIT if well else 2 * BEAT)
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))

    def failed(self, error: BaseException) -> str | None:
        """Leaves a note that this rank ends with `error`. Returns the other rank's reason instead
        if the error only shows that another one has left."""
        self._stop.set()  # of this rank's own end nobody else decides any longer
        if _is_broken(error):
            return self._reason().sentence
        with contextlib.suppress(RuntimeError):  # the store has gone with the rank that holds it
            self._note(Failure(self.rank, self.rank, str(error) or type(error).__name__))
        if self.rank == 0:  # the store may end with it: the others are to read the note
            time.sleep(2 * BEAT)
        return None

    def _reason(self) -> Failure:
        """Why another rank has left: its note, or that it is silent."""
        until = time.monotonic() + 2 * GRACE
        try:
            while time.monotonic() < until:
                if (found := self._read(self._asking)) is not None:
                    return found
                if silent := self._silent(self._asking, 3 * BEAT):
                    return self._note(_gone(silent, self.rank))
                time.sleep(BEAT / 2)
        except RuntimeError:
            return _gone([0], self.rank)
        return Failure(-1, self.rank, "the connection to another rank broke; run it again.")

    # --- threads ----------------------------------------------------------------------------------

    def _talk(self) -> None:
        number = 0
        while not self._stop.wait(BEAT):
            number += 1
            try:
                self._talking.set(f"beat/{self.rank}", f"{number} {socket.gethostname()}")
                self._silent(self._talking, LIMIT)
                self._failure = self._read(self._talking)
            except RuntimeError:
                if not self._stop.is_set():
                    self._failure = _gone([0], self.rank)
                return
            self._answered = time.monotonic()
            if self._failure is not None:
                return

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(BEAT):
            now = time.monotonic()
            if now - before > LIMIT / 2:  # this process was stopped for a while itself
                self._heard = dict.fromkeys(self._watched, now)
                self._answered = now
            before = now
            if (failure := self._failure or self._found(now)) is not None:
                return self._end(failure)

    def _found(self, now: float) -> Failure | None:
        """What this rank alone notices: silence of another one, or of the store."""
        if now - self._answered > LIMIT:
            return _gone([0], self.rank)
        silent = [rank for rank, heard in self._heard.items() if now - heard > LIMIT]
        if not silent:
            return None
        return self._note(_gone(silent, self.rank))

    def _end(self, failure: Failure) -> None:
        """Ends the process, whatever its main thread waits for, unless it does so by itself."""
        # Whoever ends first, its launcher kills the rest: the one that speaks must be the first.
        speaks = self.rank == 0 or failure.by == self.rank
        if self._stop.wait(GRACE if speaks else 3 * GRACE):
            return
        if speaks:
            print(failure.sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(failure.code)

    # --- the store --------------------------------------------------------------------------------

    def _note(self, failure: Failure) -> Failure:
        """Writes it down if it is the first; returns the first."""
        first = self._asking.compare_set(NOTE, "", json.dumps(asdict(failure)))
        return _failure_of(first)

    @staticmethod
    def _read(store: Store) -> Failure | None:
        return _failure_of(store.get(NOTE)) if store.check([NOTE]) else None

    def _silent(self, store: Store, limit: float) -> list[int]:
        """Listens; the ranks that have not been heard of for `limit` seconds."""
        now = time.monotonic()
        for rank in self._watched:
            key = f"beat/{rank}"
            beat = store.get(key) if store.check([key]) else b""
            if beat != self._beats.get(rank, b""):
                self._beats[rank], self._heard[rank] = beat, now
        return [rank for rank, heard in self._heard.items() if now - heard > limit]


def _gone(ranks: list[int], by: int) -> Failure:
    names = ", ".join(map(str, ranks))
    return Failure(
        ranks[0],
        by,
        f"rank {names} is gone: it was killed, or its machine is down. Run the same command again "
        f"to go on.",
    )


def _failure_of(raw: bytes) -> Failure:
    plain: dict[str, Any] = json.loads(raw)
    return Failure(**plain)


def _is_broken(error: BaseException | None) -> bool:
    """Whether the error, or what it was made of, comes from a collective operation's peer."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and any(word in text for word in BROKEN):
            return True
        error = error.__cause__ or error.__context__
    return False
