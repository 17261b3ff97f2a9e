"""Corpora for the recipe: from a download or a folder of recordings to lists, a check of it all, and packs.

    python prepareData.py --unpack DOWNLOADS --to DIR                       unpack VoxCeleb, MUSAN, RIRS_NOISES
    python prepareData.py --convert FOLDER --to DIR                         write 16 kHz mono wav of any audio
    python prepareData.py --demo DIR                                        generate the demo corpus
    python prepareData.py --pack DIR --train_list LIST --train_path ROOT    pack a training list with its audio
    python prepareData.py --pack DIR --musan_path ROOT                      pack noises
    python prepareData.py --pack DIR --rir_path ROOT                        pack room responses
    python prepareData.py --lists ROOT --to FOLDER                          lists of your own recordings under ROOT
    python prepareData.py --check --train_list LIST --train_path ROOT ...   what would go wrong with them?
"""

import argparse
import json
import shlex
import sys

from corpora import check as doctor
from corpora.audio import Folder, check_folder, find_noises, find_responses
from corpora.convert import convert_folder
from corpora.demo import make_demo
from corpora.lists import TrainingList, check_files
from corpora.make_lists import from_csv, from_folder, from_kaldi, read_sex, write_lists
from corpora.pack import write_pack
from corpora.unpack import unpack as unpack_archives
from tools import InputError, RunError, check_flags, run_command, sha256


def demo(arguments):
    folder = make_demo(arguments.demo, arguments.train_speakers, arguments.eval_speakers, arguments.seed)
    print(f"{folder}: train_list.txt over train/wav, trials.txt over eval/wav, musan/, rirs/")


def pack(arguments):
    """Pack a training list, noises or responses; the pack then takes the place of the folder on the command line."""
    given = [name for name in ("train_path", "musan_path", "rir_path") if getattr(arguments, name)]
    if len(given) != 1 or (given == ["train_path"]) != bool(arguments.train_list):
        raise InputError("--pack needs one of: --train_list with --train_path, --musan_path, --rir_path")
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


def unpack(arguments):
    files, new = unpack_archives(arguments.unpack, arguments.to, arguments.n_cpu, arguments.any_md5)
    print(f"{arguments.to}: {files} files, {new} of them new")


def convert(arguments):
    done = convert_folder(arguments.convert, arguments.to, arguments.format, arguments.n_cpu)
    failed = len(done.failed)
    print(f"{arguments.to}: {done.files} files, {done.written} written, {done.already} already there, {failed} failed")
    if failed:
        first = next(iter(done.failed.values()))
        raise RunError(f"{failed} of {done.files} files failed, see {arguments.to}/failed.tsv: {first}")


def lists(arguments):
    """Write the lists of recordings under a folder; the next command, to train on them, is the last thing printed."""
    root, folder, table, kaldi = arguments.lists, arguments.to, arguments.csv, arguments.kaldi
    if table and kaldi:
        raise InputError("--lists takes --csv or --kaldi, not both")
    if arguments.columns and not table:
        raise InputError("--columns are those of a --csv: give it, too")
    if arguments.seed < 0:
        raise InputError(f"--seed must be 0 or more, not {arguments.seed}")
    sex = read_sex(arguments.metadata) if arguments.metadata else None
    if table:
        found = from_csv(table, root, arguments.columns)
    elif kaldi:
        found = from_kaldi(kaldi, root)
    else:
        found = from_folder(root)
    kept, trials = write_lists(found, root, folder, arguments.valid_speakers, sex, arguments.seed)
    command = ["python", "trainSpeakerNet.py", "--train_list", f"{folder}/train_list.txt", "--train_path", root]
    print(f"{folder}/train_list.txt: {len(kept)} utterances of {len(kept.speakers)} speakers")
    if trials:
        files = {*trials.enrol, *trials.test}
        among = ", different speakers of one sex" if sex else ""
        print(f"{folder}/trials.txt: {len(trials)} trials, half of them of one speaker, of {len(files)} utterances of "
              f"speakers who are not in the training list{among}")  # fmt: skip
        command += ["--eval_list", f"{folder}/trials.txt", "--eval_path", root]
    else:
        command += ["--eval_list"]
    print(f"train on them (with --musan_path and --rir_path where you have them): {shlex.join(command)} "
          "--musan_path '' --rir_path '' --save_path exps/own")  # fmt: skip


