"""Answers to scores by an HTTP service: posted in batches, tried again while that may help."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import chain
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from preference_data.records import Prompt
from reward_models.scoring import Answer, Scores, ScoringError, Tracked, checked, untracked

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds between two attempts: the first wait, doubled every time up to the longest."""
LARGEST = 64 << 20
"""Bytes of an answer that are read: a score is a few."""
SHOWN = 200
"""Characters of a service's answer that a message quotes."""


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would be repeated as a GET, and the token handed to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Service:
    """Answers posted as JSON, {"prompts": [...], "completions": [...]}, for {"scores": [...]}.

    A prompt is text, or of more than one user turn a list of {"role": ..., "content": ...}.
    """

    url: str
    name: str
    batch_size: int = 64
    """Answers in one request."""
    timeout: float = 60.0
    """Seconds that the service may be silent within one request."""
    patience: float = 300.0
    """Seconds for all attempts at one request: no connection, silence, 429 and 5xx are tried
    again after a wait that doubles."""
    token: str | None = field(default=None, repr=False)
    """Sent as the bearer token, and shown nowhere."""
    tracked: Tracked = field(default=untracked, repr=False, compare=False)
    """Around the requests"""

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("the token has characters that no header can carry")

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        parts = [
            answers[first : first + self.batch_size]
            for first in range(0, len(answers), self.batch_size)
        ]
        return Scores(list(chain.from_iterable(map(self._ask, self.tracked(parts)))))

    def _ask(self, answers: Sequence[Answer]) -> list[float]:
        body = json.dumps(
            {
                "prompts": [_posted(answer.prompt) for answer in answers],
                "completions": [answer.completion for answer in answers],
            }
        ).encode()
        text = self._post(body)
        try:
            found = json.loads(text)["scores"]
        except (ValueError, KeyError, TypeError):
            raise ScoringError(
                f"{self.name} ({self.url}) answered {self._quoted(text)}; it must answer JSON: "
                f'{{"scores": [{len(answers)} numbers]}}'
            ) from None
        return checked(found, answers, f"{self.name} ({self.url})")

    def _post(self, body: bytes) -> str:
        """The service's answer. Raises ScoringError when it refuses, or patience is over."""
        began = time.monotonic()
        for wait in _waits():
            try:
                return self._post_once(body)
            except _Again as error:
                wait = max(wait, error.wait)
                if time.monotonic() + wait - began > self.patience:
                    raise ScoringError(
                        f"{self.name} ({self.url}) {error}, still after "
                        f"{time.monotonic() - began:.0f} s; look whether the service runs, or "
                        f"raise patience or timeout"
                    ) from error.__cause__
                time.sleep(wait)
        raise AssertionError("the waits do not end")

    def _post_once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = Request(self.url, data=body, headers=headers, method="POST")
        if self.token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            with build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
                found = answer.read(LARGEST + 1)
            if len(found) > LARGEST:
                raise ScoringError(
                    f"{self.name} ({self.url}) answered more than {LARGEST >> 20} MiB; look at the "
                    f"address"
                )
            return found.decode("utf-8", "replace")
        except HTTPError as error:
            raise self._refusal(error) from None
        except TimeoutError as error:
            raise _Again(f"was silent for {self.timeout:g} s") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise _Again(f"was silent for {self.timeout:g} s") from error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ScoringError(f"{self.name} ({self.url}) is not trusted: {reason}") from error
            raise _Again(f"cannot be reached ({reason})") from error

    def _refusal(self, error: HTTPError) -> Exception:
        """What an HTTP status other than success is: another attempt, or the end."""
        with error:
            try:
                text = error.read(LARGEST).decode("utf-8", "replace")
            except (OSError, HTTPException):  # the status says enough
                text = ""
        said = f"answered {error.code} {error.reason}: {self._quoted(text)}"
        if error.code == 429 or error.code >= 500:
            return _Again(said, _seconds(error.headers.get("Retry-After")))
        advice = "look at the address and the token"
        if 300 <= error.code < 400:
            advice = f"write the address that it points to, {error.headers.get('Location')!r}"
        return ScoringError(f"{self.name} ({self.url}) {said}; {advice}")

    def _quoted(self, text: str) -> str:
        """The beginning of an answer, which may repeat the request's token."""
        if self.token:
            text = text.replace(self.token, "…")
        return repr(text[:SHOWN])


def _posted(prompt: Prompt) -> str | list[dict[str, str]]:
    """One user turn as its text, any other conversation as messages."""
    if len(prompt.messages) == 1 and prompt.messages[0].role == "user":
        return prompt.text
    return [message.to_json() for message in prompt.messages]


class _Again(Exception):
    """An attempt that failed in a way that may pass; `wait` seconds are asked for."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


def _waits() -> Iterator[float]:
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT)


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; 0 if there is none, or a date."""
    return float(header) if header is not None and header.isdecimal() else 0.0
