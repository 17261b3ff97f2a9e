"""What is wrong with lists, told from the lists alone: a training list, trial lists, and how they go together.

Every function that looks for something returns Findings and raises nothing for what it finds. How bad they are:
"error": training or evaluation would stop, or its result mean nothing; "warning": it would be worse than it looks;
"note": good to know.
"""

import collections
import os
import pathlib
from typing import NamedTuple

import numpy as np

from corpora.known_lists import Identity, identify, needs_all_of_voxceleb1
from corpora.lists import leads_out, quoted, read_lines
from tools import InputError

SEVERITIES = ("note", "warning", "error")  # the exit status of each is its place: 0, 1, 2
AGREEMENT = 0.9  # of the lines, so many make a rule of which the others are exceptions
NEARLY = 0.4  # a list that is shorter or longer than a published one by this share, or less, was probably that one


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
    identity: Identity

    def files(self):
        return list(dict.fromkeys([*self.enrol, *self.test]))

    def speakers(self):
        """The names of the folders that are the speakers', or of all folders where that is not known."""
        parts = [file.split("/")[:-1] for file in self.files()]
        if self.depth is None:
            return {name for folders in parts for name in folders}
        return {folders[self.depth] for folders in parts if len(folders) > self.depth}


def check_training_list(path, n_class=None, anywhere=False, trains=True):
    """([Line], [Finding]) of a training list, or, not ``trains``, of one that only a cohort is taken from."""
    try:
        rows, _ = read_lines(path, "--train_list")
    except InputError as error:
        return [], [Finding("error", "the training list cannot be used", 1, [str(error)], "give the right file")]
    lines = [Line(number, *fields) for number, fields in rows if len(fields) == 2]
    wrong = [(number, fields) for number, fields in rows if len(fields) != 2]
    trials = any(len(fields) == 3 and fields[0] in ("0", "1") for _, fields in wrong)
    mend = "blanks in names? rename the files"
    if trials:
        mend = "this is a trial list: give it as --eval_list"
    elif all(len(fields) == 1 for _, fields in wrong):
        mend = "a line needs the speaker and the path, with a blank between them"
    findings = found("error", "lines of the training list are not '<speaker> <path>'", wrong, mend, line_in_words)
    twice, two_speakers, speaker_of, seen = [], [], {}, set()
    for line in lines:
        before = speaker_of.setdefault(line.file, line.speaker)
        if before != line.speaker:
            two_speakers.append(line)
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
    if trains and len(counts) == 1:
        findings += found("error", "the training list has a single speaker", counts, "there is nothing to tell apart: "
                          "its first field must be the speaker")  # fmt: skip
    swapped = [line for line in lines if "/" in line.speaker and "/" not in line.file]
    if len(swapped) >= AGREEMENT * max(1, len(lines)):
        findings += found("error", "lines of the training list have the path first", swapped,
                          "turn them round: <speaker> <path>", training_line)  # fmt: skip
    alone = [speaker for speaker, count in counts.items() if count == 1]
    if trains and len(counts) > 1 and len(alone) == len(counts):
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
    trials = Trials(str(path), numbers, label, enrol, test, depth, identify(label, enrol, test))
    return trials, findings + which_list(trials)


def which_list(trials):
    """[Finding] of what a list turned out to be, and of the results that belong to it."""
    name, identity, count = pathlib.Path(trials.path).name, trials.identity, len(trials.label)
    sizes = f"{count:,} trials, {sum(trials.label):,} of them of the same speaker"
    if identity.known:
        known = identity.known
        other = known.name.replace(*(("original", "cleaned") if "original" in known.name else ("cleaned", "original")))
        results = known.results() or "none known"
        findings = note(f"{name} is {known.name} ({known.file}), by its size and speakers: {sizes}", count,
                        f"never compare its results with those on {other}; published EERs in %: {results}")
        if needs_all_of_voxceleb1(known):
            findings += note(f"{known.name} needs the audio of VoxCeleb1 dev and test", 1, "both under one --eval_path")
        return findings
    near = identity.nearest
    if near and abs(near.trials - count) < NEARLY * near.trials:
        return [Finding("warning", f"{name} is of VoxCeleb1, but none of the published lists: {sizes}", count, [],
                        f"{near.name} ({near.file}) is nearest, with {near.trials:,}: was it cut short? No published "
                        "EER belongs to this list")]  # fmt: skip
    return note(f"{name}: {sizes}", count, f"no published list; normalised SHA-256 {identity.fingerprint[:16]}")


