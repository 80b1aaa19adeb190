"""The run's configuration: YAML in, frozen models out, and every mistake named by its dotted path.

Validation is pydantic's, strict and closed: an unknown key, a wrong type or a value outside its
range is a `ConfigError` of one or two sentences. What pydantic cannot see (a step that names a
step that does not exist, an option that would have no effect) is checked in `check_graph`.
Neither torch nor transformers is imported here, so a typo answers at once.

The sections are in `align.config_{run,steps,train,ppo,rewards}` and are named here as well.
"""
# pyright: strict

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from align.config_errors import ConfigError, hint, sentence
from align.config_ppo import GAE, KL, Clip, PPOTrain
from align.config_rewards import (
    AnyReward,
    EnsembleReward,
    FunctionReward,
    ModelReward,
    ServiceReward,
    SingleReward,
    WeightedReward,
)
from align.config_run import Base, Data, Lora, Tracking, Wandb, World
from align.config_section import FoundPath, Name, Section
from align.config_steps import (
    DPO,
    POLICY_KINDS,
    PPO,
    SFT,
    AnyStep,
    DataKind,
    Evaluate,
    Export,
    Pretrain,
    Reward,
    Step,
    misread,
    misread_rewards,
)
from align.config_train import DPOTrain, RankingTrain, RewardTrain, TextTrain, Train
from align.config_yaml import override, parse_yaml
from preference_data.sources import FORMATS
from preference_data.sources.columns.mapping import Columns

__all__ = [
    "BUILTIN_DATA",
    "DPO",
    "GAE",
    "KL",
    "POLICY_KINDS",
    "PPO",
    "SFT",
    "AnyReward",
    "AnyStep",
    "Base",
    "Clip",
    "Columns",
    "Config",
    "ConfigError",
    "DPOTrain",
    "Data",
    "DataKind",
    "EnsembleReward",
    "Evaluate",
    "Export",
    "FunctionReward",
    "Lora",
    "ModelReward",
    "PPOTrain",
    "Pretrain",
    "RankingTrain",
    "Reward",
    "RewardTrain",
    "ServiceReward",
    "SingleReward",
    "Step",
    "TextTrain",
    "Tracking",
    "Train",
    "Wandb",
    "WeightedReward",
    "World",
    "build_config",
    "json_schema",
    "load_columns",
    "load_config",
]

BUILTIN_DATA: dict[str, DataKind] = {
    "builtin:text": "text",
    "builtin:demonstrations": "demonstrations",
    "builtin:labels": "preferences",
    "builtin:prompts": "prompts",
}
SERVES: dict[DataKind, tuple[DataKind, ...]] = {
    "preferences": ("preferences", "demonstrations", "prompts", "text"),
    "demonstrations": ("demonstrations", "prompts", "text"),
    "prompts": ("prompts", "text"),
    "text": ("text",),
}
"""What rows of a kind can be used as: a preference holds a prompt and a preferred answer."""


def _home(text: str) -> str:
    return str(Path(text).expanduser())


class Config(Section):
    """A whole run: one base, the data, and the steps in order."""

    name: Name
    """What the run is called; its folder belongs to this name."""
    seed: int = 17
    """Of everything drawn at random."""
    output_dir: Annotated[Name, AfterValidator(_home)]
    """The run folder, relative to the working directory."""
    base: Base = Base()
    lora: Lora | None = Lora()
    """null = full fine-tuning."""
    deepspeed: FoundPath | None = None
    """A DeepSpeed JSON file, relative to the working directory or the configuration."""
    tracking: Tracking = Tracking()
    world: World = World()
    data: dict[str, Data] = Field(default_factory=dict[str, Data])
    """The sources of rows, by name."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Prompts of any source that are this alike (Jaccard of runs of five words) are on one side of
    the split; null = only equal ones."""
    steps: dict[str, AnyStep]
    """What is done, in this order; a step names the steps that it starts from."""

    def run_as(self, source: str) -> DataKind:
        """What the data source is read as: what it is, or the richest kind that a step asks of it.

        A named format that does not hold this is read as the richest kind that it holds and that
        serves as well. Raises KeyError for a source that no step uses.
        """
        held = BUILTIN_DATA.get(self.data[source].path)
        if held is not None:
            return held
        asked = {
            kind
            for step in self.steps.values()
            for _, name, kind in step.data_used()
            if name == source
        }
        if not asked:
            raise KeyError(source)
        wanted: DataKind = next(kind for kind in SERVES if kind in asked)
        named = FORMATS.get(self.data[source].format)
        if named is None or wanted in named.readers:
            return wanted
        for kind, served in SERVES.items():
            if wanted in served and kind in named.readers:
                return kind
        return wanted

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.sets("world") and not any(data.built_in for data in self.data.values()):
            yield "world", "because no data is built in"
        trained = (*POLICY_KINDS, "reward")
        if self.base.gradient_checkpointing and not any(
            step.kind in trained for step in self.steps.values()
        ):
            yield "base.gradient_checkpointing", "because no step trains"
        for source, data in self.data.items():
            if data.aggregate is not None and self.run_as(source) != "preferences":
                yield f"data.{source}.aggregate", "because no step reads its judgements"
        for name, step in self.steps.items():
            if isinstance(step, Export) and self.lora is None and step.sets("merge"):
                yield f"steps.{name}.merge", "with lora: null, because there is no adapter"


