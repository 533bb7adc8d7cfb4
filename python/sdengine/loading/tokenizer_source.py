"""Where a model's tokenizers are: in the GGUF, in its folder, beside the file, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdengine.errors import TokenizerError
from sdengine.formats import TensorIndex
from sdengine.tokenizers import (
    ClipTokenizer,
    default_clip_tokenizer,
    from_gguf_fields,
    load_clip_tokenizer,
)

_FIELDS = "sdengine.tokenizer."
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

    def open(self, download: bool = True) -> ClipTokenizer:
        """Read it.

        Args:
            download: the usual CLIP vocabulary may be fetched where it is not on this machine.

        Raises:
            TokenizerError: there is none, it is damaged, or it has words that the encoder lacks.
        """
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


def find_tokenizer(
    encoder: str, vocab_size: int, model: TensorIndex, encoder_index: TensorIndex
) -> TokenizerSource:
    """Where the tokenizer of a text encoder is.

    Args:
        encoder: the component's name.
        vocab_size: words that the encoder has.
        model: the model's file or folder.
        encoder_index: the file or folder that the encoder's weights come from.
    """
    for index in (encoder_index, model):
        if any(key.startswith(f"{_FIELDS}clip.{encoder}.") for key in index.metadata):
            return TokenizerSource(encoder, vocab_size, index.path, index.metadata)
    places = (p for index in (encoder_index, model) for p in _places(encoder, index))
    path = next((place for place in places if _holds_tokenizer(place)), None)
    return TokenizerSource(encoder, vocab_size, path)


def _places(encoder: str, index: TensorIndex) -> Iterator[Path]:
    """Folders where publishers put the tokenizer of an encoder, best first."""
    name = encoder.replace("text_encoder", "tokenizer")  # text_encoder_2 has tokenizer_2
    if name in index.folders:
        yield index.folders[name]
    if index.path.is_dir():
        yield index.path
        yield index.path.parent / name  # beside the folder of the text encoder alone
    else:
        yield index.path.parent / name
        yield index.path.parent


def _holds_tokenizer(folder: Path) -> bool:
    names = (_VOCABULARY, _MERGES)
    return (folder / _JSON).is_file() or all((folder / name).is_file() for name in names)
