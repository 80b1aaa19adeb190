"""The README says what is there: files, commands and configurations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align.cli import app
from align.config import Columns, ConfigError, build_config, load_config
from align.config_yaml import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("preference_data", "reward_models", "align", "launch")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_layout_lists_every_file_once_and_none_that_is_gone():
    [layout] = blocks(section("Layout"))
    listed = [line.split()[0] for line in layout.splitlines() if line]
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    configs = {
        path.relative_to(ROOT).as_posix()
        for folder in ("configs", "launch")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".yaml", ".json", ".sh"}
    }
    tests = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in ROOT.glob("tests/**/*.py")}
    assert len(listed) == len(set(listed))
    assert {name for name in listed if not name.startswith("tests/")} == modules | configs
    assert tests <= set(listed)


def test_every_line_of_the_layout_says_something():
    [layout] = blocks(section("Layout"))
    assert all(len(line.split()) > 2 for line in layout.splitlines() if line)


def test_the_two_commands_stand_as_they_are():
    assert "pip install -c constraints.txt -e . && align run configs/quickstart.yaml\n" in README
    assert 'pip install -c constraints.txt -e ".[test]" && pytest\n' in README


def test_the_commands_are_those_of_the_command_line():
    shown = re.findall(r"^\| `align ([\w-]+)", section("Command line"), re.MULTILINE)
    known = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
    assert shown == [name.rstrip("_") for name in known]


def test_files_that_are_named_exist():
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    named = re.findall(r"(?:configs|launch|align)/[\w/]+\.\w+", README)
    assert {"configs/csv.yaml", "align/schema.json"} <= {*linked, *named}
    for name in {*linked, *named}:
        assert name.startswith("http") or (ROOT / name).is_file(), name


def test_the_configuration_that_it_explains_is_one():
    [example] = blocks(section("Configuration"), "yaml")
    config = build_config(parse_yaml(example, "README.md"))
    assert set(config.steps) == {"sft", "reward", "ppo", "evaluate", "export"}
    assert config.run_as("labels") == "preferences"


def test_the_mapping_that_it_shows_is_that_of_the_configuration():
    [example] = blocks(section("Your own data"), "yaml")
    config = parse_yaml((ROOT / "configs/csv.yaml").read_text(encoding="utf-8"), "csv.yaml")
    shown = parse_yaml(example, "README.md")["columns"]
    assert shown == config["data"]["labels"]["columns"]
    assert Columns(**shown).labels["0"] == "tie"


def test_the_python_that_it_shows_compiles_and_imports():
    [code] = blocks(section("Python"), "python")
    compile(code, "README.md", "exec")
    exec("\n".join(line for line in code.splitlines() if "import" in line), {})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where its data is: the paths that it names by default are files in the working directory."""
    monkeypatch.chdir(tmp_path)
    tree = parse_yaml((ROOT / "configs" / name).read_text(encoding="utf-8"), name)
    paths = [source["path"] for source in tree["data"].values()]
    for path in (Path(path) for path in paths if not path.startswith("builtin:")):
        with pytest.raises(ConfigError, match=f"{path}'?: there is no such file"):
            load_config(ROOT / "configs" / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    config = load_config(ROOT / "configs" / name)
    assert config.name == Path(name).stem
    assert config.output_dir == f"runs/{config.name}"
    assert [config.data[source].path for source in config.data] == paths
