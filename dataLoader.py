"""From lists to batches of crops.

Workers only read; everything else is tensor work on the device of the model (augmentation.py, model.py). Whatever is
random (which utterance, which crop, which noise, how loud) is a function of (seed, epoch, step), never of what was
drawn before, so that a resumed run goes on exactly, with any number of reading threads.
"""

import collections
import concurrent.futures
import math
import sys

import numpy as np
import torch
from tqdm import tqdm

from corpora.audio import UnreadableAudio
from corpora.pack import Pack
from tools import RunError

# ---- randomness as a function of position ----------------------------------------------------------------------------

STREAMS = ("order", "augment", "specaugment", "noise", "music", "speech", "responses", "speed")


def random_stream(seed, stream, *position):
    """A numpy Generator for one purpose (of STREAMS) at one position (epoch, step): the same whenever it is asked."""
    # spawn_key, and not a longer seed: numpy takes [1] and [1, 0] for the same seed.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *position)))


def row_numbers(seed, stream, *position, first=0, count, columns):
    """(count, columns) float64, uniform in [0, 1): rows ``first`` and following of the table that fills the stream.

    A row's numbers depend on its place in the table alone, so that whoever handles some rows draws what one who handles
    all of them would.
    """
    random = random_stream(seed, stream, *position)
    random.bit_generator.advance(first * columns)  # a double takes one step of the generator
    return random.random((count, columns))


def to_device(tensor, device):
    """Copy without waiting, where that is safe: CUDA keeps a pinned source until the copy is done, others may not."""
    if device.type != "cuda":
        return tensor.to(device)
    # From pageable memory the copy would wait until the GPU has done all that was asked of it before.
    return (tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


# ---- training batches ------------------------------------------------------------------------------------------------


def read_crop(source, file, samples, place):
    """``samples`` samples as int16, starting at the fraction ``place`` in [0, 1) of the possible starts.

    Shorter utterances are wrapped around. Raises UnreadableAudio.
    """
    with source.open(file) as audio:
        start = int(place * max(1, audio.length - samples + 1))
        return audio.read(start, samples, "int16")


class CropLoader:
    """Batches of random crops of a training list, read ahead by threads. ``source``: the Folder or Pack of its files.

    One pass over the list, in a new order, is an epoch; its last batch is filled up from the front of the same order,
    so that every batch has ``batch_size`` crops; ``rows`` are those of each batch that are read here, all by default.
    libsndfile works outside Python's lock, so threads read side by side and hand over nothing; so does numpy as it
    copies from a pack.

    ``bad`` holds the list positions of files that could not be read. Each is reported once and replaced by the next
    line of the list; RunError when there are more than 1 % of them (and more than one).
    """

    def __init__(self, listing, source, samples, batch_size, seed, threads, pin_memory=False, rows=None):
        self.listing = listing
        self.source = source
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.threads = threads
        self.pin_memory = pin_memory
        self.rows = np.arange(batch_size) if rows is None else rows
        self.bad = set()
        self.steps = math.ceil(len(listing) / batch_size)
        self.packed = source.rows(listing.files) if isinstance(source, Pack) else None

    def epoch(self, epoch, first_step=0):
        """Yield (step, waveform (R, samples) int16, label (R,) int64) for steps from first_step, R = len(rows)."""
        order, place = self._order(epoch)
        pool = concurrent.futures.ThreadPoolExecutor(self.threads, thread_name_prefix="reader")
        ahead = collections.deque()
        try:
            for step in range(first_step, self.steps):
                rows = step * self.batch_size + self.rows
                ahead.append((step, *self._start_reading(pool, order[rows], place[rows])))
                # Two whole batches in reserve, so that one slow file does not stop the device.
                if len(ahead) > 2:
                    yield self._finished(*ahead.popleft())
            while ahead:
                yield self._finished(*ahead.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch):
        """(list positions of all crops of an epoch, where in the utterances they are)."""
        random = random_stream(self.seed, "order", epoch)
        order = np.resize(random.permutation(len(self.listing)), self.steps * self.batch_size)
        return order, random.random(len(order))

    def lines_of(self, epoch, step):
        """The lines of the training list that a whole batch is made of."""
        positions = self._order(epoch)[0][step * self.batch_size : (step + 1) * self.batch_size]
        listing = self.listing
        return [f"{listing.speakers[listing.label[each]]} {listing.files[each]}\n" for each in positions]

    def _start_reading(self, pool, index, place):
        waveform = torch.empty(len(index), self.samples, dtype=torch.int16, pin_memory=self.pin_memory)
        label = torch.empty(len(index), dtype=torch.int64, pin_memory=self.pin_memory)
        arrays = waveform.numpy(), label.numpy()
        rows, jobs = np.arange(len(index)), 4 * self.threads
        if self.packed is not None:  # in the order of the disk; copies are too short for more jobs than threads
            rows, jobs = np.argsort(self.packed[index], kind="stable"), self.threads
        jobs = [
            pool.submit(self._read_rows, *arrays, index, place, part)
            for part in np.array_split(rows, min(len(index), jobs))
        ]
        return waveform, label, jobs

    @staticmethod
    def _finished(step, waveform, label, jobs):
        for job in jobs:
            job.result()
        return step, waveform, label

    def _read_rows(self, waveform, label, index, place, rows):
        if self.packed is not None:
            rows = self._copy_rows(waveform, label, index, place, rows)
        for row in rows:
            waveform[row], position = self._read_or_replace(int(index[row]), place[row])
            label[row] = self.listing.label[position]

    def _copy_rows(self, waveform, label, index, place, rows):
        """read_crop out of a pack, for many rows at once. Returns the rows of files that could not be packed."""
        entry = self.packed[index[rows]]
        length = self.source.length[entry]
        start = (place[rows] * np.maximum(1, length - self.samples + 1)).astype(np.int64) + self.source.offset[entry]
        count = np.minimum(length, self.samples)
        label[rows] = self.listing.label[index[rows]]
        packed, samples = self.source.samples, self.samples
        for row, first, available in zip(rows.tolist(), start.tolist(), count.tolist()):
            if available == samples:
                waveform[row] = packed[first : first + samples]
            elif available:
                waveform[row] = np.resize(packed[first : first + available], samples)
        return rows[length == 0]

    def _read_or_replace(self, position, place):
        """(crop, list position): of the utterance itself or, if it cannot be read, of the next one that can."""
        while True:
            if position not in self.bad:
                try:
                    return read_crop(self.source, self.listing.files[position], self.samples, place), position
                except UnreadableAudio as error:
                    self._report(position, error)
            # Asked at every replacement, not only at a new bad file: it also ends the other threads' search.
            if len(self.bad) > max(1, 0.01 * len(self.listing)) or len(self.bad) == len(self.listing):
                line = f"{self.listing.path} line {self.listing.line_numbers[position]}"
                raise RunError(
                    f"{len(self.bad)} of {len(self.listing)} training files cannot be read, that of {line} among them; "
                    "more than 1 % are not replaced: is the disk failing?"
                )
            position = (position + 1) % len(self.listing)

    def _report(self, position, error):
        if position not in self.bad:  # else another thread was quicker
            self.bad.add(position)
            line = self.listing.line_numbers[position]
            tqdm.write(f"{self.listing.path} line {line}: {error}; replaced by the next line", file=sys.stderr)
