"""Recipes: names are recognised, figures are the publishers', and failing combinations are named."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

import sdengine
from sdengine.families.settings import Defaults
from sdengine.recipes import RECIPES, Recipe, defaults_of, find_recipe, prediction_of, unwise
from sdengine.sampling import SAMPLERS, SCHEDULES

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
PLAIN = Defaults(1024, 1024, steps=30, guidance=7.0, sampler="euler_a", schedule="karras")

NAMES = [
    ("sdxl", "sdxl_lightning_4step_unet.safetensors", "lightning-4", 4),
    ("sdxl", "sdxl_lightning_1step_x0.safetensors", "lightning-1", 1),
    ("sdxl", "sdxl_lightning_8step.safetensors", "lightning-8", 8),
    ("sdxl", "realvisxlV40_v40LightningBakedvae.safetensors", "lightning", 4),
    ("sdxl", "Hyper-SDXL-8steps-lora.safetensors", "hyper-8", 8),
    ("sdxl", "Hyper-SDXL-8steps-CFG-lora.safetensors", "hyper-cfg-8", 8),
    ("sd1", "Hyper-SD15-12steps-CFG-lora.safetensors", "hyper-cfg-12", 12),
    ("sd1", "Hyper-SD15-1step-lora.safetensors", "hyper-unified", 1),
    ("sdxl", "Hyper-SDXL-1step-Unet.safetensors", "hyper-sdxl-unet-1", 1),
    ("sd3", "Hyper-SD3-16steps-CFG-lora.safetensors", "hyper-sd3-16", 16),
    ("flux", "Hyper-FLUX.1-dev-16steps-lora.safetensors", "hyper-flux-16", 16),
    ("sdxl", "RealVisXL_V5.0_Hyper.safetensors", "hyper", 8),
    ("sdxl", "dmd2_sdxl_4step_unet_fp16.bin", "dmd2", 4),
    ("sdxl", "dmd2_sdxl_1step_unet.bin", "dmd2-1", 1),
    ("pixart_alpha", "PixArt-Alpha-DMD-XL-2-512x512", "pixart-dmd", 1),
    ("pixart_alpha", "PixArt-LCM-XL-2-1024-MS", "lcm", 4),
    ("sdxl", "sd_xl_turbo_1.0_fp16.safetensors", "sdxl-turbo", 4),
    ("sdxl", "SDXL-Turbo.Q4_0.gguf", "sdxl-turbo", 4),
    ("sdxl", "dreamshaperXL_turboDpmppSDE.safetensors", "turbo-merge", 8),
    ("sd2", "stable-diffusion-v2-1-turbo-Q4_0.gguf", "sd-turbo", 4),
    ("sd1", "LCM_Dreamshaper_v7_4k.safetensors", "lcm-dreamshaper", 4),
    ("sd1", "lcm-lora-sdv1-5", "lcm", 4),
    ("sdxl", "tcd_sdxl_lora.safetensors", "tcd", 4),
    ("sdxl", "pcm_sdxl_smallcfg_2step_converted.safetensors", "pcm-2", 2),
    ("sdxl", "pcm_sdxl_normalcfg_4step.safetensors", "pcm-normal-4", 4),
    ("sd1", "pcm_sd15_lcmlike_lora.safetensors", "pcm-lcm", 4),
    ("sd1", "sdxs-512-dreamshaper", "sdxs", 1),
    ("sdxl", "Segmind-VegaRT.safetensors", "vega-rt", 4),
    ("sdxl", "segmind_vega.safetensors", "vega", 25),
    ("sdxl", "SSD-1B-A1111.safetensors", "ssd-1b", 25),
    ("sdxl", "playground-v2.5-1024px-aesthetic.fp16.safetensors", "playground-2.5", 50),
    ("kolors", "Kolors.safetensors", "kolors", 50),
    ("flux", "flux1-schnell-Q4_0.gguf", "schnell", 4),
    ("flux_schnell", "flux1-schnell-Q4_0.gguf", "schnell", 4),
    ("flux", "flux1-dev.safetensors", "flux-dev", 20),
    ("flux", "flux1-fill-dev-Q4_0.gguf", "flux-fill", 50),
    ("flux", "flux1-canny-dev.safetensors", "flux-canny", 50),
    ("flux", "FLUX.1-Depth-dev", "flux-depth", 30),
    ("flux", "flux1-kontext-dev.safetensors", "flux-kontext", 28),
    ("flux", "FLUX.1-Turbo-Alpha", "flux-turbo", 8),
    ("sd3", "sd3.5_large_turbo-Q8_0.gguf", "sd3.5-turbo", 4),
    ("qwen_image", "Qwen-Image-Lightning-4steps-V1.0.safetensors", "qwen-lightning-4", 4),
]


@pytest.mark.parametrize(("family", "name", "expected", "steps"), NAMES)
def test_published_names_are_recognised(family: str, name: str, expected: str, steps: int) -> None:
    recipe = find_recipe(family, name)
    assert recipe is not None
    assert (recipe.name, recipe.steps) == (expected, steps)


def test_every_row_is_reached_by_a_name() -> None:
    found = {recipe.name for family, name, *_ in NAMES if (recipe := find_recipe(family, name))}
    for row in RECIPES:
        reached = any(
            name == row.name or re.fullmatch(re.escape(row.name) + r"-\d+", name) for name in found
        )
        assert reached or row.name in {"pcm-sd3", "playground-2", "flux-kontext"}, row.name
    assert find_recipe("sd3", "pcm_deterministic_4step_shift3.safetensors").name == "pcm-sd3-4"
    assert find_recipe("sdxl", "playground-v2-1024px-aesthetic").name == "playground-2"
    assert find_recipe("flux", "flux1-kontext-dev-Q4_0.gguf").name == "flux-kontext"


@pytest.mark.parametrize(
    "name",
    [
        *("turboprop_v1.safetensors", "hyperrealism_v3", "epicHyperRealistic_v10", "lightningbolt"),
        *(
            "elcmo",
            "sd_xl_base_1.0.safetensors",
            "turbocharged",
            "mix_v2_hyperDetailed",
            "hyper-detailed-mix",
            "",
            "...",
        ),
    ],
)
def test_words_that_only_resemble_are_left_alone(name: str) -> None:
    assert find_recipe("sdxl", name) is None


def test_a_name_counts_for_its_own_families_only() -> None:
    assert find_recipe("sd1", "sdxl_lightning_4step") is None
    assert find_recipe("sdxl", "my-lightning").name == "lightning"
    assert find_recipe("qwen_image", "my-lightning").name == "qwen-lightning"


def test_any_of_several_names_may_say_it_and_the_most_distilled_wins() -> None:
    assert (
        find_recipe("flux", "flux1-dev.gguf", "Hyper-FLUX.1-dev-8steps-lora").name == "hyper-flux-8"
    )
    assert find_recipe("sdxl", "", "juggernaut", "SDXL-Lightning 2-step").steps == 2
    # 30 is no number of steps that Lightning was published for.
    assert find_recipe("sdxl", "lightning-30steps").name == "lightning"


def test_defaults_are_the_publishers_and_keep_what_he_does_not_say() -> None:
    found = defaults_of(find_recipe("sdxl", "dmd2_sdxl_4step_unet"), PLAIN)
    assert found.timesteps == (999, 749, 499, 249)
    assert (found.steps, found.guidance, found.sampler, found.schedule) == (
        4,
        1.0,
        "lcm",
        "trailing",
    )
    assert defaults_of(find_recipe("sdxl", "dmd2_sdxl_1step"), PLAIN).timesteps == (399,)
    assert defaults_of(find_recipe("sdxl", "Hyper-SDXL-1step-Unet"), PLAIN).timesteps == (800,)
    assert defaults_of(find_recipe("sd1", "sdxs"), PLAIN).width == 512
    assert defaults_of(find_recipe("sdxl", "tcd"), PLAIN).eta == 0.3
    vega = defaults_of(find_recipe("sdxl", "segmind-vega"), PLAIN)
    assert (vega.schedule, vega.timesteps, vega.eta) == ("karras", None, None)


def test_prediction() -> None:
    assert prediction_of(find_recipe("sdxl", "sdxl_lightning_1step_x0"), "epsilon") == "sample"
    assert (
        prediction_of(find_recipe("sdxl", "sdxl_lightning_4step"), "v_prediction") == "v_prediction"
    )
    assert prediction_of(None, "v_prediction") == "v_prediction"


def judged(recipe: Recipe | None, **changes: object) -> list[str]:
    """Complaints about a recipe's own settings with some of them changed."""
    base = PLAIN if recipe is None else defaults_of(recipe, PLAIN)
    schedule = "explicit" if base.timesteps else base.schedule
    if recipe is not None and recipe.schedule is None:
        schedule = "discrete"
    settings = {
        "steps": base.steps,
        "guidance": base.guidance,
        "sampler": base.sampler,
        "schedule": schedule,
        "width": base.width,
        "height": base.height,
        **changes,
    }
    family = "sdxl" if recipe is None else recipe.families[0]
    return unwise(recipe, family, **settings)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_no_recipe_draws_a_warning_against_itself(recipe: Recipe) -> None:
    assert judged(recipe) == []


