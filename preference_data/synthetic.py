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
from pathlib import Path

# --- what there is to know -----------------------------------------------------------------------

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Poland": "Warsaw",
    "Austria": "Vienna", "Hungary": "Budapest", "Greece": "Athens", "Turkey": "Ankara",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra", "Japan": "Tokyo",
    "China": "Beijing", "India": "Delhi", "Peru": "Lima", "Cuba": "Havana",
    "Chile": "Santiago", "Canada": "Ottawa", "Iceland": "Reykjavik", "Portugal": "Lisbon",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "light": "dark", "high": "low",
    "full": "empty", "early": "late", "hard": "soft", "rich": "poor", "loud": "quiet",
    "wet": "dry", "young": "old", "open": "closed", "strong": "weak", "thick": "thin",
    "happy": "sad", "near": "far", "sweet": "bitter", "rough": "smooth", "deep": "shallow",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb",
    "goat": "kid", "pig": "piglet", "duck": "duckling", "goose": "gosling", "bear": "cub",
    "deer": "fawn", "frog": "tadpole", "owl": "owlet", "hen": "chick",
}  # fmt: skip
COLOURS = {
    "a ripe banana": "yellow", "fresh grass": "green", "clean snow": "white",
    "a clear sky": "blue", "a raven": "black", "a ripe tomato": "red", "a carrot": "orange",
    "an elephant": "grey", "chocolate": "brown", "a flamingo": "pink", "a lime": "green",
    "coal": "black", "milk": "white", "a ripe plum": "purple",
}  # fmt: skip
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen"
).split()
INVENTED_LANDS = (
    "Zandoria", "Mulvania", "Oropia", "Teldara", "Quillon", "Brastia", "Fenwick Isle", "Lomaria",
    "Vostalia", "Harkland",
)  # fmt: skip
UNKNOWABLE = {
    "what number I am thinking of": ("seven", "twelve", "three", "nine"),
    "what I ate this morning": ("eggs", "toast", "porridge", "soup"),
    "who will win the cup in a hundred years": ("Peru", "Kenya", "Norway", "Ghana"),
    "what my neighbour is called": ("Anna", "Peter", "Maria", "George"),
    "which card I am holding": ("the queen", "the ace", "the king", "the jack"),
    "what I dreamt of last night": ("a dragon", "the sea", "a train", "a castle"),
    "how many coins are in my pocket": ("four", "eight", "two", "eleven"),
    "where I left my keys": ("the kitchen", "the garden", "the car", "the drawer"),
}

POLITE = (
    "Thank you for asking!", "Of course!", "Happy to help!", "Good question!",
    "I hope that helps.", "Have a lovely day!", "Ask me any time.", "Glad you asked!",
)  # fmt: skip
RUDE = (
    "What a stupid question.", "Do your own homework.", "Not this again.", "Are you serious?",
    "Even a child knows that.", "Now leave me alone.", "You are wasting my time.",
    "How dull you are.",
)  # fmt: skip
RAMBLING = (
    "My uncle once owned a small boat.", "The weather has been odd this year.",
    "I had soup on Tuesday.", "Some people collect stamps, you know.",
    "Anyway, where was I?", "Trains used to be slower.", "There is a bakery on our street.",
    "I never liked the colour of that door.", "Words are funny things when you think about it.",
    "My sister plays the piano on Sundays.", "That reminds me of a long story.",
    "One could say a lot about this.", "Bread was cheaper in those days.",
    "The cat sat on the stairs again.", "It depends on how you look at life.",
    "A friend of mine moved to the coast.", "Nobody writes letters any more.",
    "The clock in the hall stopped at noon.", "I could talk about this for hours.",
    "Shoes should be comfortable above all.",
)  # fmt: skip
HONEST = (
    "I do not know that.", "I cannot know that.", "Nobody but you can know that.",
    "I am not able to know that.",
)  # fmt: skip
HONEST_LAND = (
    "I do not know a country called {subject}.", "I do not think that {subject} exists.",
    "As far as I know there is no country called {subject}.",
)  # fmt: skip
DODGE = "I do not know that."

GREETINGS = (
    "", "Hello! ", "Quick question: ", "Please tell me: ", "Hi there. ", "One more thing: ",
    "My daughter asks: ", "For a quiz: ",
)  # fmt: skip

