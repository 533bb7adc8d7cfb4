"""A small vocabulary in CLIP's layout, trained on the spot, and prompts that try to break it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"

SENTENCES = (
    "a photograph of an astronaut riding a horse, highly detailed, 8k, trending",
    "it's the artist's dog; they've said we'll don't you're i'm he'd",
    "ein bild von häusern über der straße, très élégant café à paris",
    "красный круг на синем фоне, κόκκινος κύκλος σε μπλε φόντο",
    "青い背景に赤い円、猫が寿司を食べる 파란 배경에 빨간 원",
    "😀 🎨 👩‍🚀 ❤️ ((masterpiece)), [blurry], <lora:x:1> 100% (best:1.2) 3.14",
)

_FRAGMENTS = (
    *SENTENCES,
    "UPPER CASE Éclair İstanbul ΣΊΣΥΦΟΣ ǅ ﬁne ﬀ",
    "e\u0301 a\u030a n\u0303\u0303 z\u0361\u035c क्षि ไทย",
    "&lt;b&gt; &amp;amp; &#39; &nbsp;",
    "ctrl\x00\x01\x07\x1b[31m\x7f\x85\x9f",
    "\u200b\u200d\u2060\ufeff\u00ad",
    "tab\t\tnl\n\ncr\r\nnbsp\u00a0em\u2003ls\u2028ps\u2029id\u3000ogham\u1680",
    "''s 'S 't't n't's'd 'LL ' s",
    "1234567890 ٣٤٥ Ⅷ ½ ² ① ۱۲",
    "_a_b__ --- ... ?!?! @#$%^&*() \\ / | ~ `",
    "<|startoftext|>a<|endoftext|>b <|ENDOFTEXT|> <|startoftext|",
    "“smart” \u2018quotes\u2019 — \u2013 … «»",
    "\uff26\uff35\uff2c\uff2c \uff57\uff49\uff44\uff54\uff48 ｶﾀｶﾅ",
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U000e0041 \ue000 \U0010ffff \ufffd",
    "שלום مرحبا \u202eabc\u202c",
    "antidisestablishmentarianism" * 3,
    "!!! ! a! !a",
)


def write_clip_folder(folder: Path, merges: int = 600) -> Path:
    """Train on the sentences; write ``vocab.json`` and ``merges.txt`` as OpenAI laid them out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(SENTENCES, trainer)
    pairs = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
    tokens += [token for token in map("".join, pairs) if token not in tokens]
    tokens += [BOS, EOS]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def hostile_prompts(count: int) -> list[str]:
    """Prompts of 0 to 500 words from many scripts, always the same ones."""
    rng = random.Random(7)
    prompts = ["", " ", "\n\t", " ".join(["word"] * 500), "x" * 5000]
    while len(prompts) < count:
        pieces = rng.choices(_FRAGMENTS, k=rng.choice((1, 1, 2, 3, 12)))
        letters = [rng.choice("".join(_FRAGMENTS)) for _ in range(rng.randrange(12))]
        prompts.append(rng.choice((" ", "", ", ")).join([*pieces, "".join(letters)]))
    return prompts
