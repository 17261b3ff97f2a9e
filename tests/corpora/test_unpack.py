"""unpack.py: archives in parts, damaged, hostile, interrupted."""

import hashlib
import os
import re

import numpy as np
import pytest
from conftest import shared
from make_download import in_parts, tar_of, zip_of

import prepareData
from corpora import unpack as module
from corpora.unpack import unpack
from tools import InputError, RunError

CONTENT = {f"dev/aac/id{i % 3:05d}/ab-{i % 2}/{i:05d}.m4a": np.random.default_rng(i).bytes(500 * i) for i in range(20)}
UNPACKED = {f"voxceleb2/{path}": content for path, content in CONTENT.items()}
MUSAN = {f"musan/{kind}/set/{i}.wav": bytes([i]) * 70_000 for kind in ("music", "noise", "speech") for i in range(3)}


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """downloads({file: bytes}) writes them to a folder and publishes their MD5."""

    def put(files):
        (tmp_path / "downloads").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "downloads" / name).write_bytes(text)
            if name in module.MD5:
                monkeypatch.setitem(module.MD5, name, hashlib.md5(text).hexdigest())
        return tmp_path / "downloads"

    return put


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_md5_are_the_published_ones():
    assert len(module.MD5) == 4 + 8 + 7
    text = shared("voxceleb-facts.md").read_text()
    assert set(re.findall(r"\b[0-9a-f]{32}\b", text)) == set(module.MD5.values())
    for name in ("vox1_test_wav.zip", "vox2_dev_aac.zip", "rirs_noises.zip", "musan.tar.gz", "vox1_dev_wav_partaa"):
        assert re.search(rf"`{name}`[^0-9a-f]*(?:\([^)]*\) )?{module.MD5[name]}", text), name


def test_all_archives_are_unpacked_and_again_only_what_is_missing(tmp_path, downloads, succeeds):
    rirs = {"RIRS_NOISES/simulated_rirs/Room1/1.wav": b"r" * 999, "RIRS_NOISES/README": b""}
    trials = {"veri_test2.txt": b"1 a b"}
    archives = {"musan.tar.gz": tar_of(MUSAN), "rirs_noises.zip": zip_of(rirs), "notes.txt": b"", **trials}
    flags = ("--unpack", downloads(in_parts("vox2_dev_aac", zip_of(CONTENT), 8) | archives), "--to", tmp_path / "data")
    unpacked = UNPACKED | MUSAN | rirs | {"voxceleb1/veri_test2.txt": b"1 a b"}
    assert "32 files, 32 of them new" in succeeds(prepareData, *flags)
    assert tree(tmp_path / "data") == unpacked
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    (tmp_path / "data/musan/music/set/1.wav").write_bytes(b"short")
    (tmp_path / "data/voxceleb2/dev/aac/id00002/ab-1/00005.m4a").unlink()
    assert "32 files, 2 of them new" in succeeds(prepareData, *flags)
    assert tree(tmp_path / "data") == unpacked
    changed = [path.name for path in before if path.stat().st_mtime_ns != before[path]]
    assert sorted(changed) == ["00005.m4a", "1.wav"]


def test_missing_and_damaged_parts_are_named(tmp_path, downloads):
    parts = in_parts("vox2_dev_aac", zip_of(CONTENT), 8)
    source = downloads(parts)
    (source / "vox2_dev_aac_partac").write_bytes(parts["vox2_dev_aac_partac"][:-1] + b"?")
    with pytest.raises(InputError, match=r"wrong MD5, download again.*: vox2_dev_aac_partac$"):
        unpack(source, tmp_path / "data")
    (source / "vox2_dev_aac_partac").unlink()
    (source / "vox2_dev_aac_partah").unlink()
    with pytest.raises(InputError, match="lacks vox2_dev_aac_partac, vox2_dev_aac_partah: download"):
        unpack(source, tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"lacks all of vox1_dev_wav, .*musan\.tar\.gz: download"):
        unpack(tmp_path / "empty", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_other_editions_are_taken_when_asked(tmp_path, command):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/vox2_test_aac.zip").write_bytes(zip_of(CONTENT))
    flags = ("--unpack", tmp_path / "in", "--to", tmp_path / "data")
    status, _, complained = command(prepareData, *flags)
    assert status == 2 and "wrong MD5" in complained and complained.count("\n") == 1
    assert command(prepareData, *flags, "--any_md5")[0] == 0
    assert tree(tmp_path / "data") == UNPACKED


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil", "a/../../../evil", "/tmp/evil-unpacked"])
def test_no_path_leaves_the_folder(tmp_path, downloads, kind, name):
    file, make = ("vox1_test_wav.zip", zip_of) if kind == "zip" else ("musan.tar.gz", tar_of)
    source = downloads({file: make({"good.wav": b"good", name: b"evil"})})
    with pytest.raises(InputError, match=f"{re.escape(file)} is refused: the path .* leaves the folder"):
        unpack(source, tmp_path / "a/data")
    assert b"evil" not in tree(tmp_path / "a").values() and not os.path.exists("/tmp/evil-unpacked")


@pytest.mark.parametrize("file", ["vox1_test_wav.zip", "musan.tar.gz"])
def test_a_damaged_archive_writes_no_wrong_file_and_a_whole_one_continues(tmp_path, downloads, file):
    content = {f"wav/{i}.wav": np.random.default_rng(i).bytes(5000) for i in range(6)}
    whole = (zip_of if file.endswith("zip") else tar_of)(content)
    bad = bytearray(whole)
    bad[len(bad) // 2] ^= 4
    flipped = [bytes(bad)] if file.endswith("zip") else []  # the checksum of a tar.gz is at its end: its MD5 tells
    for damaged in (*flipped, whole[: len(whole) // 2], b"<html>"):
        with pytest.raises(RunError, match=f"{re.escape(file)} cannot be unpacked .*download it again"):
            unpack(downloads({file: damaged}), tmp_path / "data")
        assert all(text in content.values() for text in tree(tmp_path / "data").values())
    unpack(downloads({file: whole}), tmp_path / "data")
    assert set(tree(tmp_path / "data").values()) == set(content.values())
