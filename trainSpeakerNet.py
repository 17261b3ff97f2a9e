"""Train and evaluate an ECAPA-TDNN speaker encoder.

    python trainSpeakerNet.py --demo                                         train on generated speech, on any machine
    python trainSpeakerNet.py --save_path exps/exp1                          train on VoxCeleb2; again: resume
    python trainSpeakerNet.py --eval --initial_model FILE --eval_list A B    evaluate; with AS-norm: --as_norm
    torchrun --standalone --nproc_per_node=8 trainSpeakerNet.py ...          several GPUs; the batch stays the same
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

from corpora.audio import check_folder
from corpora.check import quick_check, stop_at_errors
from corpora.demo import demo_flags, make_demo
from corpora.lists import open_training_list
from corpora.make_lists import hold_out, make_trials
from dataLoader import Augmentation, CropLoader, SpeedPerturbation, copied_ahead, to_device
from evaluation.backend import ScoringBackend
from evaluation.records import Records, best_on_valid
from evaluation.scoring import VALID, TrialSet, evaluate, open_trial_sets
from inference.checkpoints import Pretrained, load_pretrained
from inference.encoder import SpeakerEncoder, choose_device
from inference.systems import PREFIX, SYSTEMS, build_network
from tools import InputError, Parser, count, keep_memory, rank, run_command, size, write_text
from training import distributed, settings
from training.log import logged, open_trackers
from training.meter import Meter, StopSignal, log_line, memory_help
from training.run import (
    OPTIMIZERS,
    Run,
    describe,
    make_network,
    maybe_compile,
    new_encoder,
    provenance,
    take_classifier,
    with_amp,
)
from training.state import has_state, load_state, only_run_in

# ---- settings: edit the paths here, or pass them as flags ------------------------------------------------------------


def build_parser():
    """The command line is the configuration: a flag a line with its default, its unit and its meaning."""
    parser = Parser(
        description=__doc__, usage="%(prog)s [flags]", allow_abbrev=False,
        epilog="Below 100,000 utterances other sizes are chosen and printed (docs/training.md#sizes).\n"
        "@FILE stands for the flags in a file such as training/strong.args.",
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
    add("--train_path",    "/data/voxceleb2/wav",               "folder of its paths, or a pack of it (prepareData.py "
                                                                "--pack)")
    add("--eval_list",     ["/data/voxceleb1/veri_test2.txt"],  "trial lists, lines <1|0> <enrol path> <test path>; "
                                                                "without a value: no evaluation", nargs="*", type=str)
    add("--eval_path",     "/data/voxceleb1/wav",               "folder of their paths")
    add("--musan_path",    "/data/musan",                       "MUSAN; '' for none")
    add("--rir_path",      "/data/RIRS_NOISES/simulated_rirs",  "room impulse responses; '' for none")
    add("--bank_mb",       512.0,   "memory of each process for noises and responses, MB; others in each epoch")
    add("--paths_anywhere", False,  "allow absolute paths and .. in lists")
    add("--no_check",      False,   "skip the quick check of lists and audio (prepareData.py --check is the full one)")

    group = parser.add_argument_group("what to do")
    add("--save_path",     "exps/exp1", "folder for all output; with --eval: exps/eval")
    add("--initial_model", "",      "start from this model; with --eval: evaluate it. Ours, or the file, folder or "
                                    "name of a published system (docs/use.md)")
    add("--initial_classifier", False, "take over that model's classifier, too: its speakers are those of --train_list "
                                    "in sorted order, which a file without their names cannot tell")
    add("--system",        None,    "the system of that model, where the file does not tell", choices=list(SYSTEMS),
                                    type=str)
    add("--eval",          False,   "evaluate only; needs no training data")
    add("--demo",          False,   "generate a small corpus of speech and train on it, in minutes on a CPU")

    group = parser.add_argument_group("training")
    add("--recipe",        "customary", "customary: these defaults, TaoRuijie's, with smaller sizes for a small list; "
                                    "strong: training/strong.args or, below ten million crops, strong_small.args",
                                    choices=["customary", "strong"])
    add("--finetune_margin", False, "large-margin fine-tuning of --initial_model: training/finetune_margin.args, "
                                    "scaled likewise")
    add("--num_frames",    200,     "length of a crop in frames of 10 ms: num_frames*160+240 samples")
    add("--max_epoch",     80,      "passes over the training list")
    add("--batch_size",    400,     "crops per step, of all processes together")
    add("--optimizer",     "adam",  "adam with L2 penalty, adamw, or sgd with Nesterov momentum 0.9",
                                    choices=list(OPTIMIZERS))
    add("--lr",            0.001,   "learning rate of the first epoch, or the one that --warmup leads to")
    add("--warmup",        0.0,     "epochs in which the learning rate rises linearly from 0")
    add("--schedule",      "step",  "step: times --lr_decay each epoch; exponential, cosine: to --lr_final at the end",
                                    choices=["step", "exponential", "cosine"])
    add("--lr_decay",      0.97,    "factor on the learning rate from one epoch to the next")
    add("--lr_final",      1e-5,    "learning rate at the end of --schedule exponential and cosine")
    add("--weight_decay",  2e-5,    "L2 penalty on all weights")
    add("--clip",          0.0,     "largest gradient norm of a step; 0: no clipping")
    add("--freeze_bn",     "auto",  "batch norm keeps its running statistics, as in evaluation; auto: in fine-tuning "
                                    "(--initial_model, no recipe) on fewer than 100,000 utterances",
                                    choices=["auto", "on", "off"])
    add("--speed_perturb", False,   "speech at 0.9 and 1.1 times its speed, as further speakers")
    add("--average",       0,       "at the end evaluate also the mean of the models of the last N epochs; 0: none, "
                                    "but in fine-tuning (no recipe) the mean of the weights before and after")
    add("--test_step",     1,       "evaluate, and keep a model, every N epochs")
    add("--valid_speakers", 0,      "hold out N training speakers: best.model is chosen on trials of them")
    add("--save_minutes",  15.0,    "save the training state at least this often, to resume after a crash")
    add("--seed",          0,       "of weights, order, crops and augmentation")
    add("--tensorboard",   False,   "write the numbers of metrics.jsonl for TensorBoard, too (pip install tensorboard)")
    add("--wandb",         False,   "send them to Weights & Biases, too (pip install wandb); WANDB_MODE=offline: keep")

    group = parser.add_argument_group("evaluation (with --eval)")
    add("--as_norm",       False,   "also score with the training mean subtracted, and with adaptive s-norm against a "
                                    "cohort of the training speakers (--train_list)")
    add("--calibrate",     False,   "--as_norm, and log-likelihood ratios by logistic regression on trials of held-out "
                                    "training speakers, with quality measures where these help")
    add("--cohort",        "",      "an .npz of embeddings as the cohort instead (verify.py --embed)")
    add("--top_n",         300,     "highest cohort scores that AS-norm uses")

    group = parser.add_argument_group("model and loss")
    add("--C",             1024,    "channels of the network; published: 512 and 1024")
    add("--keep_spectrum", False,   "subtract only the level from the features, not each band's mean: for few speakers")
    add("--m",             0.2,     "margin of the AAM-softmax, radians")
    add("--margin_rise",   [0.0, 0.0], "epochs between which the margin rises from 0 to --m; 0 0: always --m", nargs=2,
                                    type=float)
    add("--s",             30.0,    "scale of the AAM-softmax")
    add("--sub_centres",   1,       "class vectors (sub-centres) of each speaker, of which the nearest counts")
    add("--top_k",         0,       "inter-top-k: 0.06 rad penalty on the k closest wrong classes; 0: none")
    add("--n_class",       None,    "number of speakers; None: as many as the training list has", type=int)

    group = parser.add_argument_group("machine")
    add("--n_cpu",         4,       "threads of each process that read audio")
    add("--device",        "auto",  "auto (a CUDA GPU, else the CPU), cpu, cuda, cuda:1, mps, ...")
    add("--amp",           "auto",  "bf16 mixed precision; auto: where the hardware multiplies it (GPUs since Ampere, "
                                    "CPUs with AMX or AVX512_BF16). Front end, statistics of the pooling, loss and "
                                    "evaluation are always float32",
                                    choices=["auto", "bf16", "off"])
    add("--compile",       False,   "torch.compile also for less than 100,000 crops, from where on it is the default. "
                                    "Takes a minute at the start")
    add("--no_compile",    False,   "never torch.compile")
    add("--accumulate",    1,       "compute a batch in N parts, where memory is short; batch norm then sees the parts")
    add("--sync_bn",       False,   "several GPUs: batch norm over the whole batch (nn.SyncBatchNorm)")
    # fmt: on
    return parser


DEMO = {"save_path": "exps/demo", "C": 64, "batch_size": 64, "max_epoch": 8, "test_step": 4, "n_cpu": 2}


# ---- schedules: pure functions of the step (0, 1, ...), counted over the whole run -----------------------------------


def learning_rate(args, step, steps_per_epoch):
    """The learning rate of a step, by args.schedule, times a linear ramp to 1 over the first ``warmup`` epochs.

    step: lr * lr_decay^epoch; exponential, cosine (Loshchilov and Hutter, ICLR 2017): from lr to lr_final at max_epoch.
    """
    done = step / (args.max_epoch * steps_per_epoch)
    if args.schedule == "step":
        rate = args.lr * args.lr_decay ** (step // steps_per_epoch)
    elif args.schedule == "exponential":
        rate = args.lr * (args.lr_final / args.lr) ** done
    elif args.schedule == "cosine":
        rate = args.lr_final + (args.lr - args.lr_final) * (1 + math.cos(math.pi * done)) / 2
    warmup = args.warmup * steps_per_epoch
    return rate * step / warmup if step < warmup else rate


def margin_at(args, step, steps_per_epoch):
    """The margin of a step in radians: 0 before the first epoch of args.margin_rise, m after the second; 0 0: always m.

    Between them the gap to m shrinks exponentially, a thousandfold in all, as in wespeaker.
    """
    start, end = args.margin_rise
    epochs = step / steps_per_epoch
    if epochs >= end:
        return args.m
    if epochs <= start:
        return 0.0
    return args.m * (1 - 0.001 ** ((epochs - start) / (end - start)))


# ---- start: scratch | resume | pretrained ----------------------------------------------------------------------------


def start(args, state, train_list, source, held, device):
    """(Run, Records, settings with what data and model decide). state: of the run to resume; None: it is a new one."""
    args, initial = settings.with_classes(args, train_list), None
    torch.manual_seed(args.seed)
    if state:  # resume
        if state["speakers"] != train_list.speakers or state["train_list_sha256"] != train_list.sha256:
            raise InputError(f"{args.save_path} was started with a --train_list of other content: {settings.RESUME}")
        weights = {name.removeprefix(PREFIX): weight for name, weight in state["weights"].items()}
        encoder, earlier = build_network(weights, args.system), state.get("earlier_speakers", [])
    elif args.initial_model:  # pretrained
        initial = load_pretrained(args.initial_model, args.system)
        args = settings.of_pretrained_run(args, initial, train_list, held.speaker_names())
        encoder, earlier = initial.network, initial.trained_on()
    else:  # scratch
        args = args.replace(system="ours")
        encoder, earlier = new_encoder(args), []
    stop_at_errors(quick_check(args, earlier))
    network = make_network(args, encoder, device)
    if initial:
        print(f"{args.initial_model}: took its {take_classifier(network, initial, train_list, source, args)}")
    if args.sync_bn:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    run = Run(args, network, {
        "speakers": train_list.speakers, "valid_speakers": held.speakers, "earlier_speakers": earlier,
        "trained_on": sorted({*earlier, *train_list.speaker_names()}), "train_list_sha256": train_list.sha256,
    })  # fmt: skip
    records = Records(run.folder, resumed=state is not None)
    if state:
        run.resume(state)
        if args.max_epoch not in records.epochs():
            print(f"{run.folder}: resuming after step {run.step} of epoch {run.epoch}")
    return run, records, args


# ---- training --------------------------------------------------------------------------------------------------------


def train_step(args, network, optimizer, augmentation, position, waveform, label, lr, margin):
    """One step on a batch of int16 crops: (tensor [loss, accuracy in %] on the device, whether the gradient is finite).

    position: (epoch, step), which decides the augmentation; margin: in radians. Of several processes each has its own
    rows of the batch, and --accumulate takes them in parts.
    """
    device = next(network.parameters()).device
    margin = to_device(torch.tensor(margin), device)  # as a tensor, torch.compile compiles once for all margins
    optimizer.param_groups[0]["lr"] = lr
    measured = torch.zeros(2, device=device)
    firsts, rows = distributed.micro_batches(args.batch_size, args.accumulate)
    for first, crops, speakers in zip(firsts, waveform.split(rows), label.split(rows)):
        distributed.average_gradients(network, first == firsts[-1])
        crops, speakers = to_device(crops, device), to_device(speakers, device)
        crops, speakers, masks = augmentation(crops, speakers, *position, first)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
            loss, accuracy = network(crops, speakers, masks, margin)
        (loss / args.accumulate).backward()
        measured += torch.stack([loss.detach(), accuracy]) / args.accumulate
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), args.clip or math.inf)
    finite = bool(norm.isfinite())  # a CPU-GPU sync point; see docs/speed.md for what it costs
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return measured, finite


def train(args):
    device = choose_device(distributed.own_device(args.device))
    args, state = with_amp(args, device), load_state(args.save_path)
    if state:
        args = settings.of_resumed_run(args, state)
    train_list, source, trial_sets, held = open_data(args)
    if not state:
        args = settings.with_sizes(build_parser(), args, train_list, device)
    distributed.check(args, device, len(train_list))
    run, records, args = start(args, state, train_list, source, held, device)
    if args.max_epoch in records.epochs():
        records.require(hashes_of(trial_sets, args))
        return print_end(run, records)
    loader, augmentation = make_loader(args, train_list, source, device)
    lists = {args.train_list: train_list.sha256, **hashes_of(trial_sets, args)}
    distributed.check_same((run.epoch, run.step, lists), "--save_path and the lists must lie on a disk they all see")
    records.begin(provenance(args, lists), trial_sets, open_trackers)
    crops = args.max_epoch * loader.steps * args.batch_size
    plain, optimizer = distributed.parallel(run.network, device), run.optimizer
    network = maybe_compile(args, plain, device, crops)
    torch.backends.cudnn.benchmark = True  # all batches have one shape: worth a search for the fastest kernels
    print(
        f"{run.folder}: {describe(run.network.speaker_encoder)}, {device}{f' x {size()} processes' * (size() > 1)}, "
        f"amp {args.amp}{', compiled' * (network is not plain)}; "
        f"{count(len(train_list), 'utterance')} of {len(train_list.speakers)} speakers, "
        f"{count(loader.steps, 'step')} of {args.batch_size} an epoch; augmentation: {', '.join(augmentation.kinds)}"
        f"{', three speeds' * args.speed_perturb}"
    )
    if run.saved_at is None:
        run.save(None)  # from now on the folder is known by its settings
    if (trial_sets or args.initial_model) and not records.epochs():  # a baseline, and proof that evaluation will work
        records.add({"epoch": 0, "initial_model": args.initial_model}, evaluate_run(run, records, trial_sets))

    meter = Meter(run, loader)
    while run.epoch <= args.max_epoch:
        network.train()
        if args.freeze_bn == "on":
            for norm in distributed.batch_norms(run.network):
                norm.eval()  # uses its running statistics and keeps them, until the next network.train()
        augmentation.redraw(run.epoch)
        with StopSignal() as stop, memory_help(args):
            batches = copied_ahead(loader.epoch(run.epoch, first_step=run.step), device)
            for step, waveform, label in meter.watch(batches):
                steps_done = (run.epoch - 1) * loader.steps + step
                lr, margin = learning_rate(args, steps_done, loader.steps), margin_at(args, steps_done, loader.steps)
                batch = (run.epoch, step), waveform, label
                measured, finite = train_step(args, network, optimizer, augmentation, *batch, lr, margin)
                run.step = step + 1
                if not finite:
                    distributed.reset_broken_statistics(run.network)
                meter.add(step, lr, margin, measured if finite else None)
                # GPUs would wait for each other's processes: they are asked every tenth step only.
                asked = device.type != "cuda" or size() == 1 or run.step % 10 == 0 or run.step == loader.steps
                if asked and distributed.any_rank(stop.requested or run.save_is_due()):
                    run.save(meter.sums())
                    if distributed.any_rank(stop.requested):
                        raise KeyboardInterrupt(stop.requested or signal.SIGTERM)
        run.save(meter.sums())
        if run.epoch not in records.epochs():
            summary = meter.summary()
            print(log_line(summary, args))
            due = run.epoch % args.test_step == 0 or run.epoch == args.max_epoch
            results = evaluate_run(run, records, trial_sets) if due else {}
            if not due and run.epoch > args.max_epoch - args.average:
                run.save_model("model", run.network, {})  # for the average at the end
            records.add(summary, results)
        run.epoch, run.step, run.sums = run.epoch + 1, 0, None
    print_end(run, records)


def print_end(run, records):
    """Print what the run came to, and what to do next."""
    args, folder = run.args, run.folder
    more = "; a larger --max_epoch continues from here" if settings.schedule_is_open(args) else ""
    print(f"{folder}: {count(args.max_epoch, 'epoch')} done{more}{records.summary()}")
    print(f"curves: {folder}/training.png; a page of all results: python -m evaluation.report {folder}")
    if args.demo:
        files = [f"{args.eval_path}/id20001/session{number}/00001.wav" for number in (1, 2)]
        command = ["python", "verify.py", *files, "--model", str(run.model_file("model", args.max_epoch))]
        print(f"compare two recordings: {shlex.join(command)}")


def open_data(args):
    """Training list, its Folder or Pack, {name: TrialSet} and the list of held-out speakers, checked on the disk."""
    train_list, source = open_training_list(args)
    for flag in ("musan_path", "rir_path"):  # before a classifier of mean embeddings, which takes a while
        if getattr(args, flag):
            check_folder(getattr(args, flag), f"--{flag}", "; '' trains without")
    trial_sets, held = open_trial_sets(args), train_list.subset(np.arange(0))
    if args.valid_speakers:
        train_list, held = hold_out(train_list, args.valid_speakers)
        trials = make_trials(held, Path(args.save_path) / "scores" / f"{VALID}_trials.txt")
        trial_sets[VALID] = TrialSet(trials, source)
    return train_list, source, trial_sets, held


def make_loader(args, train_list, source, device):
    """The CropLoader of this process's rows of each batch, and the Augmentation of their crops."""
    firsts, count = distributed.micro_batches(args.batch_size, args.accumulate)
    rows = np.concatenate([np.arange(first, first + count) for first in firsts])
    samples = args.num_frames * 160 + 240
    speed = SpeedPerturbation(samples, args.n_class, args.seed) if args.speed_perturb else None
    augmentation = Augmentation(
        args.musan_path, args.rir_path, samples, args.bank_mb, args.seed, args.n_cpu, speed
    ).to(device)
    pin = device.type == "cuda"  # memory from which the copy to the GPU runs beside the computation
    loader = CropLoader(
        train_list, source, augmentation.samples_needed, args.batch_size, args.seed, args.n_cpu, pin, rows
    )
    return loader, augmentation


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate_run(run, records, trial_sets):
    """{"model": results, "average": results} of what there is now; the models are kept, but for an untrained one."""
    results, best = {}, best_on_valid(records.history)
    lowest = best[2][VALID]["eer"] if best else math.inf
    for kind, network in run.networks().items():
        about = Pretrained(run.args.system, network.speaker_encoder, all_speakers=run.about["trained_on"])
        encoder = SpeakerEncoder(network.speaker_encoder, run.device, about)
        results[kind] = evaluate(encoder, trial_sets, run.args, kind="" if kind == "model" else kind)
        if run.step or run.args.initial_model:
            best = VALID in results[kind] and results[kind][VALID]["eer"] < lowest
            lowest = results[kind][VALID]["eer"] if best else lowest
            run.save_model(kind, network, results[kind], best)
    return results


