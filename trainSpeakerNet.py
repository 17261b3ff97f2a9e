"""Train and evaluate an ECAPA-TDNN speaker encoder.

    python trainSpeakerNet.py --demo                                         train on generated speech, on any machine
    python trainSpeakerNet.py --save_path exps/exp1                          train on VoxCeleb2; again: continue
    python trainSpeakerNet.py --eval --initial_model FILE --eval_list A B    evaluate; with AS-norm: --as_norm
    python trainSpeakerNet.py --compare A.txt B.txt --eval_list LIST         do the scores of two systems differ?
    python trainSpeakerNet.py --report --save_path exps/exp1                 write exps/exp1/report.html
"""

import argparse
import contextlib
import json
import math
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from augmentation import Augmentation
from corpora.check import quick_check, stop_at_errors
from corpora.demo import make_demo
from corpora.make_lists import hold_out, make_trials
from dataLoader import CropLoader, to_device
from evaluation.report import write_report
from evaluation.scoring import VALID, Background, Test, compare_files, evaluate, open_tests, open_training_list
from inference.checkpoints import SYSTEMS
from inference.encoder import SpeakerEncoder, choose_device
from model import compiled
from speed import SpeedPerturbation
from tools import InputError, RunError, check_writable, keep_memory, ran_out_of_memory, run_command, write_text
from training import distributed
from training.meter import Meter, StopSignal, log_line
from training.run import DATA_FLAGS, Run, can_go_further, describe, provenance, take_width, what_fits
from training.settings import (
    OPTIMIZERS,
    RECIPES,
    bundle,
    check_settings,
    describe_bundles,
    learning_rate,
    margin,
    take_step,
)
from training.state import has_state, only_run_in

# ---- settings: edit the paths here, or pass them as flags ------------------------------------------------------------


