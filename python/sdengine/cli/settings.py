"""What a generation takes from a command line, as data.

:data:`SETTINGS` has the library's names (:class:`sdengine.GenerateOptions`); the spellings are those
that users of A1111, stable-diffusion.cpp and diffusers know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from sdengine.cli import values
from sdengine.step_cache import MODES

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """One option of a generation."""

    name: str
    """The library's."""
    flags: tuple[str, ...]
    """On the command line, the usual one first."""
    section: str
    """Of the help page."""
    help: str
    type: Any = str
    metavar: str | None = None
    multiple: bool = False

    def __call__(self, command: Command) -> Command:
        """Add the option to a command."""
        return click.option(
            *self.flags,
            self.name,
            type=self.type,
            metavar=self.metavar,
            multiple=self.multiple,
            default=None,
            help=self.help,
        )(command)


_PICTURE, _SAMPLING, _GUIDANCE, _HIRES = "Picture", "Sampling", "Guidance", "Hires pass"
_PROMPT, _GIVEN, _NOISE = "Prompt", "Given pictures", "Randomness"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "prompt_2", ("--prompt-2",), _PROMPT, "What the second text encoder reads [default: PROMPT]"
    ),
    Setting("negative_prompt_2", ("--negative-prompt-2",), _PROMPT, "The same, negative."),
    Setting(
        "weighting",
        ("--weighting",),
        _PROMPT,
        "Rule for (word:1.2).",
        metavar="a1111|comfyui|compel|diffusers",
    ),
    Setting(
        "clip_skip",
        ("--clip-skip",),
        _PROMPT,
        "1 takes the text encoders' last layer, 2 the one before.",
        int,
    ),
    Setting("width", ("-W", "--width"), _PICTURE, "Pixels, a multiple of 8.", int),
    Setting("height", ("-H", "--height"), _PICTURE, "Pixels, a multiple of 8.", int),
    Setting(
        "aspect_ratio",
        ("--aspect-ratio", "--ar"),
        _PICTURE,
        "Take the size nearest to this shape that the model was trained on.",
        metavar="16:9|1.5",
    ),
    Setting("batch_size", ("-b", "--batch-size"), _PICTURE, "Pictures to make together.", int),
    Setting(
        "seamless",
        ("--seamless", "--tiling"),
        _PICTURE,
        "Opposite edges join.",
        click.Choice(["x", "y", "xy"]),
    ),
    Setting(
        "cache",
        ("--cache",),
        _SAMPLING,
        "Take over from earlier steps what changes little: faster, a slightly different picture.",
        click.Choice(MODES),
    ),
    Setting(
        "tile",
        ("--tile",),
        _PICTURE,
        "Side of the autoencoder's tiles in latents, 0 for one piece [default: by size]",
        int,
    ),
    Setting(
        "tiled_diffusion",
        ("--tiled-diffusion",),
        _PICTURE,
        "The denoiser sees overlapping tiles: on, their side in latents, or size=64 overlap=16 weights=gaussian.",
        values.tiles,
        "on|SIZE|KEY=VALUE ...",
    ),
    Setting(
        "sizes",
        ("--size-conditioning",),
        _PICTURE,
        "What an SDXL class model is told: original_width, original_height, crop_left, crop_top, target_width, "
        "target_height, aesthetic_score; may be repeated.",
        values.size,
        "KEY=VALUE",
        multiple=True,
    ),
    Setting(
        "negative_sizes",
        ("--negative-size-conditioning",),
        _PICTURE,
        "The same beside the negative prompt.",
        values.size,
        "KEY=VALUE",
        multiple=True,
    ),
    Setting("steps", ("--steps",), _SAMPLING, "Sampling steps.", int),
    Setting(
        "sampler",
        ("--sampler", "--sampling-method"),
        _SAMPLING,
        "Such as euler_a, dpm++2m or 'DPM++ 2M Karras'.",
        metavar="NAME",
    ),
    Setting(
        "schedule",
        ("--schedule", "--scheduler"),
        _SAMPLING,
        "Such as karras or sgm_uniform.",
        metavar="NAME",
    ),
    Setting(
        "sigmas",
        ("--sigmas",),
        _SAMPLING,
        "Noise levels of your own, falling.",
        values.numbers,
        "S,S,...",
    ),
    Setting(
        "timesteps",
        ("--timesteps",),
        _SAMPLING,
        "Training timesteps of your own, falling.",
        values.whole_numbers,
        "T,T,...",
    ),
    Setting("eta", ("--eta",), _SAMPLING, "Noise of ancestral samplers; 0 for none.", float),
    Setting("shift", ("--shift", "--flow-shift"), _SAMPLING, "Time shift of a flow model.", float),
    Setting("s_noise", ("--s-noise",), _SAMPLING, "Scale of the noise that samplers add.", float),
    Setting(
        "s_churn", ("--s-churn",), _SAMPLING, "Noise before each step of euler, heun, dpm2.", float
    ),
    Setting("s_tmin", ("--s-tmin",), _SAMPLING, "Lowest noise level of --s-churn.", float),
    Setting("s_tmax", ("--s-tmax",), _SAMPLING, "Highest noise level of --s-churn.", float),
    Setting(
        "brownian",
        ("--brownian/--no-brownian",),
        _SAMPLING,
        "Noise of a Brownian path, or fresh at each step [default: as is usual for the sampler]",
        bool,
    ),
    Setting("order", ("--order",), _SAMPLING, "Of unipc, deis, lms and ipndm.", int),
    Setting(
        "denoising_start",
        ("--denoising-start",),
        _SAMPLING,
        "Begin at this part (0..1) of the noise schedule.",
        float,
    ),
    Setting(
        "denoising_end",
        ("--denoising-end",),
        _SAMPLING,
        "Stop at this part (0..1); a refiner goes on from there.",
        float,
    ),
    Setting(
        "compat",
        ("--compat",),
        _SAMPLING,
        "Follow the conventions of another program.",
        metavar="a1111|comfyui|diffusers",
    ),
    Setting(
        "guidance_scale",
        ("--cfg-scale", "--guidance-scale"),
        _GUIDANCE,
        "Strength of classifier-free guidance; 1 turns it off. One number, or one per step.",
        values.one_or_more,
        "SCALE",
    ),
    Setting(
        "true_cfg_scale",
        ("--true-cfg-scale",),
        _GUIDANCE,
        "The same beside --cfg-scale for models that read that as an input.",
        values.one_or_more,
        "SCALE",
    ),
    Setting(
        "image_guidance_scale",
        ("--image-cfg-scale", "--img-cfg-scale"),
        _GUIDANCE,
        "How closely an editing model keeps to --image.",
        float,
    ),
    Setting(
        "guidance_rescale",
        ("--guidance-rescale", "--cfg-rescale"),
        _GUIDANCE,
        "0..1, pulls the contrast back; 0.7 suits zero-terminal-SNR models.",
        float,
    ),
    Setting(
        "guidance",
        ("--guidance",),
        _GUIDANCE,
        "A further kind: interval=0.2/0.8, norms=free, projection, perturbed_attention, skip_layers, "
        "normalized_attention, ... (docs/guidance.md); may be repeated.",
        values.guidance,
        "KIND[ NAME=VALUE ...]",
        multiple=True,
    ),
    Setting("seed", ("-s", "--seed"), _NOISE, "Of the first picture [default: random]", int),
    Setting(
        "noise",
        ("--noise", "--rng"),
        _NOISE,
        "Whose generator.",
        metavar="torch-cpu|torch-cuda",
    ),
    Setting(
        "variation_seed",
        ("--variation-seed", "--subseed"),
        _NOISE,
        "Seed of noise to mix in.",
        int,
    ),
    Setting(
        "variation_strength",
        ("--variation-strength", "--subseed-strength"),
        _NOISE,
        "How much of it, 0..1.",
        float,
    ),
    Setting(
        "image",
        ("-i", "--image", "--init-img"),
        _GIVEN,
        "Picture to start from, to edit or to repaint.",
        metavar="PICTURE",
    ),
    Setting(
        "mask",
        ("--mask",),
        _GIVEN,
        "What to repaint: white is changed, black stays.",
        metavar="PICTURE",
    ),
    Setting(
        "mask_blur",
        ("--mask-blur",),
        _GIVEN,
        "Soften the mask: standard deviation of a Gaussian in pixels.",
        float,
    ),
    Setting(
        "invert_mask",
        ("--invert-mask/--no-invert-mask",),
        _GIVEN,
        "Change what is black instead.",
        bool,
    ),
    Setting(
        "only_masked",
        ("--only-masked/--whole-picture",),
        _GIVEN,
        "Generate the masked part alone, at --width x --height, and put it back.",
        bool,
    ),
    Setting(
        "mask_padding",
        ("--mask-padding",),
        _GIVEN,
        "Pixels around it that --only-masked shows the model [default: 32]",
        int,
    ),
    Setting(
        "mask_fill",
        ("--mask-fill", "--masked-content"),
        _GIVEN,
        "What --strength below 1 starts from below the mask.",
        click.Choice(["original", "blur", "noise", "nothing"]),
    ),
    Setting(
        "differential",
        ("--differential/--no-differential",),
        _GIVEN,
        "The mask's grey is the strength of each pixel.",
        bool,
    ),
    Setting(
        "outpaint",
        ("--outpaint",),
        _GIVEN,
        "Extend --image by pixels on the left, right, top and bottom, or to a shape, and paint what is new.",
        metavar="L,R,T,B|16:9",
    ),
    Setting(
        "depth",
        ("--depth",),
        _GIVEN,
        "Depth map for a depth model; near is bright.",
        metavar="PICTURE",
    ),
    Setting(
        "references",
        ("-r", "--reference", "--ref-image"),
        _GIVEN,
        "Picture that an editing model looks at; may be repeated.",
        metavar="PICTURE",
        multiple=True,
    ),
    Setting(
        "resize_references",
        ("--resize-references/--no-resize-references",),
        _GIVEN,
        "Bring them to a size that the model was trained with [default: yes]",
        bool,
    ),
    Setting(
        "control_images",
        ("--control-image",),
        _GIVEN,
        "What a --controlnet, or the model itself, follows; once for each of them, in their order.",
        metavar="PICTURE",
        multiple=True,
    ),
    Setting(
        "control_scales",
        ("--control-scale", "--control-strength"),
        _GIVEN,
        "Strength of the control networks; one number, or one for each.",
        values.one_or_more,
        "SCALE",
    ),
    Setting(
        "control_start",
        ("--control-start",),
        _GIVEN,
        "0..1, part of the steps after which control begins.",
        values.one_or_more,
        "PART",
    ),
    Setting(
        "control_end",
        ("--control-end",),
        _GIVEN,
        "0..1, part of the steps after which it ends.",
        values.one_or_more,
        "PART",
    ),
    Setting(
        "guess_mode",
        ("--guess-mode/--no-guess-mode",),
        _GIVEN,
        "Control without a prompt.",
        bool,
    ),
    Setting(
        "control_mode",
        ("--control-mode",),
        _GIVEN,
        "What counts more.",
        click.Choice(["balanced", "prompt", "control"]),
    ),
    Setting(
        "ip_images",
        ("--ip-image",),
        _GIVEN,
        "What the --ip-adapter reads beside the prompt; one, or one per picture.",
        metavar="PICTURE",
        multiple=True,
    ),
    Setting("ip_scale", ("--ip-scale",), _GIVEN, "How much it counts.", float),
    Setting(
        "strength",
        ("--strength", "--denoising-strength"),
        _GIVEN,
        "0..1, how much of --image is changed.",
        float,
    ),
    Setting(
        "resize_mode",
        ("--resize-mode",),
        _GIVEN,
        "How given pictures are brought to size.",
        click.Choice(["crop", "stretch", "fill", "pad"]),
    ),
    Setting(
        "hires_scale",
        ("--hires-scale", "--hires-upscale", "--hr-scale"),
        _HIRES,
        "After the picture, a pass that makes it so many times as wide and high.",
        float,
    ),
    Setting(
        "hires_width", ("--hires-width",), _HIRES, "Width of that pass, not --hires-scale.", int
    ),
    Setting("hires_height", ("--hires-height",), _HIRES, "Height of that pass.", int),
    Setting(
        "hires_upscaler",
        ("--hires-upscaler",),
        _HIRES,
        "latent, latent-bicubic, latent-nearest-exact, ..., lanczos, nearest, or an upscaler's file.",
        metavar="NAME|PATH",
    ),
    Setting(
        "hires_strength",
        ("--hires-strength", "--hires-denoising-strength"),
        _HIRES,
        "0..1, how much is made again.",
        float,
    ),
    Setting("hires_steps", ("--hires-steps",), _HIRES, "Its steps [default: --steps]", int),
    Setting(
        "hires_sampler",
        ("--hires-sampler",),
        _HIRES,
        "Its sampler [default: --sampler]",
        metavar="NAME",
    ),
    Setting(
        "hires_schedule",
        ("--hires-schedule", "--hires-scheduler"),
        _HIRES,
        "Its schedule [default: --schedule]",
        metavar="NAME",
    ),
    Setting(
        "hires_guidance_scale",
        ("--hires-cfg-scale", "--hires-guidance-scale"),
        _HIRES,
        "Its guidance [default: --cfg-scale]",
        float,
        "SCALE",
    ),
    Setting("hires_prompt", ("--hires-prompt",), _HIRES, "Its prompt [default: PROMPT]"),
    Setting("hires_negative_prompt", ("--hires-negative-prompt",), _HIRES, "Its negative prompt."),
)
NOT_ON_A_COMMAND_LINE = {"conditioning", "latents", "loras"}
"""Options of the library that are arrays, and one that belongs to the model there."""
