"""The rewards of the configuration: read, checked, and asked for scores by ids or through text."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loopback import serving
from small_runs import TWO_LAYERS, builtin

from align.artifacts import Artifact, Rows, hash_files
from align.config import (
    Base,
    ConfigError,
    EnsembleReward,
    FunctionReward,
    ModelReward,
    ServiceReward,
    WeightedReward,
    build_config,
)
from align.config_rewards import IDENTITY
from align.engine import Engine
from align.pipeline import Pipeline
from align.reward_checks import check_rewards, load_function
from align.rewards import (
    Sampled,
    add_reward_roles,
    make_scorer,
    text_scorer,
    value_start,
)
from align.roles import Roles
from preference_data.batches import Group
from preference_data.records import Message, Prompt, Response
from reward_models import RewardModel
from reward_models.scalar_head import ScalarHead, Scoring
from reward_models.scoring import Answer, ScoringError

# --- the configuration ----------------------------------------------------------------------------


def tree(reward: Any, judges: tuple[Any, ...] = ("gold",)) -> dict[str, Any]:
    return {
        "name": "small",
        "output_dir": "runs/small",
        "data": builtin("labels", "prompts"),
        "steps": {
            "one": {"kind": "reward", "data": "labels"},
            "two": {"kind": "reward", "data": "labels"},
            "ppo": {"kind": "ppo", "data": "prompts", "reward": reward},
            "evaluate": {
                "kind": "evaluate", "data": "prompts", "policies": ["ppo"], "baseline": "base",
                "judges": list(judges),
            },
        },
    }  # fmt: skip


URL = {"url": "http://127.0.0.1:8000/score"}
SERVICE_KEYS = "batch_size, function, model, patience, timeout, token_env, url"
CODE = {"function": "code.py:score"}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (["one"], "[0] is 'one': it must be a section of keys."),
        ([], " is an empty list; name a reward."),
        ([{"reward": "one"}], "[0].weight is required and missing."),
        ([{"reward": "one", "weight": 0}], "[0].weight has no effect at 0; remove it."),
        ([{"reward": "one", "weight": 1, "name": "a/b"}], "[0].name is 'a/b': use letters, digits, - and _."),
        ([{"reward": "ppo", "weight": 1}], "[0].reward names 'ppo', which does not come before 'ppo'. Possible here: one, two."),
        ([{"reward": "one", "weight": 1}, {"reward": "one", "weight": -1}], "[1] is called 'one' like another; give it a name of its own."),
        ([{"reward": CODE, "weight": 1}, {"reward": {"function": "other.py:score"}, "weight": 1}], "[1] is called 'score' like another; give it a name of its own."),
        ({"ensemble": ["one"]}, ".ensemble needs two members or more."),
        ({"ensemble": ["one", CODE, CODE]}, ".ensemble[2] names 'score' a second time."),
        ({"ensemble": ["one", "tow"]}, ".ensemble[1] names the step 'tow', which does not exist; did you mean 'two'? Possible here: one, two."),
        ({"ensemble": ["one", {"ensemble": ["one", "two"]}]}, f".ensemble[1].ensemble is not a known key. Allowed here: {SERVICE_KEYS}."),
        ({"ensemble": ["one", "two"], "combine": "mim"}, ".combine is 'mim': it must be one of mean, min, mean_minus_std; did you mean 'min'?"),
        ({"ensemble": ["one", "two"], "std_weight": 2.0}, ".std_weight has no effect unless combine is mean_minus_std; remove it."),
        ([{"reward": {"ensemble": ["one", "two"], "std_weight": 2.0}, "weight": 1}], "[0].reward.std_weight has no effect unless combine is mean_minus_std; remove it."),
        ({"url": "localhost:8000"}, ".url is 'localhost:8000': write it as http://host:port/path."),
        ({"url": "http://a:x/"}, ".url is 'http://a:x/': write it as http://host:port/path."),
        ({"url": "http://me:word@a/"}, ".url is 'http://me:word@a/': an address holds no password; name its variable in token_env."),
        ({**URL, "timeout": 0}, ".timeout is 0: it must be more than 0."),
        ({**URL, "token_env": "$TOKEN"}, ".token_env is '$TOKEN': it is the name of an environment variable, not the token."),
        ({"timeout": 3}, ".url is required and missing."),
        ({**URL, **CODE}, ".function cannot stand beside the other keys here; remove it or them."),
        ({"modle": "x"}, ".modle is not a known key; did you mean 'model'? Allowed here: batch_size, combine, ensemble, function, model, patience, std_weight, timeout, token_env, url."),
    ],
)  # fmt: skip
def test_a_mistake_in_a_reward_is_named(reward: Any, message: str):
    with pytest.raises(ConfigError) as error:
        build_config(tree(reward))
    assert str(error.value) == f"steps.ppo.reward{message}"


def test_every_kind_of_reward_is_read():
    """And a part without a name of its own is called as the reward in it."""
    reward = [
        {"reward": "one", "weight": 1},
        {"reward": CODE, "weight": -0.5, "name": "brevity"},
        {"reward": {"model": "runs/other/reward/adapter"}, "weight": 2.0},
        {"reward": URL, "weight": 1.0},
        {"reward": {"ensemble": ["one", "two", CODE], "combine": "min"}, "weight": 1.0},
    ]
    step = build_config(tree(reward, ("gold", "one", CODE, URL))).steps["ppo"]
    assert step.kind == "ppo" and isinstance(step.reward, tuple)
    kinds = [type(part.reward) for part in step.reward]
    assert kinds == [str, FunctionReward, ModelReward, ServiceReward, EnsembleReward]
    assert [part.label for part in step.reward] == [
        "one", "brevity", "reward", "127.0.0.1_8000", "ensemble",
    ]  # fmt: skip
    assert [used for used in step.steps_used() if used[0].startswith("reward")] == [
        ("reward[0].reward", "one", ("reward",)),
        ("reward[4].reward.ensemble[0]", "one", ("reward",)),
        ("reward[4].reward.ensemble[1]", "two", ("reward",)),
    ]
    assert list(step.files_used()) == [
        ("reward[1].reward", "code.py"),
        ("reward[2].reward", "runs/other/reward/adapter"),
        ("reward[4].reward.ensemble[2]", "code.py"),
    ]


def test_a_judge_is_named_once():
    with pytest.raises(ConfigError) as error:
        build_config(tree("one", (CODE, {"function": "other.py:score"})))
    assert str(error.value) == "steps.evaluate.judges[1] names 'score' a second time."


def test_patience_is_no_part_of_what_a_step_is():
    """A run that a slow service stopped goes on with more patience, but not with another one."""

    def print_(**service: Any) -> Any:
        step = build_config(tree([{"reward": {**URL, **service}, "weight": 1}])).steps["ppo"]
        return step.model_dump(by_alias=True, context=IDENTITY)

    assert print_() == print_(timeout=9, patience=0, batch_size=3, token_env="TOKEN")
    assert print_() != print_(url="http://127.0.0.1:8001/score")


def test_a_step_is_made_anew_when_its_function_or_model_changes(tmp_path: Path):
    file, model = tmp_path / "code.py", tmp_path / "model"
    file.write_text("def score(prompts, completions): return [0.0] * len(prompts)\n")
    model.mkdir()
    (model / "scoring.json").write_text("{}")
    reward = [
        {"reward": {"function": f"{file}:score"}, "weight": 1},
        {"reward": {"model": str(model)}, "weight": 1},
    ]
    settings = {**tree(reward, ({"function": f"{file}:score"},)), "output_dir": str(tmp_path / "r")}

    def prints() -> dict[str, str]:
        tasks = Pipeline(build_config(settings)).tasks()
        return {task.name: task.fingerprint for task in tasks}

    first = prints()
    file.write_text("def score(prompts, completions): return [1.0] * len(prompts)\n")
    second = prints()
    assert {name for name in first if first[name] != second[name]} == {"ppo", "evaluate"}
    (model / "scoring.json").write_text('{"mean": 1}')
    assert second["ppo"] != prints()["ppo"]
    file.unlink()
    with pytest.raises(ConfigError) as error:
        prints()
    assert str(error.value) == f"steps.ppo.reward[0].reward: there is no file {str(file)!r}."


# --- functions of a file --------------------------------------------------------------------------


def test_a_function_is_loaded_from_its_file(tmp_path: Path):
    file = tmp_path / "judge.py"
    file.write_text("def short(prompts, completions):\n    return [-len(c) for c in completions]\n")
    assert load_function(f"{file}:short")(["a"], ["four"]) == [-4]


def test_a_file_may_hold_dataclasses_and_callables(tmp_path: Path):
    """A dataclass looks for its module among those that are loaded."""
    file = tmp_path / "judge.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Scaled:\n    by: float\n\n"
        "    def __call__(self, prompts, completions):\n"
        "        return [self.by * len(c) for c in completions]\n\n\ndouble = Scaled(2.0)\n"
    )
    assert load_function(f"{file}:double")(["a"], ["four"]) == [8.0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "has no function absent"),
        ("one", r"one cannot be called as one\(prompts, completions\)"),
        ("Judge", "has no function Judge"),
        ("LIMIT", "has no function LIMIT"),
    ],
)
def test_a_function_that_is_not_there_is_named(tmp_path: Path, name: str, sentence: str):
    file = tmp_path / "judge.py"
    file.write_text(
        "LIMIT = 3\n\n\ndef one(completions):\n    return completions\n\n\nclass Judge: ...\n"
    )
    with pytest.raises(ConfigError, match=sentence):
        load_function(f"{file}:{name}")
    with pytest.raises(ConfigError, match="there is no file"):
        load_function(f"{tmp_path / 'other.py'}:{name}")


def test_a_file_that_cannot_be_run_is_named(tmp_path: Path):
    file = tmp_path / "judge.py"
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(
        ConfigError, match=r"judge.py' cannot be loaded: ModuleNotFoundError: No mod"
    ):
        load_function(f"{file}:score")


def test_a_token_must_be_there(monkeypatch: pytest.MonkeyPatch):
    reward = ServiceReward(url="http://127.0.0.1:8000/", token_env="REWARD_TOKEN")
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    with pytest.raises(ConfigError) as error:
        text_scorer(reward, "steps.ppo.reward")
    assert str(error.value) == (
        "steps.ppo.reward.token_env names the environment variable REWARD_TOKEN, which is not set; "
        "put the service's token there."
    )
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    assert "s3cret" not in repr(text_scorer(reward, "steps.ppo.reward"))


# --- reward models --------------------------------------------------------------------------------

PROMPTS = [
    Prompt.from_text("What is the capital of France?"),
    Prompt((Message("user", "Hot?"), Message("assistant", "No."), Message("user", "Cold?"))),
    Prompt.from_text("Name a colour."),
]
COMPLETIONS = ["The capital of France is Paris.", "cold", "Snow. By the way, it rained."]


def save_reward(roles: Roles, folder: Path, shake: Callable[..., None], seed: int) -> Path:
    """A reward step's folder: adapter and head away from their start, with a mean and a spread."""
    torch.manual_seed(seed)
    role = f"saved_{seed}"
    roles.add(role, fresh=True, trainable=True, head=ScalarHead(32))
    shake(roles.parameters_of(role), seed)
    roles.save(role, folder, Scoring(roles.renderer.fingerprint(), 96, mean=0.25, std=0.5 + seed))
    return folder


