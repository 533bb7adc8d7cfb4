"""Settings for every test."""

from __future__ import annotations

import os

# The networks of tests are so small that more threads only wait for each other; tests of threads name a number.
os.environ.setdefault("SDENGINE_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Tests of a device that is named, see noxfile.py; there is none by default.
collect_ignore = [] if "SDENGINE_TEST_DEVICE" in os.environ else ["device"]
