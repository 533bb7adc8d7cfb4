"""Every member of the UNet families against diffusers and transformers, float32: relative L2 error <= 1e-4.

The networks are run by themselves, so that nothing but their configs and weights is under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdengine import _core
from sdengine.formats import open_index
from sdengine.loading import detect
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of
from tests import unet_inventories, unet_models
from tests.models import component_state_dict, randomise
from tests.renaming import clip_to_openclip, unet_to_ldm
from tests.unet_models import CLIP, TINY, State, dequantized, write_gguf, write_safetensors

from .conftest import relative_error

LIMIT = 1e-4
Arrays = Mapping[str, np.ndarray]


@cache
def device() -> _core.Device:
    return _core.Device.cpu(1)


class Network:
    """A component of a file, loaded as `sdengine.load` does."""

    def __init__(self, path: Path, component: str, family: str | None = None) -> None:
        found = detect(open_index(path), family)
        assert found.family is not None, found.reason
        self.family = found.family
        located = found.components[component]
        config = found.configs.get(component) or config_of(located, found.family)
        kind = located.component.kind
        bindings, left = bind(located, _core.parameters(kind, config))
        assert left == ()
        store = _core.WeightStore()
        for b in bindings:
            entry = b.entry
            place = (entry.path, entry.offset, entry.nbytes, entry.strides, b.transpose)
            store.add(b.name, entry.dtype, list(entry.shape), *place)
        self.config = config
        self.native = _core.Network(kind, config, store, device())

    def __call__(self, inputs: Arrays, **options: int) -> dict[str, np.ndarray]:
        return self.native.run(dict(inputs), options)


class Folders:
    """Tiny members as diffusers folders, each written once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> Path:
        path = self.root / name
        return path if path.exists() else unet_models.tiny_folder(path, name, seed=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


# ------------------------------ UNets
def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conditions(name: str, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Random inputs of the native UNet of a member, and what the reference takes instead."""
    unet = TINY[name].unet
    context = unet.get("encoder_hid_dim") or unet["cross_attention_dim"]
    inputs = {
        "latents": noise(batch, unet["in_channels"], height, width, seed=1),
        "timesteps": np.linspace(431.0, 7.0, batch, dtype=np.float32),
        "context": noise(batch, 9, context, seed=2),
    }
    if "time_cond_proj_dim" in unet:
        inputs["guidance_embedding"] = noise(batch, unet["time_cond_proj_dim"], seed=3)
    if "projection_class_embeddings_input_dim" in unet:
        count = 5 if name == "refiner" else 6
        pooled = unet["projection_class_embeddings_input_dim"] - 256 * count
        inputs["pooled"] = noise(batch, pooled, seed=4)
        inputs["sizes"] = np.arange(batch * count, dtype=np.float32).reshape(batch, count) * 64
    return inputs


def native_inputs(inputs: Arrays) -> dict[str, np.ndarray]:
    """The pooled text with the sinusoids of the numbers behind it (SDXL)."""
    result = {n: a for n, a in inputs.items() if n not in {"pooled", "sizes"}}
    if "pooled" in inputs:
        sizes = torch.tensor(inputs["sizes"])
        waves = get_timestep_embedding(sizes.flatten(), 256, True, 0).reshape(len(sizes), -1)
        joined = np.concatenate([inputs["pooled"], waves.numpy()], axis=1)
        result["class_embedding"] = np.ascontiguousarray(joined, np.float32)
    return result


def reference(unet: torch.nn.Module, inputs: Arrays) -> np.ndarray:
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    added = None
    if "pooled" in tensors:
        added = {"text_embeds": tensors["pooled"], "time_ids": tensors["sizes"]}
    with torch.no_grad():
        found = unet(
            tensors["latents"],
            tensors["timesteps"],
            tensors["context"],
            timestep_cond=tensors.get("guidance_embedding"),
            added_cond_kwargs=added,
        )
    return found.sample.numpy()


SIZES = {"square": (1, 12, 12), "wide, batch": (2, 8, 16)}


@pytest.mark.parametrize("name", TINY)
def test_unets(folders: Folders, name: str) -> None:
    network = Network(folders[name], "unet")
    unet = UNet2DConditionModel.from_pretrained(folders[name] / "unet").eval()
    for batch, height, width in SIZES.values():
        inputs = conditions(name, batch, height, width)
        found = network(native_inputs(inputs))["prediction"]
        assert relative_error(found, reference(unet, inputs)) <= LIMIT


def test_tokens_that_go_through_in_groups(folders: Folders) -> None:
    """1,092 tokens of three pictures are three groups of a feed-forward network, across the pictures."""
    network = Network(folders["sd1"], "unet")
    unet = UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet").eval()
    inputs = conditions("sd1", 3, 14, 26)
    found = network(inputs)["prediction"]
    assert relative_error(found, reference(unet, inputs)) <= LIMIT
    for picture in range(3):
        alone = network({key: array[picture : picture + 1] for key, array in inputs.items()})
        assert np.array_equal(alone["prediction"][0], found[picture])


# ------------------------------ text encoders
ENCODERS = [(n, e) for n in ("sd1", "sd2", "sdxl", "refiner") for e in TINY[n].encoders]


def token_ids(words: int) -> np.ndarray:
    """Two texts of different lengths, padded with 0 and with the end token."""
    ids = np.random.default_rng(5).integers(1, words - 2, (2, 77), dtype=np.int32)
    ids[:, 0] = words - 2
    ids[0, 12:], ids[1, 40:] = words - 1, 0
    ids[1, 40] = words - 1
    return ids


def clip_inputs(ids: np.ndarray) -> dict[str, np.ndarray]:
    ends = np.argmax(ids == ids.max(), axis=1) + np.arange(len(ids)) * ids.shape[1]
    return {"ids": ids, "last_token": ends.astype(np.int32)}


@pytest.mark.parametrize(("name", "component"), ENCODERS)
def test_text_encoders_as_their_family_reads_them(
    folders: Folders, name: str, component: str
) -> None:
    network = Network(folders[name], component)
    use = next(u for u in network.family.text if u.component == component)
    kind = CLIPTextModelWithProjection if component in TINY[name].projected else CLIPTextModel
    encoder = kind.from_pretrained(folders[name] / component).eval()
    ids = token_ids(network.config["vocab_size"])
    with torch.no_grad():
        states = encoder(torch.tensor(ids), output_hidden_states=True)
        hidden = states.hidden_states[-1 - use.skip]
        if use.final_norm:
            hidden = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
    found = network(clip_inputs(ids), skip=use.skip, final_norm=int(use.final_norm))
    assert relative_error(found["hidden"], hidden.numpy()) <= LIMIT
    if use.pooled:
        assert relative_error(found["pooled"], states.text_embeds.numpy()) <= LIMIT


def test_what_each_family_reads() -> None:
    """diffusers' pipelines: the layer, the last norm, the pooled text, the padding."""
    read = {
        family.name: [(u.component, u.skip, u.final_norm, u.pooled, u.pad) for u in family.text]
        for family in (f for f, _, _ in unet_inventories.MEMBERS.values())
    }
    assert read == {
        "sd1": [("text_encoder", 0, True, False, None)],
        # The layer before the last of 24, which is the last of the 23 that are loaded.
        "sd2": [("text_encoder", 0, True, False, 0)],
        "sdxl": [
            ("text_encoder", 1, False, False, None),
            ("text_encoder_2", 1, False, True, 0),
        ],
        "sdxl_refiner": [("text_encoder_2", 1, False, True, 0)],
        "kolors": [("text_encoder", 1, False, True, None)],
    }


# ------------------------------ layouts
def ldm_unet(folder: Path) -> State:
    return unet_to_ldm(component_state_dict(folder, "unet"))


def from_open_clip(folder: Path, name: str) -> State:
    """What stable-diffusion.cpp makes of a single file whose encoders have OpenCLIP's names."""
    state = unet_models.single_file(folder, name)
    return {unet_inventories.sd_cpp_name(n): tensor for n, tensor in state.items()}


WHOLE: dict[str, Callable[[Path, str], State]] = {
    "single file": unet_models.single_file,
    "sd.cpp": lambda f, n: unet_models.sd_cpp_names(f, n, unet_models.OLD_SD_CPP),
    "sd.cpp, newer": lambda f, n: unet_models.sd_cpp_names(f, n, unet_models.NEW_SD_CPP),
    "sd.cpp, OpenCLIP": from_open_clip,
}


WHOLE_CASES = [(n, kind) for n in ("sd1", "sd2", "sdxl", "refiner") for kind in WHOLE]


@pytest.mark.parametrize(("name", "layout"), [*WHOLE_CASES, ("sd2", "sgm")])
def test_whole_files_give_identical_results(
    folders: Folders, name: str, layout: str, tmp_path: Path
) -> None:
    build = {**WHOLE, "sgm": unet_models.sgm_file}[layout]
    state = build(folders[name], name)
    write = write_gguf if layout.startswith("sd.cpp") else write_safetensors
    path = write(state, tmp_path / "model.file")
    inputs = native_inputs(conditions(name, 1, 8, 8))
    expected, found = Network(folders[name], "unet"), Network(path, "unet")
    assert np.array_equal(found(inputs)["prediction"], expected(inputs)["prediction"])
    for component in TINY[name].encoders:
        expected, found = Network(folders[name], component), Network(path, component)
        ids = clip_inputs(token_ids(found.config["vocab_size"]))
        assert np.array_equal(found(ids)["hidden"], expected(ids)["hidden"])
        assert component not in TINY[name].projected or np.array_equal(
            found(ids)["pooled"], expected(ids)["pooled"]
        )


def folded(state: State) -> State:
    """city96's rows of 256, without the metadata that undoes them (calcuis)."""
    return {
        name: t.reshape(-1, 256)
        if t.ndim > 1 and t.numel() >= 512 and t.numel() % 256 == 0 and t.shape[-1] % 256
        else t
        for name, t in state.items()
    }


UNETS: dict[str, Callable[[Path], State]] = {
    "LDM": ldm_unet,
    "diffusers": lambda folder: component_state_dict(folder, "unet"),
    "LDM, folded": lambda folder: folded(ldm_unet(folder)),
    "diffusers, folded": lambda folder: folded(component_state_dict(folder, "unet")),
    "stride 3": lambda folder: unet_inventories.stride_3(ldm_unet(folder)),
}
ALONE = [name for name in TINY if not name.endswith(("inpaint", "pix2pix", "depth", "vega"))]
PRUNED = ("small-sd", "tiny-sd", "sdxs", "sd2-tiny", "sdxs-0.9")


@pytest.mark.parametrize("name", ALONE)
def test_unets_alone_give_identical_results(folders: Folders, name: str, tmp_path: Path) -> None:
    inputs = native_inputs(conditions(name, 1, 8, 8))
    reference = Network(folders[name], "unet")
    expected = reference(inputs)["prediction"]
    for layout, build in UNETS.items():
        if layout == "stride 3" and name not in PRUNED:
            continue
        path = write_gguf(build(folders[name]), tmp_path / "unet.gguf")
        found = Network(path, "unet")
        assert found.family is reference.family
        assert np.array_equal(found(inputs)["prediction"], expected), layout


def test_sd2_reads_the_layer_before_the_last_of_24(tmp_path: Path, folders: Folders) -> None:
    """As OpenCLIP published it and single files have it, with a layer that nothing reads."""
    config = {**CLIP, "hidden_size": 64, "num_attention_heads": 1, "hidden_act": "gelu"}
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(**{**config, "vocab_size": 300, "num_hidden_layers": 24})
    ).eval()
    randomise(encoder, 6)
    state = {f"model.diffusion_model.{n}": t for n, t in ldm_unet(folders["sd2"]).items()}
    clip = clip_to_openclip(encoder.state_dict())
    state |= {f"cond_stage_model.model.{n}": t for n, t in clip.items()}
    network = Network(write_safetensors(state, tmp_path / "m.safetensors"), "text_encoder")
    assert network.config["layers"] == 23
    ids = token_ids(300)
    with torch.no_grad():
        hidden = encoder(torch.tensor(ids), output_hidden_states=True).hidden_states[-2]
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        expected = norm(hidden).numpy()
    assert relative_error(network(clip_inputs(ids))["hidden"], expected) <= LIMIT


def test_quantized_matrices_are_transposed_without_a_second_loss(
    tmp_path: Path, folders: Folders
) -> None:
    """OpenCLIP stores the text projection as [in, out], and blocks run along the rows of a file."""
    state = unet_models.single_file(folders["sdxl"], "sdxl")
    quantized = write_gguf(state, tmp_path / "m.gguf", "q4_0")
    values = dequantized(quantized, tmp_path / "m.safetensors")
    found, expected = (Network(path, "text_encoder_2") for path in (quantized, values))
    ids = clip_inputs(token_ids(found.config["vocab_size"]))
    assert relative_error(found(ids)["pooled"], expected(ids)["pooled"]) <= 1e-5