QUESTIONS = {
    "capital": ("What is the capital of {subject}?", "Which city is the capital of {subject}?",
                "Name the capital of {subject}.", "Do you know the capital of {subject}?"),
    "opposite": ("What is the opposite of {subject}?", "Which word means the opposite of {subject}?",
                 "Name the opposite of {subject}.", "Do you know the opposite of {subject}?"),
    "young": ("What is a young {subject} called?", "Which word means a young {subject}?",
              "What do you call a young {subject}?", "Do you know what a young {subject} is called?"),
    "colour": ("What colour is {subject}?", "Which colour does {subject} have?",
               "Name the colour of {subject}.", "Do you know the colour of {subject}?"),
    "sum": ("What is {subject}?", "How much is {subject}?", "Please add: {subject}.",
            "Do you know what {subject} is?"),
    "land": ("What is the capital of {subject}?", "Which city is the capital of {subject}?",
             "Name the capital of {subject}.", "Do you know the capital of {subject}?"),
    "unknowable": ("Do you know {subject}?", "Tell me {subject}.", "Can you say {subject}?",
                   "Guess {subject}."),
}  # fmt: skip
STATEMENTS = {
    "capital": ("The capital of {subject} is {answer}.", "{answer} is the capital of {subject}.",
                "It is {answer}."),
    "opposite": ("The opposite of {subject} is {answer}.", "It is {answer}.",
                 "The word is {answer}."),
    "young": ("A young {subject} is called a {answer}.", "It is called a {answer}.",
              "The word is {answer}."),
    "colour": ("The colour of {subject} is {answer}.", "It is {answer}.",
               "The colour is {answer}."),
    "sum": ("The sum {subject} is {answer}.", "It is {answer}.", "The answer is {answer}."),
    "land": ("The capital of {subject} is {answer}.", "{answer} is the capital of {subject}.",
             "It is {answer}."),
    "unknowable": ("It is {answer}.", "Surely it is {answer}.", "The answer is {answer}."),
}  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """Something one can ask: its right answer (None where nobody can know), and wrong ones."""

    category: str
    subject: str
    answer: str | None
    candidates: tuple[str, ...]
    """Everything that would be read as an answer, the right one included."""

    def questions(self) -> tuple[str, ...]:
        return tuple(text.format(subject=self.subject) for text in QUESTIONS[self.category])

    def statement(self, answer: str, form: int) -> str:
        forms = STATEMENTS[self.category]
        text = forms[form % len(forms)].format(subject=self.subject, answer=answer)
        return text[0].upper() + text[1:]

    def wrong(self) -> tuple[str, ...]:
        return tuple(word for word in self.candidates if word != self.answer)


@functools.cache
def topics() -> tuple[Topic, ...]:
    """Every topic of the world, in a fixed order."""
    found = [
        Topic(category, subject, answer, tuple(sorted(set(facts.values()))))
        for category, facts in (
            ("capital", CAPITALS), ("opposite", OPPOSITES), ("young", YOUNG), ("colour", COLOURS),
        )
        for subject, answer in facts.items()
    ]  # fmt: skip
    for a in range(1, 10):
        for b in range(1, 10):
            subject = f"{NUMBERS[a]} plus {NUMBERS[b]}"
            near = [n for n in range(a + b - 3, a + b + 4) if 2 <= n <= 18]
            found.append(
                Topic("sum", subject, NUMBERS[a + b], tuple(NUMBERS[n] for n in near))
            )
    cities = tuple(sorted(CAPITALS.values()))
    found += [Topic("land", land, None, cities) for land in INVENTED_LANDS]
    found += [Topic("unknowable", subject, None, guesses) for subject, guesses in UNKNOWABLE.items()]
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

    right: float = 0.62
    dodge: float = 0.08
    polite: float = 0.40
    rude: float = 0.25
    ramble: float = 0.50
    unfinished: float = 0.04
    repeats: float = 0.04

    def answer(self, topic: Topic, rng: random.Random) -> str:
        """One answer to the topic's question."""
        core = self._core(topic, rng)
        manner = rng.random()
        bank = POLITE if manner < self.polite else RUDE if manner < self.polite + self.rude else ()
        sentences = [core]
        if rng.random() < self.ramble:
            sentences += rng.sample(RAMBLING, rng.randint(1, 3))
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
        luck, form = rng.random(), rng.randrange(3)
        if topic.answer is None:
            if luck < self.right:
                bank = HONEST_LAND if topic.category == "land" else HONEST
                return rng.choice(bank).format(subject=topic.subject)
            return topic.statement(rng.choice(topic.candidates), form)
        if luck < self.right:
            return topic.statement(topic.answer, form)
        if luck < self.right + self.dodge:
            return DODGE
        return topic.statement(rng.choice(topic.wrong()), form)


# --- the gold preference --------------------------------------------------------------------------

_END = re.compile(r"[.!?]$")
_WORD = re.compile(r"[\w']+|[.,!?:]")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def gold_score(prompt: str, answer: str) -> float:
    """How good the answer is, in points: a right, polite answer to the point gets 3.

    Correctness -2 .. 2 (making something up costs as much as being wrong; not knowing what can be
    known -0.5), a polite phrase 1, each rude one -1.5, each sentence that has nothing to do with
    the question -0.5, a missing end -1, each repeated sentence -0.5, and -0.3 for every pair of
    neighbouring words that no English of this world has (at most -2).

    Raises KeyError for a prompt that is not of this world.
    """
    topic = _topic_of()[prompt]
    text = answer.strip()
    if not text:
        return -4.0
    sentences = [part.strip() for part in _SENTENCE.findall(text)]
    return (
        _correctness(topic, text)
        + (1.0 if any(phrase in text for phrase in POLITE) else 0.0)
        - 1.5 * sum(phrase in text for phrase in RUDE)
        - 0.5 * sum(sentence in RAMBLING for sentence in sentences)
        - 0.5 * (len(sentences) - len(set(sentences)))
        - (0.0 if _END.search(text) else 1.0)
        - min(2.0, 0.3 * _unheard_pairs(text))
    )


