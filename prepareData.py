"""Corpora for the recipe. `python prepareData.py --demo DIR` generates the demo corpus."""

import argparse

from demoCorpus import make_demo
from tools import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare corpora. Give one of the actions.")
    add = parser.add_argument
    add("--demo", metavar="DIR", help="generate the demo corpus (synthetic speech, 230 MB) in DIR")
    add("--train_speakers", type=int, default=160, help="--demo: training speakers (%(default)s)")
    add("--eval_speakers", type=int, default=40, help="--demo: other speakers, for the trials (%(default)s)")
    add("--seed", type=int, default=0, help="--demo: another seed, another corpus (%(default)s)")
    arguments = parser.parse_args()
    if not arguments.demo:
        parser.error("nothing to do: give --demo DIR")
    folder = make_demo(arguments.demo, arguments.train_speakers, arguments.eval_speakers, arguments.seed)
    print(f"{folder}: train_list.txt over train/wav, trials.txt over eval/wav, musan/, rirs/")


if __name__ == "__main__":
    run_command(main)
