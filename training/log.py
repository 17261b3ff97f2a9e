"""What others see of a run: log.txt with clock times, TensorBoard, Weights & Biases."""

import contextlib
import io
import secrets
import sys
import time

from evaluation.intervals import METRICS
from tools import InputError, RunError, one_line, read_text, write_text


def scalars(record):
    """{name: number} of a record, as trackers show them."""
    found = {f"training/{name}": value for name, value in record.items() if isinstance(value, float)}
    for kind, results in {"model": record["lists"], **record.get("averages", {})}.items():
        for name, result in results.items():
            found |= {f"{name}/{metric}/{kind}": result[metric] for metric in METRICS}
    return found


def open_trackers(folder, settings):
    """[function (record)] of TensorBoard and Weights & Biases, optional packages, as the settings ask for."""
    trackers = []
    if settings["tensorboard"]:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder / "tensorboard", flush_secs=1)
        add = writer.add_scalar
        trackers.append(lambda record: [add(*number, record["epoch"]) for number in scalars(record).items()])
    if settings["wandb"]:
        import wandb

        known = folder / "wandb" / "id.txt"  # by which a resumed run is the same one there
        if not known.exists():
            write_text(known, secrets.token_hex(4))
        try:
            run = wandb.init(dir=folder, project="speakers", name=folder.name, id=read_text(known), resume="allow",
                             config=settings, settings=wandb.Settings(console="off"))  # fmt: skip
        except wandb.errors.Error as error:
            raise InputError(f"--wandb: {one_line(str(error))}; WANDB_MODE=offline keeps it on this disk") from error
        trackers.append(lambda record: run.log({**scalars(record), "epoch": record["epoch"]}))
    return trackers


class Logged:
    """A stream whose lines also go to a file, with date and time; progress bars, drawn by carriage returns, do not."""

    def __init__(self, stream, path):
        self.stream, self.path, self.line = stream, path, ""

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        if "\r" not in text:
            *lines, self.line = (self.line + text).split("\n")
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            # A full disk is reported by the next file that matters more.
            with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{now} {line}\n" for line in lines if line.strip())
        return self.stream.write(text)


@contextlib.contextmanager
def logged(path):
    """As long as this lasts, what is printed also goes to a file; so does the error that ends it."""
    with contextlib.redirect_stdout(Logged(sys.stdout, path)), contextlib.redirect_stderr(Logged(sys.stderr, path)):
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, (InputError, RunError)) else f"{type(error).__name__}: "
            print(f"{kind}{error}", file=Logged(io.StringIO(), path))
            raise
