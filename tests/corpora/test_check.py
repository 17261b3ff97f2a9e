"""Each kind of mistake, planted in a small corpus, is found, counted and named; a clean corpus has none."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import data_flags, voice
from test_trainSpeakerNet import SMALL

import prepareData
import trainSpeakerNet
from corpora import check as check_module
from corpora.check import SEVERITIES, check, check_training_list, check_trials, quick_check, table, which_list
from corpora.lists import TrainingList, TrialList
from training.settings import read_settings

TRAIN, EVAL = "train/id00001/session0/00000.wav", "eval/id00007/session0/00000.wav"
SPEECH = voice(100, 2.5, 1)
GARBAGE = b"\x07" * 500


@pytest.fixture
def own(corpus, tmp_path):
    """A copy of the corpus to plant mistakes in."""
    return shutil.copytree(corpus, tmp_path / "own")


def checked(folder, *more):
    return check(prepareData.read_arguments([str(flag) for flag in (*data_flags(folder), "--check", *more)]))


def fitting(findings, severity, what):
    return [each for each in findings if each.severity == severity and what in each.what]


def edit(name, change):
    """A function that replaces the lines of a list by change(lines)."""

    def plant(root):
        lines = change((root / name).read_text().splitlines())
        (root / name).write_text("".join(line + "\n" for line in lines))

    return plant


def train_lines(change):
    return edit("train_list.txt", change)


def trial_lines(change):
    return edit("trials.txt", change)


def audio(name, waveform, rate=16000, **more):
    return lambda root: soundfile.write(root / name, waveform, rate, **more)


def raw(name, content):
    return lambda root: (root / name).write_bytes(content)


def copied(source, target):
    return lambda root: shutil.copy(root / source, root / target)


def cut_in_half(root):
    content = (root / TRAIN).read_bytes()
    (root / TRAIN).write_bytes(content[: len(content) // 2])


def damaged_flac(root):
    """A FLAC file whose header is whole and whose middle is not, in place of a training file."""
    soundfile.write(root / TRAIN, SPEECH, 16000, format="FLAC")
    content = bytearray((root / TRAIN).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    (root / TRAIN).write_bytes(content)


# what is planted, how, severity, words of the finding, its count, words of an example or of the fix
MISTAKES = {
    "training list absent": (lambda root: (root / "train_list.txt").unlink(), "error",
                             "training list cannot be used", 1, "does not exist"),
    "one kind of trials": (trial_lines(lambda lines: [x for x in lines if x[0] == "1"]), "error",
                           "trial list cannot be used", 1, "no different-speaker"),
    "line twice": (train_lines(lambda lines: [*lines, lines[0], lines[0]]), "warning", "are repeated", 2,
                   "line 25: id00000"),
    "file of two speakers": (train_lines(lambda lines: [*lines, lines[0].replace("id00000", "id00001", 1)]), "error",
                             "are of two speakers", 1, "line 25: id00001"),
    "path out of the folder": (train_lines(lambda lines: [*lines, "id00001 ../x.wav"]), "error",
                               "do not fit --train_path", 1, "train_list.txt line 25: ../x.wav leads out"),
    "single speaker": (train_lines(lambda lines: lines[:4]), "error", "a single speaker", 1, "id00000"),
    "utterance for speaker": (train_lines(lambda lines: [f"u{i} {x.split()[1]}" for i, x in enumerate(lines)]),
                              "error", "another speaker in every line", 24, "u0"),
    "speaker not the folder": (train_lines(lambda lines: [lines[0].replace("id00000", "id9", 1), *lines[1:]]),
                               "warning", "another speaker than most files of their folder", 1, "line 1: id9"),
    "speakers of other folders": (train_lines(lambda lines: [f"{x[:7]} {y[8:]}" for x, y in zip(lines[::-1], lines)]),
                                  "error", "another speaker than most files of their folder", 24, "line 1: id00005"),
    "trial of both labels": (trial_lines(lambda lines: [*lines, "0" + lines[0][1:]]), "error", "both 1 and 0", 1,
                             "line 121"),
    "speaker on both sides": (train_lines(lambda lines: [*lines, "id00007 id00001/session0/00000.wav"]), "warning",
                              "both in training and in trials.txt", 1, "id00007"),  # a warning: of another folder
    "wrong label": (trial_lines(lambda lines: ["0" + lines[0][1:], *lines[1:]]), "error", "contradict", 1, "line 1: 0"),
    "every fifth label wrong": (trial_lines(lambda lines: [x if i % 5 else str(1 - int(x[0])) + x[1:]
                                                           for i, x in enumerate(lines)]),
                                "warning", "% of the labels of trials.txt agree with", 24, "line 1: "),
    "trial again": (trial_lines(lambda lines: [*lines, " ".join(np.array(lines[0].split())[[0, 2, 1]])]), "warning",
                    "trials of trials.txt are repeated", 1, "line 121: "),
    "file with itself": (trial_lines(lambda lines: [*lines, f"1 {EVAL} {EVAL}"]), "warning",
                         "trials of trials.txt compare a file with itself", 1, "line 121: "),
    "labels reversed": (trial_lines(lambda lines: [str(1 - int(x[0])) + x[1:] for x in lines]), "error", "reversed",
                        120, "swap 0 and 1"),
    "no folder": (lambda root: shutil.rmtree(root / "train"), "error", "do not fit --train_path", 1,
                  "is not a folder"),
    "missing file": (lambda root: (root / TRAIN).unlink(), "error", "do not fit --train_path", 1,
                     f"{TRAIN} does not exist (1 of 24 files missing)"),
    "empty file": (raw(TRAIN, b""), "warning", "cannot be read", 1, "0 bytes"),
    "m4a named wav": (raw(TRAIN, b"\0\0\0\x20ftypM4A " + bytes(200)), "warning", "cannot be read", 1, "ftypM4A"),
    "cut in half": (cut_in_half, "warning", "shorter than their header", 1, TRAIN),
    "telephone": (audio(EVAL, SPEECH, 8000), "warning", "below 16 kHz", 1, "8000 Hz"),
    "half a second": (audio(EVAL, SPEECH[:8000]), "warning", "shorter than 1.0 s", 1, "0.50 s"),
    "integers as floats": (audio(TRAIN, 32768 * SPEECH, subtype="FLOAT"), "warning", "far beyond full scale", 1, TRAIN),
    "copy, same speaker": (copied(TRAIN, "train/id00001/session1/00002.wav"), "warning",
                           "groups of files are identical", 1, " = "),
    "copy, other speaker": (copied(TRAIN, "train/id00002/session1/00002.wav"), "error", "of different speakers", 1,
                            "id00002/session1/00002.wav"),
    "copy across": (copied(TRAIN, EVAL), "error", "of training and evaluation files are identical", 1, EVAL),
    "MUSAN without music": (lambda root: shutil.rmtree(root / "musan/music"), "error", "--musan_path cannot", 1,
                            "no audio in its folder 'music'"),
    "no responses": (lambda root: shutil.rmtree(root / "rirs/smallroom"), "error", "--rir_path cannot", 1,
                     "no room responses"),
}  # fmt: skip
IN_SAMPLES = {
    "damaged inside": (damaged_flac, "warning", "cannot be read", 1, TRAIN),
    "silent": (audio(EVAL, 0.0005 * SPEECH), "warning", "are silent", 1, EVAL),
    "not numbers": (audio(EVAL, np.where(np.arange(40000) == 39000, np.nan, 0.1), subtype="FLOAT"), "error",
                    "cannot be read", 1, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("full", [False, True])
def test_clean_corpus_has_no_mistakes(corpus, full):
    findings = checked(corpus, *["full"] * full)
    assert findings and {each.severity for each in findings} == {"note"}, table(findings)


@pytest.mark.parametrize("name", [*MISTAKES, *IN_SAMPLES])
def test_planted_mistake_is_found_and_named(own, name):
    plant, severity, what, count, said = (MISTAKES | IN_SAMPLES)[name]
    plant(own)
    if name in IN_SAMPLES:  # headers do not show it
        assert not fitting(checked(own), severity, what)
    findings = checked(own, *["full"] * (name in IN_SAMPLES))
    (finding,) = fitting(findings, severity, what)
    assert finding.count == count and len(finding.examples) <= 3
    assert any(said in words for words in (*finding.examples, finding.fix))
    assert SEVERITIES.index(findings[0].severity) >= SEVERITIES.index(severity)
    assert finding.what in table(findings)


def test_more_unreadable_files_than_training_replaces_are_an_error(own):
    for number in range(2):
        raw(f"train/id00001/session0/0000{number}.wav", GARBAGE)(own)
    flags = [str(flag) for flag in (*data_flags(own), *SMALL, "--save_path", own / "exp")]
    for findings in (checked(own), quick_check(read_settings(trainSpeakerNet.build_parser(), flags))):
        (finding,) = fitting(findings, "error", "training files cannot be read")
        assert finding.count == 2


def test_pack_takes_the_place_of_the_folder(own, command):
    flags = ["--train_list", own / "train_list.txt", "--train_path"]
    assert command(prepareData, "--pack", own / "pack", *flags, own / "train", "--n_cpu", 1)[0] == 0
    assert command(prepareData, "--check", *flags, own / "pack")[0] == 0
    train_lines(lambda lines: [*lines, "id00001 id00001/new.wav"])(own)
    status, printed, _ = command(prepareData, "--check", *flags, own / "pack")
    assert status == 2 and "line 25: id00001/new.wav in the pack" in printed and "does not exist" in printed


@pytest.mark.parametrize("claimed, told", [(0x7FFFF024, 0), (0xFFFFFFFF, 0), (10**6, 1)])
def test_wav_written_to_a_pipe_is_not_cut_off(own, claimed, told):
    content = (own / EVAL).read_bytes()
    (own / EVAL).write_bytes(content[:4] + claimed.to_bytes(4, "little") + content[8:])
    assert len(fitting(checked(own), "warning", "evaluation files are shorter than their header says")) == told


# ---- which list ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, trials, targets, published", [
    ("Vox1-O original", 37720, 18860, "1.0"), ("Vox1-O cleaned", 37611, 18802, "0.856"),
    ("Vox1-H cleaned", 550894, 275488, "2.059"), (None, 37610, 18802, ""), (None, 37611, 18801, ""),
])  # fmt: skip
def test_known_lists_are_recognised_by_their_size(name, trials, targets, published):
    label = (np.arange(trials) < targets).astype(int)
    (finding,) = which_list(TrialList.of("mine.txt", label, ["a.wav"] * trials, ["b.wav"] * trials))
    assert finding.severity == "note" and published in finding.fix
    assert f"it is {name} (" in finding.what if name else "it is" not in finding.what


@pytest.mark.parametrize("form", ["wav/{}/x{}.wav", "audio/x{1}-{0}.flac", "/data/wav/{}/x{}.wav", "{}/s{}/a.wav"])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_lists_with_few_same_speaker_trials_are_right(form, share):
    """In whatever folders their files lie: that nearly all trials are of different folders shows nothing."""
    label = [int(i < 400 * share) for i in range(400)]
    enrol = [form.format(i % 20, i) for i in range(400)]
    test = [form.format(i % 20 + 1 - label[i], i + 1000) for i in range(400)]
    findings = check_trials(TrialList.of("list.txt", label, enrol, test))[1]
    assert len(findings) == len(fitting(findings, "warning", "do not tell its speakers")) == ("flac" in form)
    findings = check_trials(TrialList.of("list.txt", [1 - each for each in label], enrol, test))[1]
    assert len(fitting(findings, "error", "the labels of list.txt are reversed")) == ("flac" not in form)


# ---- labels that are not names of folders ----------------------------------------------------------------------------

# Ten files (t) of each of 30 speakers (s) in four sessions: {layout: (folder of the speaker or None, path)}
LAYOUTS = {
    "speakers": ("id{s}", "id{s}/{t}.wav"),
    "sessions": ("id{s}", "train/wav/id{s}/{s}{session}/{t}.wav"),
    "groups": ("id{s}", "{s3}/id{s}/s{session}/{t}.wav"),
    "copies": ("id{s}", "copy{session}/id{s}/{t}.wav"),
    "three corpora": ("10{s10}", "corpus{corpus}/10{s10}/{t}.wav"),
    "a folder for each file": ("id{s}", "id{s}/{s}{t}/audio.wav"),
    "flat": (None, "id{s}_{t}.wav"),
    "only groups": (None, "{s3}/id{s}_{t}.wav"),
    "only days": (None, "day{t}/{s}.wav"),
    "only a folder for each file": (None, "{t}/{s}{t}/audio.wav"),
}
# {labels: (label, (severity, whether folders are counted, lines) of the finding)}
LABELS = {
    "indices": (lambda s, t: s, None), "names": (lambda s, t: f"speaker-{s}", None),
    "merged": (lambda s, t: s % 7, ("error", True, 230)), "pairs": (lambda s, t: s // 2, ("error", True, 150)),
    "merged names": (lambda s, t: f"speaker-{s % 7}", ("warning", True, 230)),
    "split": (lambda s, t: 2 * s + t % 2, ("warning", False, 150)),
    "shifted": (lambda s, t: s + (t > 7), ("warning", False, 60)),
    "mistakes": (lambda s, t: s + (s == t), ("warning", False, 10)),
}  # fmt: skip


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_compared_with_folders_of_speakers(layout, labels):
    (folder, path), (label, expected), lines = LAYOUTS[layout], LABELS[labels], []
    for s, t in itertools.product(range(30), range(10)):
        names = {"s": s, "t": t, "session": t // 3, "s3": s % 3, "s10": s % 10, "corpus": s // 10}
        lines.append((str(label(s, t)), path.format(**names), folder and folder.format(**names)))
    given, files, speakers = zip(*lines)
    names, findings = check_training_list(TrainingList.of("list", given, files))
    found = [(each.severity, "labels for 30 folders" in each.what, each.count) for each in findings]
    cannot_tell = [("note", False, len(set(given)))]
    assert found == (([expected] if expected else []) if folder else cannot_tell)
    assert names == set(speakers if folder else given)


# ---- the quick check before training and evaluation ------------------------------------------------------------------


def on_both_sides(root):
    """A speaker of the trials is also trained on, in the one folder that all audio is in."""
    shutil.copytree(root / "train", root / "eval", dirs_exist_ok=True)
    train_lines(lambda lines: [*lines, "id00006 id00006/session0/00000.wav"])(root)
    return ["--train_path", root / "eval"]


def numbered_on_both_sides(root):
    more = on_both_sides(root)
    train_lines(lambda lines: [f"{int(line[2:7])} {line.split()[1]}" for line in lines])(root)
    return more


@pytest.mark.parametrize("plant, named", [
    (on_both_sides, "speakers are both in training and in trials.txt: 1, such as id00006"),
    (numbered_on_both_sides, "speakers are both in training and in trials.txt: 1, such as id00006"),
    (MISTAKES["labels reversed"][0], "the labels of trials.txt are reversed"),
    (raw(EVAL, GARBAGE), f"such as {{root}}/{EVAL} ("),
])  # fmt: skip
def test_training_does_not_begin_with_errors(own, tmp_path, command, plant, named):
    more = plant(own)
    flags = [*data_flags(own), *SMALL, *(more if isinstance(more, list) else []), "--save_path", tmp_path / "exp"]
    status, _, complained = command(trainSpeakerNet, *flags)
    assert status == 2 and complained.count("\n") == 1 and "--no_check" in complained
    assert named.format(root=own) in complained and not list((tmp_path / "exp").rglob("[!.]*.*"))


@pytest.mark.slow
@pytest.mark.parametrize("both_sides", [on_both_sides, numbered_on_both_sides])
def test_no_check_goes_on_and_the_model_knows_its_speakers(own, tmp_path, command, both_sides):
    said = "warning: speakers of trials.txt were in the model's training: 1, such as id00006"
    model = "model/model_0001.model"
    flags = [*data_flags(own), *SMALL, "--no_check", *both_sides(own)]
    status, printed, _ = command(trainSpeakerNet, *flags, "--save_path", tmp_path / "exp")
    assert status == 0 and "epoch 1/2" in printed and "error:" not in printed
    flags = ["--eval", *data_flags(own), "--initial_model", tmp_path / "exp" / model, "--device", "cpu"]
    assert said in command(trainSpeakerNet, *flags, "--save_path", tmp_path / "eval")[1]
    assert "warning" not in command(trainSpeakerNet, *flags, "--no_check", "--save_path", tmp_path / "eval")[1]
    # A model fine-tuned from it on other speakers does not forget.
    train_lines(lambda lines: [line for line in lines if " id00006/" not in line])(own)
    flags = [*data_flags(own), *SMALL[2:], "--initial_model", tmp_path / "exp" / model]
    assert said in command(trainSpeakerNet, *flags, "--save_path", tmp_path / "tuned")[1]
    flags = ["--eval", *data_flags(own), "--initial_model", tmp_path / "tuned" / model, "--device", "cpu"]
    assert said in command(trainSpeakerNet, *flags, "--save_path", tmp_path / "eval2")[1]
    for name in ("exp", "tuned"):
        for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines():
            assert json.loads(line)["lists"]["trials"]["speakers_in_training"] == 1


def test_quick_check_of_a_part_of_the_files(own, monkeypatch):
    """Evenly over the list, and no more; unreadable training files among them are only a warning."""
    flags = [str(flag) for flag in (*data_flags(own), *SMALL, "--save_path", own / "exp")]
    files = (own / "train_list.txt").read_text().split()[1::2]
    for file in files[:10]:
        (own / "train" / file).write_bytes(GARBAGE)
    seen, read = [], check_module.file_faults
    monkeypatch.setattr(check_module, "QUICK", 5)
    monkeypatch.setattr(check_module, "file_faults", lambda path, full: seen.append(path) or read(path, full))
    findings = quick_check(read_settings(trainSpeakerNet.build_parser(), flags))
    assert [path for path in seen if "/train/" in path] == [str(own / "train" / file) for file in files[::5]]
    assert [(each.severity, each.count) for each in findings] == [("warning", 2)]


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant, status", [
    (lambda root: None, 0), (MISTAKES["copy, same speaker"][0], 1), (MISTAKES["missing file"][0], 2)])  # fmt: skip
def test_exit_status(own, command, plant, status):
    plant(own)
    assert command(prepareData, *data_flags(own), "--check")[0] == status


def test_lists_without_audio_are_checked_too(corpus):
    given = ["--train_list", corpus / "train_list.txt", "--eval_list", corpus / "trials.txt", "--check"]
    findings = check(prepareData.read_arguments(list(map(str, given))))
    assert [each.fix for each in fitting(findings, "warning", "was not checked")] == [
        "give --train_path", "give --eval_path"]  # fmt: skip
    assert Path(findings[0].examples[0]).suffix == ".wav"
