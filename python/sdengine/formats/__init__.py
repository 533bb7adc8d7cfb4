"""One index over GGUF, safetensors, diffusers folders and torch checkpoints.

It holds names, shapes, types and places. Only headers are read. Nothing in a file is executed, and
every size and offset is checked against the file.
"""

from __future__ import annotations

from sdengine.formats.dtypes import DTYPES, DType
from sdengine.formats.index import TensorEntry, TensorIndex
from sdengine.formats.opening import open_index

__all__ = ["DTYPES", "DType", "TensorEntry", "TensorIndex", "open_index"]
