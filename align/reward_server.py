"""A reward model behind HTTP, in the protocol that a reward `{url: …}` speaks.

POST / or /score: `{"prompts": […], "completions": […]}` for `{"scores": […]}`. A prompt is text or
a list of messages. GET /health says what is served. Nothing that comes over the network is
unpickled or run.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from align.config import ConfigError
from align.score_queue import ScoreQueue
from preference_data.batches import Group
from preference_data.counts import counted
from preference_data.forward_size import tokens_at_once
from preference_data.sources.carriers.files import bad_character

if TYPE_CHECKING:
    from reward_models import RewardModel

log = logging.getLogger("align")

BACKLOG = 16
"""Largest requests that may wait at once; what comes then is asked to come again."""


@dataclass(frozen=True)
class Limits:
    """What one request and one forward pass may hold."""

    max_batch: int = 64
    """Answers of a forward pass."""
    max_tokens: int | None = None
    """Tokens of a forward pass, unless one answer has more; None: as many as suit the device."""
    max_answers: int = 1024
    """Answers of a request."""
    max_body: int = 8 << 20
    """Bytes of a request."""


class Turn(BaseModel):
    """A message of a conversation."""

    role: str
    content: str


class Answers(BaseModel):
    """Completions, and the prompt beside each."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompts: list[str | list[Turn]]
    completions: list[str]


class Scores(BaseModel):
    """A score for each completion, in their order."""

    scores: list[float]


class Health(BaseModel):
    """What is served."""

    status: str
    model: str
    max_length: int
    """Tokens of a conversation."""
    scores: str
    """normalised: (score - mean) / std; or raw."""


def make_app(
    model: RewardModel, name: str, limits: Limits, raw: bool = False, token: str | None = None
) -> FastAPI:
    """The service. Scores are those that a reward step gives to PPO, (raw - mean) / std, unless
    `raw`; where there is a `token`, it is asked for as the bearer token."""

    tokens = limits.max_tokens or tokens_at_once(model.device.type)

    def score(groups: Sequence[Group]) -> list[float]:
        found = model.score_groups if raw else model.rewards
        return found(groups, tokens)

    queue = ScoreQueue(score, limits.max_batch, tokens)
    rendering = threading.Lock()  # a tokenizer is no two threads' at once

    def read(answers: Answers) -> list[Group]:
        with rendering:
            return _groups(model, answers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(queue.close)

    app = FastAPI(title="align reward model", lifespan=lifespan)
    app.add_middleware(_Gate, max_body=limits.max_body, token=token)

    async def scores(answers: Answers) -> Scores:
        """The score of each completion as an answer to the prompt beside it."""
        _check_size(answers, limits, queue)
        groups = await run_in_threadpool(read, answers)
        found = await asyncio.wrap_future(queue.submit(groups))
        for row, value in enumerate(found):
            if not math.isfinite(value):
                raise HTTPException(500, f"row {row}: the score is {value}")
        return Scores(scores=found)

    def health() -> Health:
        """What is served, for whoever looks whether it runs."""
        kind = "raw" if raw else "normalised"
        length = model.scoring.max_length
        return Health(status="ok", model=name, max_length=length, scores=kind)

    for path in ("/", "/score"):
        app.post(path)(scores)
    app.get("/health")(health)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(Exception, _failed)
    return app


def serve(
    model: RewardModel, name: str, host: str, port: int, limits: Limits, raw: bool = False,
    token: str | None = None,
) -> None:  # fmt: skip
    """Serves until SIGTERM or Ctrl-C; requests that have come are answered before it ends."""
    app = make_app(model, name, limits, raw, token)
    uvicorn.run(app, host=host, port=port, log_level="info", server_header=False)


def check_address(host: str, port: int) -> None:
    """Raises ConfigError where nobody can listen: no such host, or a port that is taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"--host {host}, --port {port}: nothing can listen there: {error.strerror}."
        ) from error


def read_token(variable: str) -> str:
    """The token in an environment variable. Raises ConfigError if there is none."""
    token = os.environ.get(variable, "").strip()
    if not token or not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"--token-env names the environment variable {variable}, which holds no token; put it "
            f"there, in letters that a header can carry."
        )
    return token


def _groups(model: RewardModel, answers: Answers) -> list[Group]:
    """The ids to score. Raises HTTPException 422 with the row that cannot be.

    As in PPO, a control token that a completion spells out is left out.
    """
    groups: list[Group] = []
    for row, (prompt, text) in enumerate(zip(answers.prompts, answers.completions, strict=True)):
        turns = prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
        texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
        try:
            if any(map(bad_character, [*texts, text])):  # which JSON can say, and no tokenizer read
                raise ValueError("the text holds half of a surrogate pair")
            groups.append(model.group_of(turns, model.without_control(text)))
        except ValueError as error:
            raise HTTPException(422, f"row {row}: {error}") from None
    return groups


def _check_size(answers: Answers, limits: Limits, queue: ScoreQueue) -> None:
    given, wanted = len(answers.prompts), len(answers.completions)
    if given != wanted:
        raise HTTPException(422, f"{counted(given, 'prompt')}, but {counted(wanted, 'completion')}")
    if wanted > limits.max_answers:
        raise HTTPException(
            413,
            f"{counted(wanted, 'answer')}; a request may hold {limits.max_answers}: send several",
        )
    if queue.waiting > BACKLOG * limits.max_answers:
        raise HTTPException(503, "too many answers are waiting", headers={"Retry-After": "1"})


async def _unreadable(_: Request, error: Exception) -> Response:
    """What is wrong with a request, in ASCII and without its texts: JSON may have read what it
    cannot write."""
    assert isinstance(error, RequestValidationError)
    found = [{key: one[key] for key in ("type", "loc", "msg")} for one in error.errors()]
    return Response(json.dumps({"detail": found}), 422, media_type="application/json")


async def _failed(_: Request, error: Exception) -> JSONResponse:
    log.error("A request failed: %s: %s", type(error).__name__, error)
    return JSONResponse({"detail": "the reward model failed; see the server's log"}, 500)


class _Gate:
    """Refuses a wrong token before the body is read, and a body once it is too long."""

    def __init__(self, app: ASGIApp, max_body: int, token: str | None):
        self._app = app
        self._max_body = max_body
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        length = headers.get(b"content-length", b"0")
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            refusal = JSONResponse(
                {"detail": "the token is missing or wrong"}, 401, {"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
        elif length.isdigit() and int(length) > self._max_body:
            await JSONResponse({"detail": self._too_long}, 413)(scope, receive, send)
        else:
            await self._app(scope, self._counted(receive), send)

    @property
    def _too_long(self) -> str:
        return f"a request may hold {self._max_body} bytes: send several"

    def _counted(self, receive: Receive) -> Callable[[], Any]:
        """A body may say nothing of its length, or something else than it has."""
        held = 0

        async def counted() -> Message:
            nonlocal held
            message = await receive()
            held += len(message.get("body", b""))
            if held > self._max_body:
                raise HTTPException(413, self._too_long)
            return message

        return counted
