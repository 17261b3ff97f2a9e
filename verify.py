"""Use a trained model, ours or a published system's (docs/use.md), recognised from its file or folder.

    python verify.py a.wav PATH ...                         the same speaker? exit status 0 yes, 1 no
    python verify.py --embed PATH ... --out FILE.npz        embeddings
    python verify.py --score PAIRS                          a score for each line "<path> <path>" of a list
    python verify.py --matrix PATH ...                      the scores of all pairs, as a table
    python verify.py --enrol NAME PATH ... --gallery FILE   add a speaker to a gallery
    python verify.py --identify PATH ... --gallery FILE     closest speakers of the gallery
    python verify.py --classify PATH ...                    the most similar training speaker
    python verify.py --export FILE.onnx                     for onnxruntime: waveform in, embedding out
    python verify.py --page                                 a page to try the model on, in the browser

A PATH may be audio, a folder, or a list of audio (.txt, .lst, .list, Kaldi's .scp). --model M takes another model than
speechbrain/spkrec-ecapa-voxceleb.
"""

import argparse
import contextlib
import hashlib
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np

from corpora.audio import SAMPLE_RATE, AudioFile, UnreadableAudio, check_folder
from corpora.lists import audio_of, read_pairs
from inference.encoder import SpeakerEncoder, choose_device, warn_of, window_of
from inference.export import export_onnx
from inference.gallery import Gallery
from inference.systems import SYSTEMS
from inference.waveforms import as_number
from tools import (
    InputError,
    Parser,
    check_is_file,
    check_writable,
    count,
    keep_memory,
    load_arrays,
    progress_bar,
    read_embeddings,
    run_command,
    whole_file,
)

DEFAULT_MODEL = "speechbrain/spkrec-ecapa-voxceleb"
COLUMNS = ("files", "embeddings", "start", "end")  # of the .npz of --embed; the last two for windows and excerpts
SAVE_SECONDS = 60
FAILURE = 2  # exit status after an error or an unreadable file; 1 is an answer: different speakers


def compare(encoder, args, files):
    """Compare the first file with each of the others. Returns 0: all are of the same speaker; 1: not all."""
    first, others = files[0], files[1:]
    vectors = scoring_vectors(encoder, files, args)
    found = [other for other in others if other in vectors]
    if first not in vectors or not found:
        return
    answers = [encoder.decide(vectors[first] @ vectors[other]) for other in found]
    for other, answer in zip(found, answers):
        verdict = {None: "", True: "  same speaker", False: "  different speakers"}[answer.same_speaker]
        print(f"{answer.score:8.5f}{verdict}" + (f"  {other}" if len(others) > 1 else ""))
        if answer.score < 0.9999 and os.path.samefile(first, other):
            print("  (the same file: its score is below 1, because its crops are compared with each other, too)")
    print_threshold(encoder, args)
    return int(not all(answer.same_speaker for answer in answers))


def embed(encoder, args, files):
    """Write the embeddings to --out; for windows and excerpts also their start and end in seconds.

    Until then they are kept in <out>.part, so that the same command for the same files, interrupted, continues.
    """
    part, saved, origin = Path(f"{args.out}.part"), time.monotonic(), origin_of(encoder, args, files)
    begun = load_arrays(part, "--out") if part.exists() else {}
    rows = list(zip(*(begun[name] for name in COLUMNS if name in begun))) if begun.get("origin") == origin else []
    done = {name for name, *_ in rows}
    if begun:
        already = f"has {count(len(done), 'file')} already" if done else "is of other files or flags: starting anew"
        print(f"{part} {already}", file=sys.stderr)
    for file, found, times in embedded(encoder, args, [file for file in files if args.names[file] not in done]):
        if isinstance(found, InputError):
            fail(args, f"{found}; left out")
        else:
            rows += [(args.names[file], *row) for row in zip(found, *times)]
        if rows and time.monotonic() > saved + SAVE_SECONDS:
            write_npz(part, rows, origin=origin)
            saved = time.monotonic()
    if not rows:
        raise InputError(f"none of {len(files)} files could be embedded: nothing written")
    if args.out.endswith(".ark"):
        write_ark(args.out, rows)
    else:
        threshold = np.nan if encoder.cosine_threshold is None else encoder.cosine_threshold
        write_npz(args.out, rows, model=encoder.fingerprint(), cosine_threshold=threshold)
    part.unlink(missing_ok=True)
    print(f"{args.out}: {count(len(rows), 'embedding')} from {len(files) - args.failed} of {count(len(files), 'file')}")


