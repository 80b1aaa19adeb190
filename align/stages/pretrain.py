"""Self-supervised pretraining: the whole base learns the language from unlabelled text."""

from __future__ import annotations

import torch

from align.artifacts import Rows
from align.base import load_base
from align.stage import StageContext, StageResult
from align.supervised import fit_language_model
from preference_data import views
from preference_data.rendering import RenderingError


def run(context: StageContext) -> StageResult:
    """Trains every weight on the data's text, cut into rows of max_length tokens."""
    step = context.step
    renderer = context.load_renderer(context.base_path)
    rows, texts, dropped = _rows(context, renderer)
    model = load_base(context.base_path, context.config.base, context.engine.device)
    model.requires_grad_(True)
    metrics = fit_language_model(
        model, rows, renderer, step.train, context.engine, context.tracker, context.seed
    )
    if context.engine.is_main:
        target = context.folder / "model"
        model.save_pretrained(target)
        renderer.tokenizer.save_pretrained(target)
        _prove(context, model, rows[0]["input_ids"])
    context.engine.barrier()
    return StageResult(metrics, rows=Rows(texts, texts - dropped, dropped))


def _rows(context: StageContext, renderer) -> tuple[list[dict[str, list[int]]], int, int]:
    """Documents end to end, each closed by EOS, cut into rows; texts read, and those left out."""
    source = context.step.data
    texts = views.text(context.data[source], lambda rows: context.split(source, rows)[0])
    stream: list[int] = []
    dropped = 0
    for text in texts:
        try:
            stream += renderer.text_ids(text)
        except RenderingError:
            dropped += 1
    length = context.step.train.max_length
    rows = [{"input_ids": stream[at : at + length]} for at in range(0, len(stream), length)]
    return rows, len(texts), dropped


@torch.no_grad()
def _prove(context: StageContext, model, ids: list[int]) -> None:
    """What was saved computes what was trained."""
    tokens = torch.tensor([ids[:64]], device=context.engine.device)
    saved = load_base(str(context.folder / "model"), context.config.base, context.engine.device)
    difference = (saved.eval()(tokens).logits - model.eval()(tokens).logits).abs().max()
    if difference > 1e-4:
        raise RuntimeError(f"the saved model's logits differ by {difference:.2g} after reloading")
