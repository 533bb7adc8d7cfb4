"""LoRA and its relatives: files that change a model's parameters (docs/adapters.md).

Python reads the names and decides which parameter each tensor changes; the arithmetic is in csrc/adapters.
"""

from sdengine.adapters.files import AdapterFile, read_adapter
from sdengine.adapters.loras import Lora, LoraLike, Loras, as_loras, parse_lora
from sdengine.adapters.restoring import find_applied, read_applied
from sdengine.adapters.targets import Targets
from sdengine.adapters.widening import widened

__all__ = [
    "AdapterFile",
    "Lora",
    "LoraLike",
    "Loras",
    "Targets",
    "as_loras",
    "find_applied",
    "parse_lora",
    "read_adapter",
    "read_applied",
    "widened",
]
