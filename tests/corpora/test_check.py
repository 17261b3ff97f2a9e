"""The doctor: a fault planted for every kind of finding, each found, counted and named; a clean corpus has none."""

import argparse
import json
import shutil
import types

import numpy as np
import pytest
import soundfile
from conftest import data_flags, voice

import prepareData
import trainSpeakerNet
from corpora import check as doctor
from corpora import known_lists as knownLists
from corpora.list_check import check_lists

TRAIN, EVAL = "train/id00001/session0/00000.wav", "eval/id00007/session0/00000.wav"


@pytest.fixture
def own(corpus, tmp_path):
    """A copy of the corpus to plant faults in."""
    return shutil.copytree(corpus, tmp_path / "own")


def checked(folder, *more):
    flags = [str(flag) for flag in (*data_flags(folder), "--n_cpu", 1, "--check", *more)]
    return doctor.check(prepareData.build_parser().parse_args(flags))


def edit(path, change):
    """Replace the lines of a list by change(lines)."""
    path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))


def rewrite(path, waveform=None, rate=16000, **more):
    soundfile.write(path, voice(100, 2.5, 1) if waveform is None else waveform, rate, **more)


def train_lines(change):
    return lambda root: edit(root / "train_list.txt", change)


def trial_lines(change):
    return lambda root: edit(root / "trials.txt", change)


def audio(name, *arguments, **more):
    return lambda root: rewrite(root / name, *arguments, **more)


def raw(name, content):
    return lambda root: (root / name).write_bytes(content)


