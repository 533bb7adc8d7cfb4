"""Tensors of whole-model files that no network needs."""

from __future__ import annotations

from fnmatch import fnmatchcase

PATTERNS: tuple[str, ...] = (
    # Running averages of a training run, beside the weights that were published.
    "model_ema.*",
    # Tables of the noise schedule, which follow from the betas.
    "betas",
    "alphas_cumprod*",
    "sqrt_*",
    "log_one_minus_alphas_cumprod",
    "posterior_*",
    "logvar",
    "lvlb_weights",
    "denoiser.sigmas",
    "denoiser.log_sigmas",
    "model.alphas_cumprod",
    # Marks of the prediction type, read by name elsewhere.
    "v_pred",
    "ztsnr",
    "edm_mean",
    "edm_std",
    "edm_vpred.*",
    "*__index_timestep_zero__",
    # The other half of the CLIP model that the text encoder is from; training state; picture
    # filters.
    "*.position_ids",
    "*.logit_scale",
    "embedding_manager.*",
    "safety_checker/*",
    "safety_checker.*",
    "global_step",
    # A tokenizer, which is read as one.
    "*spiece_model",
    # What PixArt's training put in the place of a text.
    "*y_embedder.y_embedding",
    # The estimator of depths beside the depth model, which is a model of its own.
    "depth_model.*",
)


def is_ignored(name: str) -> bool:
    """True for a tensor that a whole-model file may hold and that nothing needs."""
    return any(fnmatchcase(name, pattern) for pattern in PATTERNS)
