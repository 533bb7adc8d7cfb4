"""The reference names of diffusion transformers, written from the published rules.

Independent of `sdengine.keys` on purpose: `tests/keys/test_dit_inventories.py` checks these against
diffusers' own importers, and `sdengine.keys` against these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

State = dict[str, torch.Tensor]


def _renamed(state: Mapping[str, torch.Tensor], pairs: Sequence[tuple[str, str]]) -> State:
    """Weights and biases of layers under their other names; layers that are not there are skipped."""
    return {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"]
        for ours, theirs in pairs
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in state
    }


def _fused(state: Mapping[str, torch.Tensor], ours: Sequence[str], theirs: str) -> State:
    """Layers whose rows stand one behind the other in one tensor."""
    return {
        f"{theirs}.{kind}": torch.cat([state[f"{name}.{kind}"] for name in ours])
        for kind in ("weight", "bias")
        if f"{ours[0]}.{kind}" in state
    }


def _swapped(state: Mapping[str, torch.Tensor], ours: str, theirs: str) -> State:
    """Scale, shift to shift, scale."""
    halves = {kind: state[f"{ours}.{kind}"].chunk(2) for kind in ("weight", "bias")}
    return {f"{theirs}.{kind}": torch.cat([b, a]) for kind, (a, b) in halves.items()}


def _count(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(int(n[len(prefix) :].split(".")[0]) for n in state if n.startswith(prefix))


def sd3_to_reference(state: Mapping[str, torch.Tensor]) -> State:
    """A diffusers SD3Transformer2DModel state dict under the names of Stability's checkpoints."""
    result = {"pos_embed": state["pos_embed.pos_embed"]}
    result |= _renamed(
        state,
        (
            ("pos_embed.proj", "x_embedder.proj"),
            ("context_embedder", "context_embedder"),
            ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
            ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
            ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
            ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
            ("proj_out", "final_layer.linear"),
        ),
    )
    result |= _swapped(state, "norm_out.linear", "final_layer.adaLN_modulation.1")
    layers = _count(state, "transformer_blocks.")
    for i in range(layers):
        ours, theirs = f"transformer_blocks.{i}.", f"joint_blocks.{i}."
        image, text = f"{theirs}x_block.", f"{theirs}context_block."
        for attention in ("attn", "attn2"):
            names = [f"{ours}{attention}.to_{x}" for x in "qkv"]
            result |= _fused(state, names, f"{image}{attention}.qkv")
            result |= _renamed(
                state,
                (
                    (f"{ours}{attention}.norm_q", f"{image}{attention}.ln_q"),
                    (f"{ours}{attention}.norm_k", f"{image}{attention}.ln_k"),
                    (f"{ours}{attention}.to_out.0", f"{image}{attention}.proj"),
                ),
            )
        names = [f"{ours}attn.add_{x}_proj" for x in "qkv"]
        result |= _fused(state, names, f"{text}attn.qkv")
        result |= _renamed(
            state,
            (
                (f"{ours}attn.norm_added_q", f"{text}attn.ln_q"),
                (f"{ours}attn.norm_added_k", f"{text}attn.ln_k"),
                (f"{ours}attn.to_add_out", f"{text}attn.proj"),
                (f"{ours}norm1.linear", f"{image}adaLN_modulation.1"),
                (f"{ours}ff.net.0.proj", f"{image}mlp.fc1"),
                (f"{ours}ff.net.2", f"{image}mlp.fc2"),
                (f"{ours}ff_context.net.0.proj", f"{text}mlp.fc1"),
                (f"{ours}ff_context.net.2", f"{text}mlp.fc2"),
            ),
        )
        modulation = (f"{ours}norm1_context.linear", f"{text}adaLN_modulation.1")
        last = i == layers - 1
        result |= _swapped(state, *modulation) if last else _renamed(state, [modulation])
    return result


def flux_to_bfl(state: Mapping[str, torch.Tensor], norm: str = "scale") -> State:
    """A diffusers FluxTransformer2DModel state dict under BFL's names.

    `norm` is what the weight of a norm per head is called: ``scale`` or ``weight``.
    """
    embedders = (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))
    result = _renamed(
        state,
        (
            ("x_embedder", "img_in"),
            ("context_embedder", "txt_in"),
            ("proj_out", "final_layer.linear"),
            *(
                (f"time_text_embed.{a}_embedder.linear_{i}", f"{b}_in.{layer}_layer")
                for a, b in embedders
                for i, layer in ((1, "in"), (2, "out"))
            ),
        ),
    )
    result |= _swapped(state, "norm_out.linear", "final_layer.adaLN_modulation.1")
    for i in range(_count(state, "transformer_blocks.")):
        ours, theirs = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        result |= _fused(state, [f"{ours}attn.to_{x}" for x in "qkv"], f"{theirs}img_attn.qkv")
        names = [f"{ours}attn.add_{x}_proj" for x in "qkv"]
        result |= _fused(state, names, f"{theirs}txt_attn.qkv")
        result |= _renamed(
            state,
            (
                (f"{ours}norm1.linear", f"{theirs}img_mod.lin"),
                (f"{ours}norm1_context.linear", f"{theirs}txt_mod.lin"),
                (f"{ours}attn.to_out.0", f"{theirs}img_attn.proj"),
                (f"{ours}attn.to_add_out", f"{theirs}txt_attn.proj"),
                (f"{ours}ff.net.0.proj", f"{theirs}img_mlp.0"),
                (f"{ours}ff.net.2", f"{theirs}img_mlp.2"),
                (f"{ours}ff_context.net.0.proj", f"{theirs}txt_mlp.0"),
                (f"{ours}ff_context.net.2", f"{theirs}txt_mlp.2"),
            ),
        )
        for stream, added in (("img", ""), ("txt", "added_")):
            for x, name in (("q", "query"), ("k", "key")):
                weight = state[f"{ours}attn.norm_{added}{x}.weight"]
                result[f"{theirs}{stream}_attn.norm.{name}_norm.{norm}"] = weight
    for i in range(_count(state, "single_transformer_blocks.")):
        ours, theirs = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        names = [*(f"{ours}attn.to_{x}" for x in "qkv"), f"{ours}proj_mlp"]
        result |= _fused(state, names, f"{theirs}linear1")
        result |= _renamed(
            state,
            (
                (f"{ours}norm.linear", f"{theirs}modulation.lin"),
                (f"{ours}proj_out", f"{theirs}linear2"),
            ),
        )
        for x, name in (("q", "query"), ("k", "key")):
            result[f"{theirs}norm.{name}_norm.{norm}"] = state[f"{ours}attn.norm_{x}.weight"]
    return result
