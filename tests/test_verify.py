"""The command: what it prints, writes, returns and complains of."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from conftest import relative_error, voice
from published import random_state, taoruijie_shapes
from test_encoder import encoder_of, save_model
from test_model import small_network

import verify
from inference.export import export_onnx
from inference.gallery import Gallery
from verify import SpeakerEncoder

THRESHOLDS = {"EER": 0.999, "1%": 0.9995, "0.1%": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of ours, and in wav/ six files of three "speakers"."""
    folder = tmp_path_factory.mktemp("use")
    save_model(folder / "some.model", small_network(), thresholds=THRESHOLDS)
    (folder / "wav").mkdir()
    for speaker, pitch in enumerate((90, 140, 220)):
        for take in range(2):
            path = folder / "wav" / f"{'abc'[speaker]}{take}.wav"
            soundfile.write(path, voice(pitch, 1.6 + 0.7 * take, [speaker, take]), 16000, subtype="FLOAT")
    return folder


@pytest.fixture
def use(command, folder, monkeypatch):
    """use(*arguments) -> (exit status, printed, complained) of verify.py in the folder, with the model."""
    monkeypatch.chdir(folder)
    return lambda *arguments, model="some.model": command(verify, *arguments, "--model", model, "--device", "cpu")


@pytest.fixture
def encoder(folder):
    return SpeakerEncoder.from_checkpoint(folder / "some.model")


def test_two_files(use, encoder, folder):
    score = encoder.verify(folder / "wav/a0.wav", folder / "wav/b0.wav").score
    status, printed, complained = use("wav/a0.wav", "wav/b0.wav")
    verdict = "same speaker" if score >= 0.999 else "different speakers"
    origin = "equal error rate on trials"
    assert printed == f"{score:8.5f}  {verdict}\nthreshold 0.99900: {origin}\n" and complained == ""
    assert status == (0 if score >= 0.999 else 1)
    for threshold, expected in ((score - 1e-4, 0), (score + 1e-4, 1), (-1, 0), (1, 1)):
        status, printed, _ = use("wav/a0.wav", "wav/b0.wav", "--threshold", threshold)
        assert status == expected and ("same speaker" in printed) == (expected == 0) and "--threshold" in printed
    assert "threshold 0.99950: 1% false alarms on trials" in use("wav/a0.wav", "wav/b0.wav", "--threshold", "1%")[1]
    assert use("--threshold", "1%", "wav/a0.wav", "--channel", 0, "wav/b0.wav")[0] in (0, 1)  # in any order


def test_several_second_files(use, encoder, folder):
    (folder / "text.wav").write_text("no audio")
    names = "wav/a1.wav", "wav/b0.wav", "wav/c1.wav"
    scores = [encoder.verify(folder / "wav/a0.wav", folder / name).score for name in names]
    threshold = (max(scores) + min(scores)) / 2
    status, printed, complained = use("wav/a0.wav", *names, "--threshold", threshold)
    for line, score, name in zip(printed.splitlines(), scores, names):
        assert line == f"{score:8.5f}  {'same speaker' if score >= threshold else 'different speakers'}  {name}"
    assert (status, printed.count("\n"), complained) == (1, 4, "")
    assert use("wav/a0.wav", "wav", "--threshold", threshold)[1].count("\n") == 7  # all of a folder
    unreadable = 2, printed, "verify.py: text.wav cannot be read as audio\n"
    assert use("wav/a0.wav", "text.wav", *names, "--threshold", threshold) == unreadable


def test_without_a_threshold_there_is_no_decision(use, folder):
    torch.save(random_state(taoruijie_shapes(8, 4)), folder / "pretrain.model")
    status, printed, complained = use("wav/a0.wav", "wav/b0.wav", model="pretrain.model")
    assert status == 2 and float(printed) <= 1 and "pretrain.model has no threshold" in complained
    assert use("wav/a0.wav", "wav/b0.wav", "--threshold", -1, model="pretrain.model")[0] == 0


