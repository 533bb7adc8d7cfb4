"""The references of the other tests again, on a tiny random UNet instead of a mixture's exact denoiser."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import diffusers
import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.sampling import sample, sigmas

from . import test_cfg_pp as cfg_pp
from . import test_flow as flow
from . import test_more_samplers as more
from .test_samplers import K_SAMPLERS, relative, start

STEPS = [4, 10, 25]
SEED = 14
Network = Callable[[np.ndarray, float], np.ndarray]


@pytest.fixture(scope="module")
def network() -> Network:
    """(latents, timestep) -> noise or velocity."""
    torch.manual_seed(2)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
            if name.startswith("conv_out"):  # about as large as the noise that it should predict
                parameter.mul_(1.5)

    @torch.no_grad()
    def run(x: np.ndarray, timestep: float) -> np.ndarray:
        return np.asarray(unet(torch.tensor(x), timestep).sample.numpy())

    return run


@pytest.fixture(scope="module")
def denoiser(network: Network) -> Network:
    levels = _core.NoiseLevels("scaled_linear", 0.00085, 0.012, 1000)

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        scaled = (x / np.sqrt(1 + sigma**2)).astype(np.float32)
        noise = network(scaled, levels.timestep(float(np.float32(sigma))))
        return (x - np.float32(sigma) * noise).astype(np.float32)

    return denoise


@pytest.fixture(scope="module")
def flow_denoiser(network: Network) -> Network:
    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        return (x - np.float32(sigma) * network(x, 1000 * sigma)).astype(np.float32)

    return denoise


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", sorted(K_SAMPLERS))
def test_k_diffusion(k_diffusion: ModuleType, denoiser: Network, name: str, steps: int) -> None:
    levels = sigmas("karras", steps)
    x = start(levels)
    generator = torch.Generator().manual_seed(SEED)
    options: dict[str, object] = {"disable": True}
    if name.endswith("_a") or "sde" in name:
        options["noise_sampler"] = lambda *_: torch.randn(x.shape, generator=generator)
    if name == "dpm++2m_sde_heun":
        options["solver_type"] = "heun"

    def wrapped(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tensor(denoiser(x.numpy(), float(sigma.flatten()[0])))

    function = getattr(k_diffusion, K_SAMPLERS[name])
    expected = function(wrapped, torch.tensor(x), torch.tensor(levels), **options).numpy()
    assert relative(sample(denoiser, x, levels, name, SEED, brownian=False), expected) <= 1e-5


PAPERS = {
    "dpm++2mv2": more.dpmpp_2m_v2,
    "ipndm_v": more.ipndm_v,
    "euler_ge": more.gradient_estimation,
    "heunpp2": more.heunpp2,
    "res_multistep": more.res_multistep,
    "res_2s": more.res_2s,
    "er_sde": lambda x, levels: more.er_sde(x, levels, SEED),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", sorted(PAPERS))
def test_papers(monkeypatch: pytest.MonkeyPatch, denoiser: Network, name: str, steps: int) -> None:
    monkeypatch.setattr(more, "mixture", denoiser)
    levels = sigmas("karras", steps)
    x = start(levels)
    expected = PAPERS[name](x.astype(np.float64), levels.astype(np.float64))
    assert relative(sample(denoiser, x, levels, name, SEED), expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["unipc_bh1", "unipc_bh2", "deis"])
def test_diffusers(
    monkeypatch: pytest.MonkeyPatch, denoiser: Network, name: str, order: int, steps: int
) -> None:
    monkeypatch.setattr(more, "mixture", denoiser)
    options = {"prediction_type": "sample", "use_karras_sigmas": True, "solver_order": order}
    if name == "deis":
        scheduler = diffusers.DEISMultistepScheduler(
            **more.BETAS, **options, lower_order_final=False
        )
    else:
        scheduler = diffusers.UniPCMultistepScheduler(
            **more.BETAS, **options, solver_type=name.removeprefix("unipc_")
        )
    scheduler.set_timesteps(steps)
    scheduler.sigmas[-1] = 0.01
    levels = scheduler.sigmas.numpy()
    x = start(levels)
    expected = more.run_scheduler(scheduler, levels, x)
    assert relative(sample(denoiser, x, levels, name, order=order), expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", sorted(flow.NUMPY))
def test_flow(
    monkeypatch: pytest.MonkeyPatch, flow_denoiser: Network, name: str, steps: int
) -> None:
    monkeypatch.setattr(flow, "flow_mixture", flow_denoiser)
    levels = flow.levels_of(steps)
    x = flow.start()
    noise = flow.draws(SEED)
    expected = flow.NUMPY[name](x.astype(np.float64), levels.astype(np.float64), noise, 1.0)
    found = sample(flow_denoiser, x, levels, name, SEED, flow=True, eta=1.0, brownian=False)
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
def test_cfg_pp(monkeypatch: pytest.MonkeyPatch, denoiser: Network, steps: int) -> None:
    def both(x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        return denoiser(x, sigma), denoiser(np.float32(0.9) * x, sigma)

    monkeypatch.setattr(cfg_pp, "guided", both)
    levels = sigmas("karras", steps)
    x = start(levels)
    expected = cfg_pp.euler_cfg_pp(x.astype(np.float64), levels, 1.0, flow=False)
    assert relative(sample(both, x, levels, "euler_a_cfg_pp", cfg_pp.SEED), expected) <= 1e-5
    expected = cfg_pp.dpmpp_2m_cfg_pp(x.astype(np.float64), levels)
    assert relative(sample(both, x, levels, "dpm++2m_cfg_pp"), expected) <= 1e-5
