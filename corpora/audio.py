"""Audio files as 16 kHz mono: any format, any sample rate, any part of them; one by one, or a folder of them."""

import concurrent.futures
import functools
import math
import os
import pathlib

import numpy as np
import scipy.signal
import soundfile

from tools import InputError, progress_bar

SAMPLE_RATE = 16000
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}  # read from folders of noises and room responses
# Formats that only ffmpeg decodes (convert.py).
FFMPEG_SUFFIXES = {".m4a", ".mp4", ".m4b", ".mov", ".3gp", ".aac", ".wma", ".webm", ".mkv", ".mka", ".amr", ".ac3"}
SUFFIXES = AUDIO_SUFFIXES | FFMPEG_SUFFIXES | {".aif", ".aiff", ".au", ".caf", ".sph", ".w64", ".mp2"}  # all known

# FLAC of digital silence holds 5000 samples a byte, more than any other codec: a header that claims more is wrong.
SAMPLES_PER_BYTE = 10_000


class UnreadableAudio(InputError):
    """An audio file that cannot be read or is empty."""


@functools.lru_cache(maxsize=16)  # a filter may take 50 MB
def low_pass(up, down, crossings):
    """The resampling filter of torchaudio.functional.resample, in the form of ``scipy.signal.resample_poly``.

    For rates up : down; a sinc with this many zero crossings on each side under a Hann window, cut-off at 99 % of half
    the lower rate.
    """
    lower = 0.99 * min(up, down)
    half = math.ceil(crossings * up * down / lower)
    crossing = np.arange(-half, half + 1) * lower / (up * down)
    window = np.cos(np.clip(crossing / crossings, -1, 1) * np.pi / 2) ** 2
    return np.sinc(crossing) * window * lower / (up * down)


