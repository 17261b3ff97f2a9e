"""What the components of the recipes do on small real speech: every rung changes one thing, and each is compared with
the customary recipe on five trial lists, by paired intervals over speakers.

    python tests/studies/ladder.py prepare                # lists, links and noisy speech under exps/ladder
    python tests/studies/ladder.py run --part 0/2 &       # every second run, on a core of its own
    python tests/studies/ladder.py run --part 1/2
    python tests/studies/ladder.py table                  # of the runs that are there

Train: train_list_all of --data (524 speakers). Lists: O, H, A, S of the two packages, which each model reads once; N: O
with noise on the test side, whose noises, a quarter of all, no training hears. Scores: the model's own, and AS-norm
with the training speakers. Finished runs are not repeated, others are resumed. 155,000 crops with C=64 take 20 to 35
minutes on one core, the million of the long runs 2 to 3 hours, the scores 5 to 10 minutes.
"""

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from corpora.audio import AudioFile, Folder
from corpora.lists import TrainingList, TrialList
from corpora.pack import write_pack
from evaluation.intervals import bootstrap_intervals, compare, speakers_of
from evaluation.scoring import read_scores
from tools import equal_error_rate

COMMON = ["--C", "64", "--batch_size", "32", "--max_epoch", "48", "--test_step", "1000", "--n_cpu", "1", "--compile"]
SCHEDULE = ["--optimizer", "adamw", "--weight_decay", "0.01", "--lr", "0.0028284", "--lr_final", "7.07e-6",
            "--schedule", "cosine", "--warmup", "1.92", "--margin_rise", "0", "38.4"]  # strong's, for these sizes
RUNGS = {  # flags, in addition to those above
    "customary": [],
    "customary, spectrum kept": ["--keep_spectrum"],
    "customary, three speeds": ["--speed_perturb"],
    "three speeds, schedule": ["--speed_perturb", *SCHEDULE],
    "strong": ["--recipe", "strong"],  # the three together
    "strong, crops of 3 s": ["--recipe", "strong", "--num_frames", "300"],
    "customary, 80 epochs": ["--max_epoch", "80"],  # 259,000 crops, the defaults of both
    "strong, 80 epochs": ["--recipe", "strong", "--max_epoch", "80"],
    "customary, long": ["--max_epoch", "310", "--lr_decay", "0.9922"],  # a million; the rate falls as far as in 80
    "strong, long": ["--recipe", "strong", "--max_epoch", "310"],
}
LISTS = {"O": "data/trials_O.txt", "H": "data/trials_H.txt", "A": "data2/trials_A.txt", "S": "data2/trials_S.txt"}
NOISY, SNR = "N", (0, 15)  # dB, uniformly


def prepare(args):
    """Lists <name>.txt, the audio they name under audio/, that of training in pack/, its noises under musan/."""
    data, folder = Path(args.data), Path(args.save_path)
    write_pack(folder / "pack", Folder(data), TrainingList(data / "data2/train_list_all.txt"), threads=1)
    noises = sorted((data / "data/musan").rglob("*.wav"))
    for file in set(noises) - set(noises[::4]):
        link(file, folder / "musan" / file.relative_to(data / "data/musan"))
    noises, random = [read(file) for file in noises[::4]], np.random.default_rng(0)
    for name, path in LISTS.items():
        trials, root = TrialList(data / path), (data / path).parent
        for file in {*trials.enrol, *trials.test}:
            link(root / file, folder / "audio" / short(file))
        write(folder / f"{name}.txt", trials.label, map(short, trials.enrol), map(short, trials.test))
    trials = TrialList(folder / "O.txt")
    for file in sorted(set(trials.test)):
        speech, noise = read(folder / "audio" / file), noises[random.integers(len(noises))]
        noise = np.resize(np.roll(noise, random.integers(len(noise))), len(speech))
        gain = np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-random.uniform(*SNR) / 20)
        mixed = speech + gain * noise
        (folder / "audio" / noisy(file)).parent.mkdir(exist_ok=True)
        soundfile.write(folder / "audio" / noisy(file), mixed / max(1, np.abs(mixed).max()), 16000)
    write(folder / f"{NOISY}.txt", trials.label, trials.enrol, map(noisy, trials.test))


