"""A training run: its weights and records, its progress, its interruption.

Everything about a run that is not the recipe itself: going on where it stopped, saying how it goes, leaving results.
"""

import contextlib
import json
import math
import platform
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import distributed
from encoder import SpeakerEncoder
from loss import AAMsoftmax
from model import ECAPA_TDNN
from plots import draw_training
from pretrained import SYSTEMS, Pretrained, build_network, load_pretrained
from tools import (
    InputError,
    RunError,
    load_checkpoint,
    progress_bar,
    read_history,
    save_checkpoint,
    sha256,
    write_text,
)

DATA_FLAGS = {"train_list", "train_path", "eval_list", "eval_path", "musan_path", "rir_path"}

# What a continued run may do otherwise than it began: where things lie, how often it looks, how long it goes on, how it
# is computed (parts and processes differ in what batch norm sees, as far as --sync_bn does not hold them together).
FREE_TO_CHANGE = DATA_FLAGS | {"save_path", "max_epoch", "test_step", "n_cpu", "device", "compile", "accumulate"}


class SpeakerNet(torch.nn.Module):
    """Encoder and loss as one module: what is trained, under the names that the recipe's checkpoints use."""

    def __init__(self, encoder, classifier):
        super().__init__()
        self.speaker_encoder = encoder
        self.speaker_loss = classifier

    def forward(self, waveform, label, place):
        """(B, samples), (B,) int64, (B, 4) numbers that place SpecAugment's masks -> (loss, accuracy in %)."""
        return self.speaker_loss(self.speaker_encoder(waveform, aug=True, place=place), label)