@pytest.fixture
def context(make_roles: Callable[..., Roles], shake: Callable[..., None], tmp_path: Path) -> Any:
    """`context(reward)`: as much of a StageContext as rewards need, with the steps one and two, and
    both, an ensemble of the two."""
    maker = make_roles()
    folders = {
        name: save_reward(maker, tmp_path / name, shake, seed)
        for seed, name in enumerate(("one", "two"), 1)
    }
    for number, name in enumerate(("one", "two"), 1):  # the same two as members of one step
        shutil.copytree(tmp_path / name, tmp_path / f"both/members/{number}")
    folders["both"] = tmp_path / "both"
    inputs = {
        name: Artifact(name, "reward", folder, "", {}, base=maker.base_path)
        for name, folder in folders.items()
    }

    def make(reward: Any) -> Any:
        return SimpleNamespace(
            name="ppo",
            inputs=inputs,
            engine=Engine(),
            weights_of=lambda name: inputs[name].adapter,
            base_of=lambda name: inputs[name].base,
            step=SimpleNamespace(
                reward=reward,
                data="prompts",
                train=SimpleNamespace(tokens_per_forward=40, max_new_tokens=20),
            ),
        )

    return make


def groups_of(roles: Roles) -> tuple[list[Group], dict[tuple[int, ...], Prompt]]:
    rows = [
        roles.renderer.render(prompt, Response.from_text(text))
        for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    return (
        [Group(row.prompt, (row.completion,)) for row in rows],
        {row.prompt: prompt for row, prompt in zip(rows, PROMPTS, strict=True)},
    )


def scored(context: Any, roles: Roles) -> Any:
    add_reward_roles(context, roles)
    roles.eval()
    groups, prompts = groups_of(roles)
    return make_scorer(context, roles, prompts)(groups)


def normalised(folder: Path) -> list[float]:
    model = RewardModel.from_pretrained(folder)
    raw = model.score(PROMPTS, COMPLETIONS)
    return [(one - model.scoring.mean) / model.scoring.std for one in raw]


def test_a_step_on_the_shared_base_is_scored_from_ids_as_the_model_by_itself(
    context: Any, make_roles: Callable[..., Roles], tmp_path: Path
):
    found = scored(context("one"), make_roles())
    assert found.values == pytest.approx(normalised(tmp_path / "one"), abs=1e-5)
    assert not found.parts


def test_members_of_an_ensemble_are_roles_of_their_own(
    context: Any, make_roles: Callable[..., Roles], tmp_path: Path
):
    """Mean less the population deviation of two: |a - b| / 2."""
    roles = make_roles()
    reward = EnsembleReward(ensemble=("one", "two"), combine="mean_minus_std")
    found = scored(context(reward), roles)
    pairs = list(zip(normalised(tmp_path / "one"), normalised(tmp_path / "two"), strict=True))
    expected = [(a + b) / 2 - abs(a - b) / 2 for a, b in pairs]
    assert found.values == pytest.approx(expected, abs=1e-5)
    assert found.parts["score_std"] == pytest.approx([abs(a - b) / 2 for a, b in pairs], abs=1e-5)
    assert min(found.parts["score_std"]) > 1e-3
    assert len(list(roles.model.peft_config)) == 2


@pytest.mark.parametrize(
    ("reward", "value"),
    [
        ("both", lambda a, b: (a + b) / 2),
        (EnsembleReward(ensemble="both", combine="min"), min),
        (
            EnsembleReward(ensemble="both", combine="mean_minus_std", std_weight=0.5),
            lambda a, b: (a + b) / 2 - abs(a - b) / 4,
        ),
    ],
)
def test_the_members_of_one_step_are_scored_as_they_are_by_themselves(
    context: Any, make_roles: Callable[..., Roles], tmp_path: Path, reward: Any, value: Any
):
    """Each normalised by its own mean and spread; the deviation of two is half their distance.
    A copy of the base beside the policy gives the same through text."""
    roles, made = make_roles(), context(reward)
    found = scored(made, roles)
    pairs = list(zip(normalised(tmp_path / "one"), normalised(tmp_path / "two"), strict=True))
    assert found.values == pytest.approx([value(a, b) for a, b in pairs], abs=1e-5)
    assert found.parts["score_std"] == pytest.approx([abs(a - b) / 2 for a, b in pairs], abs=1e-5)
    assert len(list(roles.model.peft_config)) == 2
    known = value_start(made, roles)
    assert known is not None and known[0].parent == tmp_path / "both/members/1"
    elsewhere: Any = SimpleNamespace(**{**vars(made), "base_of": lambda _: str(tmp_path / "copy")})
    shutil.copytree(roles.base_path, tmp_path / "copy")
    groups, prompts = groups_of(roles)
    text = make_scorer(elsewhere, make_roles(), prompts)(groups)
    assert text.values == pytest.approx(found.values, abs=1e-5)
    assert text.parts["score_std"] == pytest.approx(found.parts["score_std"], abs=1e-5)


def test_a_step_that_is_named_twice_is_one_role(
    context: Any, make_roles: Callable[..., Roles], tmp_path: Path
):
    """2 * one - mean(one, two) = 1.5 * one - two / 2."""
    roles = make_roles()
    reward = (
        WeightedReward(reward="one", weight=2.0),
        WeightedReward(reward=EnsembleReward(ensemble=("one", "two")), weight=-1.0),
    )
    found = scored(context(reward), roles)
    pairs = zip(normalised(tmp_path / "one"), normalised(tmp_path / "two"), strict=True)
    assert found.values == pytest.approx([1.5 * a - b / 2 for a, b in pairs], abs=1e-5)
    assert list(found.parts) == ["score/one", "score/ensemble", "score/ensemble_std"]
    assert len(list(roles.model.peft_config)) == 2


def test_where_the_value_starts(context: Any, make_roles: Callable[..., Roles]):
    """From the step that is the reward, or an ensemble's first; from nothing that it knows else."""
    roles = make_roles()
    for reward in ("one", EnsembleReward(ensemble=("one", "two"))):
        known = value_start(context(reward), roles)
        assert known is not None and known[0].parent.name == "one"
    for reward in (
        (WeightedReward(reward="one", weight=2.0),),
        ServiceReward(url="http://127.0.0.1:8000/"),
    ):
        assert value_start(context(reward), roles) is None


@pytest.fixture
def other_reward(shake: Callable[..., None], tmp_path: Path) -> Path:
    """A reward model on another base, whose tokenizer cuts texts otherwise."""
    from align.base import build_tiny, load_base, load_renderer
    from align.config import Lora

    folder = tmp_path / "other"
    architecture: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 280,
    }  # fmt: skip
    build_tiny(folder, Base(architecture=architecture), ["other words, 1 2 3"] * 3, seed=5)
    base = load_base(str(folder), Base(model=str(folder)), torch.device("cpu"))
    roles = Roles(base, load_renderer(str(folder)), Lora(r=4, alpha=8), str(folder))
    return save_reward(roles, tmp_path / "foreign", shake, 3)