def read(file):
    with AudioFile(file) as audio:
        return audio.read().astype(np.float64)


def link(file, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    if not to.exists():
        to.symlink_to(file.resolve())


def short(file):
    """<speaker>/<session>/<file>: speakers of both packages have different names."""
    return "/".join(file.split("/")[-3:])


def noisy(file):
    speaker, session, name = file.split("/")
    return f"{speaker}/noisy/{session}_{Path(name).stem}.wav"


def write(path, *columns):
    path.write_text("".join(f"{label} {enrol} {test}\n" for label, enrol, test in zip(*columns)))


def place(args, rung, seed):
    return Path(args.save_path) / f"{rung.replace(' ', '_').replace(',', '')}-{seed}"


def run(args):
    part, parts = map(int, args.part.split("/"))
    data, folder = Path(args.data), Path(args.save_path)
    speech = ["--train_list", data / "data2/train_list_all.txt", "--train_path", folder / "pack"]
    train = [*COMMON, *speech, "--eval_list", "--musan_path", folder / "musan", "--rir_path", data / "data/rirs"]
    evaluate = ["--eval", "--as_norm", *speech, "--n_cpu", "1", "--eval_path", folder / "audio", "--eval_list",
                *(folder / f"{name}.txt" for name in (*LISTS, NOISY))]  # fmt: skip
    chosen = {rung: RUNGS[rung] for rung in args.rungs or RUNGS}
    for seed, (rung, flags) in [(seed, each) for seed in args.seeds for each in chosen.items()][part::parts]:
        where = place(args, rung, seed)
        if not (where / "eval" / "results.json").exists():
            start(*train, *flags, "--seed", seed, "--save_path", where)
            start(*evaluate, "--initial_model", where / "model", "--save_path", where / "eval")


def start(*flags):
    command = [sys.executable, Path(__file__).resolve().parents[2] / "trainSpeakerNet.py", *flags]
    print(*command, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env=environment)


def table(args):
    folder, rungs = Path(args.save_path), {}
    for rung in args.rungs or RUNGS:
        seeds = [seed for seed in args.seeds if (place(args, rung, seed) / "eval" / "results.json").exists()]
        if seeds:
            rungs[rung] = seeds
    if not rungs:
        sys.exit(f"{folder} has no finished run")
    for name, step in itertools.product((*LISTS, NOISY), ("", ".as_norm")):
        trials = TrialList(folder / f"{name}.txt")
        scores = {rung: {seed: read_scores(place(args, rung, seed) / "eval" / "scores" / f"{name}{step}.txt", trials)
                         for seed in seeds} for rung, seeds in rungs.items()}  # fmt: skip
        print_table(name + step, trials, scores)


def print_table(name, trials, scores):
    """EER in % of each seed and their mean, of scores {row: {seed: (N,)}}; less that of the first row, paired."""
    enrol, test, speakers = speakers_of(trials)
    first, at_first = next(iter(scores.items()))
    print(f"\n{name}: {len(trials)} trials of {speakers} speakers; EER in %, mean; less {first!r} [95 %], p")
    for row, of_seed in scores.items():
        eers = [equal_error_rate(each, trials.label)[0] for each in of_seed.values()]
        line = f"{row:28}{' '.join(f'{eer:5.2f}' for eer in eers):18}{np.mean(eers):7.2f}  "
        both = [seed for seed in of_seed if seed in at_first]
        if row == first:
            low, high = bootstrap_intervals(next(iter(of_seed.values())), trials.label, enrol, test)["eer"]
            line += f"[{low:.2f}, {high:.2f}]"
        elif both:
            pair = [np.stack([each[seed] for seed in both]) for each in (at_first, of_seed)]
            found = compare(*pair, trials.label, enrol, test)["eer"]
            line += f"{found.difference:+6.2f} [{found.low:+6.2f}, {found.high:+6.2f}]  {found.p:.3f}"
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "table"])
    parser.add_argument("--data", default="../shared", help="the folder with the two packages of real speech")
    parser.add_argument("--save_path", default="exps/ladder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rungs", nargs="+", choices=list(RUNGS), help="only these")
    parser.add_argument("--part", default="0/1", help="which part of the runs, of how many")
    arguments = parser.parse_args()
    {"prepare": prepare, "run": run, "table": table}[arguments.what](arguments)
