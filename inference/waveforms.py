"""What a caller may give as audio: files, waveforms in memory, batches at 16 kHz."""

import io
import os

import numpy as np
import soundfile
import torch

from corpora.audio import SAMPLE_RATE, AudioFile
from tools import InputError


class InMemory(io.BytesIO):
    """A waveform as a wav file in memory, so that it is resampled, mixed and checked like a file on the disk.

    waveform: (samples,) or (channels, samples), floating point in [-1, 1] or int16, an array or a tensor. InputError.
    """

    def __init__(self, waveform, sample_rate):
        super().__init__()
        waveform, rate = as_tensor(waveform), as_number(sample_rate, "the sample rate of a waveform")
        channels, samples = waveform.shape if waveform.dim() == 2 else (1, waveform.numel())
        if waveform.dim() not in (1, 2) or channels > max(samples, 1):
            raise InputError(f"a waveform must be (samples,) or (channels, samples), not {tuple(waveform.shape)}")
        if rate < 1:
            raise InputError(f"the sample rate of a waveform must be in Hz, not {rate:g}")
        subtype = "PCM_16" if waveform.dtype == torch.int16 else "FLOAT"
        # libsndfile scales by the type of the array: float64 and half precision are written as float32.
        waveform = waveform if subtype == "PCM_16" else waveform.float()
        soundfile.write(self, waveform.cpu().numpy().T, round(rate), subtype, format="WAV")
        self.seek(0)

    def __str__(self):
        return "the waveform in memory"


def open_audio(audio, folder):
    """An open AudioFile of a path in a Folder, of (waveform, sample_rate), or of pyannote's dict of these two.

    InputError for anything else, UnreadableAudio for a file that cannot be read.
    """
    if isinstance(audio, dict) and {"waveform", "sample_rate"} <= audio.keys():
        audio = audio["waveform"], audio["sample_rate"]
    if isinstance(audio, (str, os.PathLike)):
        return folder.open(audio)
    if isinstance(audio, tuple) and len(audio) == 2:
        return AudioFile(InMemory(*audio), folder.channel, folder.crossings)
    raise InputError(f"audio must be a path, (waveform, sample_rate) or a dict of these, not {type(audio).__name__}")


class Recordings:
    """Audio of any of these forms as a source of files (like Folder and Pack) that are named 0, 1, ..."""

    def __init__(self, recordings, folder):
        self.recordings, self.folder = recordings, folder

    def name(self, number):
        audio = self.recordings[number]
        return str(audio) if isinstance(audio, (str, os.PathLike)) else f"waveform {number}"

    def open(self, number):
        return open_audio(self.recordings[number], self.folder)


def as_rows(waveforms, lengths=None):
    """A batch of waveforms at 16 kHz as a list of (samples,) float32 tensors.

    waveforms: (samples,), (B, samples), (B, 1, samples), or a list of (samples,) of different lengths; floating point
    in [-1, 1] or int16. lengths: (B,) samples of each, or their fractions of the longest (floating point, as in
    SpeechBrain); None: all; the samples after them are ignored. InputError for anything else.
    """
    if isinstance(waveforms, (list, tuple)):
        rows = [as_tensor(waveform) for waveform in waveforms]
    else:
        batch = as_tensor(waveforms)
        batch = batch.unsqueeze(0) if batch.dim() == 1 else batch.squeeze(1) if batch.dim() == 3 else batch
        if batch.dim() != 2 or len(batch) > max(1, batch.shape[1]):  # such as (samples, channels)
            raise InputError(f"waveforms must be (B, samples), (B, 1, samples) or (samples,), not {tuple(batch.shape)}")
        rows = list(batch)
    if not all(row.dim() == 1 and len(row) for row in rows):
        raise InputError("a list of waveforms must have arrays (samples,) that are not empty")
    if lengths is not None:
        lengths, longest = torch.as_tensor(lengths), max(map(len, rows))
        lengths = (lengths * longest).round().long() if lengths.is_floating_point() else lengths
        if lengths.shape != (len(rows),) or lengths.min() < 1 or lengths.max() > longest:
            raise InputError(f"lengths must be {len(rows)} numbers from 1 to {longest}, or fractions of that")
        rows = [row[:length] for row, length in zip(rows, lengths.tolist())]
    return [row / 32768 if row.dtype == torch.int16 else row.float() for row in rows]


def as_tensor(array, named="a waveform"):
    """An array or a tensor as a tensor of floats or int16. InputError, beginning with what it is, for anything else."""
    if isinstance(array, np.ndarray):
        array = array.copy()  # torch refuses reversed arrays
    try:
        tensor = torch.as_tensor(array).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{named} must be an array or a tensor of numbers, not {type(array).__name__}") from error
    if not (tensor.is_floating_point() or tensor.dtype == torch.int16):
        raise InputError(f"{named} must be floating point (a waveform in [-1, 1]) or int16, not {tensor.dtype}")
    return tensor


def as_number(value, named, most=np.inf):
    """A float from -most to most. InputError, beginning with what it is, for anything else."""
    try:
        number = float(value)
        if not -most <= number <= most:
            raise ValueError
    except (TypeError, ValueError) as error:
        limits = "" if most == np.inf else " from -1 to 1"
        raise InputError(f"{named} must be a number{limits}, not {value!r:.100}") from error
    return number


def as_list(files):
    """The files as a list. InputError for a single one; of a path, the letters would be taken for files."""
    if isinstance(files, (str, os.PathLike, dict)):
        raise InputError(f"a list of files or recordings is expected, not {files!r:.100}")
    return list(files)


def span_of(audio, start, end):
    """(first sample, samples) of a part of an AudioFile between two times in seconds. InputError if it is not there."""
    start, end, seconds = as_number(start, "start"), as_number(end, "end"), audio.length / SAMPLE_RATE
    if not 0 <= start < min(end, seconds) or end > seconds + 1.5 / SAMPLE_RATE:  # times may have been rounded
        raise InputError(f"{audio.path} lasts {seconds:.2f} s: no excerpt from {start} s to {end} s")
    first = min(round(start * SAMPLE_RATE), audio.length - 1)
    return first, max(1, min(round(end * SAMPLE_RATE), audio.length) - first)
