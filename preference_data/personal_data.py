"""Personal data and secrets in texts: email, phone, card, IBAN, IP address, keys; and pseudonyms.

Patterns with checksums and contexts, made to raise few false alarms: names, postal addresses and
numbers without a recognisable form are not found.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Literal, TypeVar, cast, get_args

from preference_data.quarantine import RowFault, SetAside
from preference_data.records import Demonstration, Judgement, Message, Prompt, Response

Kind = Literal["secret_key", "email", "iban", "payment_card", "ip_address", "phone"]
Treatment = Literal["report", "mask", "drop"]
R = TypeVar("R", Prompt, Demonstration, Judgement)

_TREATMENTS = get_args(Treatment)
SHORTEST_KEY = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """text[start:end] is of this kind."""

    kind: Kind
    start: int
    end: int


def find(text: str) -> list[Finding]:
    """What is found in a text, in order and without overlap.

    Documentation's placeholders with a valid form count, too: they cannot be told apart.
    """
    found: list[Finding] = []
    taken = bytearray(len(text))
    for kind, search in _SEARCHES:
        for start, end in search(text):
            if taken.find(1, start, end) == -1:
                found.append(Finding(kind, start, end))
                taken[start:end] = b"\1" * (end - start)
    return sorted(found, key=lambda finding: finding.start)


def mask(text: str) -> str:
    """The text with "[EMAIL]", "[PHONE]", "[PAYMENT_CARD]", … in place of what was found."""
    parts: list[str] = []
    done = 0
    for finding in find(text):
        parts += [text[done : finding.start], f"[{finding.kind.upper()}]"]
        done = finding.end
    return "".join(parts) + text[done:]


def treat(record: R, treatment: Treatment) -> tuple[R, Counter[Kind]]:
    """The record and how often each kind was found in its messages, comment and raw row.

    "report" leaves the record as it is; "mask" masks it, which changes its ids, so it comes before
    a split; "drop" raises SetAside where anything was found. Masked answers that differed in
    personal data alone raise RowFault. Annotators are no part of this: see `pseudonym`. Raises
    ValueError for another treatment.
    """
    if treatment not in _TREATMENTS:
        raise ValueError(f"A treatment is one of {', '.join(_TREATMENTS)}, not {treatment!r}.")
    found: Counter[Kind] = Counter()
    places: dict[str, None] = {}
    for place, text in _texts(record):
        for finding in find(text):
            found[finding.kind] += 1
            places[place] = None
    if not found or treatment == "report":
        return record, found
    if treatment == "drop":
        # Neither the kinds' values nor their spans: the reason is kept, the data is not.
        kinds = ", ".join(kind for kind in get_args(Kind) if found[kind])
        raise SetAside("personal_data", f"{', '.join(places)}: {kinds} found.")
    return _masked(record), found


def pseudonym(annotator: str, key: bytes) -> str:
    """16 hex digits that stand for an annotator, the same wherever the key is the same.

    An HMAC-SHA256: a plain hash of a worker's id is undone by hashing all known ids. Keep the key
    out of the data's folder. Raises ValueError if it has fewer than 16 bytes.
    """
    if len(key) < SHORTEST_KEY:
        raise ValueError(
            f"A pseudonym's key needs {SHORTEST_KEY} bytes or more, not {len(key)}. "
            "secrets.token_bytes(32) makes one."
        )
    return hmac.new(key, annotator.encode(), hashlib.sha256).hexdigest()[:16]


def _texts(record: Prompt | Demonstration | Judgement) -> Iterator[tuple[str, str]]:
    """Where each text is, and the text."""
    if isinstance(record, Prompt):
        yield from (("prompt", message.content) for message in record.messages)
    elif isinstance(record, Demonstration):
        yield from _texts(record.prompt)
        yield from (("response", message.content) for message in record.response.messages)
    else:
        yield from _texts(record.prompt)
        for number, response in enumerate(record.responses, start=1):
            yield from ((f"response {number}", message.content) for message in response.messages)
        yield "comment", record.comment or ""
        yield from (("raw row", text) for text in _strings(record.raw))


def _masked(record: R) -> R:
    if isinstance(record, Prompt):
        return replace(record, messages=_masked_messages(record.messages))
    prompt: Prompt = _masked(record.prompt)
    if isinstance(record, Demonstration):
        return replace(record, prompt=prompt, response=_masked_response(record.response))
    responses = tuple(_masked_response(response) for response in record.responses)
    _check_still_distinct(record, responses)
    return replace(
        record,
        prompt=prompt,
        responses=responses,
        comment=None if record.comment is None else mask(record.comment),
        raw=None if record.raw is None else json.dumps(masked_json(json.loads(record.raw))),
    )


def _masked_messages(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(replace(message, content=mask(message.content)) for message in messages)


def _masked_response(response: Response) -> Response:
    return replace(response, messages=_masked_messages(response.messages))


def _check_still_distinct(record: Judgement, masked: Sequence[Response]) -> None:
    rank_of: dict[tuple[Message, ...], int] = {}
    for response, rank in zip(masked, record.ranks, strict=True):
        if rank is not None and rank_of.setdefault(response.messages, rank) != rank:
            raise RowFault(
                "identical_responses",
                "two answers differ in personal data alone, and one is ranked above the other.",
            )


def _strings(raw: str | None) -> Iterator[str]:
    """The texts in a row that was kept as JSON."""
    open_values: list[Any] = [] if raw is None else [json.loads(raw)]
    while open_values:
        value = open_values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            open_values += reversed(cast(dict[str, Any], value).values())
        elif isinstance(value, list):
            open_values += reversed(cast(list[Any], value))


def masked_json(value: Any) -> Any:
    """The JSON value with every text in it masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: masked_json(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [masked_json(item) for item in cast(list[Any], value)]
    return value


Spans = Iterator[tuple[int, int]]

# Every repetition is bounded or begins where nothing alike comes before it, so that no text, of
# megabytes without a space, takes quadratic time.
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?s:.{0,8000}?)-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"|[\w+/=\s\\]{0,8000})"
    r"|(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|gh[opsur]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|hf_[A-Za-z0-9]{30,40}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,250}"  # Stripe
    # Words joined by hyphens ("sk-learn-…") have no digit or no capital.
    r"|sk-(?=[A-Za-z_-]{0,200}[0-9])(?=[a-z0-9_-]{0,200}[A-Z])[A-Za-z0-9_-]{20,250}"
    r")(?![A-Za-z0-9])"
)
_AWS_SECRET = re.compile(
    r"(?i)\baws_?secret(?:_?access)?_?key[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
    r"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
)
_EMAIL = re.compile(
    r"(?<![\w.+%@-])[\w+%-](?:[\w.+%'-]{0,62}[\w+%-])?@"
    r"(?>(?:[^\W_](?:[^\W_]|-){0,62}\.){1,8}[^\W\d_]{2,24})(?![\w@-])"
    # git@host:path and a @ b.method() are code.
    r"(?!:[\w/~]|[(\[])"
)
_FILE_ENDINGS = ("png", "jpg", "jpeg", "gif", "svg", "webp")
"""As in "icon@2x.png"."""
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})[0-9]{2}(?= ?[A-Z0-9])")
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH CR HR LI LV",
        22: "BG BH DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
    }.items()
    for country in countries.split()
}
"""Letters and digits in all, by country: the registry of ISO 13616."""
_CARD = re.compile(
    r"(?<![\w.,-])(?:[0-9]{13,19}"
    r"|[0-9]{4}(?:(?: [0-9]{4}){3}|(?:-[0-9]{4}){3})"
    r"|3[0-9]{3}(?: [0-9]{6} [0-9]{4,5}|-[0-9]{6}-[0-9]{4,5}))(?![\w-]|[.,][0-9])"
)
_ISSUERS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)[0-9]+"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-5]|[689])[0-9]{11}"  # Diners Club
    r"|35(?:2[89]|[3-8])[0-9]+"  # JCB
    r"|(?:6011|64[4-9]|65|62)[0-9]+"  # Discover, UnionPay
)
_IPV4 = re.compile(r"(?<![\w.-])(?<![<>=!~]=)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[\w])")
_BEFORE_VERSION = re.compile(
    r"(?:\b(?:version|ver|v|release|build|firmware|driver|update|section|chapter|clause)|§)"
    r"[\s.:=#(]{0,3}$",
    re.IGNORECASE,
)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:.]{2,40}(?!\w)")
_PHONE_SHAPES = re.compile(
    # +49 30 1234567, +44 (0)20 7946 0958
    r"(?<![\w+.])\+[1-9](?:[ ./-]?(?:\([0-9]{1,4}\)|[0-9])){6,16}(?![0-9])"
    # (212) 555-0142, 212-555-0142, 1-212-555-0142, 212.555.0142
    r"|(?<![\w+.-])(?:1[ .-])?(?:\([0-9]{3}\) ?[0-9]{3}[ .-]"
    r"|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1)[0-9]{4}(?![\w-]|\.[0-9])"
)
_PHONE_AFTER_WORD = re.compile(
    r"(?i)\b(?:(?:(?:mobile |cell )?(?:tele)?(?:phone|fon)|tel|mobile|fax|handy|whatsapp)"
    r"(?: ?(?:number|no|nr))?(?: (?:at|on|is|under))?|call (?:me |us )?(?:at|on|under))[.:]{0,2}"
    r" {0,2}(?:\((?![0-9]{2,5}\)))?"
    r"((?:\([0-9]{2,5}\) ?)?[0-9](?:[ ./-]{0,2}[0-9]){5,14})(?!\w|[.,][0-9])"
)
_CALENDAR = re.compile(
    r"[0-9]{4}([./-])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([./-])[0-9]{1,2}\2[0-9]{4}"
    r"|(?:19|20)[0-9]{2} ?[/-] ?(?:19|20)[0-9]{2}"
    r"|[0-9]{1,2}\.[0-9]{2} ?- ?[0-9]{1,2}\.[0-9]{2}"
)
"""Dates, years and hours, which are said of calls, too."""


