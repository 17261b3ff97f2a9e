"""Measure the speed of training on this machine, what limits it, and the hours for VoxCeleb2.

    python benchmark.py                                          all stages of training; needs no corpus
    python benchmark.py --C 64 --batch_size 64                   a small network, for a CPU: a minute
    python benchmark.py --train_list LIST --train_path ROOT      the same with a corpus, from files or a pack

Rates are medians of repetitions after a warm-up, with quartiles.
"""

import argparse
import functools
import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from corpora.audio import SAMPLE_RATE, Folder
from corpora.lists import TrainingList
from corpora.pack import Pack, write_pack
from dataLoader import Augmentation, CropLoader, to_device
from evaluation.scoring import open_training_list
from inference.encoder import choose_device
from loss import AAMsoftmax
from model import ECAPA_TDNN, compiled
from tools import InputError, check_writable, keep_memory, run_command, write_text
from training.run import SpeakerNet, multiplies_bf16
from trainSpeakerNet import train_step

UTTERANCES, SPEAKERS, EPOCHS = 1_092_009, 5_994, 80  # of VoxCeleb2 dev, and of the recipe
UTTERANCE_SECONDS = 8  # the mean of VoxCeleb2: 2,360 hours / 1,092,009
GENERATED = 800  # utterances of noise, in place of a corpus: 0.2 GB


def read_settings(arguments):
    """The command line (a list of strings) as a namespace. Raises InputError naming the flag."""
    formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=24, width=120)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=formatter)
    add = parser.add_argument
    add("--work", default="exps/benchmark", help="folder for generated audio (exps/benchmark)")
    add("--seconds", type=float, default=5, help="time for each stage, which is repeated at least three times (5)")
    # As in trainSpeakerNet.py.
    add("--train_list", default="", help="training list; without it, noise is generated")
    add("--train_path", default="", help="folder that its paths start from, or its pack")
    add("--paths_anywhere", action="store_true", help="allow absolute paths and .. in lists")
    add("--musan_path", default="", help="MUSAN; '' for none")
    add("--rir_path", default="", help="room responses; '' for none")
    add("--bank_mb", type=float, default=512, help="memory for noises and responses, MB (512)")
    add("--C", type=int, default=1024, help="channels of the network (1024)")
    add("--batch_size", type=int, default=400, help="crops per step (400)")
    add("--num_frames", type=int, default=200, help="length of a crop in frames of 10 ms (200)")
    add("--n_cpu", type=int, default=4, help="threads that read audio (4)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (auto)")
    add("--amp", choices=["auto", "bf16", "off"], default="auto", help="mixed precision (auto)")
    add("--compile", action="store_true", help="torch.compile the network")
    parser.set_defaults(accumulate=1, clip=0)  # for train_step
    args = parser.parse_args(arguments)
    if bool(args.train_list) != bool(args.train_path):
        raise InputError("give both --train_list and --train_path, or neither to generate noise")
    if args.C < 8 or args.C % 8:
        raise InputError(f"--C must be a multiple of 8, not {args.C}")
    return args


def write_noise(root, names, seconds, decay=math.inf):
    """Write files of white noise of so many seconds; decay: time constant in s, for responses."""
    time_in_seconds = np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE
    for number, name in enumerate(names):
        noise = 0.1 * np.random.default_rng(number).standard_normal(len(time_in_seconds), dtype=np.float32)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, noise * np.exp(-time_in_seconds / decay), SAMPLE_RATE)


def use_generated_corpus(args):
    """Set the data flags to a packed corpus of noise in --work, which is generated unless it exists."""
    work = Path(args.work) / "noise"
    names = [f"id{number:05d}/{number}.wav" for number in range(GENERATED)]
    args.train_list, args.train_path = str(work / "train_list.txt"), str(work / "pack")
    args.musan_path, args.rir_path = str(work / "musan"), str(work / "rirs")
    if not Path(args.train_list).exists():  # it is written last
        write_noise(work / "wav", names, UTTERANCE_SECONDS)
        write_noise(work / "musan", [f"{kind}/{i}.wav" for kind in ("noise", "music", "speech") for i in range(20)], 10)
        write_noise(work / "rirs", [f"{i}.wav" for i in range(50)], 0.5, decay=0.1)
        train_list = TrainingList.of(args.train_list, [name.split("/")[0] for name in names], names)
        write_pack(work / "pack", Folder(work / "wav"), train_list, args.n_cpu)
        write_text(args.train_list, train_list.text())


