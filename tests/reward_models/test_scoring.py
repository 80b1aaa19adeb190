"""Scorers by themselves: what counts as a score, a service over HTTP, several rewards as one."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from loopback import serving

from preference_data.records import Message, Prompt
from reward_models import service
from reward_models.scoring import (
    Answer,
    Ensemble,
    Function,
    Part,
    Scorer,
    Scores,
    ScoringError,
    WeightedSum,
    checked,
    score,
)
from reward_models.service import Service

ANSWERS = [
    Answer(Prompt.from_text(prompt), completion)
    for prompt, completion in (("Why?", "Because."), ("Hot?", "No"), ("Name one.", ""))
]


def lengths(prompts: list[str], completions: list[str]) -> list[int]:
    return [len(completion) for completion in completions]


# --- what a score is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        [1, 2.5, -3],
        (1.0, 2.5, -3.0),
        [np.float32(1), np.int64(1) * 2.5, torch.tensor(-3)],
        np.array([1, 2.5, -3], dtype=np.float16),
        torch.tensor([1, 2.5, -3], dtype=torch.bfloat16),
        torch.tensor([1, 2.5, -3], requires_grad=True),
    ],
)
def test_numbers_of_every_library_are_scores(found: Any):
    values = checked(found, ANSWERS, "it")
    assert values == [1.0, 2.5, -3.0]
    assert {type(value) for value in values} == {float}


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([0.0, float("nan"), 1.0], "it gave nan in row 1 (prompt 'Hot?'); a score is a finite number"),
        (np.array([0, 1, -np.inf]), "it gave -inf in row 2 (prompt 'Name one.'); a score is a finite number"),
        ([0, 10**400, 1], "it gave inf in row 1 (prompt 'Hot?'); a score is a finite number"),
        ([0.0, 1.0], "it gave 2 scores for 3 answers"),
        ([0, "0.5", 1], "it gave '0.5' (str) in row 1 (prompt 'Hot?'); a score is a number"),
        ([0, None, 1], "it gave None in row 1 (prompt 'Hot?'); a score is a number"),
        ([0, 1, True], "it gave True (bool) in row 2 (prompt 'Name one.'); a score is a number"),
        (np.array([True, False, True]), "it gave True (bool) in row 0 (prompt 'Why?'); a score is a number"),
        (torch.zeros(3, 1), "it gave [0.0] (list) in row 0 (prompt 'Why?'); a score is a number"),
        ([torch.zeros(1), 0, 0], "it gave Tensor of shape [1] in row 0 (prompt 'Why?'); a score is a number"),
        (0.5, "it gave 0.5 (float); it must give a list of 3 numbers, one for each answer"),
        (None, "it gave None; it must give a list of 3 numbers, one for each answer"),
        ("abc", "it gave 'abc' (str); it must give a list of 3 numbers, one for each answer"),
        (torch.tensor(0.5), "it gave Tensor of shape []; it must give a list of 3 numbers, one for each answer"),
        ({0: 1}, "it gave {0: 1} (dict); it must give a list of 3 numbers, one for each answer"),
    ],
)  # fmt: skip
def test_whatever_is_no_score_is_refused_with_its_row(found: Any, sentence: str):
    with pytest.raises(ScoringError, match=f"^{re.escape(sentence)}$"):
        checked(found, ANSWERS, "it")


# --- a function -----------------------------------------------------------------------------------


def test_a_function_sees_text():
    """A conversation of several turns is one text, as it is displayed."""
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    seen: list[Any] = []

    def function(prompts: list[str], completions: list[str]) -> list[float]:
        seen.append((prompts, completions))
        return [0.5] * len(prompts)

    assert score(Function(function, "f"), ["Hot?", Prompt(turns)], ["No", "So."]) == [0.5, 0.5]
    assert seen == [(["Hot?", "user: Hi\nassistant: Hello\nuser: Why?"], ["No", "So."])]


def test_an_error_of_the_function_keeps_its_cause():
    def broken(prompts: list[str], completions: list[str]) -> list[float]:
        return [1 / len(completion) for completion in completions]

    with pytest.raises(ScoringError, match=r"^f raised ZeroDivisionError: .*test_scoring.py, line"):
        Function(broken, "f")(ANSWERS)
    try:
        Function(broken, "f")(ANSWERS)
    except ScoringError as error:
        assert isinstance(error.__cause__, ZeroDivisionError)


async def later(prompts: list[str], completions: list[str]) -> list[float]:
    return []


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda completions: [], "f cannot be called as f(prompts, completions)"),
        (lambda prompts, completions, more: [], "f cannot be called as f(prompts, completions)"),
        (lambda prompts, completions, *, key: [], "f cannot be called as f(prompts, completions)"),
        (later, "f is asynchronous; write it with def"),
    ],
)
def test_a_function_of_another_signature_is_refused(function: Any, sentence: str):
    with pytest.raises(ScoringError, match=f"^{re.escape(sentence)}$"):
        Function(function, "f")


def test_a_function_may_take_more_that_has_a_default():
    assert Function(lambda p, c, scale=2.0: [scale] * len(p), "f")(ANSWERS).values == [2.0] * 3


# --- several --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """Scores by the completion."""

    table: dict[str, float]

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        return Scores([self.table[answer.completion] for answer in answers])


MEMBERS = (
    Fixed({"Because.": 1.0, "No": 0.0, "": -2.0}),
    Fixed({"Because.": 2.0, "No": 0.0, "": 2.0}),
    Fixed({"Because.": 6.0, "No": 0.0, "": 0.0}),
)


@pytest.mark.parametrize(
    ("combine", "values"),
    [
        ("mean", [3.0, 0.0, 0.0]),
        ("min", [1.0, 0.0, -2.0]),
        ("mean_minus_std", [3 - 0.5 * (14 / 3) ** 0.5, 0.0, -0.5 * (8 / 3) ** 0.5]),
    ],
)
def test_an_ensemble_by_hand(combine: Any, values: list[float]):
    """Rows 1 2 6, 0 0 0 and -2 2 0. Means 3, 0, 0; population variances ((-2)^2 + (-1)^2 + 3^2) / 3
    = 14 / 3, 0 and (4 + 4 + 0) / 3 = 8 / 3; half a standard deviation is taken off."""
    found = Ensemble(MEMBERS, combine, std_weight=0.5)(ANSWERS)
    assert found.values == pytest.approx(values, abs=1e-12)
    assert found.parts["score_std"] == pytest.approx([(14 / 3) ** 0.5, 0, (8 / 3) ** 0.5])


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_std"])
def test_an_ensemble_of_equals_is_its_member(combine: Any):
    found = Ensemble((MEMBERS[0],) * 4, combine, std_weight=3.0)(ANSWERS)
    assert found == Scores([1.0, 0.0, -2.0], {"score_std": [0.0] * 3})


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_std"])
def test_the_order_of_the_members_does_not_matter(combine: Any):
    assert Ensemble(MEMBERS, combine)(ANSWERS) == Ensemble(MEMBERS[::-1], combine)(ANSWERS)


def test_a_weighted_sum_by_hand():
    """2 * (1, 0, -2) - .5 * (mean of the ensemble: 3, 0, 0) = .5, 0, -4; a part is logged before
    its weight, and what an ensemble logs below its own name."""
    parts = (
        Part(MEMBERS[0], 2.0, "short"),
        Part(Ensemble(MEMBERS), -0.5, "both"),
    )
    found = WeightedSum(parts)(ANSWERS)
    assert found.values == [0.5, 0.0, -4.0]
    assert found.parts == {
        "score/short": [1.0, 0.0, -2.0],
        "score/both": [3.0, 0.0, 0.0],
        "score/both_std": pytest.approx([(14 / 3) ** 0.5, 0, (8 / 3) ** 0.5]),
    }


def test_a_sum_of_one_part_of_weight_1_is_the_part():
    assert WeightedSum((Part(MEMBERS[1], 1.0, "a"),))(ANSWERS).values == [2.0, 0.0, 2.0]


def test_rows_keep_their_scores_in_any_order_and_batch():
    scorer: Scorer[Answer] = WeightedSum(
        (
            Part(Ensemble(MEMBERS, "mean_minus_std"), 1.5, "a"),
            Part(Function(lengths, "f"), 0.1, "b"),
        )
    )
    whole = scorer(ANSWERS).values
    assert scorer(ANSWERS[::-1]).values == whole[::-1]
    assert [scorer([answer]).values[0] for answer in ANSWERS] == whole


# --- a service ------------------------------------------------------------------------------------


@dataclass
class Server:
    """What the service answers, one after the other (the last for good), and what it was asked."""

    url: str = ""
    replies: list[Callable[[dict[str, Any]], tuple[int, Any]]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    reply_headers: dict[str, str] = field(default_factory=dict)

    def reply(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        make = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return make(body)


def right(body: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"scores": lengths(body["prompts"], body["completions"])}


def status(code: int, text: str = "busy") -> Callable[[dict[str, Any]], tuple[int, Any]]:
    return lambda body: (code, text)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.headers.append(dict(self.headers))
            code, found = state.reply(body)
            text = (found if isinstance(found, str) else json.dumps(found)).encode()
            try:
                self.send_response(code)
                for name, value in state.reply_headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except BrokenPipeError:  # it had waited long enough
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Handler) as address:
        state.url = f"{address}/score"
        yield state


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time; the clock goes on by them."""
    found: list[float] = []
    real = time.monotonic
    monkeypatch.setattr(service.time, "sleep", found.append)
    monkeypatch.setattr(service.time, "monotonic", lambda: real() + sum(found))
    return found


