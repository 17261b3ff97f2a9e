"""The demo corpus: what is on disk, that it is the same every time, and that its speakers differ."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import prepareData
from corpora import demo as demoCorpus
from corpora.demo import (
    SAMPLE_RATE,
    Espeak,
    draw_speaker,
    draw_trials,
    make_demo,
    room_response,
    sentences,
    utterance,
)
from tools import InputError, run_command

pytest.importorskip("espeakng_loader")
ROOT = Path(demoCorpus.__file__).parent
TRAIN, EVAL = 3, 8


@pytest.fixture(autouse=True, scope="module")
def little_background():
    """Three files of each kind of noise and room instead of twenty: the tests' corpora take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demoCorpus, "BACKGROUND_FILES", 3)
        yield


@pytest.fixture(scope="module")
def corpus(little_background, tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "corpus", TRAIN, EVAL, seed=3, progress=False)


@pytest.fixture(scope="module")
def fewer(little_background, tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "fewer", 1, 2, seed=3, progress=False)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*.wav")}


def table(corpus):
    with open(corpus / "speakers.tsv", encoding="utf-8") as file:
        return {row["speaker"]: row for row in csv.DictReader(file, delimiter="\t")}


def trials(corpus):
    return [line.split() for line in (corpus / "trials.txt").read_text().splitlines()]


