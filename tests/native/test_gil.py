"""What waits for a run leaves the GIL to it.

A run asks for the GIL every 100 ms, to see whether Ctrl-C was pressed. Who holds it while he waits for a network that
runs, or for its device, waits forever, and the process with him.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, threading, time
from pathlib import Path
import numpy as np
from sdengine import _core
from sdengine.device_checks import Check, store_of

SIZE = {"in": 1024, "out": 1024}
device = _core.Device.cpu(1, portable=True)


def network():
    check = Check("", "linear", {}, SIZE)
    store = store_of(check, Path(sys.argv[1]))
    return _core.Network("layer", {"layer": "linear", **SIZE}, store, device)


def seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


running, given = network(), np.ones((1, 128, 1024), np.float32)
run = lambda: running.run({"x": given})
run()
while seconds(run) < 0.3:  # long enough to ask, on every machine
    given = np.concatenate([given, given], 1)


def waited(work):
    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.05)
    took = seconds(work)
    thread.join()
    return took


held = []
waits = {
    "a network that goes": (lambda: held.append(network()), held.clear),
    "a rehearsal that goes": (lambda: held.append(running.rehearsal()), held.clear),
    "activation_bytes": (None, lambda: running.activation_bytes),
    "adapter_bytes": (None, lambda: running.adapter_bytes),
    "rehearsed": (None, lambda: running.rehearsed),
    "residency": (None, lambda: running.residency),
    "release_activations": (None, running.release_activations),
    "release_weights": (None, running.release_weights),
    "rest": (None, running.rest),
    "set_adapters": (None, lambda: running.set_adapters([])),
    "set_profile": (None, lambda: running.set_profile(None)),
    "set_residency": (None, lambda: running.set_residency("offload")),
}
for name, (prepare, work) in waits.items():
    print(name, flush=True)
    for _ in range(5):  # until it came while the other ran
        if prepare:
            prepare()
        if waited(work) > 0.05:
            break
    else:
        sys.exit(f"{name}: it never waited")
print("all")
"""


def test_who_waits_for_a_run_holds_no_gil(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired as stuck:
        pytest.fail(f"stuck at: {(stuck.stdout or b'').decode().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all"
