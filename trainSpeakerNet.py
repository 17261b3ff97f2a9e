"""Train and evaluate an ECAPA-TDNN speaker encoder.

    python trainSpeakerNet.py --demo                                         train on generated speech, on any machine
    python trainSpeakerNet.py --save_path exps/exp1                          train on VoxCeleb2; again: continue
    python trainSpeakerNet.py --eval --initial_model FILE --eval_list A B    evaluate
"""

import argparse
import contextlib
import ctypes
import json
import math
import platform
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataLoader import Augmentation, CropLoader, TrainingList, TrialList, check_files, torch_stream
from loss import AAMsoftmax
from model import ECAPA_TDNN
from prepareData import make_demo
from tools import (
    InputError,
    RunError,
    draw_det,
    draw_training,
    equal_error_rate,
    load_checkpoint,
    min_dcf,
    progress_bar,
    read_history,
    run_command,
    save_checkpoint,
    sha256,
    write_scores,
    write_text,
)
from verify import SpeakerEncoder, choose_device, score_trials

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
    add("--train_path",    "/data/voxceleb2/wav",               "folder that its paths start from")
    add("--eval_list",     ["/data/voxceleb1/veri_test2.txt"],  "trial lists, lines <1|0> <enrol path> <test path>; "
                                                                "none: train without evaluating", nargs="*", type=str)
    add("--eval_path",     "/data/voxceleb1/wav",               "folder that their paths start from")
    add("--musan_path",    "/data/musan",                       "MUSAN, whole or split into pieces; '' for none")
    add("--rir_path",      "/data/RIRS_NOISES/simulated_rirs",  "room responses; '' for none")
    add("--bank_mb",       512.0,   "memory for noises and responses, MB; moves on every epoch, so all take part")

    group = parser.add_argument_group("what to do")
    add("--save_path",     "exps/exp1", "folder for everything that is written; with --eval: exps/eval")
    add("--initial_model", "",      "start from this model's weights; with --eval: the model to evaluate")
    add("--eval",          False,   "evaluate only; needs no training data")
    add("--demo",          False,   "generate a small corpus of speech and train on it, in minutes on a CPU")

    group = parser.add_argument_group("training")
    add("--num_frames",    200,     "length of a crop in frames of 10 ms: num_frames*160+240 samples")
    add("--max_epoch",     80,      "passes over the training list")
    add("--batch_size",    400,     "crops per step")
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
    add("--n_cpu",         4,       "threads that read audio")
    add("--device",        "auto",  "auto (a CUDA GPU, else Apple's, else the CPU), cpu, cuda, cuda:1, mps, ...")
    add("--amp",           "auto",  "mixed precision: bf16 halves memory traffic and is faster where the hardware "
                                    "multiplies it (GPUs since Ampere, CPUs with AMX), there auto takes it; front end, "
                                    "pooling, loss and evaluation are always float32", choices=["auto", "bf16", "off"])
    # fmt: on
    return parser


DATA_FLAGS = {"train_list", "train_path", "eval_list", "eval_path", "musan_path", "rir_path"}

# What a continued run may do otherwise than it began: where things lie, how often it looks, how long it goes on.
FREE_TO_CHANGE = DATA_FLAGS | {"save_path", "max_epoch", "test_step", "n_cpu", "device"}

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
    if args.eval and "save_path" not in args.given:
        args.save_path = "exps/eval"  # never over an experiment's own scores
    least = {"num_frames": 2, "max_epoch": 1, "batch_size": 2, "test_step": 1, "n_cpu": 1, "n_class": 1, "seed": 0,
             "lr_decay": 0, "weight_decay": 0, "m": 0, "bank_mb": 1}  # batch norm has no statistics in a batch of 1
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value < math.inf:
            raise InputError(f"--{name} must be at least {minimum}, not {value}")
    for name in ("lr", "s"):
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name} must be more than 0, not {getattr(args, name)}")
    if args.C < 8 or args.C % 8:
        raise InputError(f"--C must be a multiple of 8, not {args.C}")
    return args


# ---- schedule --------------------------------------------------------------------------------------------------------


