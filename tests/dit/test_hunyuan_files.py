"""Hunyuan-DiT in every published layout: full-size inventories, families, parts, conversion."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanDiT2DModel
from safetensors.torch import load_file, save_file

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError, TokenizerError, UnsupportedModelError, WeightsError
from sdengine.families import HUNYUAN_DIT, HUNYUAN_DIT_1_1, Family
from sdengine.formats import open_index
from sdengine.keys import NameMap, hunyuan_dit
from sdengine.loading.bind import bind
from sdengine.loading.detection import detect
from sdengine.loading.locate import locate
from sdengine.loading.networks import NETWORKS
from sdengine.sampling import SAMPLERS, SCHEDULES
from tests.inventories import index_of, with_prefix
from tests.parity.conftest import relative_error
from tests.parity.dit import config_of, json_of, located, network_of, rounded, tiny, write_gguf
from tests.text_models import t5_to_gguf
from tests.text_models import write_gguf as write_text_gguf

from . import hunyuan_models
from .hunyuan_models import NEW, OLD, T5_WIDTH, tiny_hunyuan_folder, to_original
from .test_hunyuan import SHORT, inputs, reference

State = dict[str, torch.Tensor]
TABLES = (hunyuan_dit.ORIGINAL, hunyuan_dit.DIFFUSERS)

# Configs of the published diffusers folders.
FULL: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 40,
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "hidden_size": 1408,
    "mlp_ratio": 4.3637,
    "cross_attention_dim": 1024,
    "cross_attention_dim_t5": 2048,
    "pooled_projection_dim": 1024,
    "text_len": 77,
    "text_len_t5": 256,
    "activation_fn": "gelu-approximate",
    "learn_sigma": True,
    "norm_type": "layer_norm",
}
MODELS: dict[str, tuple[dict[str, Any], Family]] = {
    "Hunyuan-DiT 1.1": (FULL, HUNYUAN_DIT_1_1),
    "Hunyuan-DiT 1.2": (FULL | {"use_style_cond_and_image_meta_size": False}, HUNYUAN_DIT),
}


@cache
def full_size(model: str) -> State:
    with torch.device("meta"):
        return dict(HunyuanDiT2DModel(**MODELS[model][0]).state_dict())


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_maps(model: str) -> None:
    states = (to_original(full_size(model)), full_size(model))
    configs = []
    for table, state in zip(TABLES, states, strict=True):
        index = index_of(with_prefix("model.diffusion_model.", state))
        found = located(index, "hunyuan_dit", TABLES)
        assert found.table is table
        config = config_of(found)
        bindings, left = bind(found, _core.parameters("hunyuan_dit", config))
        assert left == ()
        elements = sum(t.numel() for t in full_size(model).values())
        assert sum(b.entry.elements for b in bindings) == elements
        assert config_of(found, MODELS[model][0]) == config  # the published config agrees
        with pytest.raises(WeightsError, match="num_layers = 7, the tensors show"):
            config_of(found, MODELS[model][0] | {"num_layers": 7})
        names = NameMap.of_network(found.table, config)
        for name, source in found.sources.items():
            assert (source.name, source.part) in {
                (target.name, target.part) for target in names.to_file(name)
            }
        configs.append(config)
    assert (
        configs[0]
        == configs[1]
        == {
            **{"in_channels": 4, "out_channels": 8, "width": 1408, "head_dim": 88, "layers": 40},
            **{"ff_width": 6144, "context_width": 1024, "context_tokens": 77},
            **{"context_2_width": 2048, "context_2_tokens": 256, "pooled_text_width": 1024},
            "styles": int(model.endswith("1.1")),
        }
    )


def test_what_tells_the_versions_apart() -> None:
    widths = {m: full_size(m)["time_extra_emb.extra_embedder.linear_1.weight"] for m in MODELS}
    assert [w.shape[1] for w in widths.values()] == [3968, 1024]
    assert (HUNYUAN_DIT_1_1.betas.end, HUNYUAN_DIT.betas.end) == (0.03, 0.018)
    for family in (HUNYUAN_DIT, HUNYUAN_DIT_1_1):
        assert family.betas.steps_offset == 1
        assert family.defaults.sampler in SAMPLERS
        assert family.defaults.schedule in SCHEDULES
        assert (family.defaults.steps, family.defaults.guidance) == (50, 5.0)
        assert [use.component for use in family.text] == list(family.tokenizers)


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_distilled_members_are_told_by_their_names(
    folders: dict[str, Path], version: str, tmp_path: Path
) -> None:
    folder = tmp_path / f"HunyuanDiT-v{version}-Diffusers-Distilled"
    folder.symlink_to(folders["hunyuan_dit" if version == "1.2" else "hunyuan_dit_1_1"])
    plan = sdengine.load(folder).model
    assert (plan.title, plan.defaults.steps) == (f"Hunyuan-DiT {version} Distilled", 25)


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_is_its_family(model: str) -> None:
    layouts = {
        "": to_original(full_size(model)),
        "model.diffusion_model.": to_original(full_size(model)),
        "transformer/": full_size(model),
    }
    for prefix, state in layouts.items():
        found = detect(index_of(with_prefix(prefix, state)))
        assert (found.family, found.title) == (MODELS[model][1], model), prefix


def test_full_size_text_encoders() -> None:
    from transformers import BertConfig, BertModel, MT5Config, MT5EncoderModel

    with torch.device("meta"):
        # hfl/chinese-roberta-wwm-ext-large with Hunyuan-DiT's words; google/mt5-xl.
        bert = BertModel(
            BertConfig(
                vocab_size=47020,
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
            )
        ).state_dict()
        t5 = MT5EncoderModel(
            MT5Config(vocab_size=250112, d_model=2048, d_ff=5120, num_layers=24, num_heads=32)
        ).state_dict()
    states = {"text_encoder": bert, "text_encoder_2": t5}
    prefixes = {
        "text_encoder": (
            "text_encoder/",
            "text_encoders.hydit_clip.transformer.bert.",
            "bert.",
            "",
        ),
        "text_encoder_2": ("text_encoder_2/", "text_encoders.mt5xl.transformer.", ""),
    }
    for name, state in states.items():
        component = HUNYUAN_DIT.component(name)
        for prefix in prefixes[name]:
            found = locate(index_of(with_prefix(prefix, state)), component)
            assert found is not None, prefix
            config = config_of(found)
            bindings, _ = bind(found, _core.parameters(component.kind, config))
            assert config["layers"] == 24
            assert config["heads"] == {"text_encoder": 16, "text_encoder_2": 32}[name]
            titles = ("a BERT text encoder", "an mT5 text encoder")
            assert detect(index_of(with_prefix(prefix, state))).title in titles
            unread = {k for k in state if k.startswith("pooler.") or "embed_tokens" in k}
            used = sum(tensor.numel() for key, tensor in state.items() if key not in unread)
            assert sum(b.entry.elements for b in bindings) == used


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": 4}, "patch_size = 4"),
        ({"activation_fn": "geglu"}, "activation_fn = 'geglu'"),
        ({"learn_sigma": False}, "learn_sigma = False"),
    ],
)
def test_configs_that_contradict(changed: dict[str, Any], message: str) -> None:
    found = located(index_of(full_size("Hunyuan-DiT 1.2")), "hunyuan_dit", TABLES)
    with pytest.raises((UnsupportedModelError, WeightsError), match=message):
        config_of(found, FULL | changed)


@pytest.mark.parametrize(
    "changed",
    [
        *({"layers": 39}, {"head_dim": 90}, {"head_dim": 22}),
        *({"out_channels": 6}, {"context_tokens": 0}, {"context_2_width": 2044}),
    ],
)
def test_figures_that_no_denoiser_has(changed: dict[str, int]) -> None:
    found = located(index_of(full_size("Hunyuan-DiT 1.2")), "hunyuan_dit", TABLES)
    config = config_of(found)
    with pytest.raises(WeightsError):
        NETWORKS["hunyuan_dit"].check({**config, **changed})


# ------------------------------------------------------------------------------------ parts, files
@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hunyuan")
    return {
        "hunyuan_dit": tiny_hunyuan_folder(root / "new", NEW, 0.018),
        "hunyuan_dit_1_1": tiny_hunyuan_folder(root / "old", OLD, 0.03),
    }


def latents(pipe: sdengine.Pipeline) -> np.ndarray:
    return pipe.generate(
        "a red circle, 一只猫", "low quality", steps=2, seed=3, width=64, height=64
    ).latents


@pytest.mark.parametrize("name", ["hunyuan_dit", "hunyuan_dit_1_1"])
def test_a_converted_model_is_the_same_model(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    expected = sdengine.load(folders[name])
    exact, small = tmp_path / "exact.gguf", tmp_path / "small.gguf"
    sdengine.convert(folders[name], exact, weight_type="f32")
    again = sdengine.load(exact)
    assert again.model.family.name == name
    assert again.model.unused == ()
    assert asdict(again.model.scheduler) == asdict(expected.model.scheduler)
    assert again.model.defaults == expected.model.defaults
    assert {n: p.config for n, p in again.model.components.items()} == {
        n: p.config for n, p in expected.model.components.items()
    }
    assert np.array_equal(latents(again), latents(expected))
    done = sdengine.convert(folders[name], small, weight_type="q8_0")
    # Whatever every token passes through stays as it is.
    written = {n: t for n, t in done.types.items() if "padding" in n or "pooler" in n}
    assert len(written) == 10
    assert 0 < relative_error(latents(sdengine.load(small)), latents(expected)) < 0.3
    sdengine.convert(exact, tmp_path / "twice.gguf", weight_type="f32")
    assert exact.read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def state_of(folder: Path) -> State:
    """The tensors of a component's folder."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def save(state: State, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def apart(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.1 as its publisher has it: a denoiser, and beside it the folders of its other parts."""
    source, path = folders["hunyuan_dit_1_1"], tmp_path_factory.mktemp("apart")
    save(to_original(state_of(source / "transformer")), path / "model" / "ema.safetensors")
    shutil.copytree(source / "text_encoder", path / "clip_text_encoder")
    shutil.copytree(source / "tokenizer", path / "tokenizer")
    shutil.copytree(source / "text_encoder_2", path / "mt5")
    for file in (source / "tokenizer_2").iterdir():
        if file.name != "config.json":
            shutil.copy(file, path / "mt5")
    shutil.copytree(source / "vae", path / "sdxl-vae-fp16-fix")
    return path


