"""Lists from folders and Kaldi's files, speakers held out, and trials: each promise is checked in what was written."""

import collections
import itertools
import os
import shlex

import numpy as np
import pytest

import prepareData
import trainSpeakerNet
from corpora.lists import TrainingList
from corpora.make_lists import from_folder, from_kaldi, hold_out, make_trials, write_lists
from tools import InputError
from training.settings import read_settings

SHAPE = {"anna": 6, "ben": 4, "cleo": 6, "dan": 3, "eva": 6, "finn": 5}  # utterances; two sessions where even


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def tree(tmp_path):
    """(root, sorted [(speaker, path)] of the empty files in it): nothing here reads audio."""
    root = tmp_path / "voices"
    found = [(speaker, f"{speaker}/{f's{number % 2}/' * (count % 2 == 0)}{number}.wav")
             for speaker, count in SHAPE.items() for number in range(count)]  # fmt: skip
    for _, path in found:
        touch(root / path)
    return root, sorted(found)


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


# ---- who speaks in which file ----------------------------------------------------------------------------------------


def test_folder_and_what_is_left_out_of_it(tree, capsys):
    root, expected = tree
    for hidden in ("anna/._0.wav", ".trash/x.wav", "anna/notes.txt"):
        touch(root / hidden)
    assert from_folder(root) == expected and not capsys.readouterr().err
    for name in ("loose.wav", "anna/1.m4a", "anna/s0/0.m4a", "anna/s0/0.wv.wav", "anna/s0/0.wv.opus"):
        touch(root / name)
    expected = sorted([*expected, ("anna", "anna/s0/0.wv.opus")])
    assert from_folder(root) == expected
    said = capsys.readouterr().err
    assert "left out 2 files there in another format, too, such as anna/s0/0.m4a" in said
    assert "left out 1 file in no speaker's folder, such as" in said and "loose.wav" in said
    assert "1 file to be converted first" in said and "anna/1.m4a" in said
    (root / "gus").symlink_to(root / "dan")  # whose recordings are elsewhere
    assert from_folder(root) == [*expected, *(("gus", f"gus/{number}.wav") for number in range(3))]


@pytest.mark.parametrize("names, said", [
    ([], "has no audio .*expected <speaker>/<file>"), (["a/1.m4a", "b/1.m4a"], "has no audio"),
    (["wav/a/1.wav", "wav/b/1.wav"], "single"), (["x/a/s/1.wav", "y/b/s/1.wav"], "deeper folders, such as x/a/s/1"),
    (["a/1.wav", "b/my voice.wav"], "'b/my voice.wav' has a blank .*1 such file"),
    (["a/1.wav", "b/x\u20281.wav"], "has a blank"), (["a/1.wav", os.fsdecode(b"b/\xff.wav")], "not UTF-8"),
])  # fmt: skip
def test_folders_that_make_no_list(tmp_path, names, said):
    for name in names:
        touch(tmp_path / name)
    with pytest.raises(InputError, match=said):
        from_folder(tmp_path)


def kaldi(folder, pairs, scp=(), utt2spk=()):
    folder.mkdir()
    write_lines(folder / "wav.scp", [*(f"u{i} {path}" for i, (_, path) in enumerate(pairs)), *scp])
    write_lines(folder / "utt2spk", [*(f"u{i} {speaker}" for i, (speaker, _) in enumerate(pairs)), *utt2spk])
    return folder


def test_kaldi(tree, tmp_path):
    root, expected = tree
    assert from_kaldi(kaldi(tmp_path / "a", expected[::-1]), root) == expected
    absolute = [(speaker, f"{root}/{path}") for speaker, path in expected]
    assert from_kaldi(kaldi(tmp_path / "b", absolute), root) == expected


