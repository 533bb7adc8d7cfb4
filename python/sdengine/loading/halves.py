"""An autoencoder in two files: the original form of the tiny ones (TAESD)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TypeAlias

from sdengine.errors import ParameterError
from sdengine.formats import TensorIndex, open_index

AnyPath: TypeAlias = "str | PathLike[str]"

# Half -> what its names may begin with, and names that only this half has. The decoder's first
# layer has no parameters, so its convolutions and blocks have other numbers than the encoder's.
_HALVES = {
    "taesd_encoder.": (("", "encoder.", "taesd_encoder."), ("0.weight", "1.conv.0.weight")),
    "taesd_decoder.": (("", "decoder.", "taesd_decoder."), ("1.weight", "3.conv.0.weight")),
}


def open_halves(paths: Sequence[AnyPath]) -> TensorIndex:
    """One index over an encoder file and a decoder file, given in any order.

    Returns:
        The names of both, behind ``taesd_encoder.`` and ``taesd_decoder.``; the path is the
        decoder's.

    Raises:
        ParameterError: these are not the two halves of one tiny autoencoder.
        FormatError: a file is damaged.
    """
    if not isinstance(paths, list | tuple):
        raise ParameterError(f"an autoencoder is a path, or those of two halves, not {paths!r:.80}")
    found: dict[str, TensorIndex] = {}
    tensors = {}
    for path in paths:
        index = open_index(path)
        half, prefix = _half_of(index)
        if half in found:
            raise ParameterError(
                f"{found[half].path} and {index.path} are the same half of a tiny autoencoder;"
                " expected an encoder and a decoder"
            )
        found[half] = index
        for name, entry in index.tensors.items():
            if name.startswith(prefix):
                tensors[half + name[len(prefix) :]] = entry
    if len(found) != len(_HALVES):
        raise ParameterError(
            f"vae= was given {len(found)} files in a list; expected two, the encoder and the decoder"
            " of a tiny autoencoder. Give any other autoencoder as one path"
        )
    decoder = found["taesd_decoder."]
    return TensorIndex(path=decoder.path, format=decoder.format, tensors=tensors)


def _half_of(index: TensorIndex) -> tuple[str, str]:
    """Which half a file holds, and what its names begin with."""
    for half, (prefixes, markers) in _HALVES.items():
        for prefix in prefixes:
            if all(prefix + marker in index.tensors for marker in markers):
                return half, prefix
    raise ParameterError(
        f"{index.path} is no half of a tiny autoencoder in its original names (taesd_encoder,"
        " taesd_decoder); give any other autoencoder as one path, not in a list"
    )
