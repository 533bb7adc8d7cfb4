"""Language models' tokenizers against diffusers, transformers and sentencepiece, over vocabularies
that are trained on the spot.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from sdengine.errors import TokenizerError
from sdengine.formats import open_index
from sdengine.loading.new_gguf import write_header
from sdengine.tokenizers import (
    JsonTokenizer,
    PromptFormat,
    SentencePieceTokenizer,
    find_text_tokenizer,
    from_text_fields,
    load_text_tokenizer,
    pad_prompts,
    text_tokenizer_from_gguf,
    to_text_fields,
)
from sdengine.tokenizers.padding import CHATGLM3, T5

from .vocabulary import SENTENCES, hostile_prompts

CORPUS = [
    *SENTENCES,
    "一只可爱的小猫坐在草地上 阳光明媚、高清",
    "masterpiece, best quality, ultra detailed, cinematic lighting, 4k, trending on artstation",
] * 20
SPELT = ["<unk> </s> <s>", "[gMASK] sop [MASK]", "<|user|> hi", "<0x41>", "<extra_id_0>", "▁ ▁▁a"]


def texts(count: int) -> list[str]:
    """Prompts of every kind: words, scripts, entities, control characters, long ones, none."""
    found = [*hostile_prompts(count - len(SPELT) - 4), *SPELT, "", " ", "a " * 500, "猫" * 500]
    assert len(found) == count
    return found


def train(path: Path, **options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return model.getvalue()


@pytest.fixture(scope="module")
def glm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ChatGLM3's: byte pairs with byte fallback, white space kept, no normalisation."""
    path = tmp_path_factory.mktemp("glm") / "tokenizer" / "tokenizer.model"
    train(
        path,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
    )
    return path


@pytest.fixture(scope="module")
def t5_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As T5's: unigram, NFKC, <pad> 0, </s> 1, <unk> 2."""
    path = tmp_path_factory.mktemp("t5") / "tokenizer" / "spiece.model"
    train(path, model_type="unigram", vocab_size=400, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return path


# ------------------------------ ChatGLM3
def test_chatglm_ids_are_those_of_diffusers(glm_model: Path) -> None:
    with warnings.catch_warnings():  # its package scripts a function, which torch gives up
        warnings.simplefilter("ignore", DeprecationWarning)
        from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    reference = ChatGLMTokenizer(str(glm_model))
    tokenizer = load_text_tokenizer(glm_model.parent, CHATGLM3.added)
    given = texts(1000)
    expected = reference(given, padding="max_length", max_length=256, truncation=True)
    found = pad_prompts(tokenizer, given, CHATGLM3)
    wrong = [
        text
        for text, ours, theirs in zip(given, found.ids, expected["input_ids"], strict=True)
        if ours.tolist() != theirs
    ]
    assert not wrong, wrong[:3]
    assert found.mask.tolist() == expected["attention_mask"]
    assert found.positions.tolist() == expected["position_ids"]
    assert tokenizer.vocab_size == reference.vocab_size
    assert sum(len(row) > 256 for row in map(tokenizer.encode, given)) > 2  # truncation was tried


def test_chatglm_special_ids(glm_model: Path) -> None:
    plain = SentencePieceTokenizer(glm_model.read_bytes())
    tokenizer = load_text_tokenizer(glm_model, CHATGLM3.added)
    # In the published vocabulary of 64789 pieces these are 64790 and 64792.
    assert tokenizer.id_of("[gMASK]") == plain.vocab_size + 1
    assert tokenizer.id_of("sop") == plain.vocab_size + 3
    assert tokenizer.id_of("<unk>") == 0
    assert plain.id_of("sop") is None
    assert tokenizer.id_of("no such token") is None


# ------------------------------ T5
def test_t5_ids_are_those_of_transformers(t5_model: Path, tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    reference = T5Tokenizer.from_pretrained(t5_model.parent, extra_ids=0)
    reference.save_pretrained(tmp_path)
    assert find_text_tokenizer(tmp_path) == tmp_path / "tokenizer.json"
    layout = PromptFormat(T5.pad, 64, suffix=T5.suffix)
    given = texts(300)
    expected = reference(given, padding="max_length", max_length=64, truncation=True)
    by_json = pad_prompts(load_text_tokenizer(tmp_path), given, layout)
    assert by_json.ids.tolist() == expected["input_ids"]
    assert by_json.mask.tolist() == expected["attention_mask"]

    # SentencePiece finds no special tokens in a text and does not split at U+0085.
    plain = [i for i, text in enumerate(given) if "<" not in text and "\x85" not in text]
    assert len(plain) > 100
    by_model = pad_prompts(load_text_tokenizer(t5_model), [given[i] for i in plain], layout)
    assert np.array_equal(by_model.ids, by_json.ids[plain])


# ------------------------------ byte pairs (Qwen2, Llama 3)
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def byte_pairs() -> tuple[dict[str, int], list[list[str]]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], model["merges"]


def test_qwen2_ids_are_those_of_transformers(
    byte_pairs: tuple[dict[str, int], list[list[str]]], tmp_path: Path
) -> None:
    from transformers import Qwen2Tokenizer

    vocab, merges = byte_pairs
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = {**vocab, **{token: len(vocab) + i for i, token in enumerate(special)}}
    reference = Qwen2Tokenizer(vocab=ids, merges=[tuple(pair) for pair in merges])
    reference.add_special_tokens({"additional_special_tokens": special[1:]})
    reference.save_pretrained(tmp_path / "tokenizer")

    path = tmp_path / "model.gguf"
    _write_gguf(
        path,
        model="gpt2",
        pre="qwen2",
        tokens=list(ids),
        token_type=[1] * len(vocab) + [3] * len(special),
        merges=[" ".join(pair) for pair in merges],
    )
    given = [*texts(300), "<|im_start|>system\nDescribe<|im_end|>\n<|im_start|>user\n"]
    expected = [reference(text).input_ids for text in given]
    for tokenizer in (
        load_text_tokenizer(tmp_path / "tokenizer"),
        text_tokenizer_from_gguf(open_index(path).metadata),
    ):
        assert tokenizer is not None
        assert [tokenizer.encode(text) for text in given] == expected
        assert tokenizer.vocab_size == len(ids)
        assert tokenizer.id_of("<|im_end|>") == len(ids) - 1


def test_llama3_splits_numbers_in_threes(
    byte_pairs: tuple[dict[str, int], list[list[str]]],
) -> None:
    vocab, merges = byte_pairs
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*vocab, "123", "456", "<|eot_id|>"],
        "tokenizer.ggml.token_type": [1] * (len(vocab) + 2) + [3],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }
    by_three = text_tokenizer_from_gguf({**fields, "tokenizer.ggml.pre": "llama-bpe"})
    single = text_tokenizer_from_gguf({**fields, "tokenizer.ggml.pre": "qwen2"})
    assert by_three is not None
    assert single is not None
    # Whole words that are tokens are taken without a merge.
    assert by_three.encode("123456") == [len(vocab), len(vocab) + 1]
    assert len(single.encode("123456")) == 6
    assert by_three.encode("a<|eot_id|>")[-1] == len(vocab) + 2


