"""Training lists and trial lists: read, checked line by line, and compared with the files of a folder or a pack."""

import collections
import copy
import hashlib
import os
import pathlib
import re

import numpy as np

from corpora.audio import AUDIO_SUFFIXES, SUFFIXES, find_audio
from corpora.pack import Pack, open_source
from tools import InputError, count, file_hash, gather, rank, read_text, size

AGREEMENT = 0.9  # where this share of the lines agrees with the folders, the others are mistakes
RESEMBLANCE = 0.3  # from this share on, a training list seems to label its folders, but wrongly: three labels each


def read_lines(path, flag):
    """([(line number, line)] of the non-blank lines of a list, SHA-256 of the file).

    InputError if the file is absent, empty, or not text.
    """
    text = read_text(path, flag)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{flag} {path} is empty")
    return lines, file_hash(path)


class List:
    """What both kinds of list have: ``path``, ``label`` (N,) int64, ``line_numbers`` (N,) and the methods below.

    ``sha256``: of the file that was read, or of ``text()``. InputError naming the line that has another form.
    """

    def __init__(self, path, flag=None):
        lines, self.sha256 = read_lines(path, flag or self.FLAG)
        rows = [line.split() for _, line in lines]
        for (number, line), fields in zip(lines, rows):
            if not self.fits(fields):
                raise InputError(f"{path} line {number}: expected '{self.FORM}' in a {self.KIND}, got {line[:200]!r}")
        self._set(path, [number for number, _ in lines], *zip(*rows))

    @classmethod
    def of(cls, path, *columns):
        """A list from its columns; ``path``: its name in messages."""
        made = cls.__new__(cls)
        made._set(path, list(range(1, len(columns[0]) + 1)), *columns)
        made.sha256 = hashlib.sha256(made.text().encode()).hexdigest()
        return made

    def __len__(self):
        return len(self.label)

    def text(self):
        """The list as the text of its file."""
        return "".join(f"{self.line(row)}\n" for row in range(len(self)))

    def quote(self, row):
        """The line with the index ``row``, for a message."""
        return f"line {self.line_numbers[row]}: {self.line(row)}"

    def speaker_names(self, folder_of=None):
        """Names of the speakers' folders; empty if folders do not tell. folder_of: the first of ``speaker_folders``."""
        folder_of = self.speaker_folders()[0] if folder_of is None else folder_of
        return {folders[-1] for folders in folder_of.values() if folders}


class TrainingList(List):
    """Lines ``<speaker> <path>``: ``files`` (N paths), ``speakers`` (names, sorted); a label is an index in these."""

    KIND, FLAG, FORM = "training list", "--train_list", "<speaker> <path>"

    @staticmethod
    def fits(fields):
        return len(fields) == 2

    def _set(self, path, line_numbers, speakers, files):
        self.path, self.line_numbers, self.files = pathlib.Path(path), line_numbers, list(files)
        # Not np.unique, in whose arrays every name takes the memory of the longest.
        self.speakers = sorted(set(speakers))
        number = {speaker: label for label, speaker in enumerate(self.speakers)}
        self.label = np.array([number[speaker] for speaker in speakers], dtype=np.int64)

    def subset(self, rows):
        """A list of the lines with the indices ``rows`` (M,), in that order; its speakers are numbered from 0."""
        part = copy.copy(self)
        part.line_numbers = [self.line_numbers[row] for row in rows]
        part.files = [self.files[row] for row in rows]
        labels, part.label = np.unique(self.label[rows], return_inverse=True)
        part.speakers = [self.speakers[label] for label in labels]
        return part

    def line(self, row):
        return f"{self.speakers[self.label[row]]} {self.files[row]}"

    def speaker_folders(self):
        """({file: folders to that of its speaker, or its label if folders do not tell}, rows whose labels contradict).

        Labels that are names of folders, of their files' or of one level, are the speakers. Others, such as class
        indices, are compared with the first level that agrees, one folder a label, or else with the first where folders
        have one label, or many labels one.
        """
        names = [self.speakers[label] for label in self.label.tolist()]
        by_label = {file: (name,) for file, name in zip(self.files, names)}
        others = [row for row, file in enumerate(self.files) if names[row] not in file.split("/")[:-1]]
        level_names = [{folders[-1] for folders in level.values()} for level in folder_levels(self.files)]
        of_one_level = any(len(each ^ set(self.speakers)) <= (1 - AGREEMENT) * len(each) for each in level_names)
        if of_one_level or len(others) <= (1 - AGREEMENT) * len(self):
            return by_label, others
        best, contrary = by_label, []
        for level in folder_levels(self.files):
            # First the names alone, because a speaker may have folders in several (clean/id1, noisy/id1).
            for folder_of in ({file: folders[-1:] for file, folders in level.items()}, level):
                pairs = list(zip(map(folder_of.get, self.files), self.label.tolist()))
                rising = [pair for pair, _ in reversed(collections.Counter(pairs).most_common())]
                label_of, main = dict(rising), {label: folder for folder, label in rising}  # the most frequent
                if not 1 < len(label_of) <= len(self) / 2:  # a folder of one file always has one label
                    continue
                one_label = np.array([label_of[folder] == label for folder, label in pairs])
                agrees = one_label & [main[label] == folder for folder, label in pairs]
                if agrees.mean() >= AGREEMENT:
                    return folder_of, np.flatnonzero(~agrees).tolist()
                if best is by_label and (one_label.mean() >= AGREEMENT or agrees.mean() >= RESEMBLANCE):
                    best, contrary = folder_of, np.flatnonzero(~agrees).tolist()
        return best, contrary


