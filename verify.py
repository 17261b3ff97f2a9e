"""Use a trained model: ours, or one of the published systems (pretrained.py), recognised from its file or folder.

    python verify.py a.wav b.wav --model FILE                          the same speaker? exit status 0 yes, 1 no
    python verify.py a.wav b.wav c.wav --model FILE                    a against each of the others
    python verify.py --embed PATH ... --out FILE.npz --model FILE      embeddings of files, folders, lists
    python verify.py --enrol NAME a.wav ... --gallery G.npz --model FILE   remember a speaker
    python verify.py --identify who.wav ... --gallery G.npz --model FILE   which of them is it? exit status 1: nobody
    python verify.py --classify a.wav ... --model FILE                 which training speaker does it sound like?
    python verify.py --export FILE.onnx --model FILE                   for onnxruntime: waveform in, embedding out
"""

import argparse
import contextlib
import math
import os
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np

from corpora.audio import SAMPLE_RATE, AudioFile, UnreadableAudio, check_folder, find_audio
from corpora.convert import SUFFIXES
from corpora.lists import leads_out, read_lines, refuse_to_leave
from inference.checkpoints import SYSTEMS
from inference.encoder import (
    AudioWarning,
    Classification,
    SpeakerEncoder,
    Verification,
    choose_device,
    score_trials,
    scoring_crops,
)
from tools import (
    InputError,
    check_flags,
    check_writable,
    keep_memory,
    load_arrays,
    progress_bar,
    run_command,
    taking_turns,
    whole_file,
)

__all__ = ["AudioWarning", "Classification", "Gallery", "SpeakerEncoder", "Verification", "choose_device",
           "score_trials", "scoring_crops"]  # fmt: skip


FAILURE = 2  # the exit status, since 1 is an answer: different speakers, nobody
NOBODY = "nobody"

# ---- a gallery of known speakers -------------------------------------------------------------------------------------


