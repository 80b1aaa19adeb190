"""What every part of the configuration is: closed, frozen, its options documented in place."""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


class Section(BaseModel):
    """A closed, frozen part of the configuration."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def to_plain(self) -> dict[str, Any]:
        """Every option with its value, defaults included, as JSON would hold it."""
        return self.model_dump(mode="json", by_alias=True)

    def ineffective(self) -> Iterator[tuple[str, str]]:
        """(option, why) of each option that is set here and would do nothing."""
        yield from ()

    def sets(self, option: str) -> bool:
        """Whether the file (or an override) sets the option, be it to its default."""
        return option in self.model_fields_set


def look_up(text: str, folders: tuple[Path, ...]) -> str | None:
    """The path or glob `text` as it is found from the first of `folders` that has it, or None."""
    for folder in folders:
        path = folder / Path(text).expanduser()
        anchor = Path(path.anchor)
        if path.exists() or any(anchor.glob(str(path.relative_to(anchor)))):
            return str(path)
    return None


def folders_of(info: ValidationInfo) -> tuple[Path, ...]:
    """The folders that the validation looks for files in; none takes every path on trust."""
    context = cast(dict[str, tuple[Path, ...]], info.context or {})
    return context.get("folders", ())


def found(text: str, info: ValidationInfo) -> str:
    """A path of the user's, looked for in the folders that the validation was given (if any)."""
    folders = folders_of(info)
    if not folders or text.startswith("builtin:"):
        return text
    path = look_up(text, folders)
    if path is None:
        places = " or ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
        absolute = Path(text).expanduser().is_absolute()
        raise ValueError(f"there is no such file{'' if absolute else f' in {places}'}")
    return path


def _function(text: str, info: ValidationInfo) -> str:
    file, separator, name = text.rpartition(":")
    if not separator or not file.endswith(".py") or not name.isidentifier():
        raise ValueError("write it as file.py:name")
    return f"{found(file, info)}:{name}"


Name = Annotated[str, Field(min_length=1)]
FoundPath = Annotated[str, Field(min_length=1), AfterValidator(found)]
Function = Annotated[str, AfterValidator(_function)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