def origin_of(encoder, args, files):
    """A hash of what embeddings depend on: the model, the flags, the files and their dates."""
    flags = [getattr(args, name) for name in ("channel", "window", "step", "last", "start", "end")]
    dates = [os.path.exists(file) and os.path.getmtime(file) for file in files]
    origin = repr((encoder.fingerprint(), flags, os.getcwd(), args.names, dates))
    return hashlib.sha256(origin.encode(errors="surrogateescape")).hexdigest()


def embedded(encoder, args, files):
    """Yield (file, (N, D) embeddings or an InputError, (N starts, N ends) or () for whole files)."""
    if args.window is None and args.start is None and args.end is None:
        remarks = []
        for file, found, remark in encoder.embed_files(files, threads=args.n_cpu):
            remarks += [remark] if remark else []
            yield file, found if isinstance(found, InputError) else found[None], ()
        warn_of(remarks, len(files))
        return
    start = args.start or 0.0
    for file in progress_bar(iterable=files, desc="embedding", unit="file", delay=1):
        try:
            if args.window is not None:
                found, times = encoder.embed_windows(file, args.window, args.step, start, args.end, args.last)
                yield file, found, times.T
            else:
                with AudioFile(file) as audio:
                    end = audio.length / SAMPLE_RATE if args.end is None else args.end
                yield file, encoder.embed_excerpt(file, start, end)[None], ([start], [end])
        except InputError as error:
            yield file, error, ()


def write_npz(path, rows, **more):
    """rows: (name, vector[, start, end in s]), as arrays named in COLUMNS."""
    with whole_file(path) as file:
        np.savez(file, **dict(zip(COLUMNS, zip(*rows))), **more)


def write_ark(path, rows):
    """Kaldi's binary vectors, and an .scp beside that says where each lies. rows: as for ``write_npz``."""
    with whole_file(path) as ark, whole_file(Path(path).with_suffix(".scp"), "w") as scp:
        for name, vector, *times in rows:
            name = "-".join([*name.split(), *(f"{100 * time:07.0f}" for time in times)])
            ark.write(f"{name} ".encode(errors="surrogateescape"))
            scp.write(f"{name} {path}:{ark.tell()}\n")
            ark.write(b"\0BFV \4" + struct.pack("<i", len(vector)) + vector.tobytes())


def score(encoder, args, files):
    """Print a line "<score> <path> <path>" for each pair of the list; nan: a file is silent, or cannot be read."""
    vectors = scoring_vectors(encoder, files, args)
    between = "\t" if any(path.split() != [path] for pair in args.pairs for path in pair) else " "
    for pair, first, second in zip(args.pairs, files[::2], files[1::2]):
        scored = first in vectors and second in vectors
        result = f"{encoder.decide(vectors[first] @ vectors[second]).score:.8f}" if scored else "nan"
        print(result, *pair, sep=between)


def matrix(encoder, args, files):
    """Print the scores of all pairs of files, separated by tabs, under a line of their names."""
    vectors = scoring_vectors(encoder, files, args)
    print("", *vectors, sep="\t")
    for file, vector in vectors.items():
        print(file, *(f"{encoder.decide(vector @ other).score:.5f}" for other in vectors.values()), sep="\t")


