"""Lumina-Image 2.0 and PixArt in every published layout: full-size inventories, families, parts, conversion."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Lumina2Transformer2DModel, PixArtTransformer2DModel
from diffusers.loaders.single_file_utils import convert_lumina2_to_diffusers
from safetensors.torch import load_file, save_file

import sdengine
from sdengine import _core
from sdengine.errors import TokenizerError, UnsupportedModelError, WeightsError
from sdengine.families import LUMINA2, PIXART_ALPHA, PIXART_SIGMA, Family
from sdengine.families.lumina2 import SYSTEM_PROMPT
from sdengine.formats import open_index
from sdengine.keys import NameMap, lumina2, pixart
from sdengine.loading.bind import bind
from sdengine.loading.detection import detect
from sdengine.loading.networks import NETWORKS
from sdengine.sampling import SAMPLERS, SCHEDULES
from tests import text_models
from tests.inventories import index_of, with_prefix
from tests.models import TRAINING_TEXT
from tests.parity.conftest import relative_error
from tests.parity.dit import (
    config_of,
    json_of,
    located,
    network_of,
    rounded,
    tiny,
    write_gguf,
)

from . import lumina_models, pixart_models, test_lumina, test_pixart
from .lumina_models import tiny_lumina_folder
from .pixart_models import SIGMA, tiny_pixart_folder

State = dict[str, torch.Tensor]

# Configs of the published diffusers folders.
LUMINA: dict[str, Any] = {
    "in_channels": 16,
    "hidden_size": 2304,
    "num_layers": 26,
    "num_refiner_layers": 2,
    "num_attention_heads": 24,
    "num_kv_heads": 8,
    "axes_dim_rope": (32, 32, 32),
    "axes_lens": (300, 512, 512),
    "cap_feat_dim": 2304,
}
SIGMA_1024: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 28,
    "caption_channels": 4096,
    "use_additional_conditions": False,
}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "Lumina-Image 2.0": ("lumina2", LUMINA, 0),
    "PixArt-sigma": ("pixart", SIGMA_1024, 300),
    "PixArt-alpha": ("pixart", SIGMA_1024 | {"use_additional_conditions": True}, 120),
    "PixArt-alpha 512": ("pixart", SIGMA_1024 | {"sample_size": 64}, 120),
}
FAMILIES: dict[str, Family] = {
    "Lumina-Image 2.0": LUMINA2,
    "PixArt-sigma": PIXART_SIGMA,
    "PixArt-alpha": PIXART_ALPHA,
    "PixArt-alpha 512": PIXART_ALPHA,
}
CLASSES: dict[str, type[torch.nn.Module]] = {
    "lumina2": Lumina2Transformer2DModel,
    "pixart": PixArtTransformer2DModel,
}
TABLES = {
    "lumina2": (lumina2.ORIGINAL, lumina2.DIFFUSERS),
    "pixart": (pixart.ORIGINAL, pixart.DIFFUSERS),
}


@cache
def full_size(model: str) -> State:
    kind, config, _ = MODELS[model]
    with torch.device("meta"):
        return dict(CLASSES[kind](**config).state_dict())


@cache
def original(model: str) -> State:
    if MODELS[model][0] == "pixart":
        return pixart_models.to_original(full_size(model), MODELS[model][2])
    stray = {"norm_final.weight": torch.empty(2304, device="meta")}
    return lumina_models.to_original(full_size(model)) | stray


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_maps(model: str) -> None:
    kind, json, tokens = MODELS[model]
    as_json = {key: list(v) if isinstance(v, tuple) else v for key, v in json.items()}
    configs = []
    for table, state in zip(TABLES[kind], (original(model), full_size(model)), strict=True):
        found = located(index_of(with_prefix("model.diffusion_model.", state)), kind, TABLES[kind])
        assert found.table is table
        config = config_of(found)
        bindings, left = bind(found, _core.parameters(kind, config))
        spare = {"model.diffusion_model.y_embedder.y_embedding"} if tokens else set()
        assert set(left) <= spare
        elements = sum(t.numel() for t in full_size(model).values())
        assert sum(b.entry.elements for b in bindings) == elements
        # The published config agrees, and adds what no shape tells.
        refined = config_of(found, as_json)
        assert {k: v for k, v in refined.items() if k != "position_span"} == {
            k: v for k, v in config.items() if k != "position_span"
        }
        with pytest.raises(WeightsError, match="num_layers = 7, the tensors show"):
            config_of(found, as_json | {"num_layers": 7})
        names = NameMap.of_network(found.table, config)
        for name, source in found.sources.items():
            assert (source.name, source.part) in {
                (target.name, target.part) for target in names.to_file(name)
            }
        configs.append({k: v for k, v in config.items() if k != "caption_tokens"})
    assert configs[0] == configs[1]


def test_figures_are_read_off_the_tensors() -> None:
    lumina = config_of(
        located(index_of(original("Lumina-Image 2.0")), "lumina2", TABLES["lumina2"])
    )
    assert (lumina["head_dim"], lumina["kv_heads"], lumina["inner_width"]) == (96, 8, 9216)
    assert (lumina["rope_axes"], lumina["conditioning_width"]) == ([32, 32, 32], 1024)
    alpha = config_of(located(index_of(original("PixArt-alpha")), "pixart", TABLES["pixart"]))
    assert (alpha["micro_conditions"], alpha["caption_tokens"]) == (True, 120)
    assert (alpha["width"], alpha["head_dim"], alpha["out_channels"]) == (1152, 72, 8)


@pytest.mark.parametrize(
    ("side", "scale", "span"),
    [
        (128, 2, 32.0),
        (64, 1, 32.0),
        (256, 4, 32.0),
        (32, 0.5, 32.0),
        (32, 1, 16.0),
        (128, None, 32.0),
    ],
)
def test_positions_of_every_published_size(side: int, scale: float | None, span: float) -> None:
    config = config_of(located(index_of(full_size("PixArt-sigma")), "pixart", TABLES["pixart"]))
    refined = NETWORKS["pixart"].refine(config, {"sample_size": side, "interpolation_scale": scale})
    assert refined["position_span"] == span


def test_lumina_s_names_are_those_that_diffusers_imports() -> None:
    # One column of every matrix is enough for the importer.
    torch.manual_seed(1)
    with torch.device("meta"):
        model = Lumina2Transformer2DModel(**LUMINA | {"num_layers": 1})
    state = {
        n: torch.randn(t.shape[0], *(1,) * (t.ndim - 1)) for n, t in model.state_dict().items()
    }
    found = convert_lumina2_to_diffusers(lumina_models.to_original(state))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_is_its_family(model: str) -> None:
    prefixes = ("", "model.diffusion_model.")
    for prefix in prefixes:
        found = detect(index_of(with_prefix(prefix, original(model))))
        assert (found.family, found.title) == (FAMILIES[model], model)
    found = detect(index_of(with_prefix("transformer/", full_size(model))))
    if model != "PixArt-alpha 512":  # its tensors are sigma's
        assert (found.family, found.title) == (FAMILIES[model], model)
        return
    assert found.family is PIXART_SIGMA
    index = index_of(full_size(model))
    assert detect(index, "pixart_alpha").title == model
    index.configs["model_index"] = {"_class_name": "PixArtAlphaPipeline"}
    assert detect(index).title == model


@pytest.mark.parametrize("family", [LUMINA2, PIXART_SIGMA, PIXART_ALPHA], ids=lambda f: f.name)
def test_defaults_are_known_names(family: Family) -> None:
    assert family.defaults.sampler in SAMPLERS
    assert family.defaults.schedule in SCHEDULES
    assert [use.component for use in family.text] == list(family.tokenizers)


def test_relatives_are_no_lumina() -> None:
    changed = dict(original("Lumina-Image 2.0"))
    changed["cap_embedder.1.weight"] = torch.empty(3840, 2560, device="meta")
    assert detect(index_of(changed)).title == "Z-Image"
    with pytest.raises(UnsupportedModelError, match="norm_type = 'ada_norm_zero'"):
        config = {"norm_type": "ada_norm_zero"}
        config_of(located(index_of(full_size("PixArt-sigma")), "pixart", TABLES["pixart"]), config)


@pytest.mark.parametrize(
    ("name", "title"),
    [("attn.sr.weight", "with compressed keys"), ("attn.q_norm.weight", "with normed heads")],
)
def test_members_of_pixart_that_are_refused(name: str, title: str) -> None:
    changed = dict(original("PixArt-sigma"))
    changed[f"blocks.5.{name}"] = torch.empty(1152, device="meta")
    found = detect(index_of(changed))
    assert found.family is None
    assert found.title == f"PixArt {title}"


@pytest.mark.parametrize("axes", [[32, 32], [32, 31, 33], [32, 32, 34], "wide"], ids=str)
def test_axes_part_a_head(axes: Any) -> None:
    good = config_of(located(index_of(full_size("Lumina-Image 2.0")), "lumina2", TABLES["lumina2"]))
    with pytest.raises(WeightsError, match="three even numbers whose sum is 96"):
        NETWORKS["lumina2"].check({**good, "rope_axes": axes})
    with pytest.raises(sdengine.SDEngineError):
        _core.parameters("lumina2", {**good, "rope_axes": axes})


# ------------------------------------------------------------------------------------ parts, files
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "lumina2": tiny_lumina_folder,
    "pixart_sigma": lambda path: tiny_pixart_folder(path, SIGMA, "PixArtSigmaPipeline"),
    "pixart_alpha": lambda path: tiny_pixart_folder(path, SIGMA, "PixArtAlphaPipeline"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dit")
    return {name: make(root / name) for name, make in FOLDERS.items()}


def latents(pipe: sdengine.Pipeline) -> np.ndarray:
    return pipe.generate("a red circle", "blurry", steps=2, seed=3, width=64, height=64).latents


@pytest.mark.parametrize("name", FOLDERS)
def test_a_converted_model_is_the_same_model(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    expected = sdengine.load(folders[name])
    exact, small = tmp_path / "exact.gguf", tmp_path / "small.gguf"
    sdengine.convert(folders[name], exact, weight_type="f32")
    again = sdengine.load(exact)
    assert again.model.family.name == name
    assert asdict(again.model.scheduler) == asdict(expected.model.scheduler)
    assert again.model.defaults == expected.model.defaults
    assert {n: p.config for n, p in again.model.components.items()} == {
        n: p.config for n, p in expected.model.components.items()
    }
    assert np.array_equal(latents(again), latents(expected))
    sdengine.convert(folders[name], small, weight_type="q8_0")
    assert 0 < relative_error(latents(sdengine.load(small)), latents(expected)) < 0.3
    sdengine.convert(exact, tmp_path / "twice.gguf", weight_type="f32")
    assert exact.read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def state_of(folder: Path) -> State:
    """The tensors of a component's folder."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def write_sentencepiece(folder: Path) -> bytes:
    """A small SentencePiece model with Gemma's special tokens."""
    import sentencepiece

    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TRAINING_TEXT, SYSTEM_PROMPT] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        num_threads=1,
        minloglevel=2,
    )
    return (folder / "tokenizer.model").read_bytes()


