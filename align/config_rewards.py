"""What gives a score to a response: a reward step, a function, a model, a service, or several."""
# pyright: strict

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
)

from align.config_section import (
    FoundPath,
    Function,
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)

SINGLE = {
    "function": "FunctionReward",
    "model": "ModelReward",
    **dict.fromkeys(("url", "batch_size", "timeout", "patience", "token_env"), "ServiceReward"),
}
SINGLE_OR_ENSEMBLE = {
    **SINGLE,
    **dict.fromkeys(("ensemble", "combine", "std_weight"), "EnsembleReward"),
}
"""Which section a key is of."""

Combine = Literal["mean", "min", "mean_minus_std"]

IDENTITY = {"identity": True}
"""Context of a dump that holds only what changes the scores, for fingerprints."""


class FunctionReward(Section):
    """A Python function as the reward."""

    function: Function
    """`file.py:name`; called with prompts and completions (lists of text), gives a score each."""

    @property
    def label(self) -> str:
        """What it is called in the metrics."""
        return self.function.rpartition(":")[2]


class ModelReward(Section):
    """A reward model of another run, on a base and tokenizer of its own."""

    model: FoundPath
    """A reward step's folder, or its `adapter/` or `model/`; scored through text."""

    @property
    def label(self) -> str:
        """What it is called in the metrics."""
        folder = Path(self.model)
        inner = folder.name in {"adapter", "model"}
        return folder.parent.name if inner and folder.parent.name else folder.name


def _web_address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("write it as http://host:port/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no password; name its variable in token_env")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("write it as http://host:port/path") from None
    return text


def _variable(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("it is the name of an environment variable, not the token")
    return text


def _part_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise ValueError("use letters, digits, - and _")
    return text


class ServiceReward(Section):
    """A scoring service: gets {"prompts": […], "completions": […]}, answers {"scores": […]}."""

    url: Annotated[str, AfterValidator(_web_address)]
    """Where the JSON is posted."""
    batch_size: PositiveInt = 64
    """Answers in one request."""
    timeout: PositiveFloat = 60.0
    """Seconds that the service may be silent within one request."""
    patience: NonNegativeFloat = 300.0
    """Seconds for all attempts at one request: no connection, silence, 429 and 5xx are tried
    again; 0 = one attempt."""
    token_env: Annotated[str, AfterValidator(_variable)] | None = None
    """The environment variable that holds the bearer token; none is sent without it."""

    @property
    def label(self) -> str:
        """What it is called in the metrics."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}_{parts.port}" if parts.port else str(parts.hostname)

    @model_serializer(mode="wrap")
    def _plain(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Under IDENTITY only the address: a run that a slow service stopped goes on with more
        patience."""
        plain = cast(dict[str, Any], handler(self))
        return {"url": self.url} if info.context == IDENTITY else plain


def _section_of(value: Any, sections: Mapping[str, str]) -> str | None:
    """The one section that was meant, so that a mistake in it is named alone; None for no section.

    A key that nobody knows counts as the nearest one.
    """
    if isinstance(value, Section):
        return type(value).__name__
    if not isinstance(value, dict):
        return None
    keys = [str(key) for key in cast(dict[Any, Any], value)]
    for key in (*keys, *(near for one in keys for near in get_close_matches(one, sections))):
        if key in sections:
            return sections[key]
    return "FunctionReward"


def _single(value: Any) -> str:
    return _section_of(value, SINGLE) or "step"


def _single_or_ensemble(value: Any) -> str:
    return _section_of(value, SINGLE_OR_ENSEMBLE) or "step"


def _any(value: Any) -> str:
    return "sum" if isinstance(value, list | tuple) else _single_or_ensemble(value)


SingleReward: TypeAlias = Annotated[
    Annotated[Name, Tag("step")]
    | Annotated[FunctionReward, Tag("FunctionReward")]
    | Annotated[ModelReward, Tag("ModelReward")]
    | Annotated[ServiceReward, Tag("ServiceReward")],
    Discriminator(_single),
]
"""What gives one score: the name of a reward step, a function, a model or a service."""


class Members(Section):
    """Several reward models that one step trains, on the one base, and that score together."""

    members: Annotated[int, Field(ge=2)] = 4
    """How many; trained one after the other."""
    resample: Literal["bootstrap", "seeds"] = "bootstrap"
    """Wherein they differ besides their first weights and the order of the rows: each has
    judgements of its own, as many prompts as there are, drawn with replacement, or (`seeds`) all
    have the same."""


def _listed(value: Any) -> str:
    return "step" if isinstance(value, str) else "list"


class EnsembleReward(Section):
    """Several rewards as one, less where they disagree (Coste et al. 2024, arXiv:2310.02743)."""

    ensemble: Annotated[
        Annotated[Name, Tag("step")] | Annotated[tuple[SingleReward, ...], Tag("list")],
        Discriminator(_listed),
    ]
    """The members: a list, or one reward step that trained several. Reward steps on the policy's
    base are adapters and heads on it."""
    combine: Combine = "mean"
    """`mean_minus_std` takes std_weight times the members' (population) standard deviation off."""
    std_weight: PositiveFloat = 1.0
    """Score lost for a standard deviation of 1 among the members."""

    @property
    def label(self) -> str:
        """What it is called in the metrics."""
        return "ensemble"

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.combine != "mean_minus_std" and self.sets("std_weight"):
            yield "std_weight", "unless combine is mean_minus_std"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong)."""
        if isinstance(self.ensemble, str):
            return
        if len(self.ensemble) < 2:
            yield "ensemble", "needs two members or more"
        for index, member in enumerate(self.ensemble):
            if member in self.ensemble[:index]:
                yield f"ensemble[{index}]", f"names {label_of(member)!r} a second time"


PartReward: TypeAlias = Annotated[
    Annotated[Name, Tag("step")]
    | Annotated[FunctionReward, Tag("FunctionReward")]
    | Annotated[ModelReward, Tag("ModelReward")]
    | Annotated[ServiceReward, Tag("ServiceReward")]
    | Annotated[EnsembleReward, Tag("EnsembleReward")],
    Discriminator(_single_or_ensemble),
]
"""What gives one score, or several as one."""


class WeightedReward(Section):
    """A part of a weighted sum."""

    reward: PartReward
    """A reward step, a function, a model, a service or an ensemble."""
    weight: float
    """What its scores are multiplied by; below 0 it is a penalty."""
    name: Annotated[str, AfterValidator(_part_name)] | None = None
    """Its scores are logged as objective/score/NAME; the reward's own name where none is given."""

    @property
    def label(self) -> str:
        """What it is called in the metrics."""
        return self.name or label_of(self.reward)

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.weight == 0:
            yield "weight", "at 0"


