"""The adapters of a picture that was made: from its parameters back to files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdengine.adapters.loras import Lora, files_in
from sdengine.errors import ParameterError

_NUMBER = r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?"
_APPLIED = re.compile(
    rf"(?P<name>.+?):(?P<scales>{_NUMBER}(?:/{_NUMBER})*)(?::(?P<text>{_NUMBER}))?"
    rf"(?: \[(?P<start>{_NUMBER})-(?P<end>{_NUMBER})\])?(?:, |$)",
    re.DOTALL,
)


def read_applied(text: str) -> tuple[Lora, ...]:
    """What ``applied_loras`` of a picture says; names stand in the place of paths.

    Raises:
        ParameterError: it is nothing of the kind, or a value is out of range.
    """
    loras, position = [], 0
    while position < len(text):
        found = _APPLIED.match(text, position)
        if found is None:
            raise ParameterError(f"applied_loras is name:scale, ...; found {text[position:]!r:.80}")
        scales = [float(number) for number in found["scales"].split("/")]
        loras.append(
            Lora(
                found["name"],
                scales[0] if len(scales) == 1 else scales,
                None if found["text"] is None else float(found["text"]),
                float(found["start"] or 0.0),
                float(found["end"] or 1.0),
            )
        )
        position = found.end()
    return tuple(loras)


def find_applied(
    text: str, given: Sequence[Lora] = (), folder: Path | None = None
) -> tuple[Lora, ...]:
    """The adapters that a picture was made with, as files.

    ``pipe.generate(..., loras=find_applied(parameters["applied_loras"], folder=Path("loras")))``

    Args:
        text: ``applied_loras`` of its parameters.
        given: what the caller gives; each takes the place, and decides the strength, of that of its name, and
            further ones come on top. One without a scale has that of the picture.
        folder: where the others lie, subfolders too.

    Raises:
        ParameterError: some are not there; the message names all of them.
    """
    files = {name.casefold(): path for name, path in files_in(folder).items()}
    own = {lora.name.casefold(): lora for lora in given}
    found, missing = [], []
    for lora in read_applied(text):
        name = (
            Path(lora.path).as_posix().casefold()
        )  # names may have dots, which are no suffixes here
        if name in own:
            chosen = own.pop(name)
            found.append(replace(lora, path=chosen.path) if chosen.scale is None else chosen)
        elif name in files:
            found.append(replace(lora, path=files[name]))
        else:
            missing.append(str(lora.path))
    if missing:
        where = "" if folder is None else f" in {folder}"
        raise ParameterError(
            f"the picture was made with LoRAs that are not found{where}: {', '.join(missing)}. Give their folder with"
            " lora_dir (--lora-dir), or each with --lora FILE"
        )
    return (*found, *own.values())
