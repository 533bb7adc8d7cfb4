"""What the tokenizers of language models have in common, and the one that a tokenizer.json describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

from sdengine.errors import TokenizerError


class TextTokenizer(Protocol):
    """Text to token ids, without start, end and padding: those are a family's (`PromptFormat`)."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, of any length. Lone surrogates count as U+FFFD."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None when it has none."""
        ...


def without_surrogates(text: str) -> str:
    """The text with every half of a broken character replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class JsonTokenizer:
    """A tokenizer of the `tokenizers` package: a published tokenizer.json, or one built from a GGUF.

    Args:
        tokenizer: takes the special tokens that it knows where a text spells them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def parse(cls, text: str, added: Sequence[str] = ()) -> JsonTokenizer:
        """Read the content of a tokenizer.json.

        Args:
            text: the file's content.
            added: tokens that must be among its own.

        Raises:
            TokenizerError: it is none, or it lacks one of `added`.
        """
        try:
            tokenizer = cls(Tokenizer.from_str(text))
        except Exception as error:  # the package raises bare Exception
            raise TokenizerError(f"no tokenizer.json: {error}. Download it again") from error
        missing = [token for token in added if tokenizer.id_of(token) is None]
        if missing:
            raise TokenizerError(
                f"the tokenizer.json lacks {', '.join(missing)}. It is another model's: give the"
                " tokenizer that the text encoder was published with"
            )
        return tokenizer

    @property
    def json(self) -> str:
        """The content of its tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, of any length. Lone surrogates count as U+FFFD."""
        encoding = self._tokenizer.encode(without_surrogates(text), add_special_tokens=False)
        return list(encoding.ids)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None when it has none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found
