from __future__ import annotations

from pathlib import Path

import pytest

from .vocabulary import write_clip_folder


@pytest.fixture(scope="package")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("clip") / "tokenizer")