def exact_as(found: sdengine.Pipeline, folder: Path) -> None:
    """The single file has no scheduler config: what it says must be the family's."""
    expected = sdengine.load(folder)
    ours, theirs = asdict(found.model.scheduler), asdict(expected.model.scheduler)
    for key in ("prediction", "beta_kind", "beta_start", "beta_end", "steps_offset"):
        assert ours[key] == theirs[key], key
    assert found.model.unused == ()
    assert np.array_equal(latents(found), latents(expected))


def test_the_publisher_s_layout(folders: dict[str, Path], apart: Path) -> None:
    encoders = [apart / "mt5", apart / "clip_text_encoder"]
    named = dict(zip(("text_encoder_2", "text_encoder"), encoders, strict=True))
    for given in (encoders, encoders[::-1], named):
        pipe = sdengine.load(
            apart / "model" / "ema.safetensors",
            text_encoders=given,
            vae=apart / "sdxl-vae-fp16-fix",
        )
        exact_as(pipe, folders["hunyuan_dit_1_1"])


def comfy(folder: Path) -> State:
    """A whole model in one file, as ComfyUI saves it; BERT's words are ComfyUI's own."""
    from tests.renaming import vae_to_ldm

    words = (folder / "tokenizer_2" / "spiece.model").read_bytes()
    return {
        **with_prefix("model.diffusion_model.", to_original(state_of(folder / "transformer"))),
        **with_prefix("vae.", vae_to_ldm(state_of(folder / "vae"))),
        **with_prefix(
            "text_encoders.hydit_clip.transformer.bert.", state_of(folder / "text_encoder")
        ),
        **with_prefix("text_encoders.mt5xl.transformer.", state_of(folder / "text_encoder_2")),
        "text_encoders.mt5xl.spiece_model": torch.frombuffer(bytearray(words), dtype=torch.uint8),
        "text_encoders.mt5xl.logit_scale": torch.ones(()),
    }


