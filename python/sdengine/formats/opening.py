"""Opening anything that holds weights."""

from __future__ import annotations

import os
from pathlib import Path

from sdengine.checks import check_path
from sdengine.errors import ParameterError
from sdengine.formats.files import kind_of, read_weights
from sdengine.formats.folder import read_folder
from sdengine.formats.index import TensorIndex
from sdengine.formats.scaled import with_scales
from sdengine.formats.sharded import read_sharded
from sdengine.formats.source import open_source


def open_index(path: str | os.PathLike[str], *, variant: str | None = None) -> TensorIndex:
    """Read the headers of a weight file or folder; no tensor data is read and no file stays open.

    `path` is a GGUF, safetensors or torch checkpoint file, a ``*.safetensors.index.json`` beside
    its shards, or a diffusers folder (of a pipeline or of one component). A file's content decides,
    not its name. `variant`, for folders only: prefer files of this variant, for example ``"fp16"``.

    Raises FormatError for anything that is not sound, ParameterError if there is nothing readable
    at `path` or `variant` makes no sense.
    """
    check_path("a weight file", path)
    try:
        absolute = Path(os.path.abspath(path))  # symbolic links stay: a hub cache is made of them
        if absolute.is_dir():
            return with_scales(read_folder(absolute, variant))
        if variant is not None:
            raise ParameterError(
                f"{absolute}: variant {variant!r} given; it applies to folders only"
            )
        with open_source(absolute) as source:
            if kind_of(source) != "json":
                return with_scales(read_weights(source))
        return with_scales(read_sharded(absolute))
    except FileNotFoundError as error:
        missing = error.filename or path
        raise ParameterError(f"{missing}: no such file or folder; check the path") from None
    except OSError as error:
        raise ParameterError(
            f"{path}: cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error
