"""Keeps libraries from talking over the run: their progress bars, and warnings about themselves."""

from __future__ import annotations

import logging
import os
import warnings

IGNORED = (
    # transformers and peft call each other's old names; nothing a user of this toolkit can change.
    (FutureWarning, r".*is_gradient_checkpointing.*"),
    (FutureWarning, r".*`gradient_checkpointing` is deprecated.*"),
)


def quiet_libraries() -> None:
    """Silences what is not about the user's run. Call it before the first model is loaded."""
    import torch

    if not torch.cuda.is_available():
        # Otherwise DeepSpeed, which accelerate imports, warns that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("DeepSpeed", "deepspeed", "accelerate", "httpx", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category, message in IGNORED:
        warnings.filterwarnings("ignore", message=message, category=category)