def speaker_folder(label, enrol, test):
    """(which folder of the paths is the speaker's, rows that contradict it, whether all labels are reversed).

    The folder, from 0, at which most trials agree: same folder, same speaker; None where there is no such folder.
    Same-speaker trials count as much as all others: where they are few, a folder that always differs would seem to fit.
    """
    number = {file: i for i, file in enumerate(dict.fromkeys([*enrol, *test]))}
    enrol, test = (np.fromiter(map(number.get, column), np.int64, len(column)) for column in (enrol, test))
    folders, same = [file.split("/")[:-1] for file in number], np.array(label) == 1
    best, agrees, most, reversed_labels = None, None, 0, False
    kinds = [kind for kind in (same, ~same) if kind.any()]
    for depth in range(max(map(len, folders), default=0)):
        code = {}
        speaker = np.array([code.setdefault(each[depth] if depth < len(each) else "", len(code)) for each in folders])
        fits = (speaker[enrol] == speaker[test]) == same
        share = sum(fits[kind].mean() for kind in kinds) / len(kinds)
        reversed_labels |= len(kinds) == 2 and share <= 1 - AGREEMENT
        if share > most:
            best, agrees, most = depth, fits, share
    if most < AGREEMENT or reversed_labels:
        return None, [], reversed_labels
    return best, np.flatnonzero(~agrees).tolist(), False


def check_lists_together(lines, tests, trains=True, one_folder=True):
    """[Finding] of a training list ([Line]), or, not ``trains``, one that a cohort is taken from, and trial lists
    ([Trials]) that do not go together. ``one_folder``: whether their paths start from the same.
    """
    findings, kinds = [], collections.defaultdict(list)
    trained = {line.speaker for line in lines}
    for trials in tests:
        name = pathlib.Path(trials.path).name
        # Speakers of two corpora may have the same names, all the more where their folders are not known.
        severity = "error" if trains and one_folder and trials.depth is not None else "warning"
        mend = "take their lines out of the training list: the error rate would be too good"
        if severity == "warning":
            mend = "if they are the same people, and not only names, take their lines out of the training list"
        findings += found(severity, f"speakers are both in training and in {name}", sorted(trained & trials.speakers()),
                          mend)  # fmt: skip
        kinds[trials.identity.fingerprint].append(name)
    findings += found("warning", "trial lists are the same under two names", [names for names in kinds.values() if
                      len(names) > 1], "leave one out", " and ".join)  # fmt: skip
    names = {trials.identity.known.name for trials in tests if trials.identity.known}
    both = [name for name in names if name.endswith("original") and name.replace("original", "cleaned") in names]
    findings += found("warning", "a list is given both original and cleaned", sorted(both),
                      "never compare results across them: the original is about 0.1 % EER harder")  # fmt: skip
    return findings


def leading_out(name, files):
    # leads_out takes its time: most paths need no second look.
    odd = [(number, file) for number, file in files if ".." in file or os.path.isabs(file)]
    odd = [(number, file) for number, file in odd if leads_out(file)]
    return found("error", f"paths of the {name} list lead out of their folder", odd,
                 "--paths_anywhere takes them, if you trust the list", lambda case: f"line {case[0]}: {case[1]}")


def line_in_words(case):
    return f"line {case[0]}: {quoted(case[1])}"


def training_line(line):
    return f"line {line.number}: {line.speaker} {line.file}"


def trial_line(row):
    return f"line {row[0]}: {row[1]} {row[2]} {row[3]}"


def check_lists(arguments):
    """([Line], [Trials], [Finding]) of the lists that are given."""
    given = vars(arguments).get
    lines, tests, findings = [], [], []
    trains = not given("eval")
    learns = given("calibrate") or (given("as_norm") and not given("cohort"))  # an evaluation, of its cohort
    if given("train_list") and (trains or learns):
        options = given("n_class"), given("paths_anywhere"), trains
        lines, findings = check_training_list(given("train_list"), *options)
    for path in given("eval_list") or []:
        trials, more = check_trial_list(path, given("paths_anywhere"))
        tests += [trials] if trials else []
        findings += more
    roots = {os.path.realpath(root) for root in (given("train_path"), given("eval_path")) if root}
    return lines, tests, findings + check_lists_together(lines, tests, trains, len(roots) < 2)
