"""Wrong requests to diffusion transformers: an error that says what to do, and never the end of the process."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sdengine
from sdengine import ParameterError, UnsupportedModelError, WeightsError
from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.models import tiny_sd1_folder
from tests.qwen_models import tiny_qwen_folder

from .lumina_models import tiny_lumina_folder
from .pixart_models import SIGMA, tiny_pixart_folder

PROMPT = "a red circle"
SMALL: dict[str, Any] = {"width": 32, "height": 48, "steps": 1, "seed": 1}
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "sd3": tiny_sd3_folder,
    "flux": tiny_flux_folder,
    "kontext": lambda path: tiny_flux_folder(path, pipeline="FluxKontextPipeline"),
    "qwen_image": tiny_qwen_folder,
    "edit": lambda path: tiny_qwen_folder(path, "QwenImageEditPipeline"),
    "lumina2": tiny_lumina_folder,
    "pixart": lambda path: tiny_pixart_folder(path, SIGMA, "PixArtSigmaPipeline"),
}
EDITING = ("kontext", "edit")
"""Those that need a picture."""
OTHERS = tuple(name for name in FOLDERS if name not in EDITING)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in FOLDERS.items()}


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, sdengine.Pipeline]:
    return {name: sdengine.load(folder) for name, folder in folders.items()}


def picture(width: int = 40, height: int = 56) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels.astype(np.uint8))


# ------------------------------ sizes
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((72, 64), "width must be a multiple of 16, not 72; the nearest are 64 and 80"),
        ((64, 65), "height must be a multiple of 16, not 65"),
        ((8, 64), "width must be a whole number from 16"),
        ((64, 0), "height must be a whole number from 16"),
        ((-16, 64), "width must be a whole number from 16"),
    ],
)
def test_sizes_are_whole_patches(
    size: tuple[int, int], message: str, pipes: dict[str, sdengine.Pipeline]
) -> None:
    for name in OTHERS:
        with pytest.raises(ParameterError, match=message):
            pipes[name].generate(PROMPT, steps=1, width=size[0], height=size[1])


@pytest.mark.parametrize("name", OTHERS)
def test_latents_are_whole_patches(name: str, pipes: dict[str, sdengine.Pipeline]) -> None:
    pipe = pipes[name]
    text = pipe.encode_prompt(PROMPT)
    for shape in ((7, 8), (8, 7), (0, 8)):
        with pytest.raises(ParameterError):
            pipe.predict(np.zeros((1, pipe.model.latents.channels, *shape), np.float32), 1.0, text)
    with pytest.raises(ParameterError):
        pipe.predict(np.zeros((1, 5, 8, 8), np.float32), 1.0, text)


@pytest.mark.parametrize("name", OTHERS)
def test_the_smallest_picture(name: str, pipes: dict[str, sdengine.Pipeline]) -> None:
    run = pipes[name].generate(PROMPT, steps=1, width=16, height=16, seed=1)
    assert run.image.size == (16, 16)
    assert np.isfinite(run.latents).all()


# ------------------------------ references
@pytest.mark.parametrize("name", EDITING)
def test_an_editing_model_needs_a_picture(name: str, pipes: dict[str, sdengine.Pipeline]) -> None:
    with pytest.raises(ParameterError, match="edits a picture: give the one to edit as image="):
        pipes[name].generate(PROMPT, **SMALL)


@pytest.mark.parametrize("name", EDITING)
@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], "0 references were given; .* takes 1 to 9"),
        ([picture()] * 30, "30 references were given; .* takes 1 to 9"),
        ([Image.new("RGB", (1, 1))], "a reference of 1x1 is too small"),
        ([None], "a picture must be a path"),
        (-1, "a picture must be a path"),
        (["there-is-none.png"], "there is no such file"),
    ],
    ids=["none", "thirty", "tiny", "nothing", "number", "missing"],
)
def test_references_that_are_none(
    name: str, references: Any, message: str, pipes: dict[str, sdengine.Pipeline]
) -> None:
    with pytest.raises(ParameterError, match=message):
        pipes[name].generate(PROMPT, references=references, resize_references=False, **SMALL)


@pytest.mark.parametrize("name", ["kontext", "qwen_image"])
def test_as_many_references_as_there_may_be(name: str, pipes: dict[str, sdengine.Pipeline]) -> None:
    """An operator of ggml reads nine tensors at most, and the latents are one more."""
    given = [picture(32 + 32 * (i % 2), 32) for i in range(9)]
    found = pipes[name].generate(PROMPT, references=given, resize_references=False, **SMALL)
    assert np.isfinite(found.latents).all()
    other = [*given[:8], picture(64, 64)]
    changed = pipes[name].generate(PROMPT, references=other, resize_references=False, **SMALL)
    assert not np.array_equal(found.latents, changed.latents)


@pytest.mark.parametrize("name", ["sd3", "lumina2", "pixart"])
def test_families_that_look_at_nothing(name: str, pipes: dict[str, sdengine.Pipeline]) -> None:
    with pytest.raises(ParameterError, match=r"looks at no references; .*Kontext"):
        pipes[name].generate(PROMPT, references=[picture()], **SMALL)


# ------------------------------ parts and adapters
def test_parts_of_stable_diffusion_1(folders: dict[str, Path], tmp_path: Path) -> None:
    sd1 = tiny_sd1_folder(tmp_path / "sd1")
    for name, folder in folders.items():
        if name != "pixart":
            with pytest.raises((ParameterError, WeightsError), match="vae|autoencoder"):
                sdengine.load(folder, vae=sd1 / "vae")
        with pytest.raises((ParameterError, WeightsError), match="holds no text_encoder"):
            sdengine.load(folder, text_encoders=sd1 / "unet")


SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_lora_of_another_family(
    name: str, pipes: dict[str, sdengine.Pipeline], tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    save_file(
        {
            f"{SDXL}.lora_down.weight": torch.zeros(4, 2048),
            f"{SDXL}.lora_up.weight": torch.zeros(640, 4),
        },
        path,
    )
    with pytest.raises(WeightsError, match=r"seems to be for .*Stable Diffusion XL"):
        pipes[name].set_loras([path])


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (("double_stream_modulation_img.lin.weight", "img_in.weight"), "FLUX.2"),
        (("distilled_guidance_layer.in_proj.weight", "img_in.weight"), "Chroma"),
        (("all_x_embedder.2-1.weight",), "Z-Image"),
        (("cap_embedder.0.weight", "layers.0.attention.wk_y.weight"), "Lumina-Next"),
        (("caption_projection.0.linear.weight",), "HiDream-I1"),
        (("llm.layers.0.self_attn.qkv_proj.weight", "input_x_embedder.proj.weight"), "OmniGen"),
        (("ref_image_patch_embedder.weight",), "OmniGen2"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_families_that_are_refused_by_name(
    names: tuple[str, ...], title: str, prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    more = [f"blocks.{i}.weight" for i in range(9)]
    save_file({prefix + name: torch.zeros(4, 4) for name in (*names, *more)}, path)
    with pytest.raises(UnsupportedModelError, match=f"this is {title}; sdengine runs .*FLUX.1 dev"):
        sdengine.load(path)


# ------------------------------ damaged files
FUZZ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
import numpy as np, sdengine
refused = 0
for folder in sys.argv[1:]:
    try:
        pipe = sdengine.load(folder, threads=1)
        latents = np.zeros((1, pipe.model.latents.channels, 8, 8), np.float32)
        pipe.predict(latents, 1.0, pipe.encode_prompt("a circle"))
    except sdengine.SDEngineError as error:
        assert str(error)
        refused += 1
print("refused", refused)
"""


