"""Augmentation of a whole batch on the device where it is: noise, music, babble, television, reverberation.

What happens to an utterance is a function of (seed, epoch, step, its row), so that a resumed run goes on exactly and
several processes draw together what one would.
"""

import concurrent.futures
import sys

import numpy as np
import scipy.fft
import torch
from torch import nn
from tqdm import tqdm

from corpora.audio import SAMPLE_RATE, UnreadableAudio, find_noises, find_responses
from corpora.pack import open_source
from dataLoader import random_stream, row_numbers, to_device
from tools import RunError, progress_bar


class Bank:
    """A bounded stock of equally long pieces of audio in memory, redrawn every epoch.

    read: function piece -> (length,) numpy array, may raise UnreadableAudio. The pieces are shuffled once; epoch after
    epoch the stock moves on to the next ``capacity`` of them, so that all take part however small it is.
    """

    LEAST = 8  # so many speech files may be in a babble

    def __init__(self, name, pieces, read, capacity, seed, threads):
        self.name = name
        self.pieces = [pieces[i] for i in random_stream(seed, name).permutation(len(pieces))]
        self.read = read
        self.capacity = min(len(pieces), max(self.LEAST, capacity))
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

    def masks(self, count, epoch, step, first=0):
        """(count, 4) numbers in [0, 1) that place the masks of SpecAugment (model.py), for those rows of the batch."""
        place = row_numbers(self.seed, "specaugment", epoch, step, first=first, count=count, columns=4)
        return to_device(torch.from_numpy(place).float(), self.noises.device)

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
