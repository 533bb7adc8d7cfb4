"""Stable Diffusion 3 and FLUX.1 with ControlNets against diffusers' pipelines: same folders, prompt, seed and steps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sdengine
from sdengine import ControlNet
from sdengine.control import LoadedControl
from sdengine.errors import ParameterError
from sdengine.loading import plan_model

from .conftest import device, picture, relative_error
from .dit_models import (
    NEGATIVE,
    PROMPT,
    SEED,
    SIZE,
    STEPS,
    Made,
    generate,
    to_stability,
    to_xlabs,
)

LIMIT = 5e-5
FIRST = Image.fromarray(picture(64, 96, 1))
SECOND = Image.fromarray(picture(64, 96, 2))


def run_reference(kind: str, folder: Path, nets: Any, **options: Any) -> np.ndarray:
    """Final latents of a diffusers pipeline."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, kind).from_pretrained(folder, controlnet=nets)
        pipe.set_progress_bar_config(disable=True)
        found = pipe(
            PROMPT,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **SIZE,
            **options,
        ).images
        if kind.startswith("Flux"):
            found = pipe._unpack_latents(
                found, SIZE["height"], SIZE["width"], pipe.vae_scale_factor
            )
    return np.asarray(found)


# ------------------------------ Stable Diffusion 3
@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' pipeline draws the posterior's sample from no generator that it was given; sdengine takes the mode."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )


SD3_CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "one": (("sd3",), {}, {}),
    "half": (
        ("sd3-3",),
        {"controlnet_conditioning_scale": 0.5, "control_guidance_start": 0.25},
        {"control_scales": 0.5, "control_start": 0.25},
    ),
    "8B": (("large",), {"control_guidance_end": 0.5}, {"control_end": 0.5}),
    "two": (
        ("sd3", "sd3"),
        {
            "controlnet_conditioning_scale": [0.7, 0.4],
            "control_guidance_start": [0.0, 0.5],
            "control_guidance_end": [0.75, 1.0],
        },
        {
            "control_scales": [0.7, 0.4],
            "control_start": [0.0, 0.5],
            "control_end": [0.75, 1.0],
        },
    ),
}


@pytest.mark.parametrize("case", SD3_CASES)
@pytest.mark.usefixtures("modes")
def test_stable_diffusion_3(made: Made, case: str) -> None:
    names, theirs, ours = SD3_CASES[case]
    pictures = [FIRST, SECOND][: len(names)]
    expected = run_reference(
        "StableDiffusion3ControlNetPipeline",
        made.sd3,
        made.reference(*names),
        control_image=pictures if len(names) > 1 else FIRST,
        negative_prompt=NEGATIVE,
        guidance_scale=4.5,
        **theirs,
    )
    pipe = sdengine.load(made.sd3, controlnets=[made(name) for name in names])
    found = generate(pipe, guidance_scale=4.5, control_images=pictures, **ours)
    assert relative_error(found, expected) <= LIMIT
    plain = generate(pipe, guidance_scale=4.5, control_scales=0.0)
    assert relative_error(plain, expected) > 10 * LIMIT


@pytest.mark.usefixtures("modes")
def test_edges_for_35_large(made: Made, tmp_path: Path) -> None:
    """Stability AI's file for edges: its number is in the file, its pictures are 0.5 to 128."""
    net = made.reference("large-canny")
    state = to_stability(dict(net.state_dict()), control_type=1)
    path = tmp_path / "net.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    seen = torch.tensor(picture(64, 96, 1)).permute(2, 0, 1)[None] / 255
    expected = run_reference(
        "StableDiffusion3ControlNetPipeline",
        made.sd3,
        net,
        control_image=seen * 255 * 0.5 + 0.5,
        negative_prompt=NEGATIVE,
        guidance_scale=4.5,
    )
    for given in (path, made("large-canny"), ControlNet(made("large"), type="canny")):
        loaded = LoadedControl(given, plan_model(made.sd3), device())
        assert loaded._dit is not None
        assert loaded._dit.edges
    for folder, edges in (("canny/snapshots/1f", True), ("canny/depth", False), ("net", False)):
        link = tmp_path / "named" / folder
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(made("large"))
        loaded = LoadedControl(link, plan_model(made.sd3), device())
        assert loaded._dit is not None
        assert loaded._dit.edges is edges
    pipe = sdengine.load(made.sd3, controlnets=path)
    found = generate(pipe, guidance_scale=4.5, control_images=FIRST)
    assert relative_error(found, expected) <= LIMIT
    for number, name in ((0, "canny"), (2, "depth")):
        other = tmp_path / f"{name}.safetensors"
        state = to_stability(dict(net.state_dict()), control_type=number)
        save_file({n: t.contiguous() for n, t in state.items()}, other)
        loaded = LoadedControl(other, plan_model(made.sd3), device())
        assert loaded._dit is not None
        assert not loaded._dit.edges


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_inpainting(made: Made, name: str) -> None:
    """What the network reads is what diffusers' pipeline for SD3 hands to it, and the run does what it says."""
    import diffusers

    mask = np.zeros((96, 64), np.uint8)
    mask[16:60, 8:40] = 255
    given = {"image": FIRST, "mask": Image.fromarray(mask)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusion3ControlNetInpaintingPipeline.from_pretrained(
            made.sd3, controlnet=made.reference("sd3-inpaint")
        )
        theirs.vae = diffusers.AutoencoderKL.from_pretrained(getattr(made, name) / "vae")
        expected = theirs.prepare_image_with_mask(
            *(FIRST, given["mask"], 64, 96, 1, 1, "cpu", torch.float32)
        )
    pipe = sdengine.load(getattr(made, name), controlnets=made(f"{name}-inpaint"))
    run = pipe.start(PROMPT, control_images=FIRST, steps=STEPS, seed=SEED, **given, **SIZE)
    found = run._inputs.controls[0].latents
    assert found is not None
    assert relative_error(found, expected.detach().numpy()) <= LIMIT
    while not run.done:
        run.step()
    plain = generate(pipe, control_scales=0.0, **given)
    assert relative_error(run.latents, plain) > LIMIT
    with pytest.raises(ParameterError, match="for inpainting: give image= and mask="):
        generate(pipe, control_images=FIRST)


# ------------------------------ FLUX.1
FLUX_CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "InstantX": ("flux", {}, {}),
    "double blocks only": (
        "flux-double",
        {"controlnet_conditioning_scale": 0.5, "control_guidance_end": 0.75},
        {"control_scales": 0.5, "control_end": 0.75},
    ),
    "XLabs": ("xlabs", {"controlnet_conditioning_scale": 0.5}, {"control_scales": 0.5}),
}


