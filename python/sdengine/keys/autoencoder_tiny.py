"""Names of tiny autoencoders (TAESD): diffusers (canonical), and the original ones.

Both number the layers of a chain. The original decoder begins with a layer without parameters that
bounds the latents; diffusers leaves it out, so that the decoder's numbers, and only those, are one
lower there (madebyollin/taesd, taesd.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, numbers_at
from sdengine.keys.templates import Variables

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""),),
    markers=("decoder.layers.0.weight", "decoder.layers.2.conv.0.weight"),
)


def _table(name: str, encoder: str, decoder: str) -> KeyTable:
    """The original names behind these prefixes."""

    def variables(names: Collection[str]) -> Variables:
        # The numbers that are there, for a damaged file may hold any.
        return {
            "e": numbers_at(names, encoder),
            "d": [number - 1 for number in numbers_at(names, decoder) if number],
        }

    return KeyTable(
        name=name,
        rules=(
            Rule("encoder.layers.{e}.", encoder + "{e}."),
            Rule("decoder.layers.{d}.", decoder + "{d+1}."),
        ),
        markers=(f"{decoder}1.weight", f"{decoder}3.conv.0.weight"),
        variables=variables,
        variables_of=_variables_of,
    )


def _variables_of(config: Mapping[str, Any]) -> Variables:
    """The layers of a network of this config; see csrc/networks/autoencoders/tiny.cpp."""
    encoder, decoder = config["encoder_blocks"], config["decoder_blocks"]
    # A convolution per stage and one at the end; one, an activation, and per stage a convolution
    # and (but for the last) an enlargement.
    return {
        "e": range(sum(encoder) + len(encoder) + 1 if encoder else 0),
        "d": range(sum(decoder) + 2 * len(decoder) + 1),
    }


# Two files merged into one, and what `sdengine.load` makes of a list of two.
ORIGINAL_PAIR = _table("TAESD", "taesd_encoder.", "taesd_decoder.")
ORIGINAL = _table("TAESD (encoder, decoder)", "encoder.", "decoder.")
# The decoder's own file: bare numbers. No encoder has a layer 1 with a `weight` of its own.
ORIGINAL_DECODER = _table("TAESD decoder", "encoder.", "")
