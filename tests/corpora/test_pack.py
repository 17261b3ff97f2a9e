import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import time
import zlib

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, voice

import prepareData
import trainSpeakerNet
from corpora import pack as room
from corpora.audio import Folder, UnreadableAudio, find_noises, find_responses
from corpora.lists import TrainingList, check_files
from corpora.pack import Pack, open_source, write_pack
from dataLoader import Augmentation, CropLoader
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
        sound = sound[: int(seconds * 16000) // channels] if rate > 16000 else sound
        file = f"id{number % 5}/größe-{number % 3}/{number:05d}.{suffix}"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / file, sound, rate, subtype=subtype)
        lines.append(f"id{number % 5} {file}\n")
    lines.append(lines[4])  # a list may name a file twice
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def noises(corpus, tmp_path_factory):
    """The corpus' noises and responses with a few of other forms, and what is to be left out."""
    folder = tmp_path_factory.mktemp("noises")
    shutil.copytree(corpus / "musan", folder / "musan")
    shutil.copytree(corpus / "rirs", folder / "rirs")
    draw = np.random.default_rng(1)
    for file in ("musan/noise/a-b/ü 1.wav", "musan/noise/a/2 3.wav", "musan/noise/a b/4.flac", "rirs/a-b/1.wav",
                 "rirs/a/many microphones.wav", "rirs/a/noise_1.wav", "rirs/pointsource_noises/1.wav"):  # fmt: skip
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        sound = 0.1 * draw.standard_normal((120000, 2))
        soundfile.write(folder / file, sound, 44100, subtype="PCM_24" if file.endswith("flac") else "FLOAT")
    (folder / "musan" / "LICENSE").write_text("no audio")
    return folder


def pack_list(path, root, listing, threads=2, **changed):
    files = list(dict.fromkeys(listing.files))
    return write_pack(path, **{"kind": "speech", "source": Folder(root), "files": files, "threads": threads} | changed)


@pytest.fixture(scope="module")
def packed(speech, tmp_path_factory):
    """The pack of ``speech``: not to be changed."""
    path = tmp_path_factory.mktemp("packs") / "speech"
    pack_list(path, speech, TrainingList(speech / "list.txt"))
    return path


def content(folder):
    return {file.name: file.read_bytes() for file in pathlib.Path(folder).iterdir() if file.name[0] != "."}


def batches(listing, source, seed=0, threads=2, samples=SAMPLES):
    loader = CropLoader(listing, source, samples, 10, seed, threads)
    return [(waveform, label) for epoch in (1, 2) for _, waveform, label in loader.epoch(epoch)], loader.bad


def same(one, other):
    return len(one) == len(other) > 0 and all(torch.equal(*both) for a, b in zip(one, other) for both in zip(a, b))


