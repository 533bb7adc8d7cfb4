"""The task runner: ``nox`` runs everything that CI runs; ``nox -s tests`` one part of it."""

import os
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

PYTHON_FILES = ["python", "tests", "bench", "demo", "third_party", "packaging", "noxfile.py"]


def native_files() -> list[str]:
    files = [*Path("csrc").rglob("*"), *Path("tests").rglob("*.cpp")]
    return sorted(str(p) for p in files if p.suffix in {".h", ".cpp", ".inl"})


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint of Python and C++."""
    session.install("ruff==0.17.5", "clang-format==23.1.5")
    session.run("ruff", "format", "--check", *PYTHON_FILES)
    session.run("ruff", "check", *PYTHON_FILES)
    session.run("clang-format", "--dry-run", "--Werror", *native_files(), silent=True)


@nox.session(name="format")
def format_(session: nox.Session) -> None:
    """Rewrite files in the project's format."""
    session.install("ruff==0.17.5", "clang-format==23.1.5")
    session.run("ruff", "format", *PYTHON_FILES)
    session.run("ruff", "check", "--fix", *PYTHON_FILES)
    session.run("clang-format", "-i", *native_files())


@nox.session
def types(session: nox.Session) -> None:
    """Strict typing of the package."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    session.install("mypy==2.4.1", *project["dependencies"])
    session.run("mypy", "python/sdengine")


@nox.session
def tests(session: nox.Session) -> None:
    """Everything under tests/, against the reference implementations."""
    session.install(".[test]")
    # Only samplers and upscalers are compared with; what these depend on (torchvision, ...) is not needed for that.
    session.install("--no-deps", "k-diffusion==0.1.1.post1", "spandrel==0.4.2", "einops==0.8.2")
    # Reference networks here are tiny; one thread each keeps their results and the run time steady, and leaves the
    # other cores to pytest-xdist's processes.
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1"}
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs, env=env)


@nox.session(python=False)
@nox.parametrize("sanitize", ["address,undefined", "thread"])
def kernels(session: nox.Session, sanitize: str) -> None:
    """The kernels' checks under sanitizers; takes minutes."""
    folder = f"build/kernel-tests-{sanitize.split(',')[0]}"
    options = (f"-DSDENGINE_SANITIZE={sanitize}", "-DCMAKE_BUILD_TYPE=Release")
    session.run("cmake", "-S", "tests/kernels", "-B", folder, *options, external=True)
    session.run("cmake", "--build", folder, "--target", "check", external=True)


OWN_MEMORY = ("any_allocation_may_fail", "every_accepted_limit_is_kept")
# GCC 12's thread sanitizer may end a process that has run many threads, inside any allocation and with no report but
# "failed to allocate 0x1ffff..." bytes: three times of five with all these tests in one process, never with a group.
SANITIZED = {
    "address": [
        (
            "tests/memory/test_failing_allocations.py",
            # Not its test of the host's memory: a process with a sanitizer's is no measure.
            *(f"tests/memory/test_own_memory.py::test_{name}" for name in OWN_MEMORY),
            *("tests/residency", "tests/native/test_device_failures.py"),
            *("tests/test_bad_input.py", "tests/test_fuzz_load.py"),
            "tests/adapters/test_pipelines.py",
        )
    ],
    "thread": [
        ("tests/residency/test_threads.py", "tests/native/test_gil.py"),
        *(
            ("tests/e2e/test_threads.py", "-k", group)
            for group in ("own-memory", "limited", "not own-memory and not limited")
        ),
    ],
}
"""What `sanitize` runs, a process for each group: what takes and gives back memory; what runs in several threads."""


@nox.session
@nox.parametrize("sanitizer", list(SANITIZED))
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """Tests over a build of everything native with a sanitizer (GCC, Linux); half an hour on two cores.

    ``nox -s "sanitize(sanitizer='thread')"`` runs one of the two.
    """
    session.install(".[test]", env={"CMAKE_ARGS": f"-DSDENGINE_SANITIZE={sanitizer}"})
    # Python is not built with it, so that the library must be there first; libstdc++ with it, to see what is thrown.
    libraries = [f"lib{sanitizer[0]}san.so", "libstdc++.so"]
    found = [
        session.run("gcc", f"-print-file-name={name}", silent=True, external=True)
        for name in libraries
    ]
    suppressions = Path("tests/sanitizers").resolve()
    options = {
        # Leaks are looked for by the tests themselves, in the middle (tests/memory/leaks.py).
        "ASAN_OPTIONS": "detect_leaks=1:leak_check_at_exit=0:detect_odr_violation=0",
        "LSAN_OPTIONS": f"suppressions={suppressions / 'leaks.supp'}:print_suppressions=0",
        "TSAN_OPTIONS": f"suppressions={suppressions / 'threads.supp'}:halt_on_error=1",
    }
    env = {**options, "LD_PRELOAD": " ".join(str(path).strip() for path in found)}
    # So that the leak checker sees what Python's objects point to.
    env |= {"PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # Shadow memory wants addresses that are not spread at random. What a sanitizer reports before it ends the
    # process would be lost in pytest's own file of what was written.
    pytest = ("setarch", "-R", "python", "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys")
    for tests in [session.posargs] if session.posargs else SANITIZED[sanitizer]:
        session.run(*pytest, *tests, env=env, external=True)


@nox.session
def cross(session: nox.Session) -> None:
    """Whether the native code compiles for Windows, macOS and AArch64; takes minutes."""
    session.install("ziglang==0.17.1", "cmake", "ninja", "pip", "pybind11", "scikit-build-core")
    session.run("python", "packaging/cross.py", *session.posargs)


@nox.session
def vulkan(session: nox.Session) -> None:
    """The second test command: layers, networks, residency and limits on Vulkan, in software if need be.

    Needs a Vulkan driver, headers and glslc (docs/installing.md); Mesa's software device is slow, but enough.
    """
    session.install(".[test]", env={"CMAKE_ARGS": "-DSDENGINE_VULKAN=ON"})
    # Devices of the processor's kind are hidden otherwise; with float32 throughout, results compare closely.
    env = {"GGML_VK_VISIBLE_DEVICES": "0", "GGML_VK_DISABLE_F16": "1"}
    env["GGML_VK_DISABLE_INTEGER_DOT_PRODUCT"] = "1"  # activations beside quantized weights too
    env |= {"SDENGINE_TEST_DEVICE": "vulkan:0", "HF_HUB_OFFLINE": "1"}
    session.run("sdengine", "devices", env=env)
    tests = ["tests/device", "tests/residency", "tests/memory/test_own_memory.py"]
    session.run("pytest", *(session.posargs or tests), env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """The step benchmark on a synthetic full-size model."""
    session.install(".")
    session.run("python", "bench/step.py", *session.posargs)
