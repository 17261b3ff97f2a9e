"""From a download to a trained model by the README's own lines, with everything that goes wrong on the way.

    python tests/download.py          # the table, in a minute and a half on a core; needs ffmpeg

A small download of VoxCeleb, MUSAN and RIRS_NOISES is generated (make_download.py). Before every step of the README,
faults are planted; the step, or prepareData.py --check after it, has to name each of them: its file, its line or its
flag, how many, and the mend. Then all is mended as it was said, the README's line runs, and what it made has no faults.
What the README says stands in a process of its own, to the letter but for folders and sizes; faults are met in forks of
this process, which has imported everything and computed nothing.
"""

import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of its parent's threads, and would wait for them
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from conftest import voice  # noqa: E402
from make_download import NOISE, PAGE, POINTER, film, flipped, half, link, spoilt, tar_of, wav, zip_that_says  # noqa: E402
from nasty import zip_of  # noqa: E402
from way import PUBLISHED, Way, lacking  # noqa: E402

from corpora import unpack  # noqa: E402

SETTINGS = ["--C", "8", "--num_frames", "60", "--batch_size", "4", "--max_epoch", "1", "--bank_mb", "5", "--device",
            "cpu", "--amp", "off", "--n_cpu", "1"]  # fmt: skip


# ---- the steps -------------------------------------------------------------------------------------------------------


def unpacking(way):
    stage, flags, any_md5 = "download", ("--unpack", way.downloads, "--to", way.data), ("--any_md5",)
    content = {name: (way.downloads / name).read_bytes() for name in way.archives}
    test, part = "vox1_test_wav.zip", "vox2_dev_aac_partac"
    with zipfile.ZipFile(way.downloads / test) as archive:
        member = archive.infolist()[5]
    inside = member.header_offset + 200
    # Outside of the folder, but in our own: should the refusal ever break, it writes there and nowhere else.
    harm = f"{way.home}/harm"
    again, zipless = "download it again", "is not a zip file, or a damaged one"
    for planted, file, spoilt_content, more, words in (
        ("a part is missing", part, None, (), [f"lacks {part}", "download what is missing"]),
        ("a bit of a part is another", part, flipped(content[part], 99), (), [f"{part} (MD5 ", "download again"]),
        ("a part is cut short", part, half(content[part]), (), [f"{part} (MD5 ", "incomplete", "download again"]),
        ("the last part is cut short, MD5s not looked at", "vox2_dev_aac_partah", half(content[part]), any_md5,
         ["vox2_dev_aac ", zipless, again]),
        ("a page in place of an archive", test, PAGE, any_md5, [f"{test} {zipless}", again]),
        ("a tar.gz is cut short", "musan.tar.gz", half(content["musan.tar.gz"]), any_md5,
         ["musan.tar.gz is not a tar.gz file, or a damaged one", again]),
        ("a member that would leave the folder", "rirs_noises.zip", zip_of({"../harm": b"harm"}), any_md5,
         ["rirs_noises.zip is refused", "'../harm' in it may lead out of the folder"]),
        ("an absolute member", "musan.tar.gz", tar_of({harm: b"harm"}), any_md5,
         ["musan.tar.gz is refused", f"'{harm}' in it may lead out of the folder"]),
        ("a member that is a link", "musan.tar.gz", tar_of(link("musan/noise", harm)), any_md5,
         ["musan.tar.gz is refused", "'musan/noise' in it is a link"]),
        ("a password", "rirs_noises.zip", zip_that_says(flag_bits=1), any_md5,
         ["rirs_noises.zip asks for a password ('RIRS_NOISES/a.wav' is encrypted)", "unpack it with `7z x`"]),
        ("a member that claims a petabyte", "rirs_noises.zip", zip_that_says(file_size=10**15), any_md5,
         ["GB free, but", "rirs_noises.zip", "need 1000000.0 GB or more", "make room, or give another disk"]),
        ("an archive under two names", "vox1_dev_wav.zip", content[test], any_md5,
         [f"{test} is refused: voxceleb1/wav/id10270/", "is in it twice, or in vox1_dev_wav.zip, too"]),
        ("an archive that is damaged inside", test, flipped(content[test], inside), any_md5,
         [f"{test} is damaged at", member.filename, "Bad CRC-32", f"{again}; the same command then continues"]),
    ):  # fmt: skip
        with spoilt(way.downloads / file, spoilt_content):
            status = 1 if "continues" in words[-1] else 2
            archive = None if planted.startswith(("an archive under two", "a member that claims")) else file
            way.stops(stage, planted, *flags, *more, words=words, status=status, archive=archive)
            assert not os.path.lexists(harm), planted
    way.stops(stage, "none of the published editions", *flags, words=[*way.archives, "--any_md5 takes other editions"],
              prepare=lambda: setattr(unpack, "ARCHIVES", PUBLISHED))  # fmt: skip
    (way.home / "elsewhere").mkdir()
    way.stops(stage, "another folder than that of the archives", "--unpack", way.home / "elsewhere", "--to", way.data,
              words=["elsewhere holds none of the archives", "vox2_dev_aac_part*", "musan.tar.gz"])  # fmt: skip
    # What the damaged archive left behind is kept.
    way.readme_line(stage, "python prepareData.py --unpack", "--any_md5",
                    words=["RIRS_NOISES, musan, voxceleb1, voxceleb2", "531 files"])  # fmt: skip
    for name in ("veri_test2.txt", "veri_test.txt"):
        shutil.copy(way.downloads / name, way.data / "voxceleb1" / name)


