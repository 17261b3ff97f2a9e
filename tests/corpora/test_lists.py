"""Training and trial lists: read, made, refused with their line."""

import numpy as np
import pytest

from corpora.audio import Folder
from corpora.lists import TrainingList, TrialList, check_files
from tools import InputError


@pytest.mark.parametrize("form", ["{}", "\ufeff{}"])  # Windows editors begin with a byte-order mark
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_training_list(tmp_path, form, end):
    path = tmp_path / "list.txt"
    path.write_bytes(form.format("bob b/1.wav\n\nalice a/1.wav\nbob b/2.wav\n").replace("\n", end).encode())
    listing = TrainingList(path)
    assert listing.speakers == ["alice", "bob"]
    assert listing.label.tolist() == [1, 0, 1]
    assert listing.files == ["b/1.wav", "a/1.wav", "b/2.wav"]
    assert listing.line_numbers == [1, 3, 4]


def test_part_of_a_training_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("bob b/1.wav\n\nalice a/1.wav\ncleo c/1.wav\nbob b/2.wav\n")
    whole = TrainingList(path)
    part = whole.subset(np.array([3, 2, 0]))
    assert isinstance(part, TrainingList) and len(part) == 3 and part.path == path
    assert part.speakers == ["bob", "cleo"] and part.label.tolist() == [0, 1, 0] and part.label.dtype == np.int64
    assert part.files == ["b/2.wav", "c/1.wav", "b/1.wav"] and part.line_numbers == [5, 4, 1]
    assert whole.speakers == ["alice", "bob", "cleo"] and whole.label.tolist() == [1, 0, 2, 1]  # as it was
    with pytest.raises(InputError, match=r"list.txt line 5: .*b/2.wav does not exist"):
        check_files(whole.subset([3]), Folder(tmp_path), "--train_path")


def test_a_trial_list_that_is_made(tmp_path):
    trials = TrialList.of("valid", np.array([1, 0]), ("a", "c"), ["b", "d"])
    assert (trials.label.tolist(), trials.enrol, trials.test) == ([1, 0], ["a", "c"], ["b", "d"])
    assert len(trials) == 2 and trials.path.stem == "valid" and trials.label.dtype == np.int64
    with pytest.raises(InputError, match=r"valid line 2: .*c does not exist"):
        (tmp_path / "a").touch()
        (tmp_path / "b").touch()
        check_files(trials, Folder(tmp_path), "--train_path")
    with pytest.raises(InputError, match="valid has no different-speaker"):
        TrialList.of("valid", [1], ["a"], ["b"])


@pytest.mark.parametrize(("kind", "content", "complaint"), [
    (TrainingList, "", "is empty"), (TrainingList, "\n \n", "is empty"),
    (TrainingList, "a a/1.wav\nb\n", r"line 2: expected '<speaker> <path>' in a training list, got 'b'"),
    (TrainingList, "1 a b\n", "line 1: expected '<speaker> <path>' in a training list"),
    (TrialList, "1 a b\n0 a c\nid1 id1/a.wav\n", "line 3: expected .* in a trial list"),
    (TrialList, "2 a b\n", "line 1: expected"), (TrialList, "0 a b\n", "no same-speaker"),
])  # fmt: skip
def test_a_bad_list_is_named_with_its_line(tmp_path, kind, content, complaint):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint) as raised:
        kind(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_missing_files_are_named_with_their_line(corpus, tmp_path):
    (tmp_path / "train.txt").write_text((corpus / "train_list.txt").read_text() + "x x/1.wav\nx x/2.wav\n")
    with pytest.raises(InputError, match=r"train.txt line 25: .*x/1.wav does not exist \(2 of 26 .*--train_path"):
        check_files(TrainingList(tmp_path / "train.txt"), Folder(corpus / "train"), "--train_path")
    check_files(TrialList(corpus / "trials.txt"), Folder(corpus / "eval"), "--eval_path")
    (tmp_path / "train.txt").write_text((corpus / "train_list.txt").read_text().replace(".wav", ".flac"))
    with pytest.raises(InputError, match=r"0.flac does not exist \(24 of 24 files missing\), but .*0.wav does$"):
        check_files(TrainingList(tmp_path / "train.txt"), Folder(corpus / "train"), "--train_path")