def test_a_service_is_watched_request_by_request(server: Server):
    """Five answers, two a request: before each, those before it have been posted."""
    server.replies = [right]
    seen: list[tuple[int, int]] = []

    def watch(parts: list[Any]) -> Iterator[Any]:
        for part in parts:
            seen.append((len(server.asked), len(part)))
            yield part

    answers = [Answer(Prompt.from_text(f"{i}?"), "x" * i) for i in range(5)]
    found = Service(server.url, "it", 2, tracked=watch)(answers)
    assert found.values == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert seen == [(0, 2), (1, 2), (2, 1)]


def test_a_service_keeps_the_order_over_batches(server: Server):
    server.replies = [right]
    answers = [Answer(Prompt.from_text(f"{i}?"), "x" * i) for i in range(7)]
    for batch_size in (1, 3, 7, 100):
        server.asked.clear()
        found = Service(server.url, "it", batch_size)(answers)
        assert found.values == [float(i) for i in range(7)]
        assert [len(body["prompts"]) for body in server.asked] == (
            [batch_size] * (7 // batch_size) + [7 % batch_size] * (7 % batch_size > 0)
        )
    assert server.asked == [
        {"prompts": [f"{i}?" for i in range(7)], "completions": ["x" * i for i in range(7)]}
    ]
    assert "Authorization" not in server.headers[0]
    assert Service(server.url, "it")([]).values == []


def test_what_may_pass_is_tried_again_after_a_wait_that_doubles(server: Server, waits: list[float]):
    server.replies = [status(500), status(503), status(429), right]
    assert Service(server.url, "it")(ANSWERS).values == [8.0, 2.0, 0.0]
    assert waits == [0.5, 1.0, 2.0]
    assert len({json.dumps(body) for body in server.asked}) == 1


def test_a_service_is_sent_the_turns_of_a_conversation(server: Server):
    """Flattened to one text, it would be another prompt than the reward model was trained on."""
    server.replies = [right]
    turns = (Message("system", "Be brief."), Message("user", "Why?"))
    Service(server.url, "it")([Answer(Prompt(turns), "x")])
    assert server.asked[0]["prompts"] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    ]


