"""Supervised fine-tuning: the policy's adapter learns to write what people wrote."""

from __future__ import annotations

from align.artifacts import Rows
from align.proofs import prove_policy
from align.stage import StageContext, StageResult
from align.supervised import fit_language_model
from preference_data import views
from preference_data.rendering import RenderingError


def run(context: StageContext) -> StageResult:
    """Trains on the completions of the training side of the demonstrations."""
    step = context.step
    roles = context.load_roles(step.init)
    roles.add("policy", weights=context.weights_of(step.init), fresh=True, trainable=True)
    rows, read = _rows(context, roles.renderer)
    with roles.active("policy"):
        metrics = fit_language_model(
            roles.module("policy"),
            [{"input_ids": row.ids, "completion_mask": row.completion_mask} for row in rows],
            roles.renderer,
            step.train,
            context.engine,
            context.tracker,
            context.seed,
            roles,
        )
    roles.eval()  # dropout, where there is any, is for training alone
    if context.engine.is_main:
        saved = roles.save("policy", context.folder)
        prove_policy(context, roles, "policy", saved, rows[0])
    context.engine.barrier()
    return StageResult(metrics, rows=Rows(read, len(rows), read - len(rows)), base=roles.base_path)


def _rows(context: StageContext, renderer):
    """Rendered demonstrations that fit into max_length, and how many were read."""
    source = context.step.data
    records, _ = context.split(source, views.demonstrations(context.data[source]))
    rows = []
    for record in records:
        try:
            row = renderer.render(record.prompt, record.response)
        except RenderingError:
            continue
        if len(row) <= context.step.train.max_length:
            rows.append(row)
    return rows, len(records)
