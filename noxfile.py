"""The task runner: ``nox`` runs everything that CI runs; ``nox -s tests`` one part of it."""

import os
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

PYTHON_FILES = ["python", "tests", "bench", "demo", "third_party", "noxfile.py"]
STUB = "python/sdengine/_core.pyi"


def native_files() -> list[str]:
    return sorted(str(p) for p in Path("csrc").rglob("*") if p.suffix in {".h", ".cpp", ".inl"})


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
    """Strict typing of the package, and the native stub against the native module."""
    session.install("mypy==2.4.1", "numpy", "pybind11-stubgen==3.0.0", ".")
    session.run("mypy", "python/sdengine")
    session.run("python", "tests/check_stub.py", STUB)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything under tests/, against the reference implementations."""
    session.install(".[test]")
    # Reference networks here are tiny; one thread each keeps their results and the run time steady.
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1"}
    session.run("pytest", *session.posargs, env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """The step benchmark on a synthetic full-size model."""
    session.install(".")
    session.run("python", "bench/step.py", *session.posargs)
