"""How long prepareData.py --check takes for many files.

    python tests/check_size.py 100000                # headers, of generated wav files of a quarter of a second
    python tests/check_size.py 20000 --full          # every sample
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

SCRIPT = Path(__file__).resolve().parents[2] / "prepareData.py"


def make_tree(folder, count):
    """So many different files, 100 of each speaker in 10 sessions, and their list."""
    random, lines = np.random.default_rng(0), []
    waveform = random.integers(-9000, 9000, 4000, dtype=np.int16)
    for number in range(count):
        name = f"id{number // 100:05d}/session{number // 10 % 10}/{number:07d}.wav"
        (folder / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
        waveform[:2] = divmod(number, 30000)  # no two are equal
        soundfile.write(folder / "wav" / name, waveform, 16000)
        lines.append(f"{name.split('/')[0]} {name}\n")
    (folder / "list.txt").write_text("".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--n_cpu", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_tree(folder, arguments.count)
        flags = ["--train_list", folder / "list.txt", "--train_path", folder / "wav", "--n_cpu", arguments.n_cpu]
        began = time.perf_counter()
        how = "full" if arguments.full else "headers"
        subprocess.run([sys.executable, SCRIPT, "--check", how, *map(str, flags)])
        took = time.perf_counter() - began
    print(f"{arguments.count:,} files, {how}: {took:.1f} s, {100_000 * took / arguments.count:.1f} s per 100,000 files")


if __name__ == "__main__":
    main()