def cut_in_half(root):
    content = (root / TRAIN).read_bytes()
    (root / TRAIN).write_bytes(content[: len(content) // 2])


def spoil_flac(root):
    """A FLAC file whose header is whole and whose middle is not, in place of a training file."""
    soundfile.write(root / "a.flac", voice(100, 2.5, 1), 16000)
    content = bytearray((root / "a.flac").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    (root / TRAIN).write_bytes(content)


def copied(source, target):
    return lambda root: shutil.copy(root / source, root / target)


def reencode(root):
    """The same samples in another format: only seen with all of them decoded."""
    samples, rate = soundfile.read(root / TRAIN, dtype="int16")
    rewrite(root / "train/id00003/session0/00000.wav", samples, rate, format="FLAC")


def add_response(name, *arguments):
    return lambda root: rewrite(root / "rirs/smallroom/Room001" / name, *arguments)


SPEECH = voice(100, 2.5, 1)
LOUD = np.clip(20 * SPEECH, -1, 1)
# what is planted, where, severity, words of the finding, its count, words of an example or of the mend
FAULTS = {
    "training list absent": (lambda root: (root / "train_list.txt").unlink(), "error",
                             "training list cannot be used", 1, "does not exist"),
    "training line of three": (train_lines(lambda lines: [*lines, "a b c"]), "error", "'<speaker> <path>'", 1,
                               "line 25: 'a b c'"),
    "trial list for training": (lambda root: shutil.copy(root / "trials.txt", root / "train_list.txt"), "error",
                                "'<speaker> <path>'", 120, "this is a trial list"),
    "duplicate line": (train_lines(lambda lines: [*lines, lines[0], lines[0]]), "warning", "are there twice", 2,
                       "line 25: id00000"),
    "file of two speakers": (train_lines(lambda lines: [*lines, lines[0].replace("id00000", "id00001", 1)]), "error",
                             "are of two speakers", 1, "line 25: id00001"),
    "path out of the folder": (train_lines(lambda lines: [*lines, "id00001 ../x.wav"]), "error", "lead out", 1,
                               "line 25: ../x.wav"),
    "single speaker": (train_lines(lambda lines: lines[:4]), "error", "a single speaker", 1, "id00000"),
    "speakers are utterances": (train_lines(lambda lines: [f"u{i} {x.split()[1]}" for i, x in enumerate(lines)]),
                                "error", "speaker of its own", 24, "u0"),
    "speaker of one utterance": (train_lines(lambda lines: lines[3:]), "note", "one utterance only", 1, "id00000"),
    "speaker not the folder": (train_lines(lambda lines: [lines[0].replace("id00000", "id9", 1), *lines[1:]]),
                               "warning", "other than their path's folder", 1, "line 1: id9"),
    "trial list absent": (lambda root: (root / "trials.txt").unlink(), "error", "a trial list cannot be used", 1,
                          "does not exist"),
    "trial of label 2": (trial_lines(lambda lines: [*lines, "2 a.wav b.wav"]), "error", "'<1|0> <enrol path>", 1,
                         "line 121"),
    "training list for trials": (lambda root: shutil.copy(root / "train_list.txt", root / "trials.txt"), "error",
                                 "'<1|0> <enrol path>", 24, "this is a training list"),
    "no different speakers": (trial_lines(lambda lines: [x for x in lines if x[0] == "1"]), "error",
                              "no different-speaker", 1, "both kinds"),
    "trial twice": (trial_lines(lambda lines: [*lines, " ".join([lines[0][0], *lines[0].split()[:0:-1]])]), "warning",
                    "are there twice", 1, "line 121"),
    "trial of both labels": (trial_lines(lambda lines: [*lines, "0" + lines[0][1:]]), "error", "both 1 and 0", 1,
                             "line 121"),
    "file against itself": (trial_lines(lambda lines: [*lines, " ".join(["1", *2 * lines[0].split()[1:2]])]),
                            "warning", "with itself", 1, "line 121"),
    "label against folder": (trial_lines(lambda lines: ["0" + lines[0][1:], *lines[1:]]), "error",
                             "contradict", 1, "line 1: 0"),
    "labels reversed": (trial_lines(lambda lines: [str(1 - int(x[0])) + x[1:] for x in lines]), "error", "reversed",
                        120, "swap 0 and 1"),
    "speaker on both sides": (train_lines(lambda lines: [*lines, "id00007 id00001/session0/00000.wav"]), "warning",
                              "both in training and in trials.txt", 1, "id00007"),  # by name: of another folder
    "columns swapped": (train_lines(lambda lines: [" ".join(reversed(line.split())) for line in lines]), "error",
                        "have the path first", 24, "turn them round"),
    "commas": (train_lines(lambda lines: [line.replace(" ", ",") for line in lines]), "error",
               "are not '<speaker> <path>'", 24, "with a blank between them"),
    "musan for rirs": (lambda root: (shutil.rmtree(root / "rirs"), shutil.copytree(root / "musan", root / "rirs")),
                       "warning", "--rir_path looks like MUSAN", 6, "give RIRS_NOISES"),
    "no folder": (lambda root: shutil.rmtree(root / "train"), "error", "--train_path cannot be used", 1,
                  "is not a folder"),
    "missing file": (lambda root: (root / TRAIN).unlink(), "error", "of training do not exist", 1, "00000.wav"),
    "only m4a": (lambda root: (root / TRAIN).rename((root / TRAIN).with_suffix(".m4a")), "error",
                 "of training do not exist", 1, "convert them from m4a"),
    "folder too high": (lambda root: (shutil.move(root / "eval", root / "x"), (root / "eval").mkdir(),
                        shutil.move(root / "x", root / "eval/wav")), "error", "of evaluation do not exist", 16,
                        "eval/wav has them"),
    "empty file": (raw(TRAIN, b""), "warning", "of training are empty", 1, "0 bytes"),
    "no samples": (audio(EVAL, np.zeros(0)), "error", "of evaluation are empty", 1, EVAL[5:]),
    "m4a named wav": (raw(TRAIN, b"\0\0\0\x20ftypM4A " + bytes(200)), "warning", "MPEG-4", 1, TRAIN[6:]),
    "error page": (raw(TRAIN, b"<html>404</html>"), "warning", "are text", 1, "<html>404"),
    "noise for a file": (raw(TRAIN, b"\x07" * 500), "warning", "cannot be read as audio", 1, TRAIN[6:]),
    "cut in half": (cut_in_half, "warning", "shorter than their header", 1, TRAIN[6:]),
    "telephone": (audio(EVAL, SPEECH, 8000), "warning", "below 16 kHz", 1, "8000 Hz"),
    "studio": (audio(EVAL, SPEECH, 44100), "note", "above 16 kHz", 1, "44100 Hz"),
    "stereo": (audio(TRAIN, np.stack([SPEECH, SPEECH], 1)), "note", "several channels", 1, "2 channels"),
    "flac named wav": (audio(TRAIN, SPEECH, format="FLAC"), "note", "another format", 1, TRAIN[6:]),
    "half a second": (audio(EVAL, SPEECH[:8000]), "warning", "shorter than 1 s", 1, "0.50 s"),
    "eleven minutes": (audio(EVAL, np.tile(SPEECH, 264)), "note", "longer than 600 s", 1, "660.00 s"),
    "copy, same speaker": (copied(TRAIN, "train/id00001/session1/00002.wav"), "warning",
                           "training files hold the same audio", 1, " = "),
    "copy, other speaker": (copied(TRAIN, "train/id00002/session1/00002.wav"), "error", "for different speakers", 1,
                            "id00002/session1/00002.wav"),
    "copy in evaluation": (copied(EVAL, "eval/id00008/session1/00002.wav"), "warning",
                           "evaluation files hold the same audio", 1, " = "),
    "copy across": (copied(TRAIN, EVAL), "error", "heard both", 1, EVAL),
    "MUSAN without music": (lambda root: shutil.rmtree(root / "musan/music"), "error", "--musan_path cannot", 1,
                            "no audio in its folder 'music'"),
    "MUSAN in MUSAN": (lambda root: (shutil.move(root / "musan", root / "x"), (root / "musan").mkdir(),
                       shutil.move(root / "x", root / "musan/musan")), "error", "--musan_path cannot", 1,
                       "musan/musan"),
    "broken noise": (raw("musan/noise/made-up/noise-0.wav", b"\x07" * 500), "warning",
                     "of MUSAN cannot be read", 1, "noise-0.wav"),
    "no responses": (lambda root: (shutil.rmtree(root / "rirs"), (root / "rirs").mkdir()), "error",
                     "--rir_path cannot", 1, "no room responses"),
    "noise among responses": (add_response("noise-1.wav"), "note", "noises lie among", 1, "noise-1.wav"),
    "stereo response": (add_response("x.wav", np.stack([SPEECH, SPEECH], 1)), "note",
                        "room responses have several channels", 1, "first channel"),
    "recording as response": (add_response("x.wav", np.tile(SPEECH, 5)), "warning", "longer than 10 s", 1, "12.50 s"),
}  # fmt: skip
FULL_FAULTS = {
    "damaged inside": (spoil_flac, "warning", "cannot be decoded to the end", 1, TRAIN[6:]),
    "silent": (audio(EVAL, 0.0005 * SPEECH), "warning", "are silent", 1, EVAL[5:]),
    "clipped": (audio(EVAL, LOUD), "warning", "are clipped", 1, "at full scale"),
    "offset": (audio(EVAL, SPEECH / 2 + 0.3), "warning", "have an offset", 1, "mean 0.30"),
    "not numbers": (audio(EVAL, np.where(np.arange(16000) == 99, np.nan, 0.1), subtype="FLOAT"), "error",
                    "cannot be decoded to the end", 1, "not finite"),
    "same samples, coded otherwise": (reencode, "error", "for different speakers", 1, "id00003"),
}  # fmt: skip


def fitting(findings, severity, what):
    return [each for each in findings if each.severity == severity and what in each.what]


@pytest.fixture(scope="module")
def clean(corpus):
    return checked(corpus), checked(corpus, "full")


def test_clean_corpus_has_no_faults(clean):
    for findings in clean:
        assert {each.severity for each in findings} == {"note"}, doctor.table(findings)
        assert doctor.status(findings) == 0


@pytest.mark.parametrize("name", [*FAULTS, *FULL_FAULTS])
def test_planted_fault_is_found_and_named(own, clean, name):
    plant, severity, what, count, said = (FAULTS | FULL_FAULTS)[name]
    full = name in FULL_FAULTS
    assert not fitting(clean[full], severity, what)
    plant(own)
    findings = checked(own, *["full"] * full)
    (finding,) = fitting(findings, severity, what)
    assert finding.count == count and len(finding.examples) <= 3
    assert any(said in words for words in (*finding.examples, finding.mend))
    assert doctor.status(findings) >= ["note", "warning", "error"].index(severity)
    assert finding.what in doctor.table(findings)


@pytest.mark.parametrize("name", FULL_FAULTS)
def test_headers_alone_do_not_show_it(own, name):
    """Else --check full would have no reason to be."""
    plant, severity, what, _, _ = FULL_FAULTS[name]
    plant(own)
    assert not fitting(checked(own), severity, what)


@pytest.mark.parametrize("n_class, severity", [(5, "error"), (6, None), (7, "warning")])
def test_number_of_classes(corpus, n_class, severity):
    findings = [each for each in checked(corpus, "headers", "--n_class", str(n_class)) if "--n_class" in each.what]
    assert [each.severity for each in findings] == ([severity] if severity else [])


def test_disk_and_memory(corpus, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1e6))
    monkeypatch.setattr(doctor, "free_memory", lambda: 1e6)
    told = fitting(checked(corpus), "warning", "would not fit")
    assert [each.what.split()[-1] for each in told] == ["memory", "disk", "disk"]


def test_pack_of_noises_is_no_training_folder(own, command):
    assert command(prepareData, "--pack", own / "pack", "--musan_path", own / "musan", "--n_cpu", 1)[0] == 0
    flags = [str(flag) for flag in ("--check", "--train_list", own / "train_list.txt", "--train_path", own / "pack")]
    (finding,) = fitting(doctor.check(prepareData.build_parser().parse_args(flags)), "error", "")
    assert finding.what == "--train_path cannot be used" and "is a pack of noises" in finding.examples[0]


def test_unreadable_beyond_what_training_replaces_is_an_error(own):
    for number in range(2):
        raw(f"train/id00001/session0/0000{number}.wav", b"\x07" * 500)(own)
    (finding,) = fitting(checked(own), "error", "training cannot be read")
    assert finding.count == 2


def test_pack_takes_the_place_of_the_folder(own, command):
    raw(TRAIN, b"\x07" * 500)(own)
    flags = ["--train_list", own / "train_list.txt", "--train_path"]
    assert command(prepareData, "--pack", own / "pack", *flags, own / "train", "--n_cpu", 1)[0] == 0
    status, printed, _ = command(prepareData, "--check", *flags, own / "pack")
    assert status == 1 and "could not be read when they were packed" in printed and TRAIN[6:] in printed


def test_audio_that_was_not_looked_at_is_said(corpus):
    flags = data_flags(corpus)
    arguments = [str(flag) for flag in (*flags[:2], *flags[4:6], "--check")]
    told = fitting(doctor.check(prepareData.build_parser().parse_args(arguments)), "warning", "audio was not looked at")
    assert ["--train_path" in told[0].mend, "--eval_path" in told[1].mend] == [True, True]


@pytest.mark.parametrize("claimed, told", [(0x7FFFF024, 0), (0xFFFFFFFF, 0), (10**6, 1)])
def test_what_was_written_to_a_pipe_claims_too_much(own, claimed, told):
    content = (own / EVAL).read_bytes()
    (own / EVAL).write_bytes(content[:4] + claimed.to_bytes(4, "little") + content[8:])
    findings = checked(own)
    assert len(fitting(findings, "warning", "files of evaluation are shorter than their header says")) == told
    assert not [each for each in findings if each.severity == "error"]


def test_audio_that_no_list_names(own):
    """Trials, noises and responses may lie in the folder of the training audio, too."""
    (own / "train_list.txt").write_text("".join(
        f"{line.split()[0]} train/{line.split()[1]}\n" for line in (own / "train_list.txt").read_text().splitlines()))
    (own / "trials.txt").write_text((own / "trials.txt").read_text().replace(" id", " eval/id"))
    flags = "--train_path", own, "--eval_path", own
    assert not fitting(checked(own, *flags), "note", "are in no list")
    train_lines(lambda lines: lines[:-2])(own)
    (told,) = fitting(checked(own, *flags), "note", "are in no list")
    train_lines(lambda lines: [line.replace("train/", f"{own}/./train/") for line in lines])(own)
    (again,) = fitting(checked(own, *flags, "--paths_anywhere"), "note", "are in no list")
    assert again == told
    assert told.count == 2 and told.examples == [f"train/id00005/session1/0000{take}.wav" for take in (2, 3)]


# ---- which list ------------------------------------------------------------------------------------------------------


def voxceleb_list(trials, targets, speakers, prefix="", suffix="wav"):
    """As many lines of the form of VoxCeleb1's lists, all different, of speakers id10270 and following."""
    for number in range(trials):
        same, speaker = number < targets, number % speakers
        other = speaker if same else (speaker + 1) % speakers
        a, b = f"{number:011d}/00001.{suffix}", f"{number:011d}/00002.{suffix}"
        yield f"{int(same)} {prefix}id{10270 + speaker}/{a} {prefix}id{10270 + other}/{b}"


def of_lists(*paths):
    return check_lists(argparse.Namespace(eval_list=paths, eval=True, paths_anywhere=True))[2]


@pytest.mark.parametrize("name, trials, targets, speakers", [
    ("Vox1-O original", 37720, 18860, 40), ("Vox1-O cleaned", 37611, 18802, 40),
    ("Vox1-E cleaned", 579818, 290000, 900),
])  # fmt: skip
def test_known_lists_are_told_by_content(tmp_path, name, trials, targets, speakers):
    path = tmp_path / "mine.txt"  # the name says nothing
    path.write_text("\n".join(voxceleb_list(trials, targets, speakers, "wav/", "flac")))
    findings = of_lists(path)
    (finding,) = (each for each in findings if f"is {name} (" in each.what)
    other = name.replace("cleaned", "original") if "cleaned" in name else name.replace("original", "cleaned")
    assert f"never compare its results with those on {other}" in finding.mend
    published = {"Vox1-O original": "1.0", "Vox1-O cleaned": "0.856", "Vox1-E cleaned": "1.072"}
    assert published[name] in finding.mend
    assert bool(fitting(findings, "note", "needs the audio of VoxCeleb1 dev and test")) == ("-O" not in name)


def test_a_hard_list_by_its_columns():
    rows = [line.split() for line in voxceleb_list(550894, 275488, 900)]
    identity = knownLists.identify([int(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    assert identity.known.name == "Vox1-H cleaned" and "wespeaker C=1024 2.059" in identity.known.results()


@pytest.mark.parametrize("trials, targets, speakers", [(37610, 18802, 40), (37611, 18801, 40), (37611, 18802, 41)])
def test_nearly_a_known_list_is_none(tmp_path, trials, targets, speakers):
    (tmp_path / "veri_test2.txt").write_text("\n".join(voxceleb_list(trials, targets, speakers)))
    findings = of_lists(tmp_path / "veri_test2.txt")
    (finding,) = fitting(findings, "warning", "none of the published lists")
    assert "Vox1-O cleaned (veri_test2.txt) is nearest" in finding.mend


def test_original_and_cleaned_and_the_same_twice(tmp_path):
    original, cleaned = tmp_path / "a.txt", tmp_path / "b.txt"
    original.write_text("\n".join(voxceleb_list(37720, 18860, 40)))
    cleaned.write_text("\n".join(voxceleb_list(37611, 18802, 40)))
    lines = voxceleb_list(37611, 18802, 40, "/data/wav/")
    (tmp_path / "c.txt").write_text("\n".join(sorted(lines)))
    lists = [original, cleaned, tmp_path / "c.txt"]
    findings = of_lists(*lists)
    assert len(fitting(findings, "warning", "both original and cleaned")) == 1
    (twice,) = fitting(findings, "warning", "same under two names")
    assert twice.examples == ["b.txt and c.txt"]


@pytest.mark.parametrize("form", ["wav/{}/x{}.wav", "audio/x{1}-{0}.flac", "/data/wav/{}/x{}.wav", "{}/s{}/a.wav"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_lists_with_few_same_speaker_trials_are_right(tmp_path, form, share):
    """In whatever folders their files lie: that nearly all trials are of different folders shows nothing."""
    lines = [f"{int(i < 400 * share)} {form.format(i % 20, i)} {form.format(i % 20 + (i >= 400 * share), i + 1000)}\n"
             for i in range(400)]  # fmt: skip
    (tmp_path / "list.txt").write_text("".join(lines))
    assert [each.what for each in of_lists(tmp_path / "list.txt") if each.severity != "note"] == []
    (tmp_path / "list.txt").write_text("".join(f"{1 - int(line[0])}{line[1:]}" for line in lines))
    told = fitting(of_lists(tmp_path / "list.txt"), "error", "the labels of list.txt are reversed")
    assert len(told) == ("flac" not in form)


def test_enrolment_and_test_in_folders_of_their_own(tmp_path):
    """As CN-Celeb's list has them: no folder is a speaker's."""
    lines = [f"{int(i % 30 == 0)} enroll/id{i % 30}.wav test/id{i}.wav\n" for i in range(300)]
    (tmp_path / "list.txt").write_text("".join(lines))
    assert [each.what for each in of_lists(tmp_path / "list.txt") if each.severity != "note"] == []


def test_own_trials_of_voxceleb_are_no_fault(tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(voxceleb_list(500, 250, 12)))
    assert [each.severity for each in of_lists(tmp_path / "list.txt")] == ["note"]


def test_sizes_are_those_published():
    """Against the table of lists/README.md, which was written before this room."""
    text = (doctor.pathlib.Path(prepareData.__file__).parent / "lists/README.md").read_text()
    for known in knownLists.KNOWN_LISTS:
        sizes = ["" if size is None else f"{size:,}" for size in (known.trials, known.target, known.nontarget)]
        row = f"`{known.file}` | {' | '.join(sizes)} |".replace("|  |", "| |").replace("|  |", "| |")
        assert row in text, row


# ---- the glance before training and evaluation -----------------------------------------------------------------------

SMALL = ["--C", 8, "--num_frames", 60, "--batch_size", 4, "--max_epoch", 1, "--bank_mb", 5, "--device", "cpu", "--amp",
         "off", "--n_cpu", 1, "--save_minutes", 100]  # fmt: skip


def on_both_sides(root):
    """A speaker of the trials is trained on, too, in the one folder that all audio is in."""
    shutil.copytree(root / "train", root / "eval", dirs_exist_ok=True)
    edit(root / "train_list.txt", lambda lines: [*lines, "id00006 id00006/session0/00000.wav"])
    return ["--train_path", root / "eval"]


def reverse_labels(root):
    edit(root / "trials.txt", lambda lines: [f"{1 - int(line[0])}{line[1:]}" for line in lines])
    raw(EVAL, b"\x07" * 500)(root)


@pytest.mark.parametrize("plant, named, more", [
    (on_both_sides, "speakers are both in training and in trials.txt: 1, such as id00006", ""),
    (reverse_labels, "the labels of trials.txt are reversed", "errors of 1 other kinds"),
    (raw(EVAL, b"\x07" * 500), f"such as {EVAL[5:]} (", ""),
])  # fmt: skip
def test_training_does_not_begin_with_errors(own, tmp_path, command, plant, named, more):
    flags = [*data_flags(own), *SMALL, "--save_path", tmp_path / "exp"]
    more_flags = plant(own)
    flags += more_flags if isinstance(more_flags, list) else []
    status, printed, complained = command(trainSpeakerNet, *flags)
    assert status == 2 and complained.count("\n") == 1 and named in complained and "--no_check" in complained
    assert more in complained and printed.count("error: ") == bool(more) and named not in printed
    assert not list((tmp_path / "exp").rglob("[!.]*.*"))


def test_warnings_are_told_and_training_goes_on(own, tmp_path, command):
    rewrite(own / TRAIN, voice(100, 2.5, 1)[::2], 8000)
    train_lines(lambda lines: [*lines, lines[0]])(own)
    flags = [*data_flags(own), *SMALL, "--save_path", tmp_path / "exp"]
    status, printed, _ = command(trainSpeakerNet, *flags, "--n_class", 9)
    assert status == 0 and "epoch 1/1" in printed
    warnings = [line for line in printed.splitlines() if line.startswith("warning: ")]
    for named in ("are there twice: 1, such as line 25: id00000", f"recorded below 16 kHz: 1, such as {TRAIN[6:]}",
                  "--n_class 9 is not"):  # fmt: skip
        assert sum(named in line for line in warnings) == 1, (named, printed)
    assert len(warnings) == 3 and printed.index("warning: ") < printed.index("EER")


def test_no_check_goes_on_and_the_model_knows_whom_it_heard(own, tmp_path, command):
    flags = [*data_flags(own), *SMALL, "--no_check", *on_both_sides(own)]
    status, printed, _ = command(trainSpeakerNet, *flags, "--save_path", tmp_path / "exp")
    assert status == 0 and "epoch 1/1" in printed and "error:" not in printed
    flags = ["--eval", *data_flags(own), "--initial_model", tmp_path / "exp/model/model_0001.model", "--device", "cpu"]
    status, printed, _ = command(trainSpeakerNet, *flags, "--save_path", tmp_path / "eval")
    assert status == 0 and "speakers of trials.txt were in the model's training: 1, such as id00006" in printed
    assert "warning" not in command(trainSpeakerNet, *flags, "--no_check", "--save_path", tmp_path / "eval")[1]
    # So does one that begins with it, on a list without them.
    train_lines(lambda lines: [line for line in lines if not line.startswith("id00006 ")])(own)
    flags = [*data_flags(own), *SMALL[2:], "--initial_model", tmp_path / "exp/model/model_0001.model"]
    for epochs in (1, 2):  # again, the run goes on
        more = ["--max_epoch", epochs, "--save_path", tmp_path / "tuned"]
        status, printed, _ = command(trainSpeakerNet, *flags, *more)
        assert status == 0 and "speakers of trials.txt were in the model's training: 1, such as id00006" in printed
    # The model that comes of it does not forget.
    flags = ["--eval", *data_flags(own), "--initial_model", tmp_path / "tuned/model/model_0002.model"]
    status, printed, _ = command(trainSpeakerNet, *flags, "--device", "cpu", "--save_path", tmp_path / "eval2")
    assert status == 0 and "speakers of trials.txt were in the model's training: 1, such as id00006" in printed


def test_few_unreadable_files_of_those_looked_at_are_no_error(own, monkeypatch):
    """Training stops at 1 % of all; of the 200 that the glance sees, 6 may be chance, 11 may not."""
    files = [f"id{speaker}/{number}.wav" for speaker in range(10) for number in range(20)]
    (own / "train_list.txt").write_text("".join(f"{file.split('/')[0]} {file}\n" for file in files))
    for file in files:
        (own / "train" / file).parent.mkdir(exist_ok=True)
        shutil.copy(own / TRAIN, own / "train" / file)
    flags = [str(flag) for flag in (*data_flags(own), *SMALL, "--save_path", own / "exp")]
    for count, severity in ((6, "warning"), (11, "error")):
        for file in files[:count]:
            (own / "train" / file).write_bytes(b"")
        findings = doctor.glance(trainSpeakerNet.read_settings(flags))
        assert [each.count for each in fitting(findings, severity, "(200 of 200 looked at) are empty")] == [count]


def test_a_cohort_may_have_one_utterance_of_each_speaker(own, tmp_path):
    edit(own / "train_list.txt", lambda lines: lines[::4])
    flags = [str(flag) for flag in (*data_flags(own), "--save_path", tmp_path)]
    assert fitting(doctor.glance(trainSpeakerNet.read_settings(flags)), "error", "is a speaker of its own")
    model = tmp_path / "a.model"
    model.touch()
    settings = trainSpeakerNet.read_settings([*flags, "--eval", "--as_norm", "--initial_model", str(model)])
    assert doctor.glance(settings) == []


def test_only_a_part_of_many_files_is_looked_at(own, monkeypatch):
    """Evenly over the list, to its end, and no more."""
    lines = (own / "train_list.txt").read_text().split()[1::2]
    seen = []
    monkeypatch.setattr(doctor, "GLANCE", 5)
    monkeypatch.setattr(doctor, "look_at", lambda source, files, *_: seen.append(files) or {})
    flags = [str(flag) for flag in (*data_flags(own), *SMALL, "--save_path", own / "exp")]
    doctor.glance(trainSpeakerNet.read_settings(flags))
    assert seen[0] == lines[::5] and len(seen[1]) <= 5


def test_room_for_the_checkpoints(own, monkeypatch):
    flags = [str(flag) for flag in (*data_flags(own), *SMALL, "--save_path", own / "exp")]
    args = trainSpeakerNet.read_settings([*flags, "--C", "1024", "--max_epoch", "10", "--test_step", "2"])
    for free, told in ((0.6e9, True), (0.8e9, False)):  # 14.7 M weights and 192 * 6 of the classifier: 59 MB, by 5 + 6
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder, free=free: types.SimpleNamespace(free=free))
        findings = fitting(doctor.glance(args), "warning", "checkpoints of 10 epochs would not fit on the disk")
        assert len(findings) == told


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant, status", [
    (lambda root: None, 0), (copied(TRAIN, "train/id00001/session1/00002.wav"), 1),
    (lambda root: (root / TRAIN).unlink(), 2)])  # fmt: skip
def test_exit_status_and_json(own, command, plant, status):
    plant(own)
    ended, printed, _ = command(prepareData, "--check", *data_flags(own), "--json")
    content = json.loads(printed)
    assert ended == status == content["status"]
    assert set(content["findings"][0]) == {"severity", "what", "count", "examples", "mend"}
    assert command(prepareData, "--check", *data_flags(own))[0] == status


def test_check_of_nothing_is_refused(command):
    status, _, complained = command(prepareData, "--check")
    assert status == 2 and complained.count("\n") == 1 and "--train_list" in complained