# --- reading -------------------------------------------------------------------------------------


def load_config(
    path: str | Path, overrides: Iterable[str] = (), *, folders: Iterable[Path] = ()
) -> Config:
    """Reads, overrides (`key.path=value`, the value in YAML) and checks a configuration.

    Files that it names are looked for in the working directory, then beside the configuration,
    then in `folders`. Raises ConfigError with one or two sentences for anything that is wrong.
    """
    path = Path(path)
    tree = _read_mapping(path, "a configuration starts with `name: …`")
    for text in overrides:
        override(tree, text)
    return build_config(tree, folders=(Path(), path.parent, *folders))


def build_config(tree: Mapping[str, Any], *, folders: Iterable[Path] = ()) -> Config:
    """A checked Config from a nested mapping. Raises ConfigError.

    Without `folders` to look in, the files that it names are taken on trust.
    """
    config = _validated(TypeAdapter(Config), Config, tree, folders)
    check_graph(config)
    return config


def load_columns(path: str | Path) -> Columns:
    """The mapping of a table's columns in a YAML file of its own, with or without `columns:` above
    it; the file of its items may lie beside it. Raises ConfigError."""
    path = Path(path)
    tree = _read_mapping(path, "a mapping of columns starts with `prompt: …`")
    if len(tree) == 1 and isinstance(tree.get("columns"), dict):
        tree = cast(dict[str, Any], tree["columns"])
    try:
        columns = _validated(TypeAdapter(Columns), Columns, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    wide = columns.wide
    if wide is None or not isinstance(wide.items, str) or Path(wide.items).exists():
        return columns
    return replace(columns, wide=replace(wide, items=str(path.parent / wide.items)))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors."""
    schema = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read_mapping(path: Path, advice: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no mapping; {advice}.")
    return cast(dict[str, Any], tree)


Model = TypeVar("Model")


def _validated(
    adapter: TypeAdapter[Model], root: type, tree: Mapping[str, Any], folders: Iterable[Path] = ()
) -> Model:
    try:
        # Through JSON, so that strict mode still takes a list for a tuple.
        return adapter.validate_json(
            json.dumps(tree),
            strict=True,
            by_alias=True,
            by_name=False,
            context={"folders": tuple(folders)},
        )
    except ValidationError as error:
        raise ConfigError(sentence(error, root, tree)) from None
    except TypeError as error:
        raise ConfigError(
            f"The configuration holds a value that is not plain data: {error}."
        ) from None


# --- what pydantic cannot see ---------------------------------------------------------------------


def check_graph(config: Config) -> None:
    """Names between sections, and options that would have no effect. Raises ConfigError."""
    if not config.steps:
        raise ConfigError("steps is empty; there is nothing to run.")
    for section, names in (("steps", config.steps), ("data", config.data)):
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ConfigError(
                    f"{section}: {name!r} is no name for a folder; use letters, digits, - and _."
                )
    for name, step in config.steps.items():
        if (problem := misread(name, config.steps)) is not None:
            raise ConfigError(f"steps.{name}: {problem}; call the step something else.")
        _check_inputs(config, name, step)
        for option, problem in step.contradictions():
            raise ConfigError(f"steps.{name}.{option} {problem}.")
        _check_gold(config, name, step)
        if isinstance(step, PPO | Evaluate):
            for option, problem in misread_rewards(step, config.steps):
                raise ConfigError(f"steps.{name}.{option} {problem}.")
    _check_sources(config)
    _check_precision(config)
    _check_compile(config)
    for option, why in _ineffective(config):
        raise ConfigError(f"{option} has no effect {why}; remove it.")


def _check_inputs(config: Config, name: str, step: AnyStep) -> None:
    """Each step and each data source that the step names is there, and of the kind it needs."""
    before = list(config.steps)[: list(config.steps).index(name)]
    for option, other, kinds in step.steps_used():
        where = f"steps.{name}.{option}"
        possible = [known for known in before if config.steps[known].kind in kinds]
        possible = ["base", *possible] if "base" in kinds else possible
        possible = [*possible, "gold"] if option.startswith("judge") else possible
        if other in possible:
            continue
        choice = f"Possible here: {', '.join(possible) or 'none'}."
        if other not in config.steps:
            raise ConfigError(
                f"{where} names the step {other!r}, which does not exist"
                f"{hint(other, possible)} {choice}"
            )
        if other not in before:
            raise ConfigError(
                f"{where} names {other!r}, which does not come before {name!r}. {choice}"
            )
        raise ConfigError(
            f"{where} names {other!r}, a step of kind {config.steps[other].kind}, which does not "
            f"fit. {choice}"
        )
    for option, source, _ in step.data_used():
        if source not in config.data:
            raise ConfigError(
                f"steps.{name}.{option} names the data {source!r}, which does not exist"
                f"{hint(source, config.data)} Known: {', '.join(config.data) or 'none'}."
            )


def _check_gold(config: Config, name: str, step: AnyStep) -> None:
    if isinstance(step, Evaluate):
        option, judges = "judges", step.judges
    elif isinstance(step, PPO):
        option, judges = "judge", (step.judge,)
    else:
        return
    if "gold" in judges and not config.data[step.data].built_in:
        raise ConfigError(
            f"steps.{name}.{option} names gold, which knows only the built-in world, but "
            f"data.{step.data}.path is {config.data[step.data].path!r}."
        )


def _check_precision(config: Config) -> None:
    """Half precision rounds most steps of a plain optimiser away; DeepSpeed has a float32 copy."""
    if config.base.dtype == "float32" or config.deepspeed is not None:
        return
    whole = (*POLICY_KINDS, "reward") if config.lora is None else ("pretrain",)
    for name, step in config.steps.items():
        if step.kind in whole:
            raise ConfigError(
                f"base.dtype is {config.base.dtype}, in which steps.{name} would train the base's "
                f"own weights and lose most of each update to rounding; use float32, LoRA, or "
                f"deepspeed with bf16."
            )


def _check_compile(config: Config) -> None:
    if not config.base.compile:
        return
    if config.base.gradient_checkpointing:
        raise ConfigError(
            "base.compile and base.gradient_checkpointing are both true, but a compiled layer "
            "cannot be computed again; choose one."
        )
    kinds = {step.kind for step in config.steps.values()}
    if not kinds - {"pretrain", "sft", "export"}:
        raise ConfigError(
            "base.compile has no effect where nothing but pretrain, sft and export steps is run; "
            "remove it."
        )


def _check_sources(config: Config) -> None:
    """Each source exists, is used, and serves all that is asked of it."""
    asked: dict[str, list[tuple[str, DataKind]]] = {source: [] for source in config.data}
    for name, step in config.steps.items():
        for option, source, kind in step.data_used():
            asked[source].append((f"steps.{name}.{option}", kind))
    for source, uses in asked.items():
        path = config.data[source].path
        if config.data[source].built_in and path not in BUILTIN_DATA:
            raise ConfigError(
                f"data.{source}.path is {path!r}{hint(path, BUILTIN_DATA)} "
                f"Built-in data: {', '.join(BUILTIN_DATA)}."
            )
        if not uses:
            used = [name for name, others in asked.items() if others]
            raise ConfigError(
                f"data.{source} is used by no step; remove it. Used are: "
                f"{', '.join(used) or 'none'}."
            )
        held = config.run_as(source)
        reader = FORMATS.get(config.data[source].format)
        if reader is not None and held not in reader.readers:
            fitting = [name for name, other in FORMATS.items() if held in other.readers]
            raise ConfigError(
                f"data.{source}.format is {config.data[source].format!r}, which holds no {held}. "
                f"Possible here: {', '.join(['auto', *fitting])}."
            )
        for where, kind in uses:
            if kind not in SERVES[held]:
                raise ConfigError(
                    f"{where} needs {kind}, but data.{source} ({path}) holds {held}. "
                    f"Give it a data source of its own."
                )


def _ineffective(section: Section, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, why) of every option without effect in the section and those below it."""
    for option, why in section.ineffective():
        yield where + option, why
    for option in type(section).model_fields:
        value: object = getattr(section, option)
        if isinstance(value, Section):
            yield from _ineffective(value, f"{where}{option}.")
        elif isinstance(value, dict):
            for name, part in cast(dict[str, object], value).items():
                if isinstance(part, Section):
                    yield from _ineffective(part, f"{where}{option}.{name}.")
        elif isinstance(value, tuple):
            for index, part in enumerate(cast(tuple[object, ...], value)):
                if isinstance(part, Section):
                    yield from _ineffective(part, f"{where}{option}[{index}].")
