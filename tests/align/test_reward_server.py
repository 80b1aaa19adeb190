"""The reward model behind HTTP: real servers on a loopback port, asked as PPO asks."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from align.cli import main
from align.reward_server import Limits, make_app
from align.score_queue import ScoreQueue
from preference_data import forward_size
from preference_data.batches import Group
from preference_data.records import Prompt
from reward_models import RewardModel
from reward_models.scoring import Answer, ScoringError
from reward_models.service import Service

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["What is the capital of France?", "What is the opposite of hot?", "Name a colour."]
ANSWERS = ["The capital of France is Paris.", "cold", "Snow. By the way, it rained."]
LIMITS = Limits(max_batch=8, max_tokens=300, max_answers=30, max_body=20_000)


@pytest.fixture
def folder(save_reward: Callable[..., Path]) -> Path:
    return save_reward(mean=0.5, std=2.0)


@pytest.fixture
def model(folder: Path) -> RewardModel:
    return RewardModel.from_pretrained(folder)


Serve = Callable[..., int]


@pytest.fixture
def serve(model: RewardModel) -> Iterator[Serve]:
    """Starts a server in a thread and returns its port."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(limits: Limits = LIMITS, **options: Any) -> int:
        app = make_app(model, "toy", limits, **options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return server.servers[0].sockets[0].getsockname()[1]

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


def ask(
    port: int, body: Any, path: str = "/score", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    connection.request("POST", path, content, sent)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def service(port: int, **options: Any) -> Service:
    return Service(f"http://127.0.0.1:{port}/score", "toy", patience=0.0, **options)


def answers(prompts: Sequence[str], completions: Sequence[str]) -> list[Answer]:
    return [Answer(Prompt.from_text(p), c) for p, c in zip(prompts, completions, strict=True)]


def test_the_scores_are_those_that_a_reward_step_gives(serve: Serve, model: RewardModel):
    """(raw - 0.5) / 2; with --raw the head's own; a completion's control tokens are left out."""
    raw = model.score(PROMPTS, ANSWERS)
    found = service(serve())(answers(PROMPTS, ANSWERS)).values
    assert found == pytest.approx([(score - 0.5) / 2 for score in raw], abs=1e-5)
    port = serve(raw=True)
    assert service(port)(answers(PROMPTS, ANSWERS)).values == pytest.approx(raw, abs=1e-5)
    spelled = service(port)(answers(PROMPTS[:1], [ANSWERS[0] + "<|end|>"])).values
    assert spelled == pytest.approx(raw[:1], abs=1e-5)
    assert ask(port, {"prompts": [], "completions": []}, path="/") == (200, {"scores": []})


def test_a_prompt_may_be_messages(serve: Serve, model: RewardModel):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]}]
    body = {"prompts": [turns, PROMPTS[0]], "completions": ANSWERS[:1] * 2}
    status, found = ask(serve(raw=True), body)
    assert status == 200
    assert found["scores"] == pytest.approx(model.score(body["prompts"], ANSWERS[:1] * 2), abs=1e-5)