# ------------------------------ what llama.cpp stores
def _write_gguf(path: Path, **fields: Any) -> Path:
    writer = gguf.GGUFWriter(str(path), "any")
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_tensor("t", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fields_of(model: bytes) -> dict[str, Any]:
    """What llama.cpp's converter writes for a SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    found = {
        "model": "t5" if proto.trainer_spec.model_type == 1 else "llama",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
    }
    if proto.normalizer_spec.precompiled_charsmap:
        found["precompiled_charsmap"] = proto.normalizer_spec.precompiled_charsmap
    return found


@pytest.mark.parametrize("kind", ["glm", "t5"])
def test_sentencepiece_in_a_gguf(
    kind: str, glm_model: Path, t5_model: Path, tmp_path: Path
) -> None:
    model = {"glm": glm_model, "t5": t5_model}[kind].read_bytes()
    fields = fields_of(model)
    assert fields["model"] == {"glm": "llama", "t5": "t5"}[kind]
    path = _write_gguf(tmp_path / "m.gguf", **fields)
    tokenizer = text_tokenizer_from_gguf(open_index(path).metadata)
    assert tokenizer is not None
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    given = texts(300)
    assert [tokenizer.encode(text) for text in given] == [reference.encode(t) for t in given]
    assert tokenizer.vocab_size == reference.vocab_size()


def test_padding_tokens_of_a_gguf_are_not_found_in_text(t5_model: Path) -> None:
    fields = {f"tokenizer.ggml.{n}": v for n, v in fields_of(t5_model.read_bytes()).items()}
    for i in range(8):  # llama.cpp fills the vocabulary up to the rows of the embedding
        fields["tokenizer.ggml.tokens"].append(f"[PAD{i}]")
        fields["tokenizer.ggml.scores"].append(-10000.0)
        fields["tokenizer.ggml.token_type"].append(5)
    tokenizer = text_tokenizer_from_gguf(fields)
    assert tokenizer is not None
    plain = SentencePieceTokenizer(t5_model.read_bytes())
    assert tokenizer.encode("a [PAD1] b") == plain.encode("a [PAD1] b")
    assert tokenizer.vocab_size == plain.vocab_size + 8


# ------------------------------ broken files
def test_broken_characters(glm_model: Path) -> None:
    tokenizer = load_text_tokenizer(glm_model)
    assert tokenizer.encode("a\ud83d") == tokenizer.encode("a\ufffd")


def test_damaged_files(glm_model: Path, tmp_path: Path) -> None:
    good = glm_model.read_bytes()
    rng = random.Random(0)
    for i in range(60):
        bad = bytearray(good[: rng.randrange(len(good))] if i % 2 else good)
        for _ in range(rng.randrange(1, 20)):
            if bad:
                bad[rng.randrange(len(bad))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(bytes(bad))
        # It may still be a model; what it must not do is end otherwise.
        with contextlib.suppress(TokenizerError):
            load_text_tokenizer(tmp_path).encode("a cat 猫")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", b"", "no SentencePiece model"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "no SentencePiece"),
        ("tokenizer.json", b"{}", "no tokenizer.json"),
        ("tokenizer.json", b'{"model": {"type": "BPE"', "no tokenizer.json"),
        ("tokenizer.json", b'{"\xff": 1}', "not UTF-8"),
        ("other.txt", b"", "found other.txt; expected tokenizer.json or tokenizer.model"),
    ],
)
def test_what_is_no_tokenizer(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_text_tokenizer(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="found nothing"):
        load_text_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_text_tokenizer(tmp_path / "tokenizer.json")
    huge = tmp_path / "tokenizer.model"
    with huge.open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(TokenizerError, match="a tokenizer has at most"):
        load_text_tokenizer(huge)


def test_a_json_tokenizer_without_the_added_tokens() -> None:
    plain = Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).to_str()
    assert JsonTokenizer.parse(plain).vocab_size == 1
    with pytest.raises(TokenizerError, match="lacks sop"):
        JsonTokenizer.parse(plain, ("sop",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "wordpiece"}, "known are 'llama', 't5' and 'gpt2'"),
        ({"tokens": None}, "tokens: found nothing"),
        ({"tokens": [1, 2, 3]}, "tokens: found a list; expected an array"),
        ({"scores": [0.0]}, "scores has 1 entries, there are 3 tokens"),
        ({"token_type": "x"}, "token_type: found a str"),
        ({"token_type": [1, 1, 1]}, "0 unknown tokens; expected one"),
        ({"tokens": ["<unk>", "a", "a"]}, "no SentencePiece model"),
        ({"model": "t5", "precompiled_charsmap": "x"}, "precompiled_charsmap: found a str"),
        ({"model": "gpt2", "merges": ["a b"]}, "pre is None; known are"),
        ({"model": "gpt2", "merges": ["a b"], "pre": "qwen2"}, "merges do not fit"),
        ({"model": "gpt2", "merges": ["a"], "pre": "qwen2"}, "merges do not fit"),
        (
            {"model": "gpt2", "merges": [], "pre": "qwen2", "tokens": ["a", "a", "b"]},
            "holds 1 tokens twice",
        ),
    ],
)
def test_damaged_gguf_fields(changed: dict[str, Any], message: str) -> None:
    fields = {
        "model": "llama",
        "tokens": ["<unk>", "a", "b"],
        "scores": [0.0, -1.0, -2.0],
        "token_type": [2, 1, 1],
        **changed,
    }
    given = {f"tokenizer.ggml.{n}": v for n, v in fields.items() if v is not None}
    with pytest.raises(TokenizerError, match=message):
        text_tokenizer_from_gguf(given)


def test_a_gguf_without_a_tokenizer() -> None:
    assert text_tokenizer_from_gguf({"general.name": "x"}) is None


# ------------------------------ in files that `convert` writes
def test_tokenizers_stored_by_convert(glm_model: Path, tmp_path: Path) -> None:
    vocab = {chr(97 + i): i for i in range(26)}
    by_json = JsonTokenizer(Tokenizer(models.BPE(vocab=vocab, merges=[])))
    by_model = SentencePieceTokenizer(glm_model.read_bytes(), CHATGLM3.added)
    fields = to_text_fields({"text_encoder": by_model, "text_encoder_3": by_json})
    path = tmp_path / "m.gguf"
    write_header(path, "any", fields, [])
    found = from_text_fields(open_index(path).metadata)
    assert list(found) == ["text_encoder", "text_encoder_3"]
    for text in texts(60):
        assert found["text_encoder"].encode(text) == by_model.encode(text)
    assert found["text_encoder_3"].encode("cab") == by_json.encode("cab") == [2, 0, 1]
    assert found["text_encoder"].id_of("sop") == by_model.id_of("sop")
    assert from_text_fields({"general.name": "x"}) == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"json": "{"},
        {"sentencepiece": [1, 2, 3]},
        {"sentencepiece": [1, 999]},
        {"sentencepiece": "x"},
        {"added": ["a"]},
        {"added": 3},
        {"other": 1},
    ],
    ids=str,
)
def test_damaged_fields_of_convert(fields: dict[str, Any]) -> None:
    given = {f"sdengine.tokenizer.text.text_encoder.{n}": v for n, v in fields.items()}
    with pytest.raises(TokenizerError, match="sdengine convert"):
        from_text_fields(given)
