"""Pushing to the hub, against a small one on loopback: what arrives, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import TOKEN, serve

from align.artifacts import Artifact, write_json
from align.cli import main
from align.config import ConfigError
from align.hub import PushError, Repository, find_token, layout, no_network, push
from reward_models.scalar_head import ScalarHead, Scoring

# huggingface_hub calls its HTTP client by an old name when it uploads a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {"README.md": b"---\ntags: [a]\n---\nCard", "adapter_config.json": b"{}"}
LARGE = {"adapter_model.safetensors": b"12345678" * 4096, "merged/model.safetensors": b"x" * 9999}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The hub that the client talks to here, with a token that may write to `me/`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with serve() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        # Between tries; six of them take half a minute.
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield server
        _http.close_session()


def files_of(server: Any, name: str = "me/mine", branch: str = "main") -> dict[str, bytes]:
    files = server.repos[name].head(branch).files
    return {path: data for path, data in files.items() if path != ".gitattributes"}


# --- what arrives ---------------------------------------------------------------------------------


def test_a_repository_is_made_privately_and_holds_the_files(hub: Any):
    pushed = push(Repository("me/mine"), {**FILES, **LARGE}, "ppo of rivers")
    assert files_of(hub) == {**FILES, **LARGE}
    assert hub.repos["me/mine"].private and pushed.private and pushed.created
    assert (pushed.url, pushed.commit) == (
        f"{hub.endpoint}/me/mine",
        hub.repos["me/mine"].head().oid,
    )
    assert set(hub.objects) == {sha256(data) for data in LARGE.values()}
    assert hub.repos["me/mine"].head().message == "ppo of rivers"


def test_public_only_when_it_is_said(hub: Any):
    assert not push(Repository("me/mine", public=True), FILES, "first").private
    assert not hub.repos["me/mine"].private


def test_a_second_push_is_a_commit_without_what_is_gone(hub: Any):
    """The adapter's own files go, because they would change what whole weights compute."""
    push(Repository("me/mine"), {**FILES, **LARGE}, "first")
    repo = hub.repos["me/mine"]
    repo.commit("main", "by hand", {**repo.head().files, "LICENSE": b"mine", "pictures/a.png": b""})
    again = {"README.md": b"---\ntags: [b]\n---\nNew", "model.safetensors": b"whole"}
    pushed = push(Repository("me/mine"), again, "second")
    assert not pushed.created
    assert files_of(hub) == {**again, "LICENSE": b"mine", "pictures/a.png": b""}
    messages = [commit.message for commit in repo.branches["main"]]
    assert messages == ["initial commit", "first", "by hand", "second"]


def test_a_branch_of_its_own(hub: Any):
    push(Repository("me/mine"), FILES, "first")
    push(Repository("me/mine", revision="trial"), {**FILES, "config.json": b"{}"}, "second")
    assert files_of(hub) == FILES
    assert files_of(hub, branch="trial") == {**FILES, "config.json": b"{}"}


def test_a_file_that_has_not_changed_is_not_sent_again(hub: Any):
    push(Repository("me/mine"), {**FILES, **LARGE}, "first")
    changed = {**LARGE, "merged/model.safetensors": b"y" * 9999}
    push(Repository("me/mine"), {**FILES, **changed}, "second")
    assert hub.puts().count(sha256(LARGE["adapter_model.safetensors"])) == 1
    assert files_of(hub) == {**FILES, **changed}


# --- an upload that breaks off --------------------------------------------------------------------


def test_an_upload_that_breaks_off_leaves_the_branch_and_can_be_repeated(hub: Any):
    push(Repository("me/mine"), FILES, "first")
    arrived, lost = LARGE.values()
    hub.broken = {sha256(lost)}
    new = {"README.md": b"---\ntags: [b]\n---\nNew", **LARGE}
    with pytest.raises(PushError, match=r"did not take all files \(the connection to .* failed\)"):
        push(Repository("me/mine"), new, "second")
    assert files_of(hub) == FILES  # not even the card
    assert [commit.message for commit in hub.repos["me/mine"].branches["main"]][1:] == ["first"]
    hub.broken = set()
    before = len(hub.puts())
    push(Repository("me/mine"), new, "second")
    assert files_of(hub) == new
    assert hub.puts()[before:] == [sha256(lost)]
    assert hub.puts()[:before].count(sha256(arrived)) == 1


