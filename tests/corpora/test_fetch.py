"""download.py against a server on 127.0.0.1 that breaks off, hangs, lies, or serves something else."""

import base64
import collections
import hashlib
import io
import os
import re
import shutil
import time

import numpy as np
import pytest
from make_download import Site

import prepareData
from corpora import download as module
from corpora.check import KNOWN_LISTS

NAME, CONTENT = "musan.tar.gz", np.random.default_rng(0).bytes(500_000)
TRIALS = "".join(f"{i % 2} id1/{i}.wav id{1 + i % 2}/x.wav\n" for i in range(37611)).encode()


@pytest.fixture
def site(monkeypatch):
    """A site with short patience of the client, and the published MD5 of what it has."""
    content = {NAME: CONTENT, "veri_test2.txt": TRIALS, "vox1_test_wav.zip": CONTENT[::-1]}
    for name, each in content.items():
        group, published, url = module.FILES[name]
        md5 = published if group == "lists" else hashlib.md5(each).hexdigest()
        monkeypatch.setitem(module.FILES, name, (group, md5, url))
    monkeypatch.setattr(module, "TIMEOUT", 0.15)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    site = Site(content)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def fetch(site, tmp_path, command):
    """fetch(what, ...) downloads from the site -> (exit status, what was printed, what was complained)."""
    return lambda *what: command(prepareData, "--download", *what, "--to", tmp_path, "--from", site.url)


def cut(*sizes):
    """A way to write: in each request that is read so many bytes, then the connection breaks; None: all."""
    left = collections.deque(sizes)

    def write(file, body):
        file.write(body[: left.popleft() if len(left) > 1 else left[0]])

    return write


def hang(file, body):
    file.write(body[:100_000])
    time.sleep(0.3)


# {what is wrong: (changes of the site, what the one line has to say, or None: it succeeds nevertheless)}
FAULTS = {
    "nothing": ({}, None),
    "breaks off once": ({"write": cut(None, 200_000, None)}, None),
    "breaks off at every 100 kB": ({"write": cut(100_000)}, None),
    "breaks off, without ranges": ({"write": cut(None, 200_000, None), "ranges": False}, None),
    "always breaks off at the same byte": ({"write": cut(200_000), "ranges": False}, "cannot be downloaded.*--from"),
    "hangs": ({"write": hang, "ranges": False}, "cannot be downloaded.*timed out"),
    "announces too much": ({"announce": lambda size: size + 1000}, "cannot be downloaded.*1000 more expected"),
    "announces too little": ({"announce": lambda size: size - 1000}, "not the published file and was removed.*MD5"),
    "another file": ({"content": {NAME: CONTENT[::-1]}}, "not the published file and was removed.*MD5"),
    "an error page": ({"content": {NAME: b"<html>"}, "type": "text/html; charset=utf-8"}, "is a web page"),
    "an error page as a file": ({"content": {NAME: b"<html>"}}, "not the published file and was removed.*MD5"),
    "missing": ({"content": {}}, "404 Not Found.*--from"),
    "overloaded": ({"status": 503, "ranges": False}, "503 .*Service Unavailable"),
}


