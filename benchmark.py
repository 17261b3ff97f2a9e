"""Measure the speed of training on this machine, what limits it, and the hours for VoxCeleb2.

    python benchmark.py                                          all stages of training, on the demo corpus
    python benchmark.py --C 64 --batch_size 64                   a small network, for a CPU: a minute
    python benchmark.py --train_list LIST --train_path ROOT      the same with a corpus, from files or a pack
    python benchmark.py --gpu_check                              check and time all that runs on a GPU: 8 minutes

It takes the flags of a training (trainSpeakerNet.py -h), such as --recipe strong --speed_perturb. Rates are medians of
repetitions after a warm-up, with quartiles.
"""

import sys
import tempfile

from corpora.demo import demo_flags, make_demo
from corpora.lists import open_training_list
from corpora.pack import Pack, write_pack
from inference.encoder import choose_device
from tools import InputError, keep_memory, run_command
from training import settings
from training.gpu_check import UTTERANCES, GPUCheck, Training, limits, measure, setting
from training.run import maybe_compile, with_amp
from trainSpeakerNet import build_parser, make_loader, train_step

GPU_CHECK = "exps/gpu_check"  # .md and .json


def read_settings(arguments):
    """The command line (a list of strings) as Settings. Raises InputError naming the flag."""
    parser = build_parser()
    parser.description = __doc__
    group = parser.add_argument_group("benchmark")
    group.add_argument("--seconds", type=float, default=5, help="for each stage, measured at least three times (5)")
    group.add_argument("--gpu_check", action="store_true", help="write exps/gpu_check.md and .json, for a report")
    parser.set_defaults(train_list="", train_path="", musan_path="", rir_path="")
    return settings.with_recipe(parser, settings.read_settings(parser, arguments, {}), UTTERANCES)


def benchmark(args, device):
    """Print rates of reading, augmentation, training steps and all of it; what limits training; hours for VoxCeleb2."""

    def show(stage, rates):
        low, median, high = rates
        print(f"{stage:<24} {median:>12,.1f} {f'{low:,.1f} .. {high:,.1f}':>25} {1e6 / median:>11,.1f}")
        return median

    training, size = Training(args, device, make_loader, train_step), args.batch_size
    batches, augmentation, number = training.batches, training.augmentation, training.number
    network = maybe_compile(training.args, training.network, device, UTTERANCES * args.max_epoch)
    product, copy = limits(args, device)
    read = show("read", measure(8 * size, lambda: [next(batches) for _ in range(8)], device, args.seconds))
    augment = measure(size, lambda: augmentation(*training.batch, 1, next(number)), device, args.seconds)
    augment = show("augment", augment)
    if device.type == "cuda" and network is not training.network:
        show("step, not compiled", training.rate(training.network))
    steps = show("training step", training.rate(network))
    end = show("end to end", training.rate(network, reading=True))
    flop, hours = training.flop(), UTTERANCES * args.max_epoch / end / 3600
    print(
        f"\nsteps reach {100 * flop * steps / product:.0f} % of the {product / 1e12:.3g} TFLOP/s of a large product "
        f"({flop / 1e9:.3g} GFLOP a crop); a large copy reaches {copy / 1e9:.3g} GB/s"
    )
    print(advise(read, augment, steps, end, isinstance(training.source, Pack)))
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
    args = with_amp(args, device)
    if args.gpu_check and device.type != "cuda" and args.device == "auto":
        raise InputError("--gpu_check needs a CUDA GPU, and none is found; --device cpu: as far as a CPU can")
    with tempfile.TemporaryDirectory() as folder:
        if not args.train_list:
            args = args.replace(**demo_flags(make_demo("exps/demo/corpus")))
            if args.gpu_check:
                train_list, source = open_training_list(args)
                args = args.replace(train_path=str(write_pack(f"{folder}/pack", source, train_list).path))
        if args.gpu_check:
            print(GPUCheck(args, device, make_loader, train_step).run(GPU_CHECK))
            print(f"also in {GPU_CHECK}.md and .json")
            return
        print(f"{setting(args, device)}\n")
        print(f"{'stage':<24} {'utterances/s':>12} {'quartiles':>25} {'µs each':>11}")
        benchmark(args, device)


if __name__ == "__main__":
    run_command(main)