# ---- the same samples ------------------------------------------------------------------------------------------------


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
        assert speaker == "-" and int(offset) == end and zlib.crc32(part.tobytes()) == int(checksum)
        end += int(length)
        sound, rate = soundfile.read(speech / file, always_2d=True)
        if rate == 16000:
            expected = np.rint(sound.astype(np.float32).mean(axis=1) * 32768)
            assert np.abs(part - np.clip(expected, -32768, 32767)).max() <= (1 if sound.shape[1] > 1 else 0)
        else:
            assert len(part) == -(-len(sound) * 16000 // rate)
    assert end == len(samples) and len((packed / "index.tsv").read_text().splitlines()) == 24


def test_a_packed_file_is_used_like_an_open_one(speech, packed):
    source, folder = Pack(packed), Folder(speech)
    assert source.find() == folder.find() and source.find("id1") == folder.find("id1") != []
    with source.open("id0/größe-0/00000.wav") as packed_file, folder.open("id0/größe-0/00000.wav") as file:
        assert packed_file.length == file.length
        for ask in ((), (100, 500), (19000, 700, "int16"), (0, 50000, "int16")):
            one, other = packed_file.read(*ask), file.read(*ask)
            assert one.dtype == other.dtype and np.array_equal(one, other)
            one[:] = 0  # a copy: the pack cannot be written to


def assert_same_augmentation(noises, folder, samples):
    pairs = [(noises / "musan", noises / "rirs"), (folder / "musan", folder / "rirs")]
    source = Folder(noises / "musan")
    files = [file for found in find_noises(source, "").values() for file in found]
    write_pack(folder / "musan", "noises", source, files)
    source = Folder(noises / "rirs", channel=0)
    write_pack(folder / "rirs", "responses", source, find_responses(source, ""))
    for bank_mb in (0.6, 512):  # a bank that moves on, and one that holds everything
        one, other = (Augmentation(musan, rirs, samples, bank_mb, seed=3, threads=2) for musan, rirs in pairs)
        assert isinstance(other.musan, Pack) and isinstance(other.rooms, Pack) and isinstance(one.musan, Folder)
        speech = torch.randint(-9999, 9999, (32, samples), dtype=torch.int16)
        for epoch in (1, 2):
            one.redraw(epoch)
            other.redraw(epoch)
            for name in ("noise", "music", "speech", "responses"):
                assert one.banks[name].pieces == other.banks[name].pieces
            for held in ("noises", "energy", "spectra"):
                assert torch.equal(getattr(one, held), getattr(other, held)) and getattr(one, held).any()
            assert torch.equal(one.augment(speech, epoch, 0), other.augment(speech, epoch, 0))


def test_noises_and_responses_are_the_same_packed_and_unpacked(noises, tmp_path):
    assert_same_augmentation(noises, tmp_path, SAMPLES)
    packed = (tmp_path / "rirs" / "index.tsv").read_text()
    assert "rirs" not in packed and "many microphones" in packed and "noise" not in packed


def test_real_speech_is_the_same_packed_and_unpacked(real_data, tmp_path):
    lines = (real_data / "train_list.txt").read_text().splitlines()[::13]  # of all its corpora
    (tmp_path / "list.txt").write_text("\n".join(lines))
    listing = TrainingList(tmp_path / "list.txt")
    pack_list(tmp_path / "pack", real_data, listing)
    unpacked, bad = batches(listing, Folder(real_data), samples=32240)
    assert same(unpacked, batches(listing, Pack(tmp_path / "pack"), samples=32240)[0]) and not bad
    assert_same_augmentation(real_data, tmp_path, 32240)


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_a_list_may_be_a_part_of_what_is_packed(speech, packed, tmp_path):
    lines = (speech / "list.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "part.txt").write_text("\n".join(lines[17:3:-2]), encoding="utf-8")
    listing = TrainingList(tmp_path / "part.txt")
    check_files(listing, Pack(packed), "--train_path")
    assert same(batches(listing, Pack(packed))[0], batches(listing, Folder(speech))[0])


def test_what_is_not_in_the_pack_is_named_with_its_line(speech, packed, tmp_path):
    list_text = (speech / "list.txt").read_text(encoding="utf-8")
    long = "z" * 300  # longer than any name in the pack
    (tmp_path / "more.txt").write_text(f"{list_text}x x/none.wav\nx {long}.wav\nx 0.wav\n", encoding="utf-8")
    with pytest.raises(InputError) as raised:
        check_files(TrainingList(tmp_path / "more.txt"), Pack(packed), "--train_path")
    assert str(raised.value) == (
        f"{tmp_path}/more.txt line 26: x/none.wav in the pack {packed} does not exist (3 of 27 files are missing); "
        "is --train_path right?"
    )
    with pytest.raises(UnreadableAudio, match=r"x/none.wav in the pack .* does not exist"):
        Pack(packed).open("x/none.wav")


def test_paths_that_leave_the_folder_are_taken_as_they_are(corpus, tmp_path):
    files = ["../eval/id00006/session0/00000.wav", str(corpus / "eval/id00007/session0/00001.wav")]
    (tmp_path / "list.txt").write_text("".join(f"{number} {file}\n" for number, file in enumerate(files)))
    listing = TrainingList(tmp_path / "list.txt")
    pack_list(tmp_path / "pack", corpus / "train", listing)
    check_files(listing, Pack(tmp_path / "pack"), "--train_path")
    assert same(batches(listing, Folder(corpus / "train"))[0], batches(listing, Pack(tmp_path / "pack"))[0])


def test_unreadable_files_are_replaced_as_if_they_were_not_packed(corpus, tmp_path, capsys):
    shutil.copytree(corpus / "train", tmp_path / "train")
    listing = TrainingList(corpus / "train_list.txt")
    (tmp_path / "train" / listing.files[3]).write_bytes(b"RIFF, but no more")
    pack, _ = pack_list(tmp_path / "pack", tmp_path / "train", listing)
    complaints = capsys.readouterr().err.strip().splitlines()
    assert sum(listing.files[3] in line and "cannot be read as audio" in line for line in complaints) == 1
    assert pack.content["unreadable"] == 1 and pack.content["entries"] == 24
    with pytest.raises(UnreadableAudio, match=f"{listing.files[3]} in the pack .* could not be read when"):
        pack.open(listing.files[3])
    unpacked, packed = batches(listing, Folder(tmp_path / "train")), batches(listing, pack)
    assert same(unpacked[0], packed[0]) and unpacked[1] == packed[1] == {3}
    complaints = capsys.readouterr().err.strip().splitlines()
    assert len(complaints) == 2 and all("train_list.txt line 4: " in line for line in complaints)


def test_nothing_readable_is_no_pack(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(RunError, match=r"none of the 1 files under .* can be read"):
        write_pack(tmp_path / "pack", "speech", Folder(tmp_path), ["a.wav"])
    assert not (tmp_path / "pack" / "pack.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_no_text(corpus, tmp_path):
    root = tmp_path / "rirs"
    root.mkdir()
    os.link(corpus / "rirs/smallroom/Room001/Room001-00000.wav", os.fsencode(root) + b"/caf\xe9.wav")
    source = Folder(root, channel=0)
    pack, _ = write_pack(tmp_path / "pack", "responses", source, source.find())
    assert pack.find() == source.find() and pack.open(source.find()[0]).length == 8000
    (root / "a\tb.wav").touch()
    with pytest.raises(InputError, match="has a tab or line break in its name: rename it"):
        write_pack(tmp_path / "other", "responses", source, source.find())


# ---- interruptions ---------------------------------------------------------------------------------------------------


class Trouble(Folder):
    """A folder in which something happens as a file is opened: ``event(file)``."""

    def __init__(self, root, event):
        super().__init__(root)
        self.event = event

    def open(self, file):
        self.event(file)
        return super().open(file)


def interrupted(path, speech, listing, monkeypatch, count=9):
    """A pack of which ``count`` files were written."""

    def event(file):
        if file == listing.files[count]:
            raise KeyboardInterrupt

    monkeypatch.setattr(room, "COMMIT_BYTES", 0)
    with pytest.raises(KeyboardInterrupt):
        pack_list(path, speech, listing, source=Trouble(speech, event))
    assert len((path / "index.tsv").read_bytes().splitlines()) == count


def test_packing_twice_does_nothing(speech, packed, monkeypatch):
    before = {file: file.stat() for file in packed.iterdir()}
    _, already = pack_list(packed, speech, TrainingList(speech / "list.txt"), source=Trouble(speech, pytest.fail))
    assert already and {file: file.stat() for file in packed.iterdir()} == before


def test_killed_at_any_moment_it_continues(speech, packed, tmp_path, monkeypatch):
    """SIGKILL, again and again; in the end every byte is that of an undisturbed run."""
    listing, path, draw = TrainingList(speech / "list.txt"), tmp_path / "pack", random.Random(0)
    monkeypatch.setattr(room, "COMMIT_BYTES", 0)
    slow = Trouble(speech, lambda _: time.sleep(0.02))
    reached = []
    for lines in (1, 2, 7, 12, 19):
        child = multiprocessing.get_context("fork").Process(target=pack_list, args=(path, speech, listing),
                                                            kwargs={"source": slow})  # fmt: skip
        child.start()
        index = path / "index.tsv"
        while child.is_alive() and (index.read_bytes().count(b"\n") if index.exists() else 0) < lines:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached.append(index.read_bytes().count(b"\n"))
        assert child.exitcode == -signal.SIGKILL and not (path / "pack.json").exists()
        with pytest.raises(InputError, match=r"^--train_path .* was never finished: run the same .* again$"):
            open_source(path, "--train_path")
    assert reached == sorted(reached) and reached[-1] >= 19
    opened = []
    _, already = pack_list(path, speech, listing, source=Trouble(speech, opened.append))
    assert not already and len(opened) == 24 - reached[-1] and content(path) == content(packed)


@pytest.mark.parametrize("torn", ["index", "samples", "more samples", "nonsense", "whole"])
def test_what_is_torn_is_written_again(speech, packed, tmp_path, monkeypatch, torn):
    listing, path = TrainingList(speech / "list.txt"), tmp_path / "pack"
    interrupted(path, speech, listing, monkeypatch)
    index, samples = (path / "index.tsv").read_bytes(), (path / "samples.int16").read_bytes()
    if torn == "index":
        (path / "index.tsv").write_bytes(index[:-3])
    elif torn == "samples":  # shorter than the index says
        (path / "samples.int16").write_bytes(samples[:-1001])
    elif torn == "more samples":
        (path / "samples.int16").write_bytes(samples + b"more than the index knows")
    elif torn == "nonsense":
        (path / "index.tsv").write_bytes(index + bytes(500))
    elif torn == "whole":  # all is there but pack.json
        for name in ("index.tsv", "samples.int16"):
            shutil.copy(packed / name, path)
    pack_list(path, speech, listing)
    assert content(path) == content(packed)


def test_a_source_that_disappears_stops_it(corpus, packed, tmp_path, monkeypatch):
    shutil.copytree(corpus / "train", tmp_path / "train")
    listing = TrainingList(corpus / "train_list.txt")

    def event(file):
        if file == listing.files[9]:
            shutil.move(tmp_path / "train", tmp_path / "unmounted")

    with pytest.raises(RunError, match="has disappeared; put it back and run the same again: it continues"):
        pack_list(tmp_path / "pack", tmp_path / "train", listing, threads=1, source=Trouble(tmp_path / "train", event))
    shutil.move(tmp_path / "unmounted", tmp_path / "train")
    pack, _ = pack_list(tmp_path / "pack", tmp_path / "train", listing)
    assert pack.content["unreadable"] == 0
    assert same(batches(listing, pack)[0], batches(listing, Folder(corpus / "train"))[0])


@pytest.mark.parametrize("finished", [True, False])
def test_another_list_folder_or_kind_is_refused(speech, tmp_path, monkeypatch, finished):
    listing, path = TrainingList(speech / "list.txt"), tmp_path / "pack"
    pack_list(path, speech, listing) if finished else interrupted(path, speech, listing, monkeypatch)
    before = content(path)
    for changed, complaint in (
        ({"list_sha256": "another"}, "from another list: give a new folder, or delete this one"),
        ({"files": listing.files[:20]}, "from other files:"),
        ({"source": Folder(ROOT)}, f"from another folder \\({speech}\\):"),
        ({"kind": "noises"}, r"from another kind of audio \(speech\):"),
    ):
        with pytest.raises(InputError, match=f"^--pack {path} was made {complaint}"):
            pack_list(path, speech, listing, **changed)
    assert content(path) == before
    with pytest.raises(InputError, match="holds other things: give a new folder"):
        pack_list(speech, speech, listing)


def test_two_processes_do_not_write_one_pack(speech, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    listing, path = TrainingList(speech / "list.txt"), tmp_path / "pack"
    interrupted(path, speech, listing, monkeypatch)
    before = content(path)
    with open(path / "index.tsv", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(InputError, match=f"--pack {path} is being written by another process"):
            pack_list(path, speech, listing)
    assert content(path) == before


def test_a_full_disk(corpus, tmp_path, command):
    flags = ["--pack", tmp_path / "pack", "--train_list", corpus / "train_list.txt", "--train_path", corpus / "train"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # no file may grow larger
    try:
        status, _, error = command(prepareData, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and error.strip().splitlines()[-1].endswith(
        f"--pack {tmp_path}/pack cannot be written on: File too large; make room and run the same again: it continues"
    )
    assert 0 < (tmp_path / "pack" / "samples.int16").stat().st_size <= 300_000
    status, printed, _ = command(prepareData, *flags)
    assert status == 0 and f"{tmp_path}/pack: 24 files" in printed
    listing = TrainingList(corpus / "train_list.txt")
    assert same(batches(listing, Pack(tmp_path / "pack"))[0], batches(listing, Folder(corpus / "train"))[0])


# ---- damage ----------------------------------------------------------------------------------------------------------


def change(file, old, new):
    text = file.read_bytes()
    assert old in text
    file.write_bytes(text.replace(old, new, 1))


DAMAGE = {
    "samples cut short": lambda path: os.truncate(path / "samples.int16", 100_000),
    "samples too long": lambda path: (path / "samples.int16").open("ab").write(b"12"),
    "no samples": lambda path: (path / "samples.int16").unlink(),
    "first sample": lambda path: (path / "samples.int16").open("r+b").write(b"\x55\x55"),
    "a name": lambda path: change(path / "index.tsv", b"00003", b"00033"),
    "no index": lambda path: (path / "index.tsv").unlink(),
    "another index": lambda path: change(path / "pack.json", b'"index_sha256": "', b'"index_sha256": "0'),
    "number of samples": lambda path: change(path / "pack.json", b'"samples": ', b'"samples": 1'),
    "number of entries": lambda path: change(path / "pack.json", b'"entries": 24', b'"entries": 23'),
    "format": lambda path: change(path / "pack.json", b'"format": 1', b'"format": 2'),
    "kind": lambda path: change(path / "pack.json", b'"speech"', b'"nonsense"'),
    "rate": lambda path: change(path / "pack.json", b"16000", b"8000"),
    "missing key": lambda path: change(path / "pack.json", b'"samples"', b'"sample"'),
    "no json": lambda path: change(path / "pack.json", b"{", b""),
    "no object": lambda path: (path / "pack.json").write_text("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pack_is_refused(packed, tmp_path, damage):
    path = shutil.copytree(packed, tmp_path / "pack")
    DAMAGE[damage](path)
    with pytest.raises(InputError) as raised:
        open_source(path, "--train_path")
    message = str(raised.value)
    assert message.startswith(f"the pack {path} is damaged: ") and "\n" not in message
    assert message.endswith("; delete the folder and run prepareData.py --pack again")


def test_an_index_that_overlaps_is_refused(packed, tmp_path):
    """Even one whose hash is right: written wrongly rather than damaged."""
    path = shutil.copytree(packed, tmp_path / "pack")
    lines = (path / "index.tsv").read_bytes().splitlines(keepends=True)
    fields = lines[5].split(b"\t")
    fields[2] = str(int(fields[2]) - 1).encode()
    (path / "index.tsv").write_bytes(b"".join([*lines[:5], b"\t".join(fields), *lines[6:]]))
    content = json.loads((path / "pack.json").read_text())
    (path / "pack.json").write_text(json.dumps(content | {"index_sha256": room.sha256(path / "index.tsv")}))
    with pytest.raises(InputError, match="does not account for every sample once"):
        Pack(path)


def test_a_pack_of_the_wrong_kind_is_refused(noises, packed, tmp_path):
    source = Folder(noises / "rirs", channel=0)
    write_pack(tmp_path / "rirs", "responses", source, find_responses(source, ""))
    with pytest.raises(InputError, match=r"^--train_path .*rirs is a pack of responses, which do not belong here$"):
        open_source(tmp_path / "rirs", "--train_path")
    with pytest.raises(InputError, match=r"^--rir_path .* is a pack of speech, which do not belong here$"):
        Augmentation("", packed, SAMPLES)
    with pytest.raises(InputError, match=r"^--musan_path .* has no audio in its folder 'noise'"):
        Augmentation(packed, "", SAMPLES)
    with pytest.raises(InputError, match=r"^--train_path .*nowhere is not a folder$"):
        open_source(tmp_path / "nowhere", "--train_path")


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "complaint"), [
    ([], "--pack needs one of"),
    (["--train_list", "{corpus}/train_list.txt"], "--pack needs one of"),
    (["--train_path", "{corpus}/train"], "--pack needs one of"),
    (["--musan_path", "{corpus}/musan", "--rir_path", "{corpus}/rirs"], "--pack needs one of"),
    (["--musan_path", "{corpus}/musan", "--n_cpu", "0"], "--n_cpu must be at least 1, not 0"),
    (["--musan_path", "{corpus}/none"], "--musan_path {corpus}/none is not a folder"),
    (["--musan_path", "{corpus}/rirs"], "--musan_path {corpus}/rirs has no audio in its folder 'noise'"),
    (["--rir_path", "{tmp}"], "--rir_path {tmp} holds no room responses"),
    (["--train_list", "{corpus}/train_list.txt", "--train_path", "{corpus}/eval"], "list.txt line 1: {corpus}/eval/"),
])  # fmt: skip
def test_mistakes_get_one_line(command, corpus, tmp_path, flags, complaint):
    places = {"corpus": corpus, "tmp": tmp_path}
    status, _, error = command(prepareData, "--pack", tmp_path / "pack", *(flag.format(**places) for flag in flags))
    assert status == 2 and complaint.format(**places) in error and error.strip().count("\n") == 0
    assert not (tmp_path / "pack").exists()


def test_training_from_packs_ends_with_the_same_weights(command, corpus, tmp_path):
    lists = ["--train_list", corpus / "train_list.txt"]
    folders = {"--train_path": corpus / "train", "--musan_path": corpus / "musan", "--rir_path": corpus / "rirs"}
    packs = {flag: tmp_path / flag.strip("-") for flag in folders}
    for flag, root in folders.items():
        more = lists if flag == "--train_path" else []
        for said in ("", " is already packed"):
            status, printed, _ = command(prepareData, "--pack", packs[flag], flag, root, *more)
            assert status == 0 and printed.startswith(f"{packs[flag]}{said}: ") and f"{flag} {packs[flag]}" in printed
    index = (packs["--train_path"] / "index.tsv").read_text()
    assert index.startswith("id00000\tid00000/session0/00000.wav\t0\t24000\t") and "\nid00005\t" in index
    weights = []
    for number, places in enumerate((folders, packs)):
        run = tmp_path / f"run{number}"
        flags = ["--save_path", run, "--C", 8, "--batch_size", 8, "--num_frames", 60, "--max_epoch", 1,
                 "--device", "cpu", "--amp", "off", "--n_cpu", 2]  # fmt: skip
        flags += [item for pair in places.items() for item in pair]
        assert command(trainSpeakerNet, *lists, *flags, "--eval_list")[0] == 0
        weights.append(torch.load(run / "state.pt", weights_only=True)["weights"])
    assert weights[0].keys() == weights[1].keys() and len(weights[0]) > 50
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