def learning_rate(args, step, steps_per_epoch):
    """A pure function of the step (0, 1, ...), counted over the whole run."""
    return args.lr * args.lr_decay ** (step // steps_per_epoch)


# ---- training --------------------------------------------------------------------------------------------------------


def train(args):
    device = choose_device(args.device)
    use_bf16 = args.amp == "bf16" or (args.amp == "auto" and multiplies_bf16(device))
    listing, trial_lists = open_training_list(args), open_trial_lists(args)
    samples = args.num_frames * 160 + 240
    pin = device.type == "cuda"  # memory from which the copy to the GPU runs beside the computation
    loader = CropLoader(listing, args.train_path, samples, args.batch_size, args.seed, args.n_cpu, pin)
    augmentation = Augmentation(args.musan_path, args.rir_path, samples, args.bank_mb, args.seed, args.n_cpu).to(device)
    run = Run(args, listing, device)
    encoder, classifier, optimizer, stop = run.encoder, run.classifier, run.optimizer, StopSignal()
    millions = sum(weight.numel() for weight in encoder.parameters()) / 1e6
    print(
        f"{run.folder}: ECAPA-TDNN, C={args.C}, {millions:.1f} M weights, {device}{', bf16' if use_bf16 else ''}; "
        f"{len(listing)} utterances of {len(listing.speakers)} speakers, {loader.steps} steps of {args.batch_size} an "
        f"epoch; each utterance {', '.join(augmentation.kinds[:-1])} or {augmentation.kinds[-1]}"
    )
    if run.is_untrained() and trial_lists:  # a baseline, and proof that evaluation will work when an epoch is over
        run.record({"epoch": 0}, evaluate(SpeakerEncoder(encoder, device), trial_lists, args))

    while run.epoch <= args.max_epoch:
        encoder.train()
        augmentation.redraw(run.epoch)
        meter = Meter(args, run, loader)
        with stop.deferred():
            for step, waveform, label in meter.watch(loader.epoch(run.epoch, first_step=run.step)):
                rate = learning_rate(args, (run.epoch - 1) * loader.steps + step, loader.steps)
                optimizer.param_groups[0]["lr"] = rate
                waveform = augmentation(waveform.to(device, non_blocking=True), run.epoch, step)
                masks = torch_stream(args.seed, "specaugment", run.epoch, step)
                with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16):
                    embedding = encoder(waveform, aug=True, generator=masks)
                    loss, accuracy = classifier(embedding, label.to(device, non_blocking=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step = step + 1
                meter.add(loss, accuracy, rate)
                if stop.requested:
                    break
            run.save_state(meter.sums())
        if run.epoch not in run.recorded():
            summary = meter.summary()
            print(log_line(summary, args))
            due = run.epoch % args.test_step == 0 or run.epoch == args.max_epoch
            run.record(summary, evaluate(SpeakerEncoder(encoder, device), trial_lists, args) if due else None)
        run.next_epoch()
    print(f"{run.folder}: {args.max_epoch} epochs done; --max_epoch with a larger number goes on from here")


class Run:
    """What a training run is made of and leaves behind: weights, optimizer, position; its folder and its records.

    ``epoch`` (1, 2, ...) and ``step`` (0, 1, ...) are what comes next; ``sums`` are the meter's up to there. Random
    numbers have no state to keep: they are functions of the position (see dataLoader).
    """

    def __init__(self, args, listing, device):
        self.args = args
        self.folder = Path(args.save_path)
        self.state_file = self.folder / "state.pt"
        self.speakers = listing.speakers
        self.lists = {path: sha256(path) for path in [args.train_list, *args.eval_list]}
        self.epoch, self.step, self.sums = 1, 0, None
        state = load_checkpoint(self.state_file, "training state") if self.state_file.exists() else None
        initial = load_checkpoint(args.initial_model, "model") if args.initial_model and not state else None
        if args.initial_model:
            take_width(args, state or initial)
        if args.n_class is None:
            args.n_class = len(self.speakers)
        elif args.n_class < len(self.speakers):
            raise InputError(f"--n_class {args.n_class}, but {listing.path} has {len(self.speakers)} speakers")
        if state:
            self._refuse_other_settings(state)

        torch.manual_seed(args.seed)
        self.encoder = ECAPA_TDNN(C=args.C)
        self.classifier = AAMsoftmax(args.n_class, m=args.m, s=args.s)
        # The names under which the recipe's checkpoints keep the two.
        self.network = torch.nn.ModuleDict({"speaker_encoder": self.encoder, "speaker_loss": self.classifier})
        self.network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=args.lr, weight_decay=args.weight_decay)
        self.history = read_history(self.folder / "metrics.jsonl")
        if state:
            self.network.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step, self.sums = state["epoch"], state["step"], state["sums"]
            print(f"{self.folder}: going on after step {self.step} of epoch {self.epoch}")
        elif self.history:
            raise InputError(
                f"--save_path {self.folder} has results of a run, but no state.pt to go on from: choose another"
            )
        elif initial:
            self._take_weights(initial)
        settings = {"settings": self._settings(), "sha256": self.lists, "versions": versions(), "command": sys.argv}
        write_text(self.folder / "settings.json", json.dumps(settings, indent=2) + "\n")
        if not state:
            self.save_state(None)

    def _settings(self):
        return {name: value for name, value in vars(self.args).items() if name != "given"}

    def _refuse_other_settings(self, state):
        mend = "to continue it give the same, for another run choose another --save_path"
        for name, before in state["settings"].items():
            now = getattr(self.args, name, None)
            if name not in FREE_TO_CHANGE and now != before:
                raise InputError(f"{self.folder} was begun with --{name} {before}, not {now}: {mend}")
        if state["speakers"] != self.speakers or state["train_list_sha256"] != self.lists[self.args.train_list]:
            raise InputError(f"{self.folder} was begun with a --train_list of other content: {mend}")

    def _take_weights(self, initial):
        """Start from a model: its encoder always, its classifier if it tells the same speakers apart."""
        weights = initial["weights"]
        same = initial["speakers"] == self.speakers and len(weights["speaker_loss.weight"]) == self.args.n_class
        if not same:
            weights = {**weights, "speaker_loss.weight": self.network.state_dict()["speaker_loss.weight"]}
        self.network.load_state_dict(weights)
        print(f"{self.args.initial_model}: took the encoder" + (
            " and the classifier" if same
            else f"; the classifier starts anew, for {self.args.n_class} speakers other than the model's own"
        ))  # fmt: skip

    def _contents(self, kind):
        return {
            "kind": kind, "settings": self._settings(), "versions": versions(), "epoch": self.epoch,
            "train_list_sha256": self.lists[self.args.train_list], "speakers": self.speakers,
            "weights": self.network.state_dict(),
        }  # fmt: skip

    def save_state(self, sums):
        """Write all that is needed to go on from (epoch, step) exactly."""
        self.sums = sums
        rest = {"step": self.step, "sums": sums, "optimizer": self.optimizer.state_dict()}
        save_checkpoint(self.state_file, {**self._contents("training state"), **rest})

    def next_epoch(self):
        self.epoch, self.step, self.sums = self.epoch + 1, 0, None

    def is_untrained(self):
        return self.epoch == 1 and self.step == 0 and 0 not in self.recorded()

    def recorded(self):
        """The epochs that are on record."""
        return {record["epoch"] for record in self.history}

    def record(self, summary, results):
        """Put an epoch on record: its model if it was evaluated (results not None), metrics.jsonl, score.txt, the plot.

        metrics.jsonl is what counts: once the epoch is in there, a continued run will not evaluate it again.
        """
        record = {**summary, "lists": results or {}}
        if results is not None and record["epoch"] > 0:
            model = {**self._contents("model"), "scores": results}
            save_checkpoint(self.folder / "model" / f"model_{self.epoch:04d}.model", model)
            earlier = [main_eer(before) for before in self.history if before["epoch"] > 0]
            if results and main_eer(record) < min(earlier, default=math.inf):
                save_checkpoint(self.folder / "model" / "best.model", model)
        self.history.append(record)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in self.history))
        write_text(self.folder / "score.txt", "".join(score_lines(self.history)))
        draw_training(self.folder / "training.png", self.history)


