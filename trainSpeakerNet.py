"""Train and evaluate an ECAPA-TDNN speaker encoder.

    python trainSpeakerNet.py --demo                                         train on generated speech, on any machine
    python trainSpeakerNet.py --save_path exps/exp1                          train on VoxCeleb2; again: continue
    python trainSpeakerNet.py --eval --initial_model FILE --eval_list A B    evaluate
"""

import argparse
import json
import math
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

import distributed
from audio import Folder, check_folder
from augmentation import Augmentation
from dataLoader import CropLoader, TrainingList, TrialList, check_files, row_numbers, to_device
from demoCorpus import make_demo
from encoder import SpeakerEncoder, choose_device, score_trials
from experiment import DATA_FLAGS, Meter, Run, StopSignal, describe, log_line, take_width
from pack import open_source
from plots import draw_det
from pretrained import SYSTEMS
from tools import (
    InputError,
    RunError,
    check_writable,
    equal_error_rate,
    keep_memory,
    min_dcf,
    run_command,
    sha256,
    threshold_at,
    write_scores,
    write_text,
)

# ---- settings: edit the paths here, or pass them as flags ------------------------------------------------------------


def build_parser():
    """The command line is the configuration: a flag a line with its default, its unit and its meaning."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [flags]", allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=120),
    )  # fmt: skip

    def add(flag, default, meaning, **more):
        if default is False:
            more["action"] = "store_true"
        else:
            meaning += f" ({default!r})"
            more.setdefault("type", type(default))
            more["metavar"] = more["type"].__name__
        group.add_argument(flag, default=default, help=meaning, **more)

    # fmt: off
    group = parser.add_argument_group("data")
    add("--train_list",    "/data/voxceleb2/train_list.txt",    "training list, lines <speaker> <path>")
    add("--train_path",    "/data/voxceleb2/wav",               "folder that its paths start from, or a pack of it "
                                                                "(prepareData.py --pack)")
    add("--eval_list",     ["/data/voxceleb1/veri_test2.txt"],  "trial lists, lines <1|0> <enrol path> <test path>; "
                                                                "none: train without evaluating", nargs="*", type=str)
    add("--eval_path",     "/data/voxceleb1/wav",               "folder that their paths start from")
    add("--musan_path",    "/data/musan",                       "MUSAN, whole or split into pieces, or a pack; '' for "
                                                                "none")
    add("--rir_path",      "/data/RIRS_NOISES/simulated_rirs",  "room responses, or a pack of them; '' for none")
    add("--bank_mb",       512.0,   "memory of each process for noises and responses, MB; moves on every epoch, so "
                                    "that all take part")

    group = parser.add_argument_group("what to do")
    add("--save_path",     "exps/exp1", "folder for everything that is written; with --eval: exps/eval")
    add("--initial_model", "",      "start from this model's weights; with --eval: the model to evaluate. Ours, or the "
                                    "file or folder of a published system (pretrained.py)")
    add("--system",        None,    "whose model that is, where it cannot be seen from the file", choices=list(SYSTEMS),
                                    type=str)
    add("--eval",          False,   "evaluate only; needs no training data")
    add("--demo",          False,   "generate a small corpus of speech and train on it, in minutes on a CPU")

    group = parser.add_argument_group("training")
    add("--num_frames",    200,     "length of a crop in frames of 10 ms: num_frames*160+240 samples")
    add("--max_epoch",     80,      "passes over the training list")
    add("--batch_size",    400,     "crops per step, of all processes together")
    add("--lr",            0.001,   "learning rate of Adam in the first epoch")
    add("--lr_decay",      0.97,    "factor on the learning rate from one epoch to the next")
    add("--weight_decay",  2e-5,    "L2 penalty on all weights")
    add("--test_step",     1,       "evaluate, and keep a model, every so many epochs")
    add("--seed",          0,       "of weights, order, crops and augmentation")

    group = parser.add_argument_group("model and loss")
    add("--C",             1024,    "channels of the network; published: 512 and 1024")
    add("--m",             0.2,     "margin of the AAM-softmax, radians")
    add("--s",             30.0,    "scale of the AAM-softmax")
    add("--n_class",       None,    "number of speakers; None: as many as the training list has", type=int)

    group = parser.add_argument_group("machine")
    add("--n_cpu",         4,       "threads that read audio, of each process")
    add("--device",        "auto",  "auto (a CUDA GPU, else Apple's, else the CPU), cpu, cuda, cuda:1, mps, ...")
    add("--amp",           "auto",  "mixed precision: bf16 halves memory traffic and is faster where the hardware "
                                    "multiplies it (GPUs since Ampere, CPUs with AMX), there auto takes it; front end, "
                                    "pooling, loss and evaluation are always float32", choices=["auto", "bf16", "off"])
    add("--compile",       False,   "let torch.compile make fewer, larger kernels; takes minutes at the start")
    add("--accumulate",    1,       "cut each batch in so many parts, one after the other, where memory is short; "
                                    "batch norm then sees the parts")
    add("--sync_bn",       False,   "several processes (torchrun): batch norm sees the parts of all of them as one")
    # fmt: on
    return parser


DEMO = {"save_path": "exps/demo", "C": 64, "batch_size": 64, "max_epoch": 8, "test_step": 4, "n_cpu": 2}


def read_settings(arguments):
    """The command line (a list of strings) as a namespace, checked. Raises InputError naming the flag."""
    parser = build_parser()
    if "--demo" in arguments:
        parser.set_defaults(**DEMO)
    args = parser.parse_args(arguments)
    args.given = {argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")}
    if args.eval and args.demo:
        raise InputError("--eval evaluates a model and --demo trains one: choose")
    if args.eval and not args.initial_model:
        raise InputError("--eval needs --initial_model FILE, the model to evaluate")
    if args.eval and not args.eval_list:
        raise InputError("--eval needs --eval_list with at least one trial list")
    begun = not args.eval and (Path(args.save_path) / "state.pt").exists()  # its weights are in there
    if args.initial_model and not begun and not Path(args.initial_model).exists():
        raise InputError(f"--initial_model {args.initial_model} does not exist")
    if args.eval and "save_path" not in args.given:
        args.save_path = "exps/eval"  # never over an experiment's own scores
    # A batch of 1 has no statistics for batch norm.
    least = {"num_frames": 2, "max_epoch": 1, "batch_size": 2, "accumulate": 1, "test_step": 1, "n_cpu": 1,
             "n_class": 1, "seed": 0, "lr_decay": 0, "weight_decay": 0, "m": 0, "bank_mb": 1}
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value < math.inf:
            raise InputError(f"--{name} must be at least {minimum}, not {value}")
    for name in ("lr", "s"):
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name} must be more than 0, not {getattr(args, name)}")
    if args.seed >= 2**63:
        raise InputError(f"--seed must be less than 2**63, not {args.seed}")
    if args.C < 8 or args.C % 8:
        raise InputError(f"--C must be a multiple of 8, not {args.C}")
    return args


# ---- schedule --------------------------------------------------------------------------------------------------------


def learning_rate(args, step, steps_per_epoch):
    """A pure function of the step (0, 1, ...), counted over the whole run."""
    return args.lr * args.lr_decay ** (step // steps_per_epoch)


# ---- training --------------------------------------------------------------------------------------------------------


def train(args):
    device = distributed.together(pick_device, args)
    if args.amp == "auto":
        args.amp = "bf16" if multiplies_bf16(device) else "off"
    listing, trial_lists, loader, augmentation, run = distributed.together(open_all, args, device)
    parts, rows = distributed.share_of_batch(args.batch_size, args.accumulate)
    network, optimizer, stop = distributed.parallel(run.network, device), run.optimizer, StopSignal()
    if args.compile:
        network = torch.compile(network)
    torch.backends.cudnn.benchmark = True  # all batches have one shape: worth a search for the fastest kernels
    run.begin()
    print(
        f"{run.folder}: {describe(run.network.speaker_encoder)}, {device}{distributed.in_words()}, amp {args.amp}; "
        f"{len(listing)} utterances of {len(listing.speakers)} speakers, {loader.steps} steps of {args.batch_size} an "
        f"epoch; each utterance {' or '.join(augmentation.kinds)}"
    )
    if run.is_untrained() and trial_lists:  # a baseline, and proof that evaluation will work when an epoch is over
        run.record({"epoch": 0}, evaluate(run.speaker_encoder(), trial_lists, args))

    while run.epoch <= args.max_epoch:
        network.train()
        augmentation.redraw(run.epoch)
        meter = Meter(args, run, loader)
        with stop.deferred():
            for step, waveform, label in meter.watch(loader.epoch(run.epoch, first_step=run.step)):
                rate = learning_rate(args, (run.epoch - 1) * loader.steps + step, loader.steps)
                optimizer.param_groups[0]["lr"] = meter.learning_rate = rate
                for first, crops, speakers in zip(parts, waveform.split(rows), label.split(rows)):
                    crops = augmentation(to_device(crops, device), run.epoch, step, first)
                    place = row_numbers(args.seed, "specaugment", run.epoch, step, first=first, count=rows, columns=4)
                    place = to_device(torch.from_numpy(place).float(), device)
                    with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                        loss, accuracy = network(crops, to_device(speakers, device), place)
                    (loss / args.accumulate).backward()
                    meter.add(loss, accuracy)
                optimizer.step()
                optimizer.zero_grad()
                run.step = step + 1
                if distributed.anyone(stop.requested):
                    stop.requested = stop.requested or signal.SIGTERM
                    break
            run.save_state(meter.sums())
        if run.epoch not in run.recorded():
            summary = meter.summary()
            print(log_line(summary, args))
            due = run.epoch % args.test_step == 0 or run.epoch == args.max_epoch
            run.record(summary, evaluate(run.speaker_encoder(), trial_lists, args) if due else None)
        run.next_epoch()
    print(f"{run.folder}: {args.max_epoch} epochs done; a larger --max_epoch goes on from here{run.error_rates()}")


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(encoder, trial_lists, args):
    """Score every trial of the lists {name: TrialList}, each utterance embedded once for all of them.

    Prints and returns {name: {"eer", "min_dcf_0.05", ...}}; writes <save_path>/scores/<name>.txt and det.png.
    """
    began = time.perf_counter()
    files = [file for trials in trial_lists.values() for column in (trials.enrol, trials.test) for file in column]
    utterances = distributed.share(encoder.embed_for_scoring, files, args.eval_path, args.n_cpu)
    results, curves = {}, {}
    for name, trials in trial_lists.items():
        scores = score_trials(trials, utterances)
        eer, threshold = equal_error_rate(scores, trials.label)
        results[name] = {
            "eer": eer,
            "thresholds": {"EER": threshold, "1%": threshold_at(scores, trials.label, 0.01),
                           "0.1%": threshold_at(scores, trials.label, 0.001)},
            "min_dcf_0.05": min_dcf(scores, trials.label, p_target=0.05)[0],
            "min_dcf_0.01": min_dcf(scores, trials.label, p_target=0.01)[0],
            "trials": len(trials),
            "utterances": len({*trials.enrol, *trials.test}),
            "list_sha256": sha256(trials.path),
            "seconds": time.perf_counter() - began,
        }
        curves[name] = scores, trials.label
        if distributed.rank() == 0:
            write_scores(Path(args.save_path) / "scores" / f"{name}.txt", scores, trials)
        print("  " + result_line(name, results[name]))
    if curves and distributed.rank() == 0:
        draw_det(Path(args.save_path) / "det.png", curves)
    return results


def evaluate_only(args):
    device = distributed.together(pick_device, args)
    encoder, trial_lists = distributed.together(open_evaluation, args, device)
    print(f"{args.initial_model}: {describe(encoder.network)}, of {encoder.system.title}, on {device}")
    results = evaluate(encoder, trial_lists, args)
    content = {"settings": {k: v for k, v in vars(args).items() if k != "given"}, "results": results}
    if distributed.rank() == 0:
        write_text(Path(args.save_path) / "results.json", json.dumps(content, indent=2) + "\n")
    print(f"the score of every trial: {args.save_path}/scores/; curves: {args.save_path}/det.png")


# ---- odds and ends ---------------------------------------------------------------------------------------------------


def pick_device(args):
    return choose_device(distributed.own_device(args.device))


def open_all(args, device):
    """All that training needs, checked before any long work: (listing, trial lists, loader, augmentation, run)."""
    (listing, source), trial_lists = open_training_list(args), open_trial_lists(args)
    parts, count = distributed.share_of_batch(args.batch_size, args.accumulate)
    rows = np.concatenate([np.arange(first, first + count) for first in parts])
    samples = args.num_frames * 160 + 240
    pin = device.type == "cuda"  # memory from which the copy to the GPU runs beside the computation
    loader = CropLoader(listing, source, samples, args.batch_size, args.seed, args.n_cpu, pin, rows)
    augmentation = Augmentation(args.musan_path, args.rir_path, samples, args.bank_mb, args.seed, args.n_cpu).to(device)
    return listing, trial_lists, loader, augmentation, Run(args, listing, device)


def open_evaluation(args, device):
    """(SpeakerEncoder, trial lists) for --eval."""
    encoder = SpeakerEncoder.from_checkpoint(args.initial_model, device, args.system)
    take_width(args, encoder.network)
    return encoder, open_trial_lists(args)


def open_training_list(args):
    """The training list and where its files are, a folder or a pack."""
    listing, source = TrainingList(args.train_list), open_source(args.train_path, "--train_path")
    check_files(listing, source, "--train_path")
    return listing, source


def open_trial_lists(args):
    """{name: TrialList}, each checked against the disk; the name is the file's, without its suffix."""
    trial_lists = {}
    for path in args.eval_list:
        name = Path(path).stem
        if name in trial_lists:
            raise InputError(f"--eval_list has two lists called {name}: their scores would go to one file; rename one")
        trial_lists[name] = TrialList(path)
        check_folder(args.eval_path, "--eval_path")
        if (Path(args.eval_path) / "pack.json").exists():
            raise InputError(f"--eval_path {args.eval_path} is a pack: utterances of trials are read from files")
        check_files(trial_lists[name], Folder(args.eval_path), "--eval_path")
    return trial_lists