def measure(stage, count, work, device, seconds):
    """Print and return the median of utterances/s of work(), which processes ``count`` utterances."""
    taken = []
    while len(taken) < 4 or sum(taken[1:]) < seconds:
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        taken.append(time.perf_counter() - began)
    low, median, high = np.quantile(count / np.array(taken[1:]), [0.25, 0.5, 0.75])
    print(f"{stage:<24} {median:>12,.1f} {f'{low:,.1f} .. {high:,.1f}':>25} {1e6 / median:>11,.1f}")
    return median


def benchmark(args, device):
    """Print rates of reading, augmentation, training steps and all of it; what limits training; hours for VoxCeleb2."""
    if not args.train_list:
        use_generated_corpus(args)
    train_list, source = open_training_list(args)
    size, samples = args.batch_size, args.num_frames * 160 + 240
    loader = CropLoader(train_list, source, samples, size, 0, args.n_cpu, pin_memory=device.type == "cuda")
    augmentation = Augmentation(args.musan_path, args.rir_path, samples, args.bank_mb, 0, args.n_cpu).to(device)
    augmentation.redraw(1)
    network = SpeakerNet(ECAPA_TDNN(C=args.C), AAMsoftmax(max(SPEAKERS, len(train_list.speakers)))).to(device)
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=2e-5, fused=device.type != "mps")
    network = compiled(network) if args.compile else network

    def train(waveform, label):
        train_step(args, network, optimizer, augmentation, (1, 0), waveform, label, lr=0.001, margin=0.2)

    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count(1))
    _, *batch = next(batches)
    on_device, waited = [to_device(each, device) for each in batch], []

    def read_and_train():
        began = time.perf_counter()
        _, *batch = next(batches)
        waited.append(time.perf_counter() - began)
        train(*batch)

    read = measure("read", 8 * size, lambda: [len(next(batches)) for _ in range(8)], device, args.seconds)
    augment = measure("augment", size, lambda: augmentation(*on_device, 1, 0), device, args.seconds)
    steps = measure("training step", 4 * size, lambda: [train(*batch) for _ in range(4)], device, args.seconds)
    end = measure("end to end", 4 * size, lambda: [read_and_train() for _ in range(4)], device, args.seconds)
    waiting = 100 * np.mean(waited[4:]) * end / size
    hours = UTTERANCES * EPOCHS / end / 3600
    advice = advise(read, augment, steps, end, isinstance(source, Pack))
    print(f"\n{advice}; {waiting:.0f} % of the time is spent waiting for batches")
    print(f"{EPOCHS} epochs of VoxCeleb2 ({UTTERANCES:,} utterances): {hours:,.1f} hours, if reading is as fast")


def advise(read, augment, steps, end, packed):
    """What limits training and what to do about it, from rates in utterances per second."""
    if end > 0.9 * steps:
        return f"the network limits training (augmentation takes {100 * steps / augment:.0f} % of a step)"
    lost = f"training runs at {100 * end / steps:.0f} % of the rate of its steps"
    if read > 1.2 * steps:
        return f"{lost}, although reading alone is fast enough: reading and training share too few cores"
    fix = "raise --n_cpu, or use a faster disk" if packed else "pack the corpus (prepareData.py --pack)"
    return f"reading limits training: {lost}; {fix}"


def main():
    args = read_settings(sys.argv[1:])
    keep_memory()
    check_writable(args.work, "--work")
    device = choose_device(args.device)
    if args.amp == "auto":
        args.amp = "bf16" if multiplies_bf16(device) else "off"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{device} ({name}), torch {torch.__version__}; C={args.C}, batch {args.batch_size}, {args.num_frames} frames, "
        f"amp {args.amp}{', compiled' * args.compile}; {args.n_cpu} reading threads\n"
    )
    print(f"{'stage':<24} {'utterances/s':>12} {'quartiles':>25} {'µs each':>11}")
    benchmark(args, device)


if __name__ == "__main__":
    run_command(main)