class Meter:
    """Loss, accuracy, throughput and time of an epoch: a progress bar while it runs, a summary when it is over.

    Loss and accuracy are summed on the device and looked at once a second, so that the device is not waited for every
    step. A loss that is not finite raises RunError then, or at the end of the epoch.
    """

    def __init__(self, args, run, loader):
        self.args, self.run, self.loader = args, run, loader
        before = run.sums or {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0, "waiting": 0.0}
        self.total = torch.tensor([before["loss"], before["accuracy"]], device=run.classifier.weight.device)
        self.seconds_before, self.waiting = before["seconds"], before["waiting"]
        self.began = self.looked = time.perf_counter()
        self.rate = None

    def watch(self, batches):
        """Pass batches on, noting how long each was waited for."""
        label = f"epoch {self.run.epoch}/{self.args.max_epoch}"
        with progress_bar(total=self.loader.steps, initial=self.run.step, desc=label, unit="step") as self.bar:
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                self.waiting += time.perf_counter() - asked
                if batch is None:
                    return
                yield batch
                self.bar.update()

    def add(self, loss, accuracy, rate):
        self.total += torch.stack([loss.detach(), accuracy])
        self.rate = rate
        if time.perf_counter() - self.looked > 1.0:
            self.looked = time.perf_counter()
            now = self.summary()
            self.bar.set_postfix_str(
                f"loss {now['loss']:.3f}, acc {now['accuracy']:.1f}%, {now['utterances_per_second']:.0f} utt/s, "
                f"waiting {now['waiting_percent']:.0f}%, {clock(now['seconds_left'])} left"
            )

    def sums(self):
        """What a state file needs to go on measuring this epoch."""
        loss, accuracy = self.total.tolist()  # waits for the device
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in epoch {self.run.epoch}, at step {self.run.step} or shortly before: try a "
                f"smaller --lr or --amp off; {self.run.state_file} still has the weights from before this epoch"
            )
        seconds = self.seconds_before + time.perf_counter() - self.began
        return {"loss": loss, "accuracy": accuracy, "seconds": seconds, "waiting": self.waiting}

    def summary(self):
        """The record of this epoch up to now, but for its evaluation."""
        sums, run = self.sums(), self.run
        steps_left = (self.args.max_epoch - run.epoch + 1) * self.loader.steps - run.step
        return {
            "epoch": run.epoch,
            "step": (run.epoch - 1) * self.loader.steps + run.step,
            "loss": sums["loss"] / run.step,
            "accuracy": sums["accuracy"] / run.step,
            "learning_rate": learning_rate(self.args, (run.epoch - 1) * self.loader.steps, self.loader.steps),
            "margin": self.args.m,
            "utterances_per_second": run.step * self.args.batch_size / sums["seconds"],
            "waiting_percent": 100 * sums["waiting"] / sums["seconds"],
            "seconds": sums["seconds"],
            "seconds_left": steps_left * sums["seconds"] / run.step,
            "unreadable_files": len(self.loader.bad),
        }


