"""From lists to crops to augmented batches.

Workers only read; everything else is tensor work on the device of the model. Whatever is random here (which utterance,
which crop, which noise, how loud) is a function of (seed, epoch, step), never of what was drawn before, so that a
resumed run goes on exactly, with any number of reading threads.
"""

import collections
import concurrent.futures
import math
import pathlib
import sys

import numpy as np
import scipy.fft
import torch
from torch import nn
from tqdm import tqdm

from audio import SAMPLE_RATE, UnreadableAudio
from pack import Pack, open_source
from tools import InputError, RunError, progress_bar

# ---- randomness as a function of position ----------------------------------------------------------------------------

STREAMS = ("order", "augment", "specaugment", "noise", "music", "speech", "responses")


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


def torch_stream(seed, stream, *position):
    """The same as a CPU torch.Generator."""
    return torch.Generator().manual_seed(int(random_stream(seed, stream, *position).integers(2**62)))


def to_device(tensor, device):
    """Copy without waiting, where that is safe: CUDA keeps a pinned source until the copy is done, others may not."""
    if device.type != "cuda":
        return tensor.to(device)
    # From pageable memory the copy would wait until the GPU has done all that was asked of it before.
    return (tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


# ---- lists -----------------------------------------------------------------------------------------------------------


def read_lines(path, flag):
    """The lines of a list that are not blank, as (line number, fields). InputError if absent or empty."""
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(f"{flag} {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: Windows editors put an invisible mark at the beginning
    except UnicodeDecodeError as error:
        raise InputError(f"{flag} {path} is not a text file ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be read as a list: {error.strerror}") from error
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{flag} {path} is empty")
    return lines


class TrainingList:
    """Lines ``<speaker> <path>``: ``files`` (N paths), ``label`` (N,) int64, ``speakers`` (names, sorted)."""

    def __init__(self, path, flag="--train_list"):
        self.path = pathlib.Path(path)
        lines = read_lines(path, flag)
        for number, fields in lines:
            if len(fields) != 2:
                hint = "; this looks like a trial list" if len(fields) == 3 and fields[0] in ("0", "1") else ""
                raise InputError(f"{path} line {number}: expected '<speaker> <path>', got '{' '.join(fields)}'{hint}")
        self.line_numbers = [number for number, _ in lines]
        self.files = [fields[1] for _, fields in lines]
        self.speakers, self.label = np.unique([fields[0] for _, fields in lines], return_inverse=True)
        self.speakers = self.speakers.tolist()

    def __len__(self):
        return len(self.files)


class TrialList:
    """Lines ``<1|0> <enrolment path> <test path>``: ``label`` (N,) int64, ``enrol`` and ``test`` (N paths each)."""

    def __init__(self, path, flag="--eval_list"):
        self.path = pathlib.Path(path)
        lines = read_lines(path, flag)
        for number, fields in lines:
            if len(fields) != 3 or fields[0] not in ("0", "1"):
                hint = "; this looks like a training list" if len(fields) == 2 else ""
                found = " ".join(fields)
                raise InputError(f"{path} line {number}: expected '<1|0> <enrol> <test path>', got '{found}'{hint}")
        self.line_numbers = [number for number, _ in lines]
        self.label = np.array([int(fields[0]) for _, fields in lines])
        self.enrol = [fields[1] for _, fields in lines]
        self.test = [fields[2] for _, fields in lines]
        for kind, value in (("same-speaker (1)", 1), ("different-speaker (0)", 0)):
            if not (self.label == value).any():
                raise InputError(f"{path} has no {kind} trials: an error rate needs both kinds")

    def __len__(self):
        return len(self.label)


def check_files(listing, source, flag):
    """InputError naming the first line of a TrainingList or TrialList whose file the source (Folder, Pack) lacks."""
    lines = {}  # each file once, with the line that names it first
    columns = (listing.files,) if isinstance(listing, TrainingList) else (listing.enrol, listing.test)
    for column in columns:
        for number, file in zip(listing.line_numbers, column):
            lines.setdefault(file, number)
    missing = source.missing(list(lines))
    if missing:
        number, file = min((lines[file], file) for file in missing)
        raise InputError(
            f"{listing.path} line {number}: {source.name(file)} does not exist ({len(missing)} of {len(lines)} files "
            f"are missing); is {flag} right?"
        )


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
    libsndfile works outside Python's lock, so threads read side by side
    and hand over nothing; so does numpy as it copies from a pack.

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
        random = random_stream(self.seed, "order", epoch)
        order = np.resize(random.permutation(len(self.listing)), self.steps * self.batch_size)
        place = random.random(len(order))
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


# ---- augmentation ----------------------------------------------------------------------------------------------------


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


class Bank:
    """A bounded stock of equally long pieces of audio in memory, redrawn every epoch.

    read: function piece -> (length,) numpy array, may raise UnreadableAudio. The pieces are shuffled once; epoch after
    epoch the stock moves on to the next ``capacity`` of them, so that all take part however small it is.
    """

    def __init__(self, name, pieces, read, capacity, seed, threads):
        self.name = name
        self.pieces = [pieces[i] for i in random_stream(seed, name).permutation(len(pieces))]
        self.read = read
        self.capacity = max(1, min(capacity, len(pieces)))
        self.threads = threads
        self.bad = set()

    def chosen(self, epoch):
        """The pieces of an epoch (1, 2, ...)."""
        first = (epoch - 1) * self.capacity
        return [self.pieces[i % len(self.pieces)] for i in range(first, first + self.capacity)]

    def load(self, epoch):
        """(K, length) tensor of that epoch's pieces, at most ``capacity``; unreadable ones are reported, left out."""
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            pieces = pool.map(self._read_or_none, self.chosen(epoch))
            pieces = progress_bar(iterable=pieces, total=self.capacity, desc=f"loading {self.name}", delay=2)
            loaded = [piece for piece in pieces if piece is not None]
        if not loaded:
            raise RunError(f"none of the {self.capacity} pieces of {self.name} for epoch {epoch} can be read")
        return torch.from_numpy(np.stack(loaded))

    def _read_or_none(self, piece):
        try:
            return self.read(piece)
        except UnreadableAudio as error:
            if piece not in self.bad:
                self.bad.add(piece)
                tqdm.write(f"{error}; left out of the {self.name}", file=sys.stderr)
            return None


class Augmentation(nn.Module):
    """The recipe's augmentation of a whole batch, on the device where the batch is.

    Each utterance becomes, with equal probability, one of: itself; reverberated; with babble (3 to 8 speech files, each
    13-20 dB below it); with music (5-15 dB below); with noise (0-15 dB below); or television, babble and music at once.
    The kinds for which no path is given are left out. Following Snyder et al., "X-vectors", ICASSP 2018.

    musan_path: folder with noise/, music/, speech/, as distributed or split into pieces; rir_path: RIRS_NOISES or
    any folder of room responses; each may be a pack of it, or "" for none. samples: the length of the crops. bank_mb:
    memory for noises and responses together, in MB. Raises InputError for folders without the files needed.
    """

    BABBLE_FILES = 3, 8
    SNR = {"speech": (13.0, 20.0), "music": (5.0, 15.0), "noise": (0.0, 15.0)}  # dB below the utterance
    MIXES = {"babble": ("speech",), "music": ("music",), "noise": ("noise",), "television": ("speech", "music")}
    SLOTS = ("speech",) * BABBLE_FILES[1] + ("music", "noise")  # the noises that a row may get, at most
    GRID = 80  # noises begin at multiples of 5 ms, the largest step that divides every crop and every frame
    ONSET = 160  # samples of a response kept before its direct sound: 10 ms
    LONGEST_RESPONSE = 2 * SAMPLE_RATE  # what comes later than 2 s has decayed by 60 dB in all but cathedrals

    def __init__(self, musan_path, rir_path, samples, bank_mb=512, seed=0, threads=4):
        super().__init__()
        if samples % self.GRID:
            raise ValueError(f"samples must be a multiple of {self.GRID}, as num_frames*160+240 is, not {samples}")
        self.samples = samples
        self.seed = seed
        self.noise_length = 2 * samples  # pieces twice a crop long, so that a crop finds a new place each time
        self.response_length = min(samples, self.LONGEST_RESPONSE) + self.ONSET
        self.banks = {}
        self.kinds = ["clean"]
        if rir_path:
            self.rooms = open_source(rir_path, "--rir_path", channel=0)
            files = find_responses(self.rooms, rir_path)
            spectrum = 8 * (self._transform_size(self.response_length) // 2 + 1)  # complex64
            capacity = int(bank_mb * 1e6 / 4 / spectrum)  # a quarter of the bank
            self.banks["responses"] = Bank("responses", files, self._read_response, capacity, seed, threads)
            self.kinds.append("reverberation")
        if musan_path:
            self.musan = open_source(musan_path, "--musan_path")
            for category, files in find_noises(self.musan, musan_path).items():
                pieces = self._noise_pieces(category, files, threads)
                capacity = int(bank_mb * 1e6 / 4 / (2 * self.noise_length))  # a quarter each, int16
                self.banks[category] = Bank(category, pieces, self._read_noise, capacity, seed, threads)
            self.kinds += list(self.MIXES)
        # What the banks hold, ready for use: spectra (K, transform_size // 2 + 1) of the responses; noises (K,
        # noise_length) int16 of all categories, one below the other; energy (K * noise_length / GRID + 1) int64, the
        # exact sum of the squares of all that comes before each place of the grid.
        for name in ("spectra", "noises", "energy"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.transform_size = None
        self.shelves = {}  # category: its (first, number of) rows in noises

    def redraw(self, epoch):
        """Fill the banks for an epoch (1, 2, ...). Those that hold everything they ever will are filled once."""
        device = self.noises.device
        responses = {name: bank for name, bank in self.banks.items() if name == "responses"}
        noises = {name: bank for name, bank in self.banks.items() if name != "responses"}
        if self._need_filling(responses, self.spectra):
            self.spectra = self._transformed(responses["responses"].load(epoch)).to(device)
        if self._need_filling(noises, self.noises):
            loaded = {name: bank.load(epoch) for name, bank in noises.items()}
            counts = [len(pieces) for pieces in loaded.values()]
            self.shelves = dict(zip(loaded, zip(np.cumsum([0, *counts]).tolist(), counts)))
            loaded = torch.cat(list(loaded.values()))
            energy = torch.cat([piece.view(-1, self.GRID).int().square().sum(dim=1) for piece in loaded])
            self.energy = nn.functional.pad(energy.cumsum(dim=0), (1, 0)).to(device)
            self.noises = loaded.to(device)

    @staticmethod
    def _need_filling(banks, held):
        return banks and not (len(held) and all(bank.capacity == len(bank.pieces) for bank in banks.values()))

    def _transform_size(self, response_length):
        return scipy.fft.next_fast_len(self.samples + response_length - 1, real=True)

    def _transformed(self, responses):
        """(K, response_length) -> their spectra, at the size that the longest of these asks for."""
        longest = int(responses.any(dim=0).nonzero().max()) + 1
        self.transform_size = self._transform_size(longest)
        spectra = torch.empty(len(responses), self.transform_size // 2 + 1, dtype=torch.complex64)
        for each, spectrum in zip(responses, spectra):  # one by one: twice the memory is not to be had
            torch.fft.rfft(each[:longest], self.transform_size, out=spectrum)
        return spectra

    def forward(self, waveform, epoch, step, first=0):
        """(B, samples) int16 -> (B, samples) float32, about [-1, 1], always finite: a function of its arguments.

        first: where these rows begin in the step's batch, if they are a part of it.
        """
        reverberated, response, noisy, place, level = self._draw(len(waveform), epoch, step, first)
        row, place, level = self._to_device(noisy, place, level)
        augmented = torch.empty(waveform.shape, device=waveform.device)
        at_once = 8 if self._on_a_core(waveform) else len(waveform)
        for begin in range(0, len(waveform), at_once):
            crops = augmented[begin : begin + at_once]
            crops.copy_(waveform[begin : begin + at_once]).mul_(1 / 32768)
            few = slice(*np.searchsorted(noisy, [begin, begin + at_once]))
            if few.start < few.stop:
                self._add_noises(crops, row[few] - begin, place[few], level[few])
        if len(reverberated):
            rows, response = self._to_device(reverberated, response)
            augmented[rows] = self._reverberate(augmented[rows], response)
        return augmented

    @staticmethod
    def _on_a_core(waveform):
        """Whether to work on a few rows at a time, and to add one noise after the other: as much as a core's cache
        holds (8 crops of 2 s: 1 MB), which makes a core twice as fast. A GPU is given everything at once.
        """
        return waveform.device.type == "cpu"

    def _draw(self, count, epoch, step, first):
        """What happens to each row, in numpy: (reverberated, response, noisy, place, level).

        reverberated: rows, with the response of each; noisy: for each noise, the row that it goes to, ascending; its
        place in the bank, in steps of GRID; its level against the speech, a factor on the amplitude.
        """
        columns = 3 + 3 * len(self.SLOTS)
        numbers = row_numbers(self.seed, "augment", epoch, step, first=first, count=count, columns=columns)
        kind = np.array(self.kinds)[(numbers[:, 0] * len(self.kinds)).astype(int)]
        reverberated = np.flatnonzero(kind == "reverberation")
        response = (numbers[reverberated, 1] * len(self.spectra)).astype(int)

        low, high = self.BABBLE_FILES
        files = low + (numbers[:, 2] * (high + 1 - low)).astype(int)
        mixes = [[mix for mix, parts in self.MIXES.items() if category in parts] for category in self.SLOTS]
        used = np.stack([np.isin(kind, each) for each in mixes], axis=1)
        used[:, :high] &= np.arange(high) < files[:, None]
        noisy, slot = np.nonzero(used)

        which, where, loudness = numbers[:, 3:].reshape(count, len(self.SLOTS), 3)[noisy, slot].T
        shelf, pieces = np.array([self.shelves.get(category, (0, 0)) for category in self.SLOTS])[slot].T
        starts = (self.noise_length - self.samples) // self.GRID + 1
        place = (shelf + (which * pieces).astype(int)) * (self.noise_length // self.GRID) + (where * starts).astype(int)
        low, high = np.array([self.SNR[category] for category in self.SLOTS])[slot].T
        snr = low + loudness * (high - low)
        return reverberated, response, noisy, place, (10 ** (-snr / 20)).astype(np.float32)

    def _add_noises(self, crops, row, place, level):
        """Add noise to (B, samples) crops in place; row, place and level (N,) as ``_draw`` gives them."""
        energy = (self.energy[place + self.samples // self.GRID] - self.energy[place]).float() / 32768**2
        # The floor (-100 dB) keeps a silent noise from being divided by zero; it stays silent.
        gain = level / energy.clamp(min=1e-10 * self.samples).sqrt() / 32768
        gain = gain * torch.linalg.vector_norm(crops, dim=1)[row]
        noise = self.noises.view(-1).unfold(0, self.samples, self.GRID)  # a view of all crops of the bank
        if self._on_a_core(crops):
            for to, start, factor in zip(row.tolist(), place.tolist(), gain.tolist()):
                crops[to].add_(noise[start].float(), alpha=factor)
        else:
            crops.index_add_(0, row, noise[place] * gain.unsqueeze(1))

    def _reverberate(self, waveform, response):
        """Convolve row by row; the direct sound stays where it was. (R, samples), (R,) of the bank -> (R, samples)."""
        spectrum = torch.fft.rfft(waveform, self.transform_size).mul_(self.spectra[response])
        return torch.fft.irfft(spectrum, self.transform_size)[:, self.ONSET : self.ONSET + self.samples]

    def _to_device(self, *arrays):
        return [to_device(torch.from_numpy(array), self.noises.device) for array in arrays]

    def _read_response(self, file):
        """(response_length,) float32 of unit energy, its direct sound (the largest sample) at ONSET."""
        with self.rooms.open(file) as audio:
            response = audio.read()
        peak = int(np.abs(response).argmax())
        response = np.pad(response, (self.ONSET, 0))[peak : peak + self.response_length]
        energy = float(np.sqrt(np.sum(np.square(response, dtype=np.float64))))
        if energy < 1e-6:
            raise UnreadableAudio(f"{self.rooms.name(file)} is silent")
        return np.pad(response / np.float32(energy), (0, self.response_length - len(response)))

    def _noise_pieces(self, category, files, threads):
        """[(file, start)]: all files of a category in pieces of noise_length, the last overlapping the one before."""
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            lengths = pool.map(self._length_or_zero, files)
            lengths = list(progress_bar(iterable=lengths, total=len(files), desc=f"measuring {category}", delay=2))
        pieces = []
        for file, length in zip(files, lengths):
            last = length - self.noise_length
            pieces += [(file, start) for start in range(0, last, self.noise_length)] + [(file, max(0, last))]
        return pieces

    def _length_or_zero(self, file):
        try:
            with self.musan.open(file) as audio:
                return audio.length
        except UnreadableAudio:  # reported when its turn comes to be read
            return 0

    def _read_noise(self, piece):
        file, start = piece
        with self.musan.open(file) as audio:
            return audio.read(start, self.noise_length, "int16")