BURNING = [
    *(
        "sdxl_lightning_4step",
        "Hyper-SDXL-4steps",
        "lcm",
        "dmd2",
        "sd_xl_turbo",
        "tcd",
        "pcm_smallcfg",
    ),
]


@pytest.mark.parametrize("name", BURNING)
def test_high_guidance_on_distilled_models(name: str) -> None:
    recipe = find_recipe("sdxl", name)
    (text,) = judged(recipe, guidance=7.5)
    assert "guidance 7.5" in text
    assert f"use {recipe.guidance:g}" in text
    assert len(judged(find_recipe("flux_schnell", "schnell"), guidance=7.5)) == 1


def test_other_combinations_that_fail() -> None:
    lightning = find_recipe("sdxl", "sdxl_lightning_4step")
    assert "made for 4 steps, not 30; use 4" in judged(lightning, steps=30)[0]
    assert "use trailing" in judged(lightning, schedule="discrete")[0]
    assert judged(lightning, schedule="sgm_uniform") == []
    assert "use lcm" in judged(find_recipe("sdxl", "lcm"), schedule="karras")[0]
    sdxs = find_recipe("sd1", "sdxs")
    assert "512x512 only" in judged(sdxs, width=768)[0]
    assert "made for 1 steps" in judged(sdxs, steps=4)[0]
    assert "use 512x512" in judged(find_recipe("sdxl", "sdxl-turbo"), width=1024, height=1024)[0]


