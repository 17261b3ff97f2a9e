"""Packs: the audio of a training list, decoded into one file.

A pack is a folder of three files: samples.int16, all files at 16 kHz mono, concatenated; index.tsv, with a line
"speaker, path, offset, length, crc32" per file; pack.json, its origin, written last: without it the pack is unfinished.
Crops of wav and flac are identical to those from files; Ogg and MP3 can differ slightly where decoding starts in the
middle of a file.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import sys
import zlib

import numpy as np
from tqdm import tqdm

from corpora.audio import SAMPLE_RATE, Folder, UnreadableAudio, check_folder
from tools import InputError, RunError, check_writable, file_hash, in_order, progress_bar, read_text, write_text

ORIGIN = "unfinished.json"  # what a pack is made from, until pack.json says that it is whole
DTYPE = np.dtype("<i2")


def open_source(path, flag):
    """The Folder or Pack at a path. InputError naming the flag if it is neither, unfinished or damaged."""
    path = pathlib.Path(path)
    if (path / "pack.json").exists():
        return Pack(path)
    if (path / "samples.int16").exists():
        raise InputError(f"{flag} {path} is an unfinished pack: run the same prepareData.py --pack again")
    check_folder(path, flag)
    return Folder(path)


class PackedFile:
    """One file of a pack, ``length`` samples from ``first`` on, with the methods of an AudioFile."""

    rate = SAMPLE_RATE  # that of the file it was made from is not kept

    def __init__(self, pack, first, length):
        self.pack, self.first, self.length = pack, first, length

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, start=0, samples=None, dtype="float32"):
        """Samples [start, start + samples), like AudioFile.read, with the precision of int16."""
        samples = self.length if samples is None else samples
        waveform = np.empty(min(samples, self.length - start), DTYPE)
        self.pack.read_into(waveform, self.first + start)
        if dtype != "int16":
            waveform = waveform.astype(np.float32) / np.float32(32768)
        return waveform if len(waveform) == samples else np.resize(waveform, samples)


class Pack:
    """A finished pack, with the methods of the Folder that it was made from. InputError if it is damaged.

    ``content``: pack.json; ``offset``, ``length``: of each file in samples, (files,) int64; a length of 0 marks a file
    that could not be read.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        try:
            self.content = content = json.loads(read_text(self.path / "pack.json"))
            self.file = open(self.path / "samples.int16", "rb", buffering=0)  # noqa: SIM115 - as long as the pack
            index = (self.path / "index.tsv").read_bytes()
            fields = index.replace(b"\n", b"\t").split(b"\t")
            names = np.array(fields[1::5])
            self.offset, self.length = (np.array(fields[column:-1:5], dtype=np.int64) for column in (2, 3))
            size = os.fstat(self.file.fileno()).st_size
            if hashlib.sha256(index).hexdigest() != content["index_sha256"] or self.length.sum() * 2 != size:
                raise ValueError("index.tsv or samples.int16 was changed")
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"the pack {path} is damaged ({what}): delete the folder and pack again") from error
        # Read by preadv, not through a memory map: from a cold disk a map reads far more than is asked for, and if the
        # file is cut short while it is mapped, the process is killed.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        # A sorted array, because a dict of a million strings takes several times the memory.
        self.order = np.argsort(names, kind="stable")
        self.names = names[self.order]

    def rows(self, files):
        """The indices of files in ``offset`` and ``length``: (N,) int64, -1 for files that are not in the pack."""
        wanted = np.array([_encoded(file) for file in files], dtype=bytes)
        row = np.minimum(np.searchsorted(self.names, wanted), len(self.names) - 1)
        return np.where(self.names[row] == wanted, self.order[row], -1)

    def missing(self, files):
        """Those of the files that are not in the pack."""
        return [file for file, row in zip(files, self.rows(files)) if row < 0]

    def name(self, file):
        """The file's name, for messages."""
        return f"{file} in the pack {self.path}"

    def open(self, file):
        """The file as a PackedFile. UnreadableAudio if it is not in the pack, or could not be read when packed."""
        row = self.rows([file])[0]
        if row < 0:
            raise UnreadableAudio(f"{self.name(file)} does not exist")
        if not self.length[row]:
            raise UnreadableAudio(f"{self.name(file)} could not be read when it was packed")
        return PackedFile(self, int(self.offset[row]), int(self.length[row]))

    def read_into(self, waveform, first):
        """Fill an int16 array with the samples from ``first`` on. UnreadableAudio if the file is shorter by now."""
        rest, at = memoryview(waveform).cast("B"), DTYPE.itemsize * first
        while rest:
            count = os.preadv(self.file.fileno(), [rest], at)
            if not count:
                raise UnreadableAudio(f"{self.path / 'samples.int16'} was cut short")
            rest, at = rest[count:], at + count