@pytest.mark.parametrize("case", FLUX_CASES)
def test_flux(made: Made, case: str) -> None:
    name, theirs, ours = FLUX_CASES[case]
    expected = run_reference(
        "FluxControlNetPipeline",
        made.flux,
        made.reference(name),
        control_image=FIRST,
        guidance_scale=3.5,
        **theirs,
    )
    pipe = sdengine.load(made.flux, controlnets=made(name))
    found = generate(pipe, guidance_scale=3.5, control_images=FIRST, **ours)
    assert relative_error(found, expected) <= LIMIT
    plain = generate(pipe, guidance_scale=3.5, control_scales=0.0)
    assert relative_error(plain, expected) > 10 * LIMIT


def test_a_union_for_flux(made: Made) -> None:
    net = made.reference("flux-union")
    options = {"control_image": FIRST, "control_mode": 4, "guidance_scale": 3.5}
    expected = run_reference("FluxControlNetPipeline", made.flux, net, **options)
    found = {}
    for name in ("openpose", "canny"):
        pipe = sdengine.load(made.flux, controlnets=ControlNet(made("flux-union"), type=name))
        found[name] = generate(pipe, guidance_scale=3.5, control_images=FIRST)
    assert relative_error(found["openpose"], expected) <= LIMIT
    assert relative_error(found["canny"], expected) > LIMIT


def test_a_union_twice_and_a_batch(made: Made) -> None:
    from diffusers import FluxMultiControlNetModel

    expected = run_reference(
        "FluxControlNetPipeline",
        made.flux,
        FluxMultiControlNetModel([made.reference("flux-union")]),
        control_image=[FIRST, SECOND],
        control_mode=[0, 2],
        controlnet_conditioning_scale=[0.6, 0.3],
        control_guidance_start=[0.0, 0.25],
        control_guidance_end=[1.0, 1.0],
        guidance_scale=3.5,
    )
    nets = [ControlNet(made("flux-union"), type=name) for name in ("canny", "depth")]
    pipe = sdengine.load(made.flux, controlnets=nets)
    options = {"control_scales": [0.6, 0.3], "control_start": [0.0, 0.25], "guidance_scale": 3.5}
    found = generate(pipe, control_images=[FIRST, SECOND], **options)
    assert relative_error(found, expected) <= LIMIT
    pictures = [[FIRST, SECOND], SECOND]
    batch = generate(pipe, control_images=pictures, batch_size=2, **options)
    assert np.array_equal(batch[:1], found)


def test_flux_image_to_image(made: Made) -> None:
    """The control picture's posterior is drawn first, then the picture's, then the noise."""
    expected = run_reference(
        "FluxControlNetImg2ImgPipeline",
        made.flux,
        made.reference("flux"),
        image=SECOND,
        control_image=FIRST,
        strength=0.5,
        guidance_scale=3.5,
    )
    pipe = sdengine.load(made.flux, controlnets=made("flux"))
    options = {"image": SECOND, "strength": 0.5, "guidance_scale": 3.5}
    found = generate(pipe, control_images=FIRST, **options)
    assert relative_error(found, expected) <= LIMIT


def test_networks_of_unlike_depth_and_layouts(made: Made, tmp_path: Path) -> None:
    """XLabs' names and pixels beside InstantX's latents, under true guidance."""
    state = to_xlabs(dict(made.reference("xlabs").state_dict()))
    path = tmp_path / "flux-canny-controlnet-v3.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    options = {"guidance_scale": 3.5, "true_cfg_scale": 2.0, "control_images": [FIRST, SECOND]}
    first, second = (
        generate(sdengine.load(made.flux, controlnets=[net, made("flux-double")]), **options)
        for net in (path, made("xlabs"))
    )
    assert np.array_equal(first, second)


def test_a_network_with_guidance_on_schnell(made: Made) -> None:
    pipe = sdengine.load(made.schnell, controlnets=made("flux"))
    found = generate(pipe, control_images=FIRST)
    assert relative_error(found, generate(pipe, control_scales=0.0)) > LIMIT