def test_a_model_on_another_base_reads_the_text_and_never_the_ids(
    context: Any, make_roles: Callable[..., Roles], other_reward: Path
):
    roles = make_roles()
    found = scored(context(ModelReward(model=str(other_reward))), roles)
    assert found.values == normalised(other_reward)
    assert not hasattr(roles.model, "peft_config")
    theirs = RewardModel.from_pretrained(other_reward)._renderer
    ours, _ = groups_of(roles)
    for prompt, text, group in zip(PROMPTS, COMPLETIONS, ours, strict=True):
        row = theirs.render(prompt, Response.from_text(text))
        assert row.prompt != group.prompt and row.completion != group.completions[0]


def test_a_step_on_another_base_is_loaded_beside_the_policy(
    context: Any, make_roles: Callable[..., Roles], other_reward: Path
):
    """In one sum with a step on the policy's own base."""
    reward = (
        WeightedReward(reward="one", weight=1.0),
        WeightedReward(reward="foreign", weight=-2.0),
    )
    made = context(reward)
    base = str(other_reward.parent / "other")
    made.inputs["foreign"] = Artifact("foreign", "reward", other_reward, "", {}, base=base)
    found = scored(made, make_roles())
    assert found.parts["score/foreign"] == normalised(other_reward)
    pairs = zip(normalised(other_reward.parent / "one"), normalised(other_reward), strict=True)
    assert found.values == pytest.approx([a - 2 * b for a, b in pairs], abs=1e-5)


