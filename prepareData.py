"""Corpora for the recipe: a demo corpus, and packs, from which training reads faster than from files.

    python prepareData.py --demo DIR                                        generate the demo corpus
    python prepareData.py --pack DIR --train_list LIST --train_path ROOT    pack a training list with its audio
    python prepareData.py --pack DIR --musan_path ROOT                      pack noises
    python prepareData.py --pack DIR --rir_path ROOT                        pack room responses
"""

import argparse

from audio import Folder, check_folder
from augmentation import find_noises, find_responses
from dataLoader import TrainingList, check_files
from demoCorpus import make_demo
from pack import write_pack
from tools import InputError, run_command, sha256


def demo(arguments):
    folder = make_demo(arguments.demo, arguments.train_speakers, arguments.eval_speakers, arguments.seed)
    print(f"{folder}: train_list.txt over train/wav, trials.txt over eval/wav, musan/, rirs/")


def pack(arguments):
    """Pack a training list, noises or responses; the pack then takes the place of the folder on the command line."""
    given = [name for name in ("train_path", "musan_path", "rir_path") if getattr(arguments, name)]
    if len(given) != 1 or (given == ["train_path"]) != bool(arguments.train_list):
        raise InputError("--pack needs one of: --train_list with --train_path, --musan_path, --rir_path")
    if arguments.n_cpu < 1:
        raise InputError(f"--n_cpu must be at least 1, not {arguments.n_cpu}")
    flag, root = f"--{given[0]}", getattr(arguments, given[0])
    check_folder(root, flag)
    speakers = list_sha256 = None
    if arguments.train_list:
        source, listing = Folder(root), TrainingList(arguments.train_list)
        check_files(listing, source, flag, arguments.paths_anywhere)
        speaker = {}  # of each file once, by the line that names it first
        for file, label in zip(listing.files, listing.label):
            speaker.setdefault(file, listing.speakers[label])
        kind, files, speakers, list_sha256 = "speech", list(speaker), list(speaker.values()), sha256(listing.path)
    elif arguments.musan_path:
        source = Folder(root)
        kind, files = "noises", [file for found in find_noises(source, root).values() for file in found]
    else:
        source = Folder(root, channel=0)
        kind, files = "responses", find_responses(source, root)
    written, already = write_pack(arguments.pack, kind, source, files, speakers, list_sha256, arguments.n_cpu)
    content = written.content
    size, hours = written.samples.nbytes / 1e9, content["samples"] / content["sample_rate"] / 3600
    lost = "; to try those again, delete the pack" if already and content["unreadable"] else ""
    print(
        f"{arguments.pack}{' is already packed' if already else ''}: {content['entries']} files, {hours:.2f} hours, "
        f"{size:.2f} GB, {content['unreadable']} unreadable{lost}; train with {flag} {arguments.pack}"
    )


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s ACTION [flags]", allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=120),
    )  # fmt: skip
    group = parser.add_argument_group("actions: give one").add_mutually_exclusive_group(required=True)
    group.add_argument("--demo", metavar="DIR", help="generate the demo corpus (synthetic speech, 230 MB) in DIR")
    group.add_argument("--pack", metavar="DIR", help="write a pack to DIR; again: continue after an interruption")
    # fmt: off
    add = parser.add_argument_group("--demo").add_argument
    add("--train_speakers", type=int, default=160, help="training speakers (%(default)s)")
    add("--eval_speakers",  type=int, default=40,  help="other speakers, for the trials (%(default)s)")
    add("--seed",           type=int, default=0,   help="another seed, another corpus (%(default)s)")
    add = parser.add_argument_group("--pack").add_argument
    add("--train_list", metavar="LIST", help="pack the files of this training list, lines <speaker> <path>")
    add("--train_path", metavar="ROOT", help="folder that its paths start from")
    add("--paths_anywhere", action="store_true", help="its paths may be absolute, or leave that folder by ..")
    add("--musan_path", metavar="ROOT", help="or: pack MUSAN's noise/, music/ and speech/")
    add("--rir_path",   metavar="ROOT", help="or: pack RIRS_NOISES or another folder of room responses")
    add("--n_cpu",      type=int, default=4, help="threads that read audio (%(default)s)")
    # fmt: on
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    demo(arguments) if arguments.demo else pack(arguments)


if __name__ == "__main__":
    run_command(main)
