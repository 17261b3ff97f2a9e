"""The pack: all audio of a training list, of MUSAN or of room responses in one memory map, decoded once.

A folder of three files: samples.int16 (responses: samples.float32), the samples at 16 kHz mono, file after file;
index.tsv, a line "speaker, path, offset, length, crc32" for each of them; pack.json, what it was made from, written
last: a folder without it is no pack yet. A read is a copy out of memory, of the samples that the file would give.

Equal to the bit for what is decoded exactly: wav and flac, at any sample rate. A decoder that begins in the middle of
an Ogg or MP3 file may give other samples there; a pack holds those of decoding from the beginning. A file that is
broken in one place can be read elsewhere, but is packed as unreadable.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import sys
import time
import zlib

import numpy as np
from tqdm import tqdm

from corpora.audio import SAMPLE_RATE, Folder, UnreadableAudio, check_folder, to_int16
from tools import InputError, RunError, check_writable, in_order, progress_bar, read_text, sha256, write_text

FORMAT = 1
# The first channel of a response as it is: rounding to 16 bits would cut off its tail, a mean be that of no room.
KINDS = {"speech": ("<i2", None), "noises": ("<i2", None), "responses": ("<f4", 0)}  # samples, channel
SUFFIX = {"<i2": "int16", "<f4": "float32"}
SPOT_CHECKS = 16  # entries compared with their checksums on opening, besides the first and the last
COMMIT_BYTES, COMMIT_SECONDS = 256_000_000, 30  # the most that an interruption costs


def open_source(path, flag, channel=None):
    """A folder of audio or a pack of it. InputError naming the flag when it is neither, unfinished, or damaged."""
    path = pathlib.Path(path)
    if (path / "pack.json").exists():
        pack = Pack(path)
        if pack.channel != channel:
            raise InputError(f"{flag} {path} is a pack of {pack.content['kind']}, which do not belong here")
        return pack
    if (path / "packing.json").exists():
        raise InputError(f"{flag} {path} is a pack that was never finished: run the same prepareData.py --pack again")
    check_folder(path, flag)
    return Folder(path, channel)


# ---- reading ---------------------------------------------------------------------------------------------------------


class PackedFile:
    """One file of a pack, to be used like an AudioFile. ``packed``: its samples, int16 or float32."""

    def __init__(self, packed):
        self.packed = packed
        self.length = len(packed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, start=0, samples=None, dtype="float32"):
        """Samples [start, start + samples), as AudioFile.read; float32 out of int16 has the precision of 16 bits."""
        samples = self.length if samples is None else samples
        waveform = np.array(self.packed[start : start + samples])  # a copy: the map is not to be written to
        if waveform.dtype != dtype:
            waveform = to_int16(waveform) if dtype == "int16" else waveform.astype(np.float32) / np.float32(32768)
        return waveform if len(waveform) == samples else np.resize(waveform, samples)


class Pack:
    """A finished pack, checked as it is opened; takes the place of the Folder that it was made from.

    ``content``: what pack.json says; ``samples``: all samples, (N,), mapped from the disk; ``offset`` and ``length``:
    (entries,) int64, where each file lies; a length of 0 marks one that could not be read. A million entries take
    about 100 MB and two seconds. InputError when its parts do not belong together.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        try:
            self.content = content = json.loads(read_text(self.path / "pack.json"))
            if content["format"] != FORMAT:
                raise self._damaged(f"pack.json is of format {content['format']}, not {FORMAT}")
            dtype, self.channel = KINDS[content["kind"]]
            if (content["dtype"], content["sample_rate"]) != (SUFFIX[dtype], SAMPLE_RATE):
                raise self._damaged(f"pack.json claims {content['dtype']} at {content['sample_rate']} Hz")
            held, entries, index_hash = content["samples"], content["entries"], content["index_sha256"]
            if not (type(held) is type(entries) is type(content["unreadable"]) is int and entries > 0):
                raise self._damaged("pack.json holds no numbers of samples and entries")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged("pack.json cannot be understood") from error
        file = self.path / f"samples.{SUFFIX[dtype]}"
        size = os.path.getsize(file) if file.is_file() else 0
        if not size or size != held * np.dtype(dtype).itemsize:
            raise self._damaged(f"{file.name} has {size} bytes, not those of {held} samples")
        index = self.path / "index.tsv"
        if not index.is_file() or sha256(index) != index_hash:
            raise self._damaged("index.tsv is not the one it was written with")
        try:
            names, self.offset, self.length, self.checksum = self._read_index(index)
        except (ValueError, OverflowError) as error:
            raise self._damaged("index.tsv cannot be understood") from error
        ends = np.cumsum(self.length)
        places_fit = len(names) == entries and ends[-1] == held and np.array_equal(ends - self.length, self.offset)
        if not places_fit or (self.length < 0).any():
            raise self._damaged("index.tsv does not account for every sample once")
        # An array of sorted names, not a dict: a million strings of Python's would take several times the memory.
        self.order = np.argsort(names, kind="stable")
        self.names = names[self.order]
        # A plain view: slices of a np.memmap cost more than the copying.
        self.samples = np.asarray(np.memmap(file, dtype, mode="r"))
        for row in np.unique(np.linspace(0, entries - 1, SPOT_CHECKS + 2).astype(int)):
            if zlib.crc32(self._samples_of(row)) != self.checksum[row]:
                raise self._damaged(f"the samples of {names[row].decode('utf-8', 'replace')} have changed")

    def _damaged(self, what):
        mend = "delete the folder and run prepareData.py --pack again"
        return InputError(f"the pack {self.path} is damaged: {what}; {mend}")

    @staticmethod
    def _read_index(path):
        """(names, offsets, lengths, checksums), each (entries,): some lines at a time, so that they need no memory.

        ValueError or OverflowError if it is no index.
        """
        parts, count, longest = [], 0, 0
        with open(path, "rb") as file:
            while lines := file.readlines(1 << 22):
                fields = b"".join(lines).replace(b"\n", b"\t").split(b"\t")
                if len(fields) != 5 * len(lines) + 1:
                    raise ValueError("not five fields in each line")
                names, count = fields[1::5], count + len(lines)
                longest = max(longest, len(max(names, key=len)))
                # The array gives every name the room of the longest: one that is far longer would fill the memory.
                if longest > 4096 or count * longest > (1 << 24) + 64 * os.path.getsize(path):
                    raise ValueError("a name that is no path")
                numbers = (np.fromiter(map(int, fields[column:-1:5]), np.int64) for column in (2, 3, 4))
                parts.append((np.array(names), *numbers))
        if not parts:
            raise ValueError("an empty index")
        return [np.concatenate(column) for column in zip(*parts)]

    def _samples_of(self, row):
        return self.samples[self.offset[row] : self.offset[row] + self.length[row]]

    def rows(self, files):
        """Where files stand in ``offset`` and ``length``: (N,) int64, -1 for those that are not in the pack."""
        # What is longer than the longest name is not there, and would make all the others longer.
        wanted = [_encoded(file) for file in files]
        fits = np.array([0 < len(name) <= self.names.itemsize for name in wanted], dtype=bool)
        wanted = np.array([name if fit else b"" for name, fit in zip(wanted, fits)], dtype=self.names.dtype)
        place = np.minimum(np.searchsorted(self.names, wanted), len(self.names) - 1)
        return np.where(fits & (self.names[place] == wanted), self.order[place], -1)

    def find(self, folder=""):
        """The files under a folder of what was packed, sorted as Folder.find does."""
        prefix = _encoded(folder) + b"/" if folder else b""
        names = (name for name in self.names.tolist() if name.startswith(prefix))
        # Folder by folder, as paths are sorted.
        return sorted((name.decode("utf-8", "surrogateescape") for name in names), key=lambda name: name.split("/"))

    def missing(self, files):
        """Those of the files that are not in the pack."""
        return [file for file, row in zip(files, self.rows(files)) if row < 0]

    def name(self, file):
        """What to call a file where something is said about it."""
        return f"{file} in the pack {self.path}"

    def open(self, file):
        """A PackedFile. UnreadableAudio if it is not in the pack, or could not be read when it was made."""
        row = self.rows([file])[0]
        if row < 0:
            raise UnreadableAudio(f"{self.name(file)} does not exist")
        if not self.length[row]:
            raise UnreadableAudio(f"{self.name(file)} could not be read when it was packed")
        return PackedFile(self._samples_of(row))


