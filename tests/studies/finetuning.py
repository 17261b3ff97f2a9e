"""What fine-tuning on few speakers does to real speech: a model is tuned on half of the speakers of a corpus that it
has not heard and evaluated on the other half; then the halves change places, and all trials are judged together.

    python tests/studies/finetuning.py run --model exps/ladder/strong-0/model/model_0048.model
    python tests/studies/finetuning.py table

Corpora: the evaluation speakers of the first package, of all its corpora and mostly one session; the Arabic ones of the
second, with ten sessions each, whose trials are across sessions. Finished runs are not repeated.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ladder import print_table, start

from corpora.lists import TrainingList, TrialList
from corpora.make_lists import from_folder, hold_out, make_trials
from evaluation.scoring import read_scores

CORPORA = {"mixed": ("data", ""), "arabic": ("data2", "ar")}  # package, first letters of its speakers
WAYS = {  # flags; None: from scratch
    "defaults": [],
    "rate 0.0003": ["--lr", "0.0003"],
    "batch norm free, 5 epochs": ["--freeze_bn", "off", "--max_epoch", "5"],
    # The same number of files, and about that of crops of the way before.
    "one session a speaker": ["--freeze_bn", "off", "--max_epoch", "50"],
    "as many files of all sessions": ["--freeze_bn", "off", "--max_epoch", "50"],
    "from scratch": None,
}
BEFORE, MEAN = "before", " (mean)"  # the model itself; the mean of its weights and the tuned ones


def folds(args, corpus):
    """[(TrainingList to tune on, TrialList of the others)] of both directions."""
    package, prefix = CORPORA[corpus]
    root = Path(args.data) / package / "eval/wav"
    found = TrainingList.of(root, *zip(*(each for each in from_folder(root) if each[0].startswith(prefix))))
    halves = hold_out(found, len(found.speakers) // 2)
    return [(tuned, make_trials(other, f"{corpus}{i}.txt")) for i, (tuned, other) in enumerate((halves, halves[::-1]))]


def part(tuned, way, seed):
    """The lines of a TrainingList that a way takes, of some one session of each speaker or as many of all."""
    if "session" not in way:
        return tuned
    sessions, rows = np.array([Path(file).parent.name for file in tuned.files]), []
    for speaker in range(len(tuned.speakers)):
        own = np.flatnonzero(tuned.label == speaker)
        names = np.unique(sessions[own])
        one = own[sessions[own] == names[seed % len(names)]]
        rows += list(one if way.startswith("one") else own[np.linspace(0, len(own) - 1, len(one)).astype(int)])
    return tuned.subset(np.array(rows))


def run(args):
    folder, data = Path(args.save_path), Path(args.data) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, corpus in [(seed, corpus) for seed in args.seeds for corpus in CORPORA]:
        for tuned, trials in folds(args, corpus):
            trial_list, audio = folder / trials.path, tuned.path
            trial_list.write_text(trials.text())
            test = ["--eval", "--eval_list", trial_list, "--eval_path", audio, "--n_cpu", "1", "--initial_model"]
            if not is_done(place(args, BEFORE, trials, 0)):
                start(*test, args.model, "--save_path", place(args, BEFORE, trials, 0))
            for way in args.ways:
                if is_done(place(args, way, trials, seed)) or ("session" in way and corpus != "arabic"):
                    continue
                train_list = folder / f"train_{way.replace(' ', '_')}_{seed}_{trials.path}"
                train_list.write_text(part(tuned, way, seed).text())
                flags = ["--recipe", "strong"] if WAYS[way] is None else ["--initial_model", args.model, *WAYS[way]]
                where = folder / "runs" / place(args, way, trials, seed).name
                start("--train_list", train_list, "--train_path", audio, "--musan_path", data / "musan", "--rir_path",
                      data / "rirs", *flags, "--eval_list", "", "--test_step", "1000", "--n_cpu", "1", "--seed", seed,
                      "--save_path", where)  # fmt: skip
                for kind, name in (("average", way + MEAN), ("model", way)):
                    for model in sorted((where / "model").glob(f"{kind}_*.model"))[-1:]:
                        start(*test, model, "--save_path", place(args, name, trials, seed))


def place(args, way, trials, seed):
    return Path(args.save_path) / "eval" / f"{way}-{trials.path.stem}-{seed}".replace(" ", "_")


def is_done(folder):
    return (folder / "results.json").exists()


def table(args):
    for corpus in CORPORA:
        both = [TrialList(Path(args.save_path) / f"{corpus}{i}.txt") for i in (0, 1)]
        columns = [[*getattr(both[0], name), *getattr(both[1], name)] for name in ("label", "enrol", "test")]
        scores = {}
        for way in (BEFORE, *(way + kind for way in WAYS for kind in ("", MEAN))):
            for seed in args.seeds:
                where = [place(args, way, trials, 0 if way == BEFORE else seed) for trials in both]
                if all(map(is_done, where)):
                    files = [each / "scores" / trials.path.name for each, trials in zip(where, both)]
                    scores.setdefault(way, {})[seed] = np.concatenate(list(map(read_scores, files, both)))
        print_table(corpus, TrialList.of(corpus, *columns), scores)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", default="../shared", help="the folder with the two packages of real speech")
    parser.add_argument("--model", help="the model to tune, trained on neither side")
    parser.add_argument("--save_path", default="exps/finetuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="only these")
    arguments = parser.parse_args()
    {"run": run, "table": table}[arguments.what](arguments)
