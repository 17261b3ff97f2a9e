"""What every room uses: errors of one line, progress, several processes, error rates, AS-norm, files, checkpoints."""

import argparse
import collections
import concurrent.futures
import contextlib
import ctypes
import difflib
import errno
import hashlib
import os
import pathlib
import pickle
import re
import signal
import sys
import time
import traceback
import types
import warnings
import zipfile

import numpy as np
import torch
from tqdm import tqdm


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, and the fix. Exit status 2."""

    def __str__(self):
        return one_line(super().__str__())


class RunError(RuntimeError):
    """Something failed while running that the command line did not cause. One line too. Exit status 1."""

    def __str__(self):
        return one_line(super().__str__())


def one_line(text, most=2000):
    """A message as one printable line of bounded length: what it quotes from a file may contain anything."""
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count(number, noun):
    """1 step, 2 steps."""
    return f"{number} {noun}{'s' * (number != 1)}"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors and that suggests the flag closest to a misspelt one."""

    def error(self, message):
        misspelt = re.match("unrecognized arguments: (--[^ =]+)", message)
        near = misspelt and difflib.get_close_matches(misspelt[1], self._option_string_actions, 1, 0.7)
        raise InputError(f"{message}{f': did you mean {near[0]}?' if near else ''}; see {self.prog} --help")


