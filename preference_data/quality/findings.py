"""What the numbers of the quality report call for: sentences, each with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import log2
from typing import get_args

from preference_data.counts import counted
from preference_data.languages import UNKNOWN
from preference_data.quality.measures import CHOSEN_FIRST, FEW
from preference_data.quality.report import (
    Counts,
    Finding,
    Imported,
    Languages,
    LengthBias,
    Level,
    PersonalData,
    PositionBias,
    QualityReport,
    Repeats,
    SplitLeaks,
    Truncation,
)
from preference_data.quarantine import reasons_in_words
from preference_data.votes.agreement import Agreement, Interval
from preference_data.votes.annotators import AnnotatorQuality

_LEVELS = get_args(Level)
POSITION_MARGIN = 0.02
LENGTH_MARGIN = 0.05
"""Smaller differences from one half are not worth a finding, however certain they are."""
MANY_TIES = 1 / 3
MANY_FAULTS = 0.01
LOW_ALPHA = 0.4
MAIN_LANGUAGE = 0.9
NO_LANGUAGE = (UNKNOWN, "zxx")
CONTROLS_RIGHT = 0.7
ONE_SIDE = 0.6
LONG_RUN = 10
"""Longer than the log2(n) of n answers by chance: one in two thousand gets there by luck."""


def findings_of(report: QualityReport) -> list[Finding]:
    """The worst level first, and else in the order of the report."""
    return sorted(_findings(report), key=lambda finding: _LEVELS.index(finding.level))


def _findings(report: QualityReport) -> Iterator[Finding]:
    yield from _import_findings(report.imported)
    yield from _count_findings(report.counts)
    if report.agreement is not None:
        yield from _agreement_findings(report.agreement)
    yield from _annotator_findings(report)
    yield from _position_findings(report.position)
    if report.length is not None:
        yield from _length_findings(report.length)
    yield from _repeat_findings(report.repeats)
    yield from _leak_findings(report.leaks)
    yield from _language_findings(report.languages)
    yield from _personal_findings(report.personal_data)
    if report.truncation is not None:
        yield from _truncation_findings(report.truncation)


def _import_findings(imported: Imported | None) -> Iterator[Finding]:
    if imported is None or not imported.rows_in:
        return
    faults = sum(imported.faults.values())
    if faults > MANY_FAULTS * imported.rows_in:
        yield Finding(
            "warning",
            f"{faults:,} of {counted(imported.rows_in, 'row')} could not be used "
            f"({reasons_in_words(Counter(imported.faults))}).",
            "Read quarantine.jsonl, correct the file or the mapping, and import again.",
            faults,
        )


def _count_findings(counts: Counts) -> Iterator[Finding]:
    if not counts.decided and set(counts.by_kind) != {"binary"}:
        yield Finding(
            "error",
            "No judgement puts one response above another.",
            "Check the mapping of the label column; neither a reward model nor DPO learns from "
            "ties.",
            0,
        )
    elif counts.tie_share is not None and counts.tie_share > MANY_TIES:
        yield Finding(
            "note",
            f"{percent(counts.tie_share)} of the judgements are ties, which train nothing.",
            "Show answers that differ more, or ask for a leaning; keep the ties for aggregation.",
            counts.tie_share,
        )


def _agreement_findings(found: Agreement) -> Iterator[Finding]:
    alpha = found.alpha_nominal
    if alpha is not None and found.shared >= FEW and alpha.high < LOW_ALPHA:
        yield Finding(
            "warning",
            f"Annotators agree little beyond chance: Krippendorff's alpha is {alpha.value:.2f} "
            f"[{alpha.low:.2f}, {alpha.high:.2f}].",
            "Aggregate the votes before training, sharpen the guidelines where people differ, and "
            "expect no reward model to agree with single votes more than people do.",
            alpha.value,
        )


def _annotator_findings(report: QualityReport) -> Iterator[Finding]:
    """Each is about annotators whose interval lies wholly beyond the limit."""

    def shown(flag: Callable[[AnnotatorQuality], bool]) -> tuple[int, str]:
        names = [one.annotator for one in report.annotators if flag(one)]
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        return len(names), ", ".join(names[:5]) + more

    for flag, does, remedy in _FLAGS:
        # Where the file puts the winner first, everyone's answers are one long run.
        if flag is not _straight_lines or not report.position.without_order:
            count, names = shown(flag)
            if count:
                who = counted(count, "annotator")
                yield Finding("warning", f"{who} {does}: {names}.", remedy, count)


def _fails_controls(one: AnnotatorQuality) -> bool:
    rate = one.control.interval
    return rate is not None and rate.high < CONTROLS_RIGHT


def _disagrees(one: AnnotatorQuality) -> bool:
    rate = one.consensus.interval
    return rate is not None and one.consensus.of >= FEW and rate.high < 0.5


def _takes_a_side(one: AnnotatorQuality) -> bool:
    rate = one.left.interval
    beyond = rate is not None and (rate.low > ONE_SIDE or rate.high < 1 - ONE_SIDE)
    return beyond and one.left.of >= FEW


def _straight_lines(one: AnnotatorQuality) -> bool:
    return one.judgements >= FEW and one.longest_run >= log2(one.judgements) + LONG_RUN


_FLAGS: tuple[tuple[Callable[[AnnotatorQuality], bool], str, str], ...] = (
    (
        _fails_controls,
        f"got fewer than {CONTROLS_RIGHT:.0%} of the control items right",
        "Leave their judgements out.",
    ),
    (
        _disagrees,
        "agreed with fewer than half of the others' clear verdicts",
        "Read some of their judgements: a swapped scale looks like this. Leave them out, or "
        "aggregate with Dawid-Skene, which learns whom to trust.",
    ),
    (
        _takes_a_side,
        f"took one side in more than {ONE_SIDE:.0%} of the decided judgements",
        "Leave their judgements out, unless sides were not shuffled.",
    ),
    (
        _straight_lines,
        "gave the same answer many times in a row",
        "Read some of these judgements; leave out who does not read.",
    ),
)


def _position_findings(position: PositionBias) -> Iterator[Finding]:
    for name, decided in position.without_order.items():
        if name not in CHOSEN_FIRST:
            yield Finding(
                "warning",
                f"All {decided:,} decided judgements of the format {name or 'unknown'} have the "
                "winner in the same place.",
                "If the file lists the winner first, nothing is wrong and position cannot be "
                "checked; if it lists what was shown, the labels or their mapping are broken.",
                decided,
            )
    rate = position.first_wins
    if rate is not None and _clear(rate, POSITION_MARGIN):
        yield Finding(
            "warning",
            f"The response {'shown' if position.known else 'listed'} first wins "
            f"{_with_interval(rate)} of the decided judgements.",
            "Shuffle the sides for each annotator; for these labels, have some items judged again "
            "the other way round, and leave out annotators who always take one side.",
            rate.value,
        )
    if position.fixed_models:
        fixed = [f"{first} before {second}" for first, second in position.fixed_models]
        more = f" and {len(fixed) - 3:,} more" if len(fixed) > 3 else ""
        yield Finding(
            "warning",
            f"{counted(len(fixed), 'pair')} of models always "
            f"{'shown' if position.known else 'listed'} in the same order "
            f"({', '.join(fixed[:3])}{more}): a liking for the place looks like one for the model.",
            "Shuffle which model is shown first.",
            len(fixed),
        )


def _length_findings(length: LengthBias) -> Iterator[Finding]:
    rate, predictor = length.longer_wins, length.predictor_accuracy
    if not _clear(rate, LENGTH_MARGIN):
        return
    which = "longer" if rate.value > 0.5 else "shorter"
    share = rate if rate.value > 0.5 else Interval(1 - rate.value, 1 - rate.high, 1 - rate.low)
    learnt = ""
    if predictor is not None:
        learnt = (
            f" A predictor that sees only the lengths is right in {percent(predictor.value)} of "
            "held-out judgements."
        )
    yield Finding(
        "warning",
        f"The {which} response wins {_with_interval(share)}.{learnt}",
        "A reward model must beat that accuracy; also measure it on pairs of similar length, and "
        "watch the policy's length in training.",
        rate.value,
    )


def _repeat_findings(repeats: Repeats) -> Iterator[Finding]:
    if repeats.again:
        yield Finding(
            "note",
            f"The annotator had judged the same item before in "
            f"{counted(repeats.again, 'judgement')}, {repeats.reversed:,} of them in another "
            "order.",
            "Repeats measure consistency; aggregate before training, or these items count twice.",
            repeats.again,
        )
    if repeats.contradictions:
        yield Finding(
            "warning",
            f"Annotators contradict themselves on the same responses in "
            f"{counted(repeats.contradictions, 'judgement')}.",
            "Aggregate before training, and look at the annotators who contradict themselves most.",
            repeats.contradictions,
        )
    if repeats.unnamed_again:
        yield Finding(
            "note",
            f"{counted(repeats.unnamed_again, 'judgement')} without an annotator say the same of "
            "the same responses as one before.",
            "If they are copies, remove them; if they are votes, import the annotators' names.",
            repeats.unnamed_again,
        )
    if repeats.identical:
        yield Finding(
            "warning",
            f"A winner is named between responses of the same text in "
            f"{counted(repeats.identical, 'judgement')}.",
            "Remove them: they teach nothing, and show who does not read.",
            repeats.identical,
        )
    if repeats.cyclic_prompts:
        yield Finding(
            "note",
            f"Preferences go in a circle under {counted(repeats.cyclic_prompts, 'prompt')} "
            f"({repeats.cyclic_triangles:,} of {counted(repeats.triangles, 'triple')} of "
            "responses).",
            "No score can satisfy a circle: have these pairs judged again, or aggregate with "
            "Bradley-Terry.",
            repeats.cyclic_prompts,
        )


def _leak_findings(found: SplitLeaks) -> Iterator[Finding]:
    if found.shared or found.shared_nearly:
        yield Finding(
            "error",
            f"The given split has {counted(found.shared or 0, 'first user turn')} on both sides, "
            f"and {counted(found.shared_nearly or 0, 'group')} of near duplicates; "
            f"{counted(found.held_out_judgements, 'held-out judgement')} are not unseen.",
            "Remove these judgements from one side, or the given split, and split by prompt.",
            found.held_out_judgements,
        )
    elif found.clusters:
        yield Finding(
            "note",
            f"{counted(found.near_duplicates, 'first user turn')} say almost the same as another "
            f"one ({counted(found.clusters, 'group')}).",
            "Keep each group on one side of the split, or keep one prompt of each.",
            found.near_duplicates,
        )


def _language_findings(found: Languages) -> Iterator[Finding]:
    known = {code: share for code, share in found.responses.items() if code not in NO_LANGUAGE}
    told = sum(known.values())
    if told < 0.5:
        return
    main, share = max(known.items(), key=lambda item: item[1])
    if share / told < MAIN_LANGUAGE:
        shares = ", ".join(f"{code} {percent(part)}" for code, part in list(known.items())[:5])
        yield Finding(
            "note",
            f"The responses are in several languages ({shares}).",
            f"Evaluate each by itself, or keep {main} alone, if the model is to speak one.",
            share,
        )


def _personal_findings(found: PersonalData) -> Iterator[Finding]:
    if found.judgements:
        yield Finding(
            "warning",
            f"What looks like personal data or a secret is in "
            f"{counted(found.judgements, 'judgement')}; different texts by kind: "
            f"{reasons_in_words(Counter(found.found))}.",
            "Import again with --personal-data mask or drop: a model may repeat what it was "
            "trained on.",
            found.judgements,
        )
    if found.annotators:
        count = sum(found.annotators.values())
        yield Finding(
            "warning",
            f"The names of {counted(count, 'annotator')} are personal data "
            f"({reasons_in_words(Counter(found.annotators))}).",
            "Replace the names by pseudonyms with a key that stays with you.",
            count,
        )


def _truncation_findings(found: Truncation) -> Iterator[Finding]:
    if found.too_long:
        yield Finding(
            "error" if found.too_long > MANY_FAULTS * found.judgements else "warning",
            f"{found.too_long:,} of {counted(found.judgements, 'judgement')} would not be trained "
            f"on, being longer than {counted(found.max_length, 'token')}; in "
            f"{found.answer_lost:,} of them "
            "the prompt leaves no room for an answer.",
            f"Set max_length to {found.enough_for_99:,} to keep 99 %, or shorten the prompts.",
            found.too_long,
        )
    if found.not_rendered:
        yield Finding(
            "warning",
            f"This tokenizer's template refuses {counted(found.not_rendered, 'judgement')}, which "
            "would not be trained on.",
            "Look for control tokens in their text, and remove them or the judgements.",
            found.not_rendered,
        )


def percent(share: float) -> str:
    """As in "68.5 %"."""
    return f"{100 * share:.1f} %"


def _with_interval(rate: Interval) -> str:
    return f"{percent(rate.value)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _clear(rate: Interval, margin: float) -> bool:
    """Away from one half by more than the margin, and by more than chance."""
    return abs(rate.value - 0.5) > margin and not rate.low <= 0.5 <= rate.high
