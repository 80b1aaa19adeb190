"""The pages of docs/ as tests read them: their blocks, and what is said of each.

A line `% …` above a block is a remark for the tests:

- `% not run: WHY` checks that the command and its options exist, and no more;
- `% ends with N: WHY` is a command whose exit code is N;
- `% numbers vary: WHY` lets a command print other numbers than the page shows;
- `% part of KEY` is a part of the page's first configuration, below the dotted KEY, and
  `% part of the file` one at its top;
- `% mapping` is a mapping of columns, in a file of its own;
- `% said by WHOM` is a message of somebody else's.

A block with a caption is a file of that name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from by_path import load_module

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(DOCS).as_posix()
    for path in DOCS.rglob("*.md")
    if "_build" not in path.relative_to(DOCS).parts
)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    remark: str
    language: str
    caption: str
    text: str

    @property
    def place(self) -> str:
        return f"docs/{self.page}, line {self.line}"

    @property
    def is_run(self) -> bool:
        return not self.remark.startswith("not run: ")


FENCE = re.compile(
    r"^(?:% (?P<remark>[^\n]*)\n)?```(?:\{code-block\} )?(?P<language>\S*)\n"
    r"(?::caption: (?P<caption>[^\n]*)\n\n?)?(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@cache
def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


@cache
def blocks(page: str) -> tuple[Block, ...]:
    text = text_of(page)
    return tuple(
        Block(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["remark"] or "",
            found["language"],
            found["caption"] or "",
            found["text"],
        )
        for found in FENCE.finditer(text)
    )


def every(language: str) -> list[Block]:
    return [one for page in PAGES for one in blocks(page) if one.language == language]


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """(command, what stands below it)"""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        count = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\"))
        command = " ".join(line.rstrip("\\").strip() for line in lines[:count])
        yield command, "\n".join(lines[count:])


def load(name: str) -> Any:
    """The module docs/extensions/NAME.py."""
    return load_module(DOCS / "extensions" / f"{name}.py")
