"""A zip of files with their checksums: written whole, and read as what it is, something that anybody may have made.

Nothing is unpacked by the names inside. What is read is held to its checksum, and what was not promised is refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mlaprof.errors import RunFileError

CHECKSUMS = "SHA256SUMS"
MOST_FILES = 2_000
MOST_BYTES = 512 * 2**20  # unpacked, all files together
MOST_RATIO = 1_000  # unpacked over packed, of a file; deflate reaches 1032
_HINT = "ask for the bundle anew, as `mlaprof bundle` wrote it"
_MOMENT = (1980, 1, 1, 0, 0, 0)  # in the place of dates: the same files make the same bytes


def is_archive(path: Path) -> bool:
    """The file begins as a zip does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def write_archive(path: Path, folder: Path, *, executable: tuple[str, ...] = ()) -> None:
    """Write all files below folder and their checksums to a zip that appears whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {each.relative_to(folder).as_posix(): each for each in sorted(folder.rglob("*")) if each.is_file()}
    sums = "".join(f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {name}\n" for name, each in files.items())
    handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_entry(CHECKSUMS), sums)
            for name, each in files.items():
                archive.writestr(_entry(name, 0o755 if name in executable else 0o644), each.read_bytes())
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def read_archive(path: Path) -> Mapping[str, bytes]:
    """Name -> content of every file of a zip that write_archive wrote.

    Raises RunFileError on anything else: names that lead out of a folder, links, passwords, too much of anything, a
    file that is not what its checksum says, one without a checksum or a checksum without its file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _contents(archive, path)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _refusal(path, f"damaged zip: {' '.join(str(error).split())[:200]}") from error
    sums = _sums(found.pop(CHECKSUMS, None), path)
    for name in sorted(found.keys() ^ sums.keys()):
        what = "has no checksum" if name in found else "is missing"
        raise _refusal(path, f"{_quoted(name)} {what}")
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise _refusal(path, f"{_quoted(name)} is not what its checksum says: it was damaged or changed")
    return found


def _entry(name: str, mode: int = 0o644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _MOMENT)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (stat.S_IFREG | mode) << 16
    return entry


def _contents(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise _refusal(path, f"{len(entries)} files, more than {MOST_FILES}")
    found: dict[str, bytes] = {}
    left = MOST_BYTES
    for entry in entries:
        _check_entry(entry, path)
        if entry.filename in found:
            raise _refusal(path, f"{_quoted(entry.filename)} is in it twice")
        with archive.open(entry) as file:
            content = file.read(left + 1)  # the size that it states may be a lie
        left -= len(content)
        if left < 0 or len(content) > MOST_RATIO * max(entry.compress_size, 1024):
            raise _refusal(path, f"unpacks to more than {MOST_BYTES // 2**20} MiB, or {_quoted(entry.filename)} to far "
                                 "more than it is packed")  # fmt: skip
        found[entry.filename] = content
    return found


def _check_entry(entry: zipfile.ZipInfo, path: Path) -> None:
    name = PurePosixPath(entry.orig_filename)
    odd = any(each in entry.orig_filename for each in ("\\", ":", "\0")) or not entry.orig_filename.isprintable()
    if odd or name.is_absolute() or ".." in name.parts or not name.parts:
        raise _refusal(path, f"{_quoted(entry.orig_filename)} is no name of a file inside a bundle")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        raise _refusal(path, f"{_quoted(entry.filename)} is a folder, a link or no plain file")
    if entry.flag_bits & 0x1:
        raise _refusal(path, f"{_quoted(entry.filename)} asks for a password")


def _sums(content: bytes | None, path: Path) -> dict[str, str]:
    if content is None:
        raise _refusal(path, f"no {CHECKSUMS} in it: a zip, but no bundle")
    found: dict[str, str] = {}
    for line in content.decode("utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        found[name] = digest
    return found


def _refusal(path: Path, why: str) -> RunFileError:
    return RunFileError(why, where=str(path), hint=_HINT)


def _quoted(name: str) -> str:
    """The name on one line, whatever is in it."""
    return ascii(name[:80])
