"""Qwen-Image denoiser names: single files, GGUFs and diffusers folders all use those of diffusers.

As for SD3, the two chunks of the last modulation are two parameters under canonical names.
"""

from __future__ import annotations

from sdengine.keys.engine import KeyTable, Rule
from sdengine.keys.mmdit import halves

STILL_REFERENCES = "__index_timestep_zero__"
"""A tensor without a meaning of its own: the model reads references as pictures without noise (2511)."""

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""), *halves("norm_out.", "norm_out.linear.", 0)),
    markers=("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"),
)
