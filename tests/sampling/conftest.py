"""The reference samplers of k-diffusion, loaded without the training code around them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def k_diffusion() -> ModuleType:
    """k_diffusion/sampling.py alone: the package around it wants torchvision and a dozen other packages."""
    files = importlib.metadata.files("k-diffusion") or []
    path = next(f for f in files if str(f).endswith("k_diffusion/sampling.py")).locate()
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = []
    # The one helper that the samplers use: trailing axes for broadcasting.
    utils.append_dims = lambda x, ndim: x.reshape(x.shape + (1,) * (ndim - x.ndim))  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
