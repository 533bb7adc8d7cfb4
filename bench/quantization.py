"""What `sdengine convert` makes of every family: file sizes, and what the denoiser loses.

``python bench/quantization.py`` prints the tables of docs/formats.md and docs/dit.md. Sizes are computed from the
full-size inventories of the tests, which have no weights. Errors are those of a small denoiser with random weights:
widths of whole blocks of 256 values, so that every type is what it says.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the inventories of the tests

from sdengine import _core
from sdengine.formats import DTYPES, open_index
from sdengine.keys import KeyTable, Rule
from sdengine.loading import ComponentPlan, detect
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of
from sdengine.loading.weight_types import DEFAULT_RULES, Choice, choose_type
from sdengine.stores import make_store

TYPES = ("f16", "q8_0", "q6_k", "q5_0", "q4_k", "q4_0")
MEMBERS = {
    "SD 1.4, 1.5": "sd1",
    "SD 2.x, Turbo": "sd2",
    "SDXL, Turbo, ...": "sdxl",
    "SSD-1B": "ssd-1b",
    "SDXL refiner": "refiner",
    "Kolors": "kolors",
}
"""A member of `tests.unet_inventories` -> the tiny one of `tests.unet_models` that has its structure."""
WIDER = 4
"""Times the tiny models' widths: rows of whole blocks of 256 values."""
ROWS_DO_NOT_FIT = "rows that do not divide into blocks"

Parameter = tuple[str, tuple[int, ...]]


# ------------------------------ sizes
@cache
def parameters(member: str) -> tuple[Parameter, ...]:
    """Every parameter of a full-size model: ``<component>.<canonical name>`` and shape."""
    from tests import unet_inventories

    found = unet_inventories.detected(member, "diffusers")
    assert found.family is not None
    return tuple(
        (f"{name}.{parameter}", shape)
        for name, located in found.components.items()
        for parameter, shape in _core.parameters(
            located.component.kind, found.configs.get(name) or config_of(located, found.family)
        )
    )


def choices(member: str, weight_type: str) -> Iterator[tuple[Choice, int]]:
    """How every parameter is stored, and its bytes."""
    for name, shape in parameters(member):
        choice = choose_type(name, shape, weight_type)
        yield choice, DTYPES[choice.dtype].nbytes(int(np.prod(shape, dtype=np.int64)))


def size(member: str, weight_type: str) -> int:
    """Bytes of a converted model's parameters."""
    return sum(nbytes for _, nbytes in choices(member, weight_type))


def kept(member: str, weight_type: str) -> Counter[tuple[str, str]]:
    """(reason, type) -> bytes of the parameters that do not get the type that was asked for."""
    found: Counter[tuple[str, str]] = Counter()
    for choice, nbytes in choices(member, weight_type):
        if choice.dtype != weight_type:
            known = any(rule.reason == choice.reason for rule in DEFAULT_RULES)
            found[choice.reason if known else ROWS_DO_NOT_FIT, choice.dtype] += nbytes
    return found


# ------------------------------ errors
def small_unet(name: str) -> dict[str, Any]:
    """The config of a tiny member's UNet, widened."""
    from tests.unet_models import TINY

    config = dict(TINY[name].unet)
    config["block_out_channels"] = tuple(WIDER * w for w in config["block_out_channels"])
    heads = config["attention_head_dim"]  # which are numbers of heads
    if not isinstance(heads, int):
        config["attention_head_dim"] = tuple(WIDER * h for h in heads)
    if config["cross_attention_dim"] < 256:
        config["cross_attention_dim"] *= WIDER
    if name == "kolors":
        config["encoder_hid_dim"] *= 8
    return config


def write_unet(name: str, path: Path) -> Path:
    """A member's UNet with every parameter random."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    from tests.models import randomise

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**small_unet(name))
    randomise(unet, 0, 0.02)
    save_file({key: tensor.contiguous() for key, tensor in unet.state_dict().items()}, path)
    return path


def unet_inputs(config: Mapping[str, Any]) -> dict[str, Any]:
    """Random inputs of a native UNet."""
    random = np.random.default_rng(0)
    context = config["encoder_hid_dim"] or config["cross_attention_dim"]
    inputs = {
        "latents": random.standard_normal((1, config["in_channels"], 16, 16), np.float32),
        "timesteps": np.full(1, 500.0, np.float32),
        "context": random.standard_normal((1, 77, context), np.float32),
    }
    if config["class_embed_dim"]:
        inputs["class_embedding"] = random.standard_normal(
            (1, config["class_embed_dim"]), np.float32
        )
    return inputs


def errors(name: str, folder: Path, types: Sequence[str] = TYPES[1:]) -> dict[str, float]:
    """Type -> relative L2 difference of the denoiser's output from that in f16."""
    index = open_index(write_unet(name, folder / f"{name}.safetensors"))
    found = detect(index)
    assert found.family is not None
    located, config = found.components["unet"], found.configs["unet"]
    bindings, _ = bind(located, _core.parameters("unet", config))
    plan = ComponentPlan("unet", "unet", config, bindings, index.path, located.table.name)
    device, inputs = _core.Device.cpu(), unet_inputs(config)

    def output(weight_type: str) -> np.ndarray:
        network = _core.Network("unet", config, make_store(plan, weight_type), device)
        return network.run(inputs, {})["prediction"]

    plain = output("f16")
    return {t: float(np.linalg.norm(output(t) - plain) / np.linalg.norm(plain)) for t in TYPES[1:]}


