"""Damaged files by the thousand: every reader either reads them or refuses them in one line, in bounded memory.

    python tests/studies/fuzz.py 2000                  so many cases for each reader
    python tests/studies/fuzz.py 500 pack --seed 7     of one reader, another seed

Each case is a small valid file with bytes flipped, cut out, doubled or overwritten.
"""

import argparse
import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np  # noqa: E402
from readers import READERS  # noqa: E402

from tools import InputError  # noqa: E402

GIGABYTES = 3  # address space beyond what the libraries take


def damaged(content, random):
    content = bytearray(content)
    for _ in range(random.integers(1, 4)):
        start = int(random.integers(len(content) + 1))
        length = int(random.choice([1, 4, 64, max(1, len(content) // 4)]))
        action = random.integers(4)
        if action == 0:
            flips = random.integers(8, size=len(content[start : start + length]))
            content[start : start + length] = bytes(b ^ (1 << n) for b, n in zip(content[start:], flips.tolist()))
        elif action == 1:
            del content[start : start + length]
        elif action == 2:
            content[start:start] = content[start : start + length]
        else:
            content[start : start + length] = random.bytes(length)
    return bytes(content)


def try_reader(name, cases, seed):
    """(read, refused, [failures])."""
    write, read = READERS[name]
    random, counts, failures = np.random.default_rng([seed, len(name)]), [0, 0], []
    for case in range(cases):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            write(path)
            path.write_bytes(damaged(path.read_bytes(), random))
            try:
                read(path)
                counts[0] += 1
            except InputError as error:
                counts[1] += 1
                if "\n" in str(error):
                    failures.append(f"{name} {case}: more than a line: {error!r}")
            except Exception:
                failures.append(f"{name} {case}: {traceback.format_exc(limit=-2)}")
    return *counts, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int)
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}; all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + GIGABYTES * 2**30, resource.RLIM_INFINITY))
    failed = 0
    for name in args.readers or READERS:
        read, refused, failures = try_reader(name, args.cases, args.seed)
        failed += len(failures)
        print(f"{name}: {read} read, {refused} refused, {len(failures)} failed", *failures[:3], sep="\n  ", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