class Run:
    """What a training run is made of and leaves behind: weights, optimizer, position; its folder and its records.

    ``epoch`` (1, 2, ...) and ``step`` (0, 1, ...) are what comes next; ``sums`` are the meter's up to there. Random
    numbers have no state to keep: they are functions of the position (see dataLoader). Of several processes each has
    its own Run, and the first writes.
    """

    def __init__(self, args, listing, device):
        self.args = args
        self.folder = Path(args.save_path)
        self.state_file = self.folder / "state.pt"
        self.speakers = listing.speakers
        self.lists = {path: sha256(path) for path in [args.train_list, *args.eval_list]}
        self.epoch, self.step, self.sums = 1, 0, None
        if len(self.speakers) < 2:
            raise InputError(f"{listing.path} has a single speaker: there is nothing to tell apart")
        if args.n_class is None:
            args.n_class = len(self.speakers)
        elif args.n_class < len(self.speakers):
            raise InputError(f"--n_class {args.n_class}, but {listing.path} has {len(self.speakers)} speakers")

        torch.manual_seed(args.seed)
        state = load_checkpoint(self.state_file, "training state") if self.state_file.exists() else None
        initial = None
        if state:
            encoder = self._encoder_of(state)
        elif args.initial_model:
            initial = load_pretrained(args.initial_model, args.system)
            encoder, args.system = initial.network, initial.system
            if SYSTEMS[initial.system].variant is None:
                raise InputError(f"--initial_model {args.initial_model}: only ECAPA-TDNNs can be trained further here")
        else:
            encoder, args.system = ECAPA_TDNN(C=args.C), "ours"
        take_width(args, encoder)
        classifier = AAMsoftmax(
            args.n_class, m=args.m, s=args.s, embedding_size=encoder.embedding_size,
            continuous=SYSTEMS[args.system].continuous_margin,
        )  # fmt: skip
        self.network = SpeakerNet(encoder, classifier).to(device)
        if args.sync_bn:
            distributed.synchronise_batch_norm(self.network, device)
        # Fused: one pass over all weights instead of a dozen for each tensor.
        fused = device.type != "mps"
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=fused
        )
        self.history = read_history(self.folder / "metrics.jsonl")
        if state:
            self.network.load_state_dict(state["weights"])
            state["optimizer"]["param_groups"][0]["fused"] = fused  # it may have been written on another device
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step, self.sums = state["epoch"], state["step"], state["sums"]
            print(f"{self.folder}: going on after step {self.step} of epoch {self.epoch}")
        elif self.history:
            raise InputError(
                f"--save_path {self.folder} has results of a run, but no state.pt to go on from: choose another"
            )
        elif initial:
            self._take_classifier(initial)
        self.is_new = state is None

    def begin(self):
        """Write down what is being done; a new run also its state, so that it is known by its settings."""
        position = self.epoch, self.step, sorted(self.recorded()), self.speakers, sorted(self.lists.values())
        distributed.check_same(position, "--save_path and the lists must lie on a disk that all machines share")
        settings = {"settings": self._settings(), "sha256": self.lists, "versions": versions(), "command": sys.argv}
        if distributed.rank() == 0:
            write_text(self.folder / "settings.json", json.dumps(settings, indent=2) + "\n")
        if self.is_new:
            self.save_state(None)

    def _encoder_of(self, state):
        """The network of a training state, which is refused if it was begun with other settings."""
        args, before = self.args, state["settings"]
        args.system = args.system or before.get("system", "ours")
        if "initial_model" not in args.given:  # it has served
            args.initial_model = before["initial_model"]
        if args.initial_model and "C" not in args.given:
            args.C = before["C"]
        self._refuse_other_settings(state)
        prefix = "speaker_encoder."
        weights = {key.removeprefix(prefix): value for key, value in state["weights"].items() if prefix in key}
        return build_network(weights, args.system)

    def _settings(self):
        return {name: value for name, value in vars(self.args).items() if name != "given"}

    def _refuse_other_settings(self, state):
        mend = "to continue it give the same, for another run choose another --save_path"
        for name, before in state["settings"].items():
            now = getattr(self.args, name, None)
            came_or_went = name in ("musan_path", "rir_path") and bool(now) != bool(before)
            if came_or_went or (name not in FREE_TO_CHANGE and now != before):
                raise InputError(f"{self.folder} was begun with --{name} {before}, not {now}: {mend}")
        if state["speakers"] != self.speakers or state["train_list_sha256"] != self.lists[self.args.train_list]:
            raise InputError(f"{self.folder} was begun with a --train_list of other content: {mend}")

    def _take_classifier(self, initial):
        """The encoder came with the model; its classifier is taken if it tells the same speakers apart. Says so."""
        theirs, ours = initial.classifier, self.network.speaker_loss.weight
        encoder = self.network.speaker_encoder
        same = theirs is not None and initial.speakers == self.speakers and theirs.shape == ours.shape
        if same:
            ours.data.copy_(theirs)
            left = "and its classifier"
        elif theirs is None:
            left = f"; it came without a classifier, a new one begins, for {self.args.n_class} speakers"
        else:
            whose = "who are not named" if initial.speakers is None else "who are others"
            left = (
                f"; not its classifier of {len(theirs)} speakers, {whose}: a new one begins, for "
                f"{self.args.n_class}"
            )
        print(
            f"{self.args.initial_model} ({SYSTEMS[initial.system].title}): took the encoder, {describe(encoder)} in "
            f"{len(encoder.state_dict())} tensors{' ' if same else ''}{left}"
        )

    def speaker_encoder(self):
        """The encoder as it is now, ready to embed files."""
        distributed.mean_statistics(self.network)
        encoder = self.network.speaker_encoder
        return SpeakerEncoder(encoder, self.network.speaker_loss.weight.device, Pretrained(self.args.system, encoder))

    def _contents(self, kind):
        return {
            "kind": kind, "settings": self._settings(), "versions": versions(), "epoch": self.epoch,
            "train_list_sha256": self.lists[self.args.train_list], "speakers": self.speakers,
            "weights": self.network.state_dict(),
        }  # fmt: skip

    def save_state(self, sums):
        """Write all that is needed to go on from (epoch, step) exactly."""
        self.sums = sums
        distributed.mean_statistics(self.network)
        finite = torch.stack([weight.isfinite().all() for weight in self.network.state_dict().values()]).all()
        if not finite:
            raise RunError(f"the weights exploded in epoch {self.epoch}: try a smaller --lr; not saved")
        rest = {"step": self.step, "sums": sums, "optimizer": self.optimizer.state_dict()}
        if distributed.rank() == 0:
            save_checkpoint(self.state_file, {**self._contents("training state"), **rest})
        distributed.anyone(False)  # none goes on, or ends, before it is written

    def next_epoch(self):
        self.epoch, self.step, self.sums = self.epoch + 1, 0, None

    def is_untrained(self):
        return self.epoch == 1 and self.step == 0 and 0 not in self.recorded()

    def recorded(self):
        """The epochs that are on record."""
        return {record["epoch"] for record in self.history}

    def error_rates(self):
        """How the EER of the first list went, in words; nothing if it was never evaluated."""
        name = next((name for record in self.history[-1:] for name in record["lists"]), None)
        eers = {record["epoch"]: record["lists"][name]["eer"] for record in self.history if name in record["lists"]}
        untrained = eers.pop(0, None)
        if not eers:
            return ""
        last, best = max(eers), min(eers, key=eers.get)
        before = "" if untrained is None else f"{untrained:.2f}% before training, "
        return f". EER: {before}{eers[last]:.2f}% after epoch {last}, lowest {eers[best]:.2f}% after epoch {best}"

    def record(self, summary, results):
        """Put an epoch on record: its model if it was evaluated (results not None), metrics.jsonl, score.txt, the plot.

        metrics.jsonl is what counts: once the epoch is in there, a continued run will not evaluate it again.
        """
        record = {**summary, "lists": results or {}}
        before, self.history = self.history, [*self.history, record]
        if distributed.rank():
            return
        if results is not None and record["epoch"] > 0:
            model = {**self._contents("model"), "scores": results}
            save_checkpoint(self.folder / "model" / f"model_{self.epoch:04d}.model", model)
            if results and main_eer(record) < lowest_eer(before, record):
                save_checkpoint(self.folder / "model" / "best.model", model)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in self.history))
        write_text(self.folder / "score.txt", "".join(score_lines(self.history)))
        draw_training(self.folder / "training.png", self.history)


