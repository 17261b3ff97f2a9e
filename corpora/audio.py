"""Audio as 16 kHz mono: whole files or parts, of any format and sample rate; folders of audio, MUSAN, responses."""

import functools
import io
import math
import os
import pathlib
import re
import struct
import warnings

import numpy as np
import soundfile

from tools import InputError, count, in_order, progress_bar

SAMPLE_RATE = 16000
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}  # searched for in folders of training audio
# Formats that only ffmpeg decodes (convert.py).
FFMPEG_SUFFIXES = {".m4a", ".mp4", ".m4b", ".mov", ".3gp", ".aac", ".wma", ".webm", ".mkv", ".mka", ".amr", ".ac3"}
SUFFIXES = AUDIO_SUFFIXES | FFMPEG_SUFFIXES | {".aif", ".aiff", ".au", ".caf", ".sph", ".w64", ".mp2"}  # all

# FLAC of digital silence holds 5000 samples per byte, more than any other codec: a header that claims more is wrong.
SAMPLES_PER_BYTE = 10_000


class UnreadableAudio(InputError):
    """An audio file that cannot be read or is empty."""


@functools.lru_cache(maxsize=16)  # a filter may take 50 MB
def low_pass(up, down, crossings):
    """The resampling filter of torchaudio.functional.resample, for ``scipy.signal.resample_poly`` by up : down.

    A Hann-windowed sinc with this many zero crossings per side, cut-off at 99 % of half the lower rate.
    """
    lower = 0.99 * min(up, down)
    half = math.ceil(crossings * up * down / lower)
    crossing = np.arange(-half, half + 1) * lower / (up * down)
    window = np.cos(np.clip(crossing / crossings, -1, 1) * np.pi / 2) ** 2
    return np.sinc(crossing) * window * lower / (up * down)


# The header of a wav file of 16 kHz, mono, 16 bits, with ffmpeg's name before the samples or not; group 1: their bytes.
PCM = re.escape(struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16))
PLAIN_WAV = re.compile(b"RIFF.{4}WAVEfmt " + PCM + rb"(?:LIST\x1a\0\0\0INFO.{22})?data(.{4})", re.DOTALL)