def converting(way):
    stage, begin = "convert", "python prepareData.py --convert"
    source, target = way.data / "voxceleb2/dev/aac", way.data / "voxceleb2/wav"
    flags = ("--convert", source, "--to", target)
    files = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.m4a"))]
    way.stops(stage, "ffmpeg is not installed", *flags, words=["32 of 32 files need ffmpeg", "apt-get install ffmpeg"],
              prepare=lambda: os.environ.update(PATH=str(way.home)))  # fmt: skip
    way.stops(stage, "a folder without audio", "--convert", way.downloads, "--to", target,
              words=["downloads holds no audio, but", ".zip files", "known are"])  # fmt: skip
    way.stops(stage, "to a folder inside", "--convert", source, "--to", source / "wav",
              words=["must not lie in one another"])  # fmt: skip
    double = (source / files[0]).with_suffix(".wav")
    double.write_bytes(wav(voice(100, 2, 0)))
    way.stops(stage, "two files for one result", *flags,
              words=[f"{files[0]} and {double.relative_to(source)} would both become", "move one of them away"])
    double.unlink()
    whole = [(source / file).read_bytes() for file in files]
    planted = {}
    for number, (name, content, words) in enumerate((
        ("m4a cut short", half(whole[0]), ["claims 2.", "s, but ffmpeg got 1.", "cut short"]),
        ("m4a without its beginning", whole[1][len(whole[1]) // 2 :], ["cannot be decoded by ffmpeg (Invalid data"]),
        ("m4a empty", b"", ["is empty"]),
        ("noise in place of an m4a", NOISE, ["cannot be decoded by ffmpeg"]),
        ("a page in place of an m4a", PAGE, ["is text, not audio: an error page", "<!DOCTYPE html>"]),
        ("a Git LFS pointer in place of an m4a", POINTER, ["Git LFS pointer", "version https://git-lfs"]),
        ("m4a with a picture and no sound", film(), ["has no sound in it"]),
        ("a playlist that names another file", f"#EXTM3U\n#EXTINF:9,\n{source / files[31]}\n#EXT-X-ENDLIST\n".encode(),
         ["cannot be decoded by ffmpeg"]),
    )):  # fmt: skip
        (source / files[3 * number]).write_bytes(content)
        planted[files[3 * number]] = (name, words)
    there = (target / files[28]).with_suffix(".wav")
    there.parent.mkdir(parents=True)
    there.write_bytes(wav(voice(100, 2, 0)[::2], 8000))
    planted[files[28]] = ("a result at 8 kHz, there already", ["is there already, but is no 16 kHz mono 16-"
                          "bit audio: move it away"])  # fmt: skip
    way.failed(stage, begin, planted)
    there.unlink()
    for file in planted:
        (source / file).unlink()
    assert way.again("python prepareData.py --unpack", "--any_md5").status == 0
    way.readme_line(stage, begin, words=["32 files found, 9 files written", "23 were there already, 0 files failed"])


def splitting(way):
    stage, flags = "MUSAN in pieces", ("--to", way.home / "musan_split")
    way.stops(stage, "MUSAN's folder one too high", "--split_musan", way.data, *flags,
              words=["has no audio in its folder 'music'", "give MUSAN's own folder"])  # fmt: skip
    with spoilt(way.data / "musan/music/made-up/music-made-up-0001.wav", NOISE):
        way.stops(stage, "a file that cannot be read", "--split_musan", way.data / "musan", *flags, status=1,
                  words=["1 of 9 files failed", "music-made-up-0001.wav cannot be read as audio"])  # fmt: skip
    ended = way.fork("prepareData.py", "--split_musan", way.data / "musan", *flags)
    way.row(stage, "", "--split_musan", ended.printed.strip(),
            lacking(["1 pieces written", "8 were there already, 0 files failed"], ended.printed))  # fmt: skip


def listing(way):
    stage, wavs, lists = "lists", way.data / "voxceleb2/wav", ("--to", way.home / "other")
    way.stops(stage, "m4a that was not converted", "--lists", way.data / "voxceleb2/dev/aac", *lists,
              words=["aac has 32 files such as id00012/", "convert them to wav or flac first"])  # fmt: skip
    way.stops(stage, "a folder too high", "--lists", way.data / "voxceleb2", *lists,
              words=["has a single speaker, wav", "give the folder that holds a folder for each speaker"])
    (wavs / "id00012/my voice").mkdir()
    (wavs / "id00012/my voice/1.wav").write_bytes(wav(voice(100, 2, 0)))
    way.stops(stage, "a blank in a name", "--lists", wavs, *lists,
              words=["'id00012/my voice/1.wav' has a blank in it", "rename it"])  # fmt: skip
    shutil.rmtree(wavs / "id00012/my voice")
    way.stops(stage, "too few speakers to hold out", "--lists", wavs, *lists, "--valid_speakers", 7,
              words=["--valid_speakers 7", "fewer than 2 of the 8 speakers"])  # fmt: skip
    table = way.home / "table.csv"
    table.write_text("speaker,path\nid00012,id00012/nowhere.wav\n")
    way.stops(stage, "a table with a file that is not there", "--lists", wavs, *lists, "--csv", table,
              words=["table.csv line 2", "nowhere.wav does not exist (1 of 1 files are missing)"])  # fmt: skip
    way.readme_line(stage, "python prepareData.py --lists /data/voxceleb2/wav",
                    words=["voxceleb2/train_list.txt: 32 utterances of 8 speakers"])  # fmt: skip
    way.readme_line(stage, "python prepareData.py --lists $V", "--valid_speakers", 2,
                    words=["train_list.txt: 24 utterances of 6 speakers"])  # fmt: skip


def clean_flags(way):
    return {"--train_list": way.data / "voxceleb2/train_list.txt", "--train_path": way.data / "voxceleb2/wav",
            "--eval_list": way.data / "voxceleb1/veri_test2.txt", "--eval_path": way.data / "voxceleb1/wav",
            "--musan_path": way.data / "musan", "--rir_path": way.data / "RIRS_NOISES/simulated_rirs"}  # fmt: skip


def some(way, *names, **others):
    """Of clean_flags those of these names, with other values where they are given: as a command line."""
    chosen = {f"--{name}": clean_flags(way)[f"--{name}"] for name in names}
    chosen |= {f"--{name}": value for name, value in others.items()}
    return [word for flag, value in chosen.items() for word in (flag, *(value if isinstance(value, list) else [value]))]


def checking_training_lists(way):
    stage, train = "training list", clean_flags(way)["--train_path"]
    lines = clean_flags(way)["--train_list"].read_text().splitlines()
    speaker, other, last = (lines[number].split()[0] for number in (0, 4, 28))
    (train / "id10270/AAAAAAAAAAA").mkdir(parents=True)
    (train / "id10270/AAAAAAAAAAA/00001.wav").write_bytes(wav(voice(100, 2.2, 99)))

    def written(name, content):
        (way.home / name).write_text("".join(f"{line}\n" for line in content))
        return way.home / name

    wrong = lines[4].replace(other, last, 1)
    listing = written("train_list.txt", [
        *lines[:4], wrong, *lines[5:], f"{speaker} {speaker}/my video/00001.wav", lines[0],
        lines[1].replace(speaker, other, 1), f"{speaker} ../wav/{lines[0].split()[1]}",
        f"{speaker} {speaker}/AAAAAAAAAAA/99999.wav", "id10270 id10270/AAAAAAAAAAA/00001.wav"])  # fmt: skip
    way.checked(stage, [
        ("error", "lines of the training list are not '<speaker> <path>'", 1, {"a line of three fields":
         f"line 33: '{speaker} {speaker}/my video/00001.wav'"}, "blanks in names? rename the files"),
        ("warning", "lines of the training list are there twice", 1, {"a line twice": f"line 34: {lines[0]}"},
         "remove them"),
        ("error", "files of the training list are of two speakers", 1, {"a file of two speakers":
         f"line 35: {other} {lines[1].split()[1]}"}, "remove the wrong line"),
        ("warning", "name a speaker other than their path's folder", 2, {"a file in another speaker's folder":
         f"line 5: {wrong}"}, "is the speaker right?"),
        ("error", "paths of the training list lead out of their folder", 1, {"a path with ..":
         f"line 36: ../wav/{speaker}"}, "--paths_anywhere takes them, if you trust the list"),
        ("error", "files of training do not exist", 1, {"a file that is not there":
         f"voxceleb2/wav/{speaker}/AAAAAAAAAAA/99999.wav"}, "is --train_path right, and the copy complete?"),
        ("error", "speakers are both in training and in veri_test2.txt", 1, {"a speaker on both sides": "id10270"},
         "take their lines out of the training list"),
        ("error", "--n_class 8 is not the number of speakers", 9, {"--n_class too small": "9 speakers"},
         "leave --n_class out"),
    ], *some(way, "train_path", "eval_list", train_list=listing, n_class=8))  # fmt: skip
    shutil.rmtree(train / "id10270")

    utterances = [f"u{number} {line.split()[1]}" for number, line in enumerate(lines)]
    deeper = [f"{line.split()[0]} wav/{line.split()[1]}" for line in lines]
    missing, thirty_two = "files of training do not exist", "voxceleb2/"
    for name, content, expected, flags in (
        ("--n_class too large", lines, ("warning", "--n_class 9 is not the number", 8, "8 speakers", "leave --n_class"),
         {"n_class": 9}),
        ("an utterance for a speaker", utterances, ("error", "every line of the training list is a speaker of its own",
         32, "u0", "its first field must be the speaker"), {}),
        ("a single speaker", lines[:4], ("error", "the training list has a single speaker", 1, speaker,
         "nothing to tell apart"), {}),
        ("a trial list in its place", lines_of(way, "veri_test2.txt")[:50], ("error", "are not '<speaker> <path>'", 50,
         "line 1: '1 id10270", "this is a trial list: give it as --eval_list"), {}),
        ("an empty list", [], ("error", "the training list cannot be used", 1, "list.txt is empty", "give the right"),
         {}),
        ("--train_path too high", lines, ("error", missing, 32, thirty_two, f"--train_path {train} has them"),
         {"train_path": train.parent}),
        ("--train_path too deep", deeper, ("error", missing, 32, thirty_two,
         f"--train_path {train.parent} has them"),
         {"train_path": train}),
        ("--train_path of the m4a", lines, ("error", missing, 32, "dev/aac/", "convert them from m4a"),
         {"train_path": way.data / "voxceleb2/dev/aac"}),
        ("--train_path that is none", lines, ("error", "--train_path cannot be used", 1,
         "voxceleb3 is not a folder", "give the folder of the audio"), {"train_path": way.data / "voxceleb3"}),
    ):  # fmt: skip
        severity, what, count, where, mend = expected
        flags = some(way, train_list=written("list.txt", content), **flags)
        way.checked(stage, [(severity, what, count, {name: where}, mend)], *flags)


def lines_of(way, name):
    return (way.data / "voxceleb1" / name).read_text().splitlines()


def checking_trial_lists(way):
    stage, lines = "trial list", lines_of(way, "veri_test2.txt")
    size = len(lines)
    same = [line for line in lines if line[0] == "1"]
    fields = [line.split() for line in lines]
    different = next(number for number, line in enumerate(lines) if line[0] == "0")
    speaker, file = fields[0][1].split("/")[0], fields[0][1]

    def written(content, name="trials.txt"):
        (way.home / name).write_text("".join(f"{line}\n" for line in content))
        return way.home / name

    absent = f"{speaker}/AAAAAAAAAAA/00001.wav"
    trials = written([
        *lines[:different], f"1 {' '.join(fields[different][1:])}", *lines[different + 1 :],
        f"{lines[2]} 0.37", f"{fields[5][0]} {fields[5][2]} {fields[5][1]}", f"0 {' '.join(fields[7][1:])}",
        f"1 {file} {file}", f"0 ../wav/{file} {fields[different][2]}", f"1 {absent} {file}",
    ])  # fmt: skip
    way.checked(stage, [
        ("error", "lines of trials.txt are not '<1|0> <enrol path> <test path>'", 1, {"a line of four fields":
         f"line {size + 1}: '{lines[2]} 0.37'"}, "mend or remove them"),
        ("warning", "trials of trials.txt are there twice", 1, {"a trial twice, turned around":
         f"line {size + 2}: {fields[5][0]} {fields[5][2]}"}, "they count double"),
        ("error", "trials of trials.txt are labelled both 1 and 0", 1, {"a trial of both labels":
         f"line {size + 3}: 0 {fields[7][1]}"}, "remove the wrong one"),
        ("warning", "trials of trials.txt compare a file with itself", 1, {"a file with itself":
         f"line {size + 4}: 1 {file} {file}"}, "they say nothing"),
        ("error", "paths of the trials.txt list lead out of their folder", 1, {"a path with ..":
         f"line {size + 5}: ../wav/{file}"}, "--paths_anywhere"),
        ("error", "labels of trials.txt contradict the speakers' folders", 2, {"a label against the folders":
         f"line {different + 1}: 1 {fields[different][1]}"}, "mend the label or the path"),
        ("error", "files of evaluation do not exist", 1, {"a file that is not there": absent},
         "is --eval_path right"),
        ("warning", "trials.txt is of VoxCeleb1, but none of the published lists", size + 5, {}, "Vox1-O cleaned"),
    ], *some(way, "eval_path", eval_list=trials))  # fmt: skip

    cut = ("warning", "trials.txt is of VoxCeleb1, but none of the published lists", 30_000, {"cut short": ""},
           "Vox1-O cleaned (veri_test2.txt) is nearest, with 37,611: was it cut short?")  # fmt: skip
    swapped = ("warning", "none of the published lists", size, {}, "Vox1-")
    for content, expected in (
        (lines[:30_000], [cut]),
        (same, [("error", "trials.txt has no different-speaker (0) trials", 1, {"trials of one kind only": ""},
                 "an error rate needs both kinds")]),
        ([str(1 - int(line[0])) + line[1:] for line in lines], [
            ("error", "the labels of trials.txt are reversed", size, {"labels reversed": "line 1: 0"},
             "1 means the same speaker: swap 0 and 1"), swapped]),
        ([" ".join(line.split()[1:]) for line in lines[:9]], [
            ("error", "lines of trials.txt are not '<1|0>", 9, {"a training list in its place": "line 1: '"},
             "this is a training list: give it as --train_list")]),
    ):  # fmt: skip
        way.checked(stage, expected, *some(way, eval_list=written(content)))
    original, cleaned = (way.data / "voxceleb1" / name for name in ("veri_test.txt", "veri_test2.txt"))
    way.checked(stage, [
        ("warning", "a list is given both original and cleaned", 1, {"Vox1-O original beside cleaned":
         "Vox1-O original"}, "never compare results across them"),
        ("warning", "trial lists are the same under two names", 1, {"a list under another name":
         "veri_test2.txt and trials.txt"}, "leave one out"),
    ], *some(way, eval_list=[original, cleaned, written(reversed(lines))]))  # fmt: skip
    high = {"--eval_path too high": "voxceleb1/id10270"}
    way.checked(stage, [("error", "files of evaluation do not exist", 480, high,
                         f"--eval_path {way.data / 'voxceleb1/wav'} has them")],
                *some(way, "eval_list", eval_path=way.data / "voxceleb1"))  # fmt: skip


def checking_audio(way):
    """All kinds of broken audio at once; then what --check names is fetched and converted again, as it says."""
    stage, flags = "audio", clean_flags(way)
    train, test, musan, rirs = (flags[f"--{name}_path"] for name in ("train", "eval", "musan", "rir"))
    files = sorted(path.relative_to(train).as_posix() for path in train.rglob("*.wav"))
    tests = sorted(path.relative_to(test).as_posix() for path in test.glob("id102*/*/*.wav"))
    speech, loud = voice(100, 2.5, 1), np.clip(20 * voice(100, 2.5, 2), -1, 1)
    sound = [(train / file).read_bytes() for file in files]
    flac = bytearray(wav(voice(100, 2.5, 3), kind="FLAC"))
    flac[len(flac) // 2 : len(flac) // 2 + 3000] = bytes(3000)
    noise, room = "music/made-up/music-made-up-0001.wav", "smallroom/Room001"
    m4a = (way.data / "voxceleb2/dev/aac" / files[2]).with_suffix(".m4a").read_bytes()
    planted = {
        **{train / files[number]: content for number, content in enumerate([
            half(sound[0]), POINTER, m4a, PAGE, b"", wav(speech[:0]), NOISE, bytes(flac), wav(0 * speech), wav(loud),
            wav(speech / 2 + 0.3), wav(voice(100, 2.5, 4)[::2], 8000), wav(voice(100, 0.3, 5)),
            wav(np.stack([speech, speech / 2], 1)), sound[31], wav(voice(100, 6, 7), 44100),
            (test / tests[9]).read_bytes(), wav(voice(100, 2.5, 6), kind="FLAC"), sound[19]])},
        test / tests[0]: half((test / tests[0]).read_bytes()), test / tests[100]: wav(0 * speech[:20000]),
        test / tests[200]: (test / tests[201]).read_bytes(), test / tests[300]: wav(voice(100, 0.5, 8)),
        musan / noise: NOISE,
        rirs / room / "Room001-00099.wav": wav(np.tile(speech, 8)), rirs / room / "noise-1.wav": wav(speech),
        rirs / room / "Room001-00098.wav": wav(np.tile(speech[:8000, None], 8)),
    }  # fmt: skip
    for path, content in planted.items():
        path.write_bytes(content)
    fetch, seconds = "fetch", "leave them out of training"
    way.checked(stage, [
        ("warning", "files of training are shorter than their header", 1, {"wav cut short": files[0]}, fetch),
        ("error", "files of training are text, not audio: an error page or a Git LFS pointer", 2, {
            "a Git LFS pointer": f"{files[1]} (version https://git-lfs", "a page": f"{files[3]} (<!DOCTYPE html>"},
         "fetch the audio itself"),
        ("error", "files of training are MPEG-4 (m4a) under another name", 1, {"m4a that is called wav": files[2]},
         "convert them"),
        ("error", "files of training are empty", 2, {"nothing in a file": f"{files[4]} (0 bytes",
                                                     "a header and no samples": files[5]}, fetch),
        ("error", "files of training cannot be read as audio", 1, {"noise in place of a wav": files[6]}, fetch),
        ("error", "files of training begin well but cannot be decoded to the end", 1, {"flac damaged inside": files[7]},
         fetch),
        ("warning", "files of training are silent", 1, {"silence": files[8]}, "leave them out"),
        ("warning", "files of training are clipped", 1, {"clipped": f"{files[9]}: "}, "less loud"),
        ("warning", "files of training have an offset", 1, {"an offset": f"{files[10]}: mean 0.30"}, "filter them"),
        ("warning", "files of training were recorded below 16 kHz", 1, {"8 kHz": f"{files[11]}: 8000 Hz"},
         "nothing above half their rate"),
        ("warning", "files of training are shorter than 1 s", 1, {"0.3 s": f"{files[12]}: 0.30 s"}, seconds),
        ("note", "files of training have several channels", 1, {"stereo": f"{files[13]}: 2 channels"}, "their mean"),
        ("error", "sets of training files hold the same audio for different speakers", 1, {
            "one recording for two speakers": f"{files[14]} = {files[31]}"}, "keep the right one"),
        ("warning", "sets of training files hold the same audio", 1, {"one recording twice":
         f"{files[18]} = {files[19]}"}, "keep one of each"),
        ("note", "files of training are above 16 kHz", 1, {"44.1 kHz": f"{files[15]}: 44100 Hz"}, "convert or pack"),
        ("note", "files of training are of another format", 1, {"flac that is called wav": files[17]}, "rename them"),
        ("error", "files are heard both in training and in evaluation", 1, {
            "a test file in training": f"{train / files[16]} = {test / tests[9]}"}, "out of the training list"),
        ("warning", "files of evaluation are shorter than their header", 1, {"test wav cut short": tests[0]}, fetch),
        ("warning", "files of evaluation are silent", 1, {"a silent test file": tests[100]}, "leave them out"),
        ("warning", "sets of evaluation files hold the same audio", 1, {
            "a test file under two names": f"{tests[200]} = {tests[201]}"}, "trials between them say nothing"),
        ("warning", "files of evaluation are shorter than 1 s", 1, {"a test file of 0.5 s": f"{tests[300]}: 0.50 s"},
         "on such trials expect errors"),
        ("warning", "files of MUSAN cannot be read as audio", 1, {"noise in place of a noise": noise}, fetch),
        ("warning", "files of the room responses are longer than 10 s", 1, {
            "a recording among responses": "Room001-00099.wav: 20.00 s"}, "take them out of --rir_path"),
        ("note", "files of the room responses have several channels", 1, {
            "a response of 8 channels": "Room001-00098.wav: 8 channels"}, "their first channel is taken"),
        ("note", "noises lie among the responses", 1, {"a noise among responses": "noise-1.wav"}, "left out"),
    ], *some(way, *(flag[2:] for flag in flags)), full=True)  # fmt: skip
    for path in planted:
        path.unlink()
    assert way.again("python prepareData.py --unpack", "--any_md5").status == 0
    ended = way.again("python prepareData.py --convert")
    way.row(stage, "", "--convert", ended.printed.strip(),
            lacking(["19 files written", "13 were there already, 0 files failed"], ended.printed))  # fmt: skip


def checking_noises(way):
    stage, musan, rirs = "noises, responses", way.data / "musan", way.data / "RIRS_NOISES"
    cannot = "--musan_path cannot be used"
    way.checked(stage, [("error", cannot, 1, {"--musan_path too high": "has no audio in its folder 'noise'"},
                         f"give --musan_path {musan}")], "--musan_path", way.data)  # fmt: skip
    (musan / "music").rename(way.home / "music")
    way.checked(stage, [("error", cannot, 1, {"MUSAN without its music": "has no audio in its folder 'music'"},
                         "give the folder that holds noise/, music/, speech/")], "--musan_path", musan)  # fmt: skip
    (way.home / "music").rename(musan / "music")
    way.checked(stage, [("error", "--rir_path cannot be used", 1, {"--rir_path with noises only": "no room responses"},
                         "give RIRS_NOISES or its simulated_rirs")],
                "--rir_path", rirs / "pointsource_noises")  # fmt: skip


def packing(way):
    stage, flags = "packs", clean_flags(way)
    train, lines = flags["--train_path"], flags["--train_list"].read_text().splitlines()
    listing = ("--train_list", flags["--train_list"], "--train_path")
    with spoilt(train / lines[2].split()[1], None):
        way.stops(stage, "a file that is not there", "--pack", way.home / "none", *listing, train,
                  words=[f"train_list.txt line 3: {train / lines[2].split()[1]} does not exist (1 of 32 files",
                         "is --train_path right?"])  # fmt: skip
    with spoilt(train / lines[2].split()[1], NOISE):
        ended = way.fork("prepareData.py", "--pack", way.home / "lossy", *listing, train)
    said = f"{ended.complained.strip()} / {ended.printed.strip()}"
    way.row(stage, "a file that cannot be read", "--pack", said,
            lacking([f"{lines[2].split()[1]} cannot be read", "32 files", "1 unreadable"], said))  # fmt: skip
    way.checked(stage, [("warning", "files of training could not be read when they were packed", 1,
                         {"a pack that lacks a file": lines[2].split()[1]}, "mend the files and pack them anew")],
                *listing, way.home / "lossy")  # fmt: skip
    way.checked(stage, [("error", "--eval_path is a pack", 1, {"a pack for --eval_path": "lossy"},
                         "give their folder")],
                *some(way, "eval_list", eval_path=way.home / "lossy"))  # fmt: skip
    for name, words in (("vox2", "32 files"), ("musan", "9 files"), ("rirs", "4 files")):
        line = f"python prepareData.py --pack /data/packs/{name} "
        way.readme_line(stage, line, words=[words, "0 unreadable", f"packs/{name}"])
    way.checked(stage, [("error", "--train_path cannot be used", 1, {"a pack of noises for --train_path":
                         "packs/musan is a pack of noises"}, "give the audio, or a pack of it")],
                *listing, way.data / "packs/musan")  # fmt: skip


def training(way):
    stage, script, flags = "training", "trainSpeakerNet.py", clean_flags(way)
    usual = [*SETTINGS, "--save_path", way.home / "exps/never"]
    wrong = {"train_path": "data", "eval_path": "data", "musan_path": "data", "rir_path": "data/none",
             "train_list": "data/voxceleb1/veri_test2.txt", "eval_list": "data/voxceleb2/train_list.txt"}  # fmt: skip
    said = {"train_path": ["train_list.txt line 1: ", "data/id00012/", "does not exist (32 of 32", "--train_path"],
            "eval_path": ["veri_test2.txt line 1: ", "data/id10270/", "does not exist (480 of 480", "--eval_path"],
            "musan_path": ["--musan_path ", "has no audio in its folder 'noise'"],
            "rir_path": ["--rir_path ", "data/none is not a folder"],
            "train_list": ["veri_test2.txt line 1: expected '<speaker> <path>'", "this looks like a trial list"],
            "eval_list": ["train_list.txt line 1: expected '<1|0> "]}  # fmt: skip
    for name, value in wrong.items():
        given = some(way, *(flag[2:] for flag in flags), **{name: way.home / value})
        way.stops(stage, f"a wrong --{name}", *given, *usual, words=said[name], script=script)
    turned = way.home / "turned.txt"
    turned.write_text("".join(f"{1 - int(line[0])}{line[1:]}\n" for line in lines_of(way, "veri_test2.txt")))
    given = some(way, *(flag[2:] for flag in flags), eval_list=turned)
    way.stops(stage, "reversed labels, and no --check before", *given, *usual, script=script,
              words=["the labels of turned.txt are reversed", "swap 0 and 1", "--no_check"])  # fmt: skip
    assert not (way.home / "exps/never/score.txt").exists()
    # All of the list takes longer, and teaches nothing more.
    part = [line for line in lines_of(way, "veri_test2.txt") if line.count("/00001.wav") == 2]
    way.part.write_text("".join(f"{line}\n" for line in part))
    given = some(way, *(flag[2:] for flag in flags), eval_list=way.part)
    end = ["1 epochs done"]
    way.readme_line(stage, "python trainSpeakerNet.py --save_path exps/exp1", *given, *SETTINGS,
                    words=["EER on part: ", "% after epoch 1", *end])  # fmt: skip
    given = [*some(way, "train_list"), "--eval_list", "--save_path", way.home / "exps/packs"]
    way.readme_line(stage, "python trainSpeakerNet.py --train_path /data/packs", *given, *SETTINGS, words=end)
    one, other = (torch.load(way.home / "exps" / name / "model/model_0001.model", weights_only=True)["weights"]
                  for name in ("exp1", "packs"))  # fmt: skip
    same = all(torch.equal(weight, other[name]) for name, weight in one.items())
    way.row(stage, "", "packs in place of folders", f"{len(one)} weights, the same to the bit" if same else "others",
            "other weights than from the folders" * (not same))  # fmt: skip
    last = json.loads((way.home / "exps/exp1/metrics.jsonl").read_text().splitlines()[-1])
    (result,) = last["lists"].values()
    way.readme_line("evaluation", "python trainSpeakerNet.py --eval --initial_model exps/exp1", "--device", "cpu",
                    "--save_path", way.home / "exps/eval",
                    words=[f"part: EER {result['eer']:.2f}% ", "48 utterances, 6 speakers"])  # fmt: skip


def mended(way):
    """All is as it should be: --check has nothing to say but notes, which name the list and its published results."""
    words = ["0 errors, 0 warnings", "veri_test2.txt is Vox1-O cleaned", "32  training: ", "published EERs in %"]
    way.readme_line("all of it", "python prepareData.py --check --train_list /data/voxceleb2", "--check", "full",
                    words=words)  # fmt: skip


STEPS = [unpacking, converting, splitting, listing, checking_training_lists, checking_trial_lists, checking_audio,
         checking_noises, mended, packing, training]  # fmt: skip


def main():
    with tempfile.TemporaryDirectory() as folder:
        way = Way(Path(folder).resolve())
        print("stage | planted | found by | said")
        for step in STEPS:
            step(way)
        assert len(set(way.planted)) == len(way.planted), "two faults of one name"
        kinds = {planted for _, planted in way.planted}
        print(f"{len(way.planted)} faults of {len(kinds)} kinds; {way.failures} rows failed")
    sys.exit(way.failures > 0)


if __name__ == "__main__":
    main()
