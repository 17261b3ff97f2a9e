"""Training and trial lists: read, checked line by line, and their files looked for on the disk."""

import copy
import hashlib
import os
import pathlib
import re

import numpy as np

from corpora.pack import Pack
from tools import InputError, read_text, sha256

LONGEST_FIELD = 4096  # characters: the longest path of Linux; of arrays of names each entry is as long as the longest


def read_lines(path, flag):
    """([(line number, fields)] of the lines of a list that are not blank, SHA-256 of the file).

    InputError if it is absent, empty, or no text, or has a field that is longer than any path.
    """
    text = read_text(path, flag)
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{flag} {path} is empty")
    for number, fields in lines:
        if len(max(fields, key=len)) > LONGEST_FIELD:
            raise InputError(f"{flag} {path} line {number}: a field has more than {LONGEST_FIELD} characters")
    return lines, sha256(path)


def quoted(fields):
    """The fields of a line for a message, cut short if need be."""
    line = " ".join(fields)
    return f"'{line}'" if len(line) <= 200 else f"'{line[:200]}'..."


class TrainingList:
    """Lines ``<speaker> <path>``: ``files`` (N paths), ``label`` (N,) int64, ``speakers`` (names, sorted).

    ``sha256``: of the file that they were read from.
    """

    def __init__(self, path, flag="--train_list"):
        self.path = pathlib.Path(path)
        lines, self.sha256 = read_lines(path, flag)
        for number, fields in lines:
            if len(fields) != 2:
                hint = "; this looks like a trial list" if len(fields) == 3 and fields[0] in ("0", "1") else ""
                raise InputError(f"{path} line {number}: expected '<speaker> <path>', got {quoted(fields)}{hint}")
        self._set([fields[0] for _, fields in lines], [fields[1] for _, fields in lines], [line for line, _ in lines])

    @classmethod
    def of(cls, path, speakers, files):
        """A list that was made, not read: its columns, and the path that it goes by in messages."""
        listing = cls.__new__(cls)
        listing.path = pathlib.Path(path)
        listing._set(speakers, files, range(1, len(files) + 1))
        listing.sha256 = hashlib.sha256(listing.text().encode()).hexdigest()
        return listing

    def _set(self, speakers, files, line_numbers):
        self.files, self.line_numbers = list(files), list(line_numbers)
        # Not with np.unique, whose arrays give every name the room of the longest.
        self.speakers = sorted(set(speakers))
        number = {speaker: label for label, speaker in enumerate(self.speakers)}
        self.label = np.array([number[speaker] for speaker in speakers], dtype=np.int64)

    def subset(self, rows):
        """The lines at some positions (M,), in that order, as a list of their own: its speakers are numbered anew."""
        part = copy.copy(self)
        part.line_numbers = [self.line_numbers[row] for row in rows]
        part.files = [self.files[row] for row in rows]
        labels, part.label = np.unique(self.label[rows], return_inverse=True)
        part.speakers = [self.speakers[label] for label in labels]
        return part

    def __len__(self):
        return len(self.files)

    def text(self):
        """The list as a file has it."""
        return "".join(f"{self.speakers[label]} {file}\n" for label, file in zip(self.label, self.files))


class TrialList:
    """Lines ``<1|0> <enrolment path> <test path>``: ``label`` (N,) int64, ``enrol`` and ``test`` (N paths each).

    ``sha256``: of the file that they were read from, or of what ``tools.write_trials`` would write.
    """

    def __init__(self, path, flag="--eval_list"):
        lines, self.sha256 = read_lines(path, flag)
        for number, fields in lines:
            if len(fields) != 3 or fields[0] not in ("0", "1"):
                hint = "; this looks like a training list" if len(fields) == 2 else ""
                expected = "'<1|0> <enrol> <test path>'"
                raise InputError(f"{path} line {number}: expected {expected}, got {quoted(fields)}{hint}")
        label, enrol, test = zip(*(fields for _, fields in lines))
        self._set(path, [int(each) for each in label], enrol, test, [number for number, _ in lines])

    @classmethod
    def of(cls, path, label, enrol, test):
        """A list that was made, not read: its columns, and the path that it goes by in messages."""
        trials = cls.__new__(cls)
        trials._set(path, label, enrol, test, range(1, len(label) + 1))
        trials.sha256 = hashlib.sha256(trials.text().encode()).hexdigest()
        return trials

    def _set(self, path, label, enrol, test, line_numbers):
        self.path = pathlib.Path(path)
        self.label = np.array(label, dtype=np.int64)
        self.enrol, self.test, self.line_numbers = list(enrol), list(test), list(line_numbers)
        if not len(self.label) == len(self.enrol) == len(self.test):
            raise ValueError(f"{len(self.label)} labels, {len(self.enrol)} and {len(self.test)} files")
        for kind, value in (("same-speaker (1)", 1), ("different-speaker (0)", 0)):
            if not (self.label == value).any():
                raise InputError(f"{path} has no {kind} trials: an error rate needs both kinds")

    def __len__(self):
        return len(self.label)

    def text(self):
        """The list as a file has it."""
        return "".join(f"{label} {enrol} {test}\n" for label, enrol, test in zip(self.label, self.enrol, self.test))


def leads_out(file):
    """Whether the path of a file, as a list has it, is absolute or goes up: it may leave the folder of the list.

    Links in the folder may lead anywhere: they are its owner's affair.
    """
    return os.path.isabs(file) or ".." in re.split(r"[/\\]", file)


def refuse_to_leave(path, number, file, flag):
    """The InputError for a line of a list whose path ``leads_out``."""
    return InputError(
        f"{path} line {number}: {file[:200]} leads out of {flag}, absolute or by ..; if you trust the list, "
        "--paths_anywhere takes such paths"
    )


def check_files(listing, source, flag, anywhere=False):
    """InputError naming the first line of a TrainingList or TrialList whose file the source (Folder, Pack) lacks.

    Paths of a Folder that are absolute or have a ".." are refused in the same way, unless they may lead ``anywhere``.
    Those of a Pack name what is in it, and lead nowhere.
    """
    lines = {}  # each file once, with the line that names it first
    columns = (listing.files,) if isinstance(listing, TrainingList) else (listing.enrol, listing.test)
    for column in columns:
        for number, file in zip(listing.line_numbers, column):
            lines.setdefault(file, number)
    if not anywhere and not isinstance(source, Pack):
        outside = [(number, file) for file, number in lines.items() if leads_out(file)]
        if outside:
            raise refuse_to_leave(listing.path, *min(outside), flag)
    missing = source.missing(list(lines))
    if missing:
        number, file = min((lines[file], file) for file in missing)
        raise InputError(
            f"{listing.path} line {number}: {source.name(file)} does not exist ({len(missing)} of {len(lines)} files "
            f"are missing); is {flag} right?"
        )
