"""The demo corpus: synthetic speech for the whole recipe, in the layouts of VoxCeleb, MUSAN and RIRS_NOISES.

espeak-ng (PyPI package espeakng-loader) reads sentences of a template grammar. Each speaker has a random voice: pitch,
frequency, height and width of every formant, glottal source, breath, rate, vocal-tract length. Every file is a function
of the seed and its position, not of the files generated before it.
"""

import _ctypes
import ctypes
import importlib.util
import itertools
import json
import os
import pathlib
import tempfile
import threading
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.signal
import soundfile

from corpora.audio import SAMPLE_RATE
from tools import InputError, check_writable, in_order, progress_bar, whole_file, write_text

SESSIONS, TAKES = 3, 3  # utterances of a speaker: sessions x takes
BACKGROUND_FILES = 20  # of each category of MUSAN and each size of room
FADE = SAMPLE_RATE // 50  # 20 ms, against clicks
ONE_AT_A_TIME = threading.Lock()  # espeak-ng has a single state; it takes half of the time

# Language or accent -> (espeak-ng's file of it, grammar).
LANGUAGES = {
    "en-us": ("gmw/en-US", "en"), "en-gb": ("gmw/en", "en"), "en-gb-scotland": ("gmw/en-GB-scotland", "en"),
    "de": ("gmw/de", "de"), "fr": ("roa/fr", "fr"), "es": ("roa/es", "es"), "it": ("roa/it", "it"),
}  # fmt: skip

# {grammar: slots}. A sentence has one of the ten entries of each of the four slots: 10,000 sentences per grammar.
GRAMMAR = json.loads(pathlib.Path(__file__).with_name("demo_sentences.json").read_text(encoding="utf-8"))


class Speaker(NamedTuple):
    """One synthetic speaker, with the settings of the voice."""

    name: str
    side: str  # train | eval | background (MUSAN's speech)
    sex: str  # f | m
    language: str  # key of LANGUAGES
    index: int  # in its side, from 0
    tract: float  # factor of all frequencies, by resampling; 1.1: the vocal tract is 10 % shorter
    rate: float  # words per minute
    pitch: float  # Hz, mean fundamental
    span: float  # range of the intonation, +- share of the pitch
    timbre: str  # further lines of the espeak-ng voice file, joined by "; "

    def path(self, session, take):
        return f"{self.name}/session{session + 1}/{take + 1:05d}.wav"


def generator(seed, purpose, *position):
    """The numpy Generator for one purpose (see below) at one position, independent of all others."""
    purposes = ("speaker", "text", "channel", "utterance", "trials", "noise", "music", "speech", "rir")
    # + 1, because numpy treats the seeds [1] and [1, 0] as equal.
    return np.random.default_rng([seed, purposes.index(purpose) + 1, *(number + 1 for number in position)])