def test_a_commit_that_is_refused_shows_nothing(hub: Any):
    push(Repository("me/mine"), FILES, "first")
    hub.failing = {"/commit/": 507}
    with pytest.raises(PushError, match=r"the hub answered 507: .*never a part; run the same"):
        push(Repository("me/mine"), {**FILES, **LARGE}, "second")
    assert files_of(hub) == FILES


def test_somebody_else_s_commit_is_not_overwritten(hub: Any, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import HfApi

    push(Repository("me/mine"), FILES, "first")
    upload = HfApi.preupload_lfs_files

    def meanwhile(self: Any, *args: Any, **options: Any) -> None:
        hub.repos["me/mine"].commit("main", "theirs", {"theirs.txt": b"1"})
        upload(self, *args, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", meanwhile)
    with pytest.raises(PushError, match="changed by somebody else in the meantime"):
        push(Repository("me/mine"), LARGE, "second")
    assert files_of(hub) == {"theirs.txt": b"1"}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mine", "me/mine/more", "me/", "/mine", "me/a b", "me/a--b", "me/mine.git", "-me/a"]
)
def test_a_name_that_no_repository_has(name: str):
    with pytest.raises(ConfigError, match=r"^--push .*: this is no repository's name; .*\.$"):
        Repository(name)


def test_no_token(hub: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="There is no token for the hub: set HF_TOKEN"):
        push(Repository("me/mine"), FILES, "first")
    assert hub.log == []


def test_a_token_that_would_be_quoted_in_an_error_is_refused_without_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\x07")
    with pytest.raises(ConfigError, match="holds characters that no token has") as caught:
        find_token()
    assert "secret" not in str(caught.value)


def test_a_refused_token(hub: Any):
    hub.owners = {}
    with pytest.raises(ConfigError, match=r"The hub refuses the token \(401\)"):
        push(Repository("me/mine"), FILES, "first")
    assert hub.repos == {}


def test_somebody_else_s_namespace(hub: Any):
    with pytest.raises(ConfigError, match=r"may not write to you/theirs \(403\).* belongs to you"):
        push(Repository("you/theirs"), FILES, "first")
    hub.add("you/there", {"a.txt": b""})
    with pytest.raises(ConfigError, match=r"may not write to you/there \(403\)"):
        push(Repository("you/there", public=True), FILES, "first")
    assert files_of(hub, "you/there") == {"a.txt": b""}


def test_a_public_repository_is_not_filled_by_mistake(hub: Any):
    hub.add("me/mine", {"a.txt": b""})
    with pytest.raises(ConfigError, match="exists and is public, and what is pushed to it would"):
        push(Repository("me/mine"), FILES, "first")
    assert files_of(hub) == {"a.txt": b""}
    push(Repository("me/mine", public=True), FILES, "first")
    assert files_of(hub) == {"a.txt": b"", **FILES}


def test_no_network_at_all(monkeypatch: pytest.MonkeyPatch, hub: Any):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        push(Repository("me/mine"), FILES, "first")
    assert hub.log == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with no_network(), pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        push(Repository("me/mine"), FILES, "first")
    with pytest.raises(PushError, match=r"the connection to http://127\.0\.0\.1:9 failed"):
        push(Repository("me/mine"), FILES, "first", endpoint="http://127.0.0.1:9")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path, make_roles: Any, shake: Any) -> Path:
    """A run on the base `me/base` of the hub: a policy, a reward model, and an ensemble of two."""
    run = tmp_path / "run"
    config = {"base": {"model": "me/base", "revision": None}, "seed": 1, "data": {}, "steps": {}}
    write_json(run / "run.json", {"name": "rivers", "config": config})
    for seed, folder in enumerate(("sft", "judge", "judges/members/1", "judges/members/2")):
        roles = make_roles()
        roles.base_path = "me/base"
        head = ScalarHead(roles.model.config.hidden_size) if seed else None
        roles.add("trained", fresh=True, trainable=True, head=head)
        shake(roles.parameters_of("trained"), seed=seed)
        scoring = Scoring(roles.renderer.fingerprint(), 64) if seed else None
        roles.save("trained", run / folder, scoring)
    for name, kind in (("sft", "sft"), ("judge", "reward"), ("judges", "reward")):
        Artifact(name, kind, run / name, f"{name}-1", {}, base="me/base").save()
    return run


