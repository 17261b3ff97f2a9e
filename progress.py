"""A training run as it is watched: loss and speed, a line for the log, a wish to stop."""

import contextlib
import math
import signal
import sys
import time

import torch
from tqdm import tqdm

import distributed
from tools import RunError, progress_bar


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
        self.learning_rate, self.margin = before["learning_rate"], before.get("margin", args.m)

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
            "learning_rate": self.learning_rate, "margin": self.margin,
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
            "margin": self.margin,
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


def log_line(summary, args):
    return (
        f"epoch {summary['epoch']}/{args.max_epoch} | step {summary['step']} | loss {summary['loss']:.3f} | accuracy "
        f"{summary['accuracy']:.2f}% | lr {summary['learning_rate']:.6f} | margin {summary['margin']:.2f} | "
        f"{summary['utterances_per_second']:.0f} utt/s | waiting {summary['waiting_percent']:.0f}% | unreadable "
        f"{summary['unreadable_files']} | {clock(summary['seconds_left'])} left"
    )


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