class TrialList(List):
    """Lines ``<1|0> <enrolment path> <test path>``: ``enrol`` and ``test`` (N paths each); label 1: same speaker."""

    KIND, FLAG, FORM = "trial list", "--eval_list", "<1|0> <enrol> <test path>"

    @staticmethod
    def fits(fields):
        return len(fields) == 3 and fields[0] in ("0", "1")

    def _set(self, path, line_numbers, label, enrol, test):
        self.path, self.line_numbers = pathlib.Path(path), line_numbers
        self.label = np.array([int(each) for each in label], dtype=np.int64)
        self.enrol, self.test = list(enrol), list(test)
        for kind, value in (("same-speaker (1)", 1), ("different-speaker (0)", 0)):
            if not (self.label == value).any():
                raise InputError(f"{path} has no {kind} trials: an error rate needs both kinds")

    def line(self, row):
        return f"{self.label[row]} {self.enrol[row]} {self.test[row]}"

    def speaker_folders(self):
        """({file: folders to that of its speaker}, rows whose labels contradict it), of the level that agrees most.

        ({}, []) if too few labels agree, ({}, rows) if the labels are reversed. Both kinds of trials have equal weight:
        with few same-speaker trials, a folder that always differs would seem to fit.
        """
        best, contrary, most = {}, [], 0.0
        for folder_of, agrees, share in self.agreement():
            if share <= 1 - AGREEMENT:
                return {}, np.flatnonzero(~agrees).tolist()
            if share >= AGREEMENT and share > most:
                best, contrary, most = folder_of, np.flatnonzero(~agrees).tolist(), share
        return best, contrary

    def agreement(self):
        """Yield for each level of folders ({file: folders}, which labels agree with them (N,), their share)."""
        for folder_of in folder_levels((*self.enrol, *self.test)):
            same = [folder_of[enrol] == folder_of[test] for enrol, test in zip(self.enrol, self.test)]
            agrees = (self.label == 1) == same
            yield folder_of, agrees, (agrees[self.label == 1].mean() + agrees[self.label == 0].mean()) / 2


def folder_levels(files):
    """Yield {file: its folders to that depth, a tuple} for depths of folders 1, 2, ..."""
    folders = {file: tuple(file.split("/")[:-1]) for file in files}
    for depth in range(1, max(map(len, folders.values()), default=0) + 1):
        yield {file: folder[:depth] for file, folder in folders.items()}


def first_lines(listed):
    """{file: number of the first line that names it} for a TrainingList or TrialList."""
    lines = {}
    for column in (listed.files,) if isinstance(listed, TrainingList) else (listed.enrol, listed.test):
        for number, file in zip(listed.line_numbers, column):
            lines[file] = min(number, lines.get(file, number))
    return lines


def leads_out(file):
    """Whether a path in a list may leave its folder: it is absolute or has a "..". Links in the folder are trusted."""
    return os.path.isabs(file) or (".." in file and ".." in re.split(r"[/\\]", file))