def test_the_mean_of_such_recordings_is_subtracted(use, folder):
    use("--embed", "wav", "--out", "mine.npz")
    content = read(folder / "mine.npz")
    vectors = content["embeddings"].astype(np.float64) - content["embeddings"].mean(axis=0, dtype=np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T  # a0, a1, b0, ...
    status, printed, complained = use("wav/a0.wav", "wav/b0.wav", "--mean", "mine.npz")
    assert status == 2 and abs(float(printed) - cosines[0, 2]) < 2e-4  # the network is untrained: they nearly cancel
    assert "some.model has no threshold for scores with --mean, so no decision was made" in complained
    for threshold, expected in ((cosines[0, 2] - 1e-3, 0), (cosines[0, 2] + 1e-3, 1)):
        assert use("wav/a0.wav", "wav/b0.wav", "--mean", "mine.npz", "--threshold", threshold)[0] == expected
    assert "must be a number" in use("wav/a0.wav", "wav/b0.wav", "--mean", "mine.npz", "--threshold", "1%")[2]
    _, printed, _ = use("--matrix", "wav", "--mean", "mine.npz")
    found = [[float(score) for score in line.split("\t")[1:]] for line in printed.splitlines()[1:]]
    assert np.allclose(found, cosines, atol=2e-4)
    use("--enrol", "A", "wav/a0.wav", "wav/a1.wav", "--gallery", "mean.npz", "--mean", "mine.npz")
    _, printed, _ = use("--identify", "wav/b0.wav", "--gallery", "mean.npz", "--mean", "mine.npz", "--threshold", 0.5)
    assert abs(float(printed.splitlines()[1].split()[0]) - cosines[2, :2].mean()) < 2e-4
    assert "with another model, another --mean or none" in use("--identify", "wav/b0.wav", "--gallery", "mean.npz")[2]
    encoder = SpeakerEncoder.from_checkpoint(folder / "some.model")
    encoder.subtract_mean(content["embeddings"])
    a, b = (encoder.embed(folder / "wav" / name) for name in ("a0.wav", "b0.wav"))
    assert abs(encoder.compare(a, b).score - cosines[0, 2]) < 2e-4
    for wrong in (content["embeddings"][:, 1:], content["embeddings"][:1]):
        with pytest.raises(ValueError, match=r"must be \(2 or more, 192\), not \("):
            encoder.subtract_mean(wrong)


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_embed_files_folders_and_lists(use, encoder, folder):
    (folder / "list.txt").write_text("a wav/a1.wav\nb wav/b1.wav\n")
    (folder / "trials.lst").write_text("1 wav/a1.wav wav/a0.wav\n")
    (folder / "paths.txt").write_text("b1.wav\n")
    names = [f"wav/{name}.wav" for name in ("a0", "a1", "b0", "b1", "c0", "c1")]
    for paths, expected in (
        (["wav"], names), (["wav/c1.wav", "wav/a0.wav"], ["wav/c1.wav", "wav/a0.wav"]),
        (["list.txt"], ["wav/a1.wav", "wav/b1.wav"]), (["trials.lst"], ["wav/a1.wav", "wav/a0.wav"]),
        (["paths.txt", "--root", "wav"], ["wav/b1.wav"]),
    ):  # fmt: skip
        count = len(expected)
        printed = f"e.npz: {count} embeddings from {count} of {count} files\n".replace("s" * (count == 1), "")
        assert use("--embed", *paths, "--out", "e.npz") == (0, printed, "")
        found = read(folder / "e.npz")
        assert sorted(found) == ["cosine_threshold", "embeddings", "files", "model"]
        assert found["files"].tolist() == expected
        assert str(found["model"]) == encoder.fingerprint()
        for file, embedding in zip(expected, found["embeddings"]):
            assert relative_error(embedding, encoder.embed(folder / file)) < 1e-5
    status, printed, complained = use("--embed", "no.wav", "wav/a0.wav", "--out", "e.npz")
    assert (status, printed) == (2, "e.npz: 1 embedding from 1 of 2 files\n")
    assert complained == "verify.py: no.wav does not exist; left out\n"


@pytest.mark.parametrize("flags", [[], ["--window", 1]])
def test_an_interrupted_call_continues(use, folder, monkeypatch, flags):
    use("--embed", "wav", *flags, "--out", "e.npz")
    expected, embedded = read(folder / "e.npz"), verify.embedded

    def interrupted(*arguments):
        for number, row in enumerate(embedded(*arguments)):
            if number == 4:
                raise KeyboardInterrupt
            yield row

    (folder / "e.npz").unlink()
    monkeypatch.setattr(verify, "SAVE_SECONDS", -1)
    monkeypatch.setattr(verify, "embedded", interrupted)
    use("--embed", "wav", *flags, "--out", "e.npz")
    monkeypatch.setattr(verify, "embedded", embedded)
    assert not (folder / "e.npz").exists() and len(set(read(folder / "e.npz.part")["files"])) == 4
    for other in (["wav", "--start", 0.1], ["wav/c1.wav"]):
        (folder / "other.npz.part").write_bytes((folder / "e.npz.part").read_bytes())
        assert "is of other files or flags: starting anew" in use("--embed", *other, "--out", "other.npz")[2]
    status, printed, complained = use("--embed", "wav", *flags, "--out", "e.npz")
    assert status == 0 and "from 6 of 6 files" in printed and complained == "e.npz.part has 4 files already\n"
    found = read(folder / "e.npz")
    assert not (folder / "e.npz.part").exists() and found["files"].tolist() == expected["files"].tolist()
    np.testing.assert_allclose(found["embeddings"], expected["embeddings"], rtol=1e-4, atol=1e-5)


def test_embed_windows_and_excerpts(use, encoder, folder):
    status, _, _ = use("--embed", "wav/a1.wav", "wav/b0.wav", "--window", 1, "--step", 0.5, "--out", "w.npz")
    found = read(folder / "w.npz")  # of 2.3 s and 1.6 s
    assert status == 0 and found["files"].tolist() == 4 * ["wav/a1.wav"] + 3 * ["wav/b0.wav"]
    assert np.allclose(found["start"], [0, 0.5, 1, 1.3, 0, 0.5, 0.6]) and np.allclose(found["end"] - found["start"], 1)
    expected, _ = encoder.embed_windows(folder / "wav/a1.wav", 1, 0.5)
    assert relative_error(found["embeddings"][:4], expected) < 1e-5
    for flags, start, end in ((["--start", 0.6], 0.6, 2.3), (["--end", 1.1], 0, 1.1)):
        assert use("--embed", "wav/a1.wav", *flags, "--out", "x.npz")[0] == 0
        found = read(folder / "x.npz")
        assert found["start"] == [start] and found["end"] == pytest.approx([end])
        assert relative_error(found["embeddings"][0], encoder.embed_excerpt(folder / "wav/a1.wav", start, end)) < 1e-5
    status, _, complained = use("--embed", "wav/a1.wav", "wav/b0.wav", "--start", 2, "--out", "x.npz")
    assert status == 2 and "wav/b0.wav lasts 1.60 s: no excerpt from 2.0 s to 1.6 s; left out" in complained


def test_kaldi_in_and_out(use, encoder, folder):
    (folder / "wav.scp").write_text("utt-1 wav/a1.wav\nutt-2 wav/b0.wav\n")
    assert use("--embed", "wav.scp", "--out", "x.ark") == (0, "x.ark: 2 embeddings from 2 of 2 files\n", "")
    ark = (folder / "x.ark").read_bytes()
    for line, (name, file) in zip((folder / "x.scp").read_text().splitlines(), (("utt-1", "a1"), ("utt-2", "b0"))):
        utterance, _, place = line.partition(" x.ark:")
        vector = ark[int(place) :]
        assert utterance == name and vector[:5] == b"\0BFV " and vector[5:10] == b"\4\xc0\0\0\0"  # 192, in 4 bytes
        found = np.frombuffer(vector[10 : 10 + 4 * 192], "<f4")
        assert relative_error(found, encoder.embed(folder / f"wav/{file}.wav")) < 1e-5
    use("--embed", "wav.scp", "--window", 1.3, "--out", "x.npz")
    assert read(folder / "x.npz")["files"].tolist() == 2 * ["utt-1"] + 2 * ["utt-2"]
    use("--embed", "wav.scp", "--window", 1.3, "--out", "x.ark")
    names = [line.split()[0] for line in (folder / "x.scp").read_text().splitlines()]
    assert names[:2] == ["utt-1-0000000-0000130", "utt-1-0000100-0000230"]
    name = os.fsdecode(b"caf\xe9.wav")
    (folder / name).symlink_to(folder / "wav/a1.wav")
    assert use("--embed", name, "--out", "x.ark")[0] == 0 and (folder / "x.ark").read_bytes()[:8] == b"caf\xe9.wav"
    (folder / "wav.scp").write_text("utt-1 sox a.wav -t wav - |\n")
    assert "wav.scp line 1 is a command, which is not run" in use("--embed", "wav.scp", "--out", "x.ark")[2]
    assert "--out wav.ark would replace the .scp" in use("--embed", "wav.scp", "--out", "wav.ark")[2]


def test_scores_of_pairs_and_of_all(use, encoder, folder):
    (folder / "pairs.txt").write_text("a0.wav b0.wav\n1 a0.wav a1.wav\nnone.wav a0.wav\n")
    status, printed, complained = use("--score", "pairs.txt", "--root", "wav")
    assert status == 2 and complained == "verify.py: wav/none.wav does not exist\n"
    *printed, unread = printed.splitlines()
    assert unread == "nan none.wav a0.wav"  # a line for each pair
    status, table, _ = use("--matrix", "wav/a0.wav", "wav/b0.wav", "wav/a1.wav")
    rows = [row.split("\t") for row in table.splitlines()]
    assert status == 0 and rows[0] == ["", "wav/a0.wav", "wav/b0.wav", "wav/a1.wav"] and rows[1][0] == "wav/a0.wav"
    for line, other, column in zip(printed, ("b0", "a1"), (2, 3), strict=True):
        score = encoder.verify(folder / "wav/a0.wav", folder / f"wav/{other}.wav").score
        found, *names = line.split()
        assert names == ["a0.wav", f"{other}.wav"] and float(found) == pytest.approx(score, abs=1e-5)
        assert float(rows[1][column]) == float(rows[column][1]) == pytest.approx(score, abs=1e-5)
    (folder / "pairs.txt").write_text("a0.wav\n")
    assert "pairs.txt line 1: expected '<path> <path>', got 'a0.wav'" in use("--score", "pairs.txt")[2]


def test_a_model_when_none_is_given(command, folder, monkeypatch):
    monkeypatch.setattr(verify, "DEFAULT_MODEL", str(folder / "some.model"))
    monkeypatch.chdir(folder)
    status, printed, complained = command(verify, "wav/a1.wav", "wav/a1.wav", "--threshold", "-1")
    assert status == 0 and float(printed.split()[0]) == 1 and complained.startswith(f"model: {folder}/some.model")


def test_gallery(use, encoder, folder):
    """Scores against a speaker are the mean of the scores against that speaker's utterances."""
    use("--enrol", "anna", "wav/a0.wav", "--gallery", "people.npz")
    use("--enrol", "Bo Ö", "wav/b0.wav", "wav/b1.wav", "--gallery", "people.npz")
    _, printed, _ = use("--enrol", "anna", "wav/a1.wav", "--gallery", "people.npz")
    assert printed == "people.npz: anna has 2 utterances; 2 speakers\n"
    expected = {
        np.mean([encoder.verify(folder / "wav/c0.wav", folder / f"wav/{x}{take}.wav").score for take in (0, 1)]): name
        for name, x in (("anna", "a"), ("Bo Ö", "b"))
    }
    expected = sorted(expected.items(), reverse=True)
    for threshold, answer, code in ((-1, expected[0][1], 0), (1, "unknown speaker", 1)):
        status, printed, _ = use("--identify", "wav/c0.wav", "--gallery", "people.npz", "--threshold", threshold)
        first, *others = printed.splitlines()[:3]
        assert status == code and first == f"wav/c0.wav: {answer}"
        for line, (score, name) in zip(others, expected, strict=True):
            assert line[10:] == f"  {name}" and float(line[:10]) == pytest.approx(score, abs=2e-5)


def test_enrolling_side_by_side_loses_nobody(encoder, tmp_path):
    galleries = [Gallery(tmp_path / "new" / "people.npz", encoder) for _ in range(8)]  # all of them empty
    vectors = np.eye(8, encoder.vector_size, dtype=np.float32)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: galleries[i].enrol(f"speaker {i}", vectors[i : i + 1]), range(8)))
        list(pool.map(lambda i: galleries[i].enrol("all", vectors[i : i + 1]), range(8)))
    found = Gallery(tmp_path / "new" / "people.npz", encoder).speakers
    assert len(found) == 9 and all(np.array_equal(found[f"speaker {i}"][0], vectors[i]) for i in range(8))
    assert np.allclose(found["all"][0], vectors.mean(axis=0)) and found["all"][1] == 8


