"""What would go wrong with data, said before the work begins: lists, files, noises, responses, room on the disk.

    findings = check(arguments)         # everything; headers of the audio, or all of its samples
    print(table(findings))
    stop_at_errors(glance(settings))    # the short form, before training and evaluation: a quarter of a minute for
                                        # a million lines

Findings and their severities are listCheck.py's, which looks at the lists, as fileCheck.py does at single files.
"""

import argparse
import collections
import math
import os
import pathlib
import shutil
import statistics

import torch

from corpora.audio import SAMPLE_RATE, Folder, find_noises, find_responses
from corpora.file_check import CLIPPED_SHARE, FAULTS, OFFSET, SILENT, equal_files, look_at
from corpora.list_check import SEVERITIES, Finding, check_lists, found, note, which_list
from corpora.lists import leads_out
from corpora.pack import Pack, open_source
from model import ECAPA_TDNN
from tools import InputError, one_line

SHORT = 1.0  # seconds: what is shorter says little about a voice
CROP = 2.015  # seconds of a training crop of --num_frames 200; what is shorter is repeated
LONG = 600.0  # seconds: whole utterances are embedded, and their memory grows with them
LONGEST_RESPONSE = 10.0  # seconds: no room sounds on for longer, so this is a recording
REPLACED_SHARE = 0.01  # of the training files, so many may be unreadable; training stops at more
GLANCED_SHARE = 0.05  # of the few that the short form looks at: beyond chance more than that
GLANCE = 200  # files of each kind whose headers the short form reads
EPOCHS, C, BANK_MB = 80, 1024, 512  # defaults of training
FEWER = "a larger --test_step keeps fewer"
# Of a line of a list in the memory: 600 while training reads it, and 700 for the look at it; measured with a million
# lines of VoxCeleb's form.
LINE_BYTES = 1300


# ---- lists and audio -------------------------------------------------------------------------------------------------


def check_on_disk(files, root, flag, name, arguments, full=False):
    """(the source or None, {file: Sight}, [Finding]) of the files that a list names and the folder they start from.

    Of a pack, which was decoded when it was made, only what it lacks is told.
    """
    try:
        source = open_source(root, flag)
    except InputError as error:
        return None, {}, [Finding("error", f"{flag} cannot be used", 1, [str(error)], "give the folder of the audio")]
    if isinstance(source, Pack) and source.content["kind"] != "speech":
        said = f"{root} is a pack of {source.content['kind']}"
        return None, {}, [Finding("error", f"{flag} cannot be used", 1, [said], "give the audio, or a pack of it")]
    files = [file for file in files if arguments.paths_anywhere or not leads_out(file) or isinstance(source, Pack)]
    missing = set(source.missing(files))
    findings = found("error", f"files of {name} do not exist", [file for file in files if file in missing],
                     mend_of_missing(sorted(missing), root, flag), source.name)  # fmt: skip
    there = [file for file in files if file not in missing]
    if isinstance(source, Pack):
        rows = source.rows(there)
        lost = [file for file, row in zip(there, rows) if row >= 0 and not source.length[row]]
        findings += found("warning", f"files of {name} could not be read when they were packed", lost,
                          "mend the files and pack them anew", source.name)  # fmt: skip
        return source, {}, findings
    return source, look_at(source, there, arguments.n_cpu, full, f"looking at {name}"), findings


def mend_of_missing(missing, root, flag):
    """What a person would try: the folder above or below, the path without its first folder, another format."""
    for file in missing[:20]:
        stem, suffix = os.path.splitext(file)
        for other in (".m4a", ".wav", ".flac", ".ogg", ".opus", ".mp3"):
            if other != suffix and os.path.isfile(os.path.join(root, stem + other)):
                return "convert them from m4a" if other == ".m4a" else f"they are {other} there: change the list"
        below = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())[:100]
        for folder in (*below, os.path.dirname(os.path.abspath(root))):
            if os.path.isfile(os.path.join(folder, file)):
                return f"{flag} {folder} has them"
        if "/" in file and os.path.isfile(os.path.join(root, file.split("/", 1)[1])):
            return f"the list's paths begin with {file.split('/')[0]}/, which {flag} ends with: give the folder above"
    return f"is {flag} right, and the copy complete?"


