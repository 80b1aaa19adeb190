"""README and layout say what is there: files, commands, configurations, and links that lead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align.cli import app
from align.config import Columns, ConfigError, build_config, load_config
from align.config_yaml import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAYOUT = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if "_build" not in path.relative_to(ROOT).parts
    ),
]
PACKAGES = ("preference_data", "reward_models", "align", "launch")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def layout_lines() -> list[str]:
    return [line for block in blocks(LAYOUT, "none") for line in block.splitlines() if line]


def test_the_layout_lists_every_file_once_and_none_that_is_gone():
    listed = [line.split()[0] for line in layout_lines()]
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
    assert all(len(line.split()) > 2 for line in layout_lines())


def test_the_layout_is_found_from_readme_and_documentation():
    assert "(docs/layout.md)" in README
    assert "(layout.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_as_they_are():
    assert "pip install -c constraints.txt -e . && align run configs/quickstart.yaml\n" in README
    assert 'pip install -c constraints.txt -e ".[test]" && pytest\n' in README


def test_the_commands_are_those_of_the_command_line():
    shown = re.findall(r"^\| `align ([\w-]+)", section("Command line"), re.MULTILINE)
    known = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
    assert shown == [name.rstrip("_") for name in known]


def test_files_that_are_named_exist():
    named = re.findall(r"(?:configs|launch|align|tests)/[\w/]+\.\w+", README)
    assert {"configs/csv.yaml", "align/schema.json"} <= set(named)
    for name in named:
        assert (ROOT / name).is_file(), name


LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


def prose_of(text: str) -> str:
    """Without blocks of code, in which brackets are no links; code within a line stays."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def links_of(page: str) -> list[tuple[str, str]]:
    """(text, target) of every link to a file or a heading here."""
    found = LINK.findall(prose_of((ROOT / page).read_text(encoding="utf-8")))
    return [(text, target) for text, target in found if not re.match(r"\w+:", target)]


def anchors_of(path: Path) -> set[str]:
    """The headings as GitHub and MyST name them in links."""
    titles = re.findall(r"^#+ (.*)$", prose_of(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def leads_somewhere(page: str, target: str) -> bool:
    """Whether a file is there with such a heading. Anchors of keys of the configuration are made,
    and checked, when the documentation is built."""
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    if not path.exists():
        return False
    return not anchor or anchor.startswith("config-") or anchor in anchors_of(path)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere_and_says_where(page: str):
    """A link without a text is filled in by Sphinx, and is not to be seen on GitHub."""
    links = links_of(page)
    lost = [target for _, target in links if not leads_somewhere(page, target)]
    assert not lost
    assert all(text for text, _ in links)


def test_a_link_that_leads_nowhere_is_seen():
    assert leads_somewhere("docs/index.md", "stages/ppo.md")
    assert leads_somewhere("README.md", "docs/performance.md#how-close-to-the-optimum")
    assert not leads_somewhere("README.md", "stages/ppo.md")
    assert not leads_somewhere("README.md", "docs/performance.md#how-close")
    assert {target for _, target in links_of("README.md")} >= {"docs/index.md", "LICENSE"}


def test_readme_stays_a_page():
    """What is looked up stands in docs/."""
    assert len(README.splitlines()) <= 300


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
