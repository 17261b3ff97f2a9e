"""What would go wrong with data, said before the work begins: lists, files, noises, responses, room on the disk.

    findings = check(arguments)     # everything; headers of the audio, or all of its samples
    findings = quick(arguments)     # lists alone: seconds for a million lines
    print(table(findings))

Every function that looks for something returns Findings and raises nothing for what it finds. How bad they are:
"error": training or evaluation would stop, or its result mean nothing; "warning": it would be worse than it looks;
"note": good to know.
"""

import collections
import math
import os
import pathlib
import shutil
import statistics
from typing import NamedTuple

import numpy as np

from audio import SAMPLE_RATE, Folder
from augmentation import find_noises, find_responses
from dataLoader import leads_out, quoted, read_lines
from fileCheck import (
    CLIPPED_SHARE,
    FAULTS,
    OFFSET,
    SILENT,
    equal_files,
    look_at,
)
from knownLists import identify, needs_all_of_voxceleb1
from pack import Pack, open_source
from tools import InputError, one_line

SEVERITIES = ("note", "warning", "error")  # the exit status of each is its place: 0, 1, 2
SHORT = 1.0  # seconds: what is shorter says little about a voice
CROP = 2.015  # seconds of a training crop of --num_frames 200; what is shorter is repeated
LONG = 600.0  # seconds: whole utterances are embedded, and their memory grows with them
LONGEST_RESPONSE = 10.0  # seconds: no room sounds on for longer, so this is a recording
REPLACED_SHARE = 0.01  # of the training files, so many may be unreadable; training stops at more
AGREEMENT = 0.9  # of the lines, so many make a rule of which the others are exceptions
PARAMETERS = 14.7e6  # of the customary network, C=1024
EPOCHS, BANK_BYTES, LINE_BYTES = 80, 512e6, 400  # defaults of training; a line of a list in memory, measured


class Finding(NamedTuple):
    """severity: of SEVERITIES; what, in words; how many of it; up to three examples; what to do about it."""

    severity: str
    what: str
    count: int
    examples: list
    mend: str


def found(severity, what, cases, mend, example=str):
    """[Finding] of the cases (any collection), or [] when there are none."""
    cases = list(cases)
    return [Finding(severity, what, len(cases), [example(case) for case in cases[:3]], mend)] if cases else []


def note(what, count, mend="", examples=()):
    return [Finding("note", what, count, list(examples)[:3], mend)]


class Line(NamedTuple):
    """A line of a training list."""

    number: int
    speaker: str
    file: str


class Trials(NamedTuple):
    """A trial list, its columns (N each); ``depth``: which folder of the paths is the speaker's, or None."""

    path: str
    numbers: list
    label: list
    enrol: list
    test: list
    depth: int | None
    known: object

    def files(self):
        return list(dict.fromkeys([*self.enrol, *self.test]))

    def speakers(self):
        """The names of the folders that are the speakers', or of all folders where that is not known."""
        parts = [file.split("/")[:-1] for file in self.files()]
        if self.depth is None:
            return {name for folders in parts for name in folders}
        return {folders[self.depth] for folders in parts if len(folders) > self.depth}


# ---- lists alone -----------------------------------------------------------------------------------------------------


def check_training_list(path, n_class=None, anywhere=False):
    """([Line], [Finding]) of a training list."""
    try:
        rows, _ = read_lines(path, "--train_list")
    except InputError as error:
        return [], [Finding("error", "the training list cannot be used", 1, [str(error)], "give the right file")]
    lines = [Line(number, *fields) for number, fields in rows if len(fields) == 2]
    wrong = [(number, fields) for number, fields in rows if len(fields) != 2]
    trials = any(len(fields) == 3 and fields[0] in ("0", "1") for _, fields in wrong)
    mend = "this is a trial list: give it as --eval_list" if trials else "blanks in names? rename the files"
    findings = found("error", "lines of the training list are not '<speaker> <path>'", wrong, mend, line_in_words)
    twice, two_speakers, speaker_of = [], [], {}
    for line in lines:
        before = speaker_of.setdefault(line.file, line.speaker)
        if before != line.speaker:
            two_speakers.append(line)
        elif len(speaker_of) + len(twice) + len(two_speakers) < line.number and line in twice:
            continue
    seen = set()
    for line in lines:
        if (line.speaker, line.file) in seen:
            twice.append(line)
        seen.add((line.speaker, line.file))
    findings += found("warning", "lines of the training list are there twice", twice,
                      "remove them: sort -u", training_line)  # fmt: skip
    findings += found("error", "files of the training list are of two speakers", two_speakers,
                      "remove the wrong line of each", training_line)  # fmt: skip
    if not anywhere:
        findings += leading_out("training", [(line.number, line.file) for line in lines])
    counts = collections.Counter(line.speaker for line in lines)
    if len(counts) == 1:
        findings += found("error", "the training list has a single speaker", counts, "there is nothing to tell apart: "
                          "its first field must be the speaker")  # fmt: skip
    alone = [speaker for speaker, count in counts.items() if count == 1]
    if len(counts) > 1 and len(alone) == len(counts):
        findings += found("error", "every line of the training list is a speaker of its own", alone,
                          "its first field must be the speaker, not the utterance")  # fmt: skip
    elif len(counts) > 1:
        findings += found("note", "speakers of the training list have one utterance only", alone,
                          "they teach little; --valid_speakers does not hold them out")  # fmt: skip
    named = [line.speaker in line.file.split("/")[:-1] for line in lines]
    if sum(named) >= AGREEMENT * len(lines):
        others = [line for line, fits in zip(lines, named) if not fits]
        findings += found("warning", "lines of the training list name a speaker other than their path's folder",
                          others, "is the speaker right? Else leave it", training_line)  # fmt: skip
    if n_class is not None and lines and n_class != len(counts):
        fewer = n_class < len(counts)
        findings += [Finding("error" if fewer else "warning", f"--n_class {n_class} is not the number of speakers",
                             len(counts), [f"{len(counts)} speakers"], "leave --n_class out: the list tells"
                             + ("" if fewer else "; classes without speech are only pushed away"))]  # fmt: skip
    return lines, findings


