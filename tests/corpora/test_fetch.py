"""download.py against a server on 127.0.0.1 that breaks off, hangs, lies, or serves something else."""

import base64
import hashlib
import io
import itertools
import re
import shutil
import time

import numpy as np
import pytest
from make_download import Site

import prepareData
from corpora import download as module
from corpora.check import KNOWN_LISTS

NAME, LIST, VOX = "musan.tar.gz", "veri_test2.txt", "vox1_test_wav.zip"
CONTENT = np.random.default_rng(0).bytes(500_000)
TRIALS = "".join(f"{i % 2} id1/{i}.wav id{1 + i % 2}/x.wav\n" for i in range(37611)).encode()


@pytest.fixture
def site(monkeypatch):
    """A site with three published files, for an impatient client."""
    for name in (NAME, VOX):
        group, _, url = module.FILES[name]
        monkeypatch.setitem(module.FILES, name, (group, hashlib.md5(CONTENT).hexdigest(), url))
    monkeypatch.setattr(module, "TIMEOUT", 0.15)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    site = Site({NAME: CONTENT, LIST: TRIALS, VOX: CONTENT})
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def fetch(site, tmp_path, command):
    """fetch(what, flag, ...) downloads from the site -> (exit status, what was printed, what was complained)."""
    return lambda *words: command(prepareData, "--download", *words, "--to", tmp_path, "--from", site.url)


def cut(*sizes):
    """The server's requests are answered with so many bytes each, the last number for all that follow."""
    left = itertools.chain(sizes, itertools.repeat(sizes[-1]))
    return lambda file, body: file.write(body[: next(left)])


def hang(file, body):
    file.write(body[:100_000])
    time.sleep(0.3)


# {what is wrong: (the site's ways, what the one line has to say, or None: it succeeds nevertheless)}. The first request
# only asks for the size.
FAULTS = {
    "nothing": ({}, None),
    "breaks off once": ({"write": cut(None, 200_000, None)}, None),
    "breaks off once, without ranges": ({"write": cut(None, 200_000, None), "ranges": False}, None),
    "breaks off at every 100 kB": ({"write": cut(100_000)}, None),
    "breaks off for good": ({"write": cut(None, 200_000, 0)}, "more expected.*continue.*--from"),
    "always breaks off, without ranges": ({"write": cut(200_000), "ranges": False}, "more expected.*--from"),
    "has changed later": ({"content": {NAME: CONTENT[::-1]}, "write": cut(None, 200_000, 0)}, "more expected"),
    "is shorter later": ({"content": {NAME: CONTENT * 2}, "write": cut(None, 700_000, 0)}, "more expected"),
    "announces no length": ({"announce": lambda size: 0, "ranges": False}, None),
    "hangs": ({"write": hang, "ranges": False}, "timed out"),
    "announces too much": ({"announce": lambda size: size + 1000}, "1000 more expected"),
    "announces too little": ({"announce": lambda size: size - 1000}, "not the published file.*MD5"),
    "another file": ({"content": {NAME: CONTENT[::-1]}}, "not the published file.*MD5"),
    "an error page": ({"content": {NAME: b"<html>"}, "type": "text/html; charset=utf-8"}, "is a web page"),
    "an error page as a file": ({"content": {NAME: b"<html>"}}, "not the published file.*MD5"),
    "missing": ({"content": {}}, "404 Not Found.*--from"),
    "declared as compressed": ({"encoding": "x-gzip"}, None),
    "overloaded": ({"status": 503, "ranges": False}, "503 .*Service Unavailable"),
}
CONTINUED = ("breaks off for good", "always breaks off, without ranges", "hangs")


@pytest.mark.parametrize("wrong", FAULTS)
def test_the_right_bytes_or_one_line_and_the_next_call_completes_it(site, fetch, tmp_path, wrong):
    ways, expected = FAULTS[wrong]
    site.__dict__.update(ways)
    status, _, complained = fetch("musan")
    if expected:
        assert status in (1, 2) and re.search(expected, complained) and complained.count("\n") == 1, complained
        assert (tmp_path / NAME).exists() == ("published" in expected)  # kept: --any_md5 would accept it
        site.behave()
        site.content = {NAME: CONTENT}
        status, _, complained = fetch("musan")
        assert (site.requests[-1][1] > 0) == (wrong in CONTINUED)
    assert status == 0, complained
    assert [path.name for path in tmp_path.iterdir()] == [NAME] and (tmp_path / NAME).read_bytes() == CONTENT


