"""Training list -> random crops -> batches; augmentation and speed perturbation of a batch on its device.

Threads only read files; everything else is done with tensors on the device of the model. Every random choice
(utterance, crop, noise, SNR) is a function of (seed, epoch, step, row), not of earlier draws: a resumed run continues
exactly, with any number of threads, and several processes together draw what a single one would.
"""

import collections
import concurrent.futures
import functools
import itertools
import math
import sys

import numpy as np
import scipy.fft
import torch
from torch import nn
from torchaudio.transforms import Resample
from tqdm import tqdm

from corpora.audio import SAMPLE_RATE, UnreadableAudio, find_noises, find_responses
from corpora.pack import Pack
from tools import RunError, in_order, progress_bar

# ---- random numbers as a function of position ------------------------------------------------------------------------

# Append only: the place is part of the seed.
STREAMS = ("order", "augment", "specaugment", "noise", "music", "speech", "responses", "speed")


def random_stream(seed, stream, *position):
    """A numpy Generator for one of STREAMS at one position (epoch, step): always the same one."""
    # spawn_key instead of a longer seed, because numpy treats the seeds [1] and [1, 0] as equal.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *position)))


def row_numbers(seed, stream, *position, first, count, columns):
    """(count, columns) float64, uniform in [0, 1): the rows from ``first`` of the random numbers of a step."""
    random = random_stream(seed, stream, *position)
    random.bit_generator.advance(first * columns)  # a double takes one step of the generator
    return random.random((count, columns))