def check_stays(file, path, number, flag):
    """InputError if a file in a line of a list ``leads_out``."""
    if leads_out(file):
        fix = "absolute or by ..; if you trust the list, --paths_anywhere takes such paths"
        raise InputError(f"{path} line {number}: {file[:200]} leads out of {flag}, {fix}")


def check_files(listed, source, flag, anywhere=False):
    """InputError naming a line of a TrainingList or TrialList whose file is not in the source (Folder, Pack).

    Paths that ``leads_out`` of a Folder are refused, too, unless ``anywhere``; in a Pack, they are only names.
    """
    lines = first_lines(listed)
    if not anywhere and not isinstance(source, Pack):
        for file, number in lines.items():
            check_stays(file, listed.path, number, flag)
    # Each process asks for its share: a network disk takes minutes for a million files.
    missing = [file for part in gather(source.missing(list(lines)[rank() :: size()])) for file in part]
    if missing:
        number, file = min((lines[file], file) for file in missing)
        stem = os.path.splitext(file)[0]
        other = next((each for each in sorted(AUDIO_SUFFIXES) if not source.missing([stem + each])), None)
        raise InputError(
            f"{listed.path} line {number}: {source.name(file)} does not exist ({len(missing)} of "
            f"{count(len(lines), 'file')} missing){f', but {stem}{other} does' if other else f'; is {flag} right?'}"
        )


def open_training_list(args):
    """The TrainingList of --train_list and its Folder or Pack."""
    if not pathlib.Path(args.train_list).exists():
        fix = "give your own (docs/data.md), or try trainSpeakerNet.py --demo"
        raise InputError(f"--train_list {args.train_list} does not exist: {fix}")
    train_list, source = TrainingList(args.train_list), open_source(args.train_path, "--train_path")
    check_files(train_list, source, "--train_path", args.paths_anywhere)
    return train_list, source


def audio_of(path, root=None, anywhere=False):
    """{file: its name} of a path: the file itself, all files in a folder, or those of a list (.txt, .lst, .list, .scp).

    Each line of a list is a path, or a line of a training or trial list. Paths start from root, or from the list's
    folder; InputError if one leaves it (unless ``anywhere``), a line has another form, or a folder has no audio. A name
    is the path of the file, or the utterance of Kaldi's wav.scp.
    """
    given, path = os.fspath(path), pathlib.Path(path)
    if path.is_dir():
        files = {str(file): str(file) for file in find_audio(path, SUFFIXES)}
        if not files:
            raise InputError(f"{path} has no audio ({', '.join(sorted(SUFFIXES))})")
        return files
    if path.suffix.lower() not in (".txt", ".lst", ".list", ".scp"):
        return {given: given}
    flag, root, files = "--root" if root else "the folder of the list", pathlib.Path(root or path.parent), {}
    for number, line in read_lines(path, "list")[0]:
        fields = line.split()
        fields = [line] if len(fields) > 1 and os.path.isfile(root / line) else fields  # a path with blanks
        if path.suffix.lower() == ".scp" and "|" in line:
            raise InputError(f"{path} line {number} is a command, which is not run: write its output to a file")
        if len(fields) > 3 or (len(fields) > 1 and pathlib.Path(fields[0]).suffix.lower() in SUFFIXES):
            raise InputError(f"{path} line {number}: expected '<path>' or '<speaker> <path>', got {line[:200]!r}")
        for file in fields[1:] or fields:
            if not anywhere:
                check_stays(file, path, number, flag)
            name = fields[0] if path.suffix.lower() == ".scp" else str(root / file)
            if files.setdefault(str(root / file), name) != name:
                raise InputError(f"{path} line {number}: {files[str(root / file)]} has this file, too; copy or link it")
    return files


def read_pairs(path, anywhere=False):
    """[(first, second)] paths of a list of ``[<1|0>] <path> <path>``, with tabs or blanks between. InputError."""
    pairs = []
    for number, line in read_lines(path, "--score")[0]:
        fields = next(filter(_are_pair, (line.split(), re.split(r"\s*\t\s*", line))), None)
        if fields is None:
            raise InputError(f"{path} line {number}: expected '<path> <path>', got {line[:200]!r}")
        for file in fields[-2:]:
            if not anywhere:
                check_stays(file, path, number, "--root")
        pairs.append(tuple(fields[-2:]))
    return pairs


def _are_pair(fields):
    return len(fields) == 2 or (len(fields) == 3 and fields[0] in ("0", "1"))