class AudioFile:
    """An open audio file (anything libsndfile reads) as 16 kHz mono, resampled if need be.

    channel: which of several channels (0, 1, ...); None: their mean. crossings: sharpness of the resampling filter
    (low_pass); torchaudio's default of 6 lets frequencies up to 1 kHz above the new half rate alias. ``length``: number
    of samples at 16 kHz. UnreadableAudio, naming the file, when it is no audio, empty, or its header is wrong.
    """

    def __init__(self, path, channel=None, crossings=32):
        self.path = path
        self.crossings = crossings
        self.position = 0  # in the file, where the last read ended
        if not os.path.isfile(path):  # a pipe might never answer
            raise UnreadableAudio(f"{path} {'is not a regular file' if os.path.exists(path) else 'does not exist'}")
        size = os.path.getsize(path)
        try:
            # As bytes, because a file name need not be valid UTF-8.
            self.file = soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: .raw without a header
            reason = "cannot be read as audio" if size else "is an empty file"
            if pathlib.Path(path).suffix.lower() in FFMPEG_SUFFIXES:
                reason += ": convert it to wav with prepareData.py --convert"
            raise UnreadableAudio(f"{path} {reason}") from error
        rate, frames, channels = self.file.samplerate, self.file.frames, self.file.channels
        reason = ""
        if not 1000 <= rate <= 400_000:
            reason = f"claims a sample rate of {rate} Hz"
        elif frames > SAMPLES_PER_BYTE * size:  # also FLAC that was written to a pipe
            reason = f"claims {frames} samples in {size} bytes: write it again, to a file"
        elif frames <= 0:
            reason = "is empty"
        elif (channel or 0) >= channels:
            reason = f"has {channels} channels, no channel {channel}"
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
        """Samples [start, start + samples) as float32 in [-1, 1] or int16; past the end they are wrapped around.

        A part has the same samples as in the whole. UnreadableAudio if it cannot be decoded, is shorter than the header
        says, holds values that are not finite, or does not fit in memory.
        """
        samples = self.length if samples is None else samples
        available = min(samples, self.length - start)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite values are found below
            if self.up == self.down:
                # libsndfile scales float files to int16 in its own way, so these are read as float32.
                direct = dtype == "float32" or (self.file.subtype == "PCM_16" and self.channel is not None)
                waveform = self._read_mono(start, available, dtype if direct else "float32")
            else:
                waveform = self._resampled(start, available)
        if waveform.dtype != np.int16 and not np.isfinite(waveform).all():
            raise UnreadableAudio(f"{self.path} holds samples that are not finite")
        if waveform.dtype != dtype:
            waveform = to_int16(waveform)
        # np.resize repeats from the beginning.
        return waveform if len(waveform) == samples else np.resize(waveform, samples)

    def _resampled(self, start, count):
        """``count`` samples at 16 kHz, float32, out of the samples of the file within the reach of the filter."""
        reach = math.ceil(self.crossings * max(self.up, self.down) / (0.99 * self.up)) + 1
        first = max(0, start * self.down // self.up - reach) // self.down * self.down  # both rates have one here
        end = min(self.file.frames, (start + count) * self.down // self.up + 1 + reach)
        waveform = self._read_mono(first, end - first, "float32")
        window = low_pass(self.up, self.down, self.crossings)
        waveform = scipy.signal.resample_poly(waveform, self.up, self.down, window=window)
        skip = start - first // self.down * self.up
        return waveform[skip : skip + count].astype(np.float32)

    def _read_mono(self, first, count, dtype):
        try:
            if first != self.position:  # some formats (GSM 6.10) can only be read from the beginning
                self.file.seek(first)
            waveform = self.file.read(count, dtype=dtype, always_2d=True)
            self.position = first + count
        except (soundfile.LibsndfileError, OSError) as error:
            raise UnreadableAudio(f"{self.path} cannot be decoded ({error})") from error
        except MemoryError as error:
            raise UnreadableAudio(f"{self.path} does not fit in memory: {count} samples") from error
        if len(waveform) < count:
            raise UnreadableAudio(f"{self.path} ends before the length in its header: truncated?")
        return waveform.mean(axis=1) if self.channel is None else np.ascontiguousarray(waveform[:, self.channel])


def to_int16(waveform):
    """Float samples in [-1, 1] as int16, rounded and clipped."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def read_audio(path, channel=None):
    """A whole file: (samples,) float32 at 16 kHz, one channel or the mean of all. UnreadableAudio."""
    with AudioFile(path, channel) as file:
        return file.read()


def find_audio(folder, suffixes=AUDIO_SUFFIXES):
    """All audio files under a folder, sorted, without hidden ones (macOS writes ._a.wav beside a.wav)."""
    paths = pathlib.Path(folder).rglob("*")
    return sorted(path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith("."))


def check_folder(path, flag):
    """InputError unless ``path`` is a folder."""
    if not pathlib.Path(path).is_dir():
        raise InputError(f"{flag} {path} is not a folder")


class Folder:
    """Audio files under one folder, named by their paths from there. channel, crossings: as for AudioFile.

    A Pack (pack.py) can take its place: the same methods, the same samples.
    """

    def __init__(self, root, channel=None, crossings=32):
        self.root = pathlib.Path(root)
        self.channel, self.crossings = channel, crossings

    def find(self, folder=""):
        """The names of all audio files under it, or under a folder in it, sorted."""
        return [path.relative_to(self.root).as_posix() for path in find_audio(self.root / folder)]

    def missing(self, files):
        """Those of the files that do not exist."""
        slices = [files[first : first + 1000] for first in range(0, len(files), 1000)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a network disk answers many requests at once
            absent = pool.map(lambda part: [file for file in part if not os.path.isfile(self.name(file))], slices)
            absent = progress_bar(iterable=absent, total=len(slices), desc="checking", unit="thousand files", delay=2)
            return [file for part in absent for file in part]

    def name(self, file):
        """What to call a file in a message: its path."""
        return str(self.root / file)

    def open(self, file):
        """An AudioFile. UnreadableAudio if it cannot be read."""
        return AudioFile(self.name(file), self.channel, self.crossings)


def find_noises(source, path):
    """{category: names of its files} of MUSAN in a Folder or Pack. InputError naming the path if one has none."""
    files = {category: source.find(category) for category in ("noise", "music", "speech")}
    for category, found in files.items():
        if not found:
            raise InputError(
                f"--musan_path {path} has no audio in its folder '{category}': it must hold noise/, music/ and "
                "speech/, as MUSAN does; '' trains without"
            )
    return files


def find_responses(source, path):
    """The names of the room responses in a Folder or Pack. InputError naming the path if there are none."""
    # RIRS_NOISES keeps noises among its responses: a folder of point sources, and files with "noise" in the name.
    files = []
    for file in source.find():
        *folders, name = file.split("/")
        if "noise" not in name.lower() and "pointsource_noises" not in folders:
            files.append(file)
    if not files:
        raise InputError(f"--rir_path {path} holds no room responses (*.wav); '' trains without")
    return files
