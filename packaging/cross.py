"""Compile the native code for systems that are not at hand: ``python cross.py [TARGET ...]``.

zig (``pip install ziglang``) is a clang with the C and C++ libraries of Windows, macOS and Linux. A compiler's errors
are found with it; nothing is linked or run, and ggml, which is built for these systems elsewhere, is left out.
Options of each file are those of a build for this machine, which is configured for them; those of the files for AArch64
alone are of a build of the kernels' checks.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cross"
TARGETS = ("x86_64-windows-gnu", "aarch64-macos", "aarch64-linux-gnu", "x86_64-macos")

# What Python's headers ask of the system, instead of the answers for this one.
WINDOWS_PYCONFIG = """\
#pragma once
#define Py_PYCONFIG_H
#include <io.h>
#define MS_WINDOWS
#define MS_WIN64
#define NT_THREADS
#define WITH_THREAD
#define HAVE_DECLSPEC_DLL
#define HAVE_WCHAR_H 1
#define Py_ENABLE_SHARED 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_VOID_P 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
#define ALIGNOF_MAX_ALIGN_T 8
"""


def configure(name: str, source: Path, *options: str) -> list[dict[str, str]]:
    """The compile commands of our own files in a build of ``source``."""
    command = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(BUILD / name), *options]
    command += ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    subprocess.run([*command, f"-DPython_EXECUTABLE={sys.executable}"], check=True)
    text = (BUILD / name / "compile_commands.json").read_text("utf-8")
    return [entry for entry in json.loads(text) if ROOT / "csrc" in Path(entry["file"]).parents]


def host_commands() -> list[dict[str, str]]:
    """The compile commands of a build for this machine."""
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    )
    directory = f"-Dpybind11_DIR={pybind11.stdout.strip()}"
    return configure("host", ROOT, "-DPYBIND11_FINDPYTHON=ON", directory)


def arm_commands() -> list[dict[str, str]]:
    """Those of the files that only AArch64 has, after ``host_commands``."""
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    ggml = f"-DSDENGINE_GGML_DIR={BUILD / 'host' / 'ggml-source'}"
    entries = configure("arm", ROOT / "tests" / "kernels", *system, ggml)
    return [entry for entry in entries if "-march=armv8.2-a" in entry["command"]]


def options_for(target: str, entry: dict[str, str]) -> Iterator[str]:
    """The options of one file's command that mean the same for ``target``."""
    given = iter(shlex.split(entry["command"])[1:])
    for option in given:
        if option in ("-o", "-c"):
            next(given)
        elif option == "-isystem":
            yield from (option, next(given))
        elif option.startswith("-march=armv8.2-a"):
            yield option.replace("-march=armv8.2-a", "-mcpu=generic+v8_2a")  # zig's names
        elif option not in ("-g", "-fPIC", "-fno-fat-lto-objects", "-fno-schedule-insns"):
            yield option
    if "windows" in target:
        yield from ("-include", str(BUILD / "windows_pyconfig.h"))


def compile_one(target: str, entry: dict[str, str]) -> str:
    """What the compiler says of one file; nothing when all is well."""
    options = list(options_for(target, entry))
    source = Path(entry["file"])
    output = BUILD / target / source.relative_to(ROOT).with_suffix(".o")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *options, "-Werror"]
    done = subprocess.run(
        [*command, "-c", str(source), "-o", str(output)],
        cwd=entry["directory"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def main() -> None:
    """Compile for the targets that are named, or all."""
    commands = host_commands()
    common = [entry for entry in commands if "-mavx2" not in entry["command"]]
    arm = common + arm_commands()
    (BUILD / "windows_pyconfig.h").write_text(WINDOWS_PYCONFIG, "utf-8")
    failed = 0
    for target in sys.argv[1:] or TARGETS:
        entries = arm if target.startswith("aarch64") else commands
        with ThreadPoolExecutor(int(os.environ.get("JOBS", os.cpu_count() or 1))) as pool:
            complaints = [c for c in pool.map(partial(compile_one, target), entries) if c]
        print(f"{target}: {len(entries)} files, {len(complaints)} do not compile", flush=True)
        print("".join(complaints), end="")
        failed += len(complaints)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