def to_device(tensor, device):
    """Copy a tensor to a device, to CUDA without a sync: a copy from pageable memory waits for all queued GPU work."""
    if device.type != "cuda":  # only CUDA keeps the pinned memory until the copy is done
        return tensor.to(device)
    return (tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


@functools.cache  # PyTorch keeps memory for each stream
def copy_stream(device):
    return torch.cuda.Stream(device)


def copied_ahead(batches, device):
    """The (step, waveform, label) of a CropLoader, on CUDA copied to the device while the step before is computed."""
    if device.type != "cuda":
        yield from batches
        return
    stream, computing, ahead = copy_stream(device), torch.cuda.current_stream(device), None
    for batch in itertools.chain(batches, [None]):
        computing.wait_stream(stream)  # for the batch ahead
        stream.wait_stream(computing)  # for memory that is used again
        if batch:
            with torch.cuda.stream(stream):
                batch = batch[0], *(to_device(tensor, device) for tensor in batch[1:])
        if ahead:
            yield ahead
        ahead = batch


# ---- batches of crops ------------------------------------------------------------------------------------------------


def read_crop(source, file, samples, fraction):
    """A crop of a file, (samples,) int16; fraction in [0, 1): its place among the possible starts.

    Shorter utterances are repeated. Raises UnreadableAudio.
    """
    with source.open(file) as audio:
        start = int(fraction * max(1, audio.length - samples + 1))
        return audio.read(start, samples, "int16")


class CropLoader:
    """Batches of random crops of a training list, read ahead by threads. ``source``: the Folder or Pack of its files.

    An epoch is one pass over the list in a new order; its last batch is filled up from the beginning of that order.
    ``rows``: which rows of each batch this process reads; None: all. Threads are enough, because libsndfile and numpy's
    copies release Python's lock.

    ``bad``: the list indices of files that could not be read. Each is reported once and replaced by the next line of
    the list; RunError when they are more than 1 % of the list (and more than one).
    """

    def __init__(self, train_list, source, samples, batch_size, seed, threads, pin_memory=False, rows=None):
        self.train_list, self.source = train_list, source
        self.samples, self.batch_size = samples, batch_size
        self.seed, self.threads, self.pin_memory = seed, threads, pin_memory
        self.rows = np.arange(batch_size) if rows is None else rows
        self.bad = set()
        self.steps = math.ceil(len(train_list) / batch_size)
        self.entries = source.rows(train_list.files) if isinstance(source, Pack) else None  # (N,)

    def epoch(self, epoch, first_step=0):
        """Yield (step, waveform (R, samples) int16, label (R,) int64) of each step from first_step; R = len(rows)."""
        order, fraction = self._order(epoch)
        pool = concurrent.futures.ThreadPoolExecutor(self.threads, thread_name_prefix="reader")
        ahead = collections.deque()
        try:
            for step in range(first_step, self.steps):
                rows = step * self.batch_size + self.rows
                ahead.append((step, *self._start_reading(pool, order[rows], fraction[rows])))
                # Two batches are read ahead, so that one slow file does not stop the device; the last step takes them.
                while len(ahead) > 2 or (ahead and step == self.steps - 1):
                    number, waveform, label, jobs = ahead.popleft()
                    for job in jobs:
                        job.result()
                    yield number, waveform, label
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch):
        """(list index, fraction as for read_crop) of every crop of an epoch."""
        random = random_stream(self.seed, "order", epoch)
        order = np.resize(random.permutation(len(self.train_list)), self.steps * self.batch_size)
        return order, random.random(len(order))

    def lines_of(self, epoch, step):
        """The lines of the training list from which a whole batch is made."""
        batch = self._order(epoch)[0][step * self.batch_size : (step + 1) * self.batch_size]
        return [f"{self.train_list.line(index)}\n" for index in batch]

    def _start_reading(self, pool, index, fraction):
        waveform = torch.empty(len(index), self.samples, dtype=torch.int16, pin_memory=self.pin_memory)
        label = torch.empty(len(index), dtype=torch.int64, pin_memory=self.pin_memory)
        if self.entries is None:
            rows, jobs, read = np.arange(len(index)), 4 * self.threads, self._read_rows
        else:  # in the order on the disk; copies are too short for more jobs than threads
            rows, jobs, read = np.argsort(self.entries[index], kind="stable"), self.threads, self._copy_rows
        arrays, parts = (waveform.numpy(), label.numpy(), index, fraction), np.array_split(rows, min(len(rows), jobs))
        return waveform, label, [pool.submit(read, *arrays, part) for part in parts]

    def _read_rows(self, waveform, label, index, fraction, rows):
        for row in rows:
            waveform[row], found = self._read_or_replace(int(index[row]), fraction[row])
            label[row] = self.train_list.label[found]

    def _copy_rows(self, waveform, label, index, fraction, rows):
        """The same as _read_rows, faster, from a pack."""
        entry = self.entries[index[rows]]
        length = self.source.length[entry]
        start = (fraction[rows] * np.maximum(1, length - self.samples + 1)).astype(np.int64) + self.source.offset[entry]
        label[rows], failed = self.train_list.label[index[rows]], rows[length == 0].tolist()  # unreadable when packed
        for row, first, available in zip(rows.tolist(), start.tolist(), length.tolist()):
            part = waveform[row, :available]
            try:
                self.source.read_into(part, first)
            except UnreadableAudio:
                failed.append(row)
            if 0 < available < self.samples:
                waveform[row] = np.resize(part, self.samples)
        self._read_rows(waveform, label, index, fraction, failed)

    def _read_or_replace(self, index, fraction):
        """(crop, list index) of the utterance, or of the next readable one."""
        names = self.train_list
        while True:
            if index not in self.bad:
                try:
                    return read_crop(self.source, names.files[index], self.samples, fraction), index
                except UnreadableAudio as error:
                    if index not in self.bad:  # no other thread has reported it
                        self.bad.add(index)
                        line = f"{names.path} line {names.line_numbers[index]}"
                        tqdm.write(f"{line}: {error}; replaced by the next line", file=sys.stderr)
            # Checked at every replacement and not only at a new bad file, so that all threads stop.
            if len(self.bad) > max(1, 0.01 * len(names)) or len(self.bad) == len(names):
                raise RunError(
                    f"{len(self.bad)} of {len(names)} training files cannot be read, for example that of {names.path} "
                    f"line {names.line_numbers[index]}; at most 1 % are replaced: is the disk failing?"
                )
            index = (index + 1) % len(names)


# ---- speed perturbation ----------------------------------------------------------------------------------------------


SPEEDS = 3  # each speaker is three classes: at its own speed, slower, faster