def test_twenty_clients_at_once_get_their_own_scores(serve: Serve, model: RewardModel):
    """Each asks for other answers, more than one batch holds, in a thread of its own."""
    port = serve(raw=True)
    texts = [[f"{ANSWERS[i % 3]} {client} {i}" for i in range(3 + client)] for client in range(20)]

    def client(own: list[str]) -> list[float]:
        return service(port)(answers([PROMPTS[len(own) % 3]] * len(own), own)).values

    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(client, texts))
    for own, scores in zip(texts, found, strict=True):
        expected = model.score([PROMPTS[len(own) % 3]] * len(own), own)
        assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"prompts": ["a", "b"], "completions": ["c"]}, 422, "2 prompts, but 1 completion"),
        ({"prompts": ["a"] * 31, "completions": ["c"] * 31}, 413, "31 answers; a request may hold 30"),
        ({"prompts": ["a", "b"], "completions": ["c", "d " * 90]}, 422, "row 1: a conversation of"),
        ({"prompts": ["<|end|>"], "completions": ["c"]}, 422, "row 0: the text holds the control"),
        ({"prompts": [[]], "completions": ["c"]}, 422, "row 0: A prompt needs at least one message"),
        ({"prompts": ["x" * 20_001], "completions": ["c"]}, 413, "a request may hold 20000 bytes"),
        ({"prompts": ["\ud800"], "completions": ["c"]}, 422, "row 0: the text holds half of a surrogate pair"),
        ({"prompts": ["a"], "completions": ["\udc80"]}, 422, "row 0: the text holds half of a surrogate pair"),
        ({"prompts": [[{"role": "user", "content": "\ud800"}]], "completions": ["c"]}, 422, "row 0: the text holds half"),
        ({"prompts": float("nan"), "completions": ["c"]}, 422, "valid list"),
        ({"prompts": ["a"], "completions": ["c"], "\ud800": 1}, 422, "valid string"),
        (b"no json", 422, "JSON decode error"),
        (b"\x80\x04N.", 400, "error parsing the body"),
        ({"prompts": [1], "completions": ["c"]}, 422, "valid string"),
        ({"prompts": ["a"]}, 422, "Field required"),
        ({"prompts": ["a"], "completions": ["b"], "temperature": 1}, 422, "Extra inputs"),
        ([1], 422, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(serve: Serve, body: Any, status: int, detail: str):
    """And the server goes on."""
    port = serve()
    code, found = ask(port, body)
    assert code == status
    assert detail in json.dumps(found["detail"])
    assert ask(port, {"prompts": PROMPTS, "completions": ANSWERS})[0] == 200


def test_a_body_without_a_length_is_counted(serve: Serve):
    """Sent in pieces, which no header announces."""
    port = serve()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_token_is_asked_for_before_anything_is_read(serve: Serve):
    port = serve(token="secret")
    body = {"prompts": PROMPTS, "completions": ANSWERS}
    assert ask(port, body)[0] == 401
    assert ask(port, b"x" * 30_000)[0] == 401
    assert ask(port, body, headers={"Authorization": "Bearer secre"})[0] == 401
    with pytest.raises(ScoringError, match="401"):
        service(port, token="other")(answers(PROMPTS, ANSWERS))
    assert len(service(port, token="secret")(answers(PROMPTS, ANSWERS)).values) == 3


def test_health_says_what_is_served(serve: Serve):
    connection = http.client.HTTPConnection("127.0.0.1", serve(token="secret"), timeout=30)
    connection.request("GET", "/health")
    found = json.loads(connection.getresponse().read())
    connection.close()
    expected = {"status": "ok", "model": "toy", "max_length": 64, "scores": "normalised"}
    assert found == expected


# --- the queue ---------------------------------------------------------------------------------


class Model:
    """Scores a group with its prompt's first id, once it is let; notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.error: Exception | None = None

    def __call__(self, groups: Sequence[Group]) -> list[float]:
        self.free.wait(30)
        self.batches.append([group.prompt[0] for group in groups])
        if self.error is not None:
            raise self.error
        return [float(group.prompt[0]) for group in groups]


def groups(*ids: int, length: int = 1) -> list[Group]:
    return [Group((one,) * length, ((9,),)) for one in ids]


def test_a_forward_pass_holds_what_suits_the_device(
    serve: Serve, model: RewardModel, monkeypatch: pytest.MonkeyPatch
):
    """One answer at a time where 1 token is read at once, unless the limits say otherwise."""
    monkeypatch.setattr(forward_size, "ON_CPU", 1)
    score, passes = model.batch_scores, []
    monkeypatch.setattr(
        model, "batch_scores", lambda batch: passes.append(batch.tokens) or score(batch)
    )
    body = {"prompts": PROMPTS, "completions": ANSWERS}
    for limits, count in ((Limits(), 3), (LIMITS, 1)):
        passes.clear()
        status, _ = ask(serve(limits), body)
        assert (status, len(passes)) == (200, count)


def test_requests_share_batches_of_a_limited_size():
    """The first batch takes what is there when it begins; then 3 answers a batch, whosever."""
    model = Model()
    queue = ScoreQueue(model, max_batch=3, max_tokens=100)
    first = queue.submit(groups(1, 2, 3))
    others = [queue.submit(groups(4, 5)), queue.submit(groups(6)), queue.submit(groups(7, 8))]
    assert queue.waiting == 8
    model.free.set()
    assert first.result(30) == [1.0, 2.0, 3.0]
    assert [one.result(30) for one in others] == [[4.0, 5.0], [6.0], [7.0, 8.0]]
    assert model.batches == [[1, 2, 3], [4, 5, 6], [7, 8]]
    queue.close()
    assert queue.waiting == 0
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(groups(1))


def test_a_batch_keeps_to_its_tokens():
    """Groups of 5 tokens under a limit of 12: two a batch; one of 21 goes alone."""
    model = Model()
    queue = ScoreQueue(model, max_batch=10, max_tokens=12)
    model.free.set()
    found = queue.submit([*groups(1, 2, 3, length=4), *groups(4, length=20), *groups(5)])
    assert found.result(30) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert model.batches == [[1, 2], [3], [4], [5]]
    queue.close()


def test_what_the_model_raises_goes_to_whoever_asked():
    model = Model()
    model.error = RuntimeError("out of memory")
    queue = ScoreQueue(model, max_batch=2, max_tokens=100)
    failed = queue.submit(groups(1, 2, 3))
    model.free.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        failed.result(30)
    model.error = None
    assert queue.submit(groups(4)).result(30) == [4.0]
    queue.close()


def test_closing_answers_what_is_waiting():
    model = Model()
    queue = ScoreQueue(model, max_batch=1, max_tokens=100)
    waiting = [queue.submit(groups(one)) for one in range(5)]
    closer = threading.Thread(target=queue.close)
    closer.start()
    model.free.set()
    closer.join(30)
    assert [one.result(0) for one in waiting] == [[float(one)] for one in range(5)]


# --- the command -------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_told_to_end(folder: Path, model: RewardModel):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "align.cli", "serve-reward", str(folder), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKEN": "secret"}
    process = subprocess.Popen(
        [*command, "--token-env", "TOKEN", "--raw"], env=environment, cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        own = Service(f"http://127.0.0.1:{port}", "toy", patience=120.0, token="secret")
        found = own(answers(PROMPTS, ANSWERS)).values
        assert found == pytest.approx(model.score(PROMPTS, ANSWERS), abs=1e-5)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: there is no such folder."),
        (["none", "--token-env", "NO_SUCH"], "--token-env names the environment variable NO_SUCH, which holds no token; put it there, in letters that a header can carry."),
    ],
)  # fmt: skip
def test_mistakes_are_a_sentence(arguments: list[str], message: str, capsys: Any):
    assert main(["serve-reward", *arguments]) == 2
    assert capsys.readouterr() == ("", message + "\n")


def test_an_address_where_nothing_can_listen_is_said_before_the_model_loads(
    tmp_path: Path, capsys: Any
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve-reward", str(tmp_path), "--port", str(port)]) == 2
    assert capsys.readouterr() == (
        "",
        f"--host 127.0.0.1, --port {port}: nothing can listen there: Address already in use.\n",
    )


def test_without_its_packages_the_command_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
):
    monkeypatch.delitem(sys.modules, "align.reward_server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve-reward", str(tmp_path)]) == 2
    assert "pip install fastapi uvicorn" in capsys.readouterr().err