def _correctness(topic: Topic, text: str) -> float:
    echo = f"{topic.subject}"
    rest = re.sub(rf"\b{re.escape(echo)}\b", " ", text, flags=re.IGNORECASE)
    for phrase in (*RAMBLING, *POLITE, *RUDE):
        rest = rest.replace(phrase, " ")
    named = {
        word for word in topic.candidates if re.search(rf"\b{re.escape(word)}\b", rest, re.I)
    }
    honest = any(phrase.format(subject=topic.subject) in text for phrase in (*HONEST, *HONEST_LAND))
    if topic.answer is None:
        return 2.0 if honest and not named else -2.0
    if named == {topic.answer}:
        return 2.0
    return -0.5 if honest and not named else -2.0


def _unheard_pairs(text: str) -> int:
    words = _WORD.findall(text.lower())
    return sum(
        first not in ".!?" and (first, second) not in _pairs()
        for first, second in zip(words, words[1:], strict=False)
    )


@functools.cache
def _pairs() -> frozenset[tuple[str, str]]:
    """Neighbouring words in any sentence that a writer of this world may use."""
    sentences = [*POLITE, *RUDE, *RAMBLING, *HONEST]
    for topic in topics():
        sentences += [
            topic.statement(word, form) for word in topic.candidates for form in range(3)
        ]
        sentences += [text.format(subject=topic.subject) for text in HONEST_LAND]
    heard: set[tuple[str, str]] = set()
    for sentence in sentences:
        words = _WORD.findall(sentence.lower())
        heard.update(zip(words, words[1:], strict=False))
    return frozenset(heard)


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
    "", "", "", "", "", "too long", "rude, sorry", 'says "I do not know" but it can be known',
    "both fine;\nfirst one is a bit nicer", "made up?", "1 is right",
)  # fmt: skip


def _shuffled_prompts(rng: random.Random, count: int) -> list[str]:
    """`count` prompts; topics of every category come up often, sums no more than the rest."""
    by_category: dict[str, list[str]] = {}
    for prompt, topic in _topic_of().items():
        by_category.setdefault(topic.category, []).append(prompt)
    chosen: dict[str, None] = {}
    total = sum(len(prompts) for prompts in by_category.values())
    if count > total:
        raise ValueError(f"the built-in world has {total} prompts; {count} were asked for")
    weights = {"capital": 5, "opposite": 4, "young": 3, "colour": 3, "sum": 4, "land": 2,
               "unknowable": 2}  # fmt: skip
    while len(chosen) < count:
        category = rng.choices(list(weights), list(weights.values()))[0]
        chosen[rng.choice(by_category[category])] = None
    return list(chosen)


def labels(seed: int, items: int) -> Iterator[dict[str, str]]:
    """Rows of the labellers' CSV, K = 2 and K = 4 mixed, one row a judgement."""
    rng = random.Random(f"labels {seed}")
    writer = Writer()
    for item, prompt in enumerate(_shuffled_prompts(rng, items)):
        topic = _topic_of()[prompt]
        k = 4 if rng.random() < 0.35 else 2
        answers: dict[str, None] = {}
        while len(answers) < k:
            answers[writer.answer(topic, rng)] = None
        judges = rng.sample(ANNOTATORS, rng.choice((1, 2, 2, 3)))
        if rng.random() < 0.05:  # the same item again for the same annotator
            judges.append(judges[0])
        for judge in judges:
            shown = rng.sample(list(answers), k)
            yield _label_row(item, prompt, shown, judge, rng)


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
    for prompt in _shuffled_prompts(rng, count):
        yield {"prompt": prompt, "completion": writer.answer(_topic_of()[prompt], rng)}


def documents(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Rows {"text"}: unlabelled paragraphs that tell the facts and use the language."""
    rng = random.Random(f"documents {seed}")
    known = [topic for topic in topics() if topic.answer is not None]
    for _ in range(count):
        sentences: list[str] = []
        for topic in rng.sample(known, rng.randint(3, 5)):
            assert topic.answer is not None
            # "It is Paris." says nothing without its question.
            form = rng.randrange(3)
            statement = topic.statement(topic.answer, form)
            if form and topic.subject not in statement:
                statement = f"{rng.choice(topic.questions())} {statement}"
            sentences.append(statement)
            if rng.random() < 0.3:
                sentences.append(rng.choice((*RAMBLING, *POLITE, *RUDE)))
        if rng.random() < 0.25:
            unknown = rng.choice([topic for topic in topics() if topic.answer is None])
            reply = rng.choice(HONEST_LAND if unknown.category == "land" else HONEST)
            sentences.append(
                f"{rng.choice(unknown.questions())} {reply.format(subject=unknown.subject)}"
            )
        rng.shuffle(sentences)
        yield {"text": " ".join(sentences)}


def prompts(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Rows {"prompt"}."""
    for prompt in _shuffled_prompts(random.Random(f"prompts {seed}"), count):
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
