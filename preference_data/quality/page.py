"""The quality report to read: tables for any place, and one HTML page with figures.

The page loads nothing: styles and figures are inside it, and its content-security policy forbids
the rest. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preference_data.counts import counted, verb
from preference_data.figures import BLUE, INK, LINE, SOFT, svg
from preference_data.quality.findings import percent
from preference_data.quality.measures import FEW
from preference_data.quality.report import (
    Languages,
    LengthBias,
    PersonalData,
    PositionBias,
    QualityReport,
    Repeats,
    SplitLeaks,
)
from preference_data.votes.agreement import Agreement, Interval
from preference_data.votes.annotators import AnnotatorQuality, Proportion

SHOWN = 20
"""Lines of a table, at most; one more says how many there are."""


@dataclass(frozen=True, slots=True)
class Table:
    """Words and numbers as text; the columns after the first are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def tables(report: QualityReport) -> list[Table]:
    """What the report says, in the order in which it is read; without what it cannot tell."""
    found = [
        _counts(report),
        _quarantine(report),
        _labels(report),
        _agreement(report.agreement),
        _annotators(report.annotators),
        _position(report.position),
        *(_length(report.length) if report.length else ()),
        _repeats(report.repeats),
        _models(report),
        _leaks(report.leaks),
        _languages(report.languages),
        _personal_data(report.personal_data),
        _truncation(report),
    ]
    return [table for table in found if table is not None]