def damaged(blob: bytes, rng: random.Random) -> bytes:
    """A file cut short, or with other digits in its header."""
    size = 8 + int.from_bytes(blob[:8], "little")
    if rng.random() < 0.2:
        return blob[: rng.randrange(len(blob))]
    data = bytearray(blob)
    digits = [at for at in range(8, size) if 48 <= data[at] <= 57]
    for _ in range(rng.choice((1, 2, 6))):
        data[rng.choice(digits)] = rng.choice(b"0019")
    return bytes(data)


@pytest.mark.parametrize("name", ["flux", "qwen_image", "lumina2", "pixart"])
def test_damaged_files(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """In a process of their own with little memory: each is refused, or runs."""
    rng, made = random.Random(name), []
    for number in range(24):
        folder = tmp_path / str(number)
        folder.mkdir()
        broken = rng.choice(["transformer", "transformer", "text_encoder", "vae"])
        for part in folders[name].iterdir():
            if part.name != broken:
                (folder / part.name).symlink_to(part)
                continue
            (folder / part.name).mkdir()
            for file in part.iterdir():
                content = file.read_bytes()
                if file.suffix == ".safetensors":
                    content = damaged(content, rng)
                (folder / part.name / file.name).write_bytes(content)
        made.append(str(folder))
    result = subprocess.run(
        [sys.executable, "-c", FUZZ, *made], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) >= 12


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen_image", "lumina2", "pixart"])
def test_matrices_without_rows_or_columns(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = next((folders[name] / "transformer").glob("*.safetensors"))
    state = load_file(source)
    config = (source.parent / "config.json").read_bytes()
    matrices = [key for key, tensor in state.items() if tensor.dim() == 2]
    for number, key in enumerate(matrices[:: max(1, len(matrices) // 12)]):
        for shape in ((0, state[key].shape[1]), (state[key].shape[0], 0)):
            folder = tmp_path / f"{number}-{shape[0]}"
            (folder / "transformer").mkdir(parents=True)
            for part in folders[name].iterdir():
                if part.name != "transformer":
                    (folder / part.name).symlink_to(part)
            (folder / "transformer" / "config.json").write_bytes(config)
            save_file({**state, key: torch.zeros(shape)}, folder / "transformer" / source.name)
            with pytest.raises(sdengine.SDEngineError):
                sdengine.load(folder)
