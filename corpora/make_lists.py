"""Make training lists from folders or Kaldi's files, and trial lists of speakers held out of them.

The same files and the same seed give the same lists, whatever the order of the files.
"""

import collections
import itertools
import os
import pathlib
import posixpath
import sys

import numpy as np
from tqdm import tqdm

from corpora.audio import AUDIO_SUFFIXES, SUFFIXES, Folder, check_folder, find_audio
from corpora.lists import TrainingList, TrialList, check_files, leads_out, read_lines
from tools import InputError, check_writable, count, one_line, read_text, write_text


def from_folder(root):
    """[(speaker, path)] of <root>/<speaker>/<file> and <root>/<speaker>/<session>/<file>, sorted.

    Hidden files are left out; so are, with a message, files in no speaker's folder and files to be converted first.
    InputError: no audio, a single speaker, only deeper files, a path with a blank.
    """
    check_folder(root, "--lists")
    found, loose, twice, unconverted, seen = [], [], [], [], set()
    # First what can be read: a file to be converted may have been, to one beside it.
    for path in sorted(find_audio(root, SUFFIXES), key=lambda path: path.suffix.lower() not in AUDIO_SUFFIXES):
        file, stem = path.relative_to(root).as_posix(), path.with_suffix("")
        if stem in seen:
            twice.append(file)
        elif path.suffix.lower() not in AUDIO_SUFFIXES:
            unconverted.append(file)
        else:
            (found if "/" in file else loose).append(file)
            seen.add(stem)
    for left_out, why in ((loose, "in no speaker's folder"), (unconverted, "to be converted first (--convert)"),
                          (twice, "there in another format, too")):  # fmt: skip
        if left_out:
            files = f"{count(len(left_out), 'file')} {why}, such as {min(left_out)}"
            tqdm.write(f"{root}: left out {files}", file=sys.stderr)
    found = sorted((path.split("/", 1)[0], path) for path in found)
    speakers = {speaker for speaker, _ in found}
    deeper = len(speakers) > 1 and all(path.count("/") > 2 for _, path in found)
    if len(speakers) < 2 or deeper:
        what = f"no audio ({', '.join(sorted(AUDIO_SUFFIXES))}){' in folders of speakers' * bool(loose)}"
        what = f"a single speaker, {min(speakers)}" if speakers else what
        what = f"only files in deeper folders, such as {found[0][1]}" if deeper else what
        raise InputError(f"--lists {root} has {what}: expected <speaker>/<file> or <speaker>/<session>/<file> in it")
    refuse_blanks(found, root)
    return found


def from_kaldi(folder, root):
    """[(speaker, path)] of Kaldi's wav.scp and utt2spk, sorted; paths are relative to root, or absolute and inside it.

    Commands in wav.scp are never run. InputError naming the line: a command, no speaker, a file outside root or absent.
    """
    folder = pathlib.Path(folder)
    check_folder(root, "--lists")
    speaker_of = {utterance: speaker for _, utterance, speaker in two_fields(folder / "utt2spk")}
    speakers, files = [], []
    for number, utterance, file in two_fields(folder / "wav.scp"):
        line = f"{folder / 'wav.scp'} line {number}"
        if "|" in file:
            raise InputError(f"{line} is a command, which is not run: write its output to a file")
        if utterance not in speaker_of:
            raise InputError(f"{line}: {utterance} has no speaker in {folder / 'utt2spk'}")
        file = os.path.relpath(os.path.join(root, file), root)
        if leads_out(file):
            raise InputError(f"{line}: {file[:200]} is not in {root}: give --lists a folder that has all files")
        speakers.append(speaker_of[utterance])
        files.append(file)
    check_files(TrainingList.of(folder / "wav.scp", speakers, files), Folder(root), "--lists")
    found = sorted(set(zip(speakers, files)))
    refuse_blanks(found, folder / "wav.scp")
    return found


def two_fields(path):
    """Yield (line number, first field, rest of the line) of one of Kaldi's files."""
    lines, _ = read_lines(path, "--kaldi")
    for number, line in lines:
        name, *rest = line.split(maxsplit=1)
        if not rest:
            raise InputError(f"{path} line {number}: expected two fields, got {name[:200]!r}")
        yield number, name, rest[0]


def refuse_blanks(found, source):
    """InputError for names with a blank, which separates the fields of a list, or that are not UTF-8."""
    wrong = {"a blank": lambda name: name.split() != [name],
             "letters that are not UTF-8": lambda name: name.encode(errors="replace").decode() != name}  # fmt: skip
    for what, is_wrong in wrong.items():
        names = [next(filter(is_wrong, pair[::-1])) for pair in found if any(map(is_wrong, pair))]
        if names:
            files = f"{count(len(names), 'such file')}: rename what has it (docs/data.md)"
            raise InputError(f"{source}: '{one_line(names[0])}' has {what} in it, so no list can name it; {files}")


