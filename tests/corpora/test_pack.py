"""pack.py: the same batches as from the files, interruptions, damage."""

import argparse
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import time
import zlib

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, voice

import prepareData
from corpora.audio import Folder, UnreadableAudio
from corpora.check import check
from corpora.lists import TrainingList, check_files
from corpora.pack import Pack, open_source, write_pack
from dataLoader import CropLoader
from tools import InputError, RunError

SAMPLES = 16240  # 100 frames


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Audio of many forms under a folder with blanks and umlauts in its name, and a list of it: 24 files."""
    folder = tmp_path_factory.mktemp("Öl und Süßes")
    forms = [("wav", "PCM_16", 16000, 1), ("flac", "PCM_16", 8000, 1), ("wav", "FLOAT", 48000, 2),
             ("wav", "PCM_U8", 16000, 1), ("flac", "PCM_24", 44100, 3), ("wav", "FLOAT", 16000, 1),
             ("wav", "PCM_16", 16000, 4), ("flac", "PCM_16", 16000, 1)]  # fmt: skip
    lines = []
    for number in range(24):
        suffix, subtype, rate, channels = forms[number % 8]
        seconds = 0.4 if number >= 20 else 1.2 + 0.1 * number  # the last are to be wrapped around
        sound = np.stack([3 * voice(100 + number, seconds, [number, channel]) for channel in range(channels)], axis=1)
        file = f"id{number % 5}/größe-{number % 3}/{number:05d}.{suffix}"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / file, sound, rate, subtype=subtype)
        lines.append(f"id{number % 5} {file}\n")
    lines.append(lines[4])  # a list may name a file twice
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def packed(speech, tmp_path_factory):
    """The pack of ``speech``: not to be changed."""
    path = tmp_path_factory.mktemp("packs") / "speech"
    write_pack(path, Folder(speech), TrainingList(speech / "list.txt"))
    return path


def content(folder):
    return {file.name: file.read_bytes() for file in pathlib.Path(folder).iterdir() if file.name[0] != "."}


def batches(listing, source, seed=0, threads=2):
    loader = CropLoader(listing, source, SAMPLES, 10, seed, threads)
    return [(waveform, label) for epoch in (1, 2) for _, waveform, label in loader.epoch(epoch)], loader.bad


def same(one, other):
    return len(one) == len(other) > 0 and all(torch.equal(*both) for a, b in zip(one, other) for both in zip(a, b))


def test_batches_are_the_same_packed_and_unpacked(speech, packed):
    listing = TrainingList(speech / "list.txt")
    unpacked, _ = batches(listing, Folder(speech), seed=5)
    for threads in (1, 3):
        assert same(batches(listing, Pack(packed), seed=5, threads=threads)[0], unpacked)
    assert not same(batches(listing, Pack(packed), seed=6)[0], unpacked)


def test_the_samples_are_those_of_the_files(speech, packed):
    """As soundfile decodes them, one after another, with their checksums; the index can be read without our code."""
    samples = np.fromfile(packed / "samples.int16", "<i2")
    end = 0
    for line in (packed / "index.tsv").read_text(encoding="utf-8").splitlines():
        speaker, file, offset, length, checksum = line.split("\t")
        part = samples[int(offset) : int(offset) + int(length)]
        assert speaker == file.split("/")[0] and int(offset) == end and zlib.crc32(part.tobytes()) == int(checksum)
        end += int(length)
        sound, rate = soundfile.read(speech / file, always_2d=True)
        if rate == 16000:
            expected = np.rint(sound.astype(np.float32).mean(axis=1) * 32768)
            assert np.abs(part - np.clip(expected, -32768, 32767)).max() <= (1 if sound.shape[1] > 1 else 0)
        else:
            assert len(part) == -(-len(sound) * 16000 // rate)
    assert end == len(samples) and len((packed / "index.tsv").read_text().splitlines()) == 24


def test_what_is_not_in_the_pack_is_named_with_its_line(speech, packed, tmp_path):
    list_text = (speech / "list.txt").read_text(encoding="utf-8")
    (tmp_path / "more.txt").write_text(f"{list_text}x x/none.wav\nx {'z' * 300}.wav\nx 0.wav\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"more.txt line 26: x/none.wav in the pack .* does not exist \(3 of 27 files"):
        check_files(TrainingList(tmp_path / "more.txt"), Pack(packed), "--train_path")
    with pytest.raises(UnreadableAudio, match=r"x/none.wav in the pack .* does not exist"):
        Pack(packed).open("x/none.wav")


def test_unreadable_files_are_replaced_as_if_they_were_not_packed(corpus, tmp_path, capsys):
    shutil.copytree(corpus / "train", tmp_path / "train")
    listing = TrainingList(corpus / "train_list.txt")
    (tmp_path / "train" / listing.files[3]).write_bytes(b"RIFF, but no more")
    pack = write_pack(tmp_path / "pack", Folder(tmp_path / "train"), listing)
    complaints = capsys.readouterr().err.strip().splitlines()
    assert sum(listing.files[3] in line and "cannot be read as audio" in line for line in complaints) == 1
    assert pack.content["unreadable"] == 1 and pack.content["entries"] == 24
    with pytest.raises(UnreadableAudio, match=f"{listing.files[3]} in the pack .* could not be read when"):
        pack.open(listing.files[3])
    flags = {"train_list": corpus / "train_list.txt", "train_path": tmp_path / "pack", "eval_path": "", "n_cpu": 1}
    args = argparse.Namespace(**flags, eval_list=[], musan_path="", rir_path="", check="", paths_anywhere=False)
    findings = [each.in_one_line() for each in check(args) if each.severity == "warning"]
    assert len(findings) == 1 and f"when they were packed: 1, such as {listing.files[3]}" in findings[0]
    unpacked, packed = batches(listing, Folder(tmp_path / "train")), batches(listing, pack)
    assert same(unpacked[0], packed[0]) and unpacked[1] == packed[1] == {3}


class Trouble(Folder):
    """A folder in which something happens as a file is opened: ``event(file)``."""

    def __init__(self, root, event):
        super().__init__(root)
        self.event = event

    def open(self, file):
        self.event(file)
        return super().open(file)


def interrupt(path, speech, listing):
    """Leave a pack of which nine files were written."""

    def event(file):
        if file == listing.files[9]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(path, Trouble(speech, event), listing)
    assert len((path / "index.tsv").read_bytes().splitlines()) == 9


def test_killed_at_any_moment_it_continues(speech, packed, tmp_path):
    """SIGKILL, again and again; in the end every byte is that of an undisturbed run."""
    listing, path, index = TrainingList(speech / "list.txt"), tmp_path / "pack", tmp_path / "pack/index.tsv"
    slow, reached = Trouble(speech, lambda _: time.sleep(0.02)), []
    for lines in (1, 2, 7, 19):
        child = multiprocessing.get_context("fork").Process(target=write_pack, args=(path, slow, listing, 2))
        child.start()
        while child.is_alive() and (index.read_bytes().count(b"\n") if index.exists() else 0) < lines:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached.append(index.read_bytes().count(b"\n"))
        with pytest.raises(InputError, match=r"^--train_path .* is an unfinished pack: run the same .* again$"):
            open_source(path, "--train_path")
    opened = []
    write_pack(path, Trouble(speech, opened.append), listing)
    assert reached == sorted(reached) and len(opened) == 24 - reached[-1] < 6 and content(path) == content(packed)


@pytest.mark.parametrize(("file", "tear"), [
    ("index.tsv", lambda text: text[:-3]), ("index.tsv", lambda text: text + bytes(500)),
    ("samples.int16", lambda text: text[:-1001]), ("samples.int16", lambda text: text + b"unknown to the index"),
])  # fmt: skip
def test_what_is_torn_is_written_again(speech, packed, tmp_path, file, tear):
    listing, path = TrainingList(speech / "list.txt"), tmp_path / "pack"
    interrupt(path, speech, listing)
    (path / file).write_bytes(tear((path / file).read_bytes()))
    write_pack(path, Folder(speech), listing)
    assert content(path) == content(packed)


def test_an_unfinished_pack_takes_no_other_audio(speech, tmp_path):
    """And a new one lies in a folder of its own: messages say to delete it."""
    listing = TrainingList(speech / "list.txt")
    interrupt(tmp_path / "pack", speech, listing)
    before = (tmp_path / "pack/samples.int16").read_bytes()
    shutil.copytree(speech, tmp_path / "denoised")
    for other in ((Folder(tmp_path / "denoised"), listing), (Folder(speech), listing.subset(np.arange(23, -1, -1)))):
        with pytest.raises(InputError, match="was begun with other files"):
            write_pack(tmp_path / "pack", *other)
    with pytest.raises(InputError, match="has other files in it: give a new folder"):
        write_pack(tmp_path / "denoised", Folder(tmp_path / "denoised"), listing)
    assert (tmp_path / "pack/samples.int16").read_bytes() == before


def test_a_source_that_disappears_stops_it(corpus, tmp_path):
    shutil.copytree(corpus / "train", tmp_path / "train")
    listing = TrainingList(corpus / "train_list.txt")

    def event(file):
        if file == listing.files[9]:
            shutil.move(tmp_path / "train", tmp_path / "unmounted")

    with pytest.raises(RunError, match="has disappeared: put it back, the same command continues"):
        write_pack(tmp_path / "pack", Trouble(tmp_path / "train", event), listing, threads=1)


def test_another_list_or_folder_is_refused(speech, packed):
    listing, before = TrainingList(speech / "list.txt"), content(packed)
    for folder, listed in ((speech, listing.subset(range(20))), (ROOT, listing)):
        with pytest.raises(InputError, match=f"^--pack {packed} was made from other files: give a new folder, or"):
            write_pack(packed, Folder(folder), listed)
    assert content(packed) == before


def test_a_full_disk(corpus, tmp_path, command):
    flags = ["--pack", tmp_path / "pack", "--train_list", corpus / "train_list.txt", "--train_path", corpus / "train"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # no file may grow larger
    try:
        status, _, error = command(prepareData, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and "pack: File too large: make room, the same command continues" in error
    status, printed, _ = command(prepareData, *flags)
    assert status == 0 and f"{tmp_path}/pack: 24 files" in printed and "0 unreadable" in printed


@pytest.mark.parametrize(("file", "harm"), [
    ("samples.int16", lambda text: text[:100_000]),
    ("index.tsv", lambda text: text.replace(b"00003", b"00033")),
    ("pack.json", lambda text: text[1:]),
    ("pack.json", lambda text: b"[1, 2]"),
])  # fmt: skip
def test_a_damaged_pack_is_refused(packed, tmp_path, file, harm):
    path = shutil.copytree(packed, tmp_path / "pack")
    (path / file).write_bytes(harm((path / file).read_bytes()))
    with pytest.raises(InputError, match=rf"^the pack {path} is damaged \(.*\): delete the folder and pack again$"):
        open_source(path, "--train_path")


def test_a_pack_that_is_cut_short_while_in_use(packed, speech, tmp_path):
    pack = Pack(shutil.copytree(packed, tmp_path / "pack"))
    first, last = (pack.open(file) for file in TrainingList(speech / "list.txt").files[:: len(pack.length) - 1])
    os.truncate(pack.path / "samples.int16", 2 * last.first + 20)
    assert len(first.read()) == first.length
    with pytest.raises(UnreadableAudio, match=r"samples\.int16 was cut short"):
        last.read()