def test_lumina_from_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    """Files as ComfyUI has them, with the tokenizer among the tensors, and a GGUF of the encoder."""
    folder, words = folders["lumina2"], write_sentencepiece(tmp_path / "tokenizer")
    gemma = state_of(folder / "text_encoder")
    denoiser = lumina_models.to_original(state_of(folder / "transformer"))
    denoiser["norm_final.weight"] = torch.ones(48)
    save_file(with_prefix("model.", gemma), tmp_path / "gemma.safetensors")
    file = with_prefix("model.", gemma)
    file["spiece_model"] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "gguf").mkdir()
    save_file(file, tmp_path / "comfy" / "gemma.safetensors")
    (tmp_path / "denoiser").mkdir()
    path = tmp_path / "denoiser" / "lumina.safetensors"
    save_file({n: t.contiguous() for n, t in denoiser.items()}, path)
    tensors = text_models.llm_to_gguf(gemma, "gemma2", 4, 2)
    text_models.write_gguf(tmp_path / "gguf" / "gemma.gguf", "gemma2", tensors)
    for place in ("", "comfy", "gguf"):  # what a model of this size needs, and Gemma does not
        shutil.copy(folder / "text_encoder" / "config.json", tmp_path / place)

    found = []
    for encoder in ("gemma.safetensors", "comfy/gemma.safetensors", "gguf/gemma.gguf"):
        pipe = sdengine.load(
            path,
            text_encoders=tmp_path / encoder,
            vae=folder / "vae",
            tokenizer=None if "comfy" in encoder else tmp_path / "tokenizer",
        )
        assert pipe.model.unused == ()
        found.append(latents(pipe))
    assert np.array_equal(found[0], found[1])
    assert relative_error(found[2], found[0]) <= 1e-4
    with pytest.raises(TokenizerError, match="expected the bytes of a SentencePiece model"):
        file["spiece_model"] = torch.zeros(8)
        save_file(file, tmp_path / "comfy" / "odd.safetensors")
        sdengine.load(
            path,
            text_encoders=tmp_path / "comfy" / "odd.safetensors",
            vae=folder / "vae",
        )


