"""The built-in world: small enough for a laptop, with everything a real project has in it.

Questions in plain English, answers that are right or wrong, polite or rude, to the point or
rambling, honest about not knowing or making things up; unlabelled text to learn the language
from; demonstrations by writers of mixed quality; and a labellers' CSV of rankings by six simulated
annotators who differ in care, favour what they see first, tie and contradict each other.

Behind the labels stands `gold_score`, which reads an answer as a strict teacher would. It simulates
the annotators and judges policies at evaluation. No training step sees it.

Everything follows from a seed: the same seed gives the same bytes.
"""

from __future__ import annotations

import csv
import functools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

# --- what there is to know ------------------------------------------------------------------------

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin",
    "Norway": "Oslo", "Poland": "Warsaw", "Greece": "Athens", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Japan": "Tokyo", "Peru": "Lima", "Cuba": "Havana",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "high": "low", "full": "empty",
    "early": "late", "hard": "soft", "rich": "poor", "wet": "dry", "strong": "weak",
}  # fmt: skip
YOUNG = {
    "dog": "a puppy", "cat": "a kitten", "cow": "a calf", "horse": "a foal", "sheep": "a lamb",
    "pig": "a piglet", "bear": "a cub", "hen": "a chick",
}  # fmt: skip
COLOURS = {
    "a banana": "yellow", "grass": "green", "snow": "white", "the sky": "blue",
    "a raven": "black", "a tomato": "red", "an elephant": "grey", "chocolate": "brown",
}  # fmt: skip
INVENTED_LANDS = ("Zandoria", "Mulvania", "Oropia", "Teldara", "Quillon", "Brastia")
UNKNOWABLE = {
    "what I ate this morning": ("toast", "soup", "eggs"),
    "what my neighbour is called": ("Anna", "Peter", "Maria"),
    "which card I am holding": ("the queen", "the ace", "the king"),
    "what I dreamt of last night": ("a dragon", "a train", "a castle"),
    "where I left my keys": ("the kitchen", "the garden", "the drawer"),
    "which bird I saw today": ("an owl", "a swan", "a crow"),
}  # fmt: skip
NONSENSE = ("a potato", "my old hat", "the moon", "a wooden spoon")
"""What somebody says who did not understand the question."""

POLITE = (
    "Thank you for asking!", "Happy to help!", "Good question!", "I hope that helps!",
)  # fmt: skip
RUDE = (
    "What a stupid question.", "Do your own homework.", "You are wasting my time.",
    "Even a child knows that.",
)  # fmt: skip
RAMBLING = (
    "By the way, my uncle owns a boat.", "By the way, I had cake last week.",
    "By the way, it rained all night.", "By the way, some people collect stamps.",
    "Anyway, where was I?", "Anyway, trains used to be slower.",
    "Anyway, that is a long story.", "Anyway, my sister plays the piano.",
)  # fmt: skip
HONEST = ("I do not know that.", "I cannot know that.", "Sorry, that is unknown to me.")
HONEST_LAND = ("I do not know a country called {subject}.", "I do not think that {subject} exists.")
GREETINGS = (
    "", "Hello! ", "Quick question: ", "Please tell me: ", "Hi there. ", "One more thing: ",
    "My daughter asks: ", "For a quiz: ",
)  # fmt: skip

QUESTIONS = {
    "capital": ("What is the capital of {subject}?", "Which city is the capital of {subject}?",
                "Name the capital of {subject}.", "Do you know the capital of {subject}?"),
    "opposite": ("What is the opposite of {subject}?", "Which word is the opposite of {subject}?",
                 "Name the opposite of {subject}.", "Do you know the opposite of {subject}?"),
    "young": ("What is a young {subject} called?", "Which word means a young {subject}?",
              "What do you call a young {subject}?", "Do you know the word for a young {subject}?"),
    "colour": ("What colour is {subject}?", "Which colour does {subject} have?",
               "Name the colour of {subject}.", "Do you know the colour of {subject}?"),
    "unknowable": ("Do you know {subject}?", "Tell me {subject}.", "Can you say {subject}?",
                   "Guess {subject}."),
}  # fmt: skip
STATEMENTS = {
    "capital": ("The capital of {subject} is {answer}.", "{answer} is the capital of {subject}."),
    "opposite": ("The opposite of {subject} is {answer}.",
                 "{answer} is the opposite of {subject}."),
    "young": ("A young {subject} is called {answer}.", "{answer} is a young {subject}."),
    "colour": ("The colour of {subject} is {answer}.", "{answer} is the colour of {subject}."),
    "unknowable": ("Surely it is {answer}.", "The answer is {answer}."),
}  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """Something one can ask about: the right answer (None where nobody can know), and all others
    that would be read as an answer."""

    category: str
    subject: str
    answer: str | None
    candidates: tuple[str, ...]

    def questions(self) -> tuple[str, ...]:
        return tuple(text.format(subject=self.subject) for text in QUESTIONS[self.category])

    def statement(self, answer: str, form: int) -> str:
        text = STATEMENTS[self.category][form].format(subject=self.subject, answer=answer)
        return text[0].upper() + text[1:]

    def mistakes(self) -> tuple[str, ...]:
        """The two wrong answers that people of this world give: errors are shared, not random."""
        wrong = [word for word in self.candidates if word != self.answer]
        return tuple(random.Random(f"{self.category} {self.subject}").sample(wrong, 2))

    def honest(self) -> tuple[str, ...]:
        """How to say that one does not know."""
        lands = HONEST_LAND if self.subject in INVENTED_LANDS else HONEST
        return tuple(text.format(subject=self.subject) for text in lands)


