"""Prepare corpora: download, unpack and convert them, make lists, check and pack the data, generate a demo corpus.

    python prepareData.py --download WHAT ... --to DOWNLOADS                download lists, musan, rirs, voxceleb1, ...
    python prepareData.py --unpack DOWNLOADS --to DIR                       unpack VoxCeleb, MUSAN, RIRS_NOISES
    python prepareData.py --convert FOLDER --to DIR                         convert audio to 16 kHz mono wav
    python prepareData.py --lists ROOT --to FOLDER                          lists of your own recordings under ROOT
    python prepareData.py --check --train_list LIST --train_path ROOT ...   check lists and audio before training
    python prepareData.py --pack DIR --train_list LIST --train_path ROOT    pack a training list with its audio
    python prepareData.py --demo DIR                                        generate the demo corpus
Each has its own help: --check --help.
"""

import argparse
import shlex
import sys

from corpora.audio import Folder, check_folder
from corpora.check import SEVERITIES, table
from corpora.check import check as check_data
from corpora.convert import convert_folder
from corpora.demo import make_demo
from corpora.download import CHOICES
from corpora.download import download as download_files
from corpora.lists import TrainingList, check_files
from corpora.make_lists import from_folder, from_kaldi, write_lists
from corpora.pack import write_pack
from corpora.unpack import unpack as unpack_archives
from tools import InputError, Parser, RunError, count, run_command
from training.settings import LARGE_LIST


def download(args):
    """Download trial lists, MUSAN, RIRS_NOISES, VoxCeleb, or single files, to DIR. Repeat the command to continue."""
    files, new = download_files(args.folder, args.to, args.user, args.mirror, args.any_md5)
    print(f"{args.to}: {count(files, 'file')}, {new} of them new")
    command = ["python", "prepareData.py", "--unpack", args.to, "--to", "/data", *["--any_md5"] * args.any_md5]
    print(f"go on: {shlex.join(command)}")


def unpack(args):
    """Unpack the downloaded archives of VoxCeleb, MUSAN and RIRS_NOISES in DIR. Repeat the command to continue."""
    files, new = unpack_archives(args.folder, args.to, args.n_cpu, args.any_md5)
    print(f"{args.to}: {count(files, 'file')}, {new} of them new")


def convert(args):
    """Convert all audio in DIR to 16 kHz mono in the same layout, with ffmpeg. Repeat the command to continue."""
    written, existed, failed = convert_folder(args.folder, args.to, args.format, args.n_cpu)
    print(f"{args.to}: {count(written, 'file')} written, {existed} existed, {len(failed)} failed")
    if failed:
        raise RunError(f"{count(len(failed), 'file')} failed, see {args.to}/failed.tsv: {next(iter(failed.values()))}")


def lists(args):
    """Write lists of the files DIR/<speaker>/.../<file>, and print the command that trains with them."""
    root, folder = args.folder, args.to
    found = from_kaldi(args.kaldi, root) if args.kaldi else from_folder(root)
    kept, trials = write_lists(found, root, folder, args.valid_speakers, args.seed)
    command = ["python", "trainSpeakerNet.py", "--train_list", f"{folder}/train_list.txt", "--train_path", root]
    command += ["--eval_list", f"{folder}/trials.txt", "--eval_path", root] if trials else ["--eval_list"]
    speaker, file = found[0]
    of = f"{count(len(kept.speakers), 'speaker')}, such as {speaker} ({file})"
    print(f"{folder}/train_list.txt: {count(len(kept), 'utterance')} of {of}")
    if trials:
        others = len({speaker for speaker, _ in found}) - len(kept.speakers)
        of = count(others, "other speaker")
        print(f"{folder}/trials.txt: {len(trials)} trials, half of them same-speaker, of {of}")
    elif args.valid_speakers is None:
        print(f"{folder}: no trials.txt, which takes four speakers, two of them with two files")
    if len(kept) < LARGE_LIST:
        command += ["--recipe", "strong"]
    command += ["--musan_path", "", "--rir_path", "", "--save_path", "exps/own"]
    print(f"train (if you have them, with --musan_path and --rir_path): {shlex.join(command)}")


def check(args):
    """Check lists, audio (full: all samples), noises and responses. Exit status 0: no problem, 1: warning, 2: error."""
    if not (args.train_list or args.eval_list or args.musan_path or args.rir_path):
        raise InputError("--check needs one of --train_list, --eval_list, --musan_path, --rir_path")
    findings = check_data(args)
    status = SEVERITIES.index(findings[0].severity) if findings else 0
    print(table(findings))
    return status