def test_a_service_may_say_how_long_to_wait(server: Server, waits: list[float]):
    server.replies = [status(429), right]
    server.reply_headers = {"Retry-After": "7"}
    Service(server.url, "it")(ANSWERS)
    assert waits == [7.0]


def test_patience_ends(server: Server, waits: list[float]):
    """Waits of .5, 1 and 2 s are over before 4 s, the next of 4 s would not be."""
    server.replies = [status(502, "Bad <b>gateway</b> " + "x" * 300)]
    with pytest.raises(ScoringError) as error:
        Service(server.url, "it", patience=4.0)(ANSWERS)
    assert waits == [0.5, 1.0, 2.0]
    quoted = ("Bad <b>gateway</b> " + "x" * 300)[:200]
    assert str(error.value).startswith(
        f"it ({server.url}) answered 502 Bad Gateway: {quoted!r}, still after "
    )
    assert str(error.value).endswith(
        " s; look whether the service runs, or raise patience or timeout"
    )


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_a_refusal_is_final(server: Server, waits: list[float], code: int):
    server.replies = [status(code, "no such route"), right]
    with pytest.raises(
        ScoringError,
        match=rf"answered {code} .*: 'no such route'; look at the address and the token$",
    ):
        Service(server.url, "it")(ANSWERS)
    assert waits == [] and len(server.asked) == 1