class Gallery:
    """Known speakers and the mean of each one's scoring vectors, in an .npz file.

    The score of an utterance against a speaker is the mean of its scores against that speaker's utterances, so a
    threshold for pairs of files serves here too. File: ``names`` (N,), ``vectors`` (N, V) float32, ``counts`` (N,)
    utterances of each, ``model`` (the encoder's fingerprint). InputError for a file that is none of this encoder's.
    """

    def __init__(self, path, encoder):
        self.path, self.encoder, self.model = Path(path), encoder, encoder.fingerprint()
        self.names, self.vectors, self.counts = [], [], []
        if self.path.exists():
            self._read()

    def _read(self):
        arrays = load_arrays(self.path, "--gallery", "a gallery")
        names, vectors, counts, model = (arrays.get(name) for name in ("names", "vectors", "counts", "model"))
        kinds = "".join("-" if each is None else each.dtype.kind for each in (names, vectors, counts, model))
        # Shapes before contents: those of names without letters may claim any number of them.
        fit = kinds == "UfiU" and vectors.ndim == 2 and names.shape == counts.shape == vectors.shape[:1]
        if not fit or not len(names) or model.shape:
            raise InputError(f"--gallery {self.path} is not a gallery, or a damaged one: its parts do not fit together")
        if str(model) != self.model or vectors.shape[1] != self.encoder.vector_size:
            raise InputError(f"--gallery {self.path} was made with another model: its vectors mean nothing to this one")
        vectors = vectors.astype(np.float32)
        if not np.isfinite(vectors).all() or not ((counts >= 1) & (counts < 2**31)).all():
            raise InputError(f"--gallery {self.path} holds numbers that are no vectors or counts of utterances")
        self.names, self.vectors, self.counts = names.tolist(), list(vectors), counts.tolist()

    def enrol(self, name, vectors):
        """Remember a speaker by scoring vectors (M, V), or add them to a known one. Returns how many there are now.

        Several processes may do so at once. ValueError for vectors that are not finite or not of the encoder's
        ``vector_size``, OSError if the file cannot be written; then nothing has changed.
        """
        new = np.stack(vectors)
        if new.shape[1:] != (self.encoder.vector_size,) or not np.isfinite(new).all():
            raise ValueError(f"scoring vectors are finite numbers (M, {self.encoder.vector_size}), not {new.shape}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with taking_turns(self.path.parent):
            if self.path.exists():
                self._read()  # others may have enrolled somebody meanwhile
            people = dict(zip(self.names, zip(self.vectors, self.counts)))
            mean, count = people.get(name, (np.float32(0), 0))
            people[name] = (mean * count + new.sum(axis=0, dtype=np.float32)) / (count + len(new)), count + len(new)
            vectors, counts = map(list, zip(*people.values()))
            with whole_file(self.path) as file:
                np.savez(file, names=np.array(list(people)), vectors=np.stack(vectors), counts=np.array(counts),
                         model=np.array(self.model))  # fmt: skip
            self.names, self.vectors, self.counts = list(people), vectors, counts
        return people[name][1]

    def rank(self, vector):
        """A scoring vector (V,) -> [(score, name)] of all speakers, the best first."""
        return sorted(zip((np.stack(self.vectors) @ vector).tolist(), self.names), reverse=True)


def holds_a_gallery(path):
    """Whether there is a file that looks like one; a pipe is not even opened."""
    with contextlib.suppress(OSError, zipfile.BadZipFile):
        return os.path.isfile(path) and "counts.npy" in zipfile.ZipFile(path).namelist()
    return False


# ---- what the command does -------------------------------------------------------------------------------------------


def compare(encoder, args):
    """The first file against each of the others. Exit status 0: all of one speaker; 1: not all; 2: unreadable."""
    first, *others = args.files
    others = files_of(others, args)
    vectors, unreadable = scoring_vectors(encoder, args, [first, *others])
    found = [other for other in others if other in vectors]
    if first not in vectors or not found:
        return 2
    answers = [encoder.decide(vectors[first] @ vectors[other], args.threshold) for other in found]
    for other, answer in zip(found, answers):
        verdict = {None: "", True: "  same speaker", False: "  different speakers"}[answer.same_speaker]
        print(f"{answer.score:8.5f}{verdict}" + (f"  {other}" if len(others) > 1 else ""))
    if answers[0].threshold is None:
        raise InputError(f"{args.model} came without a threshold: no decision; give one with --threshold")
    print(f"threshold {answers[0].threshold:.5f}: {args.origin}")
    return 2 if unreadable else 0 if all(answer.same_speaker for answer in answers) else 1


def embed(encoder, args):
    """Write embeddings to --out. Exit status 2 if files could not be read; the others are written."""
    files = files_of(args.embed, args)
    columns = {"files": [], "embeddings": [], "start": [], "end": []}
    failed = 0
    for file, found, start, end in embedded(encoder, files, args):
        if isinstance(found, InputError):
            print(f"verify.py: {found}; left out", file=sys.stderr)
            failed += 1
            continue
        columns["files"] += [file] * len(found)
        columns["embeddings"].append(found)
        columns["start"] += list(start)
        columns["end"] += list(end)
    if not columns["files"]:
        raise InputError(f"none of {len(files)} files could be embedded: nothing written")
    columns["embeddings"] = np.concatenate(columns["embeddings"])
    columns["start"], columns["end"] = np.array(columns["start"]), np.array(columns["end"])
    if args.window is None and args.start is None and args.end is None:
        del columns["start"], columns["end"]
    with whole_file(args.out) as file:
        np.savez(file, model=np.array(encoder.fingerprint()), **columns)
    rows, size = columns["embeddings"].shape
    print(f"{args.out}: {rows} embeddings of {size} numbers from {len(files) - failed} files"
          + (f"; {failed} of {len(files)} files could not be embedded" if failed else ""))  # fmt: skip
    return 2 if failed else 0


def embedded(encoder, files, args):
    """Yield (file, (N, D) embeddings or an InputError, their N starts, their N ends in seconds)."""
    bar = progress_bar(total=len(files), desc="embedding", unit="file", delay=1)
    with bar:
        if args.window is None and args.start is None and args.end is None:
            for file, found, remark in encoder.embed_files(files, threads=args.n_cpu):
                if remark:
                    warnings.warn(remark, AudioWarning, stacklevel=2)
                yield file, found if isinstance(found, InputError) else found[None], [0], [0]
                bar.update()
            return
        for file in files:
            try:
                if args.window is not None:
                    found, times = encoder.embed_windows(file, args.window, args.step or args.window)
                    yield file, found, times[:, 0], times[:, 1]
                else:
                    start, end = args.start or 0.0, args.end if args.end is not None else duration(file)
                    yield file, encoder.embed_excerpt(file, start, end)[None], [start], [end]
            except InputError as error:
                yield file, error, [], []
            bar.update()


def duration(path):
    """Seconds of a file. UnreadableAudio if it has none."""
    with AudioFile(path) as file:
        return file.length / SAMPLE_RATE


def audio_of(path, root=None, anywhere=False):
    """The audio files that a path stands for: itself, all in a folder, or those of a list (.txt, .lst, .list).

    A list has a path a line, alone or behind a speaker, or two behind a trial's label; they start from root, or from
    the folder of the list, and do not leave it unless they may lead ``anywhere``. InputError when a list cannot be
    understood, or a folder holds no audio.
    """
    given, path = os.fspath(path), Path(path)
    if path.is_dir():
        files = [str(file) for file in find_audio(path, SUFFIXES)]
        if not files:
            raise InputError(f"{path} holds no audio ({', '.join(sorted(SUFFIXES))})")
        return files
    if path.suffix.lower() not in (".txt", ".lst", ".list"):
        return [given]
    flag, root, files = "--root" if root else "the folder of the list", Path(root or path.parent), []
    for number, fields in read_lines(path, "--embed")[0]:
        if len(fields) == 1 or os.path.isfile(root / " ".join(fields)):  # a path with spaces
            found = [" ".join(fields)]
        elif len(fields) > 3 or Path(fields[0]).suffix.lower() in SUFFIXES:
            named = root / " ".join(fields)[:200]
            raise InputError(f"{path} line {number}: {named} does not exist; a path a line, alone or behind a speaker")
        else:
            found = fields[1:]
        outside = [] if anywhere else [file for file in found if leads_out(file)]
        if outside:
            raise refuse_to_leave(path, number, outside[0], flag)
        files += found
    return [str(root / file) for file in dict.fromkeys(files)]


def files_of(paths, args):
    """[path] of all the audio that the command line's files, folders and lists stand for."""
    return [file for path in paths for file in audio_of(path, args.root, args.paths_anywhere)]


def scoring_vectors(encoder, args, files):
    """({file: (V,) vector}, errors); the errors are printed."""
    unreadable = []
    found = encoder.embed_for_scoring(files, threads=args.n_cpu, unreadable=unreadable)
    for error in unreadable:
        print(f"verify.py: {error}", file=sys.stderr)
    return {file: each.vector for file, each in found.items()}, unreadable


def enrol(encoder, args):
    """Exit status 2 if files could not be read; the others are enrolled."""
    gallery = Gallery(args.gallery, encoder)
    vectors, unreadable = scoring_vectors(encoder, args, files_of(args.files, args))
    if not vectors:
        raise InputError(f"none of the files could be embedded: {args.gallery} is as it was")
    count = gallery.enrol(args.enrol, list(vectors.values()))
    more = f"; {len(unreadable)} files could not be read: enrol those alone when they are mended" if unreadable else ""
    print(f"{args.gallery}: {args.enrol} has {count} utterances; {len(gallery.names)} speakers{more}")
    return 2 if unreadable else 0


def identify(encoder, args):
    """Exit status 0: all were recognised; 1: somebody was not; 2: unreadable."""
    if not Path(args.gallery).exists():
        raise InputError(f"--gallery {args.gallery} does not exist: fill it with --enrol")
    gallery = Gallery(args.gallery, encoder)
    if encoder.threshold is None and args.threshold is None:
        raise InputError(f"{args.model} came without a threshold below which it is nobody: give one with --threshold")
    vectors, unreadable = scoring_vectors(encoder, args, files_of(args.identify, args))
    status = 2 if unreadable else 0
    for file, vector in vectors.items():
        ranking = gallery.rank(vector)
        best = encoder.decide(ranking[0][0], args.threshold)
        print(f"{file}: {ranking[0][1] if best.same_speaker else NOBODY}")
        for score, name in ranking[:5]:
            print(f"  {score:8.5f}  {name}")
        status = status or (0 if best.same_speaker else 1)
    print(f"threshold {encoder.threshold if args.threshold is None else args.threshold:.5f}: {args.origin}")
    return status


def classify(encoder, args):
    """Exit status 2: unreadable files; the others are classified."""
    status = 0
    for file in files_of(args.classify, args):
        try:
            speaker, score = encoder.classify(file)
            print(f"{score:8.5f}  {speaker}  {file}")
        except UnreadableAudio as error:
            print(f"verify.py: {error}", file=sys.stderr)
            status = 2
    return status


# ---- the command line ------------------------------------------------------------------------------------------------


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [files] [flags]", allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=120),
    )  # fmt: skip
    add = parser.add_argument
    # fmt: off
    add("files", nargs="*", metavar="FILE", help="audio, anything libsndfile reads, at any sample rate")
    add("--model",      required=True, metavar="PATH", help="a *.model of ours, or a published system's file or folder")
    add("--system",     choices=SYSTEMS, help="whose model it is, if that cannot be seen from the file")
    add("--threshold",  metavar="T", help="a score from -1 to 1; or 1%% or 0.1%%: where our model had so many false "
                                          "alarms on its trial list; default: the model's own")
    add("--channel",    type=int, metavar="N", help="of several channels take this (0, 1, ...); default: their mean; "
                                                    "for modelscope and wespeaker, as in the originals, the first")
    add("--device",     default="auto", help="auto (a CUDA GPU, else Apple's, else the CPU), cpu, cuda, mps, ...")
    add("--n_cpu",      type=int, default=4, metavar="N", help="threads that read audio (4)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--embed",    nargs="+", metavar="PATH", help="embed audio files, folders, lists (.txt)")
    mode.add_argument("--enrol",    metavar="NAME", help="add the files to this speaker in the gallery")
    mode.add_argument("--identify", nargs="+", metavar="FILE", help="find the speaker of each in the gallery")
    mode.add_argument("--classify", nargs="+", metavar="FILE", help="find the most similar training speaker")
    mode.add_argument("--export",   metavar="FILE", help="write the model as ONNX")
    add("--out",        metavar="FILE", help="with --embed: the .npz to write")
    add("--root",       metavar="DIR", help="with --embed: the folder that paths in lists start from (the list's own)")
    add("--paths_anywhere", action="store_true", help="paths in lists may be absolute, or leave that folder by ..")
    add("--window",     type=float, metavar="S", help="with --embed: a sliding window of so many seconds")
    add("--step",       type=float, metavar="S", help="with --window: from one window to the next (no overlap)")
    add("--start",      type=float, metavar="S", help="with --embed: only from this second on")
    add("--end",        type=float, metavar="S", help="with --embed: only up to this second")
    add("--gallery",    metavar="FILE", help="the .npz with the speakers, for --enrol and --identify")
    # fmt: on
    return parser