def _encoded(name):
    return name.encode("utf-8", "surrogateescape")  # a name on the disk may be no text


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_pack(path, kind, source, files, speakers=None, list_sha256=None, threads=4):
    """Pack the files (N relative names) of a Folder; what was begun is continued, what is finished is left alone.

    kind: of KINDS; speakers: (N,) names, for the index. Returns (Pack, whether it was there already). Files that cannot
    be read are reported and stay in the index with length 0. InputError if the folder holds something else; RunError if
    the disk is full or the source disappears, after which the same call continues.
    """
    path = pathlib.Path(path)
    dtype, _ = KINDS[kind]
    speakers = ["-"] * len(files) if speakers is None else speakers
    names = hashlib.sha256()
    for speaker, file in zip(speakers, files):
        if re.search(r"[\t\n]", file):
            raise InputError(f"{source.name(file)!r} has a tab or line break in its name: rename it")
        names.update(_encoded(f"{speaker}\t{file}\n"))
    origin = {"format": FORMAT, "kind": kind, "source": str(source.root.resolve()), "list_sha256": list_sha256,
              "files_sha256": names.hexdigest()}  # fmt: skip
    if (path / "pack.json").exists():
        pack = Pack(path)
        _check_origin(path, pack.content, origin)
        return pack, True
    check_writable(path, "--pack")
    begun = path / "packing.json"
    if begun.exists():
        _check_origin(path, _begun_with(begun), origin)
    elif any(not file.name.startswith(".") for file in path.iterdir()):  # "." : leftovers of a file not yet whole
        raise InputError(f"--pack {path} holds other things: give a new folder, or an empty one")
    else:
        write_text(begun, json.dumps(origin, indent=2) + "\n")

    try:
        held, unreadable = _append(path, dtype, source, files, speakers, threads)
    except OSError as error:  # a full disk, most likely
        mend = "make room and run the same again: it continues"
        raise RunError(f"--pack {path} cannot be written on: {error.strerror}; {mend}") from error
    if not held:
        raise RunError(f"none of the {len(files)} files under {source.root} can be read: nothing to pack")
    numbers = {"sample_rate": SAMPLE_RATE, "dtype": SUFFIX[dtype], "samples": held, "entries": len(files),
               "unreadable": unreadable, "index_sha256": sha256(path / "index.tsv")}  # fmt: skip
    write_text(path / "pack.json", json.dumps(origin | numbers, indent=2) + "\n")
    begun.unlink()
    return Pack(path), False