def check_files(sights, name, role, full=False, replaced=REPLACED_SHARE):
    """[Finding] of the files ({file: Sight}) of a list or folder.

    role: "training", "evaluation", "noise" or "response"; full: whether all samples were seen; replaced: the share of
    unreadable training files that is no error.
    """
    findings = []
    good = {file: sight for file, sight in sights.items() if not sight.fault}
    lost = sum(sight.fault not in ("", "truncated") for sight in sights.values())
    few = role == "training" and lost <= max(1, replaced * len(sights))
    for fault, (words, mend) in FAULTS.items():
        # What was cut short is read as a shorter recording.
        severity = "warning" if few or role in ("noise", "response") or fault == "truncated" else "error"
        cases = [(file, sight.said) for file, sight in sights.items() if sight.fault == fault]
        findings += found(severity, f"files of {name} {words}", cases, mend, lambda case: f"{case[0]} ({case[1]})")

    def those(severity, what, fits, mend, example=lambda file: file):
        return found(severity, f"files of {name} {what}", [file for file, each in good.items() if fits(each)], mend,
                     example)  # fmt: skip

    def seconds(file):
        return f"{file}: {good[file].seconds:.2f} s"

    def rate(file):
        return f"{file}: {good[file].rate} Hz"

    findings += those("warning", "were recorded below 16 kHz", lambda each: each.rate < SAMPLE_RATE,
                      "they are resampled, but have nothing above half their rate: a network hears the difference",
                      rate)  # fmt: skip
    findings += those("note", "are above 16 kHz", lambda each: each.rate > SAMPLE_RATE,
                      "they are resampled at every reading: convert or pack them", rate)  # fmt: skip
    channels = "their first channel is taken" if role == "response" else "their mean is taken"
    findings += those("note", "have several channels", lambda each: each.channels > 1, channels,
                      lambda file: f"{file}: {good[file].channels} channels")  # fmt: skip
    findings += those("note", "are of another format than their name says", lambda each: each.misnamed,
                      "they can be read; rename them for other programs")  # fmt: skip
    if role in ("training", "evaluation"):
        findings += those("warning", f"are shorter than {SHORT:g} s", lambda each: each.seconds < SHORT,
                          "leave them out of training; on such trials expect errors", seconds)  # fmt: skip
        findings += those("note", f"are longer than {LONG:g} s", lambda each: each.seconds > LONG,
                          "they are embedded as a whole, which takes memory: cut them", seconds)  # fmt: skip
    if role == "training":
        findings += those("note", f"are shorter than a crop of {CROP} s", lambda each: SHORT <= each.seconds < CROP,
                          "they are repeated to its length", seconds)  # fmt: skip
    if role == "response":
        findings += those("warning", f"are longer than {LONGEST_RESPONSE:g} s",
                          lambda each: each.seconds > LONGEST_RESPONSE,
                          "they are recordings, not responses: take them out of --rir_path", seconds)  # fmt: skip
    if full:
        findings += those("warning", "are silent", lambda each: each.peak < SILENT, "leave them out")
        if role != "response":  # whose largest sample may well be 1
            findings += those("warning", "are clipped", lambda each: each.clipped > CLIPPED_SHARE,
                              "leave out the worst, or record them less loud",
                              lambda file: f"{file}: {100 * good[file].clipped:.1f} % at full scale")  # fmt: skip
            findings += those("warning", "have an offset", lambda each: abs(each.offset) > OFFSET,
                              "the recorder was out of order: filter them", lambda file: f"{file}: mean "
                              f"{good[file].offset:.2f} of 1")  # fmt: skip
    if good:
        length = [sight.seconds for sight in good.values()]
        middle = statistics.median(length)
        spread = f"shortest {min(length):.2f} s, median {middle:.2f} s, longest {max(length):.2f} s"
        findings += note(f"{name}: {sum(length) / 3600:.2f} hours", len(good), "", [spread])
    return findings