# ------------------------------ diffusion transformers and their text encoders
TRANSFORMERS = {
    "SD3.5 Medium": "mmdit",
    "FLUX.1 dev": "flux",
    "Qwen-Image": "qwen_image",
    "Lumina-Image 2.0": "lumina2",
    "PixArt-sigma": "pixart",
    "T5": "t5_text",
    "Gemma 2": "gemma2",
    "Qwen2.5-VL, text": "qwen2",
}
"""A row of the table -> the small network that stands for it."""


class Loss(NamedTuple):
    """Relative L2 differences of a network's output."""

    weights: float
    """From the output of the weights before they were quantized: what the type loses."""
    products: float
    """From the output of the dequantized weights in float32: what computing with the type loses."""


class Small(NamedTuple):
    """A network with every parameter random, rows of whole blocks of 256."""

    kind: str
    """The native network."""
    tables: tuple[KeyTable, ...]
    model: Any
    inputs: Mapping[str, Any]


def small_denoiser(name: str) -> Small:
    """A denoiser of a family, and what it reads of an 8 x 8 picture."""
    import diffusers

    from sdengine.keys import lumina2, pixart, qwen_image
    from tests.parity import test_dit_networks as dit

    random = np.random.default_rng(0)
    size, wide = (1, 8, 8), {"joint_attention_dim": 256, "pooled_projection_dim": 256}
    if name == "mmdit":
        heads = {"num_attention_heads": 4, "caption_projection_dim": 256}
        config = {**dit.WIDE_SD3, **wide, **heads}
        model = diffusers.SD3Transformer2DModel(**config)
        return Small(name, dit.SD3_TABLES, model, dit.sd3_inputs(config, size))
    if name == "flux":
        config = {**dit.WIDE_FLUX, **wide, "num_attention_heads": 2}
        model = diffusers.FluxTransformer2DModel(**config)
        return Small(name, dit.FLUX_TABLES, model, dit.flux_inputs(config, size))
    channels = 4 if name == "pixart" else 16
    inputs = {
        "latents": random.standard_normal((1, channels, 8, 8), np.float32),
        "timesteps": np.full(1, 500.0, np.float32),
        "context": random.standard_normal((1, 20, 256), np.float32),
    }
    heads = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 64}
    if name == "qwen_image":
        axes = {"in_channels": 64, "out_channels": 16, "axes_dims_rope": (16, 24, 24)}
        model = diffusers.QwenImageTransformer2DModel(**heads, **axes, joint_attention_dim=256)
        return Small(name, (qwen_image.DIFFUSERS,), model, inputs)
    if name == "lumina2":
        model = diffusers.Lumina2Transformer2DModel(
            in_channels=16,
            hidden_size=256,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            axes_dim_rope=(20, 22, 22),
            cap_feat_dim=256,
        )
        return Small(name, (lumina2.ORIGINAL, lumina2.DIFFUSERS), model, inputs)
    model = diffusers.PixArtTransformer2DModel(
        **{**heads, "num_attention_heads": 12, "num_layers": 1},  # the width has twelve parts
        sample_size=64,
        cross_attention_dim=768,
        caption_channels=256,
    )
    return Small(name, (pixart.ORIGINAL, pixart.DIFFUSERS), model, inputs)


def small_text_encoder(name: str) -> Small:
    """A text encoder, and twenty words."""
    import transformers

    from sdengine.keys import decoder_text, t5_text

    inputs = {"ids": np.random.default_rng(0).integers(0, 512, (1, 20), np.int32)}
    if name == "t5_text":
        figures = {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_heads": 4, "num_layers": 2}
        config = transformers.T5Config(vocab_size=512, feed_forward_proj="gated-gelu", **figures)
        return Small(name, t5_text.TABLES, transformers.T5EncoderModel(config), inputs)
    inputs["positions"] = np.arange(20, dtype=np.int32)[None]
    figures = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    if name == "qwen2":
        model = transformers.Qwen2Model(transformers.Qwen2Config(**figures))
    else:
        model = transformers.Gemma2Model(transformers.Gemma2Config(**figures, head_dim=256))
    return Small("decoder_text", decoder_text.TABLES, model, inputs)


def write_small(name: str, path: Path) -> Small:
    """A small network of `TRANSFORMERS`, whose tensors are written to `path`."""
    import torch
    from safetensors.torch import save_file

    from tests.models import randomise

    torch.manual_seed(0)
    is_text = name in ("t5_text", "gemma2", "qwen2")
    small = (small_text_encoder if is_text else small_denoiser)(name)
    randomise(small.model, 0, 0.02)
    state = small.model.state_dict()
    save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, path)
    return small