def test_files_that_are_not_a_gallery_of_this_model(use, folder):
    save_model(folder / "other.model", small_network(seed=3), thresholds=THRESHOLDS)
    use("--enrol", "anna", "wav/a0.wav", "--gallery", "g.npz")
    before = (folder / "g.npz").read_bytes()
    complained = use("--enrol", "bo", "wav/b0.wav", "--gallery", "g.npz", model="other.model")[2]
    assert "g.npz was made with another model" in complained
    assert (folder / "g.npz").read_bytes() == before
    assert "none.npz does not exist: enrol speakers first" in use("--identify", "wav", "--gallery", "none.npz")[2]


def test_classify(use, encoder, folder):
    status, printed, complained = use("--classify", "wav/a0.wav", "none.wav", "wav/b0.wav")
    assert status == 2 and complained == "verify.py: none.wav does not exist\n"
    for line, name in zip(printed.splitlines(), ("wav/a0.wav", "wav/b0.wav")):
        speaker, score = encoder.classify(folder / name)
        assert line == f"{score:8.5f}  {speaker}  {name}"


def test_a_failure_is_not_an_answer(use, monkeypatch):
    """A bug of ours does not look like "different speakers"."""
    monkeypatch.setitem(verify.ACTIONS, "compare", lambda *_: 1 / 0)
    status, _, complained = use("wav/a0.wav", "wav/b0.wav")
    assert status == 2 and "ZeroDivisionError" in complained


