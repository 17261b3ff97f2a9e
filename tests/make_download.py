"""A small download of VoxCeleb, MUSAN and RIRS_NOISES, generated: the archives' names and layouts are the real ones.

    python tests/make_download.py FOLDER

VoxCeleb2 dev is 8 speakers in m4a (made with ffmpeg), VoxCeleb1 dev 2 and VoxCeleb1 test 6 in wav, MUSAN and
RIRS_NOISES a handful of files. The trial lists have as many trials of each kind as Vox1-O cleaned and original.
"""

import contextlib
import io
import itertools
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile
from conftest import voice
from nasty import zip_of

LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
TRAIN = {f"id{number:05d}": 80 * 1.13**i for i, number in enumerate((12, 15, 16, 18, 19, 20, 21, 22))}  # Hz
DEV = {"id10001": 90, "id10002": 130}
TEST = {f"id{10270 + i}": 85 * 1.16**i for i in range(6)}
TEST_FILES = 80  # of a speaker: 6 x 3,160 pairs, enough for the 18,860 same-speaker trials
SIZES = {"veri_test2.txt": (18802, 18809), "veri_test.txt": (18860, 18860)}  # trials of the same speaker, of two
PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 64000\n"
NOISE = np.random.default_rng(0).bytes(9000)


def wav(waveform, rate=16000, kind="WAV", subtype="PCM_16"):
    """The bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, subtype, format=kind)
    return file.getvalue()


def videos(random, count):
    """Names as YouTube gives them."""
    return ["".join(random.choice(LETTERS, 11)) for _ in range(count)]


def aac_of(waves):
    """The bytes of m4a files, one for each waveform, by one ffmpeg: to start one for each takes longer."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = [], []
        for number, waveform in enumerate(waves):
            Path(folder, f"{number}.wav").write_bytes(wav(waveform))
            inputs += ["-i", f"{number}.wav"]
            outputs += ["-map", str(number), "-c:a", "aac", "-movflags", "+faststart", f"{number}.m4a"]
        subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", *inputs, *outputs], cwd=folder, check=True)
        return [Path(folder, f"{number}.m4a").read_bytes() for number in range(len(waves))]


def film():
    """The bytes of an MPEG-4 file with a picture and no sound."""
    with tempfile.TemporaryDirectory() as folder:
        picture = ["-f", "lavfi", "-i", "color=size=32x32:duration=1", "-c:v", "mpeg4", "film.mp4"]
        subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", *picture], cwd=folder, check=True)
        return Path(folder, "film.mp4").read_bytes()


def tar_of(content):
    """{name: bytes, or a TarInfo of something else} as a tar.gz file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, each in content.items():
            if isinstance(each, tarfile.TarInfo):
                archive.addfile(each)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(each)
            archive.addfile(info, io.BytesIO(each))
    return file.getvalue()


def in_parts(name, content, count):
    size = -(-len(content) // count)
    return {f"{name}_parta{'abcdefgh'[i]}": content[i * size : (i + 1) * size] for i in range(count)}


def voxceleb2(random):
    """dev/aac/<speaker>/<video>/<utterance>.m4a, two utterances of each of two videos of a speaker."""
    names, waves = [], []
    for speaker, pitch in TRAIN.items():
        for video, utterance in itertools.product(videos(random, 2), (1, 2)):
            names.append(f"dev/aac/{speaker}/{video}/{utterance:05d}.m4a")
            waves.append(voice(pitch, random.uniform(2.1, 2.8), len(waves)))
    return dict(zip(names, aac_of(waves)))


def voxceleb1(random, speakers, files, seconds):
    """wav/<speaker>/<video>/<utterance>.wav, ten utterances of a video."""
    content = {}
    for speaker, pitch in speakers.items():
        for number, video in enumerate(videos(random, -(-files // 10))):
            for utterance in range(min(10, files - 10 * number)):
                waveform = voice(pitch, seconds, [int(speaker[2:]), number, utterance])
                content[f"wav/{speaker}/{video}/{utterance + 1:05d}.wav"] = wav(waveform)
    return content


def musan(random):
    content = {}
    for category, number in itertools.product(("noise", "music", "speech"), range(3)):
        waveform = 0.1 * random.standard_normal(16000 * (6 + number))
        content[f"musan/{category}/made-up/{category}-made-up-{number:04d}.wav"] = wav(waveform)
    return content


def rirs_noises(random):
    """Of simulated_rirs, of the real ones, which have eight channels, and of the noises that lie among them."""
    content = {}
    for number in range(1, 5):
        response = 0.1 * random.standard_normal(8000) * np.exp(-np.arange(8000) / 1500)
        response[100 * number] = 0.9
        content[f"RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-{number:05d}.wav"] = wav(response)
    real = "RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far_angla.wav"
    content[real] = wav(np.tile(response[:, None], 8))
    content["RIRS_NOISES/pointsource_noises/noise-free-sound-0000.wav"] = wav(0.1 * random.standard_normal(48000))
    return content


def trial_lists(random, files):
    """{name: lines} of trials among files <speaker>/...: each pair once, the cleaned list a part of the original."""
    speaker = np.array([file.split("/")[0] for file in files])
    a, b = np.triu_indices(len(files), 1)
    same = speaker[a] == speaker[b]
    pairs = [random.permutation(np.flatnonzero(kind)) for kind in (same, ~same)]
    lists = {}
    for name, (targets, others) in SIZES.items():
        chosen = np.sort(np.concatenate([pairs[0][:targets], pairs[1][:others]]))
        lists[name] = [f"{int(same[i])} {files[a[i]]} {files[b[i]]}" for i in chosen]
    return lists


def make_download(folder):
    """Write the archives and the trial lists to a folder."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    test = voxceleb1(random, TEST, TEST_FILES, 1.0)
    files = {
        **in_parts("vox2_dev_aac", zip_of(voxceleb2(random)), 8),
        **in_parts("vox1_dev_wav", zip_of(voxceleb1(random, DEV, 2, 2.2)), 4),
        "vox1_test_wav.zip": zip_of(test),
        "musan.tar.gz": tar_of(musan(random)),
        "rirs_noises.zip": zip_of(rirs_noises(random)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, lines in trial_lists(random, [file.removeprefix("wav/") for file in test]).items():
        (folder / name).write_text("".join(line + "\n" for line in lines))


# ---- what is wrong with it -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def spoilt(path, content):
    """Other bytes in place of a file, None: no file; as it was afterwards."""
    before = path.read_bytes() if path.exists() else None
    path.unlink() if content is None else path.write_bytes(content)
    yield
    path.unlink() if before is None else path.write_bytes(before)


def half(content):
    return content[: len(content) // 2]


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def zip_that_says(**changes):
    """A zip file whose directory says something else of its member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("RIRS_NOISES/a.wav", wav(np.zeros(1000)))
        for name, value in changes.items():
            setattr(archive.filelist[0], name, value)
    return file.getvalue()


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return {name: info}


if __name__ == "__main__":
    make_download(Path(sys.argv[1]))