def write_page(report: QualityReport, path: Path) -> None:
    """Writes the report as one HTML file. Raises OSError if it cannot be written."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        report=report, tables=tables(report), figures=figures(report), counted=counted
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


# --- tables --------------------------------------------------------------------------------------


def _counts(report: QualityReport) -> Table:
    counts = report.counts
    rows = {
        "judgements": counts.judgements,
        "of them control items": counts.controls,
        "that put a response above another": counts.decided,
        "prompts": counts.prompts,
        "responses": counts.responses,
        "sets of responses": counts.items,
        "annotators named": counts.annotators,
    }
    return Table("What there is", ("", "number"), [(k, f"{n:,}") for k, n in rows.items()])


def _quarantine(report: QualityReport) -> Table | None:
    imported = report.imported
    if imported is None:
        return None
    rows = [("rows in", f"{imported.rows_in:,}"), ("rows out", f"{imported.rows_out:,}")]
    rows += [(f"unusable: {name}", f"{n:,}") for name, n in _largest(imported.faults)]
    rows += [(f"not counted: {name}", f"{n:,}") for name, n in _largest(imported.set_aside)]
    return Table(
        "Import", ("", "rows"), rows, f"From {imported.source}, read as {imported.format}."
    )


def _labels(report: QualityReport) -> Table:
    counts = report.counts
    rows: list[tuple[str, ...]] = []
    for title, numbers in (
        ("label", counts.by_label),
        ("answers", counts.by_k),
        ("kind", counts.by_kind),
        ("criterion", counts.by_criterion),
        ("annotator", counts.by_annotator_kind),
        ("split", counts.by_split),
    ):
        whole = sum(numbers.values())
        # What is the same everywhere is told once, by its absence.
        if len(numbers) > 1 or title in ("label", "answers"):
            found = numbers.items() if title == "answers" else _largest(numbers)
            rows += [(f"{title}: {name}", f"{n:,}", percent(n / whole)) for name, n in found]
    return Table("Kinds of judgements", ("", "judgements", "share"), rows)


def _largest(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))


def _agreement(found: Agreement | None) -> Table | None:
    if found is None or not _coefficients(found):
        return None
    rows = [(name, f"{rate.value:.3f}", _ends(rate, 3)) for name, rate in _coefficients(found)]
    return Table(
        "Agreement",
        ("measure", "value", "95 % interval"),
        rows,
        f"{found.shared:,} of {counted(found.items, 'pair')} "
        f"{verb(found.shared, 'has', 'have')} several verdicts; "
        f"{counted(found.annotators, 'annotator')}. 1 is perfect; 0 is chance, but for the share "
        "of equal verdicts.",
    )


def _coefficients(found: Agreement) -> list[tuple[str, Interval]]:
    rates = {
        "equal verdicts": found.percent,
        "Cohen's kappa": found.kappa,
        "Fleiss' kappa": found.fleiss,
        "alpha, nominal": found.alpha_nominal,
        "alpha, ordinal": found.alpha_ordinal,
    }
    return [(name, rate) for name, rate in rates.items() if rate is not None]


def _annotators(found: Sequence[AnnotatorQuality]) -> Table | None:
    rows = [
        (
            one.annotator,
            f"{one.judgements:,}",
            _share(one.consensus),
            _share(one.left),
            _share(one.ties),
            _share(one.repeats),
            _share(one.control),
            f"{one.longest_run:,}",
            "" if one.median_seconds is None else f"{one.median_seconds:,.0f}",
        )
        for one in found
    ]
    columns = (
        "annotator", "judgements", "agrees", "first shown", "ties", "repeats", "controls", "run",
        "seconds",
    )  # fmt: skip
    note = (
        "Agrees: with the others' most frequent verdict. First shown: wins of the response shown "
        "first. Repeats: the same verdict again. Run: the same answer in a row. Seconds: median."
    )
    return _cut(Table("Annotators", columns, rows, note)) if rows else None


def _share(part: Proportion) -> str:
    return f"{percent(part.hits / part.of)} of {part.of:,}" if part.of else ""


def _position(position: PositionBias) -> Table | None:
    rate = position.first_wins
    if rate is None:
        return None
    order = "where the file says that it was shown" if position.known else "in the listed order"
    return Table(
        "Position",
        ("", "share", "95 % interval"),
        [("the first response wins", percent(rate.value), _ends_in_percent(rate))],
        f"{counted(position.judgements, 'decided judgement')}, {order}.",
    )


def _length(length: LengthBias) -> tuple[Table, Table]:
    rates = {
        "the longer response wins": length.longer_wins,
        "a length-only predictor is right": length.predictor_accuracy,
    }
    rows = [(k, percent(r.value), _ends_in_percent(r)) for k, r in rates.items() if r is not None]
    rows.append(("correlation with the verdict", f"{length.correlation:.2f}", ""))
    buckets = [
        (
            _bucket_name(bucket.low, bucket.high),
            f"{bucket.judgements:,.0f}",
            percent(bucket.longer_wins.value),
            _ends_in_percent(bucket.longer_wins),
        )
        for bucket in length.buckets
    ]
    return (
        Table(
            "Length",
            ("", "value", "95 % interval"),
            rows,
            "In characters. The predictor is tested on prompts that it was not fitted to; a reward "
            "model must beat it.",
        ),
        Table(
            "Length, by how much longer the longer response is",
            ("times the shorter", "judgements", "longer wins", "95 % interval"),
            buckets,
        ),
    )


def _bucket_name(low: float, high: float | None) -> str:
    return f"{low:g} to {high:g}" if high is not None else f"{low:g} and more"


def _repeats(repeats: Repeats) -> Table:
    rows = {
        "judged again by the same annotator": repeats.again,
        "of these, in another order": repeats.reversed,
        "of these, contradicting the first time": repeats.contradictions,
        "repeats where no annotator is named": repeats.unnamed_again,
        "decisions between the same text": repeats.identical,
        "items with several annotators": repeats.shared_items,
        "of these, with opposite verdicts": repeats.opposed_items,
        "triples of responses, every pair decided": repeats.triangles,
        "of these, in a circle": repeats.cyclic_triangles,
        "prompts with a circle": repeats.cyclic_prompts,
    }
    return Table("Repeats and circles", ("", "number"), [(k, f"{n:,}") for k, n in rows.items()])


def _models(report: QualityReport) -> Table | None:
    rows = [
        (
            f"{pair.first} against {pair.second}",
            f"{pair.wins:,}",
            f"{pair.losses:,}",
            f"{pair.ties:,}",
            percent(pair.win_rate.value) if pair.win_rate else "",
            _ends_in_percent(pair.win_rate) if pair.win_rate else "",
        )
        for pair in report.models
    ]
    columns = ("models", "wins", "losses", "ties", "win rate", "95 % interval")
    return _cut(Table("Models", columns, rows)) if rows else None


def _leaks(found: SplitLeaks) -> Table:
    rows = {
        "first user turns": found.openings,
        "almost the same as another": found.near_duplicates,
        "groups of these": found.clusters,
        "on both sides of the given split": found.shared,
        "groups almost on both sides": found.shared_nearly,
    }
    known = [(k, f"{n:,}") for k, n in rows.items() if n is not None]
    return Table("Near duplicates and the split", ("", "number"), known)


def _languages(found: Languages) -> Table:
    codes = sorted(
        {*found.prompts, *found.responses},
        key=lambda code: (-found.responses.get(code, 0.0), -found.prompts.get(code, 0.0), code),
    )
    rows = [
        (code, percent(found.prompts.get(code, 0.0)), percent(found.responses.get(code, 0.0)))
        for code in codes
    ]
    note = "Of at most 2,000 texts each. und: too short to tell; zxx: no language."
    return _cut(Table("Languages", ("code", "prompts", "responses"), rows, note))


def _personal_data(found: PersonalData) -> Table:
    rows = [("judgements with any", found.judgements)]
    rows += [(f"texts with {kind}", n) for kind, n in found.found.items()]
    rows += [(f"annotators named by {kind}", n) for kind, n in found.annotators.items()]
    return Table("Personal data", ("", "number"), [(name, f"{n:,}") for name, n in rows])


def _truncation(report: QualityReport) -> Table | None:
    found = report.truncation
    if found is None:
        return None
    rows = {
        f"longer than {found.max_length:,} tokens": found.too_long,
        "of these, with nothing of the answer left": found.answer_lost,
        "that the template refuses": found.not_rendered,
        "judgements": found.judgements,
        "longest, in tokens": found.longest,
        "length that fits 99 %, in tokens": found.enough_for_99,
    }
    return Table("Length of the model", ("", "number"), [(k, f"{n:,}") for k, n in rows.items()])


def _cut(table: Table) -> Table:
    rest = len(table.rows) - SHOWN
    if rest <= 0:
        return table
    note = f"{table.note} The first {SHOWN}; {rest:,} more are in the JSON.".strip()
    return Table(table.title, table.columns, table.rows[:SHOWN], note)


def _ends(rate: Interval, digits: int) -> str:
    return f"{rate.low:.{digits}f} to {rate.high:.{digits}f}"


def _ends_in_percent(rate: Interval) -> str:
    return f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"


# --- figures -------------------------------------------------------------------------------------

HALF = {"color": INK, "linewidth": 0.8, "linestyle": (0, (3, 3))}


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing as a data URI, with what it shows."""

    title: str
    hint: str
    uri: str