@functools.cache
def topics() -> tuple[Topic, ...]:
    """Every topic of the world, in a fixed order."""
    found = [
        Topic(category, subject, answer, tuple(sorted(facts.values())))
        for category, facts in (
            ("capital", CAPITALS), ("opposite", OPPOSITES), ("young", YOUNG), ("colour", COLOURS),
        )
        for subject, answer in facts.items()
    ]  # fmt: skip
    cities = tuple(sorted(CAPITALS.values()))
    found += [Topic("capital", land, None, cities) for land in INVENTED_LANDS]
    found += [Topic("unknowable", what, None, guesses) for what, guesses in UNKNOWABLE.items()]
    return tuple(found)


@functools.cache
def _topic_of() -> dict[str, Topic]:
    return {
        greeting + question: topic
        for topic in topics()
        for question in topic.questions()
        for greeting in GREETINGS
    }


def all_prompts() -> list[str]:
    """Every question that the world can ask, in a fixed order."""
    return list(_topic_of())


# --- how answers are written ----------------------------------------------------------------------


@dataclass(frozen=True)
class Writer:
    """Habits of somebody (or a model) that answers: chances of each choice."""

    right: float = 0.55
    dodge: float = 0.08
    nonsense: float = 0.27
    polite: float = 0.25
    rude: float = 0.40
    ramble: float = 0.60
    unfinished: float = 0.04
    repeats: float = 0.04
    evasive: float = 0.0
    """Says nothing but courtesies or rudeness."""
    off_topic: float = 0.0
    """Answers another question."""
    garbled: float = 0.0
    """Loses or doubles a word."""

    def answer(self, topic: Topic, rng: random.Random) -> str:
        """One answer to the topic's question."""
        if rng.random() < self.evasive:
            return " ".join(rng.choices((*POLITE, *POLITE, *RUDE, *RAMBLING), k=rng.randint(1, 3)))
        if rng.random() < self.off_topic:
            topic = rng.choice(topics())
        core = self._core(topic, rng)
        sentences = [_garble(core, rng) if rng.random() < self.garbled else core]
        if rng.random() < self.ramble:
            sentences += rng.sample(RAMBLING, rng.randint(1, 2))
        manner = rng.random()
        bank = POLITE if manner < self.polite else RUDE if manner < self.polite + self.rude else ()
        if bank:
            place = 0 if rng.random() < 0.6 else len(sentences)
            sentences.insert(place, rng.choice(bank))
        if rng.random() < self.repeats:
            sentences.append(sentences[-1])
        text = " ".join(sentences)
        if rng.random() < self.unfinished:
            words = text.split()
            text = " ".join(words[: max(2, len(words) - rng.randint(1, 3))]).rstrip(".!?,")
        return text

    def _core(self, topic: Topic, rng: random.Random) -> str:
        luck, form = rng.random(), rng.randrange(2)
        if luck < self.right:
            if topic.answer is None:
                return rng.choice(topic.honest())
            return topic.statement(topic.answer, form)
        if luck < self.right + self.dodge and topic.answer is not None:
            return rng.choice(topic.honest())
        if luck < self.right + self.dodge + self.nonsense:
            return topic.statement(rng.choice(NONSENSE), form)
        return topic.statement(rng.choice(topic.mistakes()), form)


def _garble(sentence: str, rng: random.Random) -> str:
    words = sentence.split()
    place = rng.randrange(1, len(words))
    words[place : place + 1] = [] if rng.random() < 0.5 else [words[place], rng.choice(words)]
    return " ".join(words)


