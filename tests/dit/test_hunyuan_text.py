"""Hunyuan-DiT's text encoders: BERT and its tokenizer against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdengine.errors import ParameterError, TokenizerError, UnsupportedModelError, WeightsError
from sdengine.loading.networks import NETWORKS
from sdengine.tokenizers import JsonTokenizer, load_text_tokenizer, pad_prompts
from sdengine.tokenizers.padding import BERT
from tests import text_models
from tests.parity.conftest import relative_error

from .hunyuan_models import BERT_WIDTH, VOCABULARY, bert, write_vocabulary

LIMIT = 5e-6
TOKENS = 13


def words(length: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask of two texts, the second of this many tokens."""
    ids = np.random.default_rng(3).integers(5, len(VOCABULARY), (2, TOKENS), dtype=np.int32)
    mask = np.ones_like(ids)
    ids[1, length:], mask[1, length:] = 0, 0
    return ids, mask


@pytest.mark.parametrize("length", [TOKENS, 6, 1])
def test_bert(tmp_path: Path, length: int) -> None:
    model = bert()
    ids, mask = words(length)
    with torch.no_grad():
        expected = model(
            torch.tensor(ids.astype(np.int64)), attention_mask=torch.tensor(mask)
        ).last_hidden_state.numpy()
    loaded = text_models.load(text_models.save(model, tmp_path), "bert_text")
    assert loaded.unused == ()
    found = loaded.run(ids, mask=mask)["hidden"]
    assert relative_error(found, expected) <= LIMIT  # padding too, for the pooler reads mT5's
    if length == TOKENS:
        assert np.array_equal(loaded.run(ids)["hidden"], found)


def test_figures(tmp_path: Path) -> None:
    model = bert(layer_norm_eps=1e-3, num_attention_heads=8)
    folder = text_models.save(model, tmp_path)
    config = text_models.load(folder, "bert_text").plan.config
    assert (config["heads"], config["eps"], config["layers"]) == (8, 1e-3, 2)
    (folder / "config.json").unlink()
    guessed = text_models.load(folder / "model.safetensors", "bert_text").plan.config
    assert (guessed["heads"], guessed["eps"]) == (2, 1e-12)
    assert guessed["max_positions"] == 80
    for changed in ({"heads": 5}, {"eps": float("nan")}, {"sentences": 0}):
        with pytest.raises(WeightsError):
            NETWORKS["bert_text"].check({**config, **changed})


@pytest.mark.parametrize("changed", [{"hidden_act": "gelu_new"}, {"is_decoder": True}])
def test_other_kinds_of_bert(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = text_models.save(bert(), tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changed}), "utf-8")
    with pytest.raises(UnsupportedModelError, match=next(iter(changed))):
        text_models.load(folder, "bert_text")


def test_odd_inputs(tmp_path: Path) -> None:
    network = text_models.load(text_models.save(bert(), tmp_path), "bert_text")
    with pytest.raises(ParameterError, match="81 tokens, the encoder takes 80"):
        network.run(np.zeros((1, 81)))
    with pytest.raises(ParameterError, match="'mask'"):
        network.run(np.zeros((1, 4)), mask=np.zeros((1, 3)))


def test_old_names_of_norms_are_refused_by_name(tmp_path: Path) -> None:
    folder = text_models.save(bert(), tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.LayerNorm.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"encoder\.layer\.1\.output\.LayerNorm\.weight"):
        text_models.load(folder, "bert_text")


# ------------------------------------------------------------------------------------ tokenizer
TEXTS = (
    "",
    "   ",
    "A red circle on a blue background.",
    "two dogs, unaa! low-quality 'cafe' café CAFÉ",
    "一只猫的画。猫猫red\uff0c猫",
    "3d 31d \t x\u0000y \u200b ﬁne \uff21\uff22 가나 ½",
    "[CLS] a [MASK] dog[SEP] [UNK]",
    "a" * 101 + " dog",
    "un" * 60,
    "half \ud83d a",
    " ".join(["red dogs"] * 60),
)


@pytest.mark.parametrize("lower", [True, False])
def test_tokens_are_those_of_transformers(tmp_path: Path, lower: bool) -> None:
    from transformers import BertTokenizer

    folder = write_vocabulary(tmp_path)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "do_lower_case": lower}), "utf-8")
    theirs = BertTokenizer.from_pretrained(folder)
    ours = load_text_tokenizer(folder)
    assert ours.vocab_size == len(VOCABULARY)
    theirs.save_pretrained(tmp_path / "new")  # with a tokenizer.json
    newer = load_text_tokenizer(tmp_path / "new")
    for text in TEXTS:
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        expected = theirs(
            clean, padding="max_length", max_length=77, truncation=True, return_tensors="np"
        )
        for tokenizer in (ours, newer):
            found = pad_prompts(tokenizer, [text], BERT)
            assert np.array_equal(found.ids, expected.input_ids), text
            assert np.array_equal(found.mask, expected.attention_mask), text


def test_a_tokenizer_becomes_text(tmp_path: Path) -> None:
    tokenizer = load_text_tokenizer(write_vocabulary(tmp_path) / "vocab.txt")
    assert isinstance(tokenizer, JsonTokenizer)
    again = JsonTokenizer.parse(tokenizer.json)
    assert all(again.encode(text) == tokenizer.encode(text) for text in TEXTS)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab.txt", b"a\nb\n", r"2 lines without \[PAD\]"),
        ("vocab.txt", b"\xff\xfe\n", "not UTF-8"),
        ("tokenizer_config.json", b"{", "no JSON"),
        ("tokenizer_config.json", b"[1]", "not a JSON object"),
        ("tokenizer_config.json", b'{"do_lower_case": "yes"}', "do_lower_case = 'yes'"),
        ("tokenizer_config.json", b'{"strip_accents": "yes"}', "strip_accents = 'yes'"),
    ],
)
def test_damaged_tokenizers(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (write_vocabulary(tmp_path) / file).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_text_tokenizer(tmp_path)


def test_widths_are_read_in_half_precision(tmp_path: Path) -> None:
    model = bert()
    ids, mask = words(6)
    with torch.no_grad():
        expected = model(torch.tensor(ids.astype(np.int64)), attention_mask=torch.tensor(mask))
    folder = text_models.save(model.half(), tmp_path)
    found = text_models.load(folder, "bert_text").run(ids, mask=mask)["hidden"]
    assert found.shape == (2, TOKENS, BERT_WIDTH)
    assert relative_error(found, expected.last_hidden_state.numpy()) <= 2e-3
