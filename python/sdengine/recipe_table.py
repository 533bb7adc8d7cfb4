"""The recipes as data; how they are found and used is in :mod:`sdengine.recipes`."""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.families.settings import Prediction


@dataclass(frozen=True)
class Recipe:
    """How a publisher says that a model is sampled."""

    name: str
    title: str
    families: tuple[str, ...]
    """Names of the families that it can belong to."""
    patterns: tuple[str, ...]
    """Regular expressions over the words of a name (lower case, single spaces), matched at whole words."""
    steps: int
    guidance: float
    """Scale of classifier-free guidance; 1 is none."""
    sampler: str
    source: str
    """Where the figures come from; "unverified" marks what was not read there but is handed down."""
    schedule: str | None = None
    """None is the family's own."""
    timesteps: tuple[int, ...] | None = None
    """Visited instead of the schedule's when the steps are as many."""
    prediction: Prediction | None = None
    eta: float | None = None
    width: int | None = None
    height: int | None = None
    counts: tuple[int, ...] = ()
    """Numbers of steps that models were published for; a name may choose one."""
    guidance_by_count: tuple[tuple[int, float], ...] = ()
    """(steps, guidance) where it depends on the number of steps."""
    exact: bool = False
    """A model published for n steps is right for n steps only."""
    steps_range: tuple[int, int] | None = None
    """Fewest and most steps of good pictures."""
    guidance_limit: float | None = None
    """Above it pictures are known to burn."""
    schedules: tuple[str, ...] = ()
    """The schedules that reach the trained noise levels; empty where it matters less."""
    few_steps: bool = True
    """Distilled to few steps."""
    max_side: int | None = None
    """Pixels beyond which the composition falls apart."""
    fixed_size: bool = False
    """No other size than width x height works."""
    distilled_guidance: float | None = None
    """The number that guidance-distilled models (FLUX dev) read as an input."""
    shift: float | None = None
    """Time shift of a flow model, where it is not the family's."""
    lora_strength: float | None = None
    """Strength of the LoRA, where it is not 1."""
    warnings: tuple[str, ...] = ()
    """Said at every run."""


TRAILING = ("trailing", "sgm_uniform")
LCM = "arXiv 2310.04378, 2311.05556; latent-consistency model cards (guidance range unverified)"
HYPER = "ByteDance/Hyper-SD README"
HYPER_NAMES = (
    r"hyper ?sd(?: ?xl| ?15| 1 5)?",
    r"hyper (?:.* )?\d{1,2} ?steps?",
    r"v ?\d+(?: \d+)? hyper(?! (?:real|detail)\w*)",
)
"""The word alone is a matter of taste ("hyper realistic"): it needs a base model, a version or a number of steps."""
PCM = "wangfuyun/PCM_Weights README"

