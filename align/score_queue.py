"""Answers of many clients scored together: a queue, and one thread that computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate

from preference_data.batches import Group

WAIT = 0.005
"""Seconds that the first answer of a batch waits for others."""

ScoreGroups = Callable[[Sequence[Group]], list[float]]


@dataclass
class _Request:
    """The answers of one client, scored in one batch or in several."""

    groups: list[Group]
    future: Future[list[float]] = field(default_factory=Future[list[float]])
    scores: list[float] = field(default_factory=list[float])


class ScoreQueue:
    """Scores groups in the order in which they come, whoever sent them.

    A batch has at most `max_batch` answers and `max_tokens` tokens, or one answer; the answers of a
    large request are spread over several.
    """

    def __init__(self, score: ScoreGroups, max_batch: int, max_tokens: int):
        self._score = score
        self._max_batch, self._max_tokens = max_batch, max_tokens
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._open: list[_Request] = []
        self._closing = False
        self._lock = threading.Lock()
        self.waiting = 0
        """Answers that have no score yet."""
        self._thread = threading.Thread(target=self._work, name="scores", daemon=True)
        self._thread.start()

    def submit(self, groups: Sequence[Group]) -> Future[list[float]]:
        """The scores of the groups, one completion each, once they are there; or what the model
        raised. Raises RuntimeError after `close`."""
        request = _Request(list(groups))
        request.future.set_running_or_notify_cancel()  # a client that is gone cancels nothing
        with self._lock:
            if self._closing:
                raise RuntimeError("the queue is closed")
            self.waiting += len(request.groups)
            self._requests.put(request)
        return request.future

    def close(self) -> None:
        """Scores what is waiting, and ends."""
        with self._lock:
            self._closing = True
            self._requests.put(None)
        self._thread.join()

    # --- the thread that computes ---------------------------------------------------------------

    def _work(self) -> None:
        more = True
        while more or self._open:
            more = self._collect() if more else False
            if self._open:
                self._batch()

    def _collect(self) -> bool:
        """Opens requests until a batch is full or its first has waited; False at the end."""
        deadline: float | None = time.monotonic() + WAIT if self._open else None
        while not self._full():
            try:
                # The first is waited for without an end.
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                request = self._requests.get(timeout=left)
            except queue.Empty:
                return True
            if request is None:
                return False
            if not request.groups:
                request.future.set_result([])
                continue
            self._open.append(request)
            deadline = deadline or time.monotonic() + WAIT
        return True

    def _full(self) -> bool:
        return len(self._next(whole=True)) >= self._max_batch or (
            sum(map(len, self._next(whole=True))) >= self._max_tokens
        )

    def _next(self, whole: bool = False) -> list[Group]:
        """The answers to score next; with `whole` up to and including the one too many tokens."""
        left = [group for one in self._open for group in one.groups[len(one.scores) :]]
        left = left[: self._max_batch]
        fitting = sum(tokens <= self._max_tokens for tokens in accumulate(map(len, left)))
        return left[: max(1, fitting + whole)]

    def _batch(self) -> None:
        groups = self._next()
        try:
            scores = self._score(groups)
        except Exception as error:
            self._fail(len(groups), error)
            return
        while scores:
            request = self._open[0]
            missing = len(request.groups) - len(request.scores)
            request.scores += scores[:missing]
            scores = scores[missing:]
            if len(request.scores) == len(request.groups):
                self._end(request)
                request.future.set_result(request.scores)

    def _fail(self, answers: int, error: Exception) -> None:
        """All requests with an answer in the batch fail with it."""
        while answers > 0:
            request = self._open[0]
            answers -= len(request.groups) - len(request.scores)
            self._end(request)
            request.future.set_exception(error)

    def _end(self, request: _Request) -> None:
        self._open.remove(request)
        with self._lock:
            self.waiting -= len(request.groups)
