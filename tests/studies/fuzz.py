"""Feed every reader broken files: each must be read or refused with an InputError of one line, and nothing else.

    python tests/studies/fuzz.py 20000 [SEED]           so many cases, shared among the readers

A case is a small valid file (those of tests/test_hostile.py) with some bytes changed, cut out, repeated or zeroed. It
fails if the reader raises anything else; it is then kept. A reader that takes over a minute ends the study.
"""

import collections
import pathlib
import signal
import sys
import tempfile
import traceback
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from test_hostile import make_readers

from tools import InputError


def mutate(content, random):
    """The content with one to four stretches changed."""
    content = bytearray(content)
    for _ in range(random.integers(1, 5)):
        start = int(len(content) * random.beta(0.4, 0.4))  # most often near an end: headers, a zip's directory
        end = min(len(content), start + int(2 ** random.uniform(0, 10)))
        piece = content[start:end]
        changes = [random.bytes(1) + piece[1:], b"", piece + piece, bytes(len(piece)), random.bytes(len(piece))]
        content[start:end] = changes[random.integers(len(changes))]
        if random.random() < 0.1:
            del content[start:]
    return bytes(content)


def attempt(reader, folder):
    """"read", "refused" or "failed", which is then printed."""
    signal.alarm(60)
    try:
        reader.read(folder)
        return "read"
    except InputError as error:
        return "refused" if str(error).isprintable() and len(str(error)) < 5000 else "failed"
    except Exception:
        traceback.print_exc()
        return "failed"
    finally:
        signal.alarm(0)


def main(cases, seed=0):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    random, failures, work = np.random.default_rng(int(seed)), 0, pathlib.Path(tempfile.mkdtemp(prefix="fuzz."))
    readers = make_readers(work)
    for name, reader in readers.items():
        folder, outcomes = work / "case" / name, collections.Counter()
        folder.mkdir(parents=True)
        for file, content in reader.files.items():
            (folder / file).write_bytes(content)
        file, content = next(iter(reader.files.items()))
        for case in range(int(cases) // len(readers)):
            (folder / file).write_bytes(mutate(content, random))
            outcome = attempt(reader, folder)
            outcomes[outcome] += 1
            if outcome == "failed":
                (folder / file).rename(work / f"{name} {case} {file}")
        failures += outcomes["failed"]
        print(f"{name:24}" + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    return f"{failures} failures: see {work}" if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