def figures(report: QualityReport) -> list[Figure]:
    """Those that the data can fill."""
    found: list[Figure] = []
    if report.counts.by_label:
        found.append(_label_figure(report))
    if report.agreement is not None and _coefficients(report.agreement):
        found.append(_agreement_figure(report.agreement))
    if any(one.consensus.of for one in report.annotators):
        found.append(_annotator_figure(report.annotators))
    if report.position.first_wins is not None or report.length is not None:
        found.append(_bias_figure(report))
    if report.length is not None:
        found.append(_length_figure(report.length))
    return found


def _label_figure(report: QualityReport) -> Figure:
    bars = [(name.replace("_", " "), n) for name, n in _largest(report.counts.by_label)]
    if len(report.counts.by_k) > 1:
        bars += [(f"of {k} answers", n) for k, n in report.counts.by_k.items()]

    def draw(axes: Any) -> None:
        places = range(len(bars))
        axes.barh(places, [n for _, n in bars], color=SOFT, height=0.6)
        for place, (_, n) in zip(places, bars, strict=True):
            axes.text(n, place, f" {n:,}", va="center", fontsize=8)
        axes.set_yticks(places, [name for name, _ in bars], parse_math=False)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.margins(x=0.16)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)

    return Figure("Labels", "judgements", svg((4.2, 0.7 + 0.28 * len(bars)), draw))