class StopSignal:
    """Ctrl-C and SIGTERM as KeyboardInterrupt; inside ``deferred()`` only once the block has come to its end."""

    def __init__(self):
        self.requested = None
        self.waits = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number, frame):
        patience = self.waits and not self.requested  # a second signal does not wait
        self.requested = number
        if not patience:
            raise KeyboardInterrupt(number)
        tqdm.write("stopping after this step; once more stops at once", file=sys.stderr)

    @contextlib.contextmanager
    def deferred(self):
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        if self.requested:
            raise KeyboardInterrupt(self.requested)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(encoder, trial_lists, args):
    """Score every trial of the lists {name: TrialList}, each utterance embedded once for all of them.

    Prints and returns {name: {"eer", "min_dcf_0.05", ...}}; writes <save_path>/scores/<name>.txt and det.png.
    """
    began = time.perf_counter()
    files = [file for trials in trial_lists.values() for column in (trials.enrol, trials.test) for file in column]
    vectors = encoder.embed_for_scoring(files, args.eval_path, args.n_cpu)
    results, curves = {}, {}
    for name, trials in trial_lists.items():
        scores = score_trials(trials, vectors)
        eer, threshold = equal_error_rate(scores, trials.label)
        results[name] = {
            "eer": eer,
            "eer_threshold": threshold,
            "min_dcf_0.05": min_dcf(scores, trials.label, p_target=0.05)[0],
            "min_dcf_0.01": min_dcf(scores, trials.label, p_target=0.01)[0],
            "trials": len(trials),
            "utterances": len({*trials.enrol, *trials.test}),
            "seconds": time.perf_counter() - began,
        }
        curves[name] = scores, trials.label
        write_scores(Path(args.save_path) / "scores" / f"{name}.txt", scores, trials)
        print("  " + result_line(name, results[name]))
    if curves:
        draw_det(Path(args.save_path) / "det.png", curves)
    return results


def evaluate_only(args):
    device = choose_device(args.device)
    take_width(args, load_checkpoint(args.initial_model, "model"))
    trial_lists = open_trial_lists(args)
    encoder = SpeakerEncoder.from_checkpoint(args.initial_model, device)
    print(f"{args.initial_model}: ECAPA-TDNN C={args.C} on {device}")
    results = evaluate(encoder, trial_lists, args)
    content = {"settings": {k: v for k, v in vars(args).items() if k != "given"}, "results": results}
    write_text(Path(args.save_path) / "results.json", json.dumps(content, indent=2) + "\n")
    print(f"the score of every trial: {args.save_path}/scores/; curves: {args.save_path}/det.png")