def build_parser():
    """The command line is the configuration: a flag a line with its default, its unit and its meaning."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=describe_bundles(), usage="%(prog)s [flags]", allow_abbrev=False,
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
    add("--paths_anywhere", False,  "paths in lists may be absolute, or leave those folders by ..")
    add("--musan_path",    "/data/musan",                       "MUSAN, whole or split into pieces, or a pack; '' for "
                                                                "none")
    add("--rir_path",      "/data/RIRS_NOISES/simulated_rirs",  "room responses, or a pack of them; '' for none")
    add("--no_check",      False,   "begin without a look at lists and audio for what would spoil the result "
                                    "(prepareData.py --check has the long form)")
    add("--bank_mb",       512.0,   "memory of each process for noises and responses, MB; moves on every epoch, so "
                                    "that all take part")

    group = parser.add_argument_group("what to do")
    add("--save_path",     "exps/exp1", "folder for everything that is written; with --eval: exps/eval")
    add("--initial_model", "",      "start from this model's weights; with --eval: the model to evaluate. Ours, or the "
                                    "file or folder of a published system (pretrained.py)")
    add("--system",        None,    "whose model that is, where it cannot be seen from the file", choices=list(SYSTEMS),
                                    type=str)
    add("--eval",          False,   "evaluate only; needs no training data")
    add("--compare",       None,    "two score files of one trial list, the --eval_list: tell their difference, and "
                                    "whether it is more than chance", nargs=2, type=str)
    add("--report",        False,   "gather what is in --save_path into its report.html")
    add("--demo",          False,   "generate a small corpus of speech and train on it, in minutes on a CPU")

    group = parser.add_argument_group("training")
    add("--recipe",        "customary", "a bundle of settings, see below", choices=list(RECIPES))
    add("--finetune_margin", False, "large-margin fine-tuning of --initial_model, a bundle too, see below")
    add("--num_frames",    200,     "length of a crop in frames of 10 ms: num_frames*160+240 samples")
    add("--max_epoch",     80,      "passes over the training list")
    add("--batch_size",    400,     "crops per step, of all processes together")
    add("--optimizer",     "adam",  "adam with L2 penalty, adamw, or sgd with Nesterov's momentum 0.9",
                                    choices=list(OPTIMIZERS))
    add("--lr",            0.001,   "learning rate of the first epoch, or where --warmup leads to")
    add("--warmup",        0.0,     "epochs in which the learning rate rises from 0")
    add("--schedule",      "step",  "the learning rate falls by --lr_decay an epoch, or to --lr_final at the end: "
                                    "exponential, cosine", choices=["step", "exponential", "cosine"])
    add("--lr_decay",      0.97,    "factor on the learning rate from one epoch to the next")
    add("--lr_final",      1e-5,    "learning rate at the end, of --schedule exponential and cosine")
    add("--weight_decay",  2e-5,    "L2 penalty on all weights")
    add("--clip",          0.0,     "largest norm of a step's gradient; 0: any")
    add("--speed_perturb", False,   "speech 0.9 and 1.1 times as fast as two more speakers each")
    add("--ema",           0.0,     "evaluate also the weights' moving average, which keeps this share of itself in "
                                    "each step, say 0.999; 0: none")
    add("--average",       0,       "at the end evaluate also the mean of the models of the last so many epochs")
    add("--test_step",     1,       "evaluate, and keep a model, every so many epochs")
    add("--valid_speakers", 0,      "hold out so many training speakers: best.model is chosen on trials of theirs")
    add("--save_minutes",  15.0,    "write the state at least so often, to go on from after a crash; two are kept")
    add("--seed",          0,       "of weights, order, crops and augmentation")
    add("--tensorboard",   False,   "write what metrics.jsonl has for TensorBoard, too (pip install tensorboard)")

    group = parser.add_argument_group("evaluation (with --eval)")
    add("--as_norm",       False,   "judge also with the training mean subtracted, and with adaptive s-norm against a "
                                    "cohort of the training speakers (--train_list)")
    add("--calibrate",     False,   "--as_norm, and log-likelihood ratios, trained with quality measures on trials of "
                                    "the speakers that were held out of training")
    add("--cohort",        "",      "an .npz of embeddings to be the cohort instead (verify.py --embed)")
    add("--top_n",         300,     "of the cohort, the nearest so many count")

    group = parser.add_argument_group("model and loss")
    add("--C",             1024,    "channels of the network; published: 512 and 1024")
    add("--m",             0.2,     "margin of the AAM-softmax, radians")
    add("--margin_rise",   [0.0, 0.0], "epochs between which the margin rises from 0 to --m; 0 0: it is there from the "
                                    "beginning", nargs=2, type=float)
    add("--s",             30.0,    "scale of the AAM-softmax")
    add("--sub_centres",   1,       "class vectors of each speaker, of which the nearest counts")
    add("--top_k",         0,       "for each crop, so many of the other speakers' nearest come nearer by 0.06 rad")
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
    given = args.given | set(DEMO) if args.demo else args.given
    for name, value in bundle("finetune_margin" if args.finetune_margin else args.recipe, given, args).items():
        setattr(args, name, value)
    check_settings(args)
    if "save_path" not in args.given and (args.eval or args.compare):
        args.save_path = "exps/eval"  # never over an experiment's own scores
    return args


# ---- training --------------------------------------------------------------------------------------------------------


def train(args):
    device = distributed.together(pick_device, args)
    if args.amp == "auto":
        args.amp = "bf16" if multiplies_bf16(device) else "off"
    listing, tests, loader, perturb, augmentation, run = distributed.together(open_all, args, device)
    parts, rows = distributed.share_of_batch(args.batch_size, args.accumulate)
    network, optimizer, stop = distributed.parallel(run.network, device), run.optimizer, StopSignal()
    if args.compile:
        network = compiled(network)
    torch.backends.cudnn.benchmark = True  # all batches have one shape: worth a search for the fastest kernels
    run.begin(tests)
    print(
        f"{run.folder}: {describe(run.network.speaker_encoder)}, {device}{distributed.in_words()}, amp {args.amp}; "
        f"{len(listing)} utterances of {len(listing.speakers)} speakers, {loader.steps} steps of {args.batch_size} an "
        f"epoch; each utterance {' or '.join(augmentation.kinds)}{', at one of three speeds' if perturb else ''}"
    )
    if run.is_untrained() and tests:  # a baseline, and proof that evaluation will work when an epoch is over
        run.record({"epoch": 0}, run.evaluated(tests))

    while run.epoch <= args.max_epoch:
        network.train()
        augmentation.redraw(run.epoch)
        meter = Meter(args, run, loader)
        with stop.deferred():
            for step, waveform, label in meter.watch(loader.epoch(run.epoch, first_step=run.step)):
                steps_before = (run.epoch - 1) * loader.steps + step
                meter.margin = margin(args, steps_before, loader.steps)
                meter.learning_rate = learning_rate(args, steps_before, loader.steps)
                optimizer.param_groups[0]["lr"] = meter.learning_rate
                for first, crops, speakers in zip(parts, waveform.split(rows), label.split(rows)):
                    crops, speakers = to_device(crops, device), to_device(speakers, device)
                    if perturb:
                        crops, speakers = perturb(crops, speakers, run.epoch, step, first)
                    crops = augmentation(crops, run.epoch, step, first)
                    masks = augmentation.masks(rows, run.epoch, step, first)
                    with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                        loss, accuracy = network(crops, speakers, masks, to_device(torch.tensor(meter.margin), device))
                    (loss / args.accumulate).backward()
                    meter.add(loss, accuracy)
                norm = torch.nn.utils.clip_grad_norm_(network.parameters(), args.clip or math.inf)
                take_step(optimizer, meter.spoilt(norm, step))
                optimizer.zero_grad()
                run.after_step(step, loader.steps)
                if distributed.anyone(stop.requested or run.save_is_due()):
                    run.save_state(meter.sums())
                    if distributed.anyone(stop.requested):
                        stop.requested = stop.requested or signal.SIGTERM
                        break
            else:
                run.save_state(meter.sums())
        if run.epoch not in run.recorded():
            summary = meter.summary()
            print(log_line(summary, args))
            due = run.epoch % args.test_step == 0 or run.epoch == args.max_epoch
            run.record(summary, run.evaluated(tests) if due else {})
        run.next_epoch()
    more = "; a larger --max_epoch goes on from here" if can_go_further(args) else ""
    print(f"{run.folder}: {args.max_epoch} epochs done{more}{run.error_rates()}")


# ---- odds and ends ---------------------------------------------------------------------------------------------------


def pick_device(args):
    return choose_device(distributed.own_device(args.device))


def open_all(args, device):
    """All that training needs, checked before any long work: (list, tests, loader, perturbation, augmentation, run)."""
    listing, source, tests, held_out = *open_training_list(args), open_tests(args), []
    if args.valid_speakers:
        listing, held = hold_out(listing, args.valid_speakers)
        trials = make_trials(held, Path(args.save_path) / "scores" / f"{VALID}_trials.txt")
        tests[VALID], held_out = Test(trials, source), held.speakers
    parts, count = distributed.share_of_batch(args.batch_size, args.accumulate)
    rows = np.concatenate([np.arange(first, first + count) for first in parts])
    samples = args.num_frames * 160 + 240
    run = Run(args, listing, device, held_out)
    perturb = SpeedPerturbation(samples, args.n_class, args.seed).to(device) if args.speed_perturb else None
    pin = device.type == "cuda"  # memory from which the copy to the GPU runs beside the computation
    reads = perturb.reads if perturb else samples
    loader = CropLoader(listing, source, reads, args.batch_size, args.seed, args.n_cpu, pin, rows)
    augmentation = Augmentation(args.musan_path, args.rir_path, samples, args.bank_mb, args.seed, args.n_cpu).to(device)
    look_over(args, run.earlier)
    return listing, tests, loader, perturb, augmentation, run


def look_over(args, heard=()):
    """Say what would spoil the result before hours go into it, unless it is known."""
    if distributed.rank() == 0 and not args.no_check:
        stop_at_errors(quick_check(args, heard))


def evaluate_only(args):
    device = distributed.together(pick_device, args)
    encoder, tests, background = distributed.together(open_evaluation, args, device)
    print(f"{args.initial_model}: {describe(encoder.network)}, of {encoder.system.title}, on {device}")
    if background:
        background.learn()
    results = evaluate(encoder, tests, args, background)
    content = provenance(args, {path: test.trials.sha256 for path, test in zip(args.eval_list, tests.values())})
    content |= {"model": encoder.fingerprint(), "calibration": background and background.as_data(), "results": results}
    if distributed.rank() == 0:
        write_text(Path(args.save_path) / "results.json", json.dumps(content, indent=2) + "\n")
    print(f"the score of every trial: {args.save_path}/scores/; curves: {args.save_path}/det.png")


def open_evaluation(args, device):
    """(SpeakerEncoder, tests, Background or None) for --eval."""
    encoder = SpeakerEncoder.from_checkpoint(args.initial_model, device, args.system)
    take_width(args, encoder.network)
    tests, background = open_tests(args), Background(encoder, args) if args.as_norm or args.calibrate else None
    look_over(args, encoder.heard)
    return encoder, tests, background


def multiplies_bf16(device):
    """Whether this device has bf16 arithmetic that is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)


