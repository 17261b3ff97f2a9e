"""The demo corpus: what is on disk, that it is the same every time, and that its speakers differ."""

import sys

import numpy as np
import pytest
import soundfile

import prepareData
from corpora import demo as module
from corpora.demo import draw_speaker, draw_trials, make_demo, utterance
from tools import InputError

pytest.importorskip("espeakng_loader")
TRAIN, EVAL = 3, 8


@pytest.fixture(autouse=True, scope="module")
def little_background():
    """Three files of each kind of noise and room instead of twenty: the tests' corpora take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BACKGROUND_FILES", 3)
        yield


@pytest.fixture(scope="module")
def corpus(little_background, tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "corpus", TRAIN, EVAL, seed=3)


@pytest.fixture(scope="module")
def fewer(little_background, tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "fewer", 1, 2, seed=3)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trials(corpus):
    return [line.split() for line in (corpus / "trials.txt").read_text().splitlines()]


def test_an_utterance_does_not_depend_on_what_was_said_before():
    # Breath and Klatt voices, and a Scottish r, whose trill's phase espeak-ng carries on from call to call.
    speakers = [draw_speaker(0, "train", n) for n in range(12)]
    assert any("klatt" in s.timbre for s in speakers) and any("breath" in s.timbre for s in speakers)
    forwards = [utterance(0, speaker, 1, 2) for speaker in speakers]
    backwards = [utterance(0, speaker, 1, 2) for speaker in speakers[::-1]][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(forwards, backwards))


def test_a_file_depends_on_the_seed_and_not_on_how_many_speakers_there_are(corpus, fewer, tmp_path):
    mine, few = contents(corpus), contents(fewer)
    audio = [name for name in few if name.endswith(".wav")]
    assert len(audio) > 27 and all(few[name] == mine[name] for name in audio)
    other = contents(make_demo(tmp_path / "other", 1, 2, seed=4))
    assert not any(other[name] == few[name] for name in audio)


def test_lists_name_exactly_what_is_on_disk(corpus):
    def on_disk(side):
        folder = corpus / side / "wav"
        return {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*.wav")}

    training = [line.split() for line in (corpus / "train_list.txt").read_text().splitlines()]
    assert {path for _, path in training} == on_disk("train") and len(training) == TRAIN * 9
    assert all(path.split("/")[0] == speaker for speaker, path in training)
    tested = {path for _, *pair in trials(corpus) for path in pair}
    assert tested == on_disk("eval") and len(tested) == EVAL * 9
    assert not {speaker for speaker, _ in training} & {path.split("/")[0] for path in tested}
    assert len(list((corpus / "musan").glob("*/*/*.wav"))) == len(list((corpus / "rirs").glob("*/*/*/*.wav"))) == 9
    assert not list(corpus.rglob("*.part"))


def test_sound_is_16_khz_mono_int16_audible_and_not_clipped(corpus):
    for path in corpus.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "WAV", "PCM_16")
        low, high = (10, 24) if "musan" in path.parts else (0.2, 1.0) if "rirs" in path.parts else (2.5, 4.6)
        assert low <= info.duration <= high, path
        wave = soundfile.read(path)[0]
        assert 0.05 < np.abs(wave).max() <= 0.91 and abs(wave.mean()) < 0.01, path
        assert "rirs" in path.parts or np.sqrt(np.mean(wave**2)) > 0.01, path


def test_trials_are_balanced_and_half_of_the_non_targets_are_hard(corpus):
    speakers = [draw_speaker(3, "eval", number) for number in range(EVAL)]
    group = {speaker.name: (speaker.sex, speaker.language) for speaker in speakers}
    listed, hard = trials(corpus), []
    assert len({frozenset(pair) for _, *pair in listed}) == len(listed)
    assert sum(label == "1" for label, *_ in listed) * 2 == len(listed) == 2 * EVAL * 27
    for label, *pair in listed:
        (one, session, _), (other, other_session, _) = (path.split("/") for path in pair)
        assert (one == other) == (label == "1") and (label == "0" or session != other_session)
        hard += [group[one] == group[other]] * (label == "0")
    assert np.mean(hard) == 0.5
    assert len(draw_trials(0, [draw_speaker(0, "eval", n) for n in range(100)])) == 4000


def test_a_finished_corpus_is_left_alone_and_an_interrupted_one_completed(fewer, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in fewer.rglob("*.*")}
    write, left = soundfile.write, iter(range(20))

    def interrupted(*arguments, **settings):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments, **settings)

    monkeypatch.setattr(soundfile, "write", interrupted)
    assert make_demo(fewer, 1, 2, seed=3) == fewer
    assert {path: path.stat().st_mtime_ns for path in fewer.rglob("*.*")} == before
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "demo", 1, 2, seed=3)
    monkeypatch.setattr(soundfile, "write", write)
    assert contents(make_demo(tmp_path / "demo", 1, 2, seed=3)) == contents(fewer)


def test_mistakes_get_one_line(corpus, tmp_path, command, monkeypatch):
    (tmp_path / "thesis.txt").write_text("mine")
    for folder, complaint in ((corpus, "other content"), (tmp_path, "has other content")):
        status, printed, said = command(prepareData, "--demo", folder)
        assert status == 2 and not printed and complaint in said and said.strip().count("\n") == 0
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"pip install -r requirements\.txt"):
        make_demo(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