class SpeedPerturbation(nn.Module):
    """Speed 1, 0.9 or 1.1 for each utterance, with equal probability (Ko et al., Interspeech 2015).

    Like sox's "speed", this also changes the pitch and thus the voice: at another speed, speaker c of n_class becomes
    speaker c + n_class (0.9) or c + 2 * n_class (1.1), as in Yamamoto et al. (Interspeech 2019) and wespeaker. The
    classifier needs SPEEDS * n_class classes, of which the first n_class are the true speakers.

    samples: length of the output crops; ``samples_needed``: of the input crops, enough for speed 1.1.
    """

    def __init__(self, samples, n_class, seed):
        super().__init__()
        self.samples, self.n_class, self.seed = samples, n_class, seed
        # At 0.9, nine samples become ten. The filter is as sharp as that of corpora/audio.py: torchaudio's default of 6
        # zero crossings attenuates the highest frequencies, from which a network could recognise the speed.
        self.resamplers = nn.ModuleList(Resample(rate, 10, lowpass_filter_width=32) for rate in (9, 11))
        # Input samples up to the last one that the filter uses.
        self.needed = [math.ceil(samples * each.orig_freq / each.new_freq) + each.width for each in self.resamplers]
        self.samples_needed = -(-max(self.needed) // 80) * 80  # a multiple of 5 ms, like every crop

    def forward(self, waveform, label, epoch, step, first=0):
        """(B, samples_needed) int16 or float, (B,) int64 -> (B, samples) float32 of the same scale, (B,) int64.

        The output is in units of int16, which Augmentation expects. Utterances at speed 1 are cut, not filtered. first:
        index of the first row in the step's batch.
        """
        numbers = row_numbers(self.seed, "speed", epoch, step, first=first, count=len(waveform), columns=1)[:, 0]
        choice = (numbers * SPEEDS).astype(np.int64)
        played = waveform[:, : self.samples].to(torch.float32, copy=True)
        # cuDNN's default TF32 rounds to 10 bits; its benchmark would run again for each new number of rows.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            for number, (resample, needed) in enumerate(zip(self.resamplers, self.needed), 1):
                rows = np.flatnonzero(choice == number)
                if len(rows):
                    rows = to_device(torch.from_numpy(rows), waveform.device)
                    played[rows] = resample(waveform[rows, :needed].float())[:, : self.samples]
        return played, label + self.n_class * to_device(torch.from_numpy(choice), label.device)


# ---- augmentation ----------------------------------------------------------------------------------------------------


class Bank:
    """Loads ``capacity`` pieces of audio of equal length for each epoch, in turn from all pieces.

    stream: which of STREAMS shuffles the pieces; read: function piece -> (length,) array, may raise UnreadableAudio.
    """

    def __init__(self, stream, pieces, read, capacity, seed, threads):
        self.stream = stream
        self.pieces = [pieces[i] for i in random_stream(seed, stream).permutation(len(pieces))]
        self.read = read
        self.capacity = min(len(pieces), max(8, capacity))  # 8: the most speech files in a babble
        self.moves_on = self.capacity < len(pieces)  # otherwise every epoch has all pieces
        self.threads = threads

    def chosen(self, epoch):
        """The pieces of an epoch (1, 2, ...)."""
        first = (epoch - 1) * self.capacity
        return [self.pieces[i % len(self.pieces)] for i in range(first, first + self.capacity)]

    def load(self, epoch, into):
        """Fill rows of a tensor with the pieces of an epoch -> their number; unreadable ones are reported, left out."""
        pieces = in_order(self._read_or_none, self.chosen(epoch), self.threads)
        pieces = progress_bar(iterable=pieces, total=self.capacity, desc=f"loading {self.stream}", delay=2)
        count = 0
        for piece in pieces:
            if piece is not None:
                into.numpy()[count] = piece
                count += 1
        if not count:
            raise RunError(f"none of the {self.capacity} pieces of {self.stream} for epoch {epoch} can be read")
        return count

    def _read_or_none(self, piece):
        try:
            return self.read(piece)
        except UnreadableAudio as error:
            tqdm.write(f"{error}; left out of the {self.stream}", file=sys.stderr)


class Augmentation(nn.Module):
    """Augments a batch on its device: speed perturbation, noise or reverberation, random numbers for SpecAugment.

    Each utterance becomes, with equal probability, one of: clean; reverberation; babble (3 to 8 speech files, each at
    13-20 dB SNR); music (5-15 dB); noise (0-15 dB); television (babble and music). Kinds for which no path is given are
    left out. Following Snyder et al., "X-vectors", ICASSP 2018.

    musan_path: folder with noise/, music/, speech/, as distributed or split into pieces; rir_path: RIRS_NOISES or any
    folder of room responses; "" for none. samples: length of the output crops, a multiple of GRID. bank_mb: memory for
    noises and responses together, in MB. speed: a SpeedPerturbation or None. Raises InputError for folders without the
    files needed.
    """

    BABBLE_FILES = 3, 8
    SNR = {"speech": (13.0, 20.0), "music": (5.0, 15.0), "noise": (0.0, 15.0)}  # dB
    SLOTS = ("speech",) * BABBLE_FILES[1] + ("music", "noise")  # the most noises that one row may get
    GRID = 80  # noises start at multiples of 5 ms, the largest step that divides every crop and every frame shift
    ONSET = 160  # samples of a response kept before its direct sound: 10 ms
    LONGEST_RESPONSE = 2 * SAMPLE_RATE  # rooms with a longer RT60 are rare

    def __init__(self, musan_path, rir_path, samples, bank_mb=512, seed=0, threads=4, speed=None):
        super().__init__()
        self.samples, self.seed, self.speed = samples, seed, speed
        self.samples_needed = speed.samples_needed if speed else samples
        self.noise_length = 2 * samples  # a piece is twice as long as a crop, so that its crops differ
        self.response_length = min(samples, self.LONGEST_RESPONSE) + self.ONSET
        self.banks, self.kinds = {}, ["clean"]
        quarter = bank_mb * 1e6 / 4  # for the responses, and for each category of noise
        if rir_path:
            self.rooms, pieces = find_responses(rir_path)
            longest = scipy.fft.next_fast_len(samples + self.response_length - 1, real=True)
            capacity = int(quarter / (8 * (longest // 2 + 1)))  # complex64
            self.banks["responses"] = Bank("responses", pieces, self._read_response, capacity, seed, threads)
            self.kinds.append("reverberation")
        if musan_path:
            self.musan, noises = find_noises(musan_path)
            for category, files in noises.items():
                pieces = in_order(self._pieces_of, files, threads)
                pieces = progress_bar(iterable=pieces, total=len(files), desc=f"measuring {category}", delay=2)
                pieces = list(itertools.chain.from_iterable(pieces))
                capacity = int(quarter / (2 * self.noise_length))  # int16
                self.banks[category] = Bank(category, pieces, self._read_noise, capacity, seed, threads)
            self.kinds += ["babble", "music", "noise", "television"]
        # Loaded pieces: spectra of the responses, one after the other; noises (K, noise_length) int16 of all categories
        # in turn; energy (K * noise_length / GRID + 1) int64: the sum of the squares of all samples before each point
        # of the grid.
        for name in ("spectra", "noises", "energy"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.transform_size = self.place = np.empty(0, np.int64)  # (K,): of each response; the begin of its spectrum
        self.categories = {}  # {category: (first row, number of rows) in noises}

    def redraw(self, epoch):
        """Load the noises and responses of an epoch (1, 2, ...). Banks that hold all their pieces are loaded once."""
        responses = self.banks.get("responses")
        noises = {name: bank for name, bank in self.banks.items() if name != "responses"}
        if responses and (responses.moves_on or not len(self.spectra)):
            self.spectra = self.spectra.new_empty(0)  # first, so that no two banks take memory
            loaded = torch.empty(responses.capacity, self.response_length)
            loaded = loaded[: responses.load(epoch, loaded)]
            self.spectra = self._transformed(loaded).to(self.spectra.device)
        if noises and (any(bank.moves_on for bank in noises.values()) or not len(self.noises)):
            self.noises, end = self.noises.new_empty(0), 0
            capacity = sum(bank.capacity for bank in noises.values())
            loaded = torch.empty(capacity, self.noise_length, dtype=torch.int16)
            for category, bank in noises.items():
                count = bank.load(epoch, loaded[end:])
                self.categories[category] = end, count
                end += count
            loaded = loaded[:end]
            energy = torch.cat([piece.view(-1, self.GRID).int().square().sum(dim=1) for piece in loaded])
            self.energy = nn.functional.pad(energy.cumsum(dim=0), (1, 0)).to(self.energy.device)
            self.noises = loaded.to(self.noises.device)

    def forward(self, waveform, label, epoch, step, first=0):
        """int16 crops (B, samples_needed), label (B,) -> crops (B, samples) float32, label (B,), masks (B, 4).

        The label is changed by speed perturbation; masks: random numbers in [0, 1) for SpecAugment (model.py). first:
        index of the first row in the step's batch, if these rows are a part of it.
        """
        if self.speed:
            waveform, label = self.speed(waveform, label, epoch, step, first)
        numbers = row_numbers(self.seed, "specaugment", epoch, step, first=first, count=len(waveform), columns=4)
        masks = to_device(torch.from_numpy(numbers).float(), self.noises.device)
        return self.augment(waveform, epoch, step, first), label, masks

    def augment(self, waveform, epoch, step, first=0):
        """Noise and reverberation alone: (B, samples) int16 -> (B, samples) float32, about [-1, 1], finite."""
        reverberated, response, noisy, start, level = self._draw(len(waveform), epoch, step, first)
        row, start, level = self._to_device(noisy, start, level)
        energy = (self.energy[start + self.samples // self.GRID] - self.energy[start]).float()
        # The floor (-100 dB) prevents a division by zero for silent noises.
        gain = level / energy.clamp(min=1e-10 * self.samples * 32768**2).sqrt()
        augmented = torch.empty(waveform.shape, device=waveform.device)
        at_once = 16 if self._on_cpu(waveform) else len(waveform)  # these fit a CPU's cache, which is twice as fast
        for begin in range(0, len(waveform), at_once):
            crops = augmented[begin : begin + at_once]
            crops.copy_(waveform[begin : begin + at_once]).mul_(1 / 32768)
            part = slice(*np.searchsorted(noisy, [begin, begin + at_once]))
            if part.start < part.stop:
                self._add_noises(crops, row[part] - begin, start[part], gain[part])
        self._reverberate(augmented, waveform, reverberated, response)
        return augmented

    @staticmethod
    def _on_cpu(waveform):
        return waveform.device.type == "cpu"

    def _draw(self, count, epoch, step, first):
        """The random choices for each row, in numpy: (reverberated, response, noisy, start, level).

        reverberated: rows, with the response of each. noisy: the row to which each noise is added, ascending, with the
        noise's start in the bank, in steps of GRID, and its amplitude relative to the speech.
        """
        columns = 3 + 3 * len(self.SLOTS)
        numbers = row_numbers(self.seed, "augment", epoch, step, first=first, count=count, columns=columns)
        kind = np.array(self.kinds)[(numbers[:, 0] * len(self.kinds)).astype(int)]
        reverberated = np.flatnonzero(kind == "reverberation")
        response = (numbers[reverberated, 1] * len(self.place)).astype(int)

        low, high = self.BABBLE_FILES
        files = low + (numbers[:, 2] * (high + 1 - low)).astype(int)
        used = np.empty((count, len(self.SLOTS)), dtype=bool)
        used[:, :-2] = np.isin(kind, ["babble", "television"])[:, None] & (np.arange(high) < files[:, None])
        used[:, -2] = np.isin(kind, ["music", "television"])
        used[:, -1] = kind == "noise"
        noisy, slot = np.nonzero(used)

        which, where, loudness = numbers[:, 3:].reshape(count, len(self.SLOTS), 3)[noisy, slot].T
        offset, pieces = np.array([self.categories.get(category, (0, 0)) for category in self.SLOTS])[slot].T
        piece = offset + (which * pieces).astype(int)
        starts = (self.noise_length - self.samples) // self.GRID + 1
        start = piece * (self.noise_length // self.GRID) + (where * starts).astype(int)
        low, high = np.array([self.SNR[category] for category in self.SLOTS])[slot].T
        snr = low + loudness * (high - low)
        return reverberated, response, noisy, start, (10 ** (-snr / 20)).astype(np.float32)

    def _add_noises(self, crops, row, start, gain):
        """Add noise to (B, samples) crops in place. row, start (N,): as in ``_draw``; gain (N,): its level / norm."""
        gain = gain * torch.linalg.vector_norm(crops, dim=1)[row]
        if self._on_cpu(crops):
            crops, noises = crops.unbind(), self.noises.numpy().reshape(-1)
            copied = torch.empty(self.samples, dtype=torch.int16)
            copy, noise = copied.numpy(), torch.empty(self.samples)
            for to, begin, factor in zip(row.tolist(), (start * self.GRID).tolist(), gain.tolist()):
                copy[:] = noises[begin : begin + self.samples]  # memcpy reads from memory faster than the conversion
                crops[to].add_(noise.copy_(copied), alpha=factor)
        else:
            noise = self.noises.view(-1).unfold(0, self.samples, self.GRID)  # a view of all crops of the bank
            crops.index_add_(0, row, noise[start] * gain.unsqueeze(1))

    def _reverberate(self, augmented, waveform, row, response):
        """Replace rows of the (B, samples) output by those of the waveform, convolved; arguments as in ``augment``."""
        sizes = self.transform_size[response]
        for size in np.unique(sizes).tolist():
            rows, place = self._to_device(row[sizes == size], self.place[response[sizes == size]])
            speech = torch.zeros(len(rows), size, device=waveform.device)
            speech[:, : self.samples] = waveform[rows]
            spectrum = torch.fft.rfft(speech)
            if self._on_cpu(waveform):
                for each, begin in zip(spectrum, place.tolist()):
                    each.mul_(self.spectra[begin : begin + len(each)])
            else:
                spectrum.mul_(self.spectra.unfold(0, size // 2 + 1, 1)[place])
            augmented[rows] = torch.fft.irfft(spectrum, size)[:, self.ONSET : self.ONSET + self.samples]  # not delayed

    def _transformed(self, responses):
        """(K, response_length) -> their spectra, divided by 32768, one after the other.

        On a CPU of two sizes: responses below about a quarter of a crop, as half of them are, take less time.
        """
        length = np.array([int(response.nonzero()[-1]) + 1 for response in responses])
        size, short = self._transform_size(length.max()), self._transform_size(self.samples // 4)
        is_short = (length <= short - self.samples + self.ONSET) & (short < size) & self._on_cpu(self.spectra)
        self.transform_size = np.where(is_short, short, size)
        end = np.cumsum(self.transform_size // 2 + 1)
        self.place = end - self.transform_size // 2 - 1
        spectra = torch.empty(end[-1], dtype=torch.complex64)
        for response, size, *place in zip(responses, self.transform_size.tolist(), self.place.tolist(), end.tolist()):
            torch.fft.rfft(response, size, out=spectra[slice(*place)])  # one by one: all at once takes twice the memory
        return spectra.div_(32768)

    def _transform_size(self, response_length):
        """Of a convolution whose first ONSET samples are not needed; multiples of 1024 take least time per sample."""
        needed = self.samples + int(response_length) - self.ONSET
        return 1024 * scipy.fft.next_fast_len(math.ceil(needed / 1024), real=True)

    def _to_device(self, *arrays):
        # Contiguous, because PyTorch would copy others, waiting for it.
        return [to_device(torch.from_numpy(np.ascontiguousarray(each)), self.noises.device) for each in arrays]

    def _read_response(self, file):
        """(response_length,) float32 of unit energy, with its direct sound (the largest sample) at ONSET."""
        with self.rooms.open(file) as audio:
            response = audio.read()
        peak = int(np.abs(response).argmax())
        response = np.pad(response, (self.ONSET, 0))[peak : peak + self.response_length]
        energy = float(np.sqrt(np.sum(np.square(response, dtype=np.float64))))
        if energy < 1e-6:
            raise UnreadableAudio(f"{self.rooms.name(file)} is silent")
        return np.pad(response / np.float32(energy), (0, self.response_length - len(response)))

    def _read_noise(self, piece):
        file, start = piece
        with self.musan.open(file) as audio:
            return audio.read(start, self.noise_length, "int16")

    def _pieces_of(self, file):
        """[(file, start)] of pieces of noise_length, the last overlapping the one before."""
        try:
            with self.musan.open(file) as audio:
                last = audio.length - self.noise_length
        except UnreadableAudio:  # reported when it is loaded
            last = 0
        return [(file, start) for start in range(0, last, self.noise_length)] + [(file, max(0, last))]