def run_command(main, failure=1):
    """Run a script's main and exit: with its status; an InputError gives one line and 2, another failure ``failure``.

    failure: for scripts whose status 1 is an answer.
    """
    script = pathlib.Path(sys.argv[0]).name
    # A log file shows each line as it is printed; file names may not be valid text.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    write, shown = tqdm.write if sys.stderr.isatty() else print, set()  # tqdm's keeps progress bars intact

    def warn(message, *_):
        if str(message) not in shown:  # each evaluation of a run gives the same ones
            shown.add(str(message))
            write(f"{script}: warning: {message}", file=sys.stderr)

    def stop(number, _):
        raise KeyboardInterrupt(number)

    warnings.showwarning = warn
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the output has ended, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as after SIGPIPE
    except (InputError, RunError, OSError) as error:
        if isinstance(error, OSError) and error.filename:  # a disk that is full or gone
            error = RunError(f"{error.filename}: {error.strerror}")
        if rank():
            time.sleep(2)  # usually the first process has the same error; when it exits, torchrun ends this one
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else failure)
    except KeyboardInterrupt as interrupt:
        print(f"{script}: stopped", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except Exception:
        traceback.print_exc()
        sys.exit(failure)


def progress_bar(**settings):
    """A tqdm bar; in a file it is a line every half minute, and of several processes the first one shows it."""

    def write_line(text):
        if text.strip():
            print(text.strip(), file=sys.__stderr__, flush=True)  # sys.stderr may go to a log.txt, too

    where = {"mininterval": 0.2, "dynamic_ncols": True}
    if not sys.stderr.isatty():
        file = types.SimpleNamespace(write=write_line, flush=lambda: None)
        where = {"mininterval": 30, "maxinterval": 60, "delay": 1, "file": file}
    return tqdm(**{"disable": rank() > 0, "leave": False, **where, **settings})


def keep_memory():
    """Let glibc keep freed memory for the next step; on a CPU this nearly doubles the speed of training.

    By default it gives large blocks back to the kernel, which clears each page again when the next tensor asks for it.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: take no block by mmap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back from the heap's end


# ---- several processes (torchrun) ------------------------------------------------------------------------------------


def rank():
    """Which of the processes this is: 0, 1, ...; the first is the one that writes and prints."""
    return int(os.environ.get("RANK", 0))


def size():
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def gather(thing):
    """[the object of each process], the same list in all of them."""
    if size() == 1:
        return [thing]
    things = [None] * size()
    torch.distributed.all_gather_object(things, thing)
    return things


# ---- error rates -----------------------------------------------------------------------------------------------------


def error_curve(scores, labels):
    """Miss and false-alarm rates at every distinct threshold.

    scores: (N,) numbers, higher means more alike; labels: (N,) 1 = same speaker, 0 = different.
    Returns (thresholds, miss, false_alarm), each (K + 1,) float64 for K distinct scores: a trial is accepted when its
    score >= threshold. The first threshold accepts everything, the last (infinity) nothing. Trials with equal scores
    are accepted together, so the result does not depend on the order of the trials.
    Raises ValueError for NaN scores, labels other than 0 and 1, or when one of the two classes is missing.
    """
    scores, labels = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(labels).ravel()
    if scores.shape != labels.shape:
        raise ValueError(f"{scores.size} scores but {labels.size} labels")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {scores.size} scores are NaN")
    target = labels == 1
    if not np.all(target | (labels == 0)):
        raise ValueError("labels must be 1 (same speaker) or 0 (different speakers)")
    n_target, n_nontarget = np.count_nonzero(target), np.count_nonzero(~target)
    if not n_target or not n_nontarget:
        raise ValueError(f"an error rate needs trials of both kinds, not {n_target} same and {n_nontarget} different")
    order = np.argsort(scores)
    thresholds, first = np.unique(scores[order], return_index=True)
    trials = np.append(first, scores.size)  # below each threshold
    targets = np.append(0, np.cumsum(target[order]))[trials]
    return np.append(thresholds, np.inf), targets / n_target, 1.0 - (trials - targets) / n_nontarget


def equal_error_rate(scores, labels):
    """Equal error rate in % and the threshold where it lies: (scores (N,), labels (N,)) -> (eer, threshold).

    The point where the miss and false-alarm curves cross, by linear interpolation between the two thresholds on
    either side; O(N log N). Errors as in ``error_curve``.
    """
    thresholds, miss, false_alarm = error_curve(scores, labels)
    eer, before, part = crossing(miss, false_alarm)
    low, high = thresholds[before : before + 2]
    threshold = low if np.isinf(high) else low + part * (high - low)
    return 100.0 * float(eer), float(threshold)


def crossing(miss, false_alarm):
    """Where the rates of ``error_curve`` are equal: (rate, threshold before it, part of the way to the next one)."""
    after = np.argmax(miss >= false_alarm)  # exists: the last threshold has miss 1, false alarm 0; never the first
    before = after - 1
    gap_before, gap_after = false_alarm[before] - miss[before], miss[after] - false_alarm[after]
    part = gap_before / (gap_before + gap_after)
    return miss[before] + part * (miss[after] - miss[before]), before, part


def min_dcf(scores, labels, p_target=0.01, c_miss=1, c_fa=1):
    """Minimum normalised detection cost and its threshold: (scores (N,), labels (N,)) -> (minDCF, threshold).

    Published VoxCeleb results use p_target 0.05 or 0.01: always say which. Errors as in ``error_curve``.
    """
    thresholds, miss, false_alarm = error_curve(scores, labels)
    cost = detection_cost(miss, false_alarm, p_target, c_miss, c_fa)
    best = np.argmin(cost)
    return float(cost[best]), float(thresholds[best])


def detection_cost(miss, false_alarm, p_target=0.01, c_miss=1, c_fa=1):
    """c_miss * miss * p_target + c_fa * false_alarm * (1 - p_target) of rates from 0 to 1, any shape, normalised.

    Divided by the smaller of the costs of accepting all and rejecting all, as in NIST's evaluations.
    """
    cost = c_miss * miss * p_target + c_fa * false_alarm * (1 - p_target)
    return cost / min(c_miss * p_target, c_fa * (1 - p_target))


# ---- score normalisation ---------------------------------------------------------------------------------------------

SCORES_AT_ONCE = 2**22  # 16 MB of float32: about what the caches of a CPU hold, and enough to keep a GPU busy


def cohort_statistics(vectors, cohort, top_n=300, device="cpu"):
    """Mean and standard deviation of each vector's top-n scores against a cohort.

    vectors (U, D), cohort (K, D): their dot products are the scores, in the precision of the vectors. top_n: number of
    highest scores used, all K if there are fewer. Returns (mean, deviation), each (U,) float64, the deviation divided
    by top_n, not top_n - 1. Needs memory for SCORES_AT_ONCE scores and the cohort on the ``device``. ValueError for
    fewer than two scores, or NaN.
    """
    vectors, cohort = torch.as_tensor(vectors), torch.as_tensor(cohort)
    if len(cohort) < 2 or top_n < 2:
        raise ValueError(f"a deviation needs at least two scores: top {top_n} of a cohort of {len(cohort)}")
    lengths, longest = (torch.linalg.vector_norm(each, dim=1).double().numpy() for each in (vectors, cohort))
    top_n, cohort = min(top_n, len(cohort)), cohort.to(device, vectors.dtype).t()
    mean, deviation = np.empty(len(vectors)), np.empty(len(vectors))
    rows = max(1, SCORES_AT_ONCE // cohort.shape[1])
    for first in range(0, len(vectors), rows):
        block = slice(first, first + rows)
        top = (vectors[block].to(device) @ cohort).topk(top_n, sorted=False).values.cpu().numpy()
        mean[block], deviation[block] = top.mean(axis=1, dtype=np.float64), top.std(axis=1, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(mean))} of {len(mean)} vectors have no finite scores")
    # A spread below a millionth of the largest score that vectors of these lengths could have is float32's rounding;
    # divided by, it would be noise, and 0 (a cohort of equal vectors) would give NaN.
    return mean, np.maximum(deviation, np.maximum(1e-6 * lengths * longest.max(), np.finfo(np.float64).tiny))


def symmetric_norm(scores, enrol, test):
    """Scores (N,) -> (N,) float64: the mean of the z-scores against either side's cohort scores.

    enrol, test: (mean, deviation) as ``cohort_statistics`` gives them, each (N,): those of the trials' two sides.
    """
    scores = np.asarray(scores, dtype=np.float64)
    return ((scores - enrol[0]) / enrol[1] + (scores - test[0]) / test[1]) / 2


def as_norm(scores, enrol, test, cohort, top_n=300):
    """Adaptive symmetric score normalisation: scores (N,) -> (N,) float64.

    The score is normalised by the mean and deviation of each side's own ``top_n`` highest cohort scores, and the two
    are averaged (AS-norm1 of Matejka et al., "Analysis of Score Normalization in Multilingual Speaker Recognition",
    Interspeech 2017). enrol, test (N, D): the vectors of the trials' two sides; cohort (K, D); dot products of these
    are the scores. Repeated vectors are computed once. Errors as in ``cohort_statistics``.
    """
    if not len(scores) == len(enrol) == len(test):
        raise ValueError(f"{len(scores)} scores of {len(enrol)} enrolment and {len(test)} test vectors")
    vectors, place = np.unique(np.concatenate([enrol, test]), axis=0, return_inverse=True)
    mean, deviation = cohort_statistics(vectors, cohort, top_n)
    return symmetric_norm(scores, *((mean[side], deviation[side]) for side in np.split(place.ravel(), 2)))


# ---- work in threads -------------------------------------------------------------------------------------------------


def in_order(task, items, threads):
    """Yield ``task(item)`` of each item, in order, computed in threads ahead of time."""
    pool, ahead = concurrent.futures.ThreadPoolExecutor(max(1, threads)), collections.deque()
    try:
        for item in items:
            ahead.append(pool.submit(task, item))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path, mode="wb", sync=True):
    """Open ``path`` for writing so that it appears whole or not at all: written beside, flushed, then renamed.

    Without ``sync`` a power failure may truncate it, and thousands of small files take a tenth of the time.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape"}  # names may have any bytes
        with open(beside, mode, **text) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save hides the disk's error
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path, text):
    with whole_file(path, "w") as file:
        file.write(text)


