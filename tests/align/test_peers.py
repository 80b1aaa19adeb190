"""Ranks that watch each other, with a store in memory and hours that pass in a moment."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from align import peers
from align.peers import Failure, Peers


class MemoryStore:
    """A store as torch's; `gone` once the rank that holds it has left."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.gone = False
        self._lock = threading.Lock()

    def _check(self) -> None:
        if self.gone:
            raise RuntimeError("Connection reset by peer")

    def set(self, key: str, value: str, /) -> None:
        self._check()
        self.held[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        self._check()
        return self.held[key]

    def check(self, keys: list[str], /) -> bool:
        self._check()
        return all(key in self.held for key in keys)

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        self._check()
        with self._lock:
            if self.held.get(key, b"") == expected.encode():
                self.held[key] = desired.encode()
            return self.held[key]


class SlowStore(MemoryStore):
    """One that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answered = False

    def set(self, key: str, value: str, /) -> None:
        self.asked.set()
        assert self.answers.wait(20)
        self.answered = True
        super().set(key, value)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    for name, seconds in (("BEAT", 0.01), ("LIMIT", 0.3), ("GRACE", 0.05)):
        monkeypatch.setattr(peers, name, seconds)
    return MemoryStore()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes that this process would have ended with."""
    codes: list[int] = []
    monkeypatch.setattr(peers.os, "_exit", codes.append)
    return codes


def until(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def note(store: MemoryStore) -> Failure:
    return Failure(**json.loads(store.held[peers.NOTE]))


def test_ranks_that_live_let_each_other_live(store: MemoryStore, exits: list[int]):
    ranks = [Peers(store, store, rank, 3) for rank in range(3)]
    time.sleep(3 * peers.LIMIT)
    for rank in ranks:
        rank.stop()
    assert exits == []
    assert peers.NOTE not in store.held
    assert {f"beat/{rank}" for rank in range(3)} <= store.held.keys()


def test_the_others_end_with_the_one_that_fails_and_rank_0_says_why(
    store: MemoryStore, exits: list[int], capsys: pytest.CaptureFixture[str]
):
    ranks = [Peers(store, store, rank, 3) for rank in range(3)]
    assert ranks[2].failed(ValueError("row 7 is no row")) is None
    until(lambda: len(exits) == 2)
    assert exits == [1, 1]
    assert capsys.readouterr().err == "rank 2: row 7 is no row\n"
    assert note(store) == Failure(rank=2, by=2, text="row 7 is no row")


def test_rank_0_says_its_own_reason_itself(
    store: MemoryStore, exits: list[int], capsys: pytest.CaptureFixture[str]
):
    """The others end, though the store is gone with it soon, and say nothing."""
    zero, *others = (Peers(store, store, rank, 3) for rank in range(3))
    assert zero.failed(ValueError("row 7 is no row")) is None
    store.gone = True
    until(lambda: len(exits) == 2)
    assert capsys.readouterr().err == ""
    for rank in others:
        rank.stop()


def test_a_rank_that_ends_by_itself_is_not_ended(store: MemoryStore, exits: list[int]):
    """The one that fails too, for the same reason, in the time that it has for it."""
    ranks = [Peers(store, store, rank, 2) for rank in range(2)]
    assert ranks[1].failed(ValueError("both")) is None
    assert ranks[0].failed(ValueError("both")) is None
    time.sleep(4 * peers.GRACE)
    assert exits == []
    assert note(store).rank == 1


def test_silence_counts_as_an_end(
    store: MemoryStore, exits: list[int], capsys: pytest.CaptureFixture[str]
):
    zero = Peers(store, store, 0, 2)  # rank 1 never says a word
    until(lambda: exits)
    assert note(store).rank == 1
    assert capsys.readouterr().err.startswith("rank 1 is gone: it was killed, or its machine")
    zero.stop()


def test_a_store_that_is_gone_went_with_rank_0(
    store: MemoryStore, exits: list[int], capsys: pytest.CaptureFixture[str]
):
    one = Peers(store, store, 1, 2)
    store.gone = True
    until(lambda: exits)
    assert capsys.readouterr().err.startswith("rank 0 is gone: ")
    one.stop()


@pytest.mark.parametrize(
    "text",
    [
        "[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]",
        "NCCL Error 6: remote process exited",
    ],
)
def test_an_error_of_a_broken_connection_gives_way_to_the_other_s_reason(
    text: str, store: MemoryStore
):
    """Whatever it was wrapped into."""
    zero, one = (Peers(store, store, rank, 2) for rank in range(2))
    assert one.failed(ValueError("the loss is nan")) is None
    wrapped = ValueError("step reward failed")
    wrapped.__cause__ = RuntimeError(text)
    assert zero.failed(wrapped) == "rank 1: the loss is nan"


@pytest.mark.parametrize("well", [True, False])
def test_an_end_waits_for_a_slow_store_unless_it_is_one_with_an_error(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, well: bool
):
    """Python aborts a process that ends while one of its threads is within the store."""
    monkeypatch.setattr(peers, "LIMIT", 60.0)
    slow = SlowStore()
    rank = Peers(slow, store, 0, 2)
    assert slow.asked.wait(20)
    if well:
        threading.Timer(20 * peers.BEAT, slow.answers.set).start()
    rank.stop(well=well)
    assert slow.answered == well
    slow.answers.set()


def test_a_broken_connection_without_a_note_is_the_silent_rank_s(store: MemoryStore):
    zero = Peers(store, store, 0, 2)
    reason = zero.failed(RuntimeError("gloo: Connection closed by peer"))
    assert reason is not None and reason.startswith("rank 1 is gone: ")


def test_the_first_note_stays(store: MemoryStore):
    ranks = [Peers(store, store, rank, 3) for rank in range(3)]
    for rank in (2, 1, 0):
        assert ranks[rank].failed(ValueError(f"of {rank}")) is None
    assert note(store).text == "of 2"