ACTIONS = {  # and the flags that belong to some of them alone
    "--embed": {"out", "root", "paths_anywhere", "window", "step", "start", "end", "channel"},
    "--enrol": {"gallery", "paths_anywhere", "channel"},
    "--identify": {"gallery", "threshold", "paths_anywhere", "channel"},
    "--classify": {"paths_anywhere", "channel"},
    "--export": set(),
    "comparing files": {"threshold", "paths_anywhere", "channel"},
}


def read_arguments(arguments):
    """The command line, checked. Raises InputError naming the flag."""
    args = build_parser().parse_intermixed_args(arguments)
    action = next((name for name in ACTIONS if vars(args).get(name[2:]) is not None), "comparing files")
    check_flags(arguments, action, ACTIONS)
    if args.files and (args.embed or args.identify or args.classify or args.export):
        raise InputError(f"{args.files[0]}: put the files behind --embed, --identify or --classify")
    if args.enrol is not None and (not args.files or not args.enrol.strip()):
        raise InputError("--enrol needs a name and files: --enrol NAME a.wav b.wav --gallery people.npz")
    if args.enrol is not None and (Path(args.enrol).suffix.lower() in SUFFIXES or args.enrol.strip() == NOBODY):
        raise InputError(f"--enrol {args.enrol}: a speaker's name comes first, then the files")
    if action in ("--enrol", "--identify") and args.gallery is None:
        raise InputError(f"{action} needs --gallery, the .npz file with the speakers")
    if action == "--embed" and args.out is None:
        raise InputError("--embed needs --out, the .npz file to write")
    for flag, path, suffix in (("--out", args.out, ".npz"), ("--export", args.export, ".onnx")):
        if path is not None and Path(path).suffix != suffix:  # so that no recording or model is lost by a slip
            raise InputError(f"{flag} {path}: name a file that ends in {suffix}")
    if args.out and holds_a_gallery(args.out):
        raise InputError(f"--out {args.out} is a gallery: name another file")
    if args.root is not None:
        check_folder(args.root, "--root")
    start, end = args.start or 0.0, math.inf if args.end is None else args.end
    if not 0 <= start < end or end == args.end == math.inf:
        raise InputError(f"--start {start} --end {end} is no excerpt")
    if args.step is not None and args.window is None:
        raise InputError("--step belongs to --window")
    if args.window is not None and (args.start is not None or args.end is not None):
        raise InputError("--window goes over whole files: leave out --start and --end")
    for name, value in (("window", args.window), ("step", args.step)):
        if value is not None and not 0.01 <= value < float("inf"):
            raise InputError(f"--{name} must be at least 0.01 seconds, not {value}")
    if args.n_cpu < 1:
        raise InputError(f"--n_cpu must be at least 1, not {args.n_cpu}")
    if args.channel is not None and args.channel < 0:
        raise InputError(f"--channel must be at least 0, not {args.channel}")
    args.enrol = args.enrol and args.enrol.strip()
    for flag, path in (("--out", args.out), ("--gallery", args.gallery), ("--export", args.export)):
        if path is not None and not args.identify:
            if os.path.exists(path) and not os.path.isfile(path):
                odd = "folder" if os.path.isdir(path) else "device or a pipe"
                raise InputError(f"{flag} {path} is a {odd}: name a file")
            check_writable(Path(path).parent, flag)
    modes = (args.embed, args.enrol, args.identify, args.classify, args.export)
    if all(mode is None for mode in modes) and len(args.files) < 2:
        raise InputError("give two files to compare, or --embed, --enrol, --identify, --classify or --export (see -h)")
    return args


