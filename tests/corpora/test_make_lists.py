"""Lists out of folders, tables and Kaldi's files: each promise looked up in what was written."""

import collections
import os
import pathlib
import re
import shlex

import numpy as np
import pytest

import prepareData
from corpora.lists import TrainingList, TrialList
from corpora.make_lists import from_csv, from_folder, from_kaldi, read_sex, write_lists
from tools import InputError

SHAPE = {"anna": 6, "ben": 4, "cleo": 6, "dan": 3, "eva": 6, "finn": 5}  # utterances; two sessions where even


def make_tree(root, sessions=True):
    """Empty files: nothing here reads audio. -> the sorted (speaker, path) that are there."""
    found = []
    for speaker, count in SHAPE.items():
        for number in range(count):
            session = f"s{number % 2}/" if sessions and count % 2 == 0 else ""
            found.append((speaker, f"{speaker}/{session}{number}.wav"))
    for _, path in found:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return sorted(found)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "voices"
    return root, make_tree(root)


def written(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


# ---- who speaks where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [True, False])
def test_folder(tmp_path, sessions):
    expected = make_tree(tmp_path, sessions)
    (tmp_path / "anna/._0.wav").touch()  # what macOS leaves
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash/x.wav").touch()
    (tmp_path / "anna/notes.txt").touch()
    assert from_folder(tmp_path) == expected


def test_files_of_nobody_and_unreadable_ones_are_left_out_and_told(tree, capsys):
    root, expected = tree
    (root / "loose.wav").touch()
    (root / "anna/1.m4a").touch()
    assert from_folder(root) == expected
    told = capsys.readouterr().err
    assert "1 files lie in no speaker's folder" in told and "loose.wav" in told and "anna/1.m4a" in told


@pytest.mark.parametrize("names, said", [
    ([], "has no <speaker>/<file>"), (["a/1.m4a", "b/1.m4a"], "convert them"),
    (["wav/a/1.wav", "wav/b/1.wav"], "single"),
    (["a/1.wav", "b/my voice.wav"], "has a blank"), (["a/1.wav", "b c/1.wav"], "has a blank"),
    (["a/1.wav", "b/x\u20281.wav"], "has a blank"),
])  # fmt: skip
def test_folders_that_make_no_list(tmp_path, names, said):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=said):
        from_folder(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_what_is_left_out_is_never_left_out_in_silence(tree, capsys, monkeypatch):
    root, expected = tree
    (root / "linked").symlink_to(root / "anna")
    (root / "anna/film.webm").touch()
    (root / "ben/1/2/3").mkdir(parents=True)
    (root / "ben/1/2/3/deep.wav").touch()
    assert len(from_folder(root)) == len(expected) + 1
    said = capsys.readouterr().err
    assert "1 folders are links" in said and "linked" in said
    assert "1 files are of a format that cannot be read" in said and "anna/film.webm" in said
    assert "1 files lie deeper" in said and "ben/1/2/3/deep.wav" in said

    def scandir(path, scan=os.scandir):
        if str(path).endswith("anna"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"anna cannot be read \(Permission denied\)"):
        from_folder(root)


def test_quotation_marks_of_tables_with_tabs_are_only_text(tree, tmp_path):
    """Common Voice's sentences may begin with one that never ends."""
    root, expected = tree
    lines = ["client_id\tpath\tsentence", *(f'{speaker}\t{path}\t"What' for speaker, path in expected)]
    assert from_csv(written(tmp_path / "t.tsv", lines), root) == expected


def test_an_empty_table_is_not_taken_for_none(tree, tmp_path, command):
    table = written(tmp_path / "t.csv", ["speaker,path"])
    flags = ["--lists", tree[0], "--to", tmp_path / "lists"]
    status, _, complained = command(prepareData, *flags, "--csv", table)
    assert status == 2 and complained.endswith("t.csv names no file\n")
    for name in ("wav.scp", "utt2spk"):
        written(tmp_path / name, [""])
    assert command(prepareData, *flags, "--kaldi", tmp_path)[0] == 2
    assert not (tmp_path / "lists").exists()


def test_too_few_speakers_for_trials_make_none(tmp_path, command):
    for name in ("a", "b", "c"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for take in range(2):
            (tmp_path / "few" / name / f"{take}.wav").touch()
    status, printed, _ = command(prepareData, "--lists", tmp_path / "few", "--to", tmp_path / "lists")
    assert status == 0 and "6 utterances of 3 speakers" in printed and not (tmp_path / "lists/trials.txt").exists()


def test_name_that_is_no_text(tree):
    open(os.fsencode(tree[0]) + b"/anna/\xff.wav", "w").close()
    with pytest.raises(InputError, match="no text in UTF-8"):
        from_folder(tree[0])


@pytest.mark.parametrize("header, columns, separator", [
    (["speaker", "path"], None, ","), (["client_id", "path"], None, "\t"), (["SPK", "File"], None, ";"),
    (None, None, ","),
    (["who", "where"], ["who", "where"], ","), (None, ["1", "2"], "\t"),
])  # fmt: skip
def test_table(tree, tmp_path, header, columns, separator):
    root, expected = tree
    rows = ([header] if header else []) + [list(pair) for pair in reversed(expected)] + [list(expected[0])]
    path = written(tmp_path / "t.csv", [separator.join(row) for row in rows])
    assert from_csv(path, root, columns) == expected


def test_table_with_other_columns_quotes_and_absolute_paths(tree, tmp_path):
    root, expected = tree
    lines = ["age,wav,speaker_id", *(f'31,"{root}/{path}",{speaker}' for speaker, path in expected)]
    assert from_csv(written(tmp_path / "t.csv", lines), root) == expected


@pytest.mark.parametrize("lines, columns, said", [
    (["who,where", "anna,anna/s0/0.wav"], None, "which columns"), (["who,where"], ["who", "path"], "no column 'path'"),
    (["speaker,path", "anna"], None, "line 2"), (["speaker,path", "anna,../x.wav"], None, "does not lie in"),
    (["speaker,path", "anna,/etc/x.wav"], None, "does not lie in"),
    (["speaker,path", "anna,no.wav"], None, "not exist"),
    (["speaker,path", "anna,anna/s0/0.wav", "ben,anna/s0/0.wav"], None, "line 3: .* is of ben"), ([], None, "is empty"),
    (["speaker,path", "an na,anna/s0/0.wav"], None, "has a blank"),
    (["speaker,path", "a," + "x" * 200000], None, "table"),
])  # fmt: skip
def test_tables_that_make_no_list(tree, tmp_path, lines, columns, said):
    with pytest.raises(InputError, match=said):
        from_csv(written(tmp_path / "t.csv", lines), tree[0], columns)


def kaldi(folder, pairs, scp=(), utt2spk=()):
    folder.mkdir()
    written(folder / "wav.scp", [*(f"u{i} {path}" for i, (_, path) in enumerate(pairs)), *scp])
    written(folder / "utt2spk", [*(f"u{i} {speaker}" for i, (speaker, _) in enumerate(pairs)), *utt2spk])
    return folder


def test_kaldi(tree, tmp_path):
    root, expected = tree
    assert from_kaldi(kaldi(tmp_path / "a", expected), root) == expected
    absolute = [(speaker, f"{root}/{path}") for speaker, path in expected]
    assert from_kaldi(kaldi(tmp_path / "b", absolute), root) == expected


@pytest.mark.parametrize("scp, utt2spk, said", [
    (["v touch {} |"], ["v anna"], "line 31 is a command"), (["v | touch {}"], ["v anna"], "is a command"),
    (["v a.ark:123"], ["v anna"], "archive"), (["v anna/s0/0.wav"], [], "has no speaker"), (["v"], [], "two fields"),
    ([], ["u0 ben"], "one speaker for u0"), (["v no.wav"], ["v anna"], "does not exist"),
])  # fmt: skip
def test_kaldi_that_makes_no_list_and_never_runs(tree, tmp_path, scp, utt2spk, said):
    root, pairs = tree
    trap = tmp_path / "ran"
    with pytest.raises(InputError, match=said):
        from_kaldi(kaldi(tmp_path / "k", pairs, [line.format(trap) for line in scp], utt2spk), root)
    assert not trap.exists()


def test_kaldi_segments_are_refused(tree, tmp_path):
    written(kaldi(tmp_path / "k", tree[1]) / "segments", ["u0-1 u0 0 1"])
    with pytest.raises(InputError, match="segments"):
        from_kaldi(tmp_path / "k", tree[0])


@pytest.mark.parametrize("lines", [
    ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet", "anna\tA.J.\tf\tIreland\tdev", "ben\tB.\tm\tUSA\ttest"],
    ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set ", "anna ,n000012 ,f ,dev ", "ben ,n000016 ,m ,dev "],
    ["speaker\tside\tcorpus\tsex", "anna\ttrain\tAMI\tF", "ben\ttrain\tAMI\tM", "cleo\ttrain\tAMI\t?"],
])  # fmt: skip
def test_sex_of_metadata(tmp_path, lines):
    assert read_sex(written(tmp_path / "meta.csv", lines)) == {"anna": "f", "ben": "m"}


def test_metadata_without_sex(tmp_path):
    with pytest.raises(InputError, match=r"--metadata .* needs columns"):
        read_sex(written(tmp_path / "meta.csv", ["speaker,age", "anna,31"]))


# ---- the lists -------------------------------------------------------------------------------------------------------


def test_lists_keep_their_promises(tree, tmp_path):
    root, found = tree
    write_lists(found, root, tmp_path / "lists", 3)
    training, trials = TrainingList(tmp_path / "lists/train_list.txt"), TrialList(tmp_path / "lists/trials.txt")
    heard = {file for column in (trials.enrol, trials.test) for file in column}
    held = {file.split("/")[0] for file in heard}
    assert len(held) == 3 and held | set(training.speakers) == set(SHAPE) and not held & set(training.speakers)
    expected = [(speaker, path) for speaker, path in found if speaker not in held]
    assert [(training.speakers[i], file) for i, file in zip(training.label, training.files)] == expected
    assert collections.Counter(trials.label.tolist()) == {0: len(trials) // 2, 1: len(trials) // 2}
    assert all((root / file).is_file() for file in heard)
    for label, a, b in zip(trials.label, trials.enrol, trials.test):
        assert (a.split("/")[0] == b.split("/")[0]) == bool(label)
        if label and SHAPE[a.split("/")[0]] % 2 == 0:  # the speakers of two sessions
            assert a.split("/")[1] != b.split("/")[1]


def test_deterministic_in_the_seed_alone(tree, tmp_path):
    root, found = tree

    def lists(name, found, seed):
        write_lists(found, root, tmp_path / name, 3, seed=seed)
        return [(tmp_path / name / each).read_bytes() for each in ("train_list.txt", "trials.txt")]

    table = [found[i] for i in np.random.default_rng(1).permutation(len(found))]
    path = written(tmp_path / "t.csv", ["speaker,path", *(f"{a},{b}" for a, b in table)])
    assert lists("a", found, 1) == lists("b", from_csv(path, root), 1)
    assert len({lists(f"seed{seed}", found, seed)[0] for seed in range(5)}) > 1


def test_trials_of_one_sex_of_speakers_who_have_one(tree, tmp_path):
    root, found = tree
    sex = {"anna": "f", "ben": "m", "cleo": "f", "finn": "m"}
    for seed in range(5):
        training, trials = write_lists(found, root, tmp_path / str(seed), 3, sex, seed)
        different = [(a.split("/")[0], b.split("/")[0]) for label, a, b in
                     zip(trials.label, trials.enrol, trials.test) if not label]  # fmt: skip
        assert different and all(sex[a] == sex[b] for a, b in different)
        assert {"dan", "eva"} <= set(training.speakers)


def test_other_lists_are_never_overwritten(tree, tmp_path):
    root, found = tree
    write_lists(found, root, tmp_path / "lists", 3)
    before = {path: path.read_bytes() for path in (tmp_path / "lists").iterdir()}
    write_lists(found, root, tmp_path / "lists", 3)  # the same again
    with pytest.raises(InputError, match="holds another"):
        write_lists(found[:-1], root, tmp_path / "lists", 3)
    assert before == {path: path.read_bytes() for path in (tmp_path / "lists").iterdir()}


@pytest.mark.parametrize("count, said", [(-1, "0 or more"), (1, "at least 2"), (5, "would remain"), (7, "only 6")])
def test_impossible_numbers_of_speakers(tree, tmp_path, count, said):
    with pytest.raises(InputError, match=said):
        write_lists(tree[1], tree[0], tmp_path / "lists", count)
    assert not (tmp_path / "lists").exists()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command_and_the_command_it_prints(corpus, tmp_path, command):
    """The recordings of a folder to lists, a check without errors, and flags that training understands."""
    status, printed, _ = command(prepareData, "--lists", corpus / "train", "--to", tmp_path, "--valid_speakers", 2)
    assert status == 0 and "16 utterances of 4 speakers" in printed
    arguments = shlex.split(printed.splitlines()[-1].partition(": ")[2])
    from trainSpeakerNet import read_settings

    assert arguments[:2] == ["python", "trainSpeakerNet.py"]
    settings = read_settings(arguments[2:])
    assert pathlib.Path(settings.train_list) == tmp_path / "train_list.txt" and settings.musan_path == ""
    flags = ["--train_list", settings.train_list, "--train_path", settings.train_path,
             "--eval_list", *settings.eval_list, "--eval_path", settings.eval_path]  # fmt: skip
    assert command(prepareData, "--check", "full", *flags)[0] == 0
    none = command(prepareData, "--lists", corpus / "train", "--to", tmp_path / "b", "--valid_speakers", 0)
    assert none[0] == 0 and not (tmp_path / "b/trials.txt").exists() and "24 utterances of 6 speakers" in none[1]


def test_each_flag_belongs_to_some_actions(tmp_path, command):
    for each in prepareData.build_parser()._actions:
        flag = each.option_strings[-1].removeprefix("--")
        if f"--{flag}" in ("--help", *prepareData.ACTIONS):
            continue
        assert any(flag in takes for takes in prepareData.ACTIONS.values()), flag
        # Its default, too: somebody meant something by it.
        value = {0: [], 2: ["a", "b"]}.get(each.nargs, [each.default or "2"])
        for action, takes in prepareData.ACTIONS.items():
            if flag not in takes:
                given = ["full"] if action == "--check" else [tmp_path / "x"]
                status, _, complained = command(prepareData, action, *given, f"--{flag}", *value)
                said = rf"prepareData.py: --{flag} belongs to --.*, not to {action}\n"
                assert status == 2 and re.fullmatch(said, complained)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [
    [], ["--to", "x", "--columns", "a", "b"], ["--to", "x", "--csv", "a", "--kaldi", "b"],
    ["--to", "x", "--seed", "-1"],
])  # fmt: skip
def test_flags_that_do_not_go_together(corpus, command, flags):
    status, _, complained = command(prepareData, "--lists", corpus / "train", *flags)
    assert status == 2 and complained.count("\n") == 1


def test_metadata_of_other_people(tree, tmp_path):
    with pytest.raises(InputError, match="knows none of the speakers, such as anna"):
        write_lists(tree[1], tree[0], tmp_path / "lists", 3, {"id10001": "f"})