def enrol(encoder, args, files):
    """Add the files to a speaker of the gallery."""
    gallery, vectors = Gallery(args.gallery, encoder), scoring_vectors(encoder, files, args)
    if not vectors:
        raise InputError(f"none of the files could be embedded: {args.gallery} is unchanged")
    said = gallery.enrol(args.enrol, list(vectors.values()))
    more = f"; {count(args.failed, 'file')} could not be read: fix and enrol only those" if args.failed else ""
    speakers = count(len(gallery.speakers), "speaker")
    print(f"{args.gallery}: {args.enrol} has {count(said, 'utterance')}; {speakers}{more}")


def identify(encoder, args, files):
    """Print the closest five speakers of the gallery. Returns 0: all files were recognised; 1: not all."""
    gallery, recognised = Gallery(args.gallery, encoder, must_exist=True), []
    for file, vector in scoring_vectors(encoder, files, args).items():
        ranking = gallery.identify(vector)
        recognised.append(encoder.decide(ranking[0][0]).same_speaker)
        verdict = {None: "", True: f" {ranking[0][1]}", False: " unknown speaker"}[recognised[-1]]
        print(f"{file}:{verdict}")
        for score, name in ranking[:5]:
            print(f"  {score:8.5f}  {name}")
    print_threshold(encoder, args)
    return int(not all(recognised))


def classify(encoder, args, files):
    """Print the most similar training speaker of each file."""
    for file in files:
        try:
            speaker, score = encoder.classify(file)
            print(f"{score:8.5f}  {speaker}  {file}")
        except UnreadableAudio as error:
            fail(args, error)


def export(encoder, args, _):
    """Write the network as ONNX."""
    print(export_onnx(encoder, args.export))


def page(encoder, args, _):
    """Serve a page to try the model on, until it is interrupted."""
    from evaluation.records import scores_of  # here, because these modules take seconds to import
    from inference.page import serve

    evaluation, demo = None, "exps/demo/corpus/eval/wav"
    with contextlib.nullcontext() if args.evaluation else contextlib.suppress(InputError):
        evaluation = scores_of(encoder, Path(args.evaluation or args.model))
    if evaluation and encoder.threshold is None:
        results, encoder.origin = evaluation[1], f"equal error rate on {evaluation[0]}"
        encoder.threshold = results["thresholds"]["EER"]
        encoder.cosine_threshold = results.get("cosine_threshold", encoder.threshold)
    serve(encoder, args.model, evaluation, args.gallery, args.examples or demo, args.host, args.port)


def scoring_vectors(encoder, files, args):
    """{file: scoring vector (V,)} of the files that can be read and are not silent."""
    unreadable = []
    found = encoder.embed_for_scoring(files, threads=args.n_cpu, unreadable=unreadable, silence=False)
    for error in unreadable:
        fail(args, error)
    return {file: each.vector for file, each in found.items()}


def fail(args, message):
    """Say what is wrong with a file; the others continue, and the exit status will be FAILURE."""
    print(f"verify.py: {message}", file=sys.stderr)
    args.failed += 1


def print_threshold(encoder, args):
    if encoder.threshold is None:
        what = f"{args.model} has no threshold{' for scores with --mean' * (args.mean is not None)}"
        raise InputError(f"{what}, so no decision was made: give one with --threshold")
    print(f"threshold {encoder.threshold:.5f}: {encoder.origin}")


def set_threshold(encoder, given):
    """Replace the model's own threshold by --threshold: a number, or one of the model's false-alarm rates."""
    rates = [name for name, value in encoder.thresholds.items() if value is not None and name.endswith("%")]
    try:
        encoder.threshold = encoder.thresholds[given] if given in rates else as_number(given, "it", 1.0)
    except InputError as error:
        choices = " or ".join(["a number from -1 to 1", *rates])
        raise InputError(f"--threshold {given}: for this model it must be {choices}") from error
    encoder.origin = f"{given} false alarms on {encoder.trial_list}" if given in rates else "given by --threshold"