AnyReward: TypeAlias = Annotated[
    Annotated[Name, Tag("step")]
    | Annotated[FunctionReward, Tag("FunctionReward")]
    | Annotated[ModelReward, Tag("ModelReward")]
    | Annotated[ServiceReward, Tag("ServiceReward")]
    | Annotated[EnsembleReward, Tag("EnsembleReward")]
    | Annotated[tuple[WeightedReward, ...], Tag("sum")],
    Discriminator(_any),
]
"""What PPO may be given as its reward; a list is a weighted sum."""


def label_of(reward: PartReward) -> str:
    """What a reward is called in metrics and messages."""
    return reward if isinstance(reward, str) else reward.label


def file_of(reward: SingleReward) -> str | None:
    """The user's file or folder that the scores depend on, if there is one."""
    if isinstance(reward, FunctionReward):
        return reward.function.rpartition(":")[0]
    return reward.model if isinstance(reward, ModelReward) else None


def ensemble_steps(reward: AnyReward, option: str) -> Iterator[tuple[str, str]]:
    """(option, step) of each step whose members an ensemble names as a whole."""
    if isinstance(reward, tuple):
        for index, part in enumerate(reward):
            yield from ensemble_steps(part.reward, f"{option}[{index}].reward")
    elif isinstance(reward, EnsembleReward) and isinstance(reward.ensemble, str):
        yield f"{option}.ensemble", reward.ensemble


def leaves(reward: AnyReward, option: str) -> Iterator[tuple[str, SingleReward]]:
    """(option, reward) of each reward that gives scores by itself, from the option down."""
    if isinstance(reward, tuple):
        for index, part in enumerate(reward):
            yield from leaves(part.reward, f"{option}[{index}].reward")
    elif isinstance(reward, EnsembleReward) and isinstance(reward.ensemble, str):
        yield f"{option}.ensemble", reward.ensemble
    elif isinstance(reward, EnsembleReward):
        for index, member in enumerate(reward.ensemble):
            yield f"{option}.ensemble[{index}]", member
    else:
        yield option, reward


def contradictions(reward: AnyReward, option: str) -> Iterator[tuple[str, str]]:
    """(option, what is wrong) of rewards that do not go together."""
    if isinstance(reward, EnsembleReward):
        for inner, problem in reward.contradictions():
            yield f"{option}.{inner}", problem
    if not isinstance(reward, tuple):
        return
    if not reward:
        yield option, "is an empty list; name a reward"
    for index, part in enumerate(reward):
        if part.label in [other.label for other in reward[:index]]:
            yield (
                f"{option}[{index}]",
                f"is called {part.label!r} like another; give it a name of its own",
            )
        yield from contradictions(part.reward, f"{option}[{index}].reward")