def log_mel(wave):
    """(samples,) -> (frames, 30) log energies of bands even in mel, of frames within 30 dB of the loudest."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 512)[::160] * np.hamming(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.round(700 * (10 ** (np.linspace(0, 2700, 31) / 2595) - 1) / SAMPLE_RATE * 512).astype(int)
    bands = np.stack([power[:, a:max(b, a + 1)].sum(1) for a, b in itertools.pairwise(edges)], axis=1)
    loud = power.sum(1) > power.sum(1).max() / 1000
    return np.log(bands[loud] + 1e-8)


def mean_spectra(speaker, seed=0):
    """(3 sessions, 3 takes, 30) mean log-mel, without its level."""
    spectra = np.array([[log_mel(utterance(seed, speaker, session, take)).mean(0) for take in range(3)]
                        for session in range(3)])
    return spectra - spectra.mean(axis=-1, keepdims=True)


# ---- the same bytes ----------------------------------------------------------------------------------------


def test_another_process_writes_the_same_bytes(corpus, tmp_path):
    script = (f"from corpora import demo as demoCorpus; demoCorpus.BACKGROUND_FILES = 3; "
              f"demoCorpus.make_demo({str(tmp_path / 'again')!r}, {TRAIN}, {EVAL}, 3, progress=False)")
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert contents(tmp_path / "again") == contents(corpus)


def test_an_utterance_does_not_depend_on_what_was_said_before():
    # Breath and Klatt voices, and a Scottish r, whose trill's phase espeak-ng carries on from call to call.
    speakers = [draw_speaker(0, "train", n) for n in range(12)]
    assert any("klatt" in s.timbre for s in speakers) and any("breath" in s.timbre for s in speakers)
    forwards = [utterance(0, speaker, 1, 2) for speaker in speakers]
    backwards = [utterance(0, speaker, 1, 2) for speaker in speakers[::-1]][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(forwards, backwards))


def test_a_speaker_does_not_depend_on_how_many_others_there_are(corpus, fewer):
    mine, few = contents(corpus), contents(fewer)
    some = [name for name in few if name.startswith(("train/", "eval/", "musan/", "rirs/"))]
    assert len(some) > 27
    assert all(few[name] == mine[name] for name in some)


def test_another_seed_gives_another_corpus(corpus, tmp_path):
    other = contents(make_demo(tmp_path / "other", 1, 2, seed=4, progress=False))
    mine = contents(corpus)
    generated = [name for name in other if name.endswith((".wav", ".tsv", "trials.txt"))]
    assert not any(other[name] == mine[name] for name in generated)


# ---- what is on disk ---------------------------------------------------------------------------------------


def test_lists_name_exactly_what_is_on_disk(corpus):
    training = [line.split() for line in (corpus / "train_list.txt").read_text().splitlines()]
    on_disk = files_below(corpus / "train/wav")
    assert {path for _, path in training} == on_disk
    assert len(training) == len(on_disk) == TRAIN * 9
    assert all(path.split("/")[0] == speaker for speaker, path in training)
    tested = {path for _, *pair in trials(corpus) for path in pair}
    assert tested == files_below(corpus / "eval/wav")
    assert len(tested) == EVAL * 9
    for speaker in (corpus / "train/wav").iterdir():
        assert [len(list(session.iterdir())) for session in speaker.iterdir()] == [3, 3, 3]
    for kind in ("noise", "music", "speech"):
        assert len(list((corpus / "musan" / kind).glob("*/*.wav"))) == 3
    for size in ("smallroom", "mediumroom", "largeroom"):
        assert len(list((corpus / "rirs/simulated_rirs" / size).glob("Room001/Room001-*.wav"))) == 3
    assert not list(corpus.rglob("*.part"))
    assert json.loads((corpus / "demo.json").read_text())["complete"] is True
    assert "generated" in (corpus / "README.txt").read_text()


def test_sound_is_16_khz_mono_int16_audible_and_not_clipped(corpus):
    for path in corpus.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "WAV", "PCM_16")
        low, high = (10, 24) if "musan" in path.parts else (0.2, 1.0) if "rirs" in path.parts else (2.5, 4.6)
        assert low <= info.duration <= high, path
        wave = soundfile.read(path)[0]
        assert 0.05 < np.abs(wave).max() <= 0.91, path
        assert abs(wave.mean()) < 0.01, path
        if "rirs" not in path.parts:
            assert np.sqrt(np.mean(wave ** 2)) > 0.01, path


def test_speech_is_well_above_the_noise_and_lasts(corpus):
    for path in corpus.glob("*/wav/*/*/*.wav"):
        wave = soundfile.read(path)[0]
        energy = np.mean(wave[:len(wave) // 400 * 400].reshape(-1, 400) ** 2, axis=1)
        assert 10 * np.log10(energy.mean() / np.percentile(energy, 3)) > 8, path  # the room's tail included
        assert np.mean(energy > energy.mean() / 100) > 0.5, path


def test_the_sides_share_no_speaker(corpus):
    rows = table(corpus)
    sides = {side: [row for row in rows.values() if row["side"] == side] for side in ("train", "eval")}
    for side, some in sides.items():
        assert {row["speaker"] for row in some} == {path.name for path in (corpus / side / "wav").iterdir()}
    assert len(rows) == TRAIN + EVAL
    speakers = [draw_speaker(3, side, n) for side in ("train", "eval", "background") for n in range(40)]
    assert len({speaker.name for speaker in speakers}) == 120
    assert len({(s.pitch, s.tract, s.rate) for s in speakers}) == 120
    assert len({s.timbre for s in speakers}) == 120


# ---- trials ------------------------------------------------------------------------------------------------


def test_trials_are_balanced_and_none_comes_twice(corpus):
    listed = trials(corpus)
    assert len({frozenset(pair) for _, *pair in listed}) == len(listed)
    assert sum(label == "1" for label, *_ in listed) * 2 == len(listed) == 2 * EVAL * 27
    for label, enrol, test in listed:
        same = enrol.split("/")[0] == test.split("/")[0]
        assert same == (label == "1")
        assert not (same and enrol.split("/")[1] == test.split("/")[1]), "a target trial within a session"


def test_half_of_the_non_targets_are_of_one_sex_and_language(corpus):
    rows = table(corpus)
    group = {speaker: (row["sex"], row["language"]) for speaker, row in rows.items()}
    hard = [group[enrol.split("/")[0]] == group[test.split("/")[0]]
            for label, enrol, test in trials(corpus) if label == "0"]
    assert np.mean(hard) == 0.5


def test_trials_are_bounded_and_two_speakers_are_enough():
    many = draw_trials(0, [draw_speaker(0, "eval", n) for n in range(100)])
    assert len(many) == 4000
    two = draw_trials(0, [draw_speaker(0, "eval", n) for n in range(2)])
    assert [line[0] for line in two].count("1") == [line[0] for line in two].count("0") == 27 * 2


# ---- speakers, texts, rooms --------------------------------------------------------------------------------


def test_voices_differ_more_between_speakers_than_between_sessions():
    speakers = [draw_speaker(0, "eval", n) for n in range(8)]  # two of each sex in each of two languages
    spectra = [mean_spectra(speaker).mean(axis=1) for speaker in speakers]

    def distance(one, other):  # between different sessions in any case
        return np.mean([np.linalg.norm(one[a] - other[b]) for a, b in itertools.permutations(range(3), 2)])

    within = np.mean([distance(voice, voice) for voice in spectra])
    between = np.mean([distance(spectra[a], spectra[b]) for a, b in itertools.combinations(range(8), 2)
                       if speakers[a].sex == speakers[b].sex])
    assert within < 0.95 * between


def test_the_pitch_is_the_one_in_the_table():
    lags = np.arange(SAMPLE_RATE // 330, SAMPLE_RATE // 60)
    for n in range(0, 28, 3):
        speaker = draw_speaker(0, "train", n)
        wave = np.concatenate([utterance(0, speaker, session, 0) for session in range(3)])
        frames = np.lib.stride_tricks.sliding_window_view(wave, 1024)[::512] * np.hanning(1024)
        frames = frames[frames.std(axis=1) > frames.std(axis=1).mean()]
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)[:, lags]
        pitch = np.median(SAMPLE_RATE / lags[correlation.argmax(axis=1)])
        assert pitch == pytest.approx(speaker.pitch, rel=0.2)


def test_every_session_has_its_own_channel():
    spectra = mean_spectra(draw_speaker(0, "train", 0))
    pairs = list(itertools.combinations(range(3), 2))
    within = np.mean([np.linalg.norm(spectra[:, a] - spectra[:, b], axis=1) for a, b in pairs])
    across = np.mean([np.linalg.norm(spectra[a] - spectra[b], axis=1) for a, b in pairs])
    assert across > 1.5 * within


@pytest.mark.parametrize("language", demoCorpus.LANGUAGES)
def test_sentences_are_many_and_espeak_reads_them(language):
    texts = list(sentences(language, np.random.default_rng(0)))
    assert len(texts) == len(set(texts)) == 10_000
    assert not any("|" in text or "/" in text or "  " in text or "\n" in text for text in texts)
    assert texts != list(sentences(language, np.random.default_rng(1)))
    with Espeak() as reader:
        assert 1.2 < len(reader.say(texts[0], language, ["pitch 80 120"], 170)) / reader.rate < 8


def test_languages_sound_different():
    spoken = {}
    for language in demoCorpus.LANGUAGES:
        with Espeak() as reader:
            spoken[language] = reader.say("a total animal festival", language, ["pitch 80 120"], 170)
    assert len({wave.tobytes() for wave in spoken.values()}) == len(demoCorpus.LANGUAGES)


def test_utterances_say_different_things(monkeypatch):
    said, say = [], Espeak.say
    monkeypatch.setattr(Espeak, "say", lambda self, text, *rest: said.append(text) or say(self, text, *rest))
    for session in range(3):
        for take in range(3):
            utterance(0, draw_speaker(0, "train", 0), session, take)
    assert len(said) == len(set(said)) >= 9


@pytest.mark.parametrize("size, low, high", [(0, 0.2, 0.35), (1, 0.35, 0.6), (2, 0.6, 0.9)])
def test_rooms_decay_as_they_should(size, low, high):
    for index in (0, 5, 10, 15):  # four rooms
        response = room_response(0, size, index)
        direct = np.abs(response).argmax()
        assert direct > 0 and not response[:direct].any()
        assert response[direct] == pytest.approx(0.9)
        rt60 = (len(response) - direct) / SAMPLE_RATE  # its length, by construction
        assert low <= rt60 <= 1.02 * high
        energy = np.cumsum(response[::-1] ** 2)[::-1]  # Schroeder 1965
        late = 10 * np.log10(energy[direct + 800:] / energy[direct + 800])  # after the early reflections
        measured = 3 * (np.argmax(late < -25) - np.argmax(late < -5)) / SAMPLE_RATE
        assert measured == pytest.approx(rt60, rel=0.2)


@pytest.mark.parametrize("make", [demoCorpus.noise, demoCorpus.music, demoCorpus.background_speech])
def test_background_is_never_silent_and_always_different(make):
    made = [make(0, index) for index in range(6)]
    for wave in made:
        seconds = wave[:len(wave) // SAMPLE_RATE * SAMPLE_RATE].reshape(-1, SAMPLE_RATE)
        assert np.isfinite(wave).all() and np.abs(wave).max() <= 0.9 + 1e-9
        assert np.median(seconds.std(axis=1)) > 0.01
    assert len({wave[:1000].tobytes() for wave in made}) == 6


# ---- again, interrupted, wrong -----------------------------------------------------------------------------


def test_a_second_call_does_nothing(corpus, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    monkeypatch.setattr(demoCorpus, "write_demo", lambda *_: pytest.fail("generated again"))
    assert make_demo(str(corpus), TRAIN, EVAL, seed=3, progress=False) == corpus
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_an_interrupted_generation_is_completed(fewer, tmp_path, monkeypatch):
    write, left = demoCorpus.write_wave, iter(range(20))

    def interrupted(path, wave):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(path, wave)

    monkeypatch.setattr(demoCorpus, "write_wave", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "demo", 1, 2, seed=3, progress=False)
    assert 0 < len(contents(tmp_path / "demo")) < 25
    assert not (tmp_path / "demo/trials.txt").exists()
    monkeypatch.setattr(demoCorpus, "write_wave", write)
    assert contents(make_demo(tmp_path / "demo", 1, 2, seed=3, progress=False)) == contents(fewer)


def test_other_settings_in_the_folder_are_refused(corpus, tmp_path):
    with pytest.raises(InputError, match=r"other settings.*new folder"):
        make_demo(corpus, TRAIN, EVAL, seed=5, progress=False)
    (tmp_path / "demo.json").write_text('{"format": 0, "complete": true}')
    with pytest.raises(InputError, match="other settings"):
        make_demo(tmp_path, TRAIN, EVAL, progress=False)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no demo corpus"):
        make_demo(tmp_path, progress=False)
    with pytest.raises(InputError, match="is no demo corpus"):
        make_demo(tmp_path / "thesis.txt", progress=False)
    for broken in ("", "[]", "{}", '{"format": 1'):
        (tmp_path / "demo.json").write_text(broken)
        with pytest.raises(InputError, match="is no demo corpus"):
            make_demo(tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", "demo.json"}


@pytest.mark.parametrize("settings", [{"train_speakers": 0}, {"eval_speakers": 1}, {"train_speakers": 10_000},
                                      {"eval_speakers": 401}, {"seed": -1}])
def test_impossible_settings_are_refused(tmp_path, settings):
    with pytest.raises(InputError, match=str(next(iter(settings.values())))):
        make_demo(tmp_path / "demo", **settings, progress=False)
    assert not (tmp_path / "demo").exists()


def test_a_missing_espeak_is_named_with_its_mend(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"pip install -r requirements\.txt"):
        make_demo(tmp_path / "demo", 1, 2, progress=False)
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the demo corpus"):
        make_demo(tmp_path / "file" / "demo", 1, 2, progress=False)


def test_the_command_line_generates_or_says_in_one_line_why_not(tmp_path, monkeypatch, capsys):
    def command_line(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepareData.py", *arguments])
        with pytest.raises(SystemExit) as ending:
            run_command(prepareData.main)
        return ending.value.code or 0, capsys.readouterr()

    demo = str(tmp_path / "demo")
    code, said = command_line("--demo", demo, "--train_speakers", "1", "--eval_speakers", "2", "--seed", "9")
    assert code == 0 and said.out.startswith(demo) and (tmp_path / "demo/trials.txt").exists()
    assert "demo corpus:" in said.err and "/45 " in said.err
    code, said = command_line("--demo", demo)
    assert code == 2 and said.out == ""
    assert said.err.startswith("prepareData.py: ") and said.err.count("\n") == 1
    code, said = command_line()
    assert code == 2 and "--demo" in said.err
