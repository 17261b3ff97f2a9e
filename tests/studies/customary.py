"""Reading and augmentation as loaders of the field customarily do them, compared with ours: CPU time on one core.

    python tests/studies/customary.py --train_list D/train_list.txt --train_path D --musan_path D/musan \\
        --rir_path D/rirs --pack packs/train
"""

import argparse
import collections
import math
import sys
import time
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from corpora.audio import find_noises, find_responses
from corpora.lists import TrainingList, check_files
from corpora.pack import open_source
from dataLoader import Augmentation, CropLoader
from tools import run_command


class CustomaryLoader:
    """One utterance after the other, whole files in float64: clean, reverberated, with babble, music or noise, or with
    babble and music, as ``Augmentation`` has it. source, noises, rooms: Folders of 16 kHz audio.
    """

    def __init__(self, samples, source, noises, rooms, random):
        self.samples, self.source, self.random = samples, source, random
        self.musan = {name: list(map(noises.name, files)) for name, files in find_noises(noises, noises.root).items()}
        self.responses = list(map(rooms.name, find_responses(rooms, rooms.root)))

    @staticmethod
    def read(path):
        """The first channel of a whole file, (samples of the file,) float64."""
        audio, _ = soundfile.read(path, always_2d=True)
        return audio[:, 0]

    def crop(self, path):
        """A random crop of a file, (samples,) float64; shorter files are repeated."""
        audio = self.read(path)
        if len(audio) < self.samples:
            audio = np.pad(audio, (0, self.samples - len(audio)), "wrap")
        start = self.random.integers(len(audio) - self.samples + 1)
        return audio[start : start + self.samples]

    def mixed(self, speech, category, files=1):
        """The speech with so many noises of a category, each at an SNR of its own."""
        result = speech
        for path in self.random.choice(self.musan[category], size=files, replace=False):
            result = result + self.scaled(self.crop(path), speech, self.random.uniform(*Augmentation.SNR[category]))
        return result

    @staticmethod
    def scaled(noise, speech, snr):
        """The noise at so many dB below the speech."""
        power = np.mean(speech**2) / max(np.mean(noise**2), 1e-10)
        return noise * math.sqrt(power * 10 ** (-snr / 10))

    def reverberated(self, speech):
        response = self.read(self.random.choice(self.responses))
        return scipy.signal.convolve(speech, response / np.sqrt(np.sum(response**2)))[: self.samples]

    def utterance(self, path):
        """(samples,) float32."""
        audio = self.crop(path)
        kind = self.random.choice(["clean", "reverberation", "babble", "music", "noise", "television"])
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

    def batch(self, files):
        """(B, samples) float32."""
        return np.stack([self.utterance(self.source.name(file)) for file in files])


def compare(args):
    """Print CPU time per utterance, medians and quartiles of turns, and by how much ours is faster."""
    torch.set_num_threads(1)
    train_list, samples, random = TrainingList(args.train_list), args.num_frames * 160 + 240, np.random.default_rng(0)
    paths = {"--train_path": args.train_path} | ({"--pack": args.pack} if args.pack else {})
    sources = {flag: open_source(path, flag) for flag, path in paths.items()}
    for flag, source in sources.items():
        check_files(train_list, source, flag, anywhere=True)
    noises, rooms = open_source(args.musan_path, "--musan_path"), open_source(args.rir_path, "--rir_path", channel=0)
    customary = CustomaryLoader(samples, sources["--train_path"], noises, rooms, random)
    augmentation = Augmentation(args.musan_path, args.rir_path, samples, threads=1)
    augmentation.redraw(1)
    seconds = collections.defaultdict(list)  # per utterance, of each round

    def measure(what, work):
        began = time.process_time()
        result = work()
        seconds[what].append((time.process_time() - began) / 4 / args.batch_size)
        return result

    turn, began_at = 0, time.perf_counter()
    while turn < 4 or time.perf_counter() - began_at < args.seconds:  # the first turn is a warm-up
        part = train_list.subset(random.integers(len(train_list), size=4 * args.batch_size))
        measure("customary", lambda: customary.batch(part.files))  # noqa: B023
        for flag, source in sources.items():
            loader = CropLoader(part, source, samples, args.batch_size, turn, 1)
            batches = measure(f"reading, {flag}", lambda: [each for _, each, _ in loader.epoch(1)])  # noqa: B023
        measure("augmentation", lambda: [augmentation.augment(each, 1, turn) for each in batches])  # noqa: B023
        turn += 1
    quartiles = {what: np.quantile(each[1:], [0.25, 0.5, 0.75]).tolist() for what, each in seconds.items()}
    for what, (low, median, high) in quartiles.items():
        print(f"{what:24} {1e6 * median:9,.1f} µs an utterance ({1e6 * low:,.1f} .. {1e6 * high:,.1f})")
    for flag in sources:
        ours = quartiles[f"reading, {flag}"][1] + quartiles["augmentation"][1]
        gain = quartiles["customary"][1] / ours
        print(f"{flag}: {1 / ours:,.0f} utterances/s on one core, {gain:.1f} times the customary loader")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("train_list", "train_path", "musan_path", "rir_path"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--pack", default="", help="a pack of the training list, read as well")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_frames", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20, help="time for the turns, at least three (20)")
    compare(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