def use_demo_corpus(args):
    """Generate the demo corpus, if it is not there yet, and point the data flags to it."""
    if args.given & DATA_FLAGS:
        raise InputError(f"--demo brings its own data: leave out --{' --'.join(sorted(args.given & DATA_FLAGS))}")
    corpus = Path(args.save_path) / "corpus"
    distributed.first(make_demo, corpus)
    args.train_list, args.train_path = str(corpus / "train_list.txt"), str(corpus / "train/wav")
    args.eval_list, args.eval_path = [str(corpus / "trials.txt")], str(corpus / "eval/wav")
    args.musan_path, args.rir_path = str(corpus / "musan"), str(corpus / "rirs")


def carry_out(args):
    if args.demo:
        use_demo_corpus(args)
    if args.report:
        print(write_report(args.save_path))
    elif args.compare:
        compare_files(args)
    elif args.eval:
        evaluate_only(args)
    else:
        train(args)


def main():
    keep_memory()
    with distributed.connected():
        with distributed.first_complains():
            args = distributed.together(read_settings, sys.argv[1:])
        writes = not (args.compare or args.report)
        if writes:
            distributed.first(check_writable, args.save_path, "--save_path")
        with contextlib.ExitStack() as held:
            if writes:
                distributed.first(held.enter_context, only_run_in(args.save_path))
            try:
                return carry_out(args)
            except KeyboardInterrupt as interrupt:
                again = shlex.join(["python", *sys.argv]) if distributed.size() == 1 else "the same torchrun command"
                trains = writes and not args.eval and has_state(args.save_path)
                kept = f"; {args.save_path}/state.pt has everything up to when it was last saved" if trains else ""
                if distributed.rank() == 0:
                    print(f"\nstopped{kept}. To go on: {again}", file=sys.stderr)
                return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
            # Not in the except clause: what filled the memory is gone now.
            raise RunError(what_fits(args))


if __name__ == "__main__":
    run_command(main)