@pytest.mark.parametrize("weight_type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("kind", CLASSES)
def test_quantized_files(kind: str, weight_type: str, tmp_path: Path) -> None:
    """What is left of the weights is computed as diffusers computes it."""
    config: dict[str, Any] = lumina_models.DENOISER | {
        "hidden_size": 96,
        "axes_dim_rope": (16, 8, 8),
    }
    if kind == "pixart":
        config = SIGMA | {"num_attention_heads": 8, "cross_attention_dim": 96}
    model = tiny(CLASSES[kind], config)
    state = rounded(dict(model.state_dict()), weight_type)
    model.load_state_dict(state)
    write_gguf(state, tmp_path / "model.gguf", weight_type)
    found = located(open_index(tmp_path / "model.gguf"), kind, TABLES[kind])
    network, _store = network_of(found, config_of(found, json_of(model)))
    tests: Any = test_pixart if kind == "pixart" else test_lumina
    given = tests.inputs()
    expected = tests.reference(model, given)
    assert relative_error(network.run(given)["prediction"], expected) <= 2e-5


ADAPTED = {
    "lumina2": ("diffusion_model.layers.1.feed_forward.w2", ["layers.1.feed_forward.linear_2"]),
    "pixart_sigma": (
        "transformer.transformer_blocks.1.attn2.to_q",
        ["transformer_blocks.1.attn2.to_q"],
    ),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_loras(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    """A LoRA beside the weights gives what weights with it inside give."""
    target, layers = ADAPTED[name]
    state = state_of(folders[name] / "transformer")
    heights = [len(state[f"{layer}.weight"]) for layer in layers]
    torch.manual_seed(1)
    down = torch.randn(4, state[f"{layers[0]}.weight"].shape[1]) * 0.3
    up = torch.randn(sum(heights), 4) * 0.3
    lora = {f"{target}.lora_A.weight": down, f"{target}.lora_B.weight": up}
    save_file(lora, tmp_path / "style.safetensors")
    for layer, part in zip(layers, (up @ down).split(heights), strict=True):
        state[f"{layer}.weight"] += 0.7 * part
    merged = tmp_path / "merged"
    shutil.copytree(folders[name], merged)
    (file,) = (merged / "transformer").glob("*.safetensors")
    save_file(state, file, metadata={"format": "pt"})

    pipe = sdengine.load(folders[name], loras=[(str(tmp_path / "style.safetensors"), 0.7)])
    expected = latents(sdengine.load(merged))
    assert relative_error(latents(pipe), expected) <= 1e-4
    pipe.set_loras(None)
    assert relative_error(latents(pipe), expected) > 1e-3
