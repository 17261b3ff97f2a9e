"""Check the data before training: lists, audio files, noises and room responses.

    print(table(check(arguments)))           # with the flags of prepareData.py --check
    stop_at_errors(quick_check(settings))    # before training and evaluation: lists, and a few hundred files

Both return Findings. "error": training or evaluation would stop, or its result would be meaningless; "warning": the
result would be worse or misleading; "note": information.
"""

import collections
import functools
import hashlib
import os
import statistics
from typing import NamedTuple

import numpy as np

from corpora.audio import SAMPLE_RATE, AudioFile, UnreadableAudio, find_noises, find_responses
from corpora.lists import AGREEMENT, TrainingList, TrialList, check_files, first_lines
from corpora.pack import Pack, open_source
from tools import InputError, count, file_hash, in_order, one_line, progress_bar, rank

SEVERITIES = ("note", "warning", "error")  # the exit status is the index of the worst
QUICK = 200  # number of training files, and of evaluation files, whose headers the quick check reads
SHORT = 1.0  # seconds: shorter utterances are of little use
SILENT_PEAK = 1e-3  # -60 dB, less than the quietest usable speech
LOUD_PEAK = 100  # not a codec's overshoot but integers stored as floats
LIKELY = 0.65  # share of a trial list's labels that agree with its folders, from which on these seem to be speakers
# What may be wrong with a file, and what to do.
UNREADABLE, CUT_OFF = "cannot be read as audio", "are shorter than their header says"
LOW_RATE, TOO_SHORT, SILENT = "were recorded below 16 kHz", f"are shorter than {SHORT} s", "are silent"
LOUD = "have samples far beyond full scale, which training clips"
FAULTS = {
    **dict.fromkeys((UNREADABLE, CUT_OFF), "download or convert them again, or remove their lines from the list"),
    LOW_RATE: "they lack high frequencies", TOO_SHORT: "leave them out of training", SILENT: "leave them out",
    LOUD: "full scale of floating point is 1: divide them by 32768 or write them as int16",
}  # fmt: skip

# (name, file, trials, same-speaker trials, published EERs in %). Sizes: PaddleSpeech, examples/voxceleb/README.md; that
# of Vox1-E cleaned is widely quoted. EERs: the systems' own pages, C=1024, of VoxCeleb2 dev (SpeechBrain: and 1).
KNOWN_LISTS = [
    ("Vox1-O original", "veri_test.txt", 37720, 18860, "TaoRuijie 1.00"),
    ("Vox1-O cleaned", "veri_test2.txt", 37611, 18802, "TaoRuijie 0.96, with AS-norm 0.86; SpeechBrain 0.90, with "
     "AS-norm 0.80; ModelScope 0.862; 3D-Speaker 0.866; wespeaker 0.856, large margin with AS-norm 0.728"),
    ("Vox1-E original", "list_test_all.txt", 581480, 290743, "none known"),
    ("Vox1-E cleaned", "list_test_all2.txt", 579818, None, "TaoRuijie with AS-norm 1.18; wespeaker 1.072"),
    ("Vox1-H original", "list_test_hard.txt", 552536, 276270, "none known"),
    ("Vox1-H cleaned", "list_test_hard2.txt", 550894, 275488, "TaoRuijie with AS-norm 2.17; wespeaker 2.059"),
]  # fmt: skip


class Finding(NamedTuple):
    """A result: one of SEVERITIES; what was found, in words; number of cases; up to three of them; what to do."""

    severity: str
    what: str
    count: int
    examples: list
    fix: str

    def in_one_line(self):
        examples = f": {self.count:,}, such as {'; '.join(self.examples)}" if self.examples else ""
        return one_line(f"{self.what}{examples}{self.fix and '; ' + self.fix}")


def found(severity, what, cases, fix="", example=str):
    """[Finding] of the cases, [] if there are none. example: function case -> text."""
    return [Finding(severity, what, len(cases), [example(case) for case in cases[:3]], fix)] if cases else []