def test_what_is_whole_is_not_transferred_again_and_what_is_damaged_is(site, fetch, tmp_path):
    for content, new in ((CONTENT, 0), (CONTENT[:-1], 1)):
        (tmp_path / NAME).write_bytes(content)
        assert f"1 file, {new} of them new" in fetch("musan")[1] and bool(site.requests) == bool(new)
    (tmp_path / NAME).rename(module.fetch(f"{site.url}/{NAME}", tmp_path / NAME, None)[0])
    assert fetch("musan")[0] == 0 and site.requests[-1][1] == len(CONTENT) - 1
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_the_others_are_transferred_when_one_is_missing(site, fetch, tmp_path):
    site.content.pop(LIST)
    status, _, complained = fetch("musan", LIST)
    assert status == 2 and complained.count("\n") == 1 and f"{LIST} from" in complained
    assert [path.name for path in tmp_path.iterdir()] == [NAME] and (tmp_path / NAME).read_bytes() == CONTENT


def test_trial_lists_are_read_and_counted(site, fetch, tmp_path):
    for content in (b"<html>", TRIALS[: len(TRIALS) // 2]):
        site.content[LIST] = content
        status, _, complained = fetch(LIST)
        assert status == 1 and "not the published file" in complained and (tmp_path / LIST).read_bytes() == content
    site.content[LIST] = TRIALS
    assert fetch(LIST)[0] == 0
    assert all(module.FILES[file][1] == str(trials) for _, file, trials, *_ in KNOWN_LISTS)


def test_the_password_goes_to_voxceleb_only_and_no_secret_is_printed(site, fetch, tmp_path, command, monkeypatch):
    site.authorization = "Basic " + base64.b64encode("Jürgen:pass wörd".encode()).decode()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for password in ("", "wrong", "pass wörd"):
        monkeypatch.setenv("VOXCELEB_PASSWORD", password)
        status, _, complained = fetch(VOX, "--user", "Jürgen")
        assert (status, "check --user" in complained) == ((0, False) if password == "pass wörd" else (2, True))
    assert (tmp_path / VOX).read_bytes() == CONTENT
    assert fetch("musan", "--user", "Jürgen")[0] == 2 and site.requests[-1] == (NAME, 0, None)
    site.behave()
    site.content[NAME] = b"no musan"
    for url in (f"{site.url}/a?key=SECRET&file={NAME}", f"{site.url}/a?key=SECRET", "http://127.0.0.1:1/?SECRET"):
        (tmp_path / "mirror.txt").write_text(f"{NAME} {url.replace('//', '//me:SECRET@')}\n")
        flags = ("--to", tmp_path, "--from", tmp_path / "mirror.txt")
        status, _, complained = command(prepareData, "--download", "musan", *flags)
        assert status and complained.count("\n") == 1 and "SECRET" not in complained
        (tmp_path / NAME).unlink(missing_ok=True)


def test_mirrors_and_room(site, tmp_path, command, monkeypatch):
    def fetch(mirror):
        return command(prepareData, "--download", "musan", "--to", tmp_path / "to", "--from", mirror)

    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 499_999))
        assert re.search("--to .* GB free, the download needs", fetch(site.url)[2])
    for text in (f"{NAME}\n", f"musan.tgz {site.url}/a\n"):
        (tmp_path / "mirror.txt").write_text(text)
        assert "expected '<file name> <URL>'" in fetch(tmp_path / "mirror.txt")[2]
    for mirror in (f"{site.url}/a/folder/", f"{site.url}/download?key=1&file="):
        assert fetch(mirror)[0] == 0 and (tmp_path / "to" / NAME).read_bytes() == CONTENT
        (tmp_path / "to" / NAME).unlink()