def check_duplicates(lines, train, trained, tested, evaluation, full=False):
    """[Finding] of equal audio under two names: train and evaluation are sources, trained and tested their Sights."""
    findings, speaker_of = [], {line.file: line.speaker for line in lines}
    groups = equal_files(train, trained, full) if train else []
    across = [group for group in groups if len({speaker_of[file] for file in group}) > 1]
    within = [group for group in groups if len({speaker_of[file] for file in group}) == 1]
    findings += found("error", "sets of training files hold the same audio for different speakers", across,
                      "keep the right one of each", " = ".join)  # fmt: skip
    findings += found("warning", "sets of training files hold the same audio", within, "keep one of each", " = ".join)
    groups = equal_files(evaluation, tested, full) if evaluation else []
    findings += found("warning", "sets of evaluation files hold the same audio", groups,
                      "trials between them say nothing", " = ".join)  # fmt: skip
    if train and evaluation:
        # As absolute names: the same relative ones may be of both folders.
        both = {train.name(file): sight for file, sight in trained.items()}
        tests = {evaluation.name(file) for file in tested}
        shared = [file for file in tests if file in both]
        both |= {evaluation.name(file): sight for file, sight in tested.items()}
        groups = [group for group in equal_files(Folder("/"), both, full)
                  if not tests.issuperset(group) and not tests.isdisjoint(group)]  # fmt: skip
        findings += found("error", "files are heard both in training and in evaluation",
                          [[file] for file in sorted(shared)] + groups, "take them out of the training list",
                          " = ".join)  # fmt: skip
    return findings


def check_unnamed(train, lines, tests, arguments):
    """[Finding] of audio in the training folder that no list names; that of other purposes may lie there, too."""
    folders = arguments.eval_path, arguments.musan_path, arguments.rir_path
    others = {os.path.relpath(folder, train.root) for folder in folders if folder}
    known = {line.file for line in lines}
    if "." in others:  # --eval_path is the same folder
        others.remove(".")
        known.update(*(trials.files() for trials in tests))
    known |= {os.path.relpath(os.path.join(train.root, file), train.root) for file in known
              if os.path.isabs(file) or "./" in file}  # fmt: skip
    others = tuple(os.path.join(folder, "") for folder in others)
    unnamed = [file for file in train.find() if file not in known and not file.startswith(others)]
    mend = "of speakers held out, perhaps; or is the list older than they are?"
    return found("note", "audio files below --train_path are in no list", unnamed, mend)


# ---- noises, responses, room -----------------------------------------------------------------------------------------


def check_noises(root, arguments):
    """[Finding] of a folder like MUSAN."""
    try:
        source = open_source(root, "--musan_path")
        categories = find_noises(source, root)
    except InputError as error:
        inner = pathlib.Path(root, "musan")
        mend = f"give --musan_path {inner}" if inner.is_dir() else "give the folder that holds noise/, music/, speech/"
        return [Finding("error", "--musan_path cannot be used", 1, [str(error)], mend)]
    findings = note("noises found", sum(map(len, categories.values())), "", [
        f"{category}: {len(files)} files" for category, files in categories.items()])  # fmt: skip
    if not isinstance(source, Pack):
        files = [file for found_there in categories.values() for file in found_there]
        sights = look_at(source, files, arguments.n_cpu, arguments.check == "full", "looking at noises")
        findings += check_files(sights, "MUSAN", "noise", arguments.check == "full")
    return findings


def check_responses(root, arguments):
    """[Finding] of a folder like RIRS_NOISES."""
    try:
        source = open_source(root, "--rir_path", channel=0)
        files = find_responses(source, root)
    except InputError as error:
        mend = "give RIRS_NOISES or its simulated_rirs"
        return [Finding("error", "--rir_path cannot be used", 1, [str(error)], mend)]
    folders = collections.Counter(file.rpartition("/")[0].split("/")[0] for file in files)
    findings = note("room responses found", len(files), "", [
        f"{folder or '.'}: {count}" for folder, count in folders.most_common()])  # fmt: skip
    if all(os.path.isdir(os.path.join(root, category)) for category in ("noise", "music", "speech")):
        findings += [Finding("warning", "--rir_path looks like MUSAN", len(files), files[:3],
                             "give RIRS_NOISES or its simulated_rirs")]  # fmt: skip
    findings += found("note", "noises lie among the responses", sorted(set(source.find()) - set(files)),
                      "they are left out")  # fmt: skip
    if not isinstance(source, Pack):
        sights = look_at(source, files, arguments.n_cpu, arguments.check == "full", "looking at responses")
        findings += check_files(sights, "the room responses", "response", arguments.check == "full")
    return findings


