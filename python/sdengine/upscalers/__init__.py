"""Networks that make pictures larger or cleaner: ESRGAN and its kin, SwinIR."""

from __future__ import annotations

from sdengine.upscalers.plan import KINDS, UpscalerPlan, plan_upscaler
from sdengine.upscalers.upscaler import Upscaler, load_upscaler

__all__ = ["KINDS", "Upscaler", "UpscalerPlan", "load_upscaler", "plan_upscaler"]