def _begun_with(begun):
    """What packing.json says. InputError if that cannot be understood."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(origin := json.loads(read_text(begun)), dict):
            return origin
    raise InputError(f"--pack {begun.parent} was begun, but its {begun.name} cannot be understood: delete the folder")


def _check_origin(path, found, origin):
    named = {"kind": "another kind of audio", "source": "another folder", "list_sha256": "another list",
             "files_sha256": "other files", "format": "another version of this program"}  # fmt: skip
    for key, name in named.items():
        if found.get(key) != origin[key]:
            was = f" ({found.get(key)})" if key in ("kind", "source") else ""
            raise InputError(f"--pack {path} was made from {name}{was}: give a new folder, or delete this one")


def _append(path, dtype, source, files, speakers, threads):
    """Append what is not packed yet to samples and index -> (samples, unreadable files), each of the whole pack.

    The index is the journal: its lines reach the disk after their samples, so what it names is there.
    """
    itemsize = np.dtype(dtype).itemsize
    with open(path / "index.tsv", "a+b") as index, open(path / f"samples.{SUFFIX[dtype]}", "ab") as samples:
        _lock(index, path)
        done, end, unreadable = _take_up(index, samples, itemsize, files, speakers)
        lines, uncommitted, committed = [], 0, time.monotonic()
        decoded = in_order(lambda file: _decode(source, file, SUFFIX[dtype]), files[done:], threads)
        settings = {"total": len(files), "initial": done, "desc": "packing", "unit": " files"}
        with contextlib.closing(decoded), progress_bar(**settings) as bar:
            for speaker, file, (waveform, checksum) in zip(speakers[done:], files[done:], decoded):
                samples.write(waveform)
                lines.append(_encoded(f"{speaker}\t{file}\t{end}\t{len(waveform)}\t{checksum}\n"))
                end += len(waveform)
                unreadable += not len(waveform)
                uncommitted += waveform.nbytes
                if uncommitted >= COMMIT_BYTES or time.monotonic() >= committed + COMMIT_SECONDS:
                    _commit(samples, index, lines)
                    lines, uncommitted, committed = [], 0, time.monotonic()
                    bar.set_postfix_str(f"{end * itemsize / 1e9:.1f} GB", refresh=False)
                bar.update()
        _commit(samples, index, lines)
    return end, unreadable


def _commit(samples, index, lines):
    """Samples first, then the lines that name them, each down to the disk."""
    samples.flush()
    os.fsync(samples.fileno())
    index.write(b"".join(lines))
    index.flush()
    os.fsync(index.fileno())


def _take_up(index, samples, itemsize, files, speakers):
    """Cut both files back to the last whole entry -> (entries, samples, unreadable files) that are there."""
    available = os.fstat(samples.fileno()).st_size // itemsize
    done = end = unreadable = kept = 0
    index.seek(0)
    for line, speaker, file in zip(index, speakers, files):
        begin = _encoded(f"{speaker}\t{file}\t{end}\t")
        rest = re.fullmatch(rb"(\d{1,18})\t\d+\n", line[len(begin) :]) if line.startswith(begin) else None
        if not rest or end + int(rest[1]) > available:
            break
        done, end, kept, unreadable = done + 1, end + int(rest[1]), kept + len(line), unreadable + (rest[1] == b"0")
    index.truncate(kept)
    samples.truncate(end * itemsize)
    return done, end, unreadable


def _lock(file, path):
    """InputError if another process writes this pack; the system forgets the lock when the process ends."""
    with contextlib.suppress(ImportError):  # not on Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--pack {path} is being written by another process: wait for it") from error


def _decode(source, file, dtype):
    try:
        with source.open(file) as audio:
            waveform = audio.read(dtype=dtype)
    except UnreadableAudio as error:
        if source.missing([file]):  # all were there when the work began: they must not be packed as unreadable
            mend = "put it back and run the same again: it continues"
            raise RunError(f"{source.name(file)} has disappeared; {mend}") from error
        tqdm.write(f"{error}; kept in the index without samples", file=sys.stderr)
        waveform = np.empty(0, dtype)
    return waveform, zlib.crc32(waveform)