def check_disk(folder, needs):
    """[Finding] of the room at a folder for {what: (bytes, mend)}."""
    folder, findings = pathlib.Path(folder).absolute(), []
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    for what, (size, mend) in needs.items():
        example = f"{size / 1e9:.1f} GB of {free / 1e9:.1f} GB free at {there}"
        if size > free:
            findings += [Finding("warning", f"{what} would not fit on the disk", 1, [example], mend)]
        else:
            findings += note(f"{what} would fit on the disk", 1, "", [example])
    return findings


def check_memory(lines, bank_mb=BANK_MB):
    """[Finding] of the memory for lists of so many lines and the bank of noises."""
    free, needed = free_memory(), bank_mb * 1e6 + LINE_BYTES * lines
    if free >= needed:
        return []
    example = f"{needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
    return [Finding("warning", "noises and lists would not fit in the memory", 1, [example], "a smaller --bank_mb")]


def checkpoint_bytes(width, classes, models):
    """What so many models of an ECAPA-TDNN of this width take, and two states, each with Adam's two averages."""
    with torch.random.fork_rng(devices=[]):  # a look must not change what is drawn later
        network = ECAPA_TDNN(C=width)
    size = 4 * (sum(weight.numel() for weight in network.parameters()) + network.embedding_size * classes)
    return size * (models + 2 * 3)