RECIPES: tuple[Recipe, ...] = (
    # ------------------------------------------------------------------ one step
    Recipe(
        *("sdxs", "SDXS-512", ("sd1", "sd2"), ("sdxs",)),
        *(1, 1.0, "euler", "IDKiro/sdxs-512-* README; arXiv 2403.16627"),
        schedule="trailing",
        timesteps=(999,),
        width=512,
        height=512,
        steps_range=(1, 1),
        guidance_limit=1.0,
        fixed_size=True,
    ),
    Recipe(
        *("lightning-1", "SDXL-Lightning, 1 step", ("sdxl",), (r"lightning (?:.* )?1 ?step\w*",)),
        *(
            1,
            1.0,
            "euler",
            "ByteDance/SDXL-Lightning README (unverified; x0 prediction from third parties)",
        ),
        schedule="trailing",
        prediction="sample",
        width=1024,
        height=1024,
        steps_range=(1, 1),
        guidance_limit=2.0,
        schedules=TRAILING,
    ),
    Recipe(
        *(
            "hyper-sdxl-unet-1",
            "Hyper-SDXL, 1 step",
            ("sdxl",),
            (r"hyper (?:.* )?1 ?step unet\w*",),
        ),
        *(1, 1.0, "lcm", f"{HYPER} (t = 800: its ComfyUI node)"),
        schedule="trailing",
        timesteps=(800,),
        width=1024,
        height=1024,
        steps_range=(1, 1),
        guidance_limit=2.0,
    ),
    Recipe(
        *(
            "hyper-unified",
            "Hyper-SD, unified LoRA",
            ("sd1", "sdxl"),
            (r"hyper (?:.* )?1 ?steps?",),
        ),
        *(1, 1.0, "tcd", f"{HYPER} (eta 1.0 unverified)"),
        schedule="trailing",
        eta=1.0,
        steps_range=(1, 8),
        guidance_limit=2.0,
    ),
    Recipe(
        *("dmd2-1", "DMD2, 1 step", ("sdxl",), (r"dmd ?2 (?:.* )?1 ?step\w*",)),
        *(1, 1.0, "lcm", "tianweiy/DMD2 README"),
        schedule="trailing",
        timesteps=(399,),
        width=1024,
        height=1024,
        steps_range=(1, 1),
        guidance_limit=2.0,
    ),
    Recipe(
        *("pixart-dmd", "PixArt-alpha DMD", ("pixart_alpha",), ("dmd",)),
        *(1, 1.0, "lcm", "PixArt-alpha/PixArt-alpha README; PixArt-Alpha-DMD-XL-2-512x512"),
        schedule="trailing",
        timesteps=(400,),
        width=512,
        height=512,
        steps_range=(1, 1),
        guidance_limit=2.0,
    ),
    # ------------------------------------------------------------------ few steps
    Recipe(
        *("dmd2", "DMD2", ("sdxl",), (r"dmd ?2",)),
        *(4, 1.0, "lcm", "tianweiy/DMD2 README"),
        schedule="trailing",
        timesteps=(999, 749, 499, 249),
        width=1024,
        height=1024,
        steps_range=(4, 8),
        guidance_limit=2.0,
    ),
    Recipe(
        *("lightning", "SDXL-Lightning", ("sdxl",), ("lightning",)),
        *(4, 1.0, "euler", "ByteDance/SDXL-Lightning README (unverified)"),
        schedule="trailing",
        width=1024,
        height=1024,
        counts=(2, 4, 8),
        exact=True,
        steps_range=(2, 8),
        guidance_limit=2.0,
        schedules=TRAILING,
    ),
    Recipe(
        *("hyper-cfg", "Hyper-SD, guidance preserved", ("sd1", "sdxl"), (r"hyper (?:.* )?cfg",)),
        *(8, 5.0, "ddim", HYPER),
        schedule="trailing",
        counts=(8, 12),
        steps_range=(6, 16),
        guidance_limit=8.0,
        schedules=TRAILING,
    ),
    Recipe(
        *("hyper-sd3", "Hyper-SD3", ("sd3",), (r"hyper ?sd ?3\w*",)),
        *(8, 5.0, "euler", HYPER),
        counts=(4, 8, 16),
        guidance_by_count=((4, 3.0), (8, 5.0), (16, 7.0)),
        steps_range=(4, 16),
        guidance_limit=7.0,
        lora_strength=0.125,
    ),
    Recipe(
        *("hyper-flux", "Hyper-FLUX", ("flux",), (r"hyper ?flux\w*",)),
        *(8, 1.0, "euler", HYPER),
        counts=(8, 16),
        steps_range=(6, 16),
        guidance_limit=2.0,
        distilled_guidance=3.5,
        lora_strength=0.125,
    ),
    Recipe(
        *("hyper", "Hyper-SD", ("sd1", "sdxl"), HYPER_NAMES),
        *(8, 1.0, "ddim", HYPER),
        schedule="trailing",
        counts=(2, 4, 8),
        exact=True,
        steps_range=(2, 8),
        guidance_limit=2.0,
        schedules=TRAILING,
    ),
    Recipe(
        *("pcm-lcm", "PCM, LCM-like", ("sd1", "sdxl"), (r"pcm (?:.* )?lcm(?: ?like)?\w*",)),
        *(4, 1.0, "lcm", f"{PCM} (guidance unverified)"),
        schedule="trailing",
        steps_range=(2, 8),
        guidance_limit=2.0,
    ),
    Recipe(
        *("pcm-normal", "PCM, normal guidance", ("sd1", "sdxl"), (r"pcm (?:.* )?normal ?cfg",)),
        *(8, 4.5, "ddim", f"{PCM}: 2.5 to 3.5 at 4 steps, 3 to 6 at 8"),
        schedule="trailing",
        counts=(4, 8, 16),
        guidance_by_count=((4, 3.0), (8, 4.5), (16, 6.0)),
        steps_range=(4, 16),
        guidance_limit=9.0,
        schedules=TRAILING,
    ),
    Recipe(
        *("pcm", "PCM, small guidance", ("sd1", "sdxl"), ("pcm",)),
        *(4, 1.5, "ddim", f"{PCM}: guidance 1 to 2"),
        schedule="trailing",
        counts=(2, 4, 8, 16),
        steps_range=(2, 16),
        guidance_limit=2.0,
        schedules=TRAILING,
    ),
    Recipe(
        *("pcm-sd3", "PCM for SD3", ("sd3",), ("pcm",)),
        *(4, 1.2, "euler", f"{PCM} (guidance unverified)"),
        counts=(2, 4),
        steps_range=(2, 8),
        guidance_limit=2.0,
        shift=3.0,
    ),
    Recipe(
        *("vega-rt", "Segmind-VegaRT", ("sdxl",), (r"vega ?rt",)),
        *(4, 1.0, "lcm", "segmind/Segmind-VegaRT: 2 to 8 steps"),
        schedule="lcm",
        width=1024,
        height=1024,
        steps_range=(2, 8),
        guidance_limit=2.0,
    ),
    Recipe(
        # The model reads guidance as an input; there is no second evaluation that could burn.
        *("lcm-dreamshaper", "LCM Dreamshaper", ("sd1",), (r"lcm dreamshaper",)),
        *(4, 8.0, "lcm", "SimianLuo/LCM_Dreamshaper_v7 (unverified)"),
        schedule="lcm",
        width=768,
        height=768,
        steps_range=(1, 8),
    ),
    Recipe(
        *("tcd", "TCD", ("sd1", "sd2", "sdxl"), ("tcd",)),
        *(4, 1.0, "tcd", "arXiv 2402.19159; h1t/TCD-SDXL-LoRA (guidance unverified)"),
        schedule="lcm",
        eta=0.3,
        steps_range=(2, 20),
        guidance_limit=2.0,
    ),
    Recipe(
        *("lcm", "LCM", ("sd1", "sd2", "sdxl", "pixart_alpha", "pixart_sigma"), ("lcm",)),
        *(4, 1.0, "lcm", LCM),
        schedule="lcm",
        counts=(4, 8),
        steps_range=(2, 8),
        guidance_limit=2.0,
    ),
    Recipe(
        *(
            "sdxl-turbo",
            "SDXL-Turbo",
            ("sdxl",),
            (r"(?:sd ?xl|stable diffusion xl)(?: base)?(?: 1 0)? ?turbo",),
        ),
        *(4, 1.0, "euler_a", "stabilityai/sdxl-turbo README: 1 to 4 steps, no guidance, 512 x 512"),
        schedule="trailing",
        width=512,
        height=512,
        steps_range=(1, 8),
        guidance_limit=1.5,
        max_side=768,
    ),
    Recipe(
        *("turbo-merge", "an SDXL-Turbo fine-tune", ("sdxl",), ("turbo",)),
        *(8, 2.0, "dpm++sde", "Lykon/dreamshaper-xl-turbo (unverified)"),
        schedule="karras",
        width=1024,
        height=1024,
        steps_range=(3, 12),
        guidance_limit=3.5,
    ),
    Recipe(
        *("sd-turbo", "SD-Turbo", ("sd2",), ("turbo",)),
        *(4, 1.0, "euler_a", "stabilityai/sd-turbo README: 1 to 4 steps, no guidance (unverified)"),
        schedule="trailing",
        prediction="epsilon",
        width=512,
        height=512,
        steps_range=(1, 8),
        guidance_limit=1.5,
        max_side=768,
    ),
    Recipe(
        *("sd3.5-turbo", "SD3.5 Large Turbo", ("sd3",), ("turbo",)),
        *(4, 1.0, "euler", "Stability-AI/sd3.5 sd3_infer.py"),
        width=1024,
        height=1024,
        steps_range=(4, 8),
        guidance_limit=2.0,
        shift=3.0,
    ),
    Recipe(
        *("schnell", "FLUX.1 schnell", ("flux", "flux_schnell"), ("schnell",)),
        *(4, 1.0, "euler", "black-forest-labs/flux sampling.py: 1 to 4 steps, no shift"),
        width=1024,
        height=1024,
        steps_range=(1, 8),
        guidance_limit=2.0,
        shift=1.0,
    ),
    Recipe(
        *("flux-turbo", "FLUX.1 Turbo Alpha", ("flux",), (r"turbo(?: alpha)?",)),
        *(8, 1.0, "euler", "alimama-creative/FLUX.1-Turbo-Alpha (guidance unverified)"),
        steps_range=(4, 12),
        guidance_limit=2.0,
        distilled_guidance=3.5,
    ),
    Recipe(
        *("qwen-lightning", "Qwen-Image-Lightning", ("qwen_image",), ("lightning",)),
        *(8, 1.0, "euler", "ModelTC/Qwen-Image-Lightning generate_with_diffusers.py"),
        counts=(4, 8),
        exact=True,
        steps_range=(4, 8),
        guidance_limit=2.0,
        shift=3.0,
    ),
    # ------------------------------------------------------------------ many steps
    Recipe(
        *("ssd-1b", "SSD-1B", ("sdxl",), (r"ssd ?1 ?b",)),
        *(25, 9.0, "euler", "segmind/SSD-1B (figures unverified)"),
        width=1024,
        height=1024,
        few_steps=False,
    ),
    Recipe(
        *("vega", "Segmind-Vega", ("sdxl",), (r"segmind vega", "vega")),
        *(25, 9.0, "euler", "segmind/Segmind-Vega (figures unverified)"),
        width=1024,
        height=1024,
        few_steps=False,
    ),
    Recipe(
        *("playground-2.5", "Playground v2.5", ("sdxl",), (r"playground (?:v ?)?2 5",)),
        *(50, 3.0, "dpm++2m", "playgroundai/playground-v2.5-1024px-aesthetic README"),
        schedule="karras",
        width=1024,
        height=1024,
        guidance_limit=7.0,
        few_steps=False,
    ),
    Recipe(
        *("playground-2", "Playground v2", ("sdxl",), (r"playground (?:v ?)?2",)),
        *(50, 3.0, "euler", "playgroundai/playground-v2-1024px-aesthetic (unverified)"),
        width=1024,
        height=1024,
        few_steps=False,
    ),
    Recipe(
        *("kolors", "Kolors", ("kolors",), ("kolors",)),
        *(50, 5.0, "euler", "Kwai-Kolors/Kolors (leading spacing from third parties)"),
        schedule="leading",
        width=1024,
        height=1024,
        few_steps=False,
    ),
    Recipe(
        *("flux-kontext", "FLUX.1 Kontext", ("flux",), ("kontext",)),
        *(28, 1.0, "euler", "diffusers docs, FLUX (unverified)"),
        guidance_limit=5.0,
        few_steps=False,
        distilled_guidance=2.5,
    ),
    Recipe(
        *("flux-fill", "FLUX.1 Fill", ("flux",), ("fill",)),
        *(50, 1.0, "euler", "diffusers docs, FLUX"),
        guidance_limit=5.0,
        few_steps=False,
        distilled_guidance=30.0,
    ),
    Recipe(
        *("flux-canny", "FLUX.1 Canny", ("flux",), ("canny",)),
        *(50, 1.0, "euler", "diffusers docs, FLUX"),
        guidance_limit=5.0,
        few_steps=False,
        distilled_guidance=30.0,
    ),
    Recipe(
        *("flux-depth", "FLUX.1 Depth", ("flux",), ("depth",)),
        *(30, 1.0, "euler", "diffusers docs, FLUX"),
        guidance_limit=5.0,
        few_steps=False,
        distilled_guidance=10.0,
    ),
    Recipe(
        *("flux-dev", "FLUX.1 dev", ("flux",), ("dev", r"flux ?1? ?dev")),
        *(
            20,
            1.0,
            "euler",
            "black-forest-labs/flux: 50 steps; 20 as the GPUStack tutorial runs it",
        ),
        width=1024,
        height=1024,
        guidance_limit=5.0,
        few_steps=False,
        distilled_guidance=3.5,
    ),
)
"""Asked in this order; the first that fits wins: what was distilled further comes first."""
