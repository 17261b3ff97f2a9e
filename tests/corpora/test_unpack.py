"""unpack.py: archives in parts, damaged, encrypted, hostile, interrupted."""

import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import SHARED
from nasty import zip_of

import prepareData
from corpora import unpack as room
from corpora.unpack import Parts, unpack
from tools import InputError, RunError

CONTENT = {f"dev/aac/id{i % 3:05d}/ab-{i % 2}/{i:05d}.m4a": np.random.default_rng(i).bytes(500 * i) for i in range(20)}
UNPACKED = {f"voxceleb2/{path}": content for path, content in CONTENT.items()}
MUSAN = {f"musan/{kind}/set/{i}.wav": bytes([i]) * 70_000 for kind in ("music", "noise", "speech") for i in range(3)}


def zipped(content):
    return zip_of(content, zipfile.ZIP_DEFLATED)


def tarred(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in content.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return file.getvalue()


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """downloads({file: bytes}) writes them to a folder and publishes their MD5."""

    def put(files, folder="downloads"):
        (tmp_path / folder).mkdir(exist_ok=True)
        published = {name: dict(parts) for name, parts in room.ARCHIVES.items()}
        for name, text in files.items():
            (tmp_path / folder / name).write_bytes(text)
            for parts in published.values():
                if name in parts:
                    parts[name] = hashlib.md5(text).hexdigest()
        monkeypatch.setattr(room, "ARCHIVES", published)
        return tmp_path / folder

    return put


def in_parts(archive, name="vox2_dev_aac", count=8):
    size = -(-len(archive) // count)
    return {f"{name}_parta{'abcdefgh'[i]}": archive[i * size : (i + 1) * size] for i in range(count)}


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_published_md5_are_those_that_are_written_down():
    table = {part: md5 for parts in room.ARCHIVES.values() for part, md5 in parts.items()}
    assert len(table) == 4 + 8 + 6 and len(set(table.values())) == len(table)
    facts = SHARED / "voxceleb-facts.md"
    if not facts.exists():
        pytest.skip(f"{facts} is not here: it is no part of the repository")
    text = facts.read_text()
    assert set(re.findall(r"\b[0-9a-f]{32}\b", text)) == set(table.values())
    for name in ("vox1_test_wav.zip", "vox2_dev_aac.zip", "rirs_noises.zip", "musan.tar.gz", "vox1_dev_wav_partaa"):
        assert re.search(rf"`{name}`[^0-9a-f]*(?:\([^)]*\) )?{table[name]}", text), name


def test_parts_are_read_as_one_file(tmp_path):
    random = np.random.default_rng(0)
    whole = random.bytes(10_000)
    cuts = [0, 1, 1, 300, 4096, 9999, 10_000]
    paths = [tmp_path / str(i) for i in range(len(cuts) - 1)]
    for path, begin, end in zip(paths, cuts, cuts[1:]):
        path.write_bytes(whole[begin:end])
    with io.BufferedReader(Parts(paths), 64) as file:
        assert file.read() == whole
        for _ in range(300):
            place, count = random.integers(0, 10_100), random.integers(0, 3000)
            file.seek(place)
            assert file.read(count) == whole[place : place + count]
        assert file.seek(-7, os.SEEK_END) == 9993 and file.read() == whole[-7:]


def test_all_archives_of_a_folder(tmp_path, downloads, command):
    rirs = {"RIRS_NOISES/simulated_rirs/Room1/1.wav": b"r" * 999, "RIRS_NOISES/README": b""}
    source = downloads(
        in_parts(zipped(CONTENT)) | {"musan.tar.gz": tarred(MUSAN), "rirs_noises.zip": zipped(rirs), "notes.txt": b""}
    )
    flags = ("--unpack", source, "--to", tmp_path / "data")
    status, printed, complained = command(prepareData, *flags)
    assert status == 0, complained
    assert tree(tmp_path / "data") == UNPACKED | MUSAN | rirs
    assert "31 files" in printed and "0 of them were there" in printed and "RIRS_NOISES, musan, voxceleb2" in printed
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    (tmp_path / "data/musan/music/set/1.wav").write_bytes(b"short")
    (tmp_path / "data/voxceleb2/dev/aac/id00002/ab-1/00005.m4a").unlink()
    status, printed, _ = command(prepareData, *flags)
    assert status == 0 and "29 of them were there" in printed
    assert tree(tmp_path / "data") == UNPACKED | MUSAN | rirs
    changed = [path.name for path in before if path.is_file() and path.stat().st_mtime_ns != before[path]]
    assert sorted(changed) == ["00005.m4a", "1.wav"]


def test_parts_already_joined(tmp_path, downloads):
    archive = zipped(CONTENT)
    source = downloads({"vox2_dev_aac.zip": archive, "vox2_dev_aac_partaa": archive[:100]})
    assert unpack(source, tmp_path / "data").archives == ["vox2_dev_aac.zip"]
    assert tree(tmp_path / "data") == UNPACKED


def test_missing_and_damaged_parts_are_named(tmp_path, downloads):
    parts = in_parts(zipped(CONTENT))
    source = downloads(parts)
    (source / "vox2_dev_aac_partac").write_bytes(parts["vox2_dev_aac_partac"][:-1] + b"?")
    with pytest.raises(InputError, match=r"download again.*: vox2_dev_aac_partac \(MD5 [0-9a-f]{32}, pub") as error:
        unpack(source, tmp_path / "data")
    assert "partab" not in str(error.value)
    (source / "vox2_dev_aac_partac").unlink()
    (source / "vox2_dev_aac_partah").unlink()
    with pytest.raises(InputError, match="lacks vox2_dev_aac_partac, vox2_dev_aac_partah: download"):
        unpack(source, tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds none of the archives vox1_dev_wav_part\*, .*musan\.tar\.gz"):
        unpack(tmp_path / "empty", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_other_editions_are_taken_when_asked(tmp_path, command):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/vox2_test_aac.zip").write_bytes(zipped(CONTENT))
    flags = ("--unpack", tmp_path / "in", "--to", tmp_path / "data")
    status, _, complained = command(prepareData, *flags)
    assert status == 2 and "published 0d2b3ea430a821c33263b5ea37ede312" in complained and complained.count("\n") == 1
    assert command(prepareData, *flags, "--any_md5")[0] == 0
    assert tree(tmp_path / "data") == UNPACKED


LEADING_OUT = ["../evil", "a/../../evil", "/tmp/evil-unpacked", "a//b", "./../evil", "C:/a", "a\\..\\b", "..", "a\nb"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", LEADING_OUT)
def test_no_path_leaves_the_folder(tmp_path, downloads, kind, name):
    content = {"good.wav": b"good", name: b"evil"}
    archives = {"zip": ("vox1_test_wav.zip", zipped), "tar": ("musan.tar.gz", tarred)}
    file, make = archives[kind]
    source = downloads({file: make(content)})
    with pytest.raises(InputError, match=f"{re.escape(file)} is refused: the path .* may lead out"):
        unpack(source, tmp_path / "a/data")
    assert tree(tmp_path / "a") == {} and not os.path.exists("/tmp/evil-unpacked")


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "FIFOTYPE"])
def test_links_and_devices_are_refused(tmp_path, downloads, kind):
    info = tarfile.TarInfo("musan/link")
    info.type, info.linkname = getattr(tarfile, kind), "/etc/passwd"
    source = downloads({"musan.tar.gz": tarred({"musan/a": b"a", info: b""})})
    with pytest.raises(InputError, match=r"musan\.tar\.gz is refused: 'musan/link' in it is a link or a device"):
        unpack(source, tmp_path / "data")
    link = zipfile.ZipInfo("wav/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    source = downloads({"vox1_test_wav.zip": zipped({"wav/a": b"a", link: b"/etc/passwd"})}, "zips")
    with pytest.raises(InputError, match=r"vox1_test_wav\.zip is refused: 'wav/link' in it is a link"):
        unpack(source, tmp_path / "data")
    assert tree(tmp_path / "data") == {}


def test_a_file_twice_is_refused(tmp_path, downloads):
    info = tarfile.TarInfo("a")
    source = downloads({"musan.tar.gz": tarred({"a": b"1", info: b"2"})})
    with pytest.raises(InputError, match="a is in it twice"):
        unpack(source, tmp_path / "data")


def test_a_password_is_asked_for_in_one_line(tmp_path, downloads):
    if not shutil.which("zip"):
        pytest.skip("zip is not installed, and Python writes no encrypted files")
    (tmp_path / "a.wav").write_bytes(b"sound" * 1000)
    subprocess.run(["zip", "-q", "-P", "secret", "vox1_test_wav.zip", "a.wav"], cwd=tmp_path, check=True)
    source = downloads({"vox1_test_wav.zip": (tmp_path / "vox1_test_wav.zip").read_bytes()})
    with pytest.raises(InputError, match=r"asks for a password \('a\.wav' is encrypted\): unpack it with"):
        unpack(source, tmp_path / "data")


@pytest.mark.parametrize("file", ["vox1_test_wav.zip", "musan.tar.gz"])
def test_too_little_room_is_seen_beforehand(tmp_path, downloads, monkeypatch, file):
    content = {f"{i}.wav": bytes(100_000) for i in range(10)}
    source = downloads({file: (zipped if file.endswith("zip") else tarred)(content)})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900_000))
    with pytest.raises(InputError, match=r"has 0\.0 GB free, but .* need 0\.0 GB or more"):
        unpack(source, tmp_path / "data")
    assert tree(tmp_path / "data") == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_100_000))
    assert unpack(source, tmp_path / "data").files == 10
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert unpack(source, tmp_path / "data").already == 10  # what is there needs none


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives_get_one_line_and_write_no_wrong_file(tmp_path, downloads, kind):
    """At every place one bit is changed or the rest cut off: an error of ours, or exactly the content."""
    file, make, content = ("vox1_test_wav.zip", zipped, CONTENT) if kind == "zip" else ("musan.tar.gz", tarred, MUSAN)
    content = dict(list(content.items())[:4])
    good, random, failures = make(content), np.random.default_rng(0), 0
    for number in range(60):
        bad, place = bytearray(good), random.integers(0, len(good))
        if number % 3:
            bad[place] ^= 1 << random.integers(0, 8)
        else:
            del bad[place:]
        target = tmp_path / str(number)
        try:
            unpack(downloads({file: bytes(bad)}), target)
        except (InputError, RunError) as error:
            assert file in str(error)
            failures += 1
        except OSError as error:  # a name that became another one's folder
            assert error.filename
        for name, text in tree(target).items() if target.exists() else ():
            assert text in content.values(), name
    assert failures > 30


def test_a_huge_header_is_not_read_into_the_memory(tmp_path, downloads):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    text = gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    with pytest.raises(InputError, match=r"musan\.tar\.gz is not a tar\.gz file, or a damaged one"):
        unpack(downloads({"musan.tar.gz": text}), tmp_path / "data")


def test_a_full_disk_and_then_room_again(tmp_path, downloads):
    resource = pytest.importorskip("resource")
    source = downloads(in_parts(zipped(CONTENT)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        with pytest.raises(OSError, match=r"m4a"):
            unpack(source, tmp_path / "data", threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    begun = tree(tmp_path / "data")
    assert begun.items() <= UNPACKED.items() and 0 < len(begun) < 20
    assert unpack(source, tmp_path / "data").already == len(begun)
    assert tree(tmp_path / "data") == UNPACKED