class Meter:
    """Loss, accuracy, throughput and time of an epoch: a progress bar while it runs, a summary when it is over.

    Loss and accuracy are summed on the device and looked at once a second, so that the device is not waited for every
    step. A loss that is not finite raises RunError then, or at the end of the epoch. The bar shows what this process
    sees; the sums are means over all processes.
    """

    def __init__(self, args, run, loader):
        self.args, self.run, self.loader = args, run, loader
        before = run.sums or {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0, "waiting": 0.0, "learning_rate": None}
        device = run.network.speaker_loss.weight.device
        self.total = torch.tensor([before["loss"], before["accuracy"]], device=device)
        self.seconds_before, self.waiting = before["seconds"], before["waiting"]
        self.began = self.looked = time.perf_counter()
        self.learning_rate = before["learning_rate"]

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
                if time.perf_counter() - self.looked > 1.0:
                    self._show()

    def add(self, loss, accuracy):
        """Count a part of a step: loss and accuracy, 0-d tensors on the device."""
        self.total += torch.stack([loss.detach(), accuracy]) / self.args.accumulate

    def _show(self):
        self.looked = time.perf_counter()
        now = self._summary(self._sums(self.total))
        self.bar.set_postfix_str(
            f"loss {now['loss']:.3f}, acc {now['accuracy']:.1f}%, {now['utterances_per_second']:.0f} utt/s, "
            f"waiting {now['waiting_percent']:.0f}%, {clock(now['seconds_left'])} left"
        )

    def _sums(self, total):
        loss, accuracy = total.tolist()  # waits for the device
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in epoch {self.run.epoch}, at step {self.run.step} or shortly before: try a "
                f"smaller --lr or --amp off; {self.run.state_file} has the weights that were last saved"
            )
        seconds = self.seconds_before + time.perf_counter() - self.began
        return {
            "loss": loss, "accuracy": accuracy, "seconds": seconds, "waiting": self.waiting,
            "learning_rate": self.learning_rate,
        }  # fmt: skip

    def sums(self):
        """What a state file needs to go on measuring this epoch."""
        return self._sums(distributed.mean(self.total))

    def _summary(self, sums):
        run = self.run
        steps_left = (self.args.max_epoch - run.epoch + 1) * self.loader.steps - run.step
        return {
            "epoch": run.epoch,
            "step": (run.epoch - 1) * self.loader.steps + run.step,
            "loss": sums["loss"] / run.step,
            "accuracy": sums["accuracy"] / run.step,
            "learning_rate": self.learning_rate,
            "margin": self.args.m,
            "utterances_per_second": run.step * self.args.batch_size / sums["seconds"],
            "waiting_percent": 100 * sums["waiting"] / sums["seconds"],
            "seconds": sums["seconds"],
            "seconds_left": steps_left * sums["seconds"] / run.step,
            "unreadable_files": len(self.loader.bad),
        }

    def summary(self):
        """The record of this epoch up to now, but for its evaluation."""
        bad = set().union(*distributed.gather(self.loader.bad))
        return {**self._summary(self.sums()), "unreadable_files": len(bad)}