def check_trial_list(path, anywhere=False):
    """(Trials or None, [Finding]) of a trial list."""
    name = pathlib.Path(path).name
    try:
        rows, _ = read_lines(path, "--eval_list")
    except InputError as error:
        return None, [Finding("error", "a trial list cannot be used", 1, [str(error)], "give the right file")]
    right = [(number, fields) for number, fields in rows if len(fields) == 3 and fields[0] in ("0", "1")]
    wrong = [(number, fields) for number, fields in rows if len(fields) != 3 or fields[0] not in ("0", "1")]
    training = wrong and not right and all(len(fields) == 2 for _, fields in wrong)
    mend = "this is a training list: give it as --train_list" if training else "mend or remove them"
    findings = found("error", f"lines of {name} are not '<1|0> <enrol path> <test path>'", wrong, mend, line_in_words)
    if not right:
        return None, findings
    numbers, label = [number for number, _ in right], [int(fields[0]) for _, fields in right]
    enrol, test = [fields[1] for _, fields in right], [fields[2] for _, fields in right]
    rows = list(zip(numbers, label, enrol, test))
    for kind, value in (("same-speaker (1)", 1), ("different-speaker (0)", 0)):
        if value not in label:
            findings += [Finding("error", f"{name} has no {kind} trials", 1, [], "an error rate needs both kinds")]
    labels_of, twice, both = {}, [], []
    for row in rows:
        pair = (row[2], row[3]) if row[2] < row[3] else (row[3], row[2])
        before = labels_of.setdefault(pair, row[1])
        if before != row[1]:
            both.append(row)
    if len(labels_of) < len(rows):
        seen = set()
        for row in rows:
            pair = (row[1], *sorted(row[2:]))
            if pair in seen:
                twice.append(row)
            seen.add(pair)
    itself = [row for row in rows if row[2] == row[3]]
    findings += found("warning", f"trials of {name} are there twice, in one order or the other", twice,
                      "remove them: they count double", trial_line)  # fmt: skip
    findings += found("error", f"trials of {name} are labelled both 1 and 0", both, "remove the wrong one", trial_line)
    findings += found("warning", f"trials of {name} compare a file with itself", itself,
                      "remove them: they say nothing", trial_line)  # fmt: skip
    if not anywhere:
        findings += leading_out(name, [(number, file) for number, _, *files in rows for file in files])
    depth, contrary, reversed_labels = speaker_folder(label, enrol, test)
    if reversed_labels:
        findings += [Finding("error", f"the labels of {name} are reversed", len(rows), [trial_line(rows[0])],
                             "1 means the same speaker: swap 0 and 1")]  # fmt: skip
    findings += found("error", f"labels of {name} contradict the speakers' folders", [rows[i] for i in contrary],
                      "mend the label or the path", trial_line)  # fmt: skip
    identity = identify(label, enrol, test)
    findings += which_list(name, identity, len(label), sum(label))
    return Trials(str(path), numbers, label, enrol, test, depth, identity), findings


