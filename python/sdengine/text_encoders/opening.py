"""A model's text encoders, each with its tokenizer, from where its plan says that they are."""

from __future__ import annotations

from typing import Any

from sdengine import _core
from sdengine.checks import check_path
from sdengine.errors import ParameterError
from sdengine.families import TextUse
from sdengine.loading import ModelPlan
from sdengine.loading.text_parts import Tokenizers, given_tokenizer
from sdengine.loading.tokenizer_source import LAYOUTS
from sdengine.text_encoders.base import Encoder
from sdengine.text_encoders.clip import ClipEncoder
from sdengine.text_encoders.language import AbsentEncoder, LanguageModelEncoder
from sdengine.text_encoders.sight import Eyes
from sdengine.tokenizers import ClipTokenizer, load_clip_tokenizer, load_text_tokenizer


def open_encoders(
    plan: ModelPlan,
    tokenizer: Tokenizers | None,
    device: _core.Device,
    weight_type: str | None,
) -> list[Encoder[Any]]:
    """The text encoders of a model, in its family's order.

    Args:
        plan: of the model.
        tokenizer: what the caller gave in place of the model's own.
        device: which computes.
        weight_type: which the weights are held in; None is the files' own.

    Raises:
        ParameterError: the given tokenizer is of another kind, or is no path.
        TokenizerError: there is none where it should be, or it is damaged.
    """
    return [_opened(plan, use, tokenizer, device, weight_type) for use in plan.family.text]


def _opened(
    plan: ModelPlan,
    use: TextUse,
    tokenizer: Tokenizers | None,
    device: _core.Device,
    weight_type: str | None,
) -> Encoder[Any]:
    if use.component not in plan.components:
        return AbsentEncoder(use, LAYOUTS[plan.family.tokenizers[use.component]])
    part, found = plan.components[use.component], plan.tokenizers[use.component]
    given = given_tokenizer(plan.family, tokenizer, use.component)
    path = None
    if given is not None and not isinstance(given, ClipTokenizer):
        path = check_path("tokenizer", given)
    if found.kind in LAYOUTS:
        layout = LAYOUTS[found.kind]
        if isinstance(given, ClipTokenizer):
            raise ParameterError(f"{plan.title} does not read with a CLIP tokenizer")
        words = found.open_text() if path is None else load_text_tokenizer(path, layout.added)
        sighted = LAYOUTS[use.sight.layout] if use.sight else None
        eyes = None
        if use.sight is not None and use.sight.component in plan.components:
            eyes = Eyes(plan.components[use.sight.component], device, weight_type)
        return LanguageModelEncoder(part, use, words, layout, device, weight_type, eyes, sighted)
    if not isinstance(given, ClipTokenizer):
        given = found.open() if path is None else load_clip_tokenizer(path)
    return ClipEncoder(part, use, given, device, weight_type)