@pytest.mark.parametrize("scp, utt2spk, said", [
    (["v touch {} |"], ["v anna"], "line 31 is a command"), (["v | touch {}"], ["v anna"], "is a command"),
    (["v a.ark:1"], ["v anna"], "does not exist"), (["v anna/s0/0.wav"], [], "has no speaker"), (["v"], [], "two"),
    (["v no.wav"], ["v anna"], "line 31: .*no.wav does not exist"), (["v anna/s0/0.wav"], ["v a b"], "has a blank"),
    (["v ../x.wav"], ["v anna"], "is not in"), (["v /etc/x.wav"], ["v anna"], "is not in"),
])  # fmt: skip
def test_kaldi_that_makes_no_list_and_never_runs(tree, tmp_path, scp, utt2spk, said):
    root, pairs = tree
    trap = tmp_path / "ran"
    with pytest.raises(InputError, match=said):
        from_kaldi(kaldi(tmp_path / "k", pairs, [line.format(trap) for line in scp], utt2spk), root)
    assert not trap.exists()


# ---- lists that are written ------------------------------------------------------------------------------------------


def test_of_too_few_speakers_with_two_files_there_are_no_trials(tmp_path):
    found = [(f"s{number}", f"s{number}/a.wav") for number in range(12)]
    assert write_lists(found, tmp_path, tmp_path / "a")[1] is None
    kept, trials = write_lists([*found, ("s0", "s0/b.wav"), ("s1", "s1/b.wav")], tmp_path, tmp_path / "b")
    assert len(kept.speakers) == 10 and trials.label.sum() == 2


def test_other_lists_are_never_overwritten(tree, tmp_path):
    root, found = tree
    write_lists(found, root, tmp_path / "lists", 3)
    before = {path: path.read_bytes() for path in (tmp_path / "lists").iterdir()}
    write_lists(found, root, tmp_path / "lists", 3)  # the same again
    with pytest.raises(InputError, match="has another"):
        write_lists(found[:-1], root, tmp_path / "lists", 3)
    assert before == {path: path.read_bytes() for path in (tmp_path / "lists").iterdir()}


def test_command_and_the_command_it_prints(corpus, tmp_path, command):
    """The recordings of a folder to lists, a check without errors, and flags that training understands."""
    status, printed, _ = command(prepareData, "--lists", corpus / "train", "--to", tmp_path, "--valid_speakers", 2)
    assert status == 0 and "16 utterances of 4 speakers" in printed
    arguments = shlex.split(printed.splitlines()[-1].partition(": ")[2])
    assert arguments[:2] == ["python", "trainSpeakerNet.py"]
    settings = read_settings(trainSpeakerNet.build_parser(), arguments[2:])
    assert settings.train_list == f"{tmp_path}/train_list.txt" and settings.musan_path == ""
    flags = ["--train_list", settings.train_list, "--train_path", settings.train_path,
             "--eval_list", *settings.eval_list, "--eval_path", settings.eval_path]  # fmt: skip
    assert command(prepareData, *flags, "--check", "full")[0] == 0
    none = command(prepareData, "--lists", corpus / "train", "--to", tmp_path / "b", "--valid_speakers", 0)
    assert none[0] == 0 and not (tmp_path / "b/trials.txt").exists() and "24 utterances of 6 speakers" in none[1]


# ---- speakers held out -----------------------------------------------------------------------------------------------


def list_of(speakers, shuffle=None):
    """A TrainingList of {speaker: {session: number of utterances}}."""
    lines = [(speaker, f"{speaker}/{session}/{number}.wav") for speaker, sessions in speakers.items()
             for session, count in sessions.items() for number in range(count)]  # fmt: skip
    if shuffle is not None:
        lines = [lines[i] for i in np.random.default_rng(shuffle).permutation(len(lines))]
    return TrainingList.of("list.txt", *zip(*lines))


def uneven_corpus(speakers, seed):
    """Speakers with very different numbers of sessions (1 to 4) and utterances (1 to 6 of each)."""
    draw = np.random.default_rng(seed)
    return {f"id{number}": {f"s{session}": int(draw.integers(1, 7)) for session in range(draw.integers(1, 5))}
            for number in range(speakers)}  # fmt: skip