def which_list(name, identity, trials, targets):
    """What a list turned out to be, and the results that belong to it."""
    sizes = f"{trials:,} trials, {targets:,} of them of the same speaker"
    if identity.known:
        known = identity.known
        other = known.name.replace(*(("original", "cleaned") if "original" in known.name else ("cleaned", "original")))
        results = known.results() or "none known"
        findings = note(f"{name} is {known.name} ({known.file}): {sizes}", trials, f"never compare its results with "
                        f"those on {other}; published EERs in %: {results}")  # fmt: skip
        if needs_all_of_voxceleb1(known):
            findings += note(f"{known.name} needs the audio of VoxCeleb1 dev and test", 1, "both under one --eval_path")
        return findings
    if identity.nearest:
        near = identity.nearest
        return [Finding("warning", f"{name} is of VoxCeleb1, but none of the published lists: {sizes}", trials, [],
                        f"{near.name} ({near.file}) is nearest, with {near.trials:,}: was it cut short? No published "
                        "EER belongs to this list")]  # fmt: skip
    return note(f"{name}: {sizes}", trials, f"no published list; normalised SHA-256 {identity.fingerprint[:16]}")


def speaker_folder(label, enrol, test):
    """(which folder of the paths is the speaker's, rows that contradict it, whether all labels are reversed).

    The folder, from 0, at which most trials agree: same folder, same speaker; None where there is no such folder.
    """
    number = {file: i for i, file in enumerate(dict.fromkeys([*enrol, *test]))}
    enrol, test = (np.fromiter(map(number.get, column), np.int64, len(column)) for column in (enrol, test))
    folders, same = [file.split("/")[:-1] for file in number], np.array(label) == 1
    best, agrees, reversed_labels = None, None, False
    for depth in range(max(map(len, folders), default=0)):
        code = {}
        speaker = np.array([code.setdefault(each[depth] if depth < len(each) else "", len(code)) for each in folders])
        fits = (speaker[enrol] == speaker[test]) == same
        reversed_labels |= bool(same.any() and not same.all() and fits.mean() <= 1 - AGREEMENT)
        if agrees is None or fits.mean() > agrees.mean():
            best, agrees = depth, fits
    if agrees is None or agrees.mean() < AGREEMENT or reversed_labels:
        return None, [], reversed_labels
    return best, np.flatnonzero(~agrees).tolist(), False


def check_lists_together(lines, tests):
    """[Finding] of a training list ([Line]) and trial lists ([Trials]) that do not go together."""
    findings, kinds = [], collections.defaultdict(list)
    trained = {line.speaker for line in lines}
    for trials in tests:
        name = pathlib.Path(trials.path).name
        findings += found("error", f"speakers are both in training and in {name}", sorted(trained & trials.speakers()),
                          "take their lines out of the training list: the error rate would be too good")  # fmt: skip
        kinds[trials.known.fingerprint].append(name)
    findings += found("warning", "trial lists are the same under two names", [names for names in kinds.values() if
                      len(names) > 1], "leave one out", " and ".join)  # fmt: skip
    names = {trials.known.known.name for trials in tests if trials.known.known}
    both = [name for name in names if name.endswith("original") and name.replace("original", "cleaned") in names]
    findings += found("warning", "a list is given both original and cleaned", sorted(both),
                      "never compare results across them: the original is about 0.1 % EER harder")  # fmt: skip
    return findings


def leading_out(name, files):
    return found("error", f"paths of the {name} list lead out of their folder", [(number, file) for number, file in
                 files if leads_out(file)], "--paths_anywhere takes them, if you trust the list",
                 lambda case: f"line {case[0]}: {case[1]}")  # fmt: skip


def line_in_words(case):
    return f"line {case[0]}: {quoted(case[1])}"


def training_line(line):
    return f"line {line.number}: {line.speaker} {line.file}"


def trial_line(row):
    return f"line {row[0]}: {row[1]} {row[2]} {row[3]}"


# ---- lists and audio -------------------------------------------------------------------------------------------------


def check_on_disk(files, root, flag, name, arguments):
    """(the source or None, {file: Sight}, [Finding]) of the files that a list names and the folder they start from.

    Of a pack, which was decoded when it was made, only what it lacks is told.
    """
    try:
        source = open_source(root, flag)
    except InputError as error:
        return None, {}, [Finding("error", f"{flag} cannot be used", 1, [str(error)], "give the folder of the audio")]
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
    sights = look_at(source, there, arguments.n_cpu, arguments.check == "full", f"looking at {name}")
    return source, sights, findings


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


