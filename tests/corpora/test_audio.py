"""Audio files: formats and rates as 16 kHz mono, parts equal to the whole, unreadable files named."""

import struct

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from conftest import voice

from corpora.audio import AudioFile, Folder, PlainWav, UnreadableAudio, check_folder
from dataLoader import read_crop
from tools import InputError

SAMPLES = 16240  # 100 frames


@pytest.mark.parametrize(("name", "subtype"), [
    ("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.wav", "PCM_U8"), ("a.flac", "PCM_16"),
])  # fmt: skip
def test_a_crop_is_that_part_of_the_file(tmp_path, name, subtype):
    path = tmp_path / name
    soundfile.write(path, voice(120, 3.0, 0), 16000, subtype=subtype)
    whole, _ = soundfile.read(path, dtype="float64")
    assert np.abs(AudioFile(path).read() - whole).max() < 1e-7
    for place in (0.0, 0.3, 0.999999):
        start = int(place * (48000 - SAMPLES + 1))
        expected = np.rint(whole[start : start + SAMPLES] * 32768)
        assert np.array_equal(read_crop(Folder(path.parent), path.name, SAMPLES, place), expected)
    assert read_crop(Folder(path.parent), path.name, SAMPLES, 0.5).dtype == np.int16
    with AudioFile(path) as file:
        for start in (0, 0, 700, 1400, 1400, 700, 0):  # sequential and random access
            assert np.abs(file.read(start, 700) - whole[start : start + 700]).max() < 1e-7


@pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.opus", "OPUS")])
def test_compressed_audio(tmp_path, name, subtype):
    path = tmp_path / name
    original = voice(120, 3.0, 0)
    soundfile.write(path, original, 16000, format="OGG", subtype=subtype)
    assert np.corrcoef(AudioFile(path).read()[: len(original)], original)[0, 1] > 0.9
    crop, whole = read_crop(Folder(path.parent), path.name, SAMPLES, 0.5), AudioFile(path).read()
    start = int(0.5 * (len(whole) - SAMPLES + 1))
    assert np.corrcoef(crop, whole[start : start + SAMPLES])[0, 1] > 0.98


@pytest.mark.parametrize(("chunk", "plain"), [
    (b"", True),
    (b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.76.100\0", True),  # by ffmpeg
    (b"LIST" + struct.pack("<I", 3) + b"odd\0", False),
    (b"fact" + struct.pack("<I", 4) + b"data", False),
    (b"LIST" + struct.pack("<I", 300) + b"INFOICMT" + struct.pack("<I", 288) + 72 * b"data", False),  # a long header
])  # fmt: skip
def test_a_plain_wav_is_read_as_libsndfile_reads_it(tmp_path, chunk, plain):
    path = tmp_path / "a.wav"
    soundfile.write(path, voice(120, 1.0, 0), 16000)
    written = path.read_bytes()
    path.write_bytes(written[:36] + chunk + written[36:] + b"LIST\4\0\0\0abcd")
    expected, _ = soundfile.read(path, dtype="int16")
    with AudioFile(path) as file:
        assert isinstance(file.file, PlainWav) == plain and file.length == 16000
        assert np.array_equal(file.read(dtype="int16"), expected)
        assert np.array_equal(file.read(3000, 500), soundfile.read(path, 500, 3000, dtype="float32")[0])
        path.write_bytes(written[:20000])  # cut short while it is open
        with pytest.raises(UnreadableAudio, match=r"a\.wav"):
            file.read(dtype="int16")
    for rate, subtype, channels in ((8000, "PCM_16", 1), (16000, "PCM_24", 1), (16000, "PCM_16", 2)):
        soundfile.write(path, np.zeros((1000, channels)), rate, subtype=subtype)
        with AudioFile(path) as file:
            assert isinstance(file.file, soundfile.SoundFile)


def test_formats_that_cannot_seek(tmp_path):
    """As telephone systems write them."""
    path = tmp_path / "a.wav"
    soundfile.write(path, voice(120, 3.0, 0), 16000, subtype="GSM610")
    whole = soundfile.read(path)[0]
    with AudioFile(path) as file:
        for start in (700, 0, 1400):
            assert np.array_equal(file.read(start, 700), whole[start : start + 700])


def test_a_short_utterance_is_wrapped_around(tmp_path):
    path = tmp_path / "short.wav"
    short = (1000 * np.random.default_rng(0).standard_normal(700)).astype(np.int16)
    soundfile.write(path, short, 16000)
    assert np.array_equal(read_crop(Folder(path.parent), path.name, 2000, 0.7), np.pad(short, (0, 1300), mode="wrap"))


def test_several_channels_are_mixed_down_or_one_is_chosen(tmp_path):
    path = tmp_path / "stereo.wav"
    channels = np.stack([voice(120, 2.0, 0), voice(200, 2.0, 1)], axis=1)
    soundfile.write(path, channels, 16000, subtype="FLOAT")
    mean = channels.astype(np.float64).mean(axis=1)
    assert np.abs(AudioFile(path).read() - mean).max() < 1e-7
    assert np.abs(read_crop(Folder(path.parent), path.name, 32000, 0.0) - mean * 32768).max() < 0.51
    for channel in (0, 1):
        assert np.array_equal(AudioFile(path, channel).read(), channels[:, channel])
    for channel in (2, -1):
        with pytest.raises(UnreadableAudio, match=rf"stereo\.wav has no channel {channel}, but 2 channels"):
            AudioFile(path, channel).read()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 16001])