def test_files_with_odd_names_and_formats(use, folder):
    (folder / "odd").mkdir()
    speech, _ = soundfile.read(folder / "wav/a0.wav")
    soundfile.write(folder / "odd/a b.aiff", speech, 16000)
    with open(bytes(folder / "odd") + b"/\xff.wav", "wb") as file:
        soundfile.write(file, speech, 16000, format="WAV")
    (folder / "odd/._a b.wav").write_bytes(b"\0\5\x16\7")  # left by macOS
    assert use("--embed", "odd", "--out", "o.npz") == (0, "o.npz: 2 embeddings from 2 of 2 files\n", "")
    (folder / "odd/none.wav").write_bytes(b"")
    status, printed, complained = use("--enrol", "anna", "wav", "odd/none.wav", "--gallery", "all.npz")
    assert status == 2 and "anna has 6 utterances; 1 speaker; 1 file could not be read" in printed
    assert complained == "verify.py: odd/none.wav is an empty file\n"


def test_paths_in_lists(use, folder):
    embed_list = "--embed", "paths.txt", "--root", "named", "--out", "o.npz"
    (folder / "named").mkdir()
    for line, complaint in (
        ("a.wav b.wav", "paths.txt line 1: expected '<path>' or '<speaker> <path>', got 'a.wav b.wav'"),
        ("a ../wav/a0.wav", "paths.txt line 1: ../wav/a0.wav leads out of --root"),
    ):  # fmt: skip
        (folder / "paths.txt").write_text(line)
        status, _, complained = use(*embed_list)
        assert status == 2 and complaint in complained
    assert use(*embed_list, "--paths_anywhere")[0] == 0
    (folder / "named/a b.wav").symlink_to(folder / "wav/a0.wav")
    (folder / "paths.txt").write_text("a b.wav\n")
    assert use(*embed_list)[0] == 0 and read(folder / "o.npz")["files"].tolist() == ["named/a b.wav"]
    for name in ("Anna  b.wav", "Anna\u00a0b.wav"):  # not a speaker Anna's b.wav, which is another recording
        (folder / "named" / name).symlink_to(folder / "wav/a0.wav")
        (folder / "paths.txt").write_text(f"{name}\n")
        assert use(*embed_list)[0] == 0 and read(folder / "o.npz")["files"].tolist() == [f"named/{name}"]
    for line in ("Anna  b.wav\ta b.wav\n", "1\tAnna  b.wav \t a b.wav \n"):
        (folder / "paths.txt").write_text(line)
        status, printed, _ = use("--score", "paths.txt", "--root", "named")
        assert status == 0 and printed.split("\t")[1:] == ["Anna  b.wav", "a b.wav\n"]
    for line in ("1\ta0.wav a1.wav\n", "a0.wav\ta1.wav\t\n", "a0.wav \ta1.wav \n"):
        (folder / "paths.txt").write_text(line)
        assert use("--score", "paths.txt", "--root", "wav")[1].split()[1:] == ["a0.wav", "a1.wav"]
    (folder / "wav.scp").write_text("utt-1 wav/a1.wav\nutt-2 wav/a1.wav\n")
    assert "wav.scp line 2: utt-1 has this file, too" in use("--embed", "wav.scp", "--out", "o.npz")[2]


