"""What a model predicts and which noise it knows, from whatever its file says about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from statistics import pstdev
from typing import Any, get_args

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.families import Config, Family, Prediction, PredictionTest
from sdengine.formats import TensorEntry, TensorIndex
from sdengine.loading.bind import Binding
from sdengine.loading.detection import Detection, stored_fields
from sdengine.loading.scheduler import SchedulerSettings, checked, from_diffusers

# CosXL's file names the largest noise level and sometimes the smallest; its other figures are those
# of ComfyUI's `ModelSamplingContinuousEDM` for it and of diffusers' EDMEulerScheduler.
_EDM_VELOCITY: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 120.0, "sigma_data": 1.0}
# Playground 2.5: its published scheduler_config.json.
_EDM: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}


def find_scheduler(
    index: TensorIndex,
    found: Detection,
    bindings: Iterable[Binding],
    prediction: str | None = None,
) -> SchedulerSettings:
    """The noise and the prediction of a model.

    In this order: what the caller says, a scheduler config, what ``convert`` stored, marks in the
    file, a statistic of the weights where the family has one, the family.

    Args:
        index: the model's file.
        found: what it is.
        bindings: the denoiser's parameters.
        prediction: overrides what is predicted.

    Raises:
        ParameterError: there is no such prediction.
        UnsupportedModelError, WeightsError: see :func:`from_diffusers`.
    """
    settings = _settings(index, found, bindings)
    if prediction is None:
        return settings
    assert found.family is not None
    flows = found.family.prediction == "flow"
    known = [choice for choice in get_args(Prediction) if (choice == "flow") == flows]
    chosen = next((choice for choice in known if choice == str(prediction)), None)
    if chosen is None:
        raise ParameterError(f"prediction = {prediction!r}; expected one of {', '.join(known)}")
    return replace(settings, prediction=chosen)


def _settings(
    index: TensorIndex, found: Detection, bindings: Iterable[Binding]
) -> SchedulerSettings:
    assert found.family is not None
    family, variant = found.family, found.variant
    settings = SchedulerSettings.of_family(family)
    if "scheduler" in index.configs:
        return from_diffusers(index.configs["scheduler"], family)
    stored = stored_fields(index, "sdengine.scheduler", asdict(settings))
    if stored:
        return checked(replace(settings, **stored))
    if variant is not None and variant.prediction is not None:
        settings = replace(settings, prediction=variant.prediction)
    if settings.prediction == "edm":
        settings = replace(settings, **_EDM)
    elif settings.prediction == "edm_v_prediction":
        settings = replace(settings, **_edm_velocity(index))
    # Empty tensors that mark models trained to predict the velocity (A1111, ComfyUI).
    elif "v_pred" in index.tensors:
        settings = replace(settings, prediction="v_prediction")
    elif _deviates(family.prediction_test, found.configs[family.denoiser], bindings):
        assert family.prediction_test is not None
        settings = replace(settings, prediction=family.prediction_test.prediction)
    return checked(replace(settings, rescale_zero_snr="ztsnr" in index.tensors))


def _edm_velocity(index: TensorIndex) -> dict[str, Any]:
    given = {
        name: index.tensors[f"edm_vpred.{name}"]
        for name in ("sigma_min", "sigma_max")
        if f"edm_vpred.{name}" in index.tensors
    }
    return {**_EDM_VELOCITY, **{name: read_values(entry)[0] for name, entry in given.items()}}


def _deviates(test: PredictionTest | None, config: Config, bindings: Iterable[Binding]) -> bool:
    if test is None or not test.shape.fits(config):
        return False
    entry = next((b.entry for b in bindings if b.name == test.parameter), None)
    return entry is not None and pstdev(read_values(entry)) > test.deviation


def read_values(entry: TensorEntry) -> list[float]:
    """The values of a small tensor."""
    return _core.read_values(
        entry.dtype,
        list(entry.shape),
        entry.path,
        entry.offset,
        entry.nbytes,
        None if entry.strides is None else list(entry.strides),
    )


def default_size(family: Family, config: Config, prediction: Prediction) -> dict[str, Any]:
    """Fields of the defaults that follow from what a member of the family predicts."""
    test = family.prediction_test
    if test is None or prediction != test.prediction or not test.shape.fits(config):
        return {}
    return dict(test.defaults)