def check_lists(arguments, earlier_speakers=()):
    """([TrainingList], [TrialList], [Finding]) of the given lists. earlier_speakers: as for ``quick_check``."""
    train_lists, tests, trained, findings = [], [], set(), []
    if arguments.train_list and not getattr(arguments, "eval", False):
        try:
            train_lists.append(TrainingList(arguments.train_list))
            trained, findings = check_training_list(train_lists[0])
        except InputError as error:
            findings += found("error", "the training list cannot be used", [error])
    same_names = os.path.realpath(arguments.train_path or "") == os.path.realpath(arguments.eval_path or "")
    for path in arguments.eval_list or []:
        try:
            tests.append(TrialList(path))
        except InputError as error:
            findings += found("error", "a trial list cannot be used", [error])
            continue
        name, (speakers, more) = tests[-1].path.name, check_trials(tests[-1])
        findings += more + which_list(tests[-1])
        findings += found("error" if same_names else "warning", f"speakers are both in training and in {name}",
                          sorted(trained & speakers), "if they are the same people, remove them from one list")
        findings += found("warning", f"speakers of {name} were in the model's training",
                          sorted(speakers & set(earlier_speakers)), "the EER of other speakers will be higher")
    return train_lists, tests, findings


def check_training_list(train_list):
    """(names of the speakers of a TrainingList, [Finding])."""
    line, count = train_list.quote, len(train_list.speakers)
    twice, of_two = repeated(train_list.files, train_list.label.tolist())
    findings = found("warning", "lines of the training list are repeated", twice, "remove them: sort -u", line)
    findings += found("error", "files of the training list are of two speakers", of_two, "remove the wrong line", line)
    if count in (1, len(train_list)):
        what = f"the training list has {'a single speaker' if count == 1 else 'another speaker in every line'}"
        findings += found("error", what, train_list.speakers, "a line must be '<speaker> <path>'")
    folder_of, others = train_list.speaker_folders()
    folders = len(set(folder_of.values()))
    severity, what, fix = "warning", "training lines have another speaker than most files of their folder", "fix them"
    if len(others) > (1 - AGREEMENT) * len(train_list):
        if folder_of[train_list.files[0]] == (train_list.speakers[train_list.label[0]],):  # names of other folders
            severity = "error"
        elif folders > count:
            severity = "error" if all(map(str.isdecimal, train_list.speakers)) else "warning"  # sessions may be meant
            what = f"the training list has {count} labels for {folders} folders of speakers"
            fix = "a label must be one speaker; if the folders are sessions, name the speakers, do not number them"
    findings += found(severity, what, others, fix, line)
    if not others and sum(folder_of[file][-1] in file.split("/") for file in folder_of) < AGREEMENT * len(folder_of):
        what, fix = "the labels of the training list are not those of folders", "make sure that they are speakers"
        findings += found("note", what, train_list.speakers, fix)
    return train_list.speaker_names(folder_of), findings


def check_trials(trials):
    """(names of the speakers of a TrialList, if they are names of folders, [Finding])."""
    name, line = trials.path.name, trials.quote
    pairs = [tuple(sorted(pair)) for pair in zip(trials.enrol, trials.test)]
    twice, of_both = repeated(pairs, trials.label.tolist())
    findings = found("error", f"trials of {name} are labelled both 1 and 0", of_both, "remove the wrong one", line)
    findings += found("warning", f"trials of {name} are repeated", twice, "each counts as another trial", line)
    alone = [row for row, (first, second) in enumerate(pairs) if first == second]
    findings += found("warning", f"trials of {name} compare a file with itself", alone, "remove them", line)
    folder_of, wrong = trials.speaker_folders()
    what, fix = f"the labels of {name} are reversed", "1 means the same speaker: swap 0 and 1"
    if folder_of:
        what, fix = f"labels of {name} contradict the speakers' folders", "correct them"
    findings += found("error", what, wrong, fix, line)
    if not folder_of and not wrong:
        _, agrees, share = max(trials.agreement(), key=lambda level: level[2], default=({}, None, 0))
        narrow = "intervals take recordings that same-speaker trials connect for a speaker, and may be too narrow"
        if share < LIKELY:
            findings.append(Finding("warning", f"the folders of {name} do not tell its speakers", 1, [], narrow))
        else:
            what = f"only {share:.0%} of the labels of {name} agree with its folders"
            fix = f"if these are the speakers, correct the labels; else {narrow}"
            findings += found("warning", what, np.flatnonzero(~agrees).tolist(), fix, line)
    return trials.speaker_names(folder_of), findings


def repeated(keys, labels):
    """(rows that repeat an earlier row, rows with an earlier row's key but another label)."""
    label_of, twice, contrary = {}, [], []
    for row, (key, label) in enumerate(zip(keys, labels)):
        if key in label_of:
            (twice if label_of[key] == label else contrary).append(row)
        label_of.setdefault(key, label)
    return twice, contrary


