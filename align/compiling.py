"""Layers of the base as torch.compile makes them: element by element in one pass over memory."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from align.config import ConfigError

VARIANTS = 64
"""How often a layer's code may be compiled: for each role, with a gradient and without, and for the
first layer, whose input has none. torch gives up after 8."""
log = logging.getLogger("align")
_COMPILED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def compile_later(model: Any, device: torch.device) -> None:
    """Lets `compiled` compile the layers of `model`, and of its copies, when they are first needed.

    Raises ConfigError where nothing can be compiled.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # of a compiler, of its headers, of a backend
        reason = next(iter(str(_cause(error)).strip().splitlines()), type(error).__name__)
        reason = reason if reason.endswith(".") else f"{reason}."
        raise ConfigError(
            f"base.compile is true, but nothing can be compiled here: {reason} Install a C++ "
            f"compiler and Python's headers, or set it to false."
        ) from None
    if not layers_of(model):
        raise ConfigError(
            f"base.compile is true, but the model ({model.config.model_type}) has no layers that "
            f"could be compiled; set it to false."
        )
    torch._dynamo.config.recompile_limit = VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = 16 * VARIANTS
    model.compiles_layers = True


def compiled(model: Any) -> bool:
    """Whether the layers of `model` are compiled ones, from now on.

    One compilation serves all layers that are alike, and all lengths.
    """
    if not getattr(model, "compiles_layers", False):
        return False
    left = [layer for layer in layers_of(model) if layer not in _COMPILED]
    if left:
        log.info("Compiling the layers: the first passes take longer.")
    for layer in left:
        layer.compile(dynamic=True)
        _COMPILED.add(layer)
    return True


def layers_of(model: nn.Module) -> list[Any]:
    """The layers of a transformers model that can be compiled, or computed again."""
    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def _cause(error: Exception) -> Exception:
    """What a backend of the compiler raised; its own first line would name the backend alone."""
    return getattr(error, "inner_exception", error)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """In it, layers compute as they were written: a cache that grows by a token a step would have
    them compiled again and again."""
    if not _COMPILED:  # the compiler takes a second to be imported
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