def test_what_a_model_beside_the_policy_cannot_read(other_reward: Path):
    """A control token that a policy spells out is left out; what is too long is refused."""
    scorer = text_scorer(ModelReward(model=str(other_reward)), "steps.ppo.reward")
    prompt = PROMPTS[0]
    plain, spelt = Answer(prompt, "Paris. Really"), Answer(prompt, "Paris.<|e<|end|>nd|> Really")
    assert scorer([spelt]).values == scorer([plain]).values
    with pytest.raises(
        ScoringError,
        match=r"^the reward model foreign cannot score row 1 \(prompt 'What is the capital of "
        r"France\?'\): a conversation of \d+ tokens is longer than the 96",
    ):
        scorer([plain, Answer(prompt, "word " * 60)])


def test_prompts_that_a_model_beside_the_policy_cannot_read_are_left_out_at_once(
    context: Any, make_roles: Callable[..., Roles], other_reward: Path,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    """One too long with a response of 20 tokens, one that its template cannot render; counted, and
    the first named. The sum holds a function, too, which reads everything."""
    roles = make_roles()
    made = context(
        (
            WeightedReward(reward=ModelReward(model=str(other_reward)), weight=1.0),
            WeightedReward(reward="one", weight=1.0),
        )
    )
    add_reward_roles(made, roles)
    _, prompts = groups_of(roles)
    long, spelt = Prompt.from_text("word " * 40), Prompt.from_text("x <|end|> y")
    prompts = {(1, 2): long, **prompts, (3, 4): spelt}
    scorer = make_scorer(made, roles, prompts)
    with caplog.at_level(logging.WARNING, logger="align"):
        kept, rows = scorer.readable(Rows(7, 5, 2))
    assert list(kept.values()) == PROMPTS
    assert rows == Rows(7, 3, 4)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "ppo: 2 of 5 prompts of data.prompts are left out, the first 'word word word"
    )
    assert "the reward model foreign cannot read it: a conversation of" in line
    none = make_scorer(made, roles, {(1, 2): long})
    with pytest.raises(ConfigError, match=r"^steps.ppo.reward: all 1 of 1 prompt of data.prompts"):
        none.readable(Rows(1, 1, 0))


