"""A reward model's folder found, checked and loaded with plain transformers and peft."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reward_models.folders import SCORING_FILE, base_under, weights_folder


def folder_of(path: str | Path, revision: str | None) -> Path:
    """The folder with the weights: `path` itself, a part of it, or a copy of what the hub has.

    Raises FileNotFoundError if no reward model is there.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = _from_hub(str(path), revision)
    folder = weights_folder(folder)
    if not (folder / SCORING_FILE).is_file():
        raise FileNotFoundError(f"{path} holds no reward model (no {SCORING_FILE}).")
    return folder


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise FileNotFoundError(
            f"{name}: there is no such folder, and the hub gave no model of this name ({reason})."
        ) from error


def refuse_pickles(folder: Path) -> None:
    """Raises ValueError where weights are a pickle, FileNotFoundError where there are none."""
    stem = "adapter_model" if (folder / "adapter_config.json").is_file() else "model"
    if any(folder.glob(f"{stem}*.safetensors")):
        return
    for pickled in (*folder.glob("*.bin"), *folder.glob("*.pt")):
        raise ValueError(
            f"{folder} holds its weights as {pickled.name}, a pickle, which can run any code when "
            f"it is loaded; save them as safetensors."
        )
    raise FileNotFoundError(f"{folder} holds no {stem}.safetensors.")


def load_scorer(
    folder: Path, base: str | None, revision: str | None, options: dict[str, Any]
) -> Any:
    """The model with its adapter, as plain transformers and peft load it.

    Its layers compute as in training, for each way to compute rounds otherwise.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForSequenceClassification

    from reward_models.folded import fold

    if not (folder / "adapter_config.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(str(folder), **options)
    config = PeftConfig.from_pretrained(str(folder))
    with without_warnings():  # that the base has no head: the adapter's file has it
        model = AutoModelForSequenceClassification.from_pretrained(
            base or base_under(folder, str(config.base_model_name_or_path)),
            num_labels=1,
            revision=revision or (None if base else config.revision),
            **options,
        )
    found: Any = PeftModel.from_pretrained(model, str(folder)).get_base_model()
    fold(found)
    return found


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """transformers says nothing below an error."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def share_base(model: Any, other: Any) -> None:
    """Lets a model use the other's weights for all that is not its adapter's."""
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            parameter.data = theirs[name].data
