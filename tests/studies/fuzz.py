"""Feed every reader broken files: each must be read or refused with an InputError of one line, and nothing else.

    python tests/studies/fuzz.py 20000                  so many cases, shared among the readers
    python tests/studies/fuzz.py 5000 pack --seed 7     of readers whose names contain "pack", another seed

A case is a small valid file (those of tests/test_hostile.py) with some bytes changed, cut out, repeated or zeroed. It
fails if the reader raises anything else, takes over a minute, or needs 2 GB more than before; it is then kept.
"""

import argparse
import collections
import pathlib
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from test_hostile import make_readers

from tools import InputError

SECONDS, BYTES = 60, 2**31


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
    """"read" or "refused"; raises what the reader should not have raised."""
    signal.alarm(SECONDS)
    try:
        reader.read(folder)
        return "read"
    except InputError as error:
        if not str(error).isprintable() or len(str(error)) > 5000:
            raise AssertionError("the message is not one short line") from error
        return "refused"
    finally:
        signal.alarm(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int)
    parser.add_argument("reader", nargs="?", default="", help="only readers whose names contain this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failures, work = 0, pathlib.Path(tempfile.mkdtemp(prefix="fuzz."))
    readers = {name: reader for name, reader in make_readers(work).items() if args.reader in name}
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, 2 * (pages * resource.getpagesize() + BYTES,))
    for name, reader in readers.items():
        folder, outcomes = work / "case" / name, collections.Counter()
        folder.mkdir(parents=True)
        for file, content in reader.files.items():
            (folder / file).write_bytes(content)
        file, content = next(iter(reader.files.items()))
        for case in range(args.cases // len(readers)):
            random = np.random.default_rng([args.seed, zlib.crc32(name.encode()), case])
            (folder / file).write_bytes(mutate(content, random))
            try:
                outcomes[attempt(reader, folder)] += 1
            except Exception:
                outcomes["failed"] += 1
                (work / f"{name} {case} {file}").write_bytes((folder / file).read_bytes())
                print(f"{name}, case {case}: {traceback.format_exc()}")
        failures += outcomes["failed"]
        print(f"{name:24}" + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    print(f"{failures} failures" + (f": see {work}" if failures else ""))
    return failures > 0


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"no answer in {SECONDS} s")))
    sys.exit(main())
