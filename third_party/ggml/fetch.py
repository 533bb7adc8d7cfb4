"""Bring the pinned ggml sources into a folder: ``python fetch.py DESTINATION``.

The download is one pip call with hash checking, so it works wherever pip works (mirrors and proxies
included) and runs nothing from the package: the archive is only unpacked. A stamp file makes a
second call free.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

PIN = json.loads((Path(__file__).parent / "pin.json").read_text(encoding="utf-8"))
CHANGES = json.loads((Path(__file__).parent / "changes.json").read_text(encoding="utf-8"))


def download(folder: Path) -> Path:
    """Download the pinned source archive into ``folder`` and return its path, hash checked."""
    requirement = f"{PIN['package']}=={PIN['version']} --hash=sha256:{PIN['sha256']}"
    requirements = folder / "requirements.txt"
    requirements.write_text(requirement + "\n", encoding="utf-8")
    # --no-binary only for this package: with :all: pip would build the build backend from source first.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    command += ["--no-binary", PIN["package"], "--require-hashes", "--dest", str(folder)]
    subprocess.run([*command, "--requirement", str(requirements)], check=True)
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise SystemExit(f"expected one archive of {PIN['package']}, found {archives}")
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != PIN["sha256"]:
        raise SystemExit(f"sha256 of {archives[0].name} is {found}, the pin says {PIN['sha256']}")
    return archives[0]


def unpack(archive: Path, destination: Path) -> None:
    """Unpack only the pinned folder of ``archive`` to ``destination``."""
    inside = PurePosixPath(PIN["folder"]).parts
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]  # the first part is package-version/
            if not member.isfile() or parts[: len(inside)] != inside or ".." in parts:
                continue
            target = destination.joinpath(*parts[len(inside) :])
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)


def change(destination: Path) -> None:
    """Make our few changes (``changes.json``: file, lines before, lines after, reason)."""
    for one in CHANGES:
        path = destination / one["file"]
        text = path.read_text(encoding="utf-8")
        before, after = "\n".join(one["before"]), "\n".join(one["after"])
        if text.count(before) != 1:
            raise SystemExit(f"{one['file']}: what changes.json wants to replace is not there once")
        path.write_text(text.replace(before, after), encoding="utf-8", newline="\n")


def main() -> None:
    """Fetch unless the stamp in the destination already names the pinned hash and our changes."""
    destination = Path(sys.argv[1])
    stamp = destination / ".sha256"
    wanted = PIN["sha256"] + hashlib.sha256(json.dumps(CHANGES).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(destination, ignore_errors=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        unpack(download(Path(folder)), destination)
    if not (destination / "CMakeLists.txt").is_file():
        raise SystemExit(f"{PIN['folder']} was not found in the archive")
    change(destination)
    stamp.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
