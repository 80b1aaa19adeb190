"""Figures of a page: drawn with matplotlib, inlined as SVG, the same bytes for the same numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

BLUE, WARM = "#1f5fbf", "#b4531f"
INK, LINE, SOFT = "#3d444d", "#d0d7de", "#a9c3e8"


def svg(size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """An SVG of the given inches as a data URI; the same input gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "align",
        "font.size": 9,
        "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": LINE,
        "axes.unicode_minus": True,
        "axes.formatter.useoffset": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