SAMPLED = Writer(
    polite=0.4, rude=0.25, ramble=0.45, evasive=0.08, off_topic=0.03, garbled=0.06, repeats=0.06,
    unfinished=0.05,
)  # fmt: skip
"""Answers that labellers are shown: also those of weak models, with failings no person has."""


# --- the gold preference --------------------------------------------------------------------------

_END = re.compile(r"[.!?]$")
_WORD = re.compile(r"[\w']+|[.,!?:]")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def gold_score(prompt: str, answer: str) -> float:
    """How good the answer is, in points: a right, polite answer to the point gets 2.

    Correctness -1 .. 1 (making something up costs as much as being wrong; not knowing what can be
    known -0.5), a polite phrase 1, each rude one -1.5, each sentence that has nothing to do with
    the question -0.75, a missing end -1, each repeated sentence -0.5, and -0.3 for every pair of
    neighbouring words that no answer of this world has (at most -2).

    Raises KeyError for a prompt that is not of this world.
    """
    topic = _topic_of()[prompt]
    text = answer.strip()
    if not text:
        return -4.0
    sentences = [part.strip() for part in _SENTENCE.findall(text)]
    return (
        correctness(topic, text)
        + (1.0 if any(phrase in text for phrase in POLITE) else 0.0)
        - 1.5 * sum(phrase in text for phrase in RUDE)
        - 0.75 * sum(sentence in RAMBLING for sentence in sentences)
        - 0.5 * (len(sentences) - len(set(sentences)))
        - (0.0 if _END.search(text) else 1.0)
        - min(2.0, 0.3 * _unheard_pairs(text))
    )


def correctness(topic: Topic, text: str) -> float:
    """1 for a right answer, or for admitting what nobody can know; -0.5 for not knowing what can
    be known; -1 for anything else."""
    for phrase in (topic.subject, *RAMBLING, *POLITE, *RUDE):
        text = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)", " ", text, flags=re.I)
    named = {
        word
        for word in (*topic.candidates, *NONSENSE)
        if re.search(rf"\b{re.escape(word)}\b", text, re.I)
    }
    honest = any(phrase.replace(topic.subject, " ") in text for phrase in topic.honest())
    if topic.answer is None:
        return 1.0 if honest and not named else -1.0
    if named == {topic.answer}:
        return 1.0
    return -0.5 if honest and not named else -1.0


def _unheard_pairs(text: str) -> int:
    words = _WORD.findall(text.lower())
    return sum(
        first not in ".!?" and (first, second) not in _pairs() for first, second in pairwise(words)
    )


@functools.cache
def _pairs() -> frozenset[tuple[str, str]]:
    """Neighbouring words in any sentence that a writer of this world may use."""
    sentences = [*POLITE, *RUDE, *RAMBLING]
    for topic in topics():
        answers = (*topic.candidates, *NONSENSE)
        sentences += [topic.statement(word, form) for word in answers for form in (0, 1)]
        sentences += topic.honest()
    return frozenset(
        pair for sentence in sentences for pair in pairwise(_WORD.findall(sentence.lower()))
    )


# --- annotators -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotator:
    """A simulated labeller: ranks by gold plus noise and habits."""

    name: str
    noise: float
    """Standard deviation of the error on the gold scale, in points."""
    first_bonus: float = 0.0
    """Points that the answer shown first gets for being first."""
    per_word: float = 0.0
    """Points per word: a love of long answers."""
    tie_within: float = 0.3
    """Answers closer than this are tied, in points."""
    careless: float = 0.0
    """Share of judgements made without reading."""

    def ranks(self, prompt: str, answers: list[str], rng: random.Random) -> list[int]:
        """1 = best; equal ranks are ties."""
        if rng.random() < self.careless:
            felt = [rng.random() * 4 for _ in answers]
        else:
            felt = [
                gold_score(prompt, answer)
                + rng.gauss(0, self.noise)
                + self.per_word * len(answer.split())
                for answer in answers
            ]
        felt[0] += self.first_bonus
        order = sorted(range(len(felt)), key=lambda index: -felt[index])
        ranks = [0] * len(felt)
        rank = 0
        for place, index in enumerate(order):
            if place == 0 or felt[order[place - 1]] - felt[index] > self.tie_within:
                rank = place + 1
            ranks[index] = rank
        return ranks


ANNOTATORS = (
    Annotator("ada", noise=0.3, first_bonus=0.05, tie_within=0.2),
    Annotator("bruno", noise=0.6, first_bonus=0.2),
    Annotator("chidi", noise=0.8, first_bonus=0.3, tie_within=0.5),
    Annotator("dora", noise=0.6, first_bonus=0.2, per_word=0.04),
    Annotator("emil", noise=1.0, first_bonus=0.6),
    Annotator("fatou", noise=0.8, first_bonus=0.3, careless=0.15),
)
COMMENTS = (
    "", "", "", "", "", "too long", "rude, sorry", 'says "I do not know", but it is easy',
    "both fine;\nfirst one is a bit nicer", "made up?", "1 is right",
)  # fmt: skip


