"""What scores a response: functions of text, loaded from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config import ConfigError
from align.rewards import load_function


def test_a_function_is_loaded_from_its_file(tmp_path: Path):
    file = tmp_path / "judge.py"
    file.write_text("def short(prompts, completions):\n    return [-len(c) for c in completions]\n")
    assert load_function(f"{file}:short")(["a"], ["four"]) == [-4]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "has no function absent"),
        ("one", "has no function one"),  # one argument is not (prompts, completions)
        ("LIMIT", "has no function LIMIT"),
    ],
)
def test_a_function_that_is_not_there_is_named(tmp_path: Path, name: str, sentence: str):
    file = tmp_path / "judge.py"
    file.write_text("LIMIT = 3\n\n\ndef one(completions):\n    return completions\n")
    with pytest.raises(ConfigError, match=sentence):
        load_function(f"{file}:{name}")
    with pytest.raises(ConfigError, match="there is no file"):
        load_function(f"{tmp_path / 'other.py'}:{name}")