def build_parser():
    # fmt: off
    parser = Parser(description=__doc__, usage="%(prog)s [files] [flags]", allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("files", nargs="*", metavar="PATH", help="audio, anything libsndfile reads, at any sampling rate")
    add("--model",      metavar="M", help="a *.model or the folder of a run of ours; a published system's name, file "
                                          f"or folder (default: {DEFAULT_MODEL})")
    add("--system",     choices=SYSTEMS, help="the system, if it cannot be recognised from the file")
    add("--channel",    type=int, metavar="N", help="of several channels take this one (0, 1, ...); default: their "
                                                    "mean, for modelscope, campplus and wespeaker the first, as there")
    add("--device",     default="auto", help="auto (a CUDA GPU, else the CPU), cpu, cuda, mps, ...")
    add("--n_cpu",      type=int, default=4, metavar="N", help="threads that read audio (4)")
    add("--root",       metavar="DIR", help="paths in lists are relative to this folder (that of the list)")
    add("--paths_anywhere", action="store_true", help="paths in lists may be absolute, or leave that folder by ..")
    group = parser.add_argument_group("what to do with the files (default: compare the first with each of the others)")
    add = group.add_mutually_exclusive_group().add_argument
    add("--embed",      nargs="+", metavar="PATH", help="write their embeddings to --out")
    add("--score",      metavar="PAIRS", help="score each pair of a list, lines <path> <path>")
    add("--matrix",     nargs="+", metavar="PATH", help="score all pairs of these")
    add("--enrol",      metavar="NAME", help="add the files to this speaker in the --gallery")
    add("--identify",   nargs="+", metavar="PATH", help="find the speaker of each file in the --gallery")
    add("--classify",   nargs="+", metavar="PATH", help="find the most similar training speaker of each file")
    add("--export",     metavar="FILE", help="write the model as ONNX to this .onnx file")
    add("--page",       action="store_const", const=True, help="serve a page to try the model on (needs gradio)")
    add = parser.add_argument_group("comparing and galleries").add_argument
    add("--threshold",  metavar="T", help="a score; for our models also 1%% or 0.1%%: at this false-alarm "
                                          "rate on its trial list (default: the model's own)")
    add("--mean",       metavar="FILE", help="an .npz of --embed, of recordings like these but of ten or more other "
                                             "speakers: its mean is subtracted before embeddings are compared "
                                             "(docs/use.md)")
    add("--gallery",    metavar="FILE", help="the .npz of the enrolled speakers, for --enrol, --identify and --page")
    add = parser.add_argument_group("with --page").add_argument
    add("--host",       metavar="H", help="address to serve on (127.0.0.1: this machine only; 0.0.0.0: all)")
    add("--port",       type=int, metavar="N", help="port to serve on (the first free one from 7860)")
    add("--examples",   metavar="DIR", help="a folder of speakers' folders to take examples from (the demo corpus)")
    add("--evaluation", metavar="DIR", help="--save_path of an --eval of this model: for histograms and, where it has "
                                            "none, its threshold (the folder of its run)")
    add = parser.add_argument_group("with --embed").add_argument
    add("--out",        metavar="FILE", help="the .npz to write, or Kaldi's .ark with an .scp beside")
    add("--window",     type=float, metavar="S", help="length of a sliding window in seconds")
    add("--step",       type=float, metavar="S", help="seconds from one window to the next (default: no overlap)")
    add("--last",       choices=["shift", "pad"], help="the last window: moved back to the end, or filled with zeros "
                                                       "(default: pad for pyannote's model, else shift)")
    add("--start",      type=float, metavar="S", help="start of an excerpt in seconds (0)")
    add("--end",        type=float, metavar="S", help="end of an excerpt in seconds (the file's)")
    # fmt: on
    return parser


ONLY_WITH = {"out": ["embed"], "window": ["embed"], "step": ["embed"], "start": ["embed"], "end": ["embed"],
             "last": ["embed"], "gallery": ["enrol", "identify", "page"], "threshold": ["compare", "identify", "page"],
             "mean": ["compare", "score", "matrix", "enrol", "identify"],
             "host": ["page"], "port": ["page"], "examples": ["page"], "evaluation": ["page"]}  # fmt: skip
ACTIONS = {act.__name__: act for act in (compare, embed, score, matrix, enrol, identify, classify, export, page)}


def read_arguments(arguments):
    """(args, name of the action, files); args.names: {file: its name in the output}. InputError naming the flag."""
    args = build_parser().parse_intermixed_args(arguments)
    given = {name: value for name, value in vars(args).items() if value is not None}
    action = next((name for name in ACTIONS if name in given), "compare")
    for flag, actions in ONLY_WITH.items():
        if flag in given and action not in actions:
            raise InputError(f"--{flag} is only for {' and '.join(actions)}")
        if flag in ("out", "gallery") and action in actions and flag not in given and action != "page":
            raise InputError(f"--{action} needs --{flag}, a file whose name ends in .npz")
    for flag, suffixes in (("out", [".npz", ".ark"]), ("gallery", [".npz"]), ("export", [".onnx"])):
        if flag in given and Path(given[flag]).suffix not in suffixes:  # never overwrite a recording or a model
            raise InputError(f"--{flag} {given[flag]}: the file's name must end in {' or '.join(suffixes)}")
        if flag in given and (flag != "gallery" or action != "identify"):
            check_writable(Path(given[flag]).parent, f"--{flag}")
    if args.examples:
        check_folder(args.examples, "--examples")
    if args.mean is not None:
        check_is_file(args.mean, f"--mean {args.mean}")
    if args.window is not None:
        args.step = args.window if args.step is None else args.step
        window_of(args.window, args.step)  # an error now, not one for each file
    elif given.keys() & {"step", "last"}:
        raise InputError("--step and --last need --window")
    if action in ("score", "export", "page") and args.files:
        raise InputError(f"--{action} takes no further files, such as {args.files[0]}")
    if action == "enrol" and (not args.enrol.strip() or os.path.isfile(args.enrol)):
        raise InputError(f"--enrol {args.enrol}: give the speaker's name first, then the files")
    paths = args.files + (given[action] if isinstance(given.get(action), list) else [])
    if args.out and args.out.endswith(".ark") and str(Path(args.out).with_suffix(".scp")) in paths:
        raise InputError(f"--out {args.out} would replace the .scp that is read: name another file")
    files = paths[:1] if action == "compare" else []  # must be one file, no folder or list
    args.names = {}
    for path in paths[len(files) :]:
        args.names |= audio_of(path, args.root, args.paths_anywhere)
    files += args.names
    if action == "score":
        args.pairs = read_pairs(args.score, args.paths_anywhere)
        root = args.root or os.path.dirname(args.score)
        files = [os.path.join(root, file) for pair in args.pairs for file in pair]
    if len(files) < {"export": 0, "page": 0, "compare": 2}.get(action, 1):
        actions = "--embed, --matrix, --enrol NAME, --identify or --classify"
        raise InputError(f"give files: two to compare, or some with {actions}")
    absent = [file for file in files if not os.path.exists(file)]
    no_first = action == "compare" and absent[:1] == files[:1]
    if absent and (len(absent) == len(files) or no_first):  # before a model is loaded, or downloaded
        raise InputError(f"{absent[0]} does not exist")
    return args, action, files


def main():
    args, action, files = read_arguments(sys.argv[1:])
    keep_memory()
    if args.model is None:
        args.model = DEFAULT_MODEL
        print(f"model: {args.model} (--model takes another one)", file=sys.stderr)
    encoder = SpeakerEncoder.from_checkpoint(args.model, choose_device(args.device), args.system)
    encoder.channel = args.channel
    if args.mean is not None:
        encoder.subtract_mean(read_embeddings(args.mean, "--mean", encoder)[0])
    if args.threshold is not None:
        set_threshold(encoder, args.threshold)
    args.failed = 0
    answer = ACTIONS[action](encoder, args, files)  # 1: no
    return FAILURE if args.failed else answer or 0


if __name__ == "__main__":
    run_command(main, FAILURE)
