"""From files to validated plans: what a file is, and where every parameter of a model lies."""

from __future__ import annotations

from sdengine.loading.bind import Binding
from sdengine.loading.detection import Detection, detect
from sdengine.loading.plan import ComponentPlan, ModelPlan, plan_model
from sdengine.loading.scheduler import SchedulerSettings
from sdengine.loading.tokenizer_source import TokenizerSource

__all__ = [
    "Binding",
    "ComponentPlan",
    "Detection",
    "ModelPlan",
    "SchedulerSettings",
    "TokenizerSource",
    "detect",
    "plan_model",
]