def whole_and_nothing_else(folder):
    return [path.name for path in folder.iterdir()] == [NAME] and (folder / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", FAULTS)
def test_the_right_bytes_or_one_line_and_the_next_call_completes_it(site, fetch, tmp_path, wrong):
    changes, expected = FAULTS[wrong]
    for name, value in changes.items():
        setattr(site, name, value)
    status, _, complained = fetch("musan")
    if expected:
        assert status in (1, 2) and re.search(expected, complained) and complained.count("\n") == 1, complained
        assert not (tmp_path / NAME).exists()
        site.behave()
        site.content = {NAME: CONTENT}
        status, _, complained = fetch("musan")
    assert status == 0 and whole_and_nothing_else(tmp_path), complained
    before = len(site.requests)
    status, printed, _ = fetch("musan")
    assert status == 0 and "1 file, 0 of them new" in printed and len(site.requests) == before


@pytest.mark.parametrize("changed", [False, "size", "tag"])
def test_a_later_call_continues_unless_the_file_has_changed(site, fetch, tmp_path, changed):
    if changed:
        site.content[NAME] = bytes(450_000 if changed == "size" else len(CONTENT))
    breaks = iter([None, 200_000])
    site.write = lambda file, body: file.write(body[: next(breaks, 0)])
    assert fetch("musan")[0] == 1
    site.content[NAME] = CONTENT
    site.behave()
    assert fetch("musan")[0] == 0 and whole_and_nothing_else(tmp_path)
    assert (site.requests[-1][1] == 0) == bool(changed)


def test_a_damaged_file_is_replaced_and_a_whole_part_needs_no_second_transfer(site, fetch, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    assert fetch("musan")[0] == 0 and whole_and_nothing_else(tmp_path)
    os.rename(tmp_path / NAME, module.fetch(f"{site.url}/{NAME}", tmp_path / NAME, None)[0])
    site.requests.clear()
    assert fetch("musan")[0] == 0 and whole_and_nothing_else(tmp_path)
    assert {first for _, first, _ in site.requests} == {len(CONTENT) - 1}


def test_trial_lists_are_read_and_counted(site, fetch, tmp_path):
    for content in (b"<html>", TRIALS[: len(TRIALS) // 2], TRIALS[: TRIALS.index(b"id1/1.wav")]):
        site.content["veri_test2.txt"] = content
        status, _, complained = fetch("veri_test2.txt")
        assert status == 1 and "not the published file and was removed" in complained
        assert not any(tmp_path.iterdir())
    site.content["veri_test2.txt"] = TRIALS
    assert fetch("veri_test2.txt")[0] == 0
    assert module.FILES.keys() >= {file for _, file, *_ in KNOWN_LISTS}
    assert all(module.FILES[file][1] == str(trials) for _, file, trials, *_ in KNOWN_LISTS)


def test_the_password_goes_to_voxceleb_only_and_no_secret_is_printed(site, fetch, tmp_path, command, monkeypatch):
    site.authorization = "Basic " + base64.b64encode("Jürgen:pass wörd".encode()).decode()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "VOXCELEB_PASSWORD" in fetch("vox1_test_wav.zip", "--user", "Jürgen")[2]
    for user, password in (("Jürgen", "wrong"), ("Jürgen", "pass wörd")):
        monkeypatch.setenv("VOXCELEB_PASSWORD", password)
        status, printed, complained = fetch("vox1_test_wav.zip", "--user", user)
        assert password not in printed + complained
        assert ("check --user and the password" in complained) == (password == "wrong") == bool(status)
    assert (tmp_path / "vox1_test_wav.zip").read_bytes() == CONTENT[::-1]
    assert fetch("musan", "--user", "Jürgen")[0] == 2 and site.requests[-1] == (NAME, 0, None)
    site.authorization, site.content[NAME] = None, b"no musan"
    base = site.url.replace("//", "//me:pass@")
    for url in (f"{base}/download?key=SECRET&file={NAME}", f"{base}/gone?key=SECRET", "http://me:pass@127.0.0.1:1/?SECRET"):
        (tmp_path / "mirror.txt").write_text(f"{NAME} {url}\n")
        flags = ("--to", tmp_path, "--from", tmp_path / "mirror.txt")
        status, printed, complained = command(prepareData, "--download", "musan", *flags)
        assert status and complained.count("\n") == 1 and "SECRET" not in complained and "pass" not in complained


def test_mirrors_and_room(site, fetch, tmp_path, command, monkeypatch):
    flags = ("--download", "musan", "--to", tmp_path / "to", "--from")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 499_999))
    status, _, complained = command(prepareData, *flags, site.url)
    assert status == 2 and re.search(r"--to .* has 0.0 GB free, the download needs 0.0 GB", complained)
    monkeypatch.undo()
    for text in (f"{NAME}\n", f"musan.tgz {site.url}/a\n"):
        (tmp_path / "mirror.txt").write_text(text)
        status, _, complained = command(prepareData, *flags, tmp_path / "mirror.txt")
        assert status == 2 and "expected '<file name> <URL>'" in complained
    for mirror in (f"{site.url}/a/folder/", f"{site.url}/download?key=1&file="):
        assert command(prepareData, *flags, mirror, "--any_md5")[0] == 0
        assert (tmp_path / "to" / NAME).read_bytes() == CONTENT
        (tmp_path / "to" / NAME).unlink()