def _encoded(name):
    return name.encode("utf-8", "surrogateescape")  # file names need not be valid UTF-8


def write_pack(path, source, train_list, threads=4):
    """Pack the files of a TrainingList, in a Folder -> Pack, unless it exists. An unfinished one is continued.

    Files that cannot be read are reported and have length 0 in the index. InputError if the folder has another pack;
    RunError for a full disk or a source that disappears, after which the same call continues.
    """
    path = pathlib.Path(path)
    speaker_of = dict(zip(train_list.files, (train_list.speakers[label] for label in train_list.label)))
    names = "".join(f"{speaker}\t{file}\n" for file, speaker in speaker_of.items())
    files_sha256 = hashlib.sha256(_encoded(names)).hexdigest()
    origin = {"format": 1, "kind": "speech", "source": str(source.root.resolve()),
              "list_sha256": train_list.sha256, "files_sha256": files_sha256}  # fmt: skip
    if (path / "pack.json").exists():
        pack = Pack(path)
        if not origin.items() <= pack.content.items():
            raise InputError(f"--pack {path} was made from other files: give a new folder, or delete this pack")
        return pack
    begun = load_origin(path)
    if begun is None and path.is_dir() and any(path.iterdir()):
        raise InputError(f"--pack {path} has other files in it: give a new folder")
    if begun not in (None, origin):
        raise InputError(f"--pack {path} was begun with other files: give a new folder, or delete this unfinished pack")
    check_writable(path, "--pack")
    try:
        write_text(path / ORIGIN, json.dumps(origin) + "\n")
        count, unreadable = _append(path, source, list(speaker_of), list(speaker_of.values()), threads)
    except OSError as error:
        raise RunError(f"--pack {path}: {error.strerror}: make room, the same command continues") from error
    if not count:
        raise RunError(f"none of the {len(speaker_of)} files under {source.root} can be read: nothing to pack")
    numbers = {"sample_rate": SAMPLE_RATE, "dtype": DTYPE.name, "samples": count, "entries": len(speaker_of),
               "unreadable": unreadable, "index_sha256": file_hash(path / "index.tsv")}  # fmt: skip
    write_text(path / "pack.json", json.dumps(origin | numbers, indent=2) + "\n")
    (path / ORIGIN).unlink()
    return Pack(path)


def load_origin(path):
    """What an unfinished pack in a folder is made from, a dict; None if there is none."""
    with contextlib.suppress(InputError, ValueError):
        return json.loads(read_text(path / ORIGIN))


def _append(path, source, files, speakers, threads):
    """Append the remaining files to samples and index -> (samples, unreadable files) of the whole pack."""
    with open(path / "index.tsv", "a+b") as index, open(path / "samples.int16", "ab") as samples:
        done, end, unreadable = _cut_to_whole_entries(index, samples, files, speakers)
        rows = zip(speakers[done:], files[done:], in_order(lambda file: _decode(source, file), files[done:], threads))
        rows = progress_bar(iterable=rows, total=len(files), initial=done, desc="packing", unit=" files")
        for speaker, file, waveform in rows:
            samples.write(waveform)
            index.write(_encoded(f"{speaker}\t{file}\t{end}\t{len(waveform)}\t{zlib.crc32(waveform)}\n"))
            index.flush()
            end += len(waveform)
            unreadable += not len(waveform)
        for written in (samples, index):
            written.flush()
            os.fsync(written.fileno())  # before pack.json says that they are whole
    return end, unreadable


def _cut_to_whole_entries(index, samples, files, speakers):
    """Truncate both files after the last whole entry -> (entries, samples, unreadable files) so far."""
    available = os.fstat(samples.fileno()).st_size // DTYPE.itemsize
    done = end = unreadable = kept = 0
    index.seek(0)
    for line, speaker, file in zip(index, speakers, files):
        begin = _encoded(f"{speaker}\t{file}\t{end}\t")
        rest = re.fullmatch(rb"(\d{1,18})\t\d+\n", line[len(begin) :]) if line.startswith(begin) else None
        if not rest or end + int(rest[1]) > available:
            break
        done, end, kept, unreadable = done + 1, end + int(rest[1]), kept + len(line), unreadable + (rest[1] == b"0")
    index.truncate(kept)
    samples.truncate(end * DTYPE.itemsize)
    return done, end, unreadable


def _decode(source, file):
    try:
        with source.open(file) as audio:
            return audio.read(dtype="int16")
    except UnreadableAudio as error:
        if source.missing([file]):  # all existed before: must not be packed as unreadable
            raise RunError(f"{source.name(file)} has disappeared: put it back, the same command continues") from error
        tqdm.write(f"{error}; packed without samples", file=sys.stderr)
        return np.empty(0, DTYPE)
