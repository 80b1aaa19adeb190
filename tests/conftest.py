"""What tests share: a base small enough to be built once a session. Nothing here needs a network.

Torch and transformers are imported inside the fixtures: tests of the light modules stay light.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None)  # a busy machine is no failure
settings.load_profile("tests")

# Before transformers is imported: it reads these once.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false"
)
# More threads are slower on tensors this small, and take the cores from others. Read by torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TEXTS = [
    "Question: What is the capital of France?\nAnswer:\nThe capital of France is Paris.",
    "Question: What is the opposite of hot?\nAnswer:\nThe opposite of hot is cold. Good question!",
    "Question: Name the colour of snow.\nAnswer:\nI do not know that. By the way, it rained.",
]
ARCHITECTURE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a Llama of 2 layers with random weights, and a tokenizer of TEXTS."""
    from align.base import build_tiny
    from align.config import Base

    folder = tmp_path_factory.mktemp("base") / "tiny"
    build_tiny(folder, Base(architecture=dict(ARCHITECTURE)), TEXTS, seed=1)
    return folder


@pytest.fixture
def renderer(tiny_folder: Path) -> Any:
    """A renderer with a tokenizer of its own, so that a test may change it."""
    from align.base import load_renderer

    return load_renderer(str(tiny_folder))


@pytest.fixture
def make_roles(tiny_folder: Path, renderer: Any) -> Callable[..., Any]:
    """`make_roles(lora=...)` loads the base and puts it under fresh, empty Roles.

    Without arguments it has adapters of rank 4; `lora=None` is full fine-tuning.
    """
    import torch

    from align.base import load_base
    from align.config import Base, Lora
    from align.roles import Roles

    adapters = Lora(r=4, alpha=8)

    def make(lora: Lora | None = adapters) -> Roles:
        base = load_base(str(tiny_folder), Base(model=str(tiny_folder)), torch.device("cpu"))
        return Roles(base, renderer, lora, str(tiny_folder))

    return make


@pytest.fixture(scope="session")
def shake() -> Callable[..., None]:
    """`shake(parameters)` moves parameters away from what they start as: a fresh adapter computes
    what the base does, so that nothing could tell two of them apart."""
    import torch

    def move(parameters: Any, seed: int = 0, size: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))

    return move


@pytest.fixture
def save_reward(
    make_roles: Callable[..., Any], shake: Callable[..., None], tmp_path: Path
) -> Callable[..., Path]:
    """`save_reward(mean=...)` gives the folder of a reward step, its adapter and head away from
    where they start. Its keywords are of Scoring; `seed` and `name` tell several apart."""
    from reward_models.scalar_head import ScalarHead, Scoring

    def save(seed: int = 0, name: str = "reward", **scoring: Any) -> Path:
        roles = make_roles()
        roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
        shake(roles.parameters_of("reward"), seed=seed)
        read_so = Scoring(roles.renderer.fingerprint(), **{"max_length": 64, **scoring})
        roles.save("reward", tmp_path / name, read_so)
        return tmp_path / name

    return save
