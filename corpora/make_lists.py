"""Make lists: who speaks in which file, speakers held out of training, and trials drawn from them.

    found = from_folder(root)                        # or from_kaldi(folder, root): [(speaker, path from root)], sorted
    write_lists(found, root, "lists/own", 20)        # train_list.txt without 20 speakers, trials.txt of these 20

    kept, held = hold_out(TrainingList("train_list.txt"), count=100)
    trials = make_trials(held, "valid")              # to choose the best model, or to calibrate on

The same recordings and the same seed give the same lists, in whatever order the disk or a list names the files.
"""

import collections
import itertools
import os
import pathlib
import posixpath
import re
import sys

import numpy as np
from tqdm import tqdm

from corpora.audio import AUDIO_SUFFIXES, SUFFIXES, Folder, check_folder
from corpora.lists import TrainingList, TrialList, leads_out
from tools import InputError, check_writable, progress_bar, read_text, write_text

# ---- who speaks in which file ----------------------------------------------------------------------------------------


def from_folder(root):
    """[(speaker, path)] of <root>/<speaker>/<file> and <root>/<speaker>/<session>/<file>, sorted.

    Hidden files are left out. Files in no speaker's folder, files to be converted first and folders that are links are
    left out with a message. InputError: no audio, a single speaker, a path with a blank, a folder that cannot be read.
    """

    def stop(error):
        raise InputError(f"--lists {root}: {error.filename} cannot be read ({error.strerror})") from error

    check_folder(root, "--lists")
    found, loose, unconverted, linked = [], [], [], []
    walk = progress_bar(iterable=os.walk(root, onerror=stop), desc="looking", unit=" folders", delay=2)
    for folder, folders, names in walk:  # does not follow links, which may be circular
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = pathlib.Path(folder).relative_to(root).as_posix()
        linked += [f"{inside}/{name}" for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or suffix not in SUFFIXES:
                continue
            if suffix not in AUDIO_SUFFIXES:
                unconverted.append(f"{inside}/{name}")
            elif inside == ".":
                loose.append(name)
            else:
                found.append(f"{inside}/{name}")
    if not found and unconverted:
        raise InputError(f"--lists {root} has {len(unconverted)} files such as {min(unconverted)}, which cannot be "
                         "read: convert them to wav or flac first (--convert)")  # fmt: skip
    if not found:
        raise InputError(f"--lists {root} has no <speaker>/<file> or <speaker>/<session>/<file> with audio "
                         f"({', '.join(sorted(AUDIO_SUFFIXES))})")  # fmt: skip
    found = sorted((path.split("/", 1)[0], path) for path in found)
    if found[0][0] == found[-1][0]:
        raise InputError(f"--lists {root} has a single speaker, {found[0][0]}: give the folder that holds a folder for "
                         "each speaker")  # fmt: skip
    for left_out, why in (
        (loose, "files lie in no speaker's folder"),
        (unconverted, "files are of a format that cannot be read (--convert them)"),
        (linked, "folders are links"),
    ):
        if left_out:
            tqdm.write(f"{root}: {len(left_out)} {why}, left out; such as {min(left_out)}", file=sys.stderr)
    refuse_blanks(found, root)
    return found


def from_kaldi(folder, root):
    """[(speaker, path)] of Kaldi's wav.scp and utt2spk, sorted; their paths start from root or lie in it.

    A line of wav.scp may be a command, which is refused and never run. InputError naming the line: a command, an
    archive, no speaker, a file outside root or of two speakers, a missing file.
    """
    folder = pathlib.Path(folder)
    check_folder(root, "--lists")
    if (folder / "segments").exists():
        raise InputError(f"--kaldi {folder} has segments: only whole files can be listed; cut them into files first")
    speaker_of_utterance, speaker_of_file, line_of_file = {}, {}, {}
    for number, utterance, speaker in two_fields(folder / "utt2spk"):
        if " " in speaker or speaker_of_utterance.setdefault(utterance, speaker) != speaker:
            raise InputError(f"{folder / 'utt2spk'} line {number}: expected one speaker for {utterance}")
    for number, utterance, file in two_fields(folder / "wav.scp"):
        line = f"{folder / 'wav.scp'} line {number}"
        if "|" in file:
            raise InputError(f"{line} is a command, which is never run: write its result to a file and name that")
        if re.search(r"\.ark:\d+$", file):
            raise InputError(f"{line} points into an archive: write its audio to files (wav-copy) and name those")
        if utterance not in speaker_of_utterance:
            raise InputError(f"{line}: {utterance} has no speaker in {folder / 'utt2spk'}")
        if os.path.isabs(file):
            file = os.path.relpath(os.path.normpath(file), os.path.abspath(root))
        if leads_out(file):
            raise InputError(f"{line}: {file[:200]} does not lie in {root}: give --lists a folder that holds all files")
        file, speaker = posixpath.normpath(file), speaker_of_utterance[utterance]
        line_of_file.setdefault(file, number)
        if speaker_of_file.setdefault(file, speaker) != speaker:
            raise InputError(f"{line}: {file} is of {speaker}, but of {speaker_of_file[file]} in line "
                             f"{line_of_file[file]}")  # fmt: skip
    if not speaker_of_file:
        raise InputError(f"--kaldi {folder / 'wav.scp'} names no file")
    found = sorted((speaker, file) for file, speaker in speaker_of_file.items())
    refuse_blanks(found, folder / "wav.scp")
    missing = Folder(root).missing(list(speaker_of_file))
    if missing:
        first = min(missing, key=line_of_file.get)
        raise InputError(f"{folder / 'wav.scp'} line {line_of_file[first]}: {os.path.join(root, first)} does not exist "
                         f"({len(missing)} of {len(found)} files are missing); do its paths start from --lists {root}?"
                         )  # fmt: skip
    return found


def two_fields(path):
    """Yield (line number, first field, all the rest) of a file of Kaldi's."""
    for number, line in enumerate(read_text(path, "--kaldi").splitlines(), 1):
        fields = line.split(maxsplit=1)
        if len(fields) == 1:
            raise InputError(f"{path} line {number}: expected two fields, got {fields[0][:200]!r}")
        if fields:
            yield number, fields[0], fields[1].strip()


def refuse_blanks(found, source):
    """InputError for the first name that a line "<speaker> <path>" cannot hold."""
    names = [name for pair in found for name in pair]
    odd = [name for name in names if name.split() != [name]]
    if odd:
        raise InputError(f"{source}: {odd[0]!r} has a blank in it, which lists cannot hold ({len(odd)} such names): "
                         "rename it, say with _ for every blank")  # fmt: skip
    odd = [name for name in names if name.encode(errors="replace").decode() != name]
    if odd:
        raise InputError(f"{source}: the name {odd[0]!a} is not text in UTF-8: rename it")


# ---- the lists -------------------------------------------------------------------------------------------------------


def write_lists(found, root, folder, count=None, seed=0):
    """Write train_list.txt and, of ``count`` speakers held out of it, trials.txt -> (TrainingList, TrialList or None).

    found: [(speaker, path)]. count None: a tenth of the speakers, 2 to 100; 0, or fewer than four speakers: no trials.
    Existing lists with another content are never overwritten: InputError.
    """
    folder = pathlib.Path(folder)
    kept, trials = TrainingList.of(root, *zip(*found)), None
    if count is None:
        count = max(2, min(100, len(kept.speakers) // 10)) if len(kept.speakers) >= 4 else 0
    if count:
        kept, held = hold_out(kept, count, seed)
        trials = make_trials(held, folder / "trials.txt", seed)
    texts = {"train_list.txt": kept.text()} | ({"trials.txt": trials.text()} if trials else {})
    for name, text in texts.items():
        if (folder / name).exists() and read_text(folder / name) != text:
            raise InputError(f"--to {folder} holds another {name}: give another folder, or move it away")
    check_writable(folder, "--to")
    for name, text in texts.items():
        write_text(folder / name, text)
    return kept, trials


def hold_out(train_list, count, seed=0, asked="--valid_speakers"):
    """Hold speakers of a TrainingList out of it, with all their utterances -> (kept, held), two TrainingLists.

    Drawn evenly from those with at least two utterances. InputError if there are not ``count`` of them, or fewer than
    two speakers would be held or kept; ``asked``: the flag that asks for it, for the message.
    """
    utterances = utterances_of(train_list)
    enough = [speaker for speaker, files in enumerate(utterances) if len(files) > 1]
    if count < 2:
        raise InputError(f"{asked} {count}: at least 2 are needed for trials between different speakers")
    if count > len(enough):
        have = f"only {len(enough)} speakers have two utterances or more in {train_list.path}"
        raise InputError(f"{asked} {count}, but {have}")
    if len(utterances) - count < 2:
        remain = f"fewer than 2 of the {len(utterances)} speakers in {train_list.path} would remain to train on"
        raise InputError(f"{asked} {count}: {remain}; hold out fewer")
    held = np.isin(train_list.label, np.random.default_rng(seed).choice(enough, count, replace=False))
    return train_list.subset(np.flatnonzero(~held)), train_list.subset(np.flatnonzero(held))


def make_trials(train_list, name, seed=0, most=10_000):
    """As many same-speaker as different-speaker trials from a TrainingList -> a TrialList called ``name``.

    most: the number of each kind, or as many as there can be. No two trials are of the same two utterances. Speakers
    take part equally often, however much they have said; when one has no pairs left, the others take over. The two
    utterances of a same-speaker trial are from different sessions (folders) if the speaker has several. InputError
    if there are no trials of a kind.
    """
    random = np.random.default_rng(seed)
    utterances = [sorted(files, key=lambda file: (session_of(file), file)) for files in utterances_of(train_list)]
    size = [len(files) for files in utterances]
    partners = [partners_of(files) for files in utterances]
    pairs = [int(each.sum()) for each in partners]
    different = (sum(size) ** 2 - sum(each**2 for each in size)) // 2
    order = random.permutation(len(size)).tolist()
    if not sum(pairs):
        raise InputError(f"{train_list.path}: no speaker has two utterances, so there are no same-speaker trials")
    if not different:
        raise InputError(f"{train_list.path}: no two speakers, so there are no different-speaker trials")
    count = min(most, sum(pairs), different)

    enrol, test = [], []
    for i, share in hand_out(count, itertools.cycle(order), lambda i: pairs[i]).items():
        # Pairs are numbered: those of the first utterance with its partners, the last so many, then of the second, ...
        end = np.cumsum(partners[i])
        pair = random.choice(pairs[i], share, replace=False)
        first = np.searchsorted(end, pair, side="right")
        enrol += [utterances[i][each] for each in first]
        test += [utterances[i][each] for each in pair - end[first]]
    for (i, j), share in hand_out(count, encounters(order), lambda pair: size[pair[0]] * size[pair[1]]).items():
        pair = random.choice(size[i] * size[j], share, replace=False)
        enrol += [utterances[i][each] for each in pair // size[j]]
        test += [utterances[j][each] for each in pair % size[j]]
    return TrialList.of(name, [1] * count + [0] * count, enrol, test)


def utterances_of(train_list):
    """The files of each speaker of a TrainingList, as sets: a list may name a file twice."""
    utterances = [set() for _ in train_list.speakers]
    for speaker, file in zip(train_list.label.tolist(), train_list.files):
        utterances[speaker].add(file)
    return utterances


def session_of(file):
    return file.rpartition("/")[0]


def partners_of(files):
    """(N,): with how many of a speaker's N files, sorted by session, each may be paired, counted from the last.

    These are the files of later sessions; if there is only one session, the files after it.
    """
    _, session = np.unique([session_of(file) for file in files], return_inverse=True)
    if session[-1] == 0:
        session = np.arange(len(files))
    return len(files) - np.searchsorted(session, session, side="right")


def encounters(order):
    """Pairs of speakers, without end: each with the next in the circle ``order``, then the next but one, and so on.

    So at any time all have met equally often (but for two), and every pair has its turn again and again.
    """
    for step in itertools.count():
        distance = 1 + step % (len(order) // 2)
        for i, j in zip(order, order[distance:] + order[:distance]):
            yield min(i, j), max(i, j)


def hand_out(count, turns, available):
    """{key: share} that adds up to ``count``: one for each turn of a key while ``available(key)`` lasts."""
    shares = collections.Counter()
    while count:
        key = next(turns)
        if shares[key] < available(key):
            shares[key] += 1
            count -= 1
    return shares