def which_list(trials):
    """[Finding]: which published list a TrialList is, by the numbers of trials, with the published EERs."""
    count, target = len(trials), int(trials.label.sum())
    what = f"{trials.path.name} has {count:,} trials, {target:,} of the same speaker"
    for name, file, size, known_target, published in KNOWN_LISTS:
        if count == size and known_target in (target, None):
            fix = f"never compare results on original and cleaned lists; published EERs in %: {published}"
            return [Finding("note", f"{what}: it is {name} ({file})", count, [], fix)]
    return [Finding("note", what, count, [], "")]


def file_faults(path, full=False):
    """({what is wrong with a file, of FAULTS: details}, its seconds or None), from its header; full: all samples."""
    head, size = b"", 0
    try:
        with open(path, "rb") as file:
            head, size = file.read(20), os.fstat(file.fileno()).st_size
        with AudioFile(path) as audio:
            is_float = audio.file.subtype in ("FLOAT", "DOUBLE")
            part = audio.read(0, audio.length if full else min(audio.length, SAMPLE_RATE)) if full or is_float else None
    except (UnreadableAudio, OSError) as error:
        return {UNREADABLE: f"{str(error).removeprefix(f'{path} ')}; {size} bytes, which begin with {head!r}"}, None
    claimed = int.from_bytes(head[4:8], "little")
    # libsndfile reads a truncated wav as a shorter one. A wav that was written to a pipe claims 2 or 4 GB.
    if head[:4] == b"RIFF" and size < 8 + claimed < 0x7FFF0000:
        return {CUT_OFF: f"{size} of {8 + claimed} bytes"}, None
    seconds = audio.length / SAMPLE_RATE
    peak = 1.0 if part is None else float(np.abs(part).max())
    faults = {LOW_RATE: audio.rate < SAMPLE_RATE, TOO_SHORT: seconds < SHORT, SILENT: full and peak < SILENT_PEAK,
              LOUD: peak > LOUD_PEAK}  # fmt: skip
    return {fault: f"{seconds:.2f} s, {audio.rate} Hz" for fault, applies in faults.items() if applies}, seconds