def named(run_dir: Path, base: Path) -> Path:
    """The run as if it had been made on a local base."""
    made = Artifact.load(run_dir / "sft")
    assert made is not None
    Artifact("sft", "sft", made.path, "sft-1", {}, base=str(base)).save()
    return run_dir


def test_what_lies_where(tmp_path: Path):
    for name in ("adapter/a.json", "merged/m.json", "base/b.json", "members/1/adapter/c.json"):
        write_json(tmp_path / name, {})
    write_json(tmp_path / "export.json", {})
    assert list(layout(tmp_path, whole=False)) == [
        "a.json", "members/1/adapter/c.json", "merged/m.json",
    ]  # fmt: skip
    assert list(layout(tmp_path, whole=True)) == ["m.json"]


def test_an_adapter_without_a_base_on_the_hub_needs_merge(
    run_dir: Path, tiny_folder: Path, tmp_path: Path, hub: Any, capsys: Any
):
    command = ["export", str(named(run_dir, tiny_folder) / "sft"), str(tmp_path / "out")]
    assert main([*command, "--push", "me/mine"]) == 2
    said = capsys.readouterr().err
    assert "not on the hub, so that nobody could load its adapter; add --merge" in said
    assert not (tmp_path / "out").exists() and hub.log == []
    assert main([*command, "--push", "me/mine", "--merge"]) == 0
    files = files_of(hub)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert not any("adapter" in name or "/" in name for name in files)
    card = files["README.md"].decode()
    assert "library_name: transformers" in card and "base_model" not in card
    assert 'AutoModelForCausalLM.from_pretrained("me/mine")' in card


