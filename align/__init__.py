"""From human preference labels to an aligned adapter: the stages, and the pipeline of them.

    from align import Pipeline

The pipeline is imported on first use: `align.config` and the command line stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.pipeline import Pipeline

__version__ = "0.1.0"

__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from align.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
