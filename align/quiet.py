"""Keeps libraries from talking over the run: their progress bars, and what is no news to its user.

Only what is named here is left out, each with its reason. Any other warning of a library is shown,
once. `align --debug` shows everything.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from dataclasses import dataclass, field

IGNORED = (
    # transformers and peft call each other's old names; nothing a user of this toolkit can change.
    (FutureWarning, r".*is_gradient_checkpointing.*"),
    (FutureWarning, r".*`gradient_checkpointing` is deprecated.*"),
    # DeepSpeed calls torch's old names.
    (FutureWarning, r"`torch\.distributed\.\w+` is deprecated"),
    # GPT-2's layers store their weights the other way round; peft sees it and does what is right.
    (UserWarning, r"fan_in_fan_out is set to False but the target module is `Conv1D`"),
)
"""Warnings by category and message."""
NO_NEWS = (
    # Pad and end are set on purpose, and the model is told by the very function that warns.
    ("transformers.trainer_utils", r"The tokenizer has new PAD/BOS/EOS tokens"),
    # Lengths are checked here against what the step allows; too long texts are counted or cut.
    ("transformers.tokenization_utils_base", r"Token indices sequence length is longer"),
)
"""Lines of a log by logger and message."""
_debug = False


def show_everything(wanted: bool) -> None:
    """Whether `quiet_libraries` is to leave the libraries as they are."""
    global _debug
    _debug = wanted


def quiet_libraries() -> None:
    """Silences what is not about the user's run. Call it before the first model is loaded."""
    if _debug:
        return
    import torch

    if not torch.cuda.is_available():
        # Otherwise DeepSpeed, which accelerate imports, warns that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _no_bars()
    for name, message in NO_NEWS:
        logging.getLogger(name).addFilter(NoNews(message))
    if logging.lastResort is not None:
        logging.lastResort.addFilter(_once)
    for category, message in IGNORED:
        warnings.filterwarnings("ignore", message=message, category=category)


def _no_bars() -> None:
    from datasets.utils.logging import disable_progress_bar
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    # Its own handler writes past whatever standard error is by then, through the bar of ours.
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


@dataclass(frozen=True)
class NoNews:
    """Leaves out what begins like a message."""

    message: str

    def filter(self, record: logging.LogRecord) -> bool:
        return re.match(self.message, record.getMessage()) is None


@dataclass(frozen=True)
class Once:
    """Leaves out what a library has said before; what the toolkit says is always about the run."""

    said: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    def filter(self, record: logging.LogRecord) -> bool:
        line = (record.name, record.getMessage())
        again = line in self.said
        self.said.add(line)
        return not again or record.name.partition(".")[0] == "align"


_once = Once()