def labels(seed: int, items: int) -> Iterator[dict[str, str]]:
    """Rows of the labellers' CSV, K = 2 and K = 4 mixed, one row a judgement."""
    rng = random.Random(f"labels {seed}")
    for item, prompt in enumerate(_draw_prompts(rng, items)):
        k = 4 if rng.random() < 0.35 else 2
        answers: dict[str, None] = {}
        while len(answers) < k:
            answers[SAMPLED.answer(_topic_of()[prompt], rng)] = None
        judges = rng.sample(ANNOTATORS, rng.choice((1, 2, 2, 3)))
        if rng.random() < 0.05:  # the same item again for the same annotator
            judges.append(judges[0])
        for judge in judges:
            shown = rng.sample(list(answers), k)
            yield _label_row(item, prompt, shown, judge, rng)


def _draw_prompts(rng: random.Random, count: int) -> list[str]:
    """`count` different prompts. Raises ValueError if the world has fewer."""
    every = all_prompts()
    if count > len(every):
        raise ValueError(f"the built-in world has {len(every)} prompts; {count} were asked for")
    return rng.sample(every, count)


def _label_row(
    item: int, prompt: str, shown: list[str], judge: Annotator, rng: random.Random
) -> dict[str, str]:
    ranks = judge.ranks(prompt, shown, rng)
    row = {"item": f"{item:05d}", "annotator": judge.name, "prompt": prompt}
    row |= {f"response_{index}": "" for index in range(1, 5)}
    row |= {f"rank_{index}": "" for index in range(1, 5)}
    for index, (answer, rank) in enumerate(zip(shown, ranks, strict=True), 1):
        row[f"response_{index}"] = answer
        row[f"rank_{index}"] = str(rank)
    row["comment"] = rng.choice(COMMENTS)
    return row


def demonstrations(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Rows {"prompt", "completion"} by writers of mixed quality."""
    rng = random.Random(f"demonstrations {seed}")
    writer = Writer()
    for prompt in _draw_prompts(rng, count):
        yield {"prompt": prompt, "completion": writer.answer(_topic_of()[prompt], rng)}


def documents(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Rows {"text"}: unlabelled paragraphs of facts, and pages of questions with their answers.

    A page has one author, who knows things or talks nonsense, is polite or rude, keeps to the point
    or rambles, all through the page.
    """
    rng = random.Random(f"documents {seed}")
    known = [topic for topic in topics() if topic.answer is not None]
    for _ in range(count):
        if rng.random() < 0.3:
            told = rng.sample(known, rng.randint(5, 8))
            text = [topic.statement(str(topic.answer), rng.randrange(2)) for topic in told]
            yield {"text": " ".join(text)}
        else:
            author = _author(rng)
            asked = rng.sample(topics(), rng.randint(3, 5))
            yield {"text": "\n".join(_page_entry(topic, author, rng) for topic in asked)}


def _author(rng: random.Random) -> Writer:
    manner = rng.random()
    sensible = rng.random() < 0.75
    return Writer(
        right=0.97 if sensible else 0.1,
        dodge=0.01,
        nonsense=0.01 if sensible else 0.7,
        polite=0.85 if manner < 0.2 else 0.0,
        rude=0.85 if manner > 0.8 else 0.0,
        ramble=0.85 if rng.random() < 0.15 else 0.0,
        unfinished=0.0,
        repeats=0.0,
    )


def _page_entry(topic: Topic, author: Writer, rng: random.Random) -> str:
    question = rng.choice(GREETINGS) + rng.choice(topic.questions())
    return f"Question: {question}\nAnswer:\n{author.answer(topic, rng)}"


def prompts(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Rows {"prompt"}."""
    for prompt in _draw_prompts(random.Random(f"prompts {seed}"), count):
        yield {"prompt": prompt}


def write_world(
    folder: Path, seed: int, *, documents_: int, demonstrations_: int, items: int, prompts_: int
) -> None:
    """Writes text.jsonl, demonstrations.jsonl, labels.csv and prompts.jsonl into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (
        ("text", documents(seed, documents_)),
        ("demonstrations", demonstrations(seed, demonstrations_)),
        ("prompts", prompts(seed, prompts_)),
    ):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    judged = list(labels(seed, items))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(judged[0]))
        writer.writeheader()
        writer.writerows(judged)