@pytest.mark.parametrize("seconds", [0.25, 301])
def test_silence_is_nobody(use, folder, seconds):
    soundfile.write(folder / "silent.wav", np.zeros(int(seconds * 16000)), 16000)
    use("--enrol", "A", "wav/a0.wav", "--gallery", "people.npz")
    for arguments in (["silent.wav", "silent.wav"], ["--enrol", "X", "silent.wav", "--gallery", "silent.npz"],
                      ["--identify", "silent.wav", "--gallery", "people.npz", "--threshold", 0]):  # fmt: skip
        status, printed, complained = use(*arguments)
        assert status == 2 and "same" not in printed and "silent.wav is silent" in complained
    assert not (folder / "silent.npz").exists()
    assert use("--embed", "silent.wav", "--out", "o.npz")[0] == 0


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["wav/a0.wav"], "give files: two to compare, or some with --embed, --matrix, --enrol NAME, "),
    (["wav/a0.wav", "wav/b0.wav", "--threshold", "0.1%"], "it must be a number from -1 to 1 or 1%"),
    (["wav/a0.wav", "wav/b0.wav", "--out", "x.npz"], "--out is only for embed"),
    (["--embed", "wav"], "--embed needs --out, a file whose name ends in .npz"),
    (["--embed", "wav", "--window", "0", "--out", "x.npz"], "a window of 0.0 s every 0.0 s: both must be above 0"),
    (["--embed", "wav", "--last", "pad", "--start", "1", "--out", "x.npz"], "--step and --last need --window"),
    (["--embed", "wav", "--start", "2", "--end", "1", "--out", "x.npz"], "no excerpt from 2.0 s to 1.0 s"),
    (["--embed", "wav", "--out", "wav/a0.wav"], "--out wav/a0.wav: the file's name must end in .npz or .ark"),
    (["--embed", "wav", "--out", "some.model/x.npz"], "--out some.model cannot be written to"),
    (["--export", "some.model"], "--export some.model: the file's name must end in .onnx"),
    (["--enrol", "wav/a0.wav", "wav/a1.wav", "--gallery", "g.npz"], "--enrol wav/a0.wav: give the speaker's name"),
    (["--identify", "wav/a0.wav"], "--identify needs --gallery"),
    (["--embed", "wav", "--mean", "m.npz", "--out", "x.npz"], "--mean is only for compare and score and matrix and"),
    (["wav/a0.wav", "wav/b0.wav", "--mean", "absent.npz"], "--mean absent.npz does not exist"),
    (["wav/a0.wav", "wav/b0.wav", "--mean", ""], "--mean  does not exist"),
])  # fmt: skip
def test_misuse_gets_one_line(use, arguments, complaint):
    status, _, complained = use(*arguments)
    lines = [line for line in complained.splitlines() if not line.endswith("left out")]  # one for each file
    assert status == 2 and complaint in complained and all(line.startswith("verify.py: ") for line in lines)
    assert len(lines) == 1


def test_export(use, encoder, folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    status, printed, _ = use("--export", "some.onnx")
    assert status == 0 and printed.startswith("some.onnx: waveform (batch, samples >= 257) -> embedding (batch, 192)")
    session = onnxruntime.InferenceSession(folder / "some.onnx")
    assert session.get_modelmeta().custom_metadata_map["cosine_threshold"] == "0.41"
    waveform, _ = soundfile.read(folder / "wav/a1.wav", dtype="float32")
    (found,) = session.run(None, {"waveform": waveform[None]})
    assert relative_error(found[0], encoder.embed(folder / "wav/a1.wav")) < 1e-4


@pytest.mark.parametrize("system", ["speechbrain", "modelscope", "wespeaker", "pyannote", "campplus"])
def test_export_of_every_system(system, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert "at three other lengths" in export_onnx(encoder_of(system), tmp_path / "x.onnx")
