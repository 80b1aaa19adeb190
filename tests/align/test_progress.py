"""Progress: what a bar says of rate and time left, when a line is written, and when nothing is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from align import progress
from align.progress import Bar, place_of, silent, tracked


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    monkeypatch.setattr(progress._display, "bars", [])
    monkeypatch.delenv("RANK", raising=False)
    return found


def test_rate_and_time_left_are_those_of_this_process(clock: Clock):
    """3 of 10 in 6 s are 0.5 a second, which is 30 a minute; 7 more take 14 s, of which 2 have
    passed since. Of a resumed thing with 6 done, 2 in 4 s leave 2 for 4 s."""
    bar = Bar("training", 10, "steps", 0)
    assert bar.words() == "0/10 steps, 0.0 s"
    clock.now += 6
    bar.advance(3)
    assert bar.words() == "3/10 steps, 30/min, 14 s left"
    clock.now += 2
    assert bar.words(" of ") == "3 of 10 steps, 30/min, 12 s left"
    resumed = Bar("training", 10, "steps", 6)
    clock.now += 4
    resumed.advance(2)
    assert resumed.words() == "8/10 steps, 30/min, 4 s left"


@pytest.mark.parametrize(
    ("rate", "words"),
    [(1234.0, "1,234/s"), (1.0, "1/s"), (0.5, "30/min"), (1 / 60, "1/min"), (0.01, "36/h")],
)
def test_a_rate_is_said_by_the_time_that_makes_it_more_than_one(rate: float, words: str):
    assert progress._rate_in_words(rate) == words


def test_a_share_of_the_bytes_says_how_many_rows_there_will_be(clock: Clock):
    """100 rows that are a quarter of the bytes: 400 in all, and 300 more take three times 5 s."""
    bar = Bar("import", None, "rows", 0)
    clock.now += 5
    bar.advance(100, None)
    assert bar.words() == "100 rows, 20/s, 5.0 s"
    bar.advance(0, 0.25)
    assert bar.words() == "100/400 rows, 20/s, 15 s left"


def test_without_a_terminal_a_line_comes_after_half_a_minute_of_silence(
    clock: Clock, capsys: pytest.CaptureFixture[str]
):
    """Every 10 s one of 20: lines after 30, and then, as a log line comes at 50, after 80."""
    with progress.progress("ppo"), progress.progress("training", 20, "iterations") as bar:
        for number in range(1, 10):
            clock.now += 10
            if number == 5:
                progress.said()
            bar.advance()
    assert capsys.readouterr() == (
        "",
        "ppo, training: 3 of 20 iterations, 6/min, 2 min 50 s left\n"
        "ppo, training: 8 of 20 iterations, 6/min, 2 min 0 s left\n",
    )


def test_what_runs_within_is_named_and_does_not_hide_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
):
    with progress.progress("ppo"), progress.progress("training", 4, "iterations") as bar:
        clock.now += 15
        bar.advance()
        with progress.progress("sampling", 48, "tokens") as inner:
            clock.now += 20
            inner.advance(12)
    assert capsys.readouterr().err == (
        "ppo, training: 1 of 4 iterations, 4/min, 25 s left (sampling)\n"
    )


@pytest.mark.parametrize("how", ["silent", "rank"])
def test_the_silent_and_other_ranks_say_nothing(
    how: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def work() -> None:
        with progress.progress("training", 4) as bar:
            clock.now += 100
            bar.advance()

    if how == "rank":
        monkeypatch.setenv("RANK", "1")
        work()
    else:
        with silent():
            work()
        assert not progress.is_silent()
    assert capsys.readouterr() == ("", "")


def test_what_an_exception_leaves_within_ends_with_what_is_around_it(clock: Clock):
    items = tracked(range(3), "reading", "batches")
    with pytest.raises(KeyError), progress.progress("sft"):
        next(items)
        raise KeyError
    assert progress._display.bars == []
    items.close()
    assert progress._display.bars == []


def test_tracked_gives_every_item_and_counts_on(clock: Clock):
    seen: list[tuple[str, str]] = []
    for item in tracked(iter("cd"), "reading", "rows", total=4, done=2):
        seen.append((item, progress._display.bars[-1].counted()))
    assert seen == [("c", "2/4"), ("d", "3/4")]


def test_a_log_line_knows_its_total_and_the_time_left(clock: Clock):
    """Step 2 of 10 after 8 s: 4 s a step, 32 s left; whether the bar was told already or not."""
    with progress.progress("sft"), progress.progress("training", 10) as bar:
        bar.advance()
        clock.now += 8
        early = place_of(2)
        bar.advance()
        assert early == place_of(2) == progress.Place(2, 10, 32.0)
        assert place_of(7) == progress.Place(7, None, None)
    assert place_of(2) == progress.Place(2, None, None)


def test_a_member_counts_on_from_those_before_it(clock: Clock):
    """The second member's step 3 is the 13th of 20; 7 more at 2 s each."""
    member = progress.progress("member 2 of 2", within=(10, 20))
    with progress.progress("reward"), member, progress.progress("training", 10) as bar:
        clock.now += 6
        bar.advance(3)
        assert place_of(13) == progress.Place(13, 20, 14.0)


@pytest.mark.parametrize("width", [20, 40, 80, 160])
def test_the_bar_is_one_line_however_narrow_the_terminal_is(
    width: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    out = Console(file=io.StringIO(), width=width, force_terminal=True)
    monkeypatch.setattr(progress._display, "_console", out)
    bars = [Bar("reward", None, "steps", 0), Bar("member 1 of 2", None, "steps", 0),
            Bar("training", 2000, "steps", 0)]  # fmt: skip
    clock.now += 10
    bars[-1].advance(1000)
    monkeypatch.setattr(progress._display, "bars", bars)
    with out.capture() as captured:
        out.print(progress._display.drawn())
    plain = Console(file=io.StringIO(), no_color=True, width=width)
    [line] = plain.render_str(captured.get()).plain.splitlines()
    shown = "".join(part.partition("m")[2] for part in ("m" + line).split("\x1b["))
    assert len(shown) <= width
    assert "1,000/2,000" in shown
    assert ("━" in shown) == (width >= 80)


def test_near_duplicates_tell_of_every_text_once():
    from preference_data.near_duplicates import near_duplicates

    texts = {"a": "one two three", "b": "One, two: three!", "c": "something else entirely"}
    looked: list[int] = []
    near_duplicates(texts, 0.8, looked.append)
    assert sum(looked) == 3


def test_an_import_tells_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """2,500 rows read one by one are told of by the thousand; the rest at the end, by the report.
    A table cut into segments tells of all of them, and last that all bytes are read."""
    from preference_data.sources import importing, segments

    path = tmp_path / "labels.csv"
    rows = [f"What is {n}?,one,two,{'AB'[n % 2]}" for n in range(2500)]
    path.write_text("\n".join(["prompt,response_a,response_b,label", *rows]) + "\n")
    told: list[tuple[int, float | None]] = []

    def advance(more: int, share: float | None) -> None:
        told.append((more, share))

    importing.import_data("preferences", str(path), tmp_path / "one", advance=advance)
    assert told == [(1000, None), (1000, None)]
    told.clear()
    monkeypatch.setattr(segments, "SMALLEST_FILE", 1)
    monkeypatch.setattr(segments, "_cores", lambda: 2)
    importing.import_data("preferences", str(path), tmp_path / "parts", advance=advance)
    assert sum(more for more, _ in told) == 2500
    assert told[-1][1] == 1.0