def test_other_rates_are_resampled(tmp_path, rate):
    """A tone keeps its pitch and timing, samples equal torchaudio's, and a crop is a part of the whole."""
    path = tmp_path / "tone.wav"

    def tone(t):
        return 0.5 * np.sin(2 * np.pi * 440 * t + 3 * t * t)

    soundfile.write(path, tone(np.arange(3 * rate) / rate), rate, subtype="FLOAT")
    expected = tone(np.arange(48000) / 16000)
    whole = AudioFile(path).read()
    assert whole.dtype == np.float32 and len(whole) == 48000
    assert np.abs(whole - expected)[200:-200].max() < 0.01
    if rate != 16001:  # for which torchaudio would need gigabytes
        samples = torch.tensor(soundfile.read(path)[0])
        for crossings in (6, 32):
            expected = torchaudio.functional.resample(samples, rate, 16000, lowpass_filter_width=crossings)
            with AudioFile(path, crossings=crossings) as file:
                assert np.abs(file.read() - expected.numpy()).max() < 1e-6
    for place in (0.0, 0.123, 0.5, 0.999999):
        start = int(place * (48000 - SAMPLES + 1))
        crop = read_crop(Folder(path.parent), path.name, SAMPLES, place)
        assert np.abs(crop - 32768 * whole[start : start + SAMPLES]).max() < 0.51


@pytest.mark.parametrize("case", ["absent", "text", "empty", "header only", "truncated flac", "nan", "folder"])
def test_unreadable_audio_is_named(tmp_path, case):
    path = tmp_path / "a.flac"
    if case == "text":
        path.write_text("no audio")
    elif case == "empty":
        path.touch()
    elif case == "header only":
        soundfile.write(path, np.zeros(0), 16000, format="WAV")
    elif case == "truncated flac":
        soundfile.write(path, voice(100, 3, 0), 16000)
        path.write_bytes(path.read_bytes()[:20000])
    elif case == "nan":
        soundfile.write(path, np.full(16000, np.nan), 16000, format="WAV", subtype="FLOAT")
    elif case == "folder":
        path.mkdir()
    with pytest.raises(UnreadableAudio, match=r"a\.flac"):
        AudioFile(path).read()
    with pytest.raises(UnreadableAudio, match=r"a\.flac"):
        read_crop(Folder(path.parent), path.name, 48000, 0.0)


def test_a_folder_lists_its_audio_folder_by_folder(tmp_path):
    files = ["a/1.wav", "a/b/2.FLAC", "a-b/3.ogg", "a b/4.wav", "ä/5.mp3"]
    for file in [*files, "a/text.txt"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    folder = Folder(tmp_path)
    assert folder.find() == ["a/1.wav", "a/b/2.FLAC", "a b/4.wav", "a-b/3.ogg", "ä/5.mp3"]
    assert folder.find("a") == ["a/1.wav", "a/b/2.FLAC"] and folder.find("none") == []
    (tmp_path / "linked").mkdir()
    for link in ("linked/a", "linked/again"):
        (tmp_path / link).symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "back").symlink_to(tmp_path / "linked", target_is_directory=True)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert Folder(tmp_path / "linked").find() == ["a/1.wav", "a/b/2.FLAC", "again/1.wav", "again/b/2.FLAC"]
    assert folder.missing([*files, "a", "a/none.wav"]) == ["a", "a/none.wav"]
    with pytest.raises(InputError, match=r"--train_path .*none is not a folder"):
        check_folder(tmp_path / "none", "--train_path")