def draw_speaker(seed, side, index):
    """The Speaker of a side with this index; neighbours share sex and language, so there are hard trials."""
    sides = ("train", "eval", "background")
    rng = generator(seed, "speaker", sides.index(side), index)
    sex = "fm"[index // 2 % 2]
    language = tuple(LANGUAGES)[index // 4 % len(LANGUAGES)]
    # Women: pitch two thirds of an octave to an octave higher, tract about 15 % shorter (Peterson and Barney 1952).
    pitch = rng.uniform(165, 240) if sex == "f" else rng.uniform(85, 140)
    tract = rng.uniform(1.04, 1.20) if sex == "f" else rng.uniform(0.88, 1.05)
    # Of each formant, in % of espeak-ng's: frequency, height, width. Klatt: another glottal pulse.
    position, height, width = (np.clip(rng.normal(100, spread, 9), 70, 140) for spread in (4, 10, 10))
    timbre = [f"formant {k} {position[k]:.0f} {height[k]:.0f} {width[k]:.0f}" for k in range(9)]
    timbre += [f"voicing {rng.integers(85, 116)}", f"consonants {rng.integers(85, 116)}"]
    timbre += ["klatt 3"] * int(rng.random() < 0.25)
    timbre += ["breath 0 3 3 3 3 3 2 2; breathw 150 150 200 200 400 400 600 600"] * int(rng.random() < 0.3)
    name = f"id{10001 + 10000 * sides.index(side) + index}"
    rate, span = round(rng.uniform(140, 200), 1), round(rng.uniform(0.10, 0.25), 3)
    return Speaker(name, side, sex, language, index, round(tract, 4), rate, round(pitch, 1), span, "; ".join(timbre))


def read_aloud(texts, language, voice, rate, seconds):
    """Speech of espeak-ng of this duration: (samples,) float64 at its sample rate.

    texts: iterator of sentences; language: key of LANGUAGES; voice: further lines of an espeak-ng voice file; rate:
    words per minute. The library is loaded and unloaded here (3 ms), because it keeps state between sentences.
    """
    import espeakng_loader

    data, chunks = pathlib.Path(espeakng_loader.get_data_path()), []
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    # 2: synchronous, samples to the callback; 0x8000: return errors instead of exiting
    own_rate = library.espeak_Initialize(2, 0, os.fsencode(data), 0x8000)

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, _):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(receive)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath and some consonants use rand()
    definition = (data / "lang" / LANGUAGES[language][0]).read_text(encoding="utf-8")
    pieces, needed = [], duration(seconds, own_rate)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "voice"
        path.write_text("\n".join([definition, *voice, ""]), encoding="utf-8")
        while sum(map(len, pieces)) < needed:
            chunks.clear()
            library.espeak_SetVoiceByFile(os.fsencode(path))
            library.espeak_SetParameter(1, round(rate), 0)
            library.espeak_SetParameter(2, 50, 0)  # half volume: strong formants would clip
            text = next(texts).encode()
            library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, 1, None, None)  # the last 1: UTF-8
            sound = np.concatenate(chunks).astype(np.float64)
            loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
            pieces += [sound[loud[0] : loud[-1] + 1], np.zeros(own_rate // 5)]
    library.espeak_Terminate()
    unload = _ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose  # CDLL itself never unloads
    unload(library._handle)
    return np.concatenate(pieces)[:needed]


def sentences(language, rng):
    """Yield all sentences of a language in random order."""
    slots = GRAMMAR[LANGUAGES[language][1]]
    shape = tuple(len(slot) for slot in slots)
    for number in rng.permutation(np.prod(shape)):
        yield " ".join(slot[i] for slot, i in zip(slots, np.unravel_index(number, shape))) + "."


def duration(seconds, rate=SAMPLE_RATE):
    """Number of samples, up to 1 % longer so that it has small factors, for a ten times faster FFT."""
    return scipy.fft.next_fast_len(round(seconds * rate))


def within_range(wave):
    """The waveform, scaled to a peak of 0.9 if it is higher."""
    return wave / max(1.0, np.abs(wave).max() / 0.9)


def coloured_noise(rng, samples, slope):
    """Noise of RMS 1 with amplitude proportional to frequency ** slope (0: white, -0.5: pink, -1: brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 20.0) ** slope
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))


def speech(speaker, texts, seconds, gain_rng, rng, eq_spread):
    """Speech of a Speaker, equalised by gains of gain_rng (deviation eq_spread, dB): (samples,) float64, RMS 1."""
    pitch, span, rate = rng.normal(1, (0.06, 0.2, 0.1)) * (speaker.pitch, speaker.span, speaker.rate)
    low, high = (pitch / speaker.tract * (1 + sign * max(span, 0.03)) for sign in (-1, 1))
    voice = [f"pitch {low:.0f} {high:.0f}", *speaker.timbre.split("; ")]
    samples = duration(seconds)
    with ONE_AT_A_TIME:
        source = read_aloud(texts, speaker.language, voice, rate / speaker.tract, samples / SAMPLE_RATE * speaker.tract)
    # In the spectrum: resample, which also scales all frequencies by ``tract``, and equalise.
    spectrum = np.fft.rfft(source)[: samples // 2 + 1]
    edges = 700 * (10 ** (np.linspace(0, 2840, 9) / 2595) - 1)  # Hz: nine points from 0 to 8 kHz, even in mel
    gain = np.interp(np.linspace(0, 8000, len(spectrum)), edges, gain_rng.normal(0, eq_spread, 9))  # dB
    spectrum *= 10 ** (gain / 20)
    spectrum[: round(50 * seconds)] = 0  # espeak-ng's rumble below 50 Hz
    wave = np.fft.irfft(spectrum, samples)
    wave[:FADE] *= np.linspace(0, 1, FADE)
    wave[-FADE:] *= np.linspace(1, 0, FADE)
    return wave / np.sqrt(np.mean(wave**2))


def utterance(seed, speaker, session, take):
    """One utterance, 2.5 to 4.5 s: (samples,) float64 within +-1. Each session has its own channel."""
    position = (("train", "eval").index(speaker.side), speaker.index)
    channel = generator(seed, "channel", *position, session)
    rng = generator(seed, "utterance", *position, session, take)
    # Each utterance has eight sentences of its own, of which it uses as many as necessary.
    texts = sentences(speaker.language, generator(seed, "text", *position))
    texts = itertools.islice(texts, 8 * (session * TAKES + take), None)
    level, snr, slope = channel.uniform(-30, -20), channel.uniform(16, 30), channel.uniform(-1, 0)
    wave = speech(speaker, texts, rng.uniform(2.5, 4.5), channel, rng, eq_spread=4)
    room = room_response(seed, *channel.integers((0, BACKGROUND_FILES), (2, 1000)))
    wave = scipy.signal.fftconvolve(wave, room)[: len(wave)]
    wave /= np.sqrt(np.mean(wave**2))
    wave += 10 ** (-snr / 20) * coloured_noise(rng, len(wave), slope)
    return within_range(wave * 10 ** (level / 20))


def background_speech(seed, index):
    """Speech for MUSAN, 10 to 20 s: one background speaker or, in every third file, four to six at once."""
    rng = generator(seed, "speech", index)
    seconds, voices = rng.uniform(10, 20), rng.integers(4, 7) if index % 3 == 2 else 1
    speakers = [draw_speaker(seed, "background", n) for n in rng.choice(40, voices, replace=False)]
    waves = [speech(s, sentences(s.language, rng), seconds, rng, rng, eq_spread=2) for s in speakers]
    return within_range(0.08 * sum(waves) / np.sqrt(voices))


def noise(seed, index):
    """Noise for MUSAN, 10 to 20 s: in turn steady, hum, knocks, wind, machine."""
    rng = generator(seed, "noise", index)
    samples = duration(rng.uniform(10, 20))
    time = np.arange(samples) / SAMPLE_RATE
    floor = coloured_noise(rng, samples, rng.uniform(-1, 0.2))
    kind, wave = index % 5, floor  # 0: steady, like rain or air conditioning
    if kind == 1:  # hum: mains and its harmonics
        phase = 2 * np.pi * rng.choice([50, 60]) * time
        wave = 0.2 * floor + sum(rng.uniform(0, 1) / k * np.sin(k * phase) for k in range(1, 20))
    elif kind == 2:  # knocks, keys, dishes: decaying rings at random moments
        wave = 0.02 * floor
        for start in rng.integers(0, samples - SAMPLE_RATE // 2, rng.integers(15, 80)):
            ring = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
            tone = np.sin(2 * np.pi * rng.uniform(200, 5000) * ring) + rng.standard_normal(len(ring))
            tone *= rng.uniform(0.3, 2) * np.exp(-ring / rng.uniform(0.005, 0.08))
            wave[start : start + len(ring)] += tone
    elif kind == 3:  # wind: low noise in gusts of seconds
        gusts = np.interp(time, np.arange(22), rng.uniform(0.1, 1, 22) ** 2)
        wave = coloured_noise(rng, samples, -1.2) * gusts + 0.02 * floor
    elif kind == 4:  # machine: noise beating with the turns of an engine
        turns = rng.uniform(3, 30)
        wave = floor * (1 + 0.9 * np.sin(2 * np.pi * turns * time)) + np.sin(2 * np.pi * 4 * turns * time)
    return within_range(0.1 * wave / np.sqrt(np.mean(wave**2)))


def music(seed, index):
    """Music for MUSAN, 10 to 20 s: one chord per bar and a melody of eighths, major or minor."""
    rng = generator(seed, "music", index)
    beat = 60 / rng.uniform(70, 140)
    bars = int(rng.uniform(10, 20) / (4 * beat)) + 1
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.5 else [0, 2, 3, 5, 7, 8, 10])
    tonic, roll_off, decay = rng.uniform(90, 180), rng.uniform(0.8, 2), rng.uniform(0.2, 2)
    wave = np.zeros(duration((4 * bars + 1) * beat))

    def play(degree, start, beats, loudness):
        time = np.arange(int(beats * beat * SAMPLE_RATE)) / SAMPLE_RATE
        frequency = tonic * 2 ** ((scale[degree % 7] + 12 * (degree // 7)) / 12)
        tone = sum(k**-roll_off * np.sin(2 * np.pi * k * frequency * time) for k in range(1, 9))
        attack, release = np.clip(time / 0.01, 0, 1), np.clip((time[-1] - time) / 0.03, 0, 1)
        begin = int(start * beat * SAMPLE_RATE)
        wave[begin : begin + len(time)] += loudness * tone * (attack * np.exp(-time / decay) * release)

    for bar in range(bars):
        root = rng.choice([0, 3, 4, 5])
        for degree in (root, root + 2, root + 4):
            play(degree, 4 * bar, 4, 0.5)
        for eighth in np.flatnonzero(rng.random(8) < 0.7):
            play(rng.integers(7, 18), 4 * bar + eighth / 2, rng.choice([0.5, 1]), 1.0)
    return within_range(0.1 * wave / np.sqrt(np.mean(wave**2)))


def room_response(seed, size, index):
    """Response of a simulated room of size 0, 1 or 2: (samples,) float64, peak 0.9; five per room share its RT60."""
    low, high = ((0.2, 0.35), (0.35, 0.6), (0.6, 0.9))[size]
    rt60 = generator(seed, "rir", size, index // 5).uniform(low, high)
    rng = generator(seed, "rir", size, index // 5, index % 5)
    direct = int(rng.uniform(0.5, 2 + 3 * size) / 343 * SAMPLE_RATE)
    time = np.arange(duration(rt60)) / SAMPLE_RATE  # since the direct path
    decay = 10 ** (-3 * time / rt60)
    tail = coloured_noise(rng, len(time), -0.3) * decay * np.minimum(time / 0.01, 1)  # diffuse after 10 ms
    early = rng.integers(10, int(0.05 * SAMPLE_RATE), 12)
    tail *= 10 ** (-rng.uniform(0, 9) / 20) / np.sqrt(np.sum(tail**2))  # direct 0 to 9 dB above the tail
    tail[early] += rng.uniform(0.1, 0.4, 12) * rng.choice([1, 1, -1], 12) * decay[early]
    tail[0] = 1
    response = np.concatenate([np.zeros(direct), tail])
    return 0.9 * response / np.abs(response).max()


def draw_trials(seed, speakers):
    """Trial lines, half of them targets, across sessions; half of the non-targets have the same sex and language."""
    rng = generator(seed, "trials")
    keys = list(itertools.product(range(len(speakers)), range(SESSIONS), range(TAKES)))
    speaker, session, _ = np.array(keys).T
    cell = np.array([f"{s.sex} {s.language}" for s in speakers])[speaker]
    a, b = np.triu_indices(len(keys), 1)  # every pair once
    same, hard = speaker[a] == speaker[b], cell[a] == cell[b]
    target = rng.permutation(np.flatnonzero(same & (session[a] != session[b])))[:2000]
    easy = rng.permutation(np.flatnonzero(~same & ~hard))[: len(target)]
    difficult = rng.permutation(np.flatnonzero(~same & hard))[: max(len(target) // 2, len(target) - len(easy))]
    chosen = np.concatenate([target, difficult, easy[: len(target) - len(difficult)]])
    paths = [speakers[n].path(session, take) for n, session, take in keys]
    return [f"{int(same[i])} {paths[a[i]]} {paths[b[i]]}" for i in np.sort(chosen)]


def make_demo(folder, train_speakers=160, eval_speakers=40, seed=0):
    """Generate the demo corpus in a folder, unless it exists -> the folder.

    The same settings give the same bytes. An interrupted generation starts again (half a minute). InputError for a
    folder with other content, or if espeak-ng is not installed.
    """
    folder = pathlib.Path(folder)
    if not importlib.util.find_spec("espeakng_loader"):
        raise InputError("--demo needs espeak-ng: pip install -r requirements.txt")
    check_writable(folder, "--demo")
    settings = {"format": 1, "train_speakers": train_speakers, "eval_speakers": eval_speakers, "seed": seed}
    begun, finished = (json.dumps({**settings, "complete": complete}) + "\n" for complete in (False, True))
    found = (folder / "demo.json").read_text() if (folder / "demo.json").exists() else ""
    if found == finished:
        return folder
    if found != begun and any(folder.iterdir()):
        raise InputError(f"{folder} has other content: give a new folder")
    write_text(folder / "demo.json", begun)
    training = [draw_speaker(seed, "train", n) for n in range(train_speakers)]
    evaluation = [draw_speaker(seed, "eval", n) for n in range(eval_speakers)]
    takes = list(itertools.product(range(SESSIONS), range(TAKES)))
    # (path, function, its arguments) of every audio file
    waves = [(f"{speaker.side}/wav/{speaker.path(*take)}", utterance, speaker, *take)
             for speaker in training + evaluation for take in takes]  # fmt: skip
    for n in range(BACKGROUND_FILES):
        for kind, make in (("noise", noise), ("music", music), ("speech", background_speech)):
            waves.append((f"musan/{kind}/demo/{kind}-demo-{n:04d}.wav", make, n))
        for size, name in enumerate(("smallroom", "mediumroom", "largeroom")):
            room = f"Room{n // 5 + 1:03d}"
            waves.append((f"rirs/simulated_rirs/{name}/{room}/{room}-{n % 5 + 1:05d}.wav", room_response, size, n))

    def write(wave):
        path, make, *position = wave
        samples = np.round(make(seed, *position) * 32767).astype(np.int16)
        with whole_file(folder / path, sync=False) as file:
            soundfile.write(file, samples, SAMPLE_RATE, format="WAV")

    written = in_order(write, waves, threads=2)
    for _ in progress_bar(iterable=written, total=len(waves), desc="demo corpus", unit="file"):
        pass

    lines = [f"{speaker.name} {speaker.path(*take)}\n" for speaker in training for take in takes]
    write_text(folder / "train_list.txt", "".join(lines))
    write_text(folder / "trials.txt", "\n".join(draw_trials(seed, evaluation)) + "\n")
    write_text(folder / "demo.json", finished)
    return folder


def demo_flags(folder):
    """{flag: path} for training and evaluation with the demo corpus in a folder."""
    return {
        "train_list": f"{folder}/train_list.txt", "train_path": f"{folder}/train/wav",
        "eval_list": [f"{folder}/trials.txt"], "eval_path": f"{folder}/eval/wav",
        "musan_path": f"{folder}/musan", "rir_path": f"{folder}/rirs",
    }  # fmt: skip
