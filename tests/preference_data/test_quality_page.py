"""The quality page, read back as a browser would, and the tables that the terminal shows, too."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from preference_data import Judgement, Prompt, Response
from preference_data.quality import quality
from preference_data.quality.page import figures, tables, write_page
from preference_data.quality.report import Imported, QualityReport, Truncation

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The tags with their attributes, and the text by the tag that it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def judgements(who: str = "ann", model: str | None = None) -> list[Judgement]:
    """Two annotators on 30 prompts, of one mind; the longer answer always wins, once a tie."""
    rows: list[Judgement] = []
    for i in range(30):
        answers = (Response.from_text("x" * (20 + i), model), Response.from_text("y" * 9, "n"))
        order = (0, 1) if i % 2 else (1, 0)
        for name in (who, "bob"):
            row = Judgement(
                Prompt.from_text(f"{who} {i}"), answers, (1, 1) if i == 0 else (1, 2), name
            )
            rows.append(replace(row.permuted(order), position=(0, 1)))
    return rows


def report(**fields: object) -> QualityReport:
    return replace(quality(judgements()), **fields)  # type: ignore[arg-type]


def table(found: QualityReport, title: str) -> list[tuple[str, ...]]:
    [rows] = [table.rows for table in tables(found) if table.title == title]
    return rows


def page(found: QualityReport, tmp_path: Path) -> tuple[Page, str]:
    write_page(found, tmp_path / "made" / "page.html")
    text = (tmp_path / "made" / "page.html").read_text(encoding="utf-8")
    return Page(text), text


def test_tables_say_the_numbers_of_the_report():
    """58 decided judgements, the longer one the winner in all: Wilson's lower end of 58 of 58 is
    58 / (58 + 1.95996²) = 0.9379. Up to 35 characters (i = 15) are less than four times 9."""
    found = report()
    assert ("judgements", "60") in table(found, "What there is")
    assert ("label: tie", "2", "3.3 %") in table(found, "Kinds of judgements")
    assert ("equal verdicts", "1.000", "1.000 to 1.000") in table(found, "Agreement")
    assert table(found, "Length")[0] == ("the longer response wins", "100.0 %", "93.8 to 100.0")
    # The longer is shown first where i is odd: 15 times of 29.
    assert table(found, "Annotators")[0][:4] == ("ann", "30", "100.0 % of 30", "51.7 % of 29")
    assert table(found, "Length, by how much longer the longer response is") == [
        ("2 to 4", "30", "100.0 %", "88.6 to 100.0"),
        ("4 and more", "28", "100.0 %", "87.9 to 100.0"),
    ]


def test_what_the_data_cannot_tell_has_no_table_and_no_figure():
    found = quality([])
    titles = {table.title for table in tables(found)}
    assert titles.isdisjoint({"Agreement", "Annotators", "Position", "Length", "Models", "Import"})
    assert figures(found) == []
    assert [figure.title for figure in figures(report())] == [
        "Labels", "Agreement between annotators", "Annotators", "Position and length",
        "How often the longer response wins",
    ]  # fmt: skip


def test_import_and_truncation_are_told_where_they_are_known():
    imported = Imported("a.csv", "table", 64, 60, {"label_unknown": 3}, {"skipped": 1})
    found = report(imported=imported, truncation=Truncation(512, 60, 7, 2, 1, 900, 700))
    assert table(found, "Import") == [
        ("rows in", "64"), ("rows out", "60"), ("unusable: label_unknown", "3"),
        ("not counted: skipped", "1"),
    ]  # fmt: skip
    assert table(found, "Length of the model")[:2] == [
        ("longer than 512 tokens", "7"), ("of these, with nothing of the answer left", "2"),
    ]  # fmt: skip


def test_a_long_table_is_cut_and_says_so():
    rows = [row for i in range(25) for row in judgements(f"name{i:02}")]
    [cut] = [table for table in tables(quality(rows)) if table.title == "Annotators"]
    assert len(cut.rows) == 20
    assert cut.note.endswith("The first 20; 6 more are in the JSON.")  # 25 and bob


def test_the_page_shows_every_finding_table_and_figure(tmp_path: Path):
    found = report(folder="data/labels")
    assert [finding.level for finding in found.findings] == ["warning"]  # the longer always wins
    shown, _ = page(found, tmp_path)
    words = " ".join(" ".join(shown.text).split())
    for finding in found.findings:
        assert finding.sentence in words and finding.remedy in words
    for table in tables(found):
        assert table.title in words and all(cell in words for row in table.rows for cell in row)
    assert "data/labels" in words
    images = [attributes["src"] or "" for tag, attributes in shown.tags if tag == "img"]
    assert len(images) == len(figures(found)) == 5
    for image in images:
        drawing = ElementTree.fromstring(base64.b64decode(image.partition("base64,")[2]))
        assert drawing.tag.endswith("svg")


def test_a_page_without_findings_says_so(tmp_path: Path):
    shown, _ = page(report(findings=[]), tmp_path)
    assert "Nothing was found that calls for action." in " ".join(shown.text)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path):
    found = quality(judgements(HOSTILE, HOSTILE), folder=HOSTILE)
    shown, text = page(found, tmp_path)
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attributes in shown.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "default-src 'none'" in text
    # Its name, as a folder, an annotator and a model, is on the page all the same, as text.
    assert "".join(shown.text).count(HOSTILE) >= 3


def test_the_same_report_makes_the_same_page(tmp_path: Path):
    assert page(report(), tmp_path)[1] == page(report(), tmp_path)[1]


@pytest.mark.parametrize("name", ["$x^2$", "a_b", "名前"])
def test_words_of_the_data_are_no_markup_of_a_figure(tmp_path: Path, name: str):
    rows = judgements(name, name)
    assert len(figures(quality(rows))) == 5