def multiplies_bf16(device):
    """Whether this device has bf16 arithmetic that is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)


def result_line(name, result):
    return (
        f"{name}: EER {result['eer']:.2f}% | minDCF(0.05) {result['min_dcf_0.05']:.4f} | minDCF(0.01) "
        f"{result['min_dcf_0.01']:.4f} | {result['trials']} trials, {result['utterances']} utterances | "
        f"{result['seconds']:.0f} s"
    )


def use_demo_corpus(args):
    """Generate the demo corpus, if it is not there yet, and point the data flags to it."""
    if args.given & DATA_FLAGS:
        raise InputError(f"--demo brings its own data: leave out --{' --'.join(sorted(args.given & DATA_FLAGS))}")
    corpus = Path(args.save_path) / "corpus"
    distributed.first(make_demo, corpus)
    args.train_list, args.train_path = str(corpus / "train_list.txt"), str(corpus / "train/wav")
    args.eval_list, args.eval_path = [str(corpus / "trials.txt")], str(corpus / "eval/wav")
    args.musan_path, args.rir_path = str(corpus / "musan"), str(corpus / "rirs")


def main():
    keep_memory()
    with distributed.connected():
        with distributed.first_complains():
            args = distributed.together(read_settings, sys.argv[1:])
        distributed.first(check_writable, args.save_path, "--save_path")
        try:
            if args.demo:
                use_demo_corpus(args)
            evaluate_only(args) if args.eval else train(args)
        except torch.OutOfMemoryError as error:
            mend = "--accumulate 2 (or 4, ...) keeps the recipe with less; so does --amp bf16"
            raise RunError(f"out of memory with --batch_size {args.batch_size}: {mend}") from error
        except KeyboardInterrupt as interrupt:
            again = shlex.join(["python", *sys.argv]) if distributed.size() == 1 else "the same torchrun command"
            kept = "" if args.eval else f"; {args.save_path}/state.pt has everything up to when it was last saved"
            if distributed.rank() == 0:
                print(f"\nstopped{kept}. To go on: {again}", file=sys.stderr)
            return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


if __name__ == "__main__":
    run_command(main)