def free_memory():
    """Bytes, or infinity where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return math.inf


# ---- all of it -------------------------------------------------------------------------------------------------------


def check(arguments):
    """[Finding] of all that is given: train_list, train_path, eval_list, eval_path, musan_path, rir_path, n_class, to,
    n_cpu, paths_anywhere; ``check`` "full" decodes all audio.
    """
    full = arguments.check == "full"
    lines, tests, findings = check_lists(arguments)
    train = evaluation = None
    trained, tested = {}, {}
    if lines and arguments.train_path:
        files = list(dict.fromkeys(line.file for line in lines))
        where = arguments.train_path, "--train_path", "training"
        train, trained, more = check_on_disk(files, *where, arguments, full)
        findings += more + check_files(trained, "training", "training", full)
    if tests and arguments.eval_path:
        files = list(dict.fromkeys(file for trials in tests for file in trials.files()))
        where = arguments.eval_path, "--eval_path", "evaluation"
        if (pathlib.Path(arguments.eval_path) / "pack.json").exists():
            findings += [Finding("error", "--eval_path is a pack", 1, [arguments.eval_path],
                                 "utterances of trials are read from files: give their folder")]  # fmt: skip
        else:
            evaluation, tested, more = check_on_disk(files, *where, arguments, full)
            findings += more + check_files(tested, "evaluation", "evaluation", full)
    for unseen, flag in ((lines and not arguments.train_path, "--train_path"),
                         (tests and not arguments.eval_path, "--eval_path")):  # fmt: skip
        if unseen:
            findings += [Finding("warning", "audio was not looked at", 1, [], f"give {flag}, where the paths begin")]
    findings += check_duplicates(lines, train, trained, tested, evaluation, full)
    if isinstance(train, Folder):
        findings += check_unnamed(train, lines, tests, arguments)
    if arguments.musan_path:
        findings += check_noises(arguments.musan_path, arguments)
    if arguments.rir_path:
        findings += check_responses(arguments.rir_path, arguments)
    if lines:
        samples, speakers = sum(sight.seconds for sight in trained.values()) * SAMPLE_RATE, speakers_of(lines)
        findings += check_memory(len(lines)) + check_disk(arguments.to or ".", {
            "a pack of the training list": (2 * samples, "pack to another disk, or train from files"),
            f"checkpoints of {EPOCHS} epochs, C={C},": (checkpoint_bytes(C, speakers, EPOCHS), FEWER)})  # fmt: skip
    return worst_first(findings)


def glance(args, heard=()):
    """[Finding], the short form of ``check`` before training, or evaluation (``eval``), with the settings of
    trainSpeakerNet.py: warnings and errors of the lists, of a few files, and of the room for the checkpoints; and which
    of VoxCeleb's lists these are.

    heard: names of the speakers that the model which is evaluated, or begun with, or one before it, was trained on.
    """
    # By now n_class is a number in any case, and not of the whole list if some speakers are held out.
    told = "n_class" in args.given and not args.valid_speakers
    lines, tests, findings = check_lists(argparse.Namespace(**vars(args) | {"n_class": args.n_class if told else None}))
    for trials in tests:
        findings += found("warning", f"speakers of {pathlib.Path(trials.path).name} were in the model's training",
                          sorted(trials.speakers().intersection(heard)), "of others its errors will be more")
    for root, flag, name, files in (
        (args.train_path, "--train_path", "training", [line.file for line in lines]),
        (args.eval_path, "--eval_path", "evaluation", [file for trials in tests for file in trials.files()]),
    ):
        some = list(dict.fromkeys(files[:: math.ceil(len(files) / GLANCE) or 1]))
        _, sights, more = check_on_disk(some, root, flag, name, args) if some else (None, {}, [])
        looked_at = f"{name} ({len(sights)} of {len(files):,} looked at)"
        findings += more + check_files(sights, looked_at, name, replaced=GLANCED_SHARE)
    if lines and not args.eval:
        models = max(0, args.max_epoch // args.test_step - len(list(pathlib.Path(args.save_path).glob("model/*"))))
        classes = speakers_of(lines) * args.sub_centres * (3 if args.speed_perturb else 1)
        size = checkpoint_bytes(args.C, classes, models)
        findings += check_memory(len(lines), args.bank_mb if args.musan_path or args.rir_path else 0)
        findings += check_disk(args.save_path, {f"checkpoints of {args.max_epoch} epochs": (size, FEWER)})
    known = [each for trials in tests if trials.identity.known for each in which_list(trials)]
    return [each for each in worst_first(findings) if each.severity != "note"] + known


def stop_at_errors(findings):
    """Print them, a line each. If some are errors, the first is not printed, but raised as InputError."""
    errors = [each for each in findings if each.severity == "error"]
    for each in findings:
        if each not in errors[:1]:
            print(f"{each.severity}: {in_one_line(each)}")
    if errors:
        more = f"; and errors of {len(errors) - 1} other kinds, told above" if len(errors) > 1 else ""
        raise InputError(f"{in_one_line(errors[0])}{more}; --no_check begins nevertheless")


def speakers_of(lines):
    return len({line.speaker for line in lines})


def worst_first(findings):
    return sorted(findings, key=lambda each: -SEVERITIES.index(each.severity))


def in_one_line(finding):
    examples = f": {finding.count:,}, such as {'; '.join(finding.examples)}" if finding.examples else ""
    mend = f"; {finding.mend}" if finding.mend else ""
    return one_line(f"{finding.what}{examples}{mend}")


def status(findings):
    """The exit status: 0 for notes, 1 with warnings, 2 with errors."""
    return max((SEVERITIES.index(each.severity) for each in findings), default=0)


def table(findings):
    """The findings as text: each with its severity, count and words, then its examples and the mend."""
    text = []
    for each in findings:
        text.append(f"{each.severity:7} {each.count:>9,}  {one_line(each.what)}")
        text += [f"{'':17}    {one_line(example, 300)}" for example in each.examples]
        text += [f"{'':17}  > {one_line(each.mend)}"] if each.mend else []
    counts = collections.Counter(each.severity for each in findings)
    text.append(", ".join(f"{counts[severity]} {severity}s" for severity in reversed(SEVERITIES)))
    return "\n".join(text)
