"""Measure the speed of training on this machine, what limits it, and the hours for VoxCeleb2.

    python benchmark.py                                          all stages of training, on the demo corpus
    python benchmark.py --C 64 --batch_size 64                   a small network, for a CPU: a minute
    python benchmark.py --train_list LIST --train_path ROOT      the same with a corpus, from files or a pack

It takes the flags of a training (trainSpeakerNet.py -h), such as --recipe strong --speed_perturb. Rates are medians of
repetitions after a warm-up, with quartiles.
"""

import itertools
import sys
import time

import numpy as np
import torch

from corpora.demo import demo_flags, make_demo
from corpora.lists import open_training_list
from corpora.pack import Pack
from dataLoader import to_device
from inference.encoder import choose_device
from model import ECAPA_TDNN
from tools import keep_memory, run_command
from training import settings
from training.run import fast, make_network, make_optimizer, multiplies_bf16
from trainSpeakerNet import build_parser, make_loader, train_step

UTTERANCES, SPEAKERS = 1_092_009, 5_994  # of VoxCeleb2 dev


def read_settings(arguments):
    """The command line (a list of strings) as Settings. Raises InputError naming the flag."""
    parser = build_parser()
    parser.description = __doc__
    group = parser.add_argument_group("benchmark")
    group.add_argument("--seconds", type=float, default=5, help="for each stage, measured at least three times (5)")
    parser.set_defaults(train_list="", train_path="", musan_path="", rir_path="")
    return settings.read_settings(parser, arguments)


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
    train_list, source = open_training_list(args)
    args = args.replace(n_class=max(SPEAKERS, len(train_list.speakers)), system="ours")
    loader, augmentation = make_loader(args, train_list, source, device)
    augmentation.redraw(1)
    network = make_network(args, ECAPA_TDNN(C=args.C), device)
    optimizer = make_optimizer(args, network.parameters(), device)
    network = fast(args, network, device, UTTERANCES * args.max_epoch)

    def train(waveform, label):
        train_step(args, network, optimizer, augmentation, (1, 0), waveform, label, args.lr, args.m)

    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count(1))
    _, *batch = next(batches)
    on_device = [to_device(each, device) for each in batch]
    size = args.batch_size
    read = measure("read", 8 * size, lambda: [len(next(batches)) for _ in range(8)], device, args.seconds)
    augment = measure("augment", size, lambda: augmentation(*on_device, 1, 0), device, args.seconds)
    steps = measure("training step", 4 * size, lambda: [train(*batch) for _ in range(4)], device, args.seconds)
    end = measure("end to end", 4 * size, lambda: [train(*next(batches)[1:]) for _ in range(4)], device, args.seconds)
    hours = UTTERANCES * args.max_epoch / end / 3600
    print(f"\n{advise(read, augment, steps, end, isinstance(source, Pack))}")
    print(f"{args.max_epoch} epochs of VoxCeleb2, {UTTERANCES:,} utterances: {hours:,.1f} hours, if reading is as fast")


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
    device = choose_device(args.device)
    if args.amp == "auto":
        args = args.replace(amp="bf16" if multiplies_bf16(device) else "off")
    if not args.train_list:
        args = args.replace(**demo_flags(make_demo("exps/demo/corpus")))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{device} ({name}), torch {torch.__version__}; C={args.C}, batch {args.batch_size}, {args.num_frames} frames, "
        f"amp {args.amp}; {args.n_cpu} reading threads\n"
    )
    print(f"{'stage':<24} {'utterances/s':>12} {'quartiles':>25} {'µs each':>11}")
    benchmark(args, device)


if __name__ == "__main__":
    run_command(main)
