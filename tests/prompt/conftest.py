from __future__ import annotations

from hypothesis import settings

from tests.tokenizers.conftest import clip_folder

__all__ = ["clip_folder"]

# Time per example says little on a shared machine, and a fixed seed makes every failure repeatable.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
