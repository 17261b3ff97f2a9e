"""Files read ahead of the network, in groups of several batches; and which of them are hardly fit for recognition."""

import concurrent.futures

import numpy as np
import torch

from corpora.audio import SAMPLE_RATE, UnreadableAudio
from tools import in_order

SILENT = "is silent: its embedding is meaningless"
LONG_SECONDS = 300  # longer utterances are embedded in windows: the activations of the whole would take gigabytes


def is_long(samples):
    return samples > LONG_SECONDS * SAMPLE_RATE


def read_groups(files, source, threads, shortest, least, most):
    """Yield lists of (file, waveform (samples,) tensor or None if long or UnreadableAudio, remark) in order.

    source: the Folder, Pack or Recordings of the files; shortest: the network's minimum, samples. A group ends when its
    waveforms, each counted as at least ``least`` samples, reach ``most`` samples together.
    """

    def read(file):
        try:
            with source.open(file) as audio:
                if is_long(audio.length):
                    return file, None, ""
                waveform = audio.read()
                return file, torch.from_numpy(waveform), remark_on(waveform, source.name(file), audio.rate, shortest)
        except UnreadableAudio as error:
            return file, error, ""

    group, samples = [], 0
    for file, found, remark in in_order(read, files, threads):
        group.append((file, found, remark))
        if not isinstance(found, UnreadableAudio):
            samples += LONG_SECONDS * SAMPLE_RATE if found is None else max(least, len(found))
        if samples >= most:
            yield group
            group, samples = [], 0
    if group:
        yield group


def one_ahead(items):
    """Yield from an iterator whose next item is prepared in a thread meanwhile. None ends it."""
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def remark_on(waveform, name, rate, shortest):
    """Why the embedding of a waveform (samples,) may be poor, in words, or "".

    rate: of its file, Hz; shortest: the network's minimum, samples.
    """
    samples, low, high = len(waveform), float(waveform.min()), float(waveform.max())
    if high - low < 1e-3:  # -66 dB of full scale: 16 steps of 16-bit audio to either side
        return f"{name} {SILENT}"
    if samples < 0.5 * SAMPLE_RATE:
        repeated = ", repeated to the network's minimum" if samples < shortest else ""
        return f"{name} is only {samples / SAMPLE_RATE:.2g} s long{repeated}: its embedding is unreliable"
    if (peak := max(high, -low)) > 100:  # not a codec's overshoot but integers stored as floats
        return f"{name} has samples up to {peak:.3g}, full scale is 1: its embedding is unreliable"
    if (clipped := float((np.abs(waveform) > 0.999).mean())) > 0.01:
        return f"{name} is clipped ({100 * clipped:.1f} % of its samples): its embedding is unreliable"
    if rate < SAMPLE_RATE:
        return f"{name} is sampled at {rate} Hz: without the higher frequencies, scores need a threshold of their own"
    return ""