class PlainWav:
    """The open file of a PLAIN_WAV, with what AudioFile needs of a SoundFile; read in half the time."""

    samplerate, channels, subtype = SAMPLE_RATE, 1, "PCM_16"

    def __init__(self, file, begin, frames):
        self.file, self.begin, self.frames = file, begin, frames
        self.seek(0)

    def seek(self, frame):
        self.file.seek(self.begin + 2 * frame)

    def read(self, frames, dtype, always_2d):
        """(frames, 1) int16 or float32, fewer if the file has been cut short."""
        content = self.file.read(2 * frames)
        waveform = np.frombuffer(content, "<i2", len(content) // 2)[:, None]
        return waveform if dtype == "int16" else waveform / np.float32(32768)

    def close(self):
        self.file.close()


def open_samples(path):
    """A path or a BytesIO as a PlainWav or, where it is anything else, as a SoundFile."""
    if isinstance(path, io.BytesIO):
        return soundfile.SoundFile(path)
    file = io.FileIO(path)
    header = PLAIN_WAV.match(file.read(128))
    size = int.from_bytes(header[1], "little") if header else 0
    # One call of read returns at most 2 GiB; libsndfile reads what there is of a file that is cut short.
    if size < 2**31 and header and header.end() + size <= os.fstat(file.fileno()).st_size:
        return PlainWav(file, header.end(), size // 2)
    file.close()
    file = soundfile.SoundFile(path if os.name != "posix" else os.fsencode(path))  # names may be invalid UTF-8
    if file.seekable():
        return file
    with file:  # GSM 6.10 and G.721 of telephones, which give 16 bits
        decoded = io.BytesIO()
        soundfile.write(decoded, file.read(file.frames, "int16"), file.samplerate, "PCM_16", format="WAV")
    decoded.seek(0)
    return soundfile.SoundFile(decoded)


class AudioFile:
    """An open audio file (any format of libsndfile; a path or a BytesIO) as 16 kHz mono, resampled if necessary.

    channel: index of the channel to read; None: the mean of all. crossings: sharpness of the resampling filter
    (low_pass); torchaudio's default of 6 lets frequencies up to 1 kHz above the new half rate alias. ``length``: number
    of samples at 16 kHz; ``rate``: the file's own. UnreadableAudio, naming the file, when it is not audio, empty, or
    has a wrong header.
    """

    def __init__(self, path, channel=None, crossings=32):
        self.path, self.crossings = path, crossings
        self.position = 0  # in the file, where the last read ended
        in_memory = isinstance(path, io.BytesIO)
        if not in_memory and not os.path.isfile(path):  # opening a pipe could block forever
            raise UnreadableAudio(f"{path} {'is not a regular file' if os.path.exists(path) else 'does not exist'}")
        size = len(path.getbuffer()) if in_memory else os.path.getsize(path)
        try:
            self.file = open_samples(path)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: .raw without a header
            reason = "cannot be read as audio" if size else "is an empty file"
            reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else reason
            if pathlib.Path(path).suffix.lower() in FFMPEG_SUFFIXES:
                reason += ": convert it (ffmpeg -i IT.m4a IT.wav), or its folder with prepareData.py --convert"
            raise UnreadableAudio(f"{path} {reason}") from error
        self.rate = rate = self.file.samplerate
        frames, channels = self.file.frames, self.file.channels
        reason = ""
        if not 1000 <= rate <= 400_000:
            reason = f"claims a sample rate of {rate} Hz"
        elif frames > SAMPLES_PER_BYTE * size:  # FLAC that was written to a pipe, too
            reason = f"claims {frames} samples in {size} bytes: write it again, to a file"
        elif frames <= 0:
            reason = "is empty"
        elif not 0 <= (channel or 0) < channels:
            reason = f"has no channel {channel}, but {count(channels, 'channel')}"
        if reason:
            self.file.close()
            raise UnreadableAudio(f"{path} {reason}")
        divisor = math.gcd(rate, SAMPLE_RATE)
        self.up, self.down = SAMPLE_RATE // divisor, rate // divisor
        self.length = -(-frames * self.up // self.down)
        self.channel = 0 if channels == 1 else channel

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, start=0, samples=None, dtype="float32"):
        """Samples [start, start + samples) as float32 in [-1, 1] or int16; past the end the file is repeated.

        A part equals that part of the whole. UnreadableAudio if the file cannot be decoded, is shorter than its header
        says, or has samples that are not finite.
        """
        samples = self.length if samples is None else samples
        available = min(samples, self.length - start)
        with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are an error below
            if self.up == self.down:
                # libsndfile scales float files to int16 differently, so these are read as float32.
                direct = dtype == "float32" or (self.file.subtype == "PCM_16" and self.channel is not None)
                waveform = self._read_mono(start, available, dtype if direct else "float32")
            else:
                waveform = self._resampled(start, available)
        if waveform.dtype != np.int16 and not np.isfinite(waveform).all():
            raise UnreadableAudio(f"{self.path} has samples that are not finite")
        if waveform.dtype != dtype:
            waveform = to_int16(waveform)
        return waveform if len(waveform) == samples else np.resize(waveform, samples)

    def _resampled(self, start, count):
        """``count`` samples at 16 kHz, float32, from the samples of the file within the reach of the filter."""
        reach = math.ceil(self.crossings * max(self.up, self.down) / (0.99 * self.up)) + 1
        first = max(0, start * self.down // self.up - reach) // self.down * self.down  # instants coincide here
        end = min(self.file.frames, (start + count) * self.down // self.up + 1 + reach)
        waveform = self._read_mono(first, end - first, "float32")
        window = low_pass(self.up, self.down, self.crossings)
        from scipy.signal import resample_poly  # here, because it takes half a second to import

        waveform = resample_poly(waveform, self.up, self.down, window=window)
        skip = start - first // self.down * self.up
        return waveform[skip : skip + count].astype(np.float32)

    def _read_mono(self, first, count, dtype):
        try:
            if first != self.position:  # seeking takes a while in some formats
                self.file.seek(first)
            waveform = self.file.read(count, dtype=dtype, always_2d=True)
            self.position = first + count
        except (soundfile.LibsndfileError, OSError) as error:
            raise UnreadableAudio(f"{self.path} cannot be decoded ({error})") from error
        if len(waveform) < count:
            raise UnreadableAudio(f"{self.path} ends before the length in its header: truncated?")
        return waveform.mean(axis=1) if self.channel is None else np.ascontiguousarray(waveform[:, self.channel])


def to_int16(waveform):
    """Float samples in [-1, 1] as int16, rounded and clipped."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def find_audio(folder, suffixes=AUDIO_SUFFIXES):
    """All audio files under a folder and the folders linked in it, sorted; without hidden files and folders (macOS
    writes ._a.wav beside a.wav) and Synology's @eaDir. A folder that cannot be listed gets a warning.
    """

    def leave_out(error):
        if not isinstance(error, FileNotFoundError):
            warnings.warn(f"{error.filename} cannot be listed ({error.strerror}): left out", stacklevel=3)

    paths, walk = [], os.walk(folder, followlinks=True, onerror=leave_out)
    for place, folders, names in progress_bar(iterable=walk, desc="searching", unit=" folders", delay=2):
        folders[:] = [name for name in folders if name[0] != "." and name != "@eaDir"]
        links = {os.path.join(place, name): name for name in folders if os.path.islink(os.path.join(place, name))}
        above = {os.path.realpath(each) for each in (place, *pathlib.Path(place).parents)} if links else ()
        for link, name in links.items():
            if os.path.realpath(link) in above:  # it leads back
                folders.remove(name)
        paths += [pathlib.Path(place, name) for name in names if name[0] != "."]
    return sorted(path for path in paths if path.suffix.lower() in suffixes)


def check_folder(path, flag, fix=""):
    """InputError unless ``path`` is a folder."""
    if not pathlib.Path(path).is_dir():
        raise InputError(f"{flag} {path} is not a folder{fix}")


class Folder:
    """The audio files under a folder, named by their paths relative to it. channel, crossings: as for AudioFile.

    A Pack (pack.py) has the same methods, except ``find``, and gives the same samples.
    """

    def __init__(self, root, channel=None, crossings=32):
        self.root, self.channel, self.crossings = pathlib.Path(root), channel, crossings

    def find(self, folder=""):
        """The names of all audio files in it, or in one of its folders, sorted."""
        return [path.relative_to(self.root).as_posix() for path in find_audio(self.root / folder)]

    def missing(self, files):
        """Those of the files that do not exist."""
        slices = [files[first : first + 1000] for first in range(0, len(files), 1000)]
        # Many threads, because a network disk answers many requests at once.
        absent = in_order(lambda part: [file for file in part if not os.path.isfile(self.name(file))], slices, 16)
        absent = progress_bar(iterable=absent, total=len(slices), desc="checking", unit="thousand files", delay=2)
        return [file for part in absent for file in part]

    def name(self, file):
        """The file's path, for messages."""
        return str(self.root / file)

    def open(self, file):
        """The file as an AudioFile. Raises UnreadableAudio."""
        return AudioFile(self.name(file), self.channel, self.crossings)


def find_noises(path):
    """(Folder, {category: file names}) of MUSAN. InputError naming the path if it or a category is absent."""
    check_folder(path, "--musan_path")
    source = Folder(path)
    files = {category: source.find(category) for category in ("noise", "music", "speech")}
    for category, found in files.items():
        if not found:
            hint = "it needs noise/, music/ and speech/; '' trains without MUSAN"
            raise InputError(f"--musan_path {path} has no audio in its folder '{category}': {hint}")
    return source, files


def find_responses(path):
    """(Folder, names of the room responses in it). InputError naming the path if there are none."""
    check_folder(path, "--rir_path")
    source = Folder(path, channel=0)  # the mean of several microphones is not a room response
    # RIRS_NOISES has noises among its responses: files with "noise" in the name, as all in pointsource_noises have.
    files = [file for file in source.find() if "noise" not in file.rpartition("/")[2].lower()]
    if not files:
        raise InputError(f"--rir_path {path} has no room responses (*.wav); '' trains without them")
    return source, files