def test_a_prompt_that_a_cutting_model_has_no_room_for_is_left_out(
    context: Any, make_roles: Callable[..., Roles], tmp_path: Path
):
    """A model that reads 21 tokens keeps one of the prompt before a response of 20, and none before
    one of 21."""
    path = tmp_path / "one/adapter/scoring.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "max_length": 21, "truncation": "left"})
    )
    roles, made = make_roles(), context("one")
    add_reward_roles(made, roles)
    _, prompts = groups_of(roles)
    scorer = make_scorer(made, roles, prompts)
    assert scorer.readable(Rows(3, 3)) == (prompts, Rows(3, 3))
    made.step.train.max_new_tokens = 21
    with pytest.raises(ConfigError, match="leaves its prompt no room in the 21"):
        scorer.readable(Rows(3, 3))


# --- before anything trains -----------------------------------------------------------------------


def early(folder: Path, reward: Any, judge: Any = None) -> dict[str, Any]:
    found = tree(reward)
    found["steps"]["ppo"]["judge"] = judge
    return {**found, "output_dir": str(folder)}


def test_a_run_with_a_reward_that_is_not_there_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before the first step, and in a plan; for the steps that will run, and no others."""
    file, empty = tmp_path / "code.py", tmp_path / "empty"
    file.write_text("def score(prompts, completions): return [0.0] * len(prompts)\n")
    empty.mkdir()
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    service = {"url": "http://127.0.0.1:9/", "token_env": "REWARD_TOKEN"}
    cases: list[tuple[Any, Any, str]] = [
        ({"function": f"{file}:other"}, None, "has no function other"),
        ([{"reward": service, "weight": 1}], None, r"steps.ppo.reward\[0\].reward.token_env names"),
        ({"model": str(empty)}, None, r"steps.ppo.reward.model .* holds no reward model"),
        ("one", {"ensemble": ["two", {"function": f"{file}:absent"}]}, "has no function absent"),
        ("one", {"model": str(empty)}, r"steps.ppo.judge.model .* holds no reward model"),
    ]
    for reward, judge, message in cases:
        pipeline = Pipeline(build_config(early(tmp_path / "run", reward, judge)))
        with pytest.raises(ConfigError, match=message):
            pipeline.run()
        with pytest.raises(ConfigError, match=message):
            pipeline.plan()
        assert not (tmp_path / "run").exists()
    check_rewards(pipeline.config, ["one", "two", "evaluate"])


def test_the_record_of_a_reward_model_is_read_at_once(tmp_path: Path):
    """Whether it is there, is JSON, and leaves a prompt room; of every member of an ensemble."""
    folder = tmp_path / "other/members/2/adapter"
    folder.mkdir(parents=True)
    config = build_config(early(tmp_path / "run", {"model": str(tmp_path / "other")}))
    record = folder / "scoring.json"
    for text, message in (
        ("{", "scoring.json cannot be read"),
        ('{"mean": 1}', "scoring.json cannot be read"),
        (
            '{"max_length": 64, "truncation": "left"}',
            r"steps.ppo: max_new_tokens is 64, which leaves a prompt no room in the 64 tokens",
        ),
    ):
        record.write_text(text)
        with pytest.raises(ConfigError, match=message):
            check_rewards(config, ["ppo"])
    record.write_text('{"max_length": 65, "truncation": "left"}')
    check_rewards(config, ["ppo"])


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"^steps.ppo.reward.model .* cannot be loaded: .* holds no reward model"
    ):
        text_scorer(ModelReward(model=str(tmp_path)), "steps.ppo.reward")


def test_a_reward_model_that_gives_nan_names_the_row(
    context: Any, make_roles: Callable[..., Roles]
):
    roles, made = make_roles(), context("one")
    add_reward_roles(made, roles)
    with torch.no_grad():
        roles.head("reward_one").weight.fill_(float("nan"))
    groups, prompts = groups_of(roles)
    with pytest.raises(ScoringError, match=r"^the reward model 'one' gave nan in row 0"):
        make_scorer(made, roles, prompts)(groups)


def test_any_batch_gives_a_row_its_score(context: Any, make_roles: Callable[..., Roles]):
    """A sum of a role, an ensemble and a function of text, in any order and split."""
    reward = (
        WeightedReward(reward="two", weight=0.5),
        WeightedReward(reward=EnsembleReward(ensemble=("one", "two"), combine="min"), weight=1.5),
    )
    roles, made = make_roles(), context(reward)
    add_reward_roles(made, roles)
    groups, prompts = groups_of(roles)
    scorer = make_scorer(made, roles, prompts)
    whole = scorer(groups).values
    assert scorer(groups[::-1]).values == pytest.approx(whole[::-1], abs=1e-5)
    assert [scorer([group]).values[0] for group in groups] == pytest.approx(whole, abs=1e-5)
    assert isinstance(Sampled(PROMPTS[0], "", groups[0]), Answer)


# --- a whole run ----------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[SimpleNamespace]:
    """Scores by the share of lower-case letters; the second request fails once."""
    state = SimpleNamespace(url="", requests=0, bodies=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests += 1
            state.bodies.append(body)
            scores = [sum(map(str.islower, c)) / (1 + len(c)) for c in body["completions"]]
            text = json.dumps({"scores": scores}).encode()
            self.send_response(503 if state.requests == 2 else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Handler) as address:
        state.url = f"{address}/"
        yield state


def test_ppo_on_a_sum_of_a_function_and_a_service(tmp_path: Path, service: SimpleNamespace):
    """The score is 2 * the function's - .5 * the service's, each logged by its name."""
    file = tmp_path / "code.py"
    file.write_text("def short(prompts, completions):\n    return [-len(c) for c in completions]\n")
    function = {"function": f"{file}:short"}
    settings = {
        "name": "sum",
        "output_dir": str(tmp_path / "run"),
        "base": {"architecture": TWO_LAYERS},
        "lora": {"r": 4},
        "world": {"prompts": 40},
        "data": {"prompts": {"path": "builtin:prompts", "test_fraction": 0.3}},
        "steps": {
            "ppo": {
                "kind": "ppo", "data": "prompts",
                "reward": [
                    {"reward": function, "weight": 2.0},
                    {"reward": {"url": service.url, "batch_size": 3}, "weight": -0.5, "name": "lower"},
                ],
                "train": {
                    "iterations": 2, "prompts_per_iteration": 8, "max_new_tokens": 6,
                    "learning_rate": 1e-3,
                },
            },
            "evaluate": {
                "kind": "evaluate", "data": "prompts", "policies": ["ppo"], "baseline": "base",
                "judges": [function, {"url": service.url}], "prompts": 4, "max_new_tokens": 6,
            },
        },
    }  # fmt: skip
    summary = Pipeline(build_config(settings)).run()
    lines = (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        expected = 2 * row["objective/score/short"] - 0.5 * row["objective/score/lower"]
        assert row["objective/score"] == pytest.approx(expected, abs=1e-5)
        assert row["objective/score/short"] < 0
    assert service.requests == 2 * 3 + 1 + 2  # 3 + 3 + 2 of 8, one again; two policies judged
    assert service.bodies[1] == service.bodies[2]
    judged = summary["steps"]["evaluate"]["metrics"]
    host = service.url.removeprefix("http://").rstrip("/").replace(":", "_")
    assert judged["evaluate/short/score/ppo"] < 0
    assert 0 <= judged[f"evaluate/{host}/win_rate/ppo_vs_base"] <= 1
    content = hash_files({"0 code.py": file})
    for name, option in (("ppo", "reward[0].reward"), ("evaluate", "judges[0]")):
        made = json.loads((tmp_path / "run" / name / "artifact.json").read_text())
        assert made["files"] == {option: content}