def choose_threshold(args, encoder):
    """Put the threshold as a number, or None, into args.threshold, and where it comes from into args.origin."""
    if args.threshold is None:
        args.origin = encoder.origin
        return
    given, args.origin = args.threshold, "--threshold"
    if given.endswith("%"):
        args.threshold = encoder.thresholds.get(given)
        args.origin = f"{given} false alarms on {encoder.listing}"
        if args.threshold is None:
            known = ", ".join(name for name, value in encoder.thresholds.items() if value is not None and "%" in name)
            raise InputError(f"--threshold {given}: {args.model} has {f'only {known}' if known else 'no such thing'}")
        return
    try:
        args.threshold = float(given)
    except ValueError as error:
        raise InputError(f"--threshold must be a number or 1% or 0.1%, not {given}") from error
    if not -1 <= args.threshold <= 1:
        raise InputError(f"--threshold must be from -1 to 1, as scores are, not {given}")


def main():
    args = read_arguments(sys.argv[1:])
    warnings.simplefilter("always", AudioWarning)
    keep_memory()
    encoder = SpeakerEncoder.from_checkpoint(args.model, choose_device(args.device), args.system)
    encoder.channel = args.channel
    choose_threshold(args, encoder)
    if args.export:
        from inference.export import export_onnx  # its packages are an extra

        print(export_onnx(encoder, args.export))
        return 0
    for mode in (embed, enrol, identify, classify):
        if getattr(args, mode.__name__) is not None:
            return mode(encoder, args)
    return compare(encoder, args)


if __name__ == "__main__":
    run_command(main, FAILURE)