def speaker_of(file):
    return file.split("/")[0]


@pytest.mark.parametrize("seed", range(3))
def test_held_out_speakers_are_whole_and_gone(seed):
    train_list = list_of(uneven_corpus(20, seed), shuffle=seed)
    kept, held = hold_out(train_list, 5, seed)
    assert len(held.speakers) == 5 and len(kept.speakers) == 15 and not set(kept.speakers) & set(held.speakers)
    for part in (kept, held):
        lines = [row for row, label in enumerate(train_list.label) if train_list.speakers[label] in part.speakers]
        assert part.line_numbers == [row + 1 for row in lines]
        assert part.files == [train_list.files[row] for row in lines]
        assert [part.speakers[label] for label in part.label] == list(map(speaker_of, part.files))
    assert min(collections.Counter(map(speaker_of, held.files)).values()) >= 2


def test_who_is_held_out_depends_on_the_seed_alone():
    corpus = uneven_corpus(20, 0)
    assert hold_out(list_of(corpus), 5, 1)[1].speakers == hold_out(list_of(corpus, shuffle=3), 5, 1)[1].speakers
    train_list = list_of({name: {"s": 2} for name in "abcdefgh"})
    assert {speaker for seed in range(40) for speaker in hold_out(train_list, 2, seed)[1].speakers} == set("abcdefgh")


# ---- trials ----------------------------------------------------------------------------------------------------------


def allowed_pairs(train_list):
    """By the rules, one pair after the other: ({frozenset(files)} of one speaker, those of different speakers)."""
    sessions = collections.defaultdict(set)
    for file in train_list.files:
        sessions[speaker_of(file)].add(file.rsplit("/", 1)[0])
    same, different = set(), set()
    for a, b in itertools.combinations(sorted(set(train_list.files)), 2):
        if speaker_of(a) != speaker_of(b):
            different.add(frozenset([a, b]))
        elif len(sessions[speaker_of(a)]) == 1 or a.rsplit("/", 1)[0] != b.rsplit("/", 1)[0]:
            same.add(frozenset([a, b]))
    return same, different


def chosen_pairs(trials):
    """([frozenset(files)] of the trials with label 1, those with label 0)."""
    pairs = {1: [], 0: []}
    for label, *files in zip(trials.label.tolist(), trials.enrol, trials.test):
        pairs[label].append(frozenset(files))
    return pairs[1], pairs[0]


def times(pairs):
    """How often each speaker takes part; a same-speaker trial counts once."""
    return collections.Counter(speaker for pair in pairs for speaker in set(map(speaker_of, pair)))


@pytest.mark.parametrize("most", [1, 7, 40, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_every_trial_is_allowed_none_comes_twice_and_kinds_are_balanced(seed, most):
    train_list = list_of(uneven_corpus(4 + seed, seed), shuffle=seed)
    allowed = allowed_pairs(train_list)
    count = min(most, *map(len, allowed))
    trials = make_trials(train_list, "valid", seed, most=most)
    for chosen, pairs in zip(chosen_pairs(trials), allowed):
        assert len(chosen) == len(set(chosen)) == count and set(chosen) <= pairs
    again = make_trials(list_of(uneven_corpus(4 + seed, seed), shuffle=9), "valid", seed, most=most)
    assert trials.text() == again.text()  # the order of the lines does not matter


@pytest.mark.parametrize("speakers", [5, 6])  # an even circle has a pair of opposites
def test_speakers_take_part_equally_however_much_they_have_said(speakers):
    """Two talk ten times as much as the others."""
    train_list = list_of({f"id{i}": {"s": 60, "t": 60} if i < 2 else {"s": 6, "t": 6} for i in range(speakers)})
    for most in (speakers, 30, 36 * speakers):
        same, different = map(times, chosen_pairs(make_trials(train_list, "valid", most=most)))
        assert len(same) == len(different) == speakers
        assert max(same.values()) - min(same.values()) <= 1 and max(different.values()) - min(different.values()) <= 2
