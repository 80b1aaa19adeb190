"""OpenAssistant's trees: flat and nested, ranks with gaps and holes, and the real file's counts."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from real_data import real_data

from preference_data import import_data, read_judgements, sniff
from preference_data.quarantine import Rejected
from preference_data.sources.carriers.files import Reading
from preference_data.sources.formats import read_records


def message(id: str, parent: str | None, text: str, rank: int | None = None, **rest) -> dict:
    role = rest.pop("role", "assistant")
    return {
        "message_id": id, "parent_id": parent, "text": text, "role": role, "rank": rank,
        "deleted": False, "review_result": True, "model_name": None, "message_tree_id": "t", **rest,
    }  # fmt: skip


ROOT = message("q", None, "Name a river.", role="prompter")


def read(folder: Path, rows: list[dict], kind: str = "preferences") -> list:
    path = folder / "trees.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sniff(str(path), kind) == "oasst"  # type: ignore[arg-type]
    _, items = read_records(str(path), kind, "oasst", Reading())  # type: ignore[arg-type]
    return list(items)


def reasons(items: list) -> list[str | None]:
    return [item.reason if isinstance(item, Rejected) else None for item in items]


def test_the_first_of_the_ranked_replies_carries_the_judgement(tmp_path):
    """Ranks 2 and 0 with a gap, and a reply without a rank, which is not the last one."""
    items = read(
        tmp_path,
        [
            message("b", "q", "A lake", 2),  # before its parent
            ROOT,
            message("a", "q", "The Elbe", 0, model_name="m"),
            message("c", "q", "A hill"),
        ],
    )
    assert reasons(items) == [None, "no_ranking", None, None]
    assert items[2:] == [(), ()]
    (judgement,) = items[0]
    assert [m.content for m in judgement.prompt.messages] == ["Name a river."]
    assert [r.text for r in judgement.responses] == ["A lake", "The Elbe", "A hill"]
    assert judgement.ranks == (3, 1, None)
    assert [r.model for r in judgement.responses] == [None, "m", None]
    assert (judgement.annotator_kind, judgement.group) == ("human_aggregate", "q")
    assert (judgement.source.format, judgement.source.row) == ("oasst", 1)
    assert [(c.chosen.text, c.rejected.text) for c in judgement.comparisons()] == [
        ("The Elbe", "A lake")
    ]


def test_the_thread_before_the_parent_is_the_prompt(tmp_path):
    items = read(
        tmp_path,
        [
            ROOT,
            message("a", "q", "The Elbe", 0),
            message("b", "q", "A lake", 1),
            message("q2", "a", "Another.", role="prompter"),
            message("x", "q2", "The Rhine", 1),
            message("y", "q2", "The Po", 0),
        ],
    )
    (judgement,) = items[4]
    assert [(m.role, m.content) for m in judgement.prompt.messages] == [
        ("user", "Name a river."), ("assistant", "The Elbe"), ("user", "Another."),
    ]  # fmt: skip
    assert judgement.ranks == (2, 1)


def test_what_is_not_ranked_is_set_aside_and_no_fault(tmp_path):
    items = read(
        tmp_path,
        [
            ROOT,
            message("a", "q", "The Elbe", 0),
            message("b", "q", "", None, deleted=True),
            message("c", "lost", "Alone"),
        ],
    )
    assert reasons(items) == ["no_ranking"] * 4
    assert all(item.expected for item in items)


def test_replies_to_a_lost_message_are_all_rejected(tmp_path):
    items = read(
        tmp_path,
        [
            message("a", "lost", "The Elbe", 0),
            message("b", "lost", "A lake", 1),
            message("c", "loop", "x", 0),
            message("d", "loop", "y", 1),
            message("loop", "c", "z", role="prompter"),
        ],
    )
    assert reasons(items) == ["parent_missing"] * 4 + ["no_ranking"]
    assert items[0].detail == "row 1 (line 1): parent_id 'lost' leads to no earlier message."
    assert not items[0].expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (message("b", "q", " ", 1), "empty_response"),
        (message("b", "q", "\ud83d", 1), "invalid_record"),
        (message("b", "q", "A lake", -1), "rank_invalid"),
        (message("b", "q", "A lake", 0.5), "rank_invalid"),  # type: ignore[arg-type]
        (message("", "q", "A lake", 1), "message_id_missing"),
        (message("b", "q", "A lake", 1, role="bot"), "role_unknown"),
        (message("q", None, "Name a sea.", role="prompter"), "duplicate_message"),
    ],
)
def test_rows_that_are_rejected(tmp_path, row, reason):
    items = read(tmp_path, [ROOT, row])
    other = [message("a", "q", "The Elbe", 0), message("c", "q", "The Po", 2)]
    if reason != "empty_response":
        assert reasons(items) == ["no_ranking", reason]
        assert reasons(read(tmp_path, [ROOT, row, *other]))[1:] == [reason, None, None]
    else:
        # One empty answer among the ranked ones: none of them can be compared with it.
        assert reasons(read(tmp_path, [ROOT, row, *other]))[1:] == [reason] * 3


def test_a_text_at_two_ranks_leaves_the_other_pairs(tmp_path):
    """a = c in words: a > b and b > c are kept, a > c says nothing. Weights add up to one."""
    items = read(
        tmp_path,
        [
            ROOT,
            message("a", "q", "The Elbe", 0),
            message("b", "q", "A lake", 1),
            message("c", "q", "The Elbe", 2),
        ],
    )
    judgements = items[1]
    assert items[2:] == [(), ()]
    pairs = [(j.responses[0].text, j.responses[1].text, j.ranks, j.weight) for j in judgements]
    assert pairs == [
        ("The Elbe", "A lake", (1, 2), 0.5), ("A lake", "The Elbe", (1, 2), 0.5),
    ]  # fmt: skip
    assert {j.group for j in judgements} == {"q"}
    assert [j.source.row for j in judgements] == [3, 4]
    assert len({j.id for j in judgements}) == 2


def test_two_identical_replies_alone_are_rejected(tmp_path):
    items = read(tmp_path, [ROOT, message("a", "q", "x", 0), message("b", "q", "x", 1)])
    assert reasons(items) == ["no_ranking", "identical_responses", "identical_responses"]


def nested(*replies: dict) -> dict:
    root = {key: value for key, value in ROOT.items() if key != "parent_id"}
    return {"message_tree_id": "t", "tree_state": "x", "prompt": {**root, "replies": [*replies]}}


def test_a_tree_in_one_row_gives_all_its_judgements(tmp_path):
    deeper = message(
        "q2", "a", "Another.", role="prompter",
        replies=[message("x", "q2", "The Rhine", 1), message("y", "q2", "The Po", 0)],
    )  # fmt: skip
    tree = nested(
        message("a", "q", "The Elbe", 0, replies=[deeper]), message("b", "q", "A lake", 1)
    )
    first, second = read(tmp_path, [tree])[0]
    assert ([r.text for r in first.responses], first.ranks) == (["The Elbe", "A lake"], (1, 2))
    assert ([r.text for r in second.responses], second.ranks) == (["The Rhine", "The Po"], (2, 1))
    assert len(second.prompt.messages) == 3


def test_trees_that_are_set_aside_or_rejected(tmp_path):
    items = read(
        tmp_path,
        [
            nested(message("a", "q", "The Elbe", 0)),
            nested(message("a", "q", "The Elbe", 0, replies="none")),
            nested("A lake"),  # type: ignore[arg-type]
        ],
    )
    assert reasons(items) == ["no_ranking", "wrong_type", "wrong_type"]
    assert [item.expected for item in items] == [True, False, False]


def test_demonstrations_are_the_best_replies_and_prompts_the_prompters(tmp_path):
    rows = [
        ROOT,
        message("a", "q", "The Elbe", 0),
        message("b", "q", "A lake", 1),
        message("c", "q", "buy this", None, review_result=False),
        message("q2", "a", "Thanks!", role="prompter"),
        message("d", "q2", "Welcome."),
    ]
    shown = read(tmp_path, rows, "demonstrations")
    assert reasons(shown) == ["no_answer", None, "ranked_lower", "not_accepted", "no_answer", None]
    assert (shown[5][0].response.text, len(shown[5][0].prompt.messages)) == ("Welcome.", 3)
    prompts = read(tmp_path, rows, "prompts")
    assert reasons(prompts) == [None, "no_prompt", "no_prompt", "no_prompt", None, "no_prompt"]
    assert [m.content for m in prompts[4][0].messages] == ["Name a river.", "The Elbe", "Thanks!"]


@pytest.fixture
def real() -> Path:
    return real_data("oasst")


def test_the_real_file_counts_as_published(real, tmp_path):
    """1,025 ordered pairs (data README). 418 groups have two ranks; one of them is split.

    That one ranks a text first and last of three, so it gives two pairs instead of a ranking.
    """
    report = import_data("preferences", str(real), tmp_path, max_quarantined=0.0)
    assert (report.rows_in, report.rows_out, report.rows_quarantined) == (2022, 1157, 865)
    assert (report.format, report.records) == ("oasst", 419)
    assert report.by_reason == {"no_ranking": 865}
    judgements = list(read_judgements(tmp_path))
    assert sum(len(judgement.comparisons()) for judgement in judgements) == 1025
    assert len({judgement.group for judgement in judgements}) == 418
    assert len({judgement.id for judgement in judgements}) == 419


def test_real_trees_give_the_same_nested_as_flat(real, tmp_path):
    """The flat messages nested by another way: the same judged pairs, tree by tree."""
    flat, trees = tmp_path / "flat", tmp_path / "trees"
    import_data("preferences", str(real), flat)
    rows = _messages(real)
    replies: dict[str | None, list[dict]] = {}
    for row in rows:
        replies.setdefault(row["parent_id"], []).append(row)

    def nest(row: dict) -> dict:
        return {**row, "replies": [nest(reply) for reply in replies.get(row["message_id"], [])]}

    path = tmp_path / "trees.jsonl"
    with path.open("w") as stream:
        for root in replies[None]:
            tree = {"message_tree_id": root["message_tree_id"], "prompt": nest(root)}
            stream.write(json.dumps(tree) + "\n")
    report = import_data("preferences", str(path), trees)
    assert report.rows_in == len(replies[None])
    assert pairs_of(trees) == pairs_of(flat)


def pairs_of(folder: Path) -> Counter:
    return Counter(
        (pair.prompt.id, pair.chosen.id, pair.rejected.id)
        for judgement in read_judgements(folder)
        for pair in judgement.comparisons()
    )


def test_real_ranks_agree_with_the_messages(real, tmp_path):
    """Every compared pair of the file itself, found by parent and rank alone."""
    import_data("preferences", str(real), tmp_path)
    ranked: dict[str, list[dict]] = {}
    for row in _messages(real):
        if row["rank"] is not None:
            ranked.setdefault(row["parent_id"], []).append(row)
    expected = Counter(
        tuple(m["text"] for m in sorted(pair, key=lambda m: m["rank"]))
        for siblings in ranked.values()
        for pair in combinations(siblings, 2)
        if pair[0]["text"] != pair[1]["text"]
    )
    found = Counter(
        (pair.chosen.text, pair.rejected.text)
        for judgement in read_judgements(tmp_path)
        for pair in judgement.comparisons()
    )
    assert found == expected


def _messages(real: Path) -> list[dict]:
    packed = (real / "en-validation.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]
