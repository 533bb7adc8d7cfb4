"""The tokenizer that nearly all models share: OpenAI's CLIP vocabulary, on this machine or the hub.

Single-file checkpoints carry no tokenizer. All published Stable Diffusion class models use the same
49,408 tokens, so any copy of it will do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sdengine.errors import TokenizerError
from sdengine.tokenizers.clip import EOS_TOKEN, ClipTokenizer
from sdengine.tokenizers.clip_files import JSON_FILE, MERGES_FILE, VOCAB_FILE, load_clip_tokenizer
from sdengine.tokenizers.text_files import find_text_tokenizer

HUB_REPOSITORY: Final = "openai/clip-vit-large-patch14"
FOUR_WAYS: Final = (
    "Give one in one of four ways: (1) a GGUF that carries it (`sdengine convert` writes it in), "
    "(2) a diffusers folder, with its tokenizer/ folder, (3) the path of a folder with "
    f"{VOCAB_FILE} and {MERGES_FILE}, or of a {JSON_FILE}, (4) a copy of {HUB_REPOSITORY} in the "
    "Hugging Face cache, which `pip install sdengine[hub]` fetches once"
)

_EOS_ID = 49407  # in OpenAI's vocabulary
_SUBFOLDERS = ("", "tokenizer")


def hub_cache_folder() -> Path:
    """Where the Hugging Face libraries keep downloads, by the same environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def find_in_hub_cache() -> Path | None:
    """A folder or ``tokenizer.json`` with OpenAI's CLIP vocabulary in the local Hugging Face cache.

    Looks at OpenAI's own repositories first, then at every cached model, its ``tokenizer/`` folder
    included. Downloads nothing.
    """
    return next((path for path in _candidates(hub_cache_folder()) if _is_openai(path)), None)


def find_published(places: Sequence[tuple[str, str]]) -> Path | None:
    """A language model's tokenizer in the local Hugging Face cache. Downloads nothing.

    Args:
        places: repositories and folders in them, the best first.
    """
    for repository, folder in places:
        model = hub_cache_folder() / f"models--{repository.replace('/', '--')}"
        for snapshot in sorted(model.glob("snapshots/*")):
            found = find_text_tokenizer(snapshot / folder)
            if found is not None:
                return found
    return None


def default_clip_tokenizer(download: bool = True) -> ClipTokenizer:
    """OpenAI's CLIP tokenizer, padded with the end token, from the local cache or the hub.

    Args:
        download: fetch it with ``huggingface_hub`` when it is not on this machine and that package
            is installed.

    Raises:
        TokenizerError: it is neither here nor can it be fetched; the message says how to give one.
    """
    path = find_in_hub_cache()
    if path is None and download:
        path = _fetch()
    if path is None:
        raise TokenizerError(f"the model carries no CLIP tokenizer. {FOUR_WAYS}")
    tokenizer = load_clip_tokenizer(path)
    return tokenizer.with_pad(tokenizer.eos)


def _candidates(cache: Path) -> Iterator[Path]:
    """Places in the cache that could hold a CLIP tokenizer, the best first."""
    models = sorted(cache.glob("models--*"), key=lambda p: (_rank(p.name), p.name))
    for model in models:
        for snapshot in sorted(model.glob("snapshots/*")):
            for subfolder in _SUBFOLDERS:
                folder = snapshot / subfolder
                if (folder / VOCAB_FILE).is_file() and (folder / MERGES_FILE).is_file():
                    yield folder
                elif (folder / JSON_FILE).is_file():
                    yield folder / JSON_FILE


def _rank(name: str) -> int:
    if name == "models--" + HUB_REPOSITORY.replace("/", "--"):
        return 0
    return 1 if name.startswith("models--openai--clip-") else 2


def _is_openai(path: Path) -> bool:
    """True when the vocabulary at `path` is OpenAI's, told by the id of the end token."""
    file = path / VOCAB_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text("utf-8"))
        vocab = content if path.is_dir() else content["model"]["vocab"]
        return bool(vocab.get(EOS_TOKEN) == _EOS_ID)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # another model's tokenizer, or a broken download


def _fetch() -> Path | None:
    """Download the two small files; None when `huggingface_hub` is not installed."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        return None
    try:
        hf_hub_download(HUB_REPOSITORY, MERGES_FILE)
        return Path(hf_hub_download(HUB_REPOSITORY, VOCAB_FILE)).parent
    except Exception as error:  # its errors have no common base: network, disk, offline mode
        raise TokenizerError(
            f"the model carries no CLIP tokenizer, and {HUB_REPOSITORY} could not be fetched "
            f"({type(error).__name__}). {FOUR_WAYS}"
        ) from error