def dequantized(plan: ComponentPlan, weight_type: str, path: Path) -> Path:
    """The values that are left of a component's parameters, by the package gguf."""
    import gguf
    import torch
    from safetensors.torch import save_file

    state = {}
    for binding in plan.bindings:
        entry, blob = binding.entry, path.with_suffix(".bin")
        vector = len(entry.shape) < 2
        name = f"{plan.name}.{binding.name}"
        dtype = "f32" if vector else choose_type(name, entry.shape, weight_type).dtype
        blob.touch()
        place = (entry.dtype, entry.shape, entry.path, entry.offset, entry.nbytes)
        _core.transcode(*place, dst_path=blob, dst_offset=0, dst_dtype=dtype, threads=1)
        kind = gguf.GGMLQuantizationType[dtype.upper()]
        values = gguf.quants.dequantize(np.fromfile(blob, np.uint8), kind)
        state[binding.name] = torch.tensor(np.asarray(values, np.float32)).reshape(entry.shape)
        blob.unlink()
    save_file(state, path)
    return path


def transformer_losses(
    name: str, folder: Path, types: Sequence[str] = TYPES[1:]
) -> dict[str, Loss]:
    """Type -> what is lost."""
    from tests.parity import dit

    source = folder / f"{name}.safetensors"
    kind, tables, model, inputs = write_small(name, source)
    json = dit.json_of(model) if hasattr(model, "register_to_config") else model.config.to_dict()
    config = dit.config_of(dit.located(open_index(source), kind, tables), json)
    component = "transformer" if "latents" in inputs else "text_encoder"

    def plan_of(table_names: Any, path: Path) -> ComponentPlan:
        located = dit.located(open_index(path), kind, table_names)
        bindings, _ = bind(located, _core.parameters(kind, config))
        return ComponentPlan(component, kind, config, bindings, path, located.table.name)

    def output(plan: ComponentPlan, weight_type: str | None) -> np.ndarray:
        network = _core.Network(kind, config, make_store(plan, weight_type), _core.Device.cpu())
        found = network.run(inputs, {})
        return np.concatenate([found[key].ravel() for key in sorted(found)])

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    plan = plan_of(tables, source)
    own = (KeyTable("canonical", (Rule("", ""),), (plan.bindings[0].name,)),)
    plain, losses = output(plan, None), {}
    for weight_type in types:
        left = dequantized(plan, weight_type, folder / f"{name}-{weight_type}.safetensors")
        exact, quantized = output(plan_of(own, left), None), output(plan, weight_type)
        losses[weight_type] = Loss(apart(quantized, plain), apart(quantized, exact))
    return losses


def transformer_rows() -> list[list[str]]:
    """What diffusion transformers and their text encoders lose."""
    rows = [["relative L2 error", *TYPES[1:]]]
    with tempfile.TemporaryDirectory() as folder:
        for title, name in TRANSFORMERS.items():
            found = transformer_losses(name, Path(folder))
            rows.append([f"{title}, of the type", *(f"{f.weights:.1e}" for f in found.values())])
            rows.append(
                [f"{title}, of the products", *(f"{f.products:.1e}" for f in found.values())]
            )
    return rows


# ------------------------------ tables
def table(rows: list[list[str]]) -> str:
    """Rows as a table of Markdown; the first are the headings."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def size_rows() -> list[list[str]]:
    """Sizes in 10^6 bytes."""
    return [["parameters, 10⁶ bytes", *TYPES]] + [
        [member, *(f"{size(member, t) / 1e6:.0f}" for t in TYPES)] for member in MEMBERS
    ]


def error_rows() -> list[list[str]]:
    """Errors of the small denoisers."""
    rows = [["denoiser's error", *TYPES[1:]]]
    with tempfile.TemporaryDirectory() as folder:
        for member, name in MEMBERS.items():
            found = errors(name, Path(folder))
            rows.append([member, *(f"{found[t]:.1e}" for t in TYPES[1:])])
    return rows


def kept_rows(weight_type: str = "q4_0") -> list[list[str]]:
    """What is not `weight_type` in a file of it, in 10^6 bytes, by reason."""
    found = {member: kept(member, weight_type) for member in MEMBERS}
    reasons = list(dict.fromkeys(reason for counter in found.values() for reason in counter))
    rows = [[f"in a file of {weight_type}, 10⁶ bytes", "type", *MEMBERS]]
    for reason in reasons:
        sizes = [
            f"{counter[reason] / 1e6:.1f}" if counter[reason] else "" for counter in found.values()
        ]
        rows.append([reason[0], reason[1], *sizes])
    rows.append(["everything else", weight_type])
    for member, counter in found.items():
        rows[-1].append(f"{(size(member, weight_type) - sum(counter.values())) / 1e6:.1f}")
    return rows


if __name__ == "__main__":
    for rows in (size_rows(), error_rows(), kept_rows(), transformer_rows()):
        print(table(rows), end="\n\n")