def test_a_silent_service_is_left_alone(server: Server, waits: list[float]):
    done = threading.Event()

    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        done.wait(5)
        return right(body)

    server.replies = [slow]
    with pytest.raises(ScoringError, match=r"was silent for 0.1 s, still after 0 s; look whether"):
        Service(server.url, "it", timeout=0.1, patience=0)(ANSWERS)
    server.replies = [slow, right]
    assert Service(server.url, "it", timeout=0.1)(ANSWERS).values == [8.0, 2.0, 0.0]
    assert waits == [0.5]
    done.set()


def test_nobody_at_the_address(server: Server, waits: list[float]):
    """A port that was just closed."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}/"
    with pytest.raises(ScoringError, match=r"cannot be reached \(.*refused\), still after 2 s"):
        Service(url, "it", patience=2.0)(ANSWERS)
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ("<html>Log in</html>", "answered '<html>Log in</html>'; it must answer JSON: "),
        ({"score": [1]}, """answered '{"score": [1]}'; it must answer JSON: {"scores": [3 numbers]}"""),
        ([1, 2, 3], "answered '[1, 2, 3]'; it must answer JSON: "),
        ({"scores": [1, 2]}, "gave 2 scores for 3 answers"),
        ({"scores": [1, None, 2]}, "gave None in row 1 (prompt 'Hot?'); a score is a number"),
        ('{"scores": [1, NaN, 2]}', "gave nan in row 1 (prompt 'Hot?'); a score is a finite number"),
        ({"scores": "123"}, "gave '123' (str); it must give a list of 3 numbers"),
    ],
)  # fmt: skip
def test_an_answer_that_holds_no_scores_is_shown(
    server: Server, waits: list[float], found: Any, sentence: str
):
    server.replies = [lambda body: (200, found)]
    with pytest.raises(ScoringError, match=re.escape(f"it ({server.url}) {sentence}")):
        Service(server.url, "it")(ANSWERS)
    assert len(server.asked) == 1


def test_a_token_is_sent_and_shown_nowhere(server: Server):
    server.replies = [lambda body: (403, "no: Bearer s3cret")]
    service = Service(server.url, "it", token="s3cret")
    with pytest.raises(ScoringError, match="answered 403 Forbidden: 'no: Bearer …'"):
        service(ANSWERS)
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(service)


def test_a_redirect_is_not_followed(server: Server):
    """It would come as a GET, and bring the token to wherever it points."""
    server.replies = [status(302, "")]
    server.reply_headers = {"Location": "http://127.0.0.1:9/other"}
    with pytest.raises(ScoringError, match=r"points to, 'http://127.0.0.1:9/other'$"):
        Service(server.url, "it", token="t")(ANSWERS)
    assert len(server.asked) == 1


def test_a_token_that_no_header_can_carry_is_not_quoted(server: Server):
    with pytest.raises(ValueError, match="characters that no header can carry") as error:
        Service(server.url, "it", token="secret\nhalf")
    assert "secret" not in str(error.value)


def test_an_answer_without_end_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, "LARGEST", 1 << 20)
    server.replies = [lambda body: (200, "x" * ((1 << 20) + 1))]
    with pytest.raises(ScoringError, match="answered more than 1 MiB"):
        Service(server.url, "it")([Answer(Prompt.from_text("?"), "x")])


def test_a_refusal_that_breaks_off_is_tried_again(server: Server, waits: list[float]):
    """503 with fewer bytes than it says: the status says enough."""
    server.reply_headers = {"Content-Length": "99999"}
    server.replies = [lambda body: (503, "half"), lambda body: (503, "half")]
    with pytest.raises(ScoringError, match="answered 503"):
        Service(server.url, "it", timeout=1.0, patience=1.0)([Answer(Prompt.from_text("?"), "x")])
    assert waits