def check_files(sights, name, role, full=False):
    """[Finding] of the files ({file: Sight}) of a list or folder. role: "training", "evaluation", "noise", "response"."""
    findings = []
    good = {file: sight for file, sight in sights.items() if not sight.fault}
    few = role == "training" and len(sights) - len(good) <= max(1, REPLACED_SHARE * len(sights))
    severity = "warning" if few or role in ("noise", "response") else "error"
    for fault, (words, mend) in FAULTS.items():
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
        findings += note(f"{name}: {sum(length) / 3600:.2f} hours", len(good), "", [
            f"shortest {min(length):.2f} s, median {statistics.median(length):.2f} s, longest {max(length):.2f} s"])
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
        return [Finding("error", "--rir_path cannot be used", 1, [str(error)], "give RIRS_NOISES or its simulated_rirs")]
    folders = collections.Counter(file.rpartition("/")[0].split("/")[0] for file in files)
    findings = note("room responses found", len(files), "", [
        f"{folder or '.'}: {count}" for folder, count in folders.most_common()])  # fmt: skip
    findings += found("note", "noises lie among the responses", sorted(set(source.find()) - set(files)),
                      "they are left out")  # fmt: skip
    if not isinstance(source, Pack):
        sights = look_at(source, files, arguments.n_cpu, arguments.check == "full", "looking at responses")
        findings += check_files(sights, "the room responses", "response", arguments.check == "full")
    return findings


def check_room(folder, hours, speakers, lines):
    """[Finding] of the disk and the memory, for a pack of so many hours, checkpoints, and lists of so many lines."""
    folder = pathlib.Path(folder).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free, findings = shutil.disk_usage(there).free, []
    model = 4 * (PARAMETERS + 192 * speakers)
    checkpoints = EPOCHS * model + 2 * 3 * model  # two states, each with Adam's two averages
    pack = hours * 3600 * SAMPLE_RATE * 2
    for what, size, mend in (("a pack of the training list", pack, "pack to another disk, or train from files"),
                             ("the checkpoints of 80 epochs", checkpoints, "a larger --test_step keeps fewer")):
        severity = "warning" if size > free else "note"
        findings.append(Finding(severity, f"{what} {'would not fit' if size > free else 'fits'} on the disk", 1,
                        [f"{size / 1e9:.1f} GB of {free / 1e9:.1f} GB free at {there}"], mend if size > free else ""))
    free, needed = free_memory(), BANK_BYTES + LINE_BYTES * lines
    if free < needed:
        findings += [Finding("warning", "noises and lists would not fit in the memory", 1, [
            f"{needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free"], "a smaller --bank_mb")]  # fmt: skip
    return findings


def free_memory():
    """Bytes, or infinity where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return math.inf


# ---- all of it -------------------------------------------------------------------------------------------------------


def quick(arguments):
    """[Finding] from the lists alone: what training or evaluation (``eval``) would read, without a look at the audio.

    arguments: of trainSpeakerNet.py; what is absent or empty is not checked.
    """
    return _check_lists(arguments)[2]


def _check_lists(arguments):
    """([Line], [Trials], [Finding]) of the lists that are given."""
    given = vars(arguments).get
    lines, tests, findings = [], [], []
    trains = not given("eval") or given("as_norm") or given("calibrate")
    if given("train_list") and trains:
        lines, findings = check_training_list(given("train_list"), given("n_class"), given("paths_anywhere"))
    for path in given("eval_list") or []:
        trials, more = check_trial_list(path, given("paths_anywhere"))
        tests += [trials] if trials else []
        findings += more
    # Speakers of a cohort, or of a calibration, may be anyone's: what counts is what the model was trained on.
    return lines, tests, findings + check_lists_together(lines, tests)


def check(arguments):
    """[Finding] of all that is given: train_list, train_path, eval_list, eval_path, musan_path, rir_path, n_class, to,
    n_cpu, paths_anywhere; ``check`` "full" decodes all audio.
    """
    full = arguments.check == "full"
    lines, tests, findings = _check_lists(arguments)
    train = evaluation = None
    trained, tested = {}, {}
    if lines and arguments.train_path:
        files = list(dict.fromkeys(line.file for line in lines))
        train, trained, more = check_on_disk(files, arguments.train_path, "--train_path", "training", arguments)
        findings += more + check_files(trained, "training", "training", full)
    if tests and arguments.eval_path:
        files = list(dict.fromkeys(file for trials in tests for file in trials.files()))
        where = arguments.eval_path, "--eval_path", "evaluation"
        if (pathlib.Path(arguments.eval_path) / "pack.json").exists():
            findings += [Finding("error", "--eval_path is a pack", 1, [arguments.eval_path],
                                 "utterances of trials are read from files: give their folder")]  # fmt: skip
        else:
            evaluation, tested, more = check_on_disk(files, *where, arguments)
            findings += more + check_files(tested, "evaluation", "evaluation", full)
    findings += check_duplicates(lines, train, trained, tested, evaluation, full)
    if arguments.musan_path:
        findings += check_noises(arguments.musan_path, arguments)
    if arguments.rir_path:
        findings += check_responses(arguments.rir_path, arguments)
    if lines:
        hours = sum(sight.seconds for sight in trained.values()) / 3600
        findings += check_room(arguments.to or ".", hours, len({line.speaker for line in lines}), len(lines))
    return sorted(findings, key=lambda each: -SEVERITIES.index(each.severity))


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