def pack(args):
    """Pack --train_list with the audio under --train_path into DIR, to be given as --train_path in training."""
    check_folder(args.train_path, "--train_path")
    train_list, source = TrainingList(args.train_list), Folder(args.train_path)
    check_files(train_list, source, "--train_path", args.paths_anywhere)
    written = write_pack(args.folder, source, train_list, args.n_cpu)
    content, size = written.content, f"{2 * written.length.sum() / 1e9:.2f} GB"
    print(f"{args.folder}: {count(content['entries'], 'file')}, {size}, {content['unreadable']} unreadable; train with "
          f"--train_path {args.folder}")  # fmt: skip


def demo(args):
    """Generate the demo corpus (synthetic speech, 230 MB) in DIR."""
    folder = make_demo(args.folder, args.train_speakers, args.eval_speakers, args.seed)
    print(f"{folder}: train_list.txt over train/wav, trials.txt over eval/wav, musan/, rirs/")


ACTIONS = {act.__name__: act for act in (download, unpack, convert, lists, check, pack, demo)}
# (actions that have it, flag, its settings)
FLAGS = [
    ({download, unpack, convert, lists}, "--to", {"metavar": "DIR", "required": True, "help": "folder to write to"}),
    ({download}, "--user", {"metavar": "NAME", "help": "for VoxCeleb; password: VOXCELEB_PASSWORD, or asked for"}),
    ({download}, "--from", {"dest": "mirror", "help": "what all URLs begin with, or a file of lines <name> <URL>"}),
    ({download, unpack}, "--any_md5", {"action": "store_true", "help": "accept files with another MD5"}),
    ({convert}, "--format", {"choices": ["wav", "flac"], "default": "wav", "help": "of the results (%(default)s)"}),
    ({lists}, "--kaldi", {"metavar": "DIR", "help": "use Kaldi's wav.scp and utt2spk"}),
    ({lists}, "--valid_speakers", {"type": int, "help": "held out for trials (a tenth, 5 to 100); 0: no trials"}),
    ({check}, "--train_list", {"metavar": "LIST", "help": "training list, lines <speaker> <path>"}),
    ({check}, "--train_path", {"metavar": "ROOT", "help": "folder that its paths start from"}),
    ({pack}, "--train_list", {"metavar": "LIST", "required": True, "help": "training list, lines <speaker> <path>"}),
    ({pack}, "--train_path", {"metavar": "ROOT", "required": True, "help": "folder that its paths start from"}),
    ({check}, "--eval_list", {"metavar": "LIST", "nargs": "*", "help": "trial lists, lines <1|0> <enrol> <test path>"}),
    ({check}, "--eval_path", {"metavar": "ROOT", "help": "folder that their paths start from"}),
    ({check, pack}, "--paths_anywhere", {"action": "store_true", "help": "allow absolute paths and .. in lists"}),
    ({check}, "--musan_path", {"metavar": "ROOT", "help": "MUSAN, with noise/, music/ and speech/"}),
    ({check}, "--rir_path", {"metavar": "ROOT", "help": "RIRS_NOISES or another folder of room responses"}),
    ({demo}, "--train_speakers", {"type": int, "default": 160, "help": "training speakers (%(default)s)"}),
    ({demo}, "--eval_speakers", {"type": int, "default": 40, "help": "other speakers, for trials (%(default)s)"}),
    ({lists, demo}, "--seed", {"type": int, "default": 0, "help": "random seed (%(default)s)"}),
    ({unpack, convert, check, pack}, "--n_cpu", {"type": int, "default": 4, "help": "number of threads (%(default)s)"}),
]


def read_arguments(arguments):
    """The command line (a list of strings) as a namespace. ``--check`` etc., anywhere in it, selects the sub-parser."""
    style = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(description=__doc__, usage="%(prog)s --ACTION ... [flags]", **style)
    parsers = {}
    for name, act in ACTIONS.items():
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
        added = parsers[name] = Parser(prog=f"{parser.prog} --{name}", description=act.__doc__, **style)
        added.set_defaults(act=act)
        if act is check:
            added.add_argument("check", nargs="?", default="headers", choices=["headers", "full"])
        elif act is download:
            added.add_argument("folder", nargs="+", metavar="WHAT", choices=CHOICES, help=", ".join(CHOICES))
        else:
            added.add_argument("folder", metavar="DIR")
        for acts, flag, settings in FLAGS:
            if act in acts:
                added.add_argument(flag, **settings)
    for position, word in enumerate(arguments):
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in ACTIONS:
            arguments = [*[value] * bool(value), *arguments[position + 1 :], *arguments[:position]]
            return parsers[name].parse_args(arguments)
    parser.parse_args(arguments)
    parser.error(f"give one of --{'|--'.join(ACTIONS)}")


def main():
    args = read_arguments(sys.argv[1:])
    return args.act(args)


if __name__ == "__main__":
    run_command(main)
