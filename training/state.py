"""Training states on disk: the last two, checked when they are read; and a lock against a second run in the folder."""

import contextlib
import os
import shutil
import socket
import warnings
from pathlib import Path

import torch

from tools import InputError, check_writable, load_checkpoint, whole_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LAST, BEFORE, DAMAGED = "state.pt", "state_before.pt", "state_damaged.pt"


def save_state(folder, content, last_is_damaged=False):
    """Write a state, whole or not at all; the previous one stays, as state_before.pt. At no moment is there none.

    last_is_damaged: as ``load_state`` found; the damaged one is then set aside and does not replace the good one.
    """
    last = Path(folder) / LAST
    with whole_file(last) as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())  # the new one is on the disk before the old one makes room for it
        if last.exists():
            os.replace(last, last.with_name(DAMAGED if last_is_damaged else BEFORE))


def load_state(folder):
    """The last whole state; None if there is none. ``last_is_damaged``: whether the very last one is, which is printed.

    InputError when there are states but none is whole, RunError when one cannot be read for another reason.
    """
    complaints = []
    for path in (Path(folder) / LAST, Path(folder) / BEFORE):
        if path.exists():
            try:
                content = load_checkpoint(path, "training state")
            except InputError as error:
                complaints.append(str(error))
                continue
            if path.name == BEFORE:
                print(f"{'; '.join(complaints) or f'{folder}/{LAST} is missing'}: resuming from {path}")
            return {**content, "last_is_damaged": bool(complaints)}
    if complaints:
        raise InputError(f"{'; '.join(complaints)}: to start again, choose another --save_path")
    return None


def has_state(folder):
    return any((Path(folder) / name).exists() for name in (LAST, BEFORE))


@contextlib.contextmanager
def only_run_in(folder):
    """Keep other runs from writing to a folder as long as this lasts. InputError naming the process that does already.

    The lock is the kernel's: it ends with the process, however that ends. The file .lock stays and means nothing alone.
    If an error comes before anything else is written, the folder is removed, unless it was there before.
    """
    made = not os.path.lexists(folder)
    check_writable(folder, "--save_path")
    with open(Path(folder) / ".lock", "a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            who = file.read().strip() or "another process"
            fix = "wait for it to end, or choose another folder"
            raise InputError(f"--save_path {folder} is being written to by {who}: {fix}") from error
        except OSError as error:  # some network disks have no locks
            complaint = f"{folder} cannot be locked ({error.strerror}): make sure that no other run writes there"
            warnings.warn(complaint, stacklevel=3)
        for inner in (".", "model", "scores"):  # what a run that was killed left half written
            for leftover in (Path(folder) / inner).glob(".*.part"):
                leftover.unlink(missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        except Exception:
            if made and set(os.listdir(folder)) <= {".lock", "log.txt"}:
                shutil.rmtree(folder, ignore_errors=True)  # NFS keeps the open .lock, renamed
            raise
