"""What is wrong with audio files, one by one: told from their headers, or from every sample."""

import concurrent.futures
import hashlib
import os
import struct
from typing import NamedTuple

import numpy as np
import soundfile

from corpora.audio import AudioFile, UnreadableAudio
from tools import RunError, progress_bar, sha256

HEAD = 8192  # bytes that are looked at without decoding
SILENT = 1e-3  # peak, of 1: -60 dB, below the quietest speech of any use
FULL_SCALE = 32766 / 32768  # samples there are clipped, in 16 bits on either side
CLIPPED_SHARE = 1e-3  # of the samples, so many at full scale are heard
OFFSET = 0.05  # mean of the samples, of 1: a recorder that was out of order
BLOCK = 1 << 20  # samples that are decoded at a time, so that an hour does not fill the memory
SUFFIXES = {"WAV": {".wav"}, "WAVEX": {".wav"}, "FLAC": {".flac"}, "OGG": {".ogg", ".oga", ".opus"}, "MPEG": {".mp3"}}


class Sight(NamedTuple):
    """What was seen of a file. ``fault``: a word of FAULTS, or ""; ``said``: the message that came with it.

    ``seconds``, ``rate``, ``channels`` as the header says; ``key``: equal for equal files, as far as was looked; with
    all samples decoded also ``peak``, of 1, the shares of samples ``clipped``, and the mean as ``offset``.
    """

    fault: str = ""
    said: str = ""
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    key: bytes = b""
    misnamed: bool = False
    peak: float = 1.0
    clipped: float = 0.0
    offset: float = 0.0


# fault: (in words, the mend)
FAULTS = {
    "empty": ("are empty", "fetch or convert them again, or take their lines out of the list"),
    "mpeg4": ("are MPEG-4 (m4a) under another name, which cannot be read", "convert them to 16 kHz wav or flac"),
    "text": ("are text, not audio: an error page or a Git LFS pointer", "fetch the audio itself"),
    "truncated": ("are shorter than their header says", "the copy or the disk stopped halfway: fetch them again"),
    "unreadable": ("cannot be read as audio", "fetch or convert them again, or take their lines out of the list"),
    "undecodable": ("begin well but cannot be decoded to the end", "fetch or convert them again"),
}


def look_at(source, files, threads=4, full=False, desc="headers"):
    """{file: Sight} of files (N names) of a Folder, which exist; ``full`` decodes every sample."""
    look = decode if full else look_at_header
    parts = [files[first : first + 256] for first in range(0, len(files), 256)]  # a job for each file would cost more
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        seen = pool.map(lambda part: [look(source.name(file)) for file in part], parts)
        bar = progress_bar(total=len(files), desc=desc, unit=" files", delay=2)
        sights = {}
        for part, found in zip(parts, seen):
            sights.update(zip(part, found))
            bar.update(len(part))
        bar.close()
    return sights


def look_at_header(path):
    """The Sight of a file from its first bytes and its header."""
    try:
        with open(path, "rb") as file:
            head, size = file.read(HEAD), os.fstat(file.fileno()).st_size
    except OSError as error:
        return Sight("unreadable", f"{error.strerror}")
    if not size:
        return Sight("empty", "0 bytes")
    if head[4:8] == b"ftyp":
        return Sight("mpeg4", "begins as MPEG-4 does")
    if is_text(head):
        return Sight("text", head[:40].decode("latin-1"))
    try:
        with AudioFile(path) as audio:
            file = audio.file
            seconds, rate, channels, kind = file.frames / file.samplerate, file.samplerate, file.channels, file.format
    except UnreadableAudio as error:
        said = str(error).removeprefix(f"{path} ")
        return Sight("empty" if said == "is empty" else "unreadable", said)
    if (missing := missing_bytes(head, size)) > 0:
        return Sight("truncated", f"{size} of {size + missing} bytes", seconds, rate, channels)
    misnamed = os.path.splitext(path)[1].lower() not in SUFFIXES.get(kind, {os.path.splitext(path)[1].lower()})
    key = hashlib.blake2b(size.to_bytes(8, "little") + head, digest_size=16).digest()
    return Sight("", "", seconds, rate, channels, key, misnamed)


def is_text(head):
    """Whether a file that begins so is what a site or Git gives in place of audio."""
    return head.lstrip()[:1] == b"<" or head.startswith(b"version https://git-lfs")


def missing_bytes(head, size):
    """How many of its bytes a wav lacks, by its first ones and its size: libsndfile takes it for a shorter one."""
    name, claimed = struct.unpack("<4sI", head[:8].ljust(8, b"\0"))
    # What is written into a pipe claims 2 or 4 GB, since nobody knows the length beforehand.
    return 8 + claimed - size if name == b"RIFF" and claimed < 0x7FFF0000 else 0


def decode(path):
    """The Sight of a file from all of its samples; its ``key`` is theirs, whatever they are coded in."""
    sight = look_at_header(path)
    if sight.fault:
        return sight
    digest, peak, clipped, total, count = hashlib.blake2b(digest_size=16), 0.0, 0, 0.0, 0
    try:
        with soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path) as file:
            promised = file.frames
            for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
                if not np.isfinite(block).all():
                    return sight._replace(fault="undecodable", said="samples that are not finite numbers")
                digest.update(block.tobytes())
                loudness = np.abs(block)
                peak, clipped = max(peak, float(loudness.max())), clipped + int((loudness >= FULL_SCALE).sum())
                total, count = total + float(block.sum(dtype=np.float64)), count + block.size
    except (soundfile.LibsndfileError, OSError, MemoryError) as error:
        return sight._replace(fault="undecodable", said=str(error))
    if count < promised * sight.channels:
        return sight._replace(fault="truncated", said=f"{count // sight.channels} of {promised} samples")
    return sight._replace(key=digest.digest(), peak=peak, clipped=clipped / count, offset=total / count)


def equal_files(source, sights, full):
    """[[file, ...]] of files with the same content, at least two each: those whose Sights have equal keys.

    Not ``full``: keys are of size and first bytes only, so the few files that agree there are compared as a whole.
    """
    groups = {}
    for file, sight in sights.items():
        if sight.key:
            groups.setdefault(sight.key, []).append(file)
    groups = [group for group in groups.values() if len(group) > 1]
    if full:
        return groups
    same = {}
    for group in groups:
        for file in group:
            same.setdefault(content_hash(source.name(file)), []).append(file)
    return [group for group in same.values() if len(group) > 1]


def content_hash(path):
    """Equal for equal files: a hash of all their bytes. RunError if one has gone since its header was read."""
    try:
        return sha256(path)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; is the disk failing?") from error
