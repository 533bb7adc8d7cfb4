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


@nox.session
def vulkan(session: nox.Session) -> None:
    """The Vulkan backend on the first device there is, in software if need be; nothing is skipped.

    Needs a Vulkan driver, headers and glslc (docs/installing.md); Mesa's software device is slow, but enough.
    """
    session.install(".[test]", env={"CMAKE_ARGS": "-DSDENGINE_VULKAN=ON"})
    # Devices of the processor's kind are hidden otherwise; with float32 throughout, results compare closely.
    env = {"GGML_VK_VISIBLE_DEVICES": "0", "GGML_VK_DISABLE_F16": "1"}
    env |= {"SDENGINE_TEST_DEVICE": "vulkan:0", "HF_HUB_OFFLINE": "1"}
    session.run("sdengine", "devices", env=env)
    session.run("pytest", "tests/device", "tests/residency", *session.posargs, env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """The step benchmark on a synthetic full-size model."""
    session.install(".")
    session.run("python", "bench/step.py", *session.posargs)
