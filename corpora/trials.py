"""Trials out of a training list: to choose the best model by and to calibrate on, without a look at the test list.

    kept, held = hold_out(TrainingList("train_list.txt"), count=100)   # train on kept
    trials = make_trials(held, "valid")                                # judge by these

Both depend on the seed and on what the list says, not on the order of its lines.
"""

import collections
import itertools

import numpy as np

from corpora.lists import TrialList
from tools import InputError


def hold_out(listing, count, seed=0, asked="--valid_speakers", among=None):
    """Set speakers of a TrainingList aside, with all their utterances -> (kept, held), two TrainingLists.

    They are drawn evenly from those with at least two utterances (``among`` these names, if given). InputError when
    there are not ``count`` of them, or when fewer than two speakers would be held or kept; ``asked`` says what of the
    command line wants so many.
    """
    utterances = utterances_of(listing)
    may = [among is None or speaker in among for speaker in listing.speakers]
    enough = [speaker for speaker, files in enumerate(utterances) if len(files) > 1 and may[speaker]]
    if count < 2:
        raise InputError(f"{asked} {count}: at least 2 are needed for trials between different speakers")
    if count > len(enough):
        those = "" if among is None else " of those that may be held out"
        have = f"only {len(enough)} speakers{those} have two utterances or more in {listing.path}"
        raise InputError(f"{asked} {count}, but {have}")
    if len(utterances) - count < 2:
        remain = f"fewer than 2 of the {len(utterances)} speakers in {listing.path} would remain to train on"
        raise InputError(f"{asked} {count}: {remain}; hold out fewer")
    held = np.isin(listing.label, np.random.default_rng(seed).choice(enough, count, replace=False))
    return listing.subset(np.flatnonzero(~held)), listing.subset(np.flatnonzero(held))


def make_trials(listing, name, seed=0, most=10_000, sex=None):
    """As many trials of the same speaker as of different ones, from a TrainingList -> TrialList of that name.

    most: so many of each kind, or as many as there can be. No two trials are of the same two utterances. Speakers take
    part equally often, whatever they have said; who runs out of utterances leaves the rest to the others. The two of
    a same-speaker trial are of different sessions (folders) if the speaker has several. sex: {speaker: "f" or "m"};
    different speakers are then of one sex. InputError when there are no trials of a kind, or a speaker has no sex.
    """
    random = np.random.default_rng(seed)
    utterances = [sorted(files, key=lambda file: (session_of(file), file)) for files in utterances_of(listing)]
    size = [len(files) for files in utterances]
    partners = [partners_of(files) for files in utterances]
    pairs = [int(each.sum()) for each in partners]
    order = random.permutation(len(size)).tolist()
    circles = by_sex(listing, order, sex)
    # Twice the pairs of a circle: all of its utterances with all, less each speaker's with its own.
    different = sum(sum(size[i] for i in circle) ** 2 - sum(size[i] ** 2 for i in circle) for circle in circles) // 2
    if not sum(pairs):
        raise InputError(f"{listing.path}: no speaker has two utterances, so there are no same-speaker trials")
    if not different:
        among = " of the same sex" if sex else ""
        raise InputError(f"{listing.path}: no two speakers{among}, so there are no different-speaker trials")
    count = min(most, sum(pairs), different)

    enrol, test = [], []
    for i, share in hand_out(count, itertools.cycle(order), lambda i: pairs[i]).items():
        # Pairs are counted through: those of the first utterance with its partners, the last so many, and so on.
        end = np.cumsum(partners[i])
        place = random.choice(pairs[i], share, replace=False)
        first = np.searchsorted(end, place, side="right")
        enrol += [utterances[i][each] for each in first]
        test += [utterances[i][each] for each in place - end[first]]
    for (i, j), share in hand_out(count, encounters(circles), lambda pair: size[pair[0]] * size[pair[1]]).items():
        place = random.choice(size[i] * size[j], share, replace=False)
        enrol += [utterances[i][each] for each in place // size[j]]
        test += [utterances[j][each] for each in place % size[j]]
    return TrialList.of(name, [1] * count + [0] * count, enrol, test)


def utterances_of(listing):
    """The files of each speaker of a TrainingList, as sets: a list may name a file twice."""
    utterances = [set() for _ in listing.speakers]
    for speaker, file in zip(listing.label.tolist(), listing.files):
        utterances[speaker].add(file)
    return utterances


def session_of(file):
    return file.rpartition("/")[0]


def partners_of(files):
    """(N,) with how many of a speaker's N files, sorted by session, each may be paired: with the last so many.

    They are those of later sessions; where all are of one session, those behind it.
    """
    _, session = np.unique([session_of(file) for file in files], return_inverse=True)
    if session[-1] == 0:
        session = np.arange(len(files))
    return len(files) - np.searchsorted(session, session, side="right")


def by_sex(listing, order, sex):
    """The speakers in their order, cut in lists of those who may meet."""
    if sex is None:
        return [order]
    unknown = [speaker for speaker in listing.speakers if speaker not in sex]
    if unknown:
        raise InputError(f"{listing.path}: the sex of speaker {unknown[0]} is not given ({len(unknown)} in all)")
    circles = collections.defaultdict(list)
    for i in order:
        circles[sex[listing.speakers[i]]].append(i)
    return list(circles.values())


def encounters(circles):
    """Pairs of speakers, without end: each meets the next in its circle, then the next but one, and so on.

    So at any time all have been met equally often (but for two), and every pair has its turn again and again.
    """
    for step in itertools.count():
        for circle in circles:
            if len(circle) > 1:
                distance = 1 + step % (len(circle) // 2)
                for i, j in zip(circle, circle[distance:] + circle[:distance]):
                    yield min(i, j), max(i, j)


def hand_out(count, turns, available):
    """{key: share} of so many, one at each turn of a key that has some available (function of the key) still."""
    shares = collections.Counter()
    while count:
        key = next(turns)
        if shares[key] < available(key):
            shares[key] += 1
            count -= 1
    return shares
