"""What ``--from PICTURE`` needs besides options: LoRAs, and networks that only the caller can give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdengine.cli.console import printable

_NETWORKS = {
    "control_scales": ("control networks", "--controlnet and --control-image", "control_images"),
    "ip_scale": ("an IP-Adapter", "--ip-adapter and --ip-image", "ip_images"),
}
"""Parameter of a picture -> what it tells of, how that is given, and the option that shows that it was."""


def restore_adapters(source: Path, given: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Put the LoRAs of a picture into the arguments of ``sdengine.load``.

    Raises:
        ParameterError: there are none of their names.
        UsageError: it was made with a network that is not given.
    """
    from sdengine.adapters import find_applied
    from sdengine.metadata import read_parameters

    found = read_parameters(source)
    for name, (what, flags, option) in _NETWORKS.items():
        if name in found and option not in given:
            raise click.UsageError(f"{source} was made with {what}: repeat it with {flags}")
    applied = found.get("applied_loras")
    if not applied:
        return
    if "model" not in arguments:
        raise click.UsageError(
            f"{source} was made with LoRAs ({printable(applied)}): give --model and --lora-dir"
        )
    folder = arguments.get("lora_dir")
    loras = find_applied(
        applied, arguments.get("loras", ()), None if folder is None else Path(folder)
    )
    arguments["loras"] = list(loras)
