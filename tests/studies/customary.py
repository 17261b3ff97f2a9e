"""Reading and augmentation as loaders of the field customarily do them, compared with ours: CPU time on one core.

    python tests/studies/customary.py --train_list D/train_list.txt --train_path D --musan_path D/musan \\
        --rir_path D/rirs --pack packs/train
"""

import argparse
import collections
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from corpora.audio import find_noises, find_responses
from corpora.lists import TrainingList
from corpora.pack import open_source
from dataLoader import Augmentation, CropLoader
from tools import keep_memory, run_command


class CustomaryLoader:
    """One utterance after the other, whole files in float64: clean, reverberated, with babble, music or noise, or with
    babble and music, as ``Augmentation`` has it. All files must have 16 kHz.
    """

    def __init__(self, samples, musan_path, rir_path, random):
        self.samples, self.random = samples, random
        noises, files = find_noises(musan_path)
        self.musan = {category: list(map(noises.name, names)) for category, names in files.items()}
        rooms, files = find_responses(rir_path)
        self.responses = list(map(rooms.name, files))

    def crop(self, path):
        """A random crop of a file's first channel, (samples,) float64; shorter files are repeated."""
        audio = soundfile.read(path, always_2d=True)[0][:, 0]
        if len(audio) < self.samples:
            audio = np.pad(audio, (0, self.samples - len(audio)), "wrap")
        start = self.random.integers(len(audio) - self.samples + 1)
        return audio[start : start + self.samples]

    def mixed(self, speech, category, files=1):
        """The speech with so many noises of a category, each at an SNR of its own."""
        result = speech
        for path in self.random.choice(self.musan[category], size=files, replace=False):
            noise, snr = self.crop(path), self.random.uniform(*Augmentation.SNR[category])
            power = np.mean(speech**2) / max(np.mean(noise**2), 1e-10)
            result = result + noise * math.sqrt(power * 10 ** (-snr / 10))
        return result

    def utterance(self, path):
        """(samples,) float32."""
        audio = self.crop(path)
        kind = self.random.choice(["clean", "reverberation", "babble", "music", "noise", "television"])
        if kind == "reverberation":
            response = soundfile.read(self.random.choice(self.responses), always_2d=True)[0][:, 0]
            audio = scipy.signal.convolve(audio, response / np.sqrt(np.sum(response**2)))[: self.samples]
        if kind in ("babble", "television"):
            most = min(8, len(self.musan["speech"]))
            audio = self.mixed(audio, "speech", int(self.random.integers(min(3, most), most + 1)))
        if kind in ("music", "television"):
            audio = self.mixed(audio, "music")
        if kind == "noise":
            audio = self.mixed(audio, "noise")
        return audio.astype(np.float32)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("train_list", "train_path", "musan_path", "rir_path"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--pack", help="a pack of the training list, read as well")
    parser.add_argument("--batch_size", type=int, default=400)
    parser.add_argument("--turns", type=int, default=20, help="after a warm-up; median and range are printed (20)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_memory()  # as training does
    train_list, samples, random = TrainingList(args.train_list), 32240, np.random.default_rng(0)
    sources = {path: open_source(path, "--pack") for path in (args.train_path, args.pack) if path}
    customary = CustomaryLoader(samples, args.musan_path, args.rir_path, random)
    augmentation = Augmentation(args.musan_path, args.rir_path, samples, threads=1)
    augmentation.redraw(1)
    seconds = collections.defaultdict(list)  # of CPU time, of each turn

    def by_customary(part, turn):
        for first in range(0, len(part), args.batch_size):
            files = part.files[first : first + args.batch_size]
            np.stack([customary.utterance(Path(args.train_path) / file) for file in files])

    def by_ours(source, part, turn):
        for step, waveform, _ in CropLoader(part, source, samples, args.batch_size, turn, 1).epoch(1):
            augmentation.augment(waveform, turn, step)

    loaders = {"customary": by_customary} | {path: partial(by_ours, source) for path, source in sources.items()}
    for turn in range(args.turns + 1):
        part = train_list.subset(random.integers(len(train_list), size=4 * args.batch_size))
        for name, load in loaders.items():
            began = time.process_time()
            load(part, turn)
            seconds[name].append(time.process_time() - began)
    for name, each in seconds.items():
        rate = len(part) / np.median(each[1:])
        times = np.array(seconds["customary"][1:]) / each[1:]
        low, middle, high = np.quantile(times, (0, 0.5, 1))
        print(f"{name}: {rate:,.0f} utterances/s on one core, {middle:.1f} times ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    run_command(main)