def test_one_file_of_comfyui(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))  # empty
    folder = folders["hunyuan_dit"]
    whole = comfy(folder)
    path = save(whole, tmp_path / "hunyuan_dit.safetensors")
    with pytest.raises(TokenizerError, match="text_encoder needs the tokenizer"):
        latents(sdengine.load(path))
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    exact_as(sdengine.load(path), folder)
    away = tmp_path / "away"
    away.mkdir()
    sdengine.convert(path, away / "one.gguf", weight_type="f32")
    exact_as(sdengine.load(away / "one.gguf"), folder)
    whole["text_encoders.mt5xl.spiece_model"] = torch.zeros(8)
    odd = save(whole, tmp_path / "odd.safetensors")
    with pytest.raises(TokenizerError, match="expected the bytes of a SentencePiece model"):
        latents(sdengine.load(odd))


def test_an_encoder_in_a_gguf(apart: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """mT5 under llama.cpp's names, with its tokenizer's folder beside it."""
    tensors = t5_to_gguf(state_of(apart / "mt5"))
    write_text_gguf(tmp_path / "mt5.gguf", "t5encoder", tensors)
    shutil.copytree(folders["hunyuan_dit_1_1"] / "tokenizer_2", tmp_path / "tokenizer_2")
    pipe = sdengine.load(
        apart / "model" / "ema.safetensors",
        text_encoders=[tmp_path / "mt5.gguf", apart / "clip_text_encoder"],
        vae=apart / "sdxl-vae-fp16-fix",
    )
    assert pipe.model.components["text_encoder_2"].dialect == "llama.cpp, T5"
    found = latents(pipe)
    assert relative_error(found, latents(sdengine.load(folders["hunyuan_dit_1_1"]))) <= 1e-4


def test_tokenizers_in_the_local_cache(
    apart: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the published folders are taken, and no T5 that has other words."""
    source = folders["hunyuan_dit_1_1"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--google--t5-v1_1-xxl" / "snapshots" / "1"
    shutil.copytree(source / "tokenizer_2", snapshot)
    for part in ("clip_text_encoder", "mt5"):
        state = state_of(apart / part)
        save(state, tmp_path / part / "model.safetensors")
        shutil.copy(apart / part / "config.json", tmp_path / part)
    given: dict[str, Any] = {
        "text_encoders": [tmp_path / "mt5", tmp_path / "clip_text_encoder"],
        "vae": apart / "sdxl-vae-fp16-fix",
    }
    alone = tmp_path / "alone" / "ema.safetensors"
    alone.parent.mkdir()
    shutil.copy(apart / "model" / "ema.safetensors", alone)
    with pytest.raises(TokenizerError, match="needs the tokenizer that it was published with"):
        latents(sdengine.load(alone, **given))
    hub = tmp_path / "hub" / "models--Tencent-Hunyuan--HunyuanDiT-v1.1-Diffusers"
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(source / name, hub / "snapshots" / "1" / name)
    exact_as(sdengine.load(alone, **given), source)


def test_parts_that_do_not_fit(apart: Path, tmp_path: Path) -> None:
    model, vae = apart / "model" / "ema.safetensors", apart / "sdxl-vae-fp16-fix"
    with pytest.raises(WeightsError, match="also needs a BERT text encoder and an mT5-XL"):
        sdengine.load(model, vae=vae)
    with pytest.raises(ParameterError, match="holds no text_encoder of Hunyuan-DiT"):
        sdengine.load(model, vae=vae, text_encoders={"text_encoder": apart / "mt5"})
    other = hunyuan_models.bert(hidden_size=32)
    other.save_pretrained(tmp_path / "bert")
    with pytest.raises(WeightsError, match="make a context of 32 columns"):
        sdengine.load(model, vae=vae, text_encoders=[tmp_path / "bert", apart / "mt5"])
    from tests.dit_models import _t5

    _t5(tmp_path, "text_encoder_2", 2 * T5_WIDTH, 3)
    given = [apart / "clip_text_encoder", tmp_path / "text_encoder_2"]
    with pytest.raises(WeightsError, match="make a text for context_2 of 64 columns"):
        sdengine.load(model, vae=vae, text_encoders=given)
    for part, title in (("clip_text_encoder", "a BERT text encoder"), ("mt5", "T5")):
        assert title in detect(open_index(apart / part)).reason


def test_a_t5_tokenizer_does_not_serve_bert(apart: Path, tmp_path: Path) -> None:
    for part in ("model", "clip_text_encoder", "mt5", "sdxl-vae-fp16-fix"):
        shutil.copytree(apart / part, tmp_path / part)
    shutil.copytree(apart / "mt5", tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*.safe*"))
    with pytest.raises(TokenizerError):
        latents(
            sdengine.load(
                tmp_path / "model" / "ema.safetensors",
                text_encoders=[tmp_path / "mt5", tmp_path / "clip_text_encoder"],
                vae=tmp_path / "sdxl-vae-fp16-fix",
            )
        )


@pytest.mark.parametrize("weight_type", ["q8_0", "q4_0"])
def test_quantized_files(weight_type: str, tmp_path: Path) -> None:
    """What is left of the weights is computed as diffusers computes it."""
    wide = {"num_attention_heads": 8, "attention_head_dim": 12, "hidden_size": 96, "mlp_ratio": 4.0}
    model = tiny(HunyuanDiT2DModel, OLD | SHORT | wide | {"num_layers": 4})
    state = rounded(dict(model.state_dict()), weight_type)
    model.load_state_dict(state)
    write_gguf(state, tmp_path / "model.gguf", weight_type)
    found = located(open_index(tmp_path / "model.gguf"), "hunyuan_dit", TABLES)
    network, _store = network_of(found, config_of(found, json_of(model)))
    given = inputs(OLD)
    assert relative_error(network.run(given)["prediction"], reference(model, given)) <= 2e-5


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("lora_unet_blocks_1_attn1_Wqkv", [f"blocks.1.attn1.to_{x}" for x in "qkv"]),
        ("base_model.model.blocks.2.attn2.kv_proj", [f"blocks.2.attn2.to_{x}" for x in "kv"]),
        ("transformer.blocks.5.attn2.to_q", ["blocks.5.attn2.to_q"]),
        ("transformer.blocks.4.skip_linear", ["blocks.4.skip_linear"]),
    ],
)
def test_loras(folders: dict[str, Path], target: str, layers: list[str], tmp_path: Path) -> None:
    """A LoRA beside the weights gives what weights with it inside give."""
    folder = folders["hunyuan_dit"]
    state = state_of(folder / "transformer")
    heights = [len(state[f"{layer}.weight"]) for layer in layers]
    torch.manual_seed(1)
    down = torch.randn(4, state[f"{layers[0]}.weight"].shape[1]) * 0.3
    up = torch.randn(sum(heights), 4) * 0.3
    kohya = target.startswith("lora_")
    names = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    lora = {f"{target}.{name}.weight": t for name, t in zip(names, (down, up), strict=True)}
    save(lora, tmp_path / "style.safetensors")
    for layer, part in zip(layers, (up @ down).split(heights), strict=True):
        state[f"{layer}.weight"] += 0.7 * part
    merged = tmp_path / "merged"
    shutil.copytree(folder, merged)
    (file,) = (merged / "transformer").glob("*.safetensors")
    save_file(state, file, metadata={"format": "pt"})

    pipe = sdengine.load(folder, loras=[(str(tmp_path / "style.safetensors"), 0.7)])
    expected = latents(sdengine.load(merged))
    assert relative_error(latents(pipe), expected) <= 1e-4
    pipe.set_loras(None)
    assert relative_error(latents(pipe), expected) > 1e-3


def test_a_damaged_denoiser(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["hunyuan_dit"], folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    state = load_file(file)
    del state["blocks.4.skip_norm.bias"]
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"blocks\.4\.skip_norm\.bias"):
        sdengine.load(folder)
    state["blocks.4.skip_norm.bias"] = torch.zeros(48)
    del state["text_embedding_padding"]
    save_file(state, file)
    with pytest.raises((WeightsError, UnsupportedModelError)):
        sdengine.load(folder)