def test_a_dry_run_lists_the_files_and_sends_nothing(
    run_dir: Path, tiny_folder: Path, tmp_path: Path, hub: Any, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    out = tmp_path / "out"
    command = ["export", str(named(run_dir, tiny_folder) / "sft"), str(out), "--merge"]
    assert main([*command, "--push", "me/mine", "--dry-run"]) == 0
    said = capsys.readouterr().out
    size = (out / "merged/model.safetensors").stat().st_size
    assert f"{size:>16,}  model.safetensors\n" in said
    assert "Would go to me/mine, branch main: " in said and "private, if it is not there" in said
    assert hub.log == []
    written = (out / "export.json").stat().st_mtime_ns
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main([*command, "--push", "me/mine"]) == 0  # with the same folder
    assert (out / "export.json").stat().st_mtime_ns == written
    assert "Pushed: " in capsys.readouterr().out
    (out / "merged/config.json").write_text("{}")
    assert main([*command, "--push", "me/mine"]) == 2  # it is not what was proved
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_ctrl_c_in_an_upload_and_the_same_command_again(
    run_dir: Path, tiny_folder: Path, tmp_path: Path, hub: Any, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    from huggingface_hub import HfApi

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = ["export", str(named(run_dir, tiny_folder) / "sft"), str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "preupload_lfs_files", interrupted)
        assert main([*command, "--merge", "--push", "me/mine"]) == 130
    assert files_of(hub) == {}
    assert main([*command, "--merge", "--push", "me/mine"]) == 0
    assert "model.safetensors" in files_of(hub)
    assert "which was there, as a new commit" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--public"], ["--revision", "a"], ["--dry-run"]])
def test_options_of_a_push_need_one(option: list[str], tmp_path: Path, capsys: Any):
    assert main(["export", str(tmp_path), str(tmp_path / "out"), *option]) == 2
    assert capsys.readouterr().err == (f"{option[0]} has no effect without --push; leave it out.\n")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_the_token_is_never_shown(
    debug: list[str], run_dir: Path, tiny_folder: Path, tmp_path: Path, hub: Any, capsys: Any,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    """Not even where the server quotes it in its answer, and not in the folder or what is sent."""
    hub.failing = {"/preupload/": 418}
    command = ["export", str(named(run_dir, tiny_folder) / "sft"), str(tmp_path / "out")]
    with caplog.at_level("DEBUG"):
        assert main([*command, "--merge", "--push", "me/mine", *debug]) == 1
    printed = capsys.readouterr()
    assert "the hub answered 418: sent Bearer <token>" in printed.err
    assert any(headers.get("authorization") == f"Bearer {TOKEN}" for headers in hub.headers)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN not in printed.err + printed.out + caplog.text
    assert TOKEN.encode() not in kept
    hub.failing = {}
    assert main([*command, "--merge", "--push", "me/mine"]) == 0
    assert not any(TOKEN.encode() in data for data in files_of(hub).values())


DOWNLOAD = """
import json, re, sys, urllib.error, urllib.request
import torch
from huggingface_hub import constants, hf_hub_download
from peft import PeftModel
from transformers import AutoModelForCausalLM
from align.cli import main
from reward_models import RewardModel

ids = torch.tensor([[5, 60, 7, 200, 9]])
run = sys.argv[1]

def push(step, *options):
    assert main(["export", f"{run}/{step}", f"{run}/out_{step}", *options]) == 0

@torch.no_grad()
def logits(model):
    return model.eval()(ids).logits

def names_of_card(name):
    card = open(hf_hub_download(name, "README.md")).read()
    for code in re.findall(r"```python\\n(.*?)```", card, re.DOTALL):
        names = {}
        exec(code, names)
        yield names

def base():
    return AutoModelForCausalLM.from_pretrained("me/base")

push("sft", "--push", "me/policy")
trained = logits(PeftModel.from_pretrained(base(), f"{run}/sft/adapter"))
again = logits(PeftModel.from_pretrained(base(), "me/policy"))
[told] = names_of_card("me/policy")
found = {
    "bare": float((trained - logits(base())).abs().max()),
    "policy": float((again - trained).abs().max()),
    "card": float((logits(told["model"]) - trained).abs().max()),
}
question, answer = ["Hello"], ["Hello! What can I do for you?"]
for step in ("judge", "judges"):
    push(step, "--push", f"me/{step}")
    model = RewardModel.from_pretrained(f"{run}/{step}")
    toolkit, plain = names_of_card(f"me/{step}")
    found[step] = abs(toolkit["score"] - model.score(question, answer)[0])
    first = (model.members or [model])[0]
    found[step + " plain"] = abs(plain["score"] - first.score(question, answer)[0])
try:
    urllib.request.urlopen(constants.ENDPOINT + "/marker")
except urllib.error.HTTPError:
    pass
assert main(["export", f"{run}/sft", f"{run}/dry", "--push", "me/dry", "--dry-run"]) == 0
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_was_pushed_is_downloaded_and_computes_the_same(
    hub: Any, run_dir: Path, tiny_folder: Path, tmp_path: Path
):
    """In a fresh process, on the base by its id; also by the code of the cards on the hub."""
    hub.add("me/base", {path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    environment = {
        **os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, run_dir],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("bare") > 0.1
    assert max(found.values()) < 1e-5, found
    assert hub.log[-1] == "GET /marker"  # the dry run after it asked nothing, not for the base
    files = files_of(hub, "me/policy")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert "base_model: me/base" in files["README.md"].decode()
    assert "members/2/adapter/adapter_model.safetensors" in files_of(hub, "me/judges")