def hashes_of(trial_sets, args):
    """{path: SHA-256} of the trial lists."""
    return {path: trial_set.trials.sha256 for path, trial_set in zip(args.eval_list, trial_sets.values())}


def evaluate_only(args):
    device = choose_device(distributed.own_device(args.device))
    encoder = SpeakerEncoder.from_checkpoint(args.initial_model, device, args.system)
    args = settings.with_width(args, encoder.network)
    trial_sets = open_trial_sets(args)
    backend = ScoringBackend(encoder, args) if args.as_norm or args.calibrate else None
    overlaps = backend.check(trial_sets) if backend and rank() == 0 and not args.no_check else []
    stop_at_errors(quick_check(args, encoder.trained_on) + overlaps)
    print(f"{args.initial_model}: {describe(encoder.network)}, of {encoder.system.title}, on {device}")
    if backend:
        backend.learn()
    results = evaluate(encoder, trial_sets, args, backend)
    content = provenance(args, hashes_of(trial_sets, args))
    content |= {"model": encoder.fingerprint(), "calibration": backend and backend.as_data(), "results": results}
    if rank() == 0:
        write_text(Path(args.save_path) / "results.json", json.dumps(content, indent=2) + "\n")
    print(f"the score of every trial: {args.save_path}/scores/; curves: {args.save_path}/det.png")


# ---- command ---------------------------------------------------------------------------------------------------------


def main():
    keep_memory()
    args = settings.read_settings(build_parser(), sys.argv[1:], DEMO)
    with distributed.connected(), contextlib.ExitStack() as lock:
        distributed.first(lambda: lock.enter_context(only_run_in(args.save_path)))
        distributed.first(lambda: lock.enter_context(logged(Path(args.save_path) / "log.txt")))
        try:
            if args.demo:
                distributed.first(make_demo, Path(args.save_path) / "corpus")
                args = args.replace(**demo_flags(Path(args.save_path) / "corpus"))
            with memory_help():
                (evaluate_only if args.eval else train)(args)
        except KeyboardInterrupt as interrupt:
            command = shlex.join(["python", *sys.argv]) if size() == 1 else "the same torchrun command"
            more = f"; to resume from {args.save_path}/state.pt: {command}"
            if rank() == 0:
                print(f"\nstopped{more if not args.eval and has_state(args.save_path) else ''}", file=sys.stderr)
            return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


if __name__ == "__main__":
    run_command(main)
