"""Where a model's tokenizers are: in the GGUF, in its folder, beside the file, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdengine.errors import TokenizerError
from sdengine.formats import TensorEntry, TensorIndex
from sdengine.tokenizers import (
    ClipTokenizer,
    JsonTokenizer,
    PromptFormat,
    SentencePieceTokenizer,
    default_clip_tokenizer,
    find_text_tokenizer,
    from_gguf_fields,
    from_text_fields,
    load_clip_tokenizer,
    load_text_tokenizer,
    text_tokenizer_from_gguf,
)
from sdengine.tokenizers.hub_cache import find_published
from sdengine.tokenizers.padding import (
    BERT,
    CHATGLM3,
    GEMMA,
    MT5,
    QWEN_IMAGE,
    QWEN_IMAGE_EDIT,
    QWEN_IMAGE_EDIT_PLUS,
    T5,
)

_FIELDS = "sdengine.tokenizer."
_OF_LLAMA_CPP = "tokenizer.ggml."
CLIP = "clip"
LAYOUTS: Mapping[str, PromptFormat] = {
    "bert": BERT,
    "chatglm": CHATGLM3,
    "gemma": GEMMA,
    "mt5": MT5,
    "qwen_image": QWEN_IMAGE,
    "qwen_image_edit": QWEN_IMAGE_EDIT,
    "qwen_image_edit_plus": QWEN_IMAGE_EDIT_PLUS,
    "t5": T5,
}
"""Kind of tokenizer of a language model -> how its prompts are laid out."""
_INSIDE = "spiece_model"
_MOST_BYTES = 1 << 27
_JSON, _VOCABULARY, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"


@dataclass(frozen=True)
class TokenizerSource:
    """Where the tokenizer of one text encoder is."""

    encoder: str
    """The text encoder's component name."""
    vocab_size: int
    """Words that the encoder has."""
    path: Path | None = None
    """A GGUF that carries it, or a folder or file of it; None for the usual CLIP vocabulary."""
    fields: Mapping[str, Any] | None = field(default=None, repr=False)
    """The metadata of the GGUF that carries it."""
    kind: str = CLIP
    """:data:`CLIP`, or a key of :data:`LAYOUTS`."""
    entry: TensorEntry | None = None
    """The tensor whose bytes are a SentencePiece model, as ComfyUI keeps it beside a text encoder."""

    def open(self, download: bool = True) -> ClipTokenizer:
        """Read it.

        Args:
            download: the usual CLIP vocabulary may be fetched where it is not on this machine.

        Raises:
            TokenizerError: there is none, it is damaged, or it has words that the encoder lacks.
        """
        if self.kind != CLIP:
            raise TokenizerError(
                f"the {self.encoder} has a tokenizer of kind {self.kind}, not CLIP's"
            )
        if self.fields is not None:
            tokenizer = from_gguf_fields(self.fields)[self.encoder]
        elif self.path is not None:
            tokenizer = load_clip_tokenizer(self.path)
        else:
            tokenizer = default_clip_tokenizer(download)
        if tokenizer.vocab_size > self.vocab_size:
            raise TokenizerError(
                f"{self.path or 'the usual CLIP tokenizer'} has {tokenizer.vocab_size} words, the"
                f" {self.encoder} has {self.vocab_size}. It is another model's: give the tokenizer"
                " that this model was published with"
            )
        return tokenizer

    def open_text(self) -> JsonTokenizer | SentencePieceTokenizer:
        """Read it, where it is a language model's.

        Raises:
            TokenizerError: there is none, it is damaged, or it has words that the encoder lacks.
        """
        if self.path is None:
            raise TokenizerError(
                f"the {self.encoder} needs the tokenizer that it was published with, and there is"
                f" none in its file or beside it: give tokenizer={{{self.encoder!r}: its folder}}, or"
                " put its folder there under the name 'tokenizer'"
            )
        if self.fields is not None:
            tokenizer = _in_fields(self.fields, self.encoder)
        elif self.entry is not None:
            content = _bytes_of(self.entry)
            tokenizer = SentencePieceTokenizer(content, LAYOUTS[self.kind].added)
        else:
            tokenizer = load_text_tokenizer(self.path, LAYOUTS[self.kind].added)
        if tokenizer.vocab_size > self.vocab_size:
            raise TokenizerError(
                f"{self.path} has {tokenizer.vocab_size} words, the {self.encoder} has"
                f" {self.vocab_size}. It is another model's: give the tokenizer that this model was"
                " published with"
            )
        return tokenizer


