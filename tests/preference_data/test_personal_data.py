"""Personal data: what is found and what is not, how records are treated, and pseudonyms.

Keys are put together from parts, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter

import pytest
from real_data import real_data

from preference_data import Demonstration, Judgement, Prompt, Response, Source
from preference_data.personal_data import Finding, find, mask, pseudonym, treat
from preference_data.quarantine import RowFault, SetAside

PRIVATE = "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEow\nAb+/=\n-----END RSA PRIVATE" + " KEY-----"
AWS = "AKIA" + "Q2W3E4R5T6Y7U8I9"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # email
        ("Write to ann.lee+x@mail.uni-bonn.de.", "Write to [EMAIL]."),
        ("<o'neil_7@Post.IE>, thanks", "<[EMAIL]>, thanks"),
        ("mailto:zoë@bücher.example?subject=hi", "mailto:[EMAIL]?subject=hi"),
        ("Ann@b.org:she", "Ann@b.org:she"),
        ("Mail ann@b.org: she knows", "Mail [EMAIL]: she knows"),
        # phone
        ("+49 (0)30 901820, now", "[PHONE], now"),
        ("+4930901820 or +1 (212) 555-0142", "[PHONE] or [PHONE]"),
        ("+1-212-555-0142.", "[PHONE]."),
        ("Call (212) 555-0142 or 212-555-0143", "Call [PHONE] or [PHONE]"),
        ("1-212-555-0142 and 212.555.0143", "[PHONE] and [PHONE]"),
        ("Tel.: 030 901820", "Tel.: [PHONE]"),
        ("Telefon (030) 90 18 20", "Telefon [PHONE]"),
        ("my phone number is 555-0142!", "my phone number is [PHONE]!"),
        ("call me at 020 7946 0958 (fax 7946-0959)", "call me at [PHONE] (fax [PHONE])"),
        ("WhatsApp: 0171/2345678", "WhatsApp: [PHONE]"),
        # payment card
        ("4111 1111 1111 1111, 12/29", "[PAYMENT_CARD], 12/29"),
        ("5555-5555-5555-4444 123", "[PAYMENT_CARD] 123"),
        ("card 378282246310005.", "card [PAYMENT_CARD]."),
        ("3782 822463 10005", "[PAYMENT_CARD]"),
        ("2223003122003222 6011111111111117", "[PAYMENT_CARD] [PAYMENT_CARD]"),
        ("30569309025904 3530111333300000", "[PAYMENT_CARD] [PAYMENT_CARD]"),
        # IBAN
        ("DE89370400440532013000", "[IBAN]"),
        ("IBAN: GB29 NWBK 6016 1331 9268 19 HSBC", "IBAN: [IBAN] HSBC"),
        ("FR14 2004 1010 0505 0001 3M02 606.", "[IBAN]."),
        ("NO93 8601 1117 947 and NL91ABNA0417164300", "[IBAN] and [IBAN]"),
        # IP address
        ("from 81.2.69.142:8080", "from [IP_ADDRESS]:8080"),
        ("The server (81.2.69.142).", "The server ([IP_ADDRESS])."),
        ("ip=81.2.69.142/24", "ip=[IP_ADDRESS]/24"),
        ("2a00:1450:4001:82b::200e.", "[IP_ADDRESS]."),
        ("[2606:4700::1111]:443", "[[IP_ADDRESS]]:443"),
        ("at 2a00:1450:4001:: today", "at [IP_ADDRESS] today"),
        # secret key
        (f"id = '{AWS}'", "id = '[SECRET_KEY]'"),
        ("AWS_SECRET_ACCESS_KEY=" + "aB3/" * 10, "AWS_SECRET_ACCESS_KEY=[SECRET_KEY]"),
        (f"Key:\n{PRIVATE}\nEnd", "Key:\n[SECRET_KEY]\nEnd"),
        (PRIVATE[:45] + "\n\nOh no!", "[SECRET_KEY]!"),
        ("key " + "sk-" + "proj-aB3dE6gH9_kL2nO5qR8t", "key [SECRET_KEY]"),
        ("ghp_" + "a1B2" * 9 + " hf_" + "aBcDe" * 7, "[SECRET_KEY] [SECRET_KEY]"),
        ("xoxb-" + "123456-abcdef", "[SECRET_KEY]"),
    ],
)
def test_what_is_found_is_masked(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        # no email
        "@ann said hi@ home, a@b and A @ B.T",
        "git clone git@github.example.org:ann/tool.git",
        "scores = self.q@self.k.transpose(1, 2)",
        "icon@2x.png",
        # no phone
        "On 2023-11-22 at 10:30, or 22.11.2023 or 11/22/2023",
        "ISBN 978-3-16-148410-0 or 0-306-40615-2",
        "3 + 4 = 7, 5+12345678 = 12345683, x = 1234567890",
        "+100 000 000 dollars, +250.000.000 users, +12345678901234567",
        "pages 212-555, 100-200-3000 and 212-555-01425",
        "The phone 2010-2015: 1000000 sold. Call on 2023-11-22.",
        "call at 10.30-11.30, call 10000000 functions",
        "pi is 3.14159265358979 and 1,234,567,890",
        "2^31 = 2147483648",
        # no card: one digit wrong, no issuer, a decimal, an id
        "4111 1111 1111 1112",
        "0000 0000 0000 0000 and 1234567890123452",
        "0.4111111111111111 and 4111111111111111.5",
        "order-4111111111111111 and x4111111111111111",
        # no IBAN: one digit wrong, too short, no such country, another letter after it
        "DE89370400440532013001",
        "DE8937040044053201300",
        "ZZ89370400440532013000",
        "DE893704004405320130001",
        # no IP address
        "version 10.20.30.40, v10.20.30.41 and Release: 10.20.30.42",
        "tool==81.2.69.142, tool>=81.2.69.143, tool-81.2.69.144.tar.gz",
        "see 1.2.3.4 and 10.4.2.1.3",
        "127.0.0.1, 192.168.1.1, 255.255.255.0, 0.0.0.0, 300.1.1.1, 224.0.0.1",
        "std::vector, a::b, ::1, fe80::1, 2001:db8::1, 2023:11:22 10:30:59",
        "00:1a:2b:3c:4d:5e",
        # no key
        "sk-learn-is-a-library-for-machine-learning",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "AKIAlower and AKIA123",
        "d41d8cd98f00b204e9800998ecf8427e",
    ],
)
def test_what_only_looks_alike_is_left(text):
    assert find(text) == []
    assert mask(text) == text


def test_findings_have_kinds_and_places_in_order():
    text = "a@b.org, then 81.2.69.142, then c@d.org"
    assert find(text) == [
        Finding("email", 0, 7),
        Finding("ip_address", 14, 25),
        Finding("email", 32, 39),
    ]
    assert find("") == []


def test_what_overlaps_is_found_once():
    """The secret key holds what has the form of an address."""
    text = PRIVATE.replace("MIIEow", "a@b.org")
    assert [finding.kind for finding in find(text)] == ["secret_key"]


@pytest.mark.parametrize("part", ["a", "1", "a.", "1 ", "2001:", "a@a.", "+1", "DE89 ", "sk-"])
def test_long_texts_take_linear_time(part):
    """A quadratic search would take hours for this million of characters."""
    begin = time.perf_counter()
    assert find(part * (1_000_000 // len(part))) == []
    assert time.perf_counter() - begin < 60


def judgement(**changes) -> Judgement:
    fields = {
        "prompt": Prompt.from_text("Mail a@b.org"),
        "responses": (Response.from_text("From 81.2.69.142", "m"), Response.from_text("Fine")),
        "ranks": (1, 2),
        "annotator": "ann@work.org",
        "comment": "by c@d.org",
        "source": Source("table", "x.csv", 3, 4),
        "raw": json.dumps({"prompt": "Mail a@b.org", "n": [1, None, "\nc@d.org"]}),
        **changes,
    }
    return Judgement(**fields)


COUNTS = {"email": 4, "ip_address": 1}


def test_a_report_changes_nothing():
    record, found = treat(judgement(), "report")
    assert record == judgement()
    assert found == COUNTS


def test_a_masked_judgement_keeps_all_but_the_personal_data():
    record, found = treat(judgement(), "mask")
    assert found == COUNTS
    assert record == judgement(
        prompt=Prompt.from_text("Mail [EMAIL]"),
        responses=(Response.from_text("From [IP_ADDRESS]", "m"), Response.from_text("Fine")),
        comment="by [EMAIL]",
        raw=json.dumps({"prompt": "Mail [EMAIL]", "n": [1, None, "\n[EMAIL]"]}),
    )
    assert treat(record, "drop") == (record, Counter())


def test_a_dropped_judgement_says_where_but_not_what():
    with pytest.raises(SetAside) as fault:
        treat(judgement(), "drop")
    assert fault.value.reason == "personal_data"
    assert fault.value.detail == "prompt, response 1, comment, raw row: email, ip_address found."


def test_a_clean_judgement_is_the_same_under_every_treatment():
    pair = (Response.from_text("a"), Response.from_text("b"))
    clean = judgement(prompt=Prompt.from_text("Hi"), responses=pair, comment=None, raw=None)
    for treatment in ("report", "mask", "drop"):
        assert treat(clean, treatment) == (clean, Counter())


def test_prompts_and_demonstrations_are_treated_too():
    prompt = Prompt.from_text("Mail a@b.org")
    assert treat(prompt, "mask") == (Prompt.from_text("Mail [EMAIL]"), {"email": 1})
    shown = Demonstration(prompt, Response.from_text("c@d.org"))
    masked, found = treat(shown, "mask")
    assert (masked.prompt.text, masked.response.text, found) == (
        "Mail [EMAIL]", "[EMAIL]", {"email": 2},
    )  # fmt: skip
    with pytest.raises(SetAside, match=r"^prompt, response: email found\.$"):
        treat(shown, "drop")


def test_answers_that_differ_in_personal_data_alone_cannot_be_masked():
    pair = (Response.from_text("a@b.org"), Response.from_text("c@d.org"))
    with pytest.raises(RowFault, match="differ in personal data alone") as fault:
        treat(judgement(responses=pair), "mask")
    assert fault.value.reason == "identical_responses"
    tie = judgement(responses=pair, ranks=(1, 1), outcome="tie")
    assert [r.text for r in treat(tie, "mask")[0].responses] == ["[EMAIL]", "[EMAIL]"]


def test_another_treatment_is_refused():
    with pytest.raises(ValueError, match="A treatment is one of report, mask, drop, not 'hide'"):
        treat(judgement(), "hide")  # type: ignore[arg-type]


def test_pseudonyms_are_hmacs_of_the_key():
    """`printf %s worker | openssl dgst -sha256 -hmac 0123456789abcdef`, its first 16 digits."""
    key = b"0123456789abcdef"
    assert pseudonym("worker", key) == "51f582b3804dbe80"
    assert pseudonym("worker", key) != pseudonym("Worker", key)
    assert pseudonym("worker", key) != pseudonym("worker", key[::-1])
    with pytest.raises(ValueError, match="needs 16 bytes or more, not 15"):
        pseudonym("worker", key[:15])


def test_real_dialogues_hold_some(real_texts):
    """The chosen transcripts of 4,666 pairs: every finding was read, and none is a false alarm."""
    found = Counter(finding.kind for text in real_texts for finding in find(text))
    assert found == {"phone": 13, "email": 6}


@pytest.fixture
def real_texts() -> list[str]:
    folder = real_data("hh-rlhf")
    return [
        json.loads(row)["chosen"]
        for part in ("helpful-base", "harmless-base")
        for row in gzip.decompress((folder / part / "test.jsonl.gz").read_bytes()).splitlines()
    ]
