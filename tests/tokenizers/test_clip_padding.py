"""Padded ids of the encoders' variants (CLIP-L; OpenCLIP H and bigG) against transformers'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from sdengine import prompt
from sdengine.families import SD1, SD2, SDXL, SDXL_REFINER
from sdengine.tokenizers import ClipTokenizer, load_clip_tokenizer

from .vocabulary import EOS, hostile_prompts

# What tokenizer_config.json of the published folders pads with.
PUBLISHED = {
    "CLIP-L": (SD1, "text_encoder", EOS),
    "CLIP-L of SDXL": (SDXL, "text_encoder", EOS),
    "H": (SD2, "text_encoder", "!"),
    "bigG": (SDXL, "text_encoder_2", "!"),
    "bigG of the refiner": (SDXL_REFINER, "text_encoder_2", "!"),
}


def padded(tokenizer: ClipTokenizer, text: str) -> np.ndarray:
    return prompt.chunk(tokenizer, prompt.literal(text), max_chunks=1, truncate=True).ids[0]


def padding(variant: str) -> int | None:
    family, component, _ = PUBLISHED[variant]
    return next(use.pad for use in family.text if use.component == component)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_padded_ids_of_published_folders(clip_folder: Path, tmp_path: Path, variant: str) -> None:
    """There "!" is a special token too, which splits "?!" in two."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    settings = {"model_max_length": 77, "pad_token": PUBLISHED[variant][2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, pad = load_clip_tokenizer(folder), padding(variant)
    assert pad is None or ours.pad == pad
    reference = CLIPTokenizer.from_pretrained(folder)
    prompts = hostile_prompts(1000)
    expected = reference(prompts, padding="max_length", max_length=77, truncation=True)
    for text, ids in zip(prompts, expected.input_ids, strict=True):
        assert np.array_equal(padded(ours, text), ids), text


@pytest.mark.parametrize("variant", PUBLISHED)
def test_padded_ids_with_the_first_encoder_s_tokenizer(clip_folder: Path, variant: str) -> None:
    """A single file has no second tokenizer: the first one's words, with the family's padding."""
    ours, pad = load_clip_tokenizer(clip_folder), padding(variant)
    ours = ours if pad is None else ours.with_pad(pad)
    reference = CLIPTokenizer.from_pretrained(clip_folder)
    prompts = hostile_prompts(1000)
    expected = reference(prompts, padding="max_length", max_length=77, truncation=True)
    for text, ids, used in zip(prompts, expected.input_ids, expected.attention_mask, strict=True):
        wanted = np.where(np.array(used, bool), ids, ours.pad)
        assert np.array_equal(padded(ours, text), wanted), text
