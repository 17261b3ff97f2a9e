"""Held-out speakers and trials from a training list: every promise is looked up trial by trial."""

import collections
import itertools

import numpy as np
import pytest

from corpora.lists import TrainingList
from corpora.trials import hold_out, make_trials
from tools import InputError


@pytest.fixture
def listed(tmp_path):
    """listed({speaker: {session: utterances}}, shuffle=seed) -> a TrainingList of it."""

    def write(speakers, shuffle=None):
        lines = [f"{speaker} {speaker}/{session}/{number}.wav" for speaker, sessions in speakers.items()
                 for session, count in sessions.items() for number in range(count)]  # fmt: skip
        if shuffle is not None:
            np.random.default_rng(shuffle).shuffle(lines)
        (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
        return TrainingList(tmp_path / "list.txt")

    return write


def corpus_of(speakers, seed, most_sessions=4, most_utterances=6):
    """A made-up corpus whose speakers have very different numbers of sessions and utterances; some have only one."""
    draw = np.random.default_rng(seed)
    return {
        f"id{number}": {f"s{session}": int(draw.integers(1, most_utterances + 1))
                        for session in range(draw.integers(1, most_sessions + 1))}
        for number in range(speakers)
    }  # fmt: skip


def rows_of(trials):
    return list(zip(trials.label.tolist(), trials.enrol, trials.test))


def speaker_of(file):
    return file.split("/")[0]


def allowed_pairs(listing, sex=None):
    """By the rules, one pair after the other: ({frozenset(files)} of one speaker, those of different speakers)."""
    sessions = collections.defaultdict(set)
    for file in listing.files:
        sessions[speaker_of(file)].add(file.rsplit("/", 1)[0])
    same, different = set(), set()
    for a, b in itertools.combinations(sorted(set(listing.files)), 2):
        if speaker_of(a) != speaker_of(b):
            if sex is None or sex[speaker_of(a)] == sex[speaker_of(b)]:
                different.add(frozenset([a, b]))
        elif len(sessions[speaker_of(a)]) == 1 or a.rsplit("/", 1)[0] != b.rsplit("/", 1)[0]:
            same.add(frozenset([a, b]))
    return same, different


def chosen_pairs(trials):
    """([frozenset(files)] of the trials with label 1, those with label 0)."""
    pairs = {1: [], 0: []}
    for label, enrol, test in rows_of(trials):
        pairs[label].append(frozenset([enrol, test]))
    return pairs[1], pairs[0]


def times(pairs):
    """How often each speaker takes part; a same-speaker trial counts once."""
    return collections.Counter(speaker for pair in pairs for speaker in set(map(speaker_of, pair)))


# ---- speakers held out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_held_out_speakers_are_whole_and_gone(listed, seed):
    listing = listed(corpus_of(20, seed), shuffle=seed)
    lines = list(zip(listing.line_numbers, [listing.speakers[i] for i in listing.label], listing.files))
    kept, held = hold_out(listing, 5, seed)
    assert len(held.speakers) == 5 and len(kept.speakers) == 15
    assert not set(kept.speakers) & set(held.speakers) and not set(kept.files) & set(held.files)
    for part in (kept, held):
        found = list(zip(part.line_numbers, [part.speakers[i] for i in part.label], part.files))
        assert found == [line for line in lines if line[1] in part.speakers]
        assert set(part.label.tolist()) == set(range(len(part.speakers)))
    assert min(collections.Counter(map(speaker_of, held.files)).values()) >= 2


def test_who_is_held_out_depends_on_the_seed_alone(listed):
    corpus = corpus_of(20, 0)
    _, held = hold_out(listed(corpus), 5, 1)
    _, again = hold_out(listed(corpus, shuffle=3), 5, 1)
    assert held.speakers == again.speakers and sorted(held.files) == sorted(again.files)
    speakers = collections.Counter()
    for seed in range(400):
        speakers.update(hold_out(listed({name: {"s": 2} for name in "abcdefgh"}), 2, seed)[1].speakers)
    assert len(speakers) == 8 and all(abs(count - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5 for count in speakers.values())


def test_the_same_file_twice_is_one_utterance(tmp_path):
    (tmp_path / "list.txt").write_text("a a/1\na a/1\nb b/1\nb b/2\nc c/1\nc c/2\nc c/1\nd d/1\n")
    listing = TrainingList(tmp_path / "list.txt")
    _, held = hold_out(listing, 2, 0)
    assert held.speakers == ["b", "c"] and held.files == ["b/1", "b/2", "c/1", "c/2", "c/1"]
    trials = make_trials(held, "valid", 0)
    assert sorted(map(sorted, chosen_pairs(trials)[0])) == [["b/1", "b/2"], ["c/1", "c/2"]]


def test_a_session_within_a_session(tmp_path):
    """Sorted by name, the files of a folder may have those of another between them."""
    files = ["a/s/1", "a/s/k/1", "a/s/k/2", "a/s/x", "b/1", "c/1"]
    (tmp_path / "list.txt").write_text("".join(f"{file[0]} {file}\n" for file in files))
    same, _ = chosen_pairs(make_trials(TrainingList(tmp_path / "list.txt"), "valid", 0))
    between = [("a/s/1", "a/s/k/1"), ("a/s/1", "a/s/k/2"), ("a/s/k/1", "a/s/x"), ("a/s/k/2", "a/s/x")]
    assert sorted(tuple(sorted(pair)) for pair in same) == between


@pytest.mark.parametrize(("count", "complaint"), [
    (1, "--valid_speakers 1: at least 2"), (0, "--valid_speakers 0: at least 2"),
    (5, "--valid_speakers 5, but only 4 speakers have two utterances or more in .*list.txt"),
    (4, "--valid_speakers 4: fewer than 2 of the 5 speakers in .*list.txt would remain"),
])  # fmt: skip
def test_so_many_cannot_be_held_out(listed, count, complaint):
    listing = listed({"a": {"s": 2}, "b": {"s": 2}, "c": {"s": 1, "t": 1}, "d": {"s": 5}, "e": {"s": 1}})
    with pytest.raises(InputError, match=complaint):
        hold_out(listing, count, 0)
    assert len(hold_out(listing, 3, 0)[0].speakers) == 2


# ---- trials ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sexes", [False, True])
@pytest.mark.parametrize("most", [1, 7, 40, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_every_trial_is_allowed_none_comes_twice_and_kinds_are_balanced(listed, seed, most, sexes):
    listing = listed(corpus_of(4 + seed, seed), shuffle=seed)
    sex = {speaker: "fm"[i % 3 == 0] for i, speaker in enumerate(listing.speakers)} if sexes else None
    trials = make_trials(listing, "valid", seed, most=most, sex=sex)
    same, different = allowed_pairs(listing, sex)
    count = min(most, len(same), len(different))
    for chosen, allowed in zip(chosen_pairs(trials), (same, different)):
        assert len(chosen) == len(set(chosen)) == count and set(chosen) <= allowed
        if count == len(allowed):
            assert set(chosen) == allowed
    assert trials.path.name == "valid" and len(trials) == 2 * count


def test_a_small_corpus_gives_all_the_trials_it_has(listed):
    trials = make_trials(listed({name: {"s": 2} for name in "abc"}), "valid", 0)
    same, different = chosen_pairs(trials)
    assert set(same) == {frozenset([f"{name}/s/0.wav", f"{name}/s/1.wav"]) for name in "abc"}
    assert sorted(tuple(sorted(map(speaker_of, pair))) for pair in different) == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize("speakers", [5, 6])  # an even circle has a pair of opposites
def test_speakers_take_part_alike_however_much_they_have_said(listed, speakers):
    """Two talk ten times as much as the others."""
    listing = listed({f"id{i}": {"s": 60, "t": 60} if i < 2 else {"s": 6, "t": 6} for i in range(speakers)})
    for seed, most in itertools.product(range(3), (speakers, 30, 100, 36 * speakers)):
        same, different = map(times, chosen_pairs(make_trials(listing, "valid", seed, most=most)))
        assert len(same) == len(different) == speakers
        assert max(same.values()) - min(same.values()) <= 1
        assert max(different.values()) - min(different.values()) <= 2


def test_speakers_of_either_sex_take_part_alike(listed):
    listing = listed({f"id{i}": {"s": 6, "t": 6} for i in range(9)})
    sex = {f"id{i}": "f" if i < 2 else "m" for i in range(9)}
    different = times(chosen_pairs(make_trials(listing, "valid", 0, most=200, sex=sex))[1])
    assert len(different) == 9 and max(different.values()) - min(different.values()) <= 2


def test_who_runs_out_leaves_the_rest_to_the_others(listed):
    listing = listed({"a": {"s": 2}, "b": {"s": 3}, "c": {"s": 9}, "d": {"s": 1, "t": 8}, "e": {"s": 1}})
    for most, expected in ((12, [1, 3, 4, 4]), (13, None), (20, [1, 3, 8, 8]), (50, [1, 3, 36, 8])):
        same, different = map(times, chosen_pairs(make_trials(listing, "valid", 0, most=most)))
        assert expected is None or [same[name] for name in "abcd"] == expected
        assert sum(same.values()) == min(most, 48) and different["e"] > 0
    assert "e" not in same


def test_of_a_speakers_pairs_each_is_as_likely(listed):
    """Counted over many seeds: sessions of 1, 2 and 3 utterances have 11 pairs; two such speakers 36."""
    listing = listed({"a": {"s": 1, "t": 2, "u": 3}, "b": {"s": 3, "t": 1, "u": 2}})
    seeds = 600
    found = [collections.Counter(), collections.Counter()]
    for seed in range(seeds):
        for counter, chosen in zip(found, chosen_pairs(make_trials(listing, "valid", seed, most=4))):
            counter.update(chosen)
    for counter, allowed, part in zip(found, allowed_pairs(listing), (4 / 22, 4 / 36)):
        assert set(counter) == allowed
        assert all(abs(counter[pair] - seeds * part) < 5 * (seeds * part * (1 - part)) ** 0.5 for pair in allowed)


def test_speakers_meet_each_other_alike(listed):
    """Over many seeds, and not only those who are neighbours in the list."""
    listing = listed({name: {"s": 3} for name in "abcdef"})
    met = collections.Counter()
    for seed in range(600):
        for pair in chosen_pairs(make_trials(listing, "valid", seed, most=6))[1]:
            met[frozenset(map(speaker_of, pair))] += 1
    assert len(met) == 15 and all(abs(count - 240) < 5 * (600 * 0.4 * 0.6) ** 0.5 for count in met.values())


def test_trials_depend_on_the_seed_and_not_on_the_order_of_lines(listed):
    corpus = corpus_of(12, 0)
    trials = rows_of(make_trials(listed(corpus), "valid", 3, most=50))
    assert rows_of(make_trials(listed(corpus, shuffle=1), "valid", 3, most=50)) == trials
    assert rows_of(make_trials(listed(corpus), "valid", 4, most=50)) != trials


def test_lists_that_give_no_trials(listed):
    for corpus, sex, complaint in (
        ({"a": {"s": 1}, "b": {"s": 1}}, None, "no speaker has two utterances"),
        ({"a": {"s": 4}}, None, "no two speakers, so"),
        ({"a": {"s": 4}, "b": {"s": 4}}, {"a": "f", "b": "m"}, "no two speakers of the same sex"),
        ({"a": {"s": 4}, "b": {"s": 4}, "c": {"s": 1}}, {"a": "f"}, r"sex of speaker b is not given \(2 in all\)"),
    ):
        with pytest.raises(InputError, match=rf"list\.txt: .*{complaint}"):
            make_trials(listed(corpus), "valid", 0, sex=sex)


# ---- real speech -----------------------------------------------------------------------------------------------------


def test_real_speech(real_data):
    listing = TrainingList(real_data / "train_list.txt")
    lines = [line.split("\t") for line in (real_data / "speakers.tsv").read_text().splitlines()]
    column = lines[0].index("speaker"), lines[0].index("sex")
    sex = {fields[column[0]]: fields[column[1]] for fields in lines[1:]}
    kept, held = hold_out(listing, 60, 0)
    assert sorted([*kept.line_numbers, *held.line_numbers]) == listing.line_numbers
    speaker = dict(zip(listing.files, (listing.speakers[i] for i in listing.label)))
    sessions = collections.defaultdict(set)
    for file in listing.files:
        sessions[speaker[file]].add(file.split("/")[-2])
    trials = make_trials(held, "valid", 0, sex=sex)
    taking_part = set()
    for label, enrol, test in rows_of(trials):
        assert label == (speaker[enrol] == speaker[test]) and sex[speaker[enrol]] == sex[speaker[test]]
        if label and len(sessions[speaker[enrol]]) > 1:
            assert enrol.split("/")[-2] != test.split("/")[-2]
        taking_part |= {speaker[enrol], speaker[test]}
    assert taking_part == set(held.speakers) and len(trials) >= 2 * 60 and trials.label.mean() == 0.5
