"""The customary loader, written plainly as a baseline: what reading and augmentation cost as the field does them.

``python benchmark.py --baseline`` runs it in turns with ours.
"""

import collections
import contextlib
import copy
import math
import time
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

from corpora.audio import find_noises, find_responses
from corpora.lists import check_files
from corpora.pack import open_source
from dataLoader import Augmentation, CropLoader
from tools import InputError
from trainSpeakerNet import open_training_list


class Customary:
    """Reading and augmentation as the field's loaders do it: one after the other, whole files, float64.

    Utterance by utterance: itself, reverberated, with babble, music or noise, or babble and music, as ``Augmentation``
    has it. source: the Folder of the utterances; ``spent``: CPU seconds by purpose. Audio must be 16 kHz.
    """

    KINDS = ("clean", "reverberation", "babble", "music", "noise", "television")

    def __init__(self, samples, source, musan_path, rir_path, random):
        noises, rooms = open_source(musan_path, "--musan_path"), open_source(rir_path, "--rir_path", channel=0)
        self.samples, self.source, self.random = samples, source, random
        self.musan = {name: list(map(noises.name, files)) for name, files in find_noises(noises, musan_path).items()}
        self.responses = list(map(rooms.name, find_responses(rooms, rir_path)))
        self.spent = collections.Counter()

    @contextlib.contextmanager
    def clock(self, purpose):
        began = time.process_time()
        yield
        self.spent[purpose] += time.process_time() - began

    @staticmethod
    def read(path):
        """The first channel of a whole file, (samples of the file,) float64."""
        audio, _ = soundfile.read(path, always_2d=True)
        return audio[:, 0]

    def crop(self, path, purpose):
        """A random crop of a file: all of it read, shorter ones repeated. (samples,) float64."""
        with self.clock(purpose):
            audio = self.read(path)
            if len(audio) < self.samples:
                audio = np.pad(audio, (0, self.samples - len(audio)), "wrap")
            start = self.random.integers(len(audio) - self.samples + 1)
            return audio[start : start + self.samples]

    def mixed(self, speech, category, files=1):
        """The speech with so many noises of a category, each at its own ratio of powers."""
        result = speech
        for path in self.random.choice(self.musan[category], size=files, replace=False):
            noise = self.crop(path, "reading noises")
            result = result + self.scaled(noise, speech, self.random.uniform(*Augmentation.SNR[category]))
        return result

    @staticmethod
    def scaled(noise, speech, snr):
        """The noise at so many dB below the speech."""
        power = np.mean(speech**2) / max(np.mean(noise**2), 1e-10)
        return noise * math.sqrt(power * 10 ** (-snr / 10))

    def reverberated(self, speech):
        with self.clock("convolving"):
            response = self.read(self.random.choice(self.responses))
            return scipy.signal.convolve(speech, response / np.sqrt(np.sum(response**2)))[: self.samples]

    def batch(self, files):
        """(B, samples) float32."""
        began = time.process_time()
        batch = np.stack([self.utterance(self.source.name(file)) for file in files])
        self.spent["all"] += time.process_time() - began
        return batch

    def utterance(self, path):
        """(samples,) float32."""
        audio = self.crop(path, "reading the utterance")
        kind = self.KINDS[self.random.integers(len(self.KINDS))]
        if kind == "reverberation":
            audio = self.reverberated(audio)
        if kind in ("babble", "television"):
            most = min(8, len(self.musan["speech"]))
            audio = self.mixed(audio, "speech", int(self.random.integers(min(3, most), most + 1)))
        if kind in ("music", "television"):
            audio = self.mixed(audio, "music")
        if kind == "noise":
            audio = self.mixed(audio, "noise")
        return audio.astype(np.float32)


def compare_with_customary(args):
    """Reading and augmentation on one core, ours and the customary way in turns: prints and returns the comparison.

    In CPU time, all threads together: what waits for a disk does not count, on either side. ``args``: as benchmark.py
    reads them.
    """
    torch.set_num_threads(1)
    for flag in ("train_path", "musan_path", "rir_path"):
        path = Path(getattr(args, flag))
        if (path / "pack.json").exists():
            raise InputError(f"--{flag} {path} is a pack, and the customary loader reads files: give the folder")
    listing, source = open_training_list(args)
    ways = {"ours": source}
    if args.pack:
        ways["ours, packed"] = open_source(args.pack, "--pack")
        check_files(listing, ways["ours, packed"], "--pack")
    random = np.random.default_rng(0)
    customary = Customary(args.samples, source, args.musan_path, args.rir_path, random)
    augmentation = Augmentation(args.musan_path, args.rir_path, args.samples, args.bank_mb, 0, 1)
    began = time.process_time()
    augmentation.redraw(1)
    filling = time.process_time() - began
    taken = collections.defaultdict(list)  # what: CPU seconds per utterance, round by round

    def clocked(name, count, work):
        began = time.process_time()
        result = work()
        taken[name].append((time.process_time() - began) / count)
        return result

    def augment(batches, step):
        for waveform in batches:
            augmentation(waveform, 1, step)

    rounds, began = 0, time.perf_counter()
    while rounds < 4 or time.perf_counter() - began < args.seconds:
        part = copy.copy(listing)  # four batches: a stretch of training, with an end, so that nothing is read ahead
        count = 4 * args.batch_size
        chosen = random.integers(len(listing), size=count)
        part.files, part.label = [listing.files[i] for i in chosen], listing.label[chosen]
        part.line_numbers = [listing.line_numbers[i] for i in chosen]
        clocked("customary", args.batch_size, lambda: customary.batch(part.files[: args.batch_size]))  # noqa: B023
        for name, way in ways.items():
            loader = CropLoader(part, way, args.samples, args.batch_size, rounds, 1)
            batches = clocked(f"{name}: reading", count, lambda: [each for _, each, _ in loader.epoch(1)])  # noqa: B023
        clocked("ours: augmentation", count, lambda: augment(batches, rounds))  # noqa: B023
        rounds += 1
        if rounds == 1:  # it was to warm up
            taken.clear()
            customary.spent.clear()
    print(
        f"filling the bank of noises and responses took {filling:.1f} s of CPU; not counted below: it is done once, or "
        "once an epoch where the bank does not hold them all"
    )
    return report_comparison(taken, customary.spent, ways)


def report_comparison(taken, spent, ways):
    """Print the comparison and return it: taken {what: seconds per utterance of each round}, spent: Customary's."""
    print("reading and augmentation on one core, CPU time per utterance, median and quartiles of rounds taken in turns")
    costs = {}
    for name, rounds in taken.items():
        low, costs[name], high = np.quantile(rounds, [0.25, 0.5, 0.75]).tolist()
        print(f"  {name:<24} {1e6 * costs[name]:>9,.1f} µs  ({1e6 * low:,.1f} .. {1e6 * high:,.1f})")
    totals = {"customary": costs["customary"]}
    totals |= {name: costs[f"{name}: reading"] + costs["ours: augmentation"] for name in ways}
    ratio = {name: costs["customary"] / total for name, total in totals.items()}
    for name, total in totals.items():
        print(f"  {name:<24} {1 / total:>9,.0f} utt/s per core, {ratio[name]:.1f} times the customary")
    shares = {purpose: seconds / spent["all"] for purpose, seconds in spent.items() if purpose != "all"}
    shares["the rest"] = 1 - sum(shares.values())
    where = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    print(f"where the customary time goes: {where}")
    per_core = {name: 1 / total for name, total in totals.items()}
    return {"seconds_per_utterance": costs, "per_core": per_core, "ratio": ratio, "customary_shares": shares}