def _in_fields(fields: Mapping[str, Any], encoder: str) -> JsonTokenizer | SentencePieceTokenizer:
    """The tokenizer that ``convert`` stored in a GGUF, or that llama.cpp's converter did."""
    stored = from_text_fields(fields)
    found = stored[encoder] if encoder in stored else text_tokenizer_from_gguf(fields)
    assert found is not None  # find_tokenizer saw it
    return found


def find_tokenizer(
    encoder: str,
    vocab_size: int,
    model: TensorIndex,
    encoder_index: TensorIndex,
    kind: str = CLIP,
) -> TokenizerSource:
    """Where the tokenizer of a text encoder is.

    Args:
        encoder: the component's name.
        vocab_size: words that the encoder has.
        model: the model's file or folder.
        encoder_index: the file or folder that the encoder's weights come from.
        kind: :data:`CLIP`, or a key of :data:`LAYOUTS`.
    """
    group = "clip" if kind == CLIP else "text"
    for index in (encoder_index, model):
        if any(key.startswith(f"{_FIELDS}{group}.{encoder}.") for key in index.metadata):
            return TokenizerSource(encoder, vocab_size, index.path, index.metadata, kind)
    if kind != CLIP and f"{_OF_LLAMA_CPP}model" in encoder_index.metadata:
        metadata = encoder_index.metadata
        return TokenizerSource(encoder, vocab_size, encoder_index.path, metadata, kind)
    for index in (encoder_index, model):
        # BERT's words are no SentencePiece model; the one in its file is another encoder's.
        entry = None if kind in (CLIP, "bert") else _inside(index)
        if entry is not None:
            return TokenizerSource(encoder, vocab_size, index.path, kind=kind, entry=entry)
    places = (p for index in (encoder_index, model) for p in _places(encoder, index))
    holds = _holds_tokenizer if kind == CLIP else _holds_text_tokenizer
    path = next((place for place in places if holds(place)), None)
    if path is None and kind != CLIP:
        path = find_published(LAYOUTS[kind].published)
    return TokenizerSource(encoder, vocab_size, path, kind=kind)


def _inside(index: TensorIndex) -> TensorEntry | None:
    """The tensor of a file that is a tokenizer."""
    return next((t for n, t in index.tensors.items() if n.split(".")[-1] == _INSIDE), None)


def _bytes_of(entry: TensorEntry) -> bytes:
    if entry.dtype not in ("u8", "i8") or entry.strides is not None:
        raise TokenizerError(
            f"{entry.path}: {entry.name!r} is {entry.dtype}; expected the bytes of a SentencePiece"
            " model. Give the text encoder's own tokenizer"
        )
    with open(entry.path, "rb") as file:
        file.seek(entry.offset)
        return file.read(min(entry.nbytes, _MOST_BYTES))


def _places(encoder: str, index: TensorIndex) -> Iterator[Path]:
    """Folders where publishers put the tokenizer of an encoder, best first.

    Encoders of one model share their words, so a second one takes the first one's tokenizer where it
    has none of its own; the family knows its padding.
    """
    own = encoder.replace("text_encoder", "tokenizer")  # text_encoder_2 has tokenizer_2
    names = dict.fromkeys((own, "tokenizer"))
    yield from (index.folders[name] for name in names if name in index.folders)
    if index.path.is_dir():
        yield index.path
        yield from (index.path.parent / name for name in names)  # beside a text encoder's folder
    else:
        yield from (index.path.parent / name for name in names)
        yield index.path.parent


def _holds_tokenizer(folder: Path) -> bool:
    names = (_VOCABULARY, _MERGES)
    return (folder / _JSON).is_file() or all((folder / name).is_file() for name in names)


def _holds_text_tokenizer(folder: Path) -> bool:
    return find_text_tokenizer(folder) is not None
