"""A zip is anybody's: what is not exactly a bundle is refused in one line, and nothing lands outside."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path

import pytest

from mlaprof import archive
from mlaprof.archive import CHECKSUMS, is_archive, read_archive, write_archive
from mlaprof.errors import RunFileError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "report").mkdir(parents=True)
    (folder / "run.mlaprof").write_bytes(bytes(range(256)))
    (folder / "report" / "report.html").write_text("<p>µs</p>")
    (folder / "reproduce.sh").write_text("#!/bin/sh\n")
    path = tmp_path / "bundle.zip"
    write_archive(path, folder, executable=("reproduce.sh",))
    return path


def made(path: Path, files: dict[str, bytes], *, sums: str | None = None, mode: int = 0o100644) -> Path:
    """A zip that anybody may make, by default with right checksums."""
    told = sums if sums is not None else "".join(f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in files.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(CHECKSUMS, told)
        for name, content in files.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(entry, content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(RunFileError) as caught:
        read_archive(path)
    assert caught.value.exit_code == 2 and caught.value.hint and "\n" not in str(caught.value)
    return caught.value.message


def test_what_goes_in_comes_out(bundle: Path):
    assert is_archive(bundle)
    found = read_archive(bundle)
    assert found["run.mlaprof"] == bytes(range(256)) and found["report/report.html"].decode() == "<p>µs</p>"
    assert set(found) == {"run.mlaprof", "report/report.html", "reproduce.sh"}


def test_the_same_files_make_the_same_bytes(bundle: Path, tmp_path: Path):
    write_archive(tmp_path / "again.zip", tmp_path / "files", executable=("reproduce.sh",))
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_the_script_may_be_run_and_nothing_else(bundle: Path):
    with zipfile.ZipFile(bundle) as opened:
        modes = {entry.filename: stat.S_IMODE(entry.external_attr >> 16) for entry in opened.infolist()}
    assert modes.pop("reproduce.sh") == 0o755 and set(modes.values()) == {0o644}


def test_checksums_are_those_that_sha256sum_reads(bundle: Path):
    with zipfile.ZipFile(bundle) as opened:
        lines = opened.read(CHECKSUMS).decode().splitlines()
    assert f"{hashlib.sha256(bytes(range(256))).hexdigest()}  run.mlaprof" in lines


@pytest.mark.parametrize(
    "name",
    ["../up", "a/../../up", "/etc/passwd", "C:\\x", "a\\..\\b", "a\nb", "..", "c:x", "\x1b[31m"],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str):
    assert "no name of a file inside a bundle" in refusal(made(tmp_path / "b.zip", {name: b"x"}))


def test_a_link_is_refused(tmp_path: Path):
    assert "a link" in refusal(made(tmp_path / "b.zip", {"run.mlaprof": b"/etc/passwd"}, mode=0o120777))


def test_a_changed_file_is_refused(bundle: Path, tmp_path: Path):
    files = dict(read_archive(bundle))
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    files["run.mlaprof"] += b"!"
    told = refusal(made(tmp_path / "changed.zip", files, sums=sums))
    assert "'run.mlaprof' is not what its checksum says" in told


def test_a_file_too_many_or_too_few_is_refused(tmp_path: Path):
    digest = hashlib.sha256(b"x").hexdigest()
    assert "'b' has no checksum" in refusal(made(tmp_path / "1.zip", {"a": b"x", "b": b"x"}, sums=f"{digest}  a\n"))
    assert "'b' is missing" in refusal(made(tmp_path / "2.zip", {"a": b"x"}, sums=f"{digest}  a\n{digest}  b\n"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path: Path):
    path = made(tmp_path / "b.zip", {"a": b"x"})
    with zipfile.ZipFile(path, "a") as out:
        out.writestr("a", b"y")
    assert "twice" in refusal(path)


def test_a_zip_that_is_no_bundle_is_refused(tmp_path: Path):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a", b"x")
    assert "no bundle" in refusal(path)


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = made(tmp_path / "b.zip", {"a": bytes(3 * 2**20)})
    assert "far more than it is packed" in refusal(path)
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    assert "unpacks to more than 1 MiB" in refusal(path)
    monkeypatch.setattr(archive, "MOST_FILES", 1)
    assert "2 files, more than 1" in refusal(path)


def test_a_torn_or_damaged_zip_is_refused(bundle: Path):
    whole = bundle.read_bytes()
    for torn in (whole[:-30], whole[:200], whole[:300] + b"\0" * 40 + whole[340:], b"PK\x03\x04"):
        bundle.write_bytes(torn)
        assert refusal(bundle)


def test_nothing_half_written_stays(tmp_path: Path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "absent")
    (folder / "b").write_text("x")
    (folder / "b").chmod(0o644)
    target = tmp_path / "out" / "b.zip"
    target.parent.mkdir()
    target.mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        write_archive(target, folder)
    assert [each.name for each in target.parent.iterdir()] == ["b.zip"]
