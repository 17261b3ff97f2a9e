"""A training run as it is watched: loss and speed, steps that went wrong, a line for the log, a wish to stop."""

import contextlib
import math
import signal
import sys
import time

import torch
from tqdm import tqdm

from tools import RunError, progress_bar, write_text
from training import distributed


class Meter:
    """Loss, accuracy, throughput and time of an epoch: a progress bar while it runs, a summary when it is over.

    All is summed on the device and looked at once a second, so that the device is not waited for every step. The bar
    shows what this process sees; the sums are means over all processes.

    Steps whose gradient is not finite are skipped (``spoilt``) and said at the next look, with the utterances of the
    last one in skipped_batch.txt; RunError after SKIPPED_AT_MOST in a row.
    """

    SKIPPED_AT_MOST = 10

    def __init__(self, args, run, loader):
        self.args, self.run, self.loader = args, run, loader
        before = run.sums or {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0, "waiting": 0.0, "learning_rate": None}
        device = run.network.speaker_loss.weight.device
        # Sums of loss and accuracy; steps skipped: in all, in a row now, and at most; the last of them.
        skipped, in_a_row = before.get("skipped", 0), before.get("skipped_in_a_row", run.skipped_in_a_row)
        self.total = torch.tensor(
            [before["loss"], before["accuracy"], skipped, in_a_row, in_a_row, -1], device=device
        )
        self.part = torch.zeros(2, device=device)
        self.skipped = before.get("skipped", 0)
        self.statistics = [each.clone() for each in running_statistics(run)]
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
        self.part += torch.stack([loss.detach(), accuracy]) / self.args.accumulate

    def spoilt(self, norm, step):
        """End a step whose gradient has this norm, a 0-d tensor: 1.0 if it is not finite, else 0.0, likewise."""
        fine = norm.isfinite()
        skipped, in_a_row, most, last = self.total[2:]
        sums = torch.where(fine, self.total[:2] + self.part, self.total[:2])
        self.total = torch.cat([sums, torch.where(
            fine, torch.stack([skipped, torch.zeros_like(skipped), most, last]),
            torch.stack([skipped + 1, in_a_row + 1, torch.maximum(most, in_a_row + 1), torch.full_like(last, step)]),
        )])  # fmt: skip
        self.part.zero_()
        return 1 - fine.float()

    def _show(self):
        self.looked = time.perf_counter()
        now = self._summary(self._sums(self.total))
        self.bar.set_postfix_str(
            f"loss {now['loss']:.3f}, acc {now['accuracy']:.1f}%, {now['utterances_per_second']:.0f} utt/s, "
            f"waiting {now['waiting_percent']:.0f}%, {clock(now['seconds_left'])} left"
        )

    def _sums(self, total):
        loss, accuracy, skipped, in_a_row, most, last = total.tolist()  # waits for the device
        self.run.skipped_in_a_row = int(in_a_row)
        if skipped > self.skipped:
            self._mend(int(skipped), int(most), int(last))
        else:
            torch._foreach_copy_(self.statistics, running_statistics(self.run))
        seconds = self.seconds_before + time.perf_counter() - self.began
        return {
            "loss": loss, "accuracy": accuracy, "seconds": seconds, "waiting": self.waiting,
            "learning_rate": self.learning_rate, "margin": self.margin, "skipped": int(skipped),
            "skipped_in_a_row": int(in_a_row),
        }  # fmt: skip

    def _mend(self, skipped, most, last):
        """Steps were skipped since the last look: say so, and undo what they did to the statistics of batch norm."""
        run, self.skipped = self.run, skipped
        for statistic, before in zip(running_statistics(run), self.statistics):
            if not statistic.isfinite().all():
                statistic.copy_(before)
        batch = run.folder / "skipped_batch.txt"
        if distributed.rank() == 0:
            write_text(batch, "".join(self.loader.lines_of(run.epoch, last)))
        said = f"the gradient was not finite in step {last + 1} of epoch {run.epoch} (its utterances: {batch})"
        if most >= self.SKIPPED_AT_MOST:
            raise RunError(
                f"{said}, and neither in the {most - 1} before: try a smaller --lr or --amp off, in another "
                f"--save_path, from a model of {run.folder}/model as --initial_model"
            )
        if distributed.rank() == 0:
            tqdm.write(f"{said}: skipped, {skipped} so far in this epoch", file=sys.stderr)

    def sums(self):
        """What a state file needs to go on measuring this epoch."""
        return self._sums(distributed.mean(self.total))

    def _summary(self, sums):
        run = self.run
        steps_left = (self.args.max_epoch - run.epoch + 1) * self.loader.steps - run.step
        return {
            "epoch": run.epoch,
            "step": (run.epoch - 1) * self.loader.steps + run.step,
            "loss": sums["loss"] / max(1, run.step - sums["skipped"]),
            "accuracy": sums["accuracy"] / max(1, run.step - sums["skipped"]),
            "learning_rate": self.learning_rate,
            "margin": self.margin,
            "utterances_per_second": run.step * self.args.batch_size / sums["seconds"],
            "waiting_percent": 100 * sums["waiting"] / sums["seconds"],
            "seconds": sums["seconds"],
            "seconds_left": steps_left * sums["seconds"] / run.step,
            "unreadable_files": len(self.loader.bad),
            "skipped_steps": sums["skipped"],
        }

    def summary(self):
        """The record of this epoch up to now, but for its evaluation."""
        bad = set().union(*distributed.gather(self.loader.bad))
        return {**self._summary(self.sums()), "unreadable_files": len(bad)}


def running_statistics(run):
    """The means and variances that batch norm will use in evaluation, [tensors]; those of the moving average, too."""
    networks = [run.network, *([run.moving_average.network] if run.moving_average else [])]
    buffers = [item for network in networks for item in network.named_buffers()]
    return [each for name, each in buffers if name.endswith(("running_mean", "running_var"))]


class StopSignal:
    """Ctrl-C and SIGTERM as KeyboardInterrupt; inside ``deferred()`` only once the block has come to its end."""

    def __init__(self):
        self.requested = None
        self.came = -math.inf
        self.waits = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if self.waits and time.monotonic() < self.came + 2:  # the same one again: torchrun hands on what all have got
            return
        self.came = time.monotonic()
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
        f"{summary['unreadable_files']} | skipped {summary['skipped_steps']} | {clock(summary['seconds_left'])} left"
    )


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