def test_consistency_samplers_and_tables_on_plain_models() -> None:
    assert judged(None) == []
    assert "not distilled" in judged(None, sampler="lcm")[0]
    assert "not distilled" in judged(find_recipe("sdxl", "SSD-1B"), sampler="tcd")[0]
    assert judged(find_recipe("sdxl", "sdxl_lightning_4step"), sampler="lcm") == []
    assert judged(None, schedule="ays") == []
    assert "pure noise" in judged(None, schedule="ays", zero_terminal_snr=True)[0]


def test_the_category_is_a_user_warning() -> None:
    with pytest.warns(sdengine.UnwiseWarning, match="burns"):
        warnings.warn("burns", sdengine.UnwiseWarning, stacklevel=1)
    assert issubclass(sdengine.UnwiseWarning, UserWarning)


def test_rows_are_well_formed() -> None:
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)
    for recipe in RECIPES:
        assert recipe.sampler in SAMPLERS
        assert recipe.schedule is None or recipe.schedule in SCHEDULES
        assert recipe.timesteps is None or len(recipe.timesteps) == recipe.steps
        assert set(recipe.schedules) <= set(SCHEDULES)
        assert recipe.source


def row(recipe: Recipe) -> str:
    """A recipe as docs/recipes.md shows it."""
    counts = "/".join(map(str, recipe.counts)) or str(recipe.steps)
    guidance = (
        ", ".join(f"{g:g} at {n}" for n, g in recipe.guidance_by_count) or f"{recipe.guidance:g}"
    )
    visited = (
        "t = " + ", ".join(map(str, recipe.timesteps))
        if recipe.timesteps
        else recipe.schedule or "family's"
    )
    others = {
        "predicts": recipe.prediction,
        "eta": recipe.eta,
        "distilled guidance": recipe.distilled_guidance,
        "shift": recipe.shift,
        "LoRA strength": recipe.lora_strength,
        "size": f"{recipe.width}x{recipe.height}" if recipe.width else None,
    }
    extra = ", ".join(f"{key} {value}" for key, value in others.items() if value is not None)
    cells = (
        recipe.title,
        ", ".join(recipe.families),
        counts,
        guidance,
        recipe.sampler,
        visited,
        extra,
        recipe.source,
    )
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_document_has_every_row(recipe: Recipe) -> None:
    assert row(recipe) in DOCUMENT.read_text().splitlines()