def _secrets(text: str) -> Spans:
    for found in _SECRET.finditer(text):
        yield found.span()
    for found in _AWS_SECRET.finditer(text):
        yield found.span(1)


def _emails(text: str) -> Spans:
    for found in _EMAIL.finditer(text):
        if found.group().lower().rpartition(".")[2] not in _FILE_ENDINGS:
            yield found.span()


def _ibans(text: str) -> Spans:
    for found in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(found.group(1))
        if length is None:
            continue
        end = _after(text, found.start(), length)
        if end is not None and _is_iban(text[found.start() : end].replace(" ", "")):
            yield found.start(), end


def _after(text: str, start: int, length: int) -> int | None:
    """Where `length` capitals and digits end that may be in groups of four, one space apart."""
    taken, place = 0, start
    while taken < length:
        if taken and taken % 4 == 0 and text[place : place + 1] == " ":
            place += 1
        if not re.match("[A-Z0-9]", text[place : place + 1]):
            return None
        taken, place = taken + 1, place + 1
    return None if re.match("[A-Za-z0-9]", text[place : place + 1]) else place


def _is_iban(iban: str) -> bool:
    """ISO 7064: with the first four characters last, and A = 10 to Z = 35, it leaves 1 mod 97."""
    return int("".join(str(int(digit, 36)) for digit in iban[4:] + iban[:4])) % 97 == 1


