"""Ablation of the strong recipe: each step adds one setting to those above it, and is compared with the step above.

    python tests/studies/ladder.py run --data ../shared/data --part 0/2 &      # every second run, on a core of its own
    python tests/studies/ladder.py run --data ../shared/data --part 1/2
    python tests/studies/ladder.py table --data ../shared/data                 # the results

Finished runs are not repeated. C=32, 1 s crops (3 s in fine-tuning), 20 epochs, three seeds: an hour on two CPU cores.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from corpora.lists import TrialList
from evaluation.intervals import bootstrap_intervals, compare, speakers_of
from evaluation.scoring import read_scores
from tools import equal_error_rate

EPOCHS = 20
COMMON = ["--C", "32", "--num_frames", "100", "--batch_size", "64", "--max_epoch", str(EPOCHS), "--test_step",
          str(EPOCHS), "--n_cpu", "1", "--valid_speakers", "40", "--average", "5"]  # fmt: skip
TRAINED = {  # flags, in addition to those above
    "customary": [],
    "AdamW, warm-up, cosine": ["--optimizer", "adamw", "--weight_decay", "0.01", "--warmup", "1", "--schedule",
                               "cosine"],
    "margin rises": ["--margin_rise", "3", "8"],
    "sub-centres": ["--sub_centres", "3"],
    "inter-top-k": ["--top_k", "5"],
    "speed perturbation": ["--speed_perturb"],
}
FINETUNE = ["--finetune_margin", "--num_frames", "300", "--max_epoch", "3", "--test_step", "3", "--batch_size", "64",
            "--n_cpu", "1", "--valid_speakers", "40"]  # fmt: skip
AVERAGE, FINETUNED = "mean of 5 epochs", "large-margin fine-tuning"  # of the last of those; from that mean
# What is then done to the scores, and the name of the score file.
BACK_END = {"whole utterances, cosine": "cosine", "mean subtracted": "mean", "AS-norm": "as_norm",
            "calibrated, with quality": "calibrated"}  # fmt: skip
STEPS = [*TRAINED, AVERAGE, FINETUNED, *BACK_END]


def train_flags(args):
    data = Path(args.data)
    return ["--train_list", data / "train_list.txt", "--train_path", data, "--musan_path", data / "musan", "--rir_path",
            data / "rirs", *eval_flags(args)]  # fmt: skip


def eval_flags(args):
    data = Path(args.data)
    return ["--eval_list", data / "trials_O.txt", data / "trials_H.txt", "--eval_path", data]


def folder(args, step, seed):
    return Path(args.save_path) / f"{step.replace(' ', '_').replace(',', '')}-{seed}"


def jobs(args):
    """Chains of runs, [(folder, flags)]: the runs of a chain need each other, in that order."""
    for seed in args.seeds:
        flags = []
        for step, more in TRAINED.items():
            flags = [*flags, *more]
            yield [(folder(args, step, seed), [*COMMON, *flags, "--seed", seed, *train_flags(args)])]
    for seed in args.seeds:
        average = folder(args, list(TRAINED)[-1], seed) / "model" / f"average_{EPOCHS:04d}.model"
        finetuned = folder(args, FINETUNED, seed)
        yield [
            (folder(args, AVERAGE, seed), ["--eval", "--initial_model", average, *eval_flags(args)]),
            (finetuned, [*FINETUNE, "--seed", seed, "--initial_model", average, *train_flags(args)]),
            (folder(args, "back-end", seed), ["--eval", "--calibrate", "--initial_model",
                                              finetuned / "model" / "model_0003.model", *train_flags(args)]),
        ]  # fmt: skip


def run(args):
    part, parts = map(int, args.part.split("/"))
    for chain in list(jobs(args))[part::parts]:
        for where, flags in chain:
            if not (where / "done").exists():
                command = [sys.executable, f"{sys.path[0]}/trainSpeakerNet.py", "--save_path", where, *flags]
                print(where, flush=True)
                where.mkdir(parents=True, exist_ok=True)
                with open(where / "log.txt", "a") as log:
                    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                    subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=log, env=environment)
                (where / "done").touch()


def scores_of(args, step, seed, trials):
    where, name = folder(args, step, seed), trials.path.stem
    if step in BACK_END:
        where, name = folder(args, "back-end", seed), f"{name}.{BACK_END[step]}"
    return read_scores(where / "scores" / f"{name}.txt", trials)


def table(args):
    print("means over seeds; in brackets 95 % intervals over speakers, of the mean; p: of the mean's difference")
    for name in ("trials_O", "trials_H"):
        trials = TrialList(Path(args.data) / f"{name}.txt")
        enrol, test, speakers = speakers_of(trials)
        print(f"\n{name}: {len(trials)} trials of {speakers} speakers, seeds {' '.join(map(str, args.seeds))}")
        print(f"{'step':26}{'EER of each seed':24}{'mean':>7}   {'minus the step above':28}{'p':>6}")
        above = None
        for step in STEPS:
            scores = np.stack([scores_of(args, step, seed, trials) for seed in args.seeds])
            eers = [equal_error_rate(row, trials.label)[0] for row in scores]
            line = f"{step:26}{' '.join(f'{eer:5.2f}' for eer in eers):24}{np.mean(eers):7.2f}"
            if above is None:
                interval = bootstrap_intervals(scores[0], trials.label, enrol, test)["eer"]
                line += f"   (seed {args.seeds[0]}: [{interval.low:.2f}, {interval.high:.2f}])"
            else:
                found = compare(above, scores, trials.label, enrol, test)["eer"]
                line += f"   {found.difference:+6.2f} [{found.low:+6.2f}, {found.high:+6.2f}]    {found.p:8.3f}"
            print(line)
            above = scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", default="../shared/data", help="the folder of real speech")
    parser.add_argument("--save_path", default="exps/ladder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="0/1", help="which part of the runs, of how many")
    arguments = parser.parse_args()
    {"run": run, "table": table}[arguments.what](arguments)
