"""Around the steps of a run: what is measured, a request to stop, help where memory is short."""

import contextlib
import datetime
import re
import signal
import sys
import time

import torch
from tqdm import tqdm

from tools import RunError, gather, progress_bar, rank, size, write_text
from training import distributed


class Meter:
    """Loss, accuracy, throughput and waiting time of an epoch: a progress bar meanwhile, ``summary()`` at the end.

    Sums stay on the device and are read once a second, so that the device is not waited for at every step. The bar
    shows this process, the summary all of them. An epoch that was interrupted continues from ``run.sums``.
    """

    MOST_SKIPPED = 10  # steps in a row

    def __init__(self, run, loader):
        self.run, self.loader = run, loader
        self.counts = {"skipped_in_a_row": 0}

    def watch(self, batches):
        """Pass an epoch's batches on, with a progress bar, and measure how long each was waited for."""
        start = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0, "waiting": 0.0, "learning_rate": None, "margin": None,
                 "skipped": 0, "skipped_in_a_row": self.counts["skipped_in_a_row"]}  # fmt: skip
        self.counts = start | (self.run.sums or {})
        self.total = torch.tensor([self.counts.pop("loss"), self.counts.pop("accuracy")], device=self.run.device)
        shown = time.perf_counter()
        self.began = shown - self.counts.pop("seconds")
        label = f"epoch {self.run.epoch}/{self.run.args.max_epoch}"
        with progress_bar(total=self.loader.steps, initial=self.run.step, desc=label, unit="step") as bar:
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                self.counts["waiting"] += time.perf_counter() - asked
                if batch is None:
                    return
                yield batch
                if time.perf_counter() - shown > 1.0:
                    shown = time.perf_counter()
                    now = self._summary(self._sums(self.total))
                    losses = f"loss {now['loss']:.3f} | acc {now['accuracy']:.1f}%"
                    bar.set_postfix_str(f"{losses} | {speed(now)}", refresh=False)
                bar.update()

    def add(self, step, learning_rate, margin, measured):
        """Count a step. measured: (2,) tensor of its loss and accuracy on the device; None: it was skipped.

        RunError after MOST_SKIPPED skipped steps in a row.
        """
        counts = self.counts
        counts["learning_rate"], counts["margin"] = learning_rate, margin
        if measured is not None:
            self.total += measured
            counts["skipped_in_a_row"] = 0
            return
        counts["skipped"] += 1
        counts["skipped_in_a_row"] += 1
        run, batch = self.run, self.run.folder / "skipped_batch.txt"
        what = f"step {step + 1} of epoch {run.epoch}: the gradient is not finite"
        if rank() == 0:
            write_text(batch, "".join(self.loader.lines_of(run.epoch, step)))
            tqdm.write(f"{what}, skipped (its utterances: {batch}); {counts['skipped']} in this epoch", file=sys.stderr)
        if counts["skipped_in_a_row"] >= self.MOST_SKIPPED:
            raise RunError(
                f"{what}, nor in the {self.MOST_SKIPPED - 1} steps before: try a smaller --lr or --amp off, in "
                f"another --save_path, with a model of {run.folder}/model as --initial_model"
            )

    def sums(self):
        """What a training state needs to continue measuring this epoch; means over the processes."""
        return self._sums(distributed.mean(self.total))

    def _sums(self, total):
        loss, accuracy = total.tolist()  # waits for the device
        return {"loss": loss, "accuracy": accuracy, "seconds": time.perf_counter() - self.began, **self.counts}

    def _summary(self, sums):
        run, steps = self.run, self.loader.steps
        counted, seconds = max(1, run.step - sums["skipped"]), sums["seconds"]
        return {
            "epoch": run.epoch,
            "step": (run.epoch - 1) * steps + run.step,
            "loss": sums["loss"] / counted,
            "accuracy": sums["accuracy"] / counted,
            "learning_rate": sums["learning_rate"],
            "margin": sums["margin"],
            "utterances_per_second": run.step * run.args.batch_size / seconds,
            "waiting_percent": 100 * sums["waiting"] / seconds,
            "seconds": seconds,
            "seconds_left": ((run.args.max_epoch - run.epoch + 1) * steps - run.step) * seconds / run.step,
            "unreadable_files": len(self.loader.bad),
            "skipped_steps": sums["skipped"],
        }

    def summary(self):
        """The record of this epoch, as metrics.jsonl has it, without its evaluation."""
        unreadable = set().union(*gather(self.loader.bad))
        return {**self._summary(self.sums()), "unreadable_files": len(unreadable)}


class StopSignal:
    """Inside ``with``, Ctrl-C and SIGTERM set ``requested`` instead of ending the process; a second one ends it."""

    SIGNALS = signal.SIGINT, signal.SIGTERM

    def __enter__(self):
        self.requested = None
        self.before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.requested is None:
            self.requested, self.since = number, time.monotonic()
            if rank() == 0:
                tqdm.write("stopping after this step; once more stops at once", file=sys.stderr)
        elif time.monotonic() > self.since + 2:  # sooner it is the same one, passed on by torchrun
            raise KeyboardInterrupt(number)


def log_line(summary, args):
    faults = {"unreadable": summary["unreadable_files"], "skipped": summary["skipped_steps"]}
    return (
        f"epoch {summary['epoch']}/{args.max_epoch} | step {summary['step']} | loss {summary['loss']:.3f} | acc "
        f"{summary['accuracy']:.2f}% | lr {summary['learning_rate']:.6f} | margin {summary['margin']:.2f} | "
        f"{''.join(f'{name} {number} | ' for name, number in faults.items() if number)}{speed(summary)}"
    )


def speed(summary):
    left = datetime.timedelta(seconds=round(summary["seconds_left"]))
    return f"{summary['utterances_per_second']:.0f} utt/s | waiting {summary['waiting_percent']:.0f}% | {left} left"


@contextlib.contextmanager
def memory_help(args=None):
    """RunError in place of a traceback where the memory of the device or the machine is full. args: of training."""
    full = "out of memory|can't allocate memory|ALLOC(ATION)?_FAILED"  # PyTorch has no class for it on a CPU
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RunError) or not (isinstance(error, MemoryError) or re.search(full, str(error))):
            raise
        if not args:
            raise RunError("out of memory: end other programs on this device, or try a smaller --bank_mb") from error
        rows = args.batch_size // size()
        finer = [n for n in range(args.accumulate + 1, rows // 2 + 1) if rows % n == 0]
        parts = f"--accumulate {finer[0]} (the same batch in smaller parts), or " if finer else ""
        others = "in another --save_path, --amp bf16 or a smaller --C or --num_frames"
        crops = f"{rows // args.accumulate} crops at a time"
        raise RunError(f"out of memory with {crops}: try {parts}{others}") from error
