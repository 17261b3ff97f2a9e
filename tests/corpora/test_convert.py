"""convert.py: sources of every form, ffmpeg absent, failing, hanging and lying; MUSAN in pieces."""

import math
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import soundfile
from conftest import voice

import prepareData
from corpora import convert as room
from corpora.audio import read_audio, to_int16
from corpora.convert import convert_folder, split_musan
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
    """fake_ffmpeg(lines of shell) puts that in place of ffmpeg; None: there is none. $out is what it is to write."""

    def put(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        if script is not None:
            last = 'for out; do :; done; out="${out#file:}"; [ "$1" = -version ] && exit 0'
            (folder / "ffmpeg").write_text(f"#!/bin/sh\n{last}\n{script}\n")
            (folder / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if script is not None else str(folder))

    return put


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_16_khz_mono_comes_out_to_the_bit(tmp_path, suffix):
    wanted = {}
    for number in range(12):
        file = f"id{number % 3}/s é {number % 2}/{number:05d}"
        wanted[file] = to_int16(voice(100 + number, 0.5 + 0.01 * number, number))
        write(tmp_path / "in" / f"{file}.{'wav' if number % 2 else 'flac'}", wanted[file], subtype="PCM_16")
    done = convert_folder(tmp_path / "in", tmp_path / "out", suffix, threads=3)
    assert (done.files, done.written, done.already, done.failed) == (12, 12, 0, [])
    assert done.seconds == pytest.approx(sum(map(len, wanted.values())) / 16000)
    assert names(tmp_path / "out") == sorted(f"{file}.{suffix}" for file in wanted)
    for file, expected in wanted.items():
        np.testing.assert_array_equal(samples(tmp_path / "out" / f"{file}.{suffix}"), expected)


def test_channels_are_averaged_and_rates_made_16_khz(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", 1000)  # many blocks, which must fit together
    left, right = voice(100, 1, 1), voice(150, 1, 2)
    write(tmp_path / "in/stereo.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    seconds = np.arange(44100) / 44100
    write(tmp_path / "in/tone.aiff", 0.5 * np.sin(2 * np.pi * 440 * seconds), 44100)
    convert_folder(tmp_path / "in", tmp_path / "out")
    mean = (left.astype(np.float64) + right) / 2 * 32768
    assert np.abs(samples(tmp_path / "out/stereo.wav") - mean).max() <= 0.51
    tone = samples(tmp_path / "out/tone.wav")
    expected = 0.5 * 32768 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert len(tone) == 16000 and np.abs(tone - expected)[200:-200].max() < 20


def test_again_it_writes_nothing_and_takes_up_what_is_missing(tmp_path):
    for number in range(5):
        write(tmp_path / f"in/{number}.wav", voice(100, 0.3, number))
    convert_folder(tmp_path / "in", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert convert_folder(tmp_path / "in", tmp_path / "out").already == 5
    (tmp_path / "out/3.wav").unlink()
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert (done.written, done.already) == (1, 4)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert [path.name for path in before if before[path] != after[path]] == ["3.wav"]


def test_failures_are_listed_and_the_rest_is_done(tmp_path, command, fake_ffmpeg):
    fake_ffmpeg(None)
    write(tmp_path / "in/good.wav", voice(100, 0.3, 0))
    write(tmp_path / "in/empty.wav", np.zeros(0))
    write(tmp_path / "in/cut.wav", voice(100, 1, 0))
    os.truncate(tmp_path / "in/cut.wav", 5000)
    write(tmp_path / "in/nan.wav", np.full(5000, np.nan), subtype="FLOAT")
    (tmp_path / "in/text.wav").write_text("no audio")
    write(tmp_path / "in/there.wav", voice(100, 0.3, 1))
    write(tmp_path / "out/there.wav", voice(100, 0.3, 1), 8000)
    (tmp_path / "in/notes.txt").write_text("")
    (tmp_path / "in/._good.wav").write_text("")
    before = (tmp_path / "out/there.wav").read_bytes()
    status, printed, complained = command(prepareData, "--convert", tmp_path / "in", "--to", tmp_path / "out")
    assert status == 1 and complained.count("\n") == 1 and "of 6 files failed" in complained
    assert "6 files found" in printed and "1 .txt files" in printed and "1 hidden files" in printed
    lines = [line.split("\t") for line in (tmp_path / "out/failed.tsv").read_text().splitlines()]
    reasons = dict(lines[1:])
    assert lines[0] == ["file", "reason"]
    expected = {"text.wav": "ffmpeg", "empty.wav": "is empty", "cut.wav": "lacks 27044 bytes",
                "nan.wav": "not finite", "there.wav": "no 16 kHz mono"}  # fmt: skip
    for file, reason in expected.items():
        assert reason in reasons.pop(file)
    assert not reasons
    assert (tmp_path / "out/there.wav").read_bytes() == before
    assert names(tmp_path / "out") == ["failed.tsv", "good.wav", "there.wav"]
    for file in ("empty", "nan", "text", "there", "cut"):
        (tmp_path / f"in/{file}.wav").unlink()
    convert_folder(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/failed.tsv").read_text() == "file\treason\n"


@pytest.mark.parametrize(
    ("files", "source", "to", "message"),
    [
        (["a.m4a", "a.wav", "b.flac", "b.WAV"], "in", "out", r"a\.m4a and a\.wav would both become a\.wav \(and 1 mo"),
        (["a.wav"], "in", "in/out", "must not lie in one another"),
        (["a.wav"], "in", "in", "must not lie in one another"),
        (["a.wav"], "in", ".", "must not lie in one another"),
        (["a.txt", "b.txt", "c"], "in", "out", r"no audio, but 2 \.txt files, 1 files without a suffix; known"),
        (["a.wav"], "none", "out", "--convert .*none is not a folder"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_the_work(tmp_path, files, source, to, message):
    for file in files:
        write(tmp_path / "in" / file, voice(100, 0.1, 0), format="WAV")
    before = names(tmp_path)
    with pytest.raises(InputError, match=message):
        convert_folder(tmp_path / source, tmp_path / to)
    assert names(tmp_path) == before


def test_without_ffmpeg_one_line_says_how_many_need_it(tmp_path, command, fake_ffmpeg):
    fake_ffmpeg(None)
    write(tmp_path / "in/a.wav", voice(100, 0.1, 0))
    for name in "bc":
        (tmp_path / f"in/{name}.m4a").write_bytes(b"?")
    status, _, complained = command(prepareData, "--convert", tmp_path / "in", "--to", tmp_path / "out")
    assert status == 2 and complained.count("\n") == 1
    assert "2 of 3 files need ffmpeg, which is not installed: apt-get install ffmpeg" in complained
    assert not (tmp_path / "out").exists()
    for name in "bc":  # what is converted needs it no more
        write(tmp_path / f"out/{name}.wav", voice(100, 0.1, 0))
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert (done.written, done.already) == (1, 2)


def test_an_ffmpeg_that_does_not_run_is_told_before_the_work(tmp_path, fake_ffmpeg):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.m4a").write_bytes(b"?")
    fake_ffmpeg("exit 0")
    (tmp_path / "bin/ffmpeg").write_text("#!/bin/sh\nexit 127\n")
    with pytest.raises(InputError, match=r"1 of 1 files need ffmpeg, but .*bin/ffmpeg does not run"):
        convert_folder(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'moov atom not found' >&2; exit 1", r"cannot be decoded by ffmpeg \(moov atom not found\)"),
        ("exit 3", r"cannot be decoded by ffmpeg \(exit status 3\)"),
        ("kill -9 $$", r"exit status -9"),
        ("sleep 30", r"ffmpeg was stopped, it had not ended after 1 s"),
        ("echo rubbish > \"$out\"", "what ffmpeg made of it cannot be read as audio"),
        ("exit 0", "what ffmpeg made of it does not exist"),
        ("cp {empty} \"$out\"", "what ffmpeg made of it is empty"),
        ("cp {second} \"$out\"; echo '  Duration: 00:00:01.15, start' >&2", r"claims 1\.15 s, but ffmpeg got 1\.00 s"),
        ("cp {second} \"$out\"; echo '  Duration: 01:00:01.00, start' >&2", r"claims 3601\.00 s"),
        ("cp {broken} \"$out\"", r"a\.m4a holds samples that are not finite"),
    ],
)  # fmt: skip
def test_whatever_ffmpeg_does_a_broken_file_is_one_failure(tmp_path, fake_ffmpeg, monkeypatch, script, reason):
    monkeypatch.setattr(room, "FFMPEG_SECONDS", 1)
    made = {"empty": np.zeros(0), "second": voice(100, 1, 0), "broken": np.full(16000, np.inf)}
    for name, sound in made.items():
        write(tmp_path / f"{name}.wav", sound, subtype="FLOAT")
    fake_ffmpeg(script.format(**{name: tmp_path / f"{name}.wav" for name in made}))
    write(tmp_path / "in/good.wav", voice(100, 0.3, 0))
    (tmp_path / "in/a.m4a").write_bytes(b"?")
    begun = time.monotonic()
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert time.monotonic() < begun + 15
    ((file, why),) = done.failed
    assert file == "a.m4a" and done.written == 1
    assert re.search(reason, why), why
    assert names(tmp_path / "out") == ["failed.tsv", "good.wav"]  # nothing half, nothing left over


@pytest.mark.parametrize(
    "said",
    ["  Duration: 00:00:01.09, start", "  Duration: N/A", "", "  Duration: 00:00:09.00, start\n  Stream: Video: h264",
     "Estimating duration from bitrate\n  Duration: 00:00:09.00, start"],
)  # fmt: skip
def test_a_length_that_is_near_or_unknown_is_taken(tmp_path, fake_ffmpeg, said):
    write(tmp_path / "second.wav", voice(100, 1, 0))
    (tmp_path / "said").write_text(said + "\n")
    fake_ffmpeg(f'cp {tmp_path}/second.wav "$out"; cat {tmp_path}/said >&2')
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.m4a").write_bytes(b"?")
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert not done.failed and len(samples(tmp_path / "out/a.wav")) == 16000


def test_a_full_disk_ends_the_work_and_it_goes_on_later(tmp_path, monkeypatch, fake_ffmpeg):
    fake_ffmpeg('echo "av_interleaved_write_frame(): No space left on device" >&2; exit 1')
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.m4a").write_bytes(b"?")
    with pytest.raises(RunError, match=r"out/.*cannot be written: is the disk full\?"):
        convert_folder(tmp_path / "in", tmp_path / "out")
    resource = pytest.importorskip("resource")
    write(tmp_path / "wavs/b.wav", voice(100, 3, 0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"out/b\.wav cannot be written"):
            convert_folder(tmp_path / "wavs", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "out") == []
    assert convert_folder(tmp_path / "wavs", tmp_path / "out").written == 1


@needs_ffmpeg
def test_m4a_as_ffmpeg_itself_would_convert_it(tmp_path):
    folder = tmp_path / "in/id00012/21Uxsk56VDQ"
    write(tmp_path / "speech.wav", voice(120, 2.3, 0))
    write(tmp_path / "wide.wav", np.stack([voice(120, 2, 1), voice(180, 2, 2)], axis=1), 48000)
    folder.mkdir(parents=True)
    ffmpeg("-i", tmp_path / "speech.wav", "-c:a", "aac", folder / "00001.m4a")
    ffmpeg("-i", tmp_path / "wide.wav", "-c:a", "aac", folder / "-odd: ü'\".m4a")
    shutil.copy(folder / "00001.m4a", folder / "really m4a.wav")
    for flags, name in ((["-ar", "16000", "-ac", "1"], "00001"), ([], "-odd: ü'\"")):
        ffmpeg("-i", f"file:{folder}/{name}.m4a", *flags, f"file:{tmp_path}/{name}.ref.wav")
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert not done.failed
    out = tmp_path / "out/id00012/21Uxsk56VDQ"
    reference = samples(tmp_path / "00001.ref.wav")
    for name in ("00001.wav", "really m4a.wav"):
        found = samples(out / name)
        assert len(found) == len(reference) and np.abs(found.astype(int) - reference).max() <= 1
    wide = read_audio(tmp_path / "-odd: ü'\".ref.wav")  # decoded alone; the mean and 16 kHz are audio.py's
    assert math.isclose(len(wide), len(samples(out / "-odd: ü'\".wav")), abs_tol=1)
    assert np.abs(samples(out / "-odd: ü'\".wav") / 32768 - wide).max() < 3 / 32768


@needs_ffmpeg
def test_damaged_m4a_and_playlists_in_disguise_fail(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "speech.wav", voice(120, 3, 0))
    ffmpeg("-i", tmp_path / "speech.wav", "-c:a", "aac", "-movflags", "+faststart", tmp_path / "whole.m4a")
    whole = (tmp_path / "whole.m4a").read_bytes()
    (tmp_path / "in/cut.m4a").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/rubbish.m4a").write_bytes(bytes(5000))
    (tmp_path / "in/nothing.m4a").write_bytes(b"")
    (tmp_path / "in/page.m4a").write_text("<html><title>Sign in</title></html>")
    ffmpeg("-f", "lavfi", "-i", "color=size=32x32:duration=1", "-c:v", "mpeg4", tmp_path / "in/film.mp4")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{tmp_path}/whole.m4a\n#EXT-X-ENDLIST\n"
    (tmp_path / "in/playlist.m4a").write_text(playlist)
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    reasons = {"cut.m4a": "damaged or cut short", "film.mp4": "has no sound in it", "nothing.m4a": "is empty",
               "page.m4a": "is text, not audio: an error page", "playlist.m4a": "cannot be decoded by ffmpeg",
               "rubbish.m4a": "cannot be decoded by ffmpeg"}  # fmt: skip
    assert [file for file, _ in done.failed] == list(reasons)
    for file, said in done.failed:
        assert reasons[file] in said, said
    assert names(tmp_path / "out") == ["failed.tsv"]


def test_musan_in_the_pieces_of_voxceleb_trainer(tmp_path, command):
    lengths = {"noise/free-sound/a": 12.5, "noise/sound-bible/b": 4, "music/fma/c": 5, "speech/librivox/d": 8.01}
    sounds = {file: to_int16(voice(100, seconds, 1)) for file, seconds in lengths.items()}
    for file, sound in sounds.items():
        write(tmp_path / f"musan/{file}.wav", sound)
    (tmp_path / "musan/README").write_text("")
    flags = ("--split_musan", tmp_path / "musan", "--to", tmp_path / "musan_split")
    status, printed, _ = command(prepareData, *flags)
    assert status == 0 and "5 pieces written" in printed and "2 of 5 s or less" in printed
    expected = {}
    for file, sound in sounds.items():  # the loop of the original, with its names
        for start in range(0, len(sound) - 80000, 48000):
            expected[f"{file}/{start // 16000:05d}.wav"] = sound[start : start + 80000]
    assert names(tmp_path / "musan_split") == sorted(expected) and len(expected) == 5
    for file, sound in expected.items():
        np.testing.assert_array_equal(samples(tmp_path / "musan_split" / file), sound)
    (tmp_path / "musan_split/speech/librivox/d/00003.wav").unlink()
    _, printed, _ = command(prepareData, *flags)
    assert "1 pieces written" in printed and "4 were there already" in printed
    assert names(tmp_path / "musan_split") == sorted(expected)


def test_what_is_not_musan_is_not_split(tmp_path):
    write(tmp_path / "musan/noise/a.wav", voice(100, 6, 0))
    with pytest.raises(InputError, match="has no audio in its folder 'music'"):
        split_musan(tmp_path / "musan", tmp_path / "out")


@pytest.mark.parametrize("action", ["--convert", "--unpack", "--split_musan"])
def test_each_action_needs_a_target(tmp_path, command, action):
    status, _, complained = command(prepareData, action, tmp_path)
    assert status == 2 and f"{action} needs --to" in complained