def _cards(text: str) -> Spans:
    for found in _CARD.finditer(text):
        digits = re.sub("[ -]", "", found.group())
        if _ISSUERS.fullmatch(digits) and _passes_luhn(digits):
            yield found.span()


def _passes_luhn(digits: str) -> bool:
    """Every second digit from the right counts double, 9 less if above 9; the sum ends in 0."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def _ip_addresses(text: str) -> Spans:
    for found in _IPV4.finditer(text):
        before = text[max(0, found.start() - 20) : found.start()]
        if _is_public(found.group()) and not _BEFORE_VERSION.search(before):
            yield found.span()
    for found in _IPV6.finditer(text):
        address = found.group().rstrip(".")
        if not address.endswith("::"):
            address = address.rstrip(":")
        if _is_public(address):
            yield found.start(), found.start() + len(address)


def _is_public(address: str) -> bool:
    """An address on the internet; 1.2.3.4 and its like are numbers of versions and sections."""
    try:
        public = ip_address(address).is_global and not ip_address(address).is_multicast
    except ValueError:
        return False
    return public and re.fullmatch(r"[0-9](\.[0-9]){3}", address) is None


def _phones(text: str) -> Spans:
    for found in _PHONE_SHAPES.finditer(text):
        if _is_dialled(found.group()):
            yield found.span()
    for found in _PHONE_AFTER_WORD.finditer(text):
        if not _CALENDAR.fullmatch(found.group(1)):
            yield found.span(1)


def _is_dialled(number: str) -> bool:
    if not number.startswith("+"):
        return True
    digits = re.sub("[^0-9]", "", number)
    if digits.startswith("1"):  # North America: 1, an area and seven digits
        return re.fullmatch("1[2-9][0-9]{2}[2-9][0-9]{6}", digits) is not None
    in_thousands = re.fullmatch(r"\+[0-9]{1,3}([ .][0-9]{3})+", number) and digits.endswith("000")
    return 9 <= len(digits) <= 15 and not in_thousands


_SEARCHES: tuple[tuple[Kind, Callable[[str], Spans]], ...] = (
    ("secret_key", _secrets),
    ("email", _emails),
    ("iban", _ibans),
    ("payment_card", _cards),
    ("ip_address", _ip_addresses),
    ("phone", _phones),
)
"""In the order in which they take precedence where two overlap."""
