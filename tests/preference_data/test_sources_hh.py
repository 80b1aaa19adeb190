"""Anthropic's HH transcripts: the rules on made rows, and the counts on the real files."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from real_data import real_data

from preference_data import import_data, read_judgements, read_preferences, read_prompts, sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records

OPENING = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"


def read_pair(folder: Path, chosen: str, rejected: str, kind: str = "preferences"):
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps({"chosen": chosen, "rejected": rejected}))
    _, items = read_records(str(path), kind, "hh", Reading())  # type: ignore[arg-type]
    (item,) = items
    return item if isinstance(item, Rejected) else item[0]


def turns(record) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


def test_the_shared_turns_are_the_prompt_and_text_is_verbatim(tmp_path):
    judgement = read_pair(tmp_path, OPENING + " No.\n\n1. a ", OPENING + "  No.\n\n1. b")
    assert turns(judgement.prompt) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]
    # One space belongs to the marker; a second one was written.
    assert [r.text for r in judgement.responses] == ["No.\n\n1. a ", " No.\n\n1. b"]
    assert judgement.ranks == (1, 2)


def test_an_answer_that_begins_like_the_other_is_a_whole_answer(tmp_path):
    judgement = read_pair(tmp_path, OPENING + " No, never.", OPENING + " No")
    assert [r.text for r in judgement.responses] == ["No, never.", "No"]


def test_histories_that_part_early_give_answers_of_several_turns(tmp_path):
    other = OPENING.replace("Why?", "How?")
    judgement = read_pair(tmp_path, OPENING + " x", other + " x")
    assert turns(judgement.prompt) == [("user", "Hi")]
    assert turns(judgement.responses[1]) == [
        ("assistant", "Hello"), ("user", "How?"), ("assistant", "x"),
    ]  # fmt: skip


def test_words_that_look_like_a_turn_inside_a_line_are_text(tmp_path):
    judgement = read_pair(tmp_path, OPENING + " Say\nHuman: x", OPENING + " Assistant: y")
    assert [r.text for r in judgement.responses] == ["Say\nHuman: x", "Assistant: y"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason", "detail"),
    [
        (
            OPENING + " x",
            OPENING + " x",
            "identical_responses",
            "chosen and rejected are identical.",
        ),
        (OPENING + " x", OPENING + " ", "empty_response", "the last answer of rejected is empty."),
        (
            OPENING + " x",
            OPENING + " y\n\nHuman: z",
            "ends_without_answer",
            "rejected does not end with an assistant turn.",
        ),
        (
            OPENING + " x",
            OPENING + " x\n\nHuman: z\n\nAssistant: y",
            "one_is_prefix",
            "chosen and rejected are the same as far as both go.",
        ),
        (
            "Human: Hi\n\nAssistant: x",
            OPENING + " y",
            "starts_without_human",
            "chosen does not start with a Human turn.",
        ),
        (
            "\n\nHuman: a\n\nAssistant: x",
            "\n\nHuman: b\n\nAssistant: x",
            "no_shared_prompt",
            "chosen and rejected share no prompt.",
        ),
    ],
)
def test_transcripts_that_are_set_aside(tmp_path, chosen, rejected, reason, detail):
    item = read_pair(tmp_path, chosen, rejected)
    assert isinstance(item, Rejected)
    assert (item.reason, item.detail) == (reason, f"row 1 (line 1): {detail}")


def test_the_other_views_read_the_chosen_transcript(tmp_path):
    whole = OPENING + " a\n\nAssistant: b"
    shown = read_pair(tmp_path, whole, "", "demonstrations")
    assert turns(shown.prompt)[-1] == ("user", "Why?")
    assert turns(shown.response) == [("assistant", "a"), ("assistant", "b")]
    assert read_pair(tmp_path, whole, "", "prompts") == shown.prompt
    assert read_pair(tmp_path, whole, "", "text") == whole


@pytest.mark.parametrize("kind", ["preferences", "demonstrations", "prompts", "text"])
def test_the_format_is_recognised_for_every_kind(tmp_path, kind):
    path = tmp_path / "pairs.jsonl"
    path.write_text("oops\n" + json.dumps({"chosen": OPENING + " x", "rejected": OPENING + " y"}))
    assert sniff(str(path), kind) == "hh"


@pytest.fixture
def real() -> Path:
    return real_data("hh-rlhf")


def test_the_real_files_count_as_published(real, tmp_path):
    """4,666 rows: all but 2 identical pairs and 8 empty last answers (4 in either file)."""
    report = import_data("preferences", str(real), tmp_path)
    assert (report.rows_in, report.rows_out, report.rows_quarantined) == (4666, 4656, 10)
    assert report.by_reason == {"empty_response": 8, "identical_responses": 2}
    assert (report.format, report.by_label, report.by_k) == ("hh", {"first": 4656}, {"2": 4656})
    rejects = [
        json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_bytes().splitlines()
    ]
    assert len({(reject["file"], reject["row"]) for reject in rejects}) == 10


@pytest.mark.parametrize(("split", "share"), [("helpful-base", 0.596), ("harmless-base", 0.442)])
def test_the_chosen_answer_is_the_longer_as_often_as_published(real, split, share, tmp_path):
    """preference-formats.md, 1.6, by another parser; to 0.5 %, since it counts lengths its own way.

    Taken the wrong way round the shares would be 0.40 and 0.56.
    """
    import_data("preferences", str(real / split / "test.jsonl.gz"), tmp_path)
    longer = [
        len(judgement.responses[0].text) > len(judgement.responses[1].text)
        for judgement in read_judgements(tmp_path)
    ]
    assert sum(longer) / len(longer) == pytest.approx(share, abs=0.005)


def test_real_transcripts_are_rebuilt_from_their_records(real):
    """Markers and texts put together again give the file's own characters."""
    path = real / "harmless-base" / "test.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    speaker = {"user": "Human", "assistant": "Assistant"}
    with pytest.warns(UserWarning, match=r"4 rows of .* were left out \(empty_response 4\)"):
        judgements = read_preferences(path)
    assert len(judgements) == 2308
    for judgement in judgements:
        row = rows[judgement.source.row - 1]
        for name, response in zip(("chosen", "rejected"), judgement.responses, strict=True):
            told = (*judgement.prompt.messages, *response.messages)
            parts = [f"\n\n{speaker[turn.role]}: {turn.content}" for turn in told]
            assert "".join(parts) == re.sub(r"(\n\n(Human|Assistant):) ?", r"\1 ", row[name])


def test_real_prompts_end_with_the_human(real, tmp_path):
    report = import_data("prompts", str(real / "*" / "test.jsonl.gz"), tmp_path, limit=500)
    assert report.rows_in == 500
    assert {prompt.messages[-1].role for prompt in read_prompts(tmp_path)} == {"user"}