def write_lists(found, root, folder, count=None, seed=0):
    """Write train_list.txt and trials.txt of ``count`` speakers held out of it -> (TrainingList, TrialList or None).

    found: [(speaker, path)]. count None: a tenth of the speakers, 5 (for intervals; of fewer than 20 speakers: 2) to
    100; 0, or too few speakers with two files: no trials. InputError: lists with other content, never overwritten.
    """
    folder = pathlib.Path(folder)
    kept, trials = TrainingList.of(root, *zip(*found)), None
    if count is None:
        speakers, enough = len(kept.speakers), sum(len(files) > 1 for files in utterances_of(kept))
        count = min(100, max(5 if speakers >= 20 else 2, speakers // 10), speakers - 2, enough)
        count *= count >= 2
    if count:
        kept, held = hold_out(kept, count, seed)
        trials = make_trials(held, folder / "trials.txt", seed)
    texts = {"train_list.txt": kept.text()} | ({"trials.txt": trials.text()} if trials else {})
    for name, text in texts.items():
        if (folder / name).exists() and (other := read_text(folder / name)) != text:
            lines = [len(each.splitlines()) for each in (other, text)]
            what = f"another {name} ({lines[0]} lines; this one would have {lines[1]})"
            raise InputError(f"--to {folder} has {what}: move it away, or give another folder")
    check_writable(folder, "--to")
    for name, text in texts.items():
        write_text(folder / name, text)
    return kept, trials


def hold_out(train_list, count, seed=0, asked="--valid_speakers"):
    """Split a TrainingList by speaker into (kept, held), two TrainingLists, the second with ``count`` speakers.

    These are drawn from the speakers with at least two utterances, with equal probability. InputError if there are too
    few, or fewer than two speakers would be held or kept; asked: the flag to name in the message.
    """
    utterances = utterances_of(train_list)
    enough = [speaker for speaker, files in enumerate(utterances) if len(files) > 1]
    most = min(len(enough), len(utterances) - 2)
    if not 2 <= count <= most:
        about = f"{len(enough)} of the {len(utterances)} speakers in {train_list.path} have at least two utterances"
        raise InputError(f"{asked} {count}: must be from 2 to {most}, because {about}, and two speakers must remain")
    held = np.isin(train_list.label, np.random.default_rng(seed).choice(enough, count, replace=False))
    return train_list.subset(np.flatnonzero(~held)), train_list.subset(np.flatnonzero(held))


def make_trials(train_list, name, seed=0, most=10_000):
    """A TrialList called ``name`` of a TrainingList, half of the trials same-speaker.

    most: limit for each kind. Each pair of utterances occurs at most once. All speakers occur equally often, whatever
    their number of utterances, until one has no more pairs. The utterances of a same-speaker trial are from different
    sessions (folders) if the speaker has several. InputError if there are no trials.
    """
    random = np.random.default_rng(seed)
    utterances = [sorted(sorted(files), key=posixpath.dirname) for files in utterances_of(train_list)]
    for files in utterances:  # all pairs of more would take gigabytes
        files[:] = files if len(files) <= 1000 else [files[i] for i in sorted(random.permutation(len(files))[:1000])]
    size = [len(files) for files in utterances]
    pairs = [len(pairs_of(files)[0]) for files in utterances]
    different = (sum(size) ** 2 - sum(each**2 for each in size)) // 2
    order = random.permutation(len(size)).tolist()
    count = min(most, sum(pairs), different)

    enrol, test = [], []
    for i, share in hand_out(count, itertools.cycle(order), lambda i: pairs[i]).items():
        pair = random.choice(pairs[i], share, replace=False)
        for side, row in zip((enrol, test), pairs_of(utterances[i])):
            side += [utterances[i][each] for each in row[pair]]
    for (i, j), share in hand_out(count, encounters(order), lambda pair: size[pair[0]] * size[pair[1]]).items():
        pair = random.choice(size[i] * size[j], share, replace=False)
        enrol += [utterances[i][each] for each in pair // size[j]]
        test += [utterances[j][each] for each in pair % size[j]]
    return TrialList.of(name, [1] * count + [0] * count, enrol, test)


def utterances_of(train_list):
    """The set of files of each speaker of a TrainingList, which may name a file twice."""
    utterances = [set() for _ in train_list.speakers]
    for speaker, file in zip(train_list.label.tolist(), train_list.files):
        utterances[speaker].add(file)
    return utterances


def pairs_of(files):
    """The indices (first (P,), second (P,)) of all pairs of a speaker's files, from different sessions if possible."""
    _, session = np.unique([posixpath.dirname(file) for file in files], return_inverse=True)
    first, second = np.triu_indices(len(files), 1)
    apart = session[first] != session[second]
    return (first[apart], second[apart]) if apart.any() else (first, second)


def encounters(order):
    """Yield pairs of speakers without end: each with the next one in the circle ``order``, then the next but one, ...

    At any time, the numbers of pairs per speaker differ by at most two.
    """
    for step in itertools.count():
        distance = 1 + step % (len(order) // 2)
        for i, j in zip(order, order[distance:] + order[:distance]):
            yield min(i, j), max(i, j)


def hand_out(count, turns, available):
    """{key: share}, ``count`` in total: the keys get one in each turn, up to ``available(key)``."""
    shares = collections.Counter()
    while count:
        key = next(turns)
        if shares[key] < available(key):
            shares[key] += 1
            count -= 1
    return shares