def _agreement_figure(found: Agreement) -> Figure:
    rates = _coefficients(found)
    low = min(0.0, *(rate.low for _, rate in rates))
    return Figure("Agreement between annotators", "with 95 % intervals", _forest(rates, low))


def _bias_figure(report: QualityReport) -> Figure:
    length = report.length
    rates = {
        f"{'shown' if report.position.known else 'listed'} first wins": report.position.first_wins,
        "longer wins": length.longer_wins if length else None,
        "length-only predictor": length.predictor_accuracy if length else None,
    }
    known = [(name, rate) for name, rate in rates.items() if rate is not None]
    title, hint = "Position and length", "with 95 % intervals; 0.5 is no bias"
    return Figure(title, hint, _forest(known, 0.0, middle=0.5))


def _forest(rates: Sequence[tuple[str, Interval]], low: float, middle: float | None = None) -> str:
    """Values with their intervals, one under the other, from `low` to 1."""

    def draw(axes: Any) -> None:
        for place, (_, rate) in enumerate(rates):
            axes.plot([rate.low, rate.high], [place, place], color=BLUE, linewidth=2)
            axes.plot([rate.value], [place], "o", color=BLUE, markersize=6)
        if middle is not None:
            axes.axvline(middle, **HALF)
        axes.set_yticks(range(len(rates)), [name for name, _ in rates])
        axes.set_ylim(len(rates) - 0.4, -0.6)
        axes.set_xlim(low, 1)
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)

    return svg((4.2, 0.8 + 0.32 * len(rates)), draw)


def _annotator_figure(found: Sequence[AnnotatorQuality]) -> Figure:
    """Against the side that they take, or where it is not known against how much they did."""
    sides = any(one.left.of >= FEW for one in found)
    known = [one for one in found if one.consensus.of and (one.left.of >= FEW or not sides)]

    def draw(axes: Any) -> None:
        across = [one.left.hits / one.left.of if sides else float(one.judgements) for one in known]
        agrees = [one.consensus.hits / one.consensus.of for one in known]
        alpha = 0.35 if len(known) > 100 else 0.9
        axes.plot(across, agrees, "o", color=BLUE, markersize=4, alpha=alpha, markeredgewidth=0)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("agrees with the others")
        axes.axhline(0.5, **HALF)
        if sides:
            axes.axvline(0.5, **HALF)
            axes.set_xlim(-0.03, 1.03)
            axes.set_xlabel("share of wins of the response shown first")
        else:
            axes.set_xscale("log")
            axes.set_xlabel("judgements")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)

    hint = f"a point each; from {FEW} decided judgements up" if sides else "a point each"
    return Figure("Annotators", hint, svg((4.2, 2.6), draw))


def _length_figure(length: LengthBias) -> Figure:
    def draw(axes: Any) -> None:
        for place, bucket in enumerate(length.buckets):
            rate = bucket.longer_wins
            axes.plot([place, place], [rate.low, rate.high], color=BLUE, linewidth=2)
            axes.plot([place], [rate.value], "o", color=BLUE, markersize=6)
        names = [_bucket_name(bucket.low, bucket.high) for bucket in length.buckets]
        short = [name.replace(" to ", "–").replace(" and more", "+") for name in names]
        axes.set_xticks(range(len(names)), short)
        axes.tick_params(axis="x", labelsize=8)
        axes.axhline(0.5, **HALF)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(0, 1)
        axes.set_xlabel("characters of the longer / of the shorter")
        axes.set_ylabel("longer wins")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)

    return Figure(
        "How often the longer response wins", "with 95 % intervals", svg((4.2, 2.6), draw)
    )