class StopSignal:
    """Ctrl-C and SIGTERM as KeyboardInterrupt; inside ``deferred()`` only once the block has come to its end."""

    def __init__(self):
        self.requested = None
        self.came = -math.inf
        self.waits = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number, frame):
        before, self.came = self.came, time.monotonic()
        if self.waits and self.came < before + 2:  # the same one again: torchrun hands on what all have got
            return
        patience = self.waits and not self.requested  # a second signal does not wait
        self.requested = number
        if not patience:
            raise KeyboardInterrupt(number)
        if distributed.rank() == 0:
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


# ---- what is written and shown ------------------------------------------------------------------------------------


def take_width(args, network):
    """Let the model decide C. InputError if the command line says otherwise."""
    width = getattr(network, "C", args.C)
    if "C" in args.given and width != args.C:
        raise InputError(f"--C {args.C}, but {args.initial_model} has C={width}: leave --C out")
    args.C = width


def describe(network):
    """A network in a few words."""
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    return f"{type(network).__name__}{f' C={network.C}' if hasattr(network, 'C') else ''}, {millions:.1f} M weights"


def versions():
    return {
        "python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
        "processes": distributed.size(),
    }  # fmt: skip


def main_eer(record):
    """The EER that "best" goes by: that of the first list."""
    return next(iter(record["lists"].values()))["eer"]


def lowest_eer(history, record):
    """The lowest EER on the first list of ``record`` that a trained epoch of the history has; infinity if none has."""
    name = next(iter(record["lists"]))
    return min((r["lists"][name]["eer"] for r in history if r["epoch"] > 0 and name in r["lists"]), default=math.inf)


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


def score_lines(history):
    """The lines of score.txt, one per evaluation; the EER is that of the first list."""
    for record in (record for record in history if record["lists"] and record["epoch"] > 0):
        result = next(iter(record["lists"].values()))
        best = lowest_eer([each for each in history if each["epoch"] <= record["epoch"]], record)
        yield (
            f"{record['epoch']} epoch, LR {record['learning_rate']:.6f}, LOSS {record['loss']:.3f}, "
            f"ACC {record['accuracy']:.2f}%, EER {result['eer']:.2f}%, bestEER {best:.2f}%, "
            f"minDCF(0.05) {result['min_dcf_0.05']:.4f}, minDCF(0.01) {result['min_dcf_0.01']:.4f}\n"
        )