def check(arguments):
    """Print what would go wrong with lists, audio, noises and responses -> exit status."""
    checked = ("train_list", "eval_list", "musan_path", "rir_path")
    if not any(getattr(arguments, name) for name in checked):
        raise InputError(f"--check needs something to check: --{', --'.join(checked)}")
    findings = doctor.check(arguments)
    status = doctor.status(findings)
    as_data = {"status": status, "findings": [each._asdict() for each in findings]}
    print(json.dumps(as_data, indent=2) if arguments.json else doctor.table(findings))
    return status


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s ACTION [flags]", allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=120),
    )  # fmt: skip
    group = parser.add_argument_group("actions: give one").add_mutually_exclusive_group(required=True)
    group.add_argument("--unpack", metavar="DIR", help="unpack the archives in DIR as downloaded, those in parts, too")
    group.add_argument("--convert", metavar="DIR", help="write all audio in DIR as 16 kHz mono, in the same layout")
    group.add_argument("--demo", metavar="DIR", help="generate the demo corpus (synthetic speech, 230 MB) in DIR")
    group.add_argument("--pack", metavar="DIR", help="write a pack to DIR; again: continue after an interruption")
    group.add_argument("--lists", metavar="ROOT", help="write lists of the recordings ROOT/<speaker>/.../<file>")
    group.add_argument("--check", nargs="?", const="headers", choices=["headers", "full"],
                       help="say what would go wrong with lists and audio, from its headers; full: decode all of it; "
                       "exit status 0: fine, 1: warnings, 2: errors")
    # fmt: off
    add = parser.add_argument_group("--unpack, --convert; with --n_cpu; again: continue").add_argument
    add("--to",      metavar="DIR", help="folder to write to, of --lists, too; with --check, the disk to look at")
    add("--format",  choices=["wav", "flac"], default="wav", help="of what --convert writes (%(default)s)")
    add("--any_md5", action="store_true", help="--unpack archives that are other than the published ones, too")
    add = parser.add_argument_group("--demo").add_argument
    add("--train_speakers", type=int, default=160, help="training speakers (%(default)s)")
    add("--eval_speakers",  type=int, default=40,  help="other speakers, for the trials (%(default)s)")
    add("--seed",           type=int, default=0,   help="another seed, another corpus, other lists (%(default)s)")
    add = parser.add_argument_group("--pack").add_argument
    add("--train_list", metavar="LIST", help="pack the files of this training list, lines <speaker> <path>")
    add("--train_path", metavar="ROOT", help="folder that its paths start from")
    add("--paths_anywhere", action="store_true", help="its paths may be absolute, or leave that folder by ..")
    add("--musan_path", metavar="ROOT", help="or: pack MUSAN's noise/, music/ and speech/")
    add("--rir_path",   metavar="ROOT", help="or: pack RIRS_NOISES or another folder of room responses")
    add("--n_cpu",      type=int, default=4, help="threads that read audio, or processes of ffmpeg (%(default)s)")
    add = parser.add_argument_group("--lists").add_argument
    add("--csv", metavar="FILE", help="who speaks where, instead of by folders: a table of speakers and paths")
    add("--columns", nargs=2, metavar=("SPEAKER", "PATH"), help="its columns, by name or, without a header, by number")
    add("--kaldi", metavar="DIR", help="or by Kaldi's wav.scp and utt2spk")
    add("--valid_speakers", type=int, help="hold out so many for the trials (a tenth, 100 at most); 0: no trials")
    add("--metadata", metavar="FILE", help="table with speakers and their sex: trials between speakers of one sex")
    add = parser.add_argument_group("--check (and --train_list, --train_path, --musan_path, --rir_path)").add_argument
    add("--eval_list", nargs="*", metavar="LIST", help="trial lists, lines <1|0> <enrol path> <test path>")
    add("--eval_path", metavar="ROOT", help="folder that their paths start from")
    add("--n_class", type=int, help="number of speakers, if training is to be told")
    add("--json", action="store_true", help="print the findings as JSON")
    # fmt: on
    return parser


CORPUS = {"train_list", "train_path", "musan_path", "rir_path", "paths_anywhere", "n_cpu"}
ACTIONS = {  # and the flags that belong to each
    "--unpack": {"to", "any_md5", "n_cpu"},
    "--convert": {"to", "format", "n_cpu"},
    "--demo": {"train_speakers", "eval_speakers", "seed"},
    "--pack": CORPUS,
    "--lists": {"to", "csv", "columns", "kaldi", "valid_speakers", "metadata", "seed"},
    "--check": CORPUS | {"eval_list", "eval_path", "n_class", "json", "to"},
}


def main():
    arguments = build_parser().parse_args()
    if arguments.n_cpu < 1:
        raise InputError(f"--n_cpu must be at least 1, not {arguments.n_cpu}")
    acts = unpack, convert, demo, pack, lists, check
    act = next(act for act in acts if getattr(arguments, act.__name__) is not None)
    action = f"--{act.__name__}"
    check_flags(sys.argv[1:], action, ACTIONS)
    if not getattr(arguments, act.__name__):
        raise InputError(f"{action} needs a folder")
    if act in (unpack, convert, lists) and not arguments.to:
        raise InputError(f"{action} needs --to, the folder to write to")
    return act(arguments)


if __name__ == "__main__":
    run_command(main)