# ---- odds and ends ---------------------------------------------------------------------------------------------------


def open_training_list(args):
    listing = TrainingList(args.train_list)
    check_files(listing, args.train_path, "--train_path")
    return listing


def open_trial_lists(args):
    """{name: TrialList}, each checked against the disk; the name is the file's, without its suffix."""
    trial_lists = {}
    for path in args.eval_list:
        name = Path(path).stem
        if name in trial_lists:
            raise InputError(f"--eval_list has two lists called {name}: their scores would go to one file; rename one")
        trial_lists[name] = TrialList(path)
        check_files(trial_lists[name], args.eval_path, "--eval_path")
    return trial_lists


def take_width(args, checkpoint):
    """Let the model decide C. InputError if the command line says otherwise."""
    width = checkpoint["settings"]["C"]
    if "C" in args.given and width != args.C:
        raise InputError(f"--C {args.C}, but {args.initial_model} has C={width}: leave --C out")
    args.C = width


def multiplies_bf16(device):
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)


def keep_memory():
    """Let glibc keep freed memory for the next step; on a CPU this nearly doubles the speed of training.

    By default it gives large blocks back to the kernel, which clears each page again when the next tensor asks for it.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: take no block by mmap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back from the heap's end


def versions():
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def main_eer(record):
    """The EER that "best" goes by: that of the first list."""
    return next((result["eer"] for result in record["lists"].values()), math.inf)


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def log_line(summary, args):
    return (
        f"epoch {summary['epoch']}/{args.max_epoch} | step {summary['step']} | loss {summary['loss']:.3f} | accuracy "
        f"{summary['accuracy']:.2f}% | lr {summary['learning_rate']:.6f} | margin {summary['margin']:.2f} | "
        f"{summary['utterances_per_second']:.0f} utt/s | waiting {summary['waiting_percent']:.0f}% | unreadable "
        f"{summary['unreadable_files']} | {clock(summary['seconds_left'])} left"
    )


def result_line(name, result):
    return (
        f"{name}: EER {result['eer']:.2f}% | minDCF(0.05) {result['min_dcf_0.05']:.4f} | minDCF(0.01) "
        f"{result['min_dcf_0.01']:.4f} | {result['trials']} trials, {result['utterances']} utterances | "
        f"{result['seconds']:.0f} s"
    )


def score_lines(history):
    """The lines of score.txt, one per evaluation; the EER is that of the first list."""
    best = math.inf
    for record in (record for record in history if record["lists"] and record["epoch"] > 0):
        result = next(iter(record["lists"].values()))
        best = min(best, result["eer"])
        yield (
            f"{record['epoch']} epoch, LR {record['learning_rate']:.6f}, LOSS {record['loss']:.3f}, "
            f"ACC {record['accuracy']:.2f}%, EER {result['eer']:.2f}%, bestEER {best:.2f}%, "
            f"minDCF(0.05) {result['min_dcf_0.05']:.4f}, minDCF(0.01) {result['min_dcf_0.01']:.4f}\n"
        )


def use_demo_corpus(args):
    """Generate the demo corpus, if it is not there yet, and point the data flags to it."""
    if args.given & DATA_FLAGS:
        raise InputError(f"--demo brings its own data: leave out --{' --'.join(sorted(args.given & DATA_FLAGS))}")
    corpus = make_demo(Path(args.save_path) / "corpus")
    args.train_list, args.train_path = str(corpus / "train_list.txt"), str(corpus / "train/wav")
    args.eval_list, args.eval_path = [str(corpus / "trials.txt")], str(corpus / "eval/wav")
    args.musan_path, args.rir_path = str(corpus / "musan"), str(corpus / "rirs")


def main():
    args = read_settings(sys.argv[1:])
    keep_memory()
    try:
        if args.demo:
            use_demo_corpus(args)
        evaluate_only(args) if args.eval else train(args)
    except KeyboardInterrupt as interrupt:
        again = shlex.join(["python", *sys.argv])
        print(f"\nstopped; nothing is lost. To go on: {again}", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


if __name__ == "__main__":
    run_command(main)
