"""Demonstrations that are mixed into the steps of a policy (Ouyang et al. 2022, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from align.config_ppo import PTX
from align.stage import StageContext
from preference_data import views
from preference_data.batches import Group
from preference_data.rendering import Renderer, RenderingError


@dataclass(frozen=True)
class Demonstrations:
    """Rows to mix in; which ones a step takes depends on its number alone."""

    groups: Sequence[Group]
    settings: PTX
    seed: int

    def of_step(self, step: int) -> list[Group]:
        """Rows of the optimiser step, counted from 0: every pass in a fresh order, steps full."""
        size, rows = self.settings.batch_size, len(self.groups)
        places = range(step * size, (step + 1) * size)
        orders = {
            epoch: torch.randperm(
                rows, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            ).tolist()
            for epoch in range(places[0] // rows, places[-1] // rows + 1)
        }
        return [self.groups[orders[place // rows][place % rows]] for place in places]


def load_demonstrations(context: StageContext, renderer: Renderer, settings: PTX) -> Demonstrations:
    """The training side of the demonstrations that fit into max_length.

    Raises RuntimeError if there is none.
    """
    records, _ = context.split(settings.data, views.demonstrations(context.data[settings.data]))
    groups: list[Group] = []
    for record in records:
        try:
            row = renderer.render(record.prompt, record.response)
        except RenderingError:
            continue
        if len(row) <= settings.max_length:
            groups.append(Group(row.prompt, (row.completion,)))
    if not groups:
        raise RuntimeError(
            f"no demonstration of data.{settings.data} fits into train.ptx.max_length "
            f"{settings.max_length}"
        )
    return Demonstrations(groups, settings, context.seed)
