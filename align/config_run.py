"""The sections of a run that are no steps: base, adapters, tracking, data, the built-in world."""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from align.config_errors import hint
from align.config_section import (
    FoundPath,
    Fraction,
    Name,
    PositiveFloat,
    PositiveInt,
    Section,
    folders_of,
    look_up,
)
from preference_data.sources import FORMATS, PersonalData
from preference_data.sources.columns.mapping import Columns

FORMAT_NAMES = ("auto", *FORMATS)


def _base_model(text: str, info: ValidationInfo) -> str:
    """A local folder as it is found, or the hub id as it stands."""
    if text.startswith("builtin:"):
        if text != "builtin:tiny":
            raise ValueError("the only built-in model is builtin:tiny")
        return text
    folders = folders_of(info)
    path = look_up(text, folders)
    if path is None and folders and text.startswith((".", "/", "~")):
        raise ValueError("there is no such folder")
    return path or text


def _format(name: str) -> str:
    if name not in FORMAT_NAMES:
        end = hint(name, FORMAT_NAMES)
        raise ValueError(f"there is no such format{end} Formats: {', '.join(FORMAT_NAMES)}")
    return name


class Base(Section):
    """The one Transformer under every role."""

    model: Annotated[Name, AfterValidator(_base_model)] = "builtin:tiny"
    """A hub id, a local folder, or `builtin:tiny` (random weights, tokenizer trained on the run's
    own text)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base's weights; adapters and heads stay in float32."""
    attention: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2"] = "auto"
    """Attention implementation; `auto` is sdpa. flex_attention skips the blocks that its mask
    hides; flash_attention_2 (float16 or bfloat16) takes no mask, so that a prompt is computed once
    for each of its completions."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input while training and compute the layer again in the backward pass:
    much less memory for about a third more time, and the same numbers."""
    compile: bool = False
    """Compile the base's layers (`torch.compile`) for reward, dpo, ppo and whatever scores: each
    pass is faster, the first ones wait for the compiler, and numbers differ by rounding. Needs a
    C++ compiler; excludes gradient_checkpointing and ZeRO-3."""
    architecture: dict[str, int | float | bool | str] = Field(
        default_factory=dict[str, int | float | bool | str]
    )
    """For `builtin:tiny`: settings of the Llama configuration to replace, such as hidden_size."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.model == "builtin:tiny":
            if self.sets("revision"):
                yield "revision", "with a built-in model"
        elif self.sets("architecture"):
            yield "architecture", "unless model is builtin:tiny"


class Lora(Section):
    """The adapters (Hu et al. 2021, arXiv:2106.09685)."""

    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveFloat = 32.0
    """Scale: the update is multiplied by alpha / r."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input while training sft, reward and dpo; PPO always runs without,
    or the first ratio would not be 1."""
    target_modules: Literal["all-linear"] | tuple[Name, ...] = "all-linear"
    """Names of the linear layers that get an adapter."""


class Wandb(Section):
    """Weights & Biases: one group a pipeline, one run a step. What is sent: the configuration,
    metrics, and the samples that steps write (prompts and answers to read)."""

    project: Name
    """Project the runs go to."""
    entity: str | None = None
    """Team or user; the key's own by default."""
    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """`auto` is online when a key is present, offline otherwise (or what WANDB_MODE says)."""
    log_data: bool = False
    """Send the imported rows with the artifacts of data sources; else only counts and hashes."""
    log_model: bool = False
    """Send adapters or weights with the artifacts of steps; else only their fingerprints."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        for option in ("log_data", "log_model"):
            if self.mode == "disabled" and self.sets(option):
                yield option, "with mode: disabled"


class TensorBoard(Section):
    """TensorBoard's event files."""

    folder: str | None = None
    """Where the runs of several pipelines lie together, each in NAME/STEP below it; null: in
    `tensorboard/` of each step's folder."""


class Tracking(Section):
    """Where metrics go besides the run folder's own `metrics.jsonl`."""

    wandb: Wandb | None = None
    """null = not there."""
    tensorboard: TensorBoard | None = None
    """null = not there; `{}` = with its defaults."""


class Data(Section):
    """One source of rows. What it is read as follows from the steps that use it."""

    path: FoundPath
    """A file, a folder, a glob, or `builtin:{text,demonstrations,labels,prompts}`."""
    format: Annotated[
        str, AfterValidator(_format), Field(json_schema_extra={"enum": list(FORMAT_NAMES)})
    ] = "auto"
    """Name of a reader, or `auto` to recognise it."""
    columns: Columns | None = None
    """For tables: which column is the prompt, the responses, the label or the ranks."""
    limit: PositiveInt | None = None
    """Read only the first so many input rows."""
    encoding: str | None = None
    """Of text files; found out where it is not given."""
    delimiter: str | None = None
    """Of tables; found out where it is not given."""
    personal_data: PersonalData = "keep"
    """`mask` replaces e-mail addresses, phone numbers and such; `drop` leaves the rows out."""
    aggregate: Literal["majority", "dawid_skene", "bradley_terry"] | None = None
    """One soft label for each item in place of its annotators' several judgements."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts held out of training, by the hash of the prompt."""
    max_quarantined: Fraction = 0.05
    """Share of unusable rows above which the import fails."""
    license: str | None = None
    """Under which terms the rows may be used: an SPDX identifier or words. Model cards say it."""

    @property
    def built_in(self) -> bool:
        """Whether the rows are made rather than read."""
        return self.path.startswith("builtin:")

    def ineffective(self) -> Iterator[tuple[str, str]]:
        for option in ("columns", "format", "encoding", "delimiter"):
            if self.built_in and self.sets(option):
                yield option, "for built-in data"
        format = FORMATS.get(self.format)
        if self.columns is not None and format is not None and not format.uses_columns:
            yield "columns", f"on the format {self.format}"


class World(Section):
    """Sizes of the built-in synthetic world."""

    documents: PositiveInt = 6000
    """Unlabelled texts for pretraining."""
    demonstrations: PositiveInt = 1500
    """Prompt and answer pairs for supervised fine-tuning."""
    items: PositiveInt = 1000
    """Labelled items; each is judged by one to three annotators."""
    prompts: PositiveInt = 800
    """Prompts for policy optimisation and evaluation."""
