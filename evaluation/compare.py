"""Compare two systems on the same trials, from their score files, with a significance test.

    python -m evaluation.compare A.txt B.txt LIST

A.txt, B.txt: scores/<list>.txt of two experiments, lines <score> <enrol path> <test path>; LIST: their trial list. The
interval of the difference and its p-value come from a paired bootstrap over speakers (evaluation/intervals.py).
"""

import argparse

from corpora.lists import TrialList
from evaluation.intervals import compare, speakers_of
from evaluation.scoring import read_scores
from tools import run_command


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A.txt", help="scores of the first system")
    parser.add_argument("second", metavar="B.txt", help="scores of the second system on the same trials")
    parser.add_argument("trial_list", metavar="LIST", help="the trial list, lines <1|0> <enrol path> <test path>")
    args = parser.parse_args()
    trials = TrialList(args.trial_list, "the trial list")
    first, second = read_scores(args.first, trials), read_scores(args.second, trials)
    enrol, test, speakers = speakers_of(trials)
    print(f"A {args.first}\nB {args.second}\n{len(trials)} trials of {speakers} speakers, {trials.path}")
    print(f"{'':14}{'A':>9}{'B':>9}{'B - A':>9}  {'95 % interval':20}p")
    for metric, found in compare(first, second, trials.label, enrol, test).items():
        digits = 2 if metric == "eer" else 4
        name = "EER (%)" if metric == "eer" else f"minDCF({metric.removeprefix('min_dcf_')})"
        numbers = "".join(f"{number:9.{digits}f}" for number in found[:3])
        interval = f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"
        p = "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"  # less than 1,000 replicates can tell
        print(f"{name:14}{numbers}  {interval:20}{p}")


if __name__ == "__main__":
    run_command(main)
