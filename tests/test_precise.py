"""``load(precise=True)``: convolutions are summed directly."""

from __future__ import annotations

import numpy as np
import pytest

import sdengine
from sdengine.api import DEMO_MODEL


def test_the_method_changes_only_the_last_digits() -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16), np.float32)
    pictures = [
        sdengine.load(DEMO_MODEL, precise=precise).decode_latents(latents, output_type="numpy")
        for precise in (False, True)
    ]
    difference, size = (np.linalg.norm(x) for x in (pictures[0] - pictures[1], pictures[1]))
    assert 0 < difference <= 1e-5 * size


def test_a_copy_is_as_precise() -> None:
    pipe = sdengine.load(DEMO_MODEL, precise=True)
    assert all(device.precise for device in pipe.source.open()._devices)
    assert not any(device.precise for device in sdengine.load(DEMO_MODEL)._devices)


def test_it_is_true_or_false() -> None:
    with pytest.raises(sdengine.ParameterError, match="precise must be True or False, not 'yes'"):
        sdengine.load(DEMO_MODEL, precise="yes")  # type: ignore[arg-type]