def check_audio(name, lists, arguments, full=False, few=None):
    """[Finding] of the "training" or "evaluation" files in lists; few: of at most this many."""
    flag = "--train_path" if name == "training" else "--eval_path"
    root = arguments.train_path if name == "training" else arguments.eval_path
    files = list(dict.fromkeys(file for listed in lists for file in first_lines(listed)))
    if not files or not root:
        return found("warning", f"the {name} audio was not checked", files, f"give {flag}")
    try:
        source = open_source(root, flag)
        for listed in [] if few else lists:  # before training and evaluation this has been done
            check_files(listed, source, flag, arguments.paths_anywhere)
    except InputError as error:
        return found("error", f"the {name} lists do not fit {flag}", [error])
    if isinstance(source, Pack):  # its files were read when they were packed
        empty = [file for file, length in zip(files, source.length[source.rows(files)].tolist()) if not length]
        severity = "error" if name == "evaluation" or len(empty) > max(1, len(files) // 100) else "warning"
        what, fix = f"{name} files could not be read when they were packed", "repair them, delete the pack, pack again"
        note = f"the {name} files are in a pack, so their audio is not checked, nor compared with other lists'"
        findings = found(severity, what, empty, fix)
        return [*findings, Finding("note", note, len(files), [], "check the folder that it was made from, too")]
    paths = list(map(source.name, files[:: -(-len(files) // few) if few else 1]))
    checked = in_order(functools.partial(file_faults, full=full), paths, arguments.n_cpu)
    bar = progress_bar(iterable=checked, total=len(paths), desc=f"checking {name}", unit=" files", delay=2)
    checked = dict(zip(paths, bar))
    # Training replaces unreadable files if they are at most 1 %, which a sample of the files cannot decide.
    some = len(paths) < len(files)
    tolerated = 0 if name == "evaluation" else len(paths) if some else max(1, len(paths) // 100)
    findings = []
    for fault, fix in FAULTS.items():
        cases = [f"{path} ({faults[fault]})" for path, (faults, _) in checked.items() if fault in faults]
        severity = "error" if fault == UNREADABLE and len(cases) > tolerated else "warning"
        findings += found(severity, f"{name} files {fault}", cases, fix)
    seconds = [each for _, each in checked.values() if each is not None]
    if seconds:
        spread = f"{min(seconds):.2f} to {max(seconds):.2f} s, median {statistics.median(seconds):.2f} s"
        findings += [Finding("note", f"{name}: {sum(seconds) / 3600:.2f} hours", len(seconds), [spread], "")]
    return findings


def check_identical(train_lists, tests, arguments):
    """[Finding] of files with the same content: in training and evaluation, of two speakers, or of one."""
    speaker_of = {os.path.join(arguments.train_path or "", file): listed.speakers[label]
                  for listed in train_lists for file, label in zip(listed.files, listed.label)}  # fmt: skip
    paths = [os.path.join(arguments.eval_path or "", file) for listed in tests for file in first_lines(listed)]
    groups = {"": list(dict.fromkeys([*speaker_of, *paths]))}
    for key in (beginning, file_hash):  # each for those that agreed in the one before
        paths = [path for group in groups.values() if len(group) > 1 for path in group]
        keys = in_order(functools.partial(key_or_none, key), paths, arguments.n_cpu)
        bar = progress_bar(iterable=keys, total=len(paths), desc="comparing files", unit=" files", delay=2)
        groups = collections.defaultdict(list)
        for path, found_key in zip(paths, bar):
            if found_key is not None:
                groups[found_key].append(path)
    within, across, of_two = [], [], []
    for group in groups.values():
        speakers = {speaker_of.get(path) for path in group}  # None: an evaluation file
        if len(group) > 1:
            (within if len(speakers) == 1 else across if None in speakers else of_two).append(group)
    fix, example = "keep the right one of each", " = ".join
    findings = found("error", "groups of training and evaluation files are identical", across, fix, example)
    findings += found("error", "groups of files of different speakers are identical", of_two, fix, example)
    return findings + found("warning", "groups of files are identical", within, fix, example)


def beginning(path):
    """(size, hash of the first 8 kB) of a file."""
    with open(path, "rb") as file:
        return os.path.getsize(path), hashlib.blake2b(file.read(8192), digest_size=16).digest()


def key_or_none(key, path):
    try:
        return key(path)
    except OSError:  # check_audio names it
        return None


def check(arguments):
    """[Finding], the worst first, of the given lists, audio, noises and responses (flags of prepareData.py)."""
    full = arguments.check == "full"
    train_lists, tests, findings = check_lists(arguments)
    findings += check_audio("training", train_lists, arguments, full)
    findings += check_audio("evaluation", tests, arguments, full)
    for flag, find in (("musan_path", find_noises), ("rir_path", find_responses)):
        try:
            if root := getattr(arguments, flag):
                _, files = find(root)
                groups = files if isinstance(files, dict) else {"responses": files}
                numbers = ", ".join(f"{len(group):,} of {name}" for name, group in groups.items())
                findings.append(Finding("note", f"--{flag} has files that were not opened: {numbers}", 0, [], ""))
        except InputError as error:
            findings += found("error", f"--{flag} cannot be used", [error])
    findings += check_identical(train_lists, tests, arguments)
    return sorted(findings, key=lambda each: -SEVERITIES.index(each.severity))


def quick_check(args, earlier_speakers=()):
    """[Finding] of the lists and a few files; earlier_speakers: names of those that the model was trained on."""
    if args.no_check or rank():
        return []
    train_lists, tests, findings = check_lists(args, earlier_speakers)
    findings += check_audio("training", train_lists, args, few=QUICK)
    findings += check_audio("evaluation", tests, args, few=QUICK)
    return [each for each in findings if each.severity != "note" or "published EERs" in each.fix]


def stop_at_errors(findings):
    """Print each finding in one line, but raise the first error as InputError."""
    errors = [each for each in findings if each.severity == "error"]
    for each in findings:
        if each not in errors[:1]:
            print(f"{each.severity}: {each.in_one_line()}")
    if errors:
        raise InputError(f"{errors[0].in_one_line()}; to start anyway, give --no_check")


def table(findings):
    """The findings as text, each with its severity, count, description, examples and fix."""
    text = []
    for each in findings:
        text.append(f"{each.severity:7} {each.count:>9,}  {one_line(each.what)}")
        text += [f"{'':17}    {one_line(example, 300)}" for example in each.examples]
        text += [f"{'':17}  > {one_line(each.fix)}"] if each.fix else []
    counts = collections.Counter(each.severity for each in findings)
    return "\n".join([*text, ", ".join(count(counts[severity], severity) for severity in reversed(SEVERITIES))])