def check_writable(folder, flag):
    """Create the folder and a file in it, before the long work. InputError if that fails."""
    try:
        write_text(pathlib.Path(folder) / ".writable", "")
        (pathlib.Path(folder) / ".writable").unlink(missing_ok=True)  # another process may have been here, too
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be written to: {error.strerror}") from error


def file_hash(path, algorithm="sha256"):
    """Hash of a file's bytes, as hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors, numbers, strings and containers of them, whole or not at all."""
    with whole_file(path) as file:
        torch.save(checkpoint, file)


def check_is_file(path, named):
    """InputError unless the path is a file; a pipe or a device may have no end."""
    if not os.path.isfile(path):
        raise InputError(f"{named} {'is not a regular file' if os.path.exists(path) else 'does not exist'}")


def read_text(path, flag=""):
    """The text of a file. InputError, beginning with the flag, when it is absent or not text."""
    path, named = pathlib.Path(path), f"{flag} {path}".strip()
    check_is_file(path, named)
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: Windows editors put an invisible mark at the beginning
        if "\0" in text:
            raise UnicodeError("it has a zero byte")
        return text
    except UnicodeError as error:
        raise InputError(f"{named} is not a text file, or not in UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"{named} cannot be read: {error.strerror}") from error


def load_arrays(path, flag, what="an .npz of arrays"):
    """{name: array} of an .npz, which should be ``what``; nothing in it is executed.

    InputError, beginning with the flag, when it is absent, damaged or something else.
    """
    named = f"{flag} {path}"
    check_is_file(path, named)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # what a damaged file raises depends on the damage
        raise InputError(f"{named} is not {what}, or is damaged ({type(error).__name__})") from error


def read_embeddings(path, flag, encoder):
    """``embeddings`` (N, D) float32 and ``files`` (N,) of an .npz, as verify.py --embed writes it; N > 1.

    Optional: files (then ()); ``model``, the encoder's fingerprint. InputError for another file, or another encoder's.
    """
    arrays, named = load_arrays(path, flag), f"{flag} {path}"
    vectors, size = arrays.get("embeddings"), encoder.network.embedding_size
    if vectors is None or vectors.shape[1:] != (size,) or vectors.dtype.kind != "f" or len(vectors) < 2:
        raise InputError(f"{named} has no array 'embeddings' (2 or more, {size}), as verify.py --embed writes it")
    if "model" in arrays and str(arrays["model"]) != encoder.fingerprint():
        raise InputError(f"{named} was made with another model")
    if not np.isfinite(vectors).all():
        raise InputError(f"{named} has embeddings that are not finite")
    return vectors.astype(np.float32), arrays.get("files", ())


class Placeholder:
    """Stands in for a class that a checkpoint names and nobody needs: takes whatever it is given, does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


def load_tensors(path, stand_in_for=()):
    """Read what ``torch.save`` wrote, onto the CPU: tensors, numbers, strings and containers of them.

    Nothing in the file is executed (weights_only). Classes of the packages ``stand_in_for`` become Placeholders; a file
    that names any other is refused. InputError when it is that, absent, or damaged; RunError when the disk or the
    memory fails.
    """
    path = pathlib.Path(path)
    check_is_file(path, path)
    try:
        named = []
        if stand_in_for and zipfile.is_zipfile(path):  # not so in the format before torch 1.6
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(Placeholder, name) for name in named if name.split(".")[0] in stand_in_for]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about odd pickles: the error below says what a user needs
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on the damage
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.EIO, errno.EACCES, errno.ESTALE):
            raise RunError(f"{path} cannot be read: {getattr(error, 'strerror', 'out of memory')}") from error
        asked = re.search(r"(?:GLOBAL|function|class) <?(\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise InputError(f"{path} is refused: it could run code on loading, it asks for {asked[1]}") from error
        raise InputError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__})") from error


def load_checkpoint(path, kind, content=None):
    """What ``save_checkpoint`` wrote with ``checkpoint["kind"] == kind``: read from the file, unless it is given.

    InputError when it is absent, damaged, or something else.
    """
    checkpoint = load_tensors(path) if content is None else content
    found = checkpoint.get("kind") if isinstance(checkpoint, dict) else None
    if found != kind:
        raise InputError(f"{path} is not a {kind} of this repository{f' but a {found}' if found else ''}")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not verify the checksums
    except Exception as error:  # what a damaged file raises depends on the damage
        raise InputError(f"{path} is damaged ({error})") from error
    if damaged:
        raise InputError(f"{path} is damaged: the checksum of {damaged} in it is another")
    return checkpoint
