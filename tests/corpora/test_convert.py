"""convert.py: ffmpeg's results, folder layout, continuing, failures."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from conftest import voice

import prepareData
from corpora.audio import to_int16
from corpora.convert import convert_folder
from tools import InputError, RunError

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)], check=True)


def write(path, sound, rate=16000, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, **settings)


def samples(path):
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    return soundfile.read(path, dtype="int16")[0]


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """fake_ffmpeg(line of shell) puts that in place of ffmpeg; None: there is none."""

    def put(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        if script:
            (folder / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
            (folder / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if script else str(folder))

    return put


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_16_khz_mono_stays_the_same_to_the_bit(tmp_path, suffix):
    wanted = {}
    for number in range(6):
        file = f"id{number % 3}/s é {number % 2}/-odd: ü'\" {number:05d}"
        wanted[file] = to_int16(voice(100 + number, 0.5 + 0.01 * number, number))
        write(tmp_path / "in" / f"{file}.{'wav' if number % 2 else 'flac'}", wanted[file], subtype="PCM_16")
    done = convert_folder(tmp_path / "in", tmp_path / "out", suffix, threads=3)
    assert done == (6, 0, {})
    assert names(tmp_path / "out") == sorted(f"{file}.{suffix}" for file in wanted)
    for file, expected in wanted.items():
        np.testing.assert_array_equal(samples(tmp_path / "out" / f"{file}.{suffix}"), expected)


@needs_ffmpeg
def test_m4a_is_decoded_and_again_only_what_is_missing(tmp_path):
    write(tmp_path / "speech.wav", voice(120, 2.3, 0))
    (tmp_path / "in/id1/video").mkdir(parents=True)
    for number in range(3):
        ffmpeg("-i", tmp_path / "speech.wav", "-c:a", "aac", tmp_path / f"in/id1/video/{number}.m4a")
    assert convert_folder(tmp_path / "in", tmp_path / "out")[0] == 3
    found = samples(tmp_path / "out/id1/video/0.wav")[: int(2.3 * 16000)]
    assert np.corrcoef(found, soundfile.read(tmp_path / "speech.wav")[0])[0, 1] > 0.95
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.wav")}
    (tmp_path / "out/id1/video/1.wav").unlink()
    assert convert_folder(tmp_path / "in", tmp_path / "out") == (1, 2, {})
    assert [path.name for path, time in before.items() if path.stat().st_mtime_ns != time] == ["1.wav"]


@needs_ffmpeg
def test_failures_are_listed_and_the_rest_is_done(tmp_path, command):
    write(tmp_path / "in/good.wav", voice(100, 0.3, 0))
    write(tmp_path / "in/cut.wav", voice(100, 1, 0))
    os.truncate(tmp_path / "in/cut.wav", 5000)
    write(tmp_path / "long.wav", voice(120, 3, 0))
    ffmpeg("-i", tmp_path / "long.wav", "-c:a", "aac", "-movflags", "+faststart", tmp_path / "in/cut too.m4a")
    os.truncate(tmp_path / "in/cut too.m4a", os.path.getsize(tmp_path / "in/cut too.m4a") // 2)
    (tmp_path / "in/page.m4a").write_text("<html><title>Sign in</title></html>")
    ffmpeg("-f", "lavfi", "-i", "color=size=32x32:duration=1", "-c:v", "mpeg4", tmp_path / "in/film.mp4")
    (tmp_path / "in/notes.txt").write_text("")
    (tmp_path / "in/._good.wav").write_text("")
    status, _, complained = command(prepareData, "--convert", tmp_path / "in", "--to", tmp_path / "out")
    assert status == 1 and complained.strip().count("\n") == 0 and "4 files failed" in complained
    lines = [line.split("\t") for line in (tmp_path / "out/failed.tsv").read_text().splitlines()]
    assert [file for file, _ in lines] == ["file", "cut too.m4a", "cut.wav", "film.mp4", "page.m4a"]
    assert "matches no streams" in lines[3][1]
    assert names(tmp_path / "out") == ["failed.tsv", "good.wav"]  # nothing half, nothing left over


@pytest.mark.parametrize(("files", "source", "to", "message"), [
    (["a.m4a", "a.wav"], "in", "out", r"2 files would become .*a\.wav"),
    (["a.txt", "b"], "in", "out", r"has no audio .*\.m4a"),
    (["a.wav"], "none", "out", "--convert .*none is not a folder"),
    (["a.wav"], "in", "in/out", "where it would be converted again"),
    (["a.wav"], "in", "out", "needs ffmpeg, which is not installed: apt-get install ffmpeg"),
])  # fmt: skip
def test_mistakes_are_told_before_the_work(tmp_path, fake_ffmpeg, files, source, to, message):
    fake_ffmpeg(None)
    for file in files:
        write(tmp_path / "in" / file, voice(100, 0.1, 0), format="WAV")
    with pytest.raises(InputError, match=message):
        convert_folder(tmp_path / source, tmp_path / to)
    assert not (tmp_path / to).exists()


def test_a_full_disk_ends_the_work(tmp_path, fake_ffmpeg):
    fake_ffmpeg('echo "av_interleaved_write_frame(): No space left on device" >&2; exit 1')
    write(tmp_path / "in/a.wav", voice(100, 0.1, 0))
    with pytest.raises(RunError, match=r"out/.*cannot be written .*No space left"):
        convert_folder(tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == []
