"""The demo corpus: generated speech on which the whole recipe runs. `python prepareData.py --demo DIR` writes it.

It is a small VoxCeleb, with MUSAN and RIRS_NOISES beside it, in their own layouts, for
seeing the whole recipe work without downloading a recording of anybody. The speech is synthetic: espeak-ng
(PyPI package espeakng-loader) reads sentences of a template grammar. A speaker is a voice file of our own:
pitch, the position, height and width of every formant, glottal source, breath, rate, vocal-tract length.

Every file is a function of (seed, position) alone, never of what was generated before it.
"""

import _ctypes
import ctypes
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.signal
import soundfile

from corpora.audio import SAMPLE_RATE
from tools import InputError, progress_bar, whole_file, write_text

FORMAT_VERSION = 1  # raise it when the same settings begin to give other files
SESSIONS, TAKES = 3, 3  # utterances of a speaker: sessions x takes
BACKGROUND_FILES = 20  # of each kind of MUSAN and each size of room
MAX_TRIALS = 2000  # of each kind, target and non-target
FADE = SAMPLE_RATE // 50  # 20 ms: nothing begins or ends with a click

# Language or accent -> (file of espeak-ng that defines it, grammar it reads).
LANGUAGES = {
    "en-us": ("gmw/en-US", "en"),
    "en-gb": ("gmw/en", "en"),
    "en-gb-scotland": ("gmw/en-GB-scotland", "en"),
    "de": ("gmw/de", "de"),
    "fr": ("roa/fr", "fr"),
    "es": ("roa/es", "es"),
    "it": ("roa/it", "it"),
}

# A sentence takes one of the ten entries of each of the four slots: 10 000 sentences per grammar.
GRAMMAR = {
    "en": """
        the young baker|my neighbour|our teacher|the old captain|a quiet doctor|her cousin|the night guard
        |your brother|the happy farmer|a famous painter
        / carefully opens|never forgets|often talks about|quickly hides|proudly shows|wants to sell
        |is looking for|has just found|always remembers|would rather paint
        / the broken window|a yellow bicycle|six small boxes|the letter from home|a jar of honey
        |their wooden boat|the third chapter|an enormous map|two heavy suitcases|the garden gate
        / before breakfast|near the river|on a rainy Thursday|without saying why|under the stone bridge
        |in the afternoon|while the others sleep|at the railway station|just for fun|after the long winter""",
    "de": """
        der junge Bäcker|meine Nachbarin|unser Lehrer|die alte Kapitänin|ein stiller Arzt|ihre Cousine
        |der Wächter|dein Bruder|die fröhliche Bäuerin|ein bekannter Maler
        / öffnet|vergisst|versteckt|zeigt|verkauft|sucht|findet|beschreibt|zeichnet|holt
        / heute früh|nach dem langen Winter|ohne ein Wort|am Donnerstag|unter der Brücke|jeden Nachmittag
        |vor dem Frühstück|gleich am Bahnhof|zum Spaß|neben dem Fluss
        / das kaputte Fenster|ein gelbes Fahrrad|sechs kleine Kisten|den Brief von zu Hause|ein Glas Honig
        |das hölzerne Boot|das dritte Kapitel|eine riesige Landkarte|zwei schwere Koffer|das Gartentor""",
    "fr": """
        le jeune boulanger|ma voisine|notre professeur|la vieille capitaine|un médecin tranquille
        |sa cousine|le gardien de nuit|ton frère|la fermière joyeuse|un peintre célèbre
        / ouvre|oublie toujours|cache vite|montre fièrement|veut vendre|cherche encore|trouve enfin|décrit
        |regarde souvent|dessine
        / la fenêtre cassée|un vélo jaune|six petites boîtes|la lettre de la maison|un pot de miel
        |le bateau en bois|le troisième chapitre|une carte énorme|deux valises lourdes|la porte du jardin
        / avant le déjeuner|près de la rivière|un jeudi de pluie|sans dire pourquoi|sous le pont de pierre
        |dans l'après-midi|pendant que tout le monde dort|à la gare|pour s'amuser|après le long hiver""",
    "es": """
        el joven panadero|mi vecina|nuestro maestro|la vieja capitana|un médico tranquilo|su prima
        |el guardia|tu hermano|la alegre granjera|un pintor famoso
        / abre con cuidado|siempre olvida|esconde deprisa|enseña con orgullo|quiere vender|todavía busca
        |por fin encuentra|describe|mira a menudo|dibuja
        / la ventana rota|una bicicleta amarilla|seis cajas pequeñas|la carta de su casa|un tarro de miel
        |el barco de madera|el tercer capítulo|un mapa enorme|dos maletas pesadas|la puerta del jardín
        / antes del desayuno|cerca del río|un jueves de lluvia|sin decir por qué|bajo el puente de piedra
        |por la tarde|mientras los demás duermen|en la estación de tren|para divertirse
        |después del invierno""",
    "it": """
        il giovane fornaio|la mia vicina|il nostro maestro|la vecchia capitana|un medico tranquillo
        |sua cugina|il guardiano notturno|tuo fratello|la contadina allegra|un pittore famoso
        / apre con cura|dimentica sempre|nasconde in fretta|mostra con orgoglio|vuole vendere|cerca ancora
        |trova finalmente|descrive|guarda spesso|disegna
        / la finestra rotta|una bicicletta gialla|sei piccole scatole|la lettera da casa
        |un vasetto di miele|la barca di legno|il terzo capitolo|una mappa enorme|due valigie pesanti
        |il cancello del giardino
        / prima di colazione|vicino al fiume|un giovedì di pioggia|senza dire perché
        |sotto il ponte di pietra|nel pomeriggio|mentre gli altri dormono|alla stazione|per divertirsi
        |dopo il lungo inverno""",
}


class Speaker(NamedTuple):
    """One synthetic speaker: what `speakers.tsv` tells of it, and the voice that espeak-ng reads."""

    name: str
    side: str  # train | eval | background (MUSAN's speech)
    sex: str  # f | m
    language: str  # key of LANGUAGES
    index: int  # position in its side, from 0
    tract: float  # every frequency times this, by resampling: 1.1 is a vocal tract 10 % shorter
    rate: float  # words per minute
    pitch: float  # Hz, mean fundamental
    span: float  # the intonation's reach, +- share of the pitch
    timbre: str  # further lines of the espeak-ng voice file, joined by "; "


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Random numbers for one position of one purpose (one of the names below), independent of all others."""
    purposes = ("speaker", "text", "channel", "utterance", "trials", "noise", "music", "speech", "rir")
    # +1: trailing zeros would not change the entropy, and (1) and (1, 0) would be the same generator
    return np.random.default_rng([seed, purposes.index(purpose) + 1, *(number + 1 for number in position)])


def draw_speaker(seed: int, side: str, index: int) -> Speaker:
    """The `index`-th speaker of a side; neighbours share sex and language, so hard trials always exist."""
    sides = ("train", "eval", "background")
    rng = generator(seed, "speaker", sides.index(side), index)
    sex = "fm"[index // 2 % 2]
    language = tuple(LANGUAGES)[index // 4 % len(LANGUAGES)]
    # Women: two thirds of an octave to an octave higher, tracts about 15 % shorter (Peterson, Barney 1952).
    pitch = rng.uniform(165, 240) if sex == "f" else rng.uniform(85, 140)
    tract = rng.uniform(1.04, 1.20) if sex == "f" else rng.uniform(0.88, 1.05)
    # Per formant, in % of espeak-ng's own: position, height, width. Klatt: another glottal pulse.
    position, height, width = (np.clip(rng.normal(100, spread, 9), 70, 140) for spread in (4, 10, 10))
    timbre = [f"formant {k} {position[k]:.0f} {height[k]:.0f} {width[k]:.0f}" for k in range(9)]
    timbre += [f"voicing {rng.integers(85, 116)}", f"consonants {rng.integers(85, 116)}"]
    timbre += ["klatt 3"] * int(rng.random() < 0.25)
    timbre += ["breath 0 3 3 3 3 3 2 2; breathw 150 150 200 200 400 400 600 600"] * int(rng.random() < 0.3)
    name = f"id{10001 + 10000 * sides.index(side) + index}"
    return Speaker(name, side, sex, language, index, round(tract, 4), round(rng.uniform(140, 200), 1),
                   round(pitch, 1), round(rng.uniform(0.10, 0.25), 3), "; ".join(timbre))


class Espeak:
    """espeak-ng by ctypes: `with Espeak() as reader: reader.say(...)`.

    Its library carries state from one sentence to the next (flutter, the phase of trilled r's) that nothing
    resets but loading it anew. So it is loaded on entering (3 ms) and unloaded on leaving: what is said
    depends only on what was said since. One at a time. Raises InputError where espeak-ng is not installed or
    broken.
    """

    def __enter__(self) -> "Espeak":
        try:
            import espeakng_loader

            self.data = pathlib.Path(espeakng_loader.get_data_path())
            self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(f"no espeak-ng ({error}): pip install -r requirements.txt") from None
        # 2: synchronous, samples to the callback; 0x8000: report a failure instead of ending the process
        self.rate = self.library.espeak_Initialize(2, 0, os.fsencode(self.data), 0x8000)
        if self.rate <= 0:
            raise InputError(f"espeak-ng cannot read its voices in {self.data}; reinstall espeakng-loader")
        self.library.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
                                              ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
        self.folder = tempfile.TemporaryDirectory()  # for the voice file
        self.chunks: list[np.ndarray] = []
        samples = ctypes.POINTER(ctypes.c_short)
        signature = ctypes.CFUNCTYPE(ctypes.c_int, samples, ctypes.c_int, ctypes.c_void_p)
        self.callback = signature(self._receive)  # kept: the library calls it as long as it lives
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # its breath and some consonants are rand()
        return self

    def __exit__(self, *_) -> None:
        self.library.espeak_Terminate()
        unload = _ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose  # CDLL itself never unloads
        unload(self.library._handle)
        self.folder.cleanup()

    def _receive(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, language: str, voice: list[str], rate: float) -> np.ndarray:
        """Read a text aloud.

        `language` is a key of LANGUAGES, `voice` further lines of an espeak-ng voice file, `rate` in words
        per minute (80 to 450). Returns (samples,) float64 at `self.rate` Hz, without the silence around it.
        """
        definition = (self.data / "lang" / LANGUAGES[language][0]).read_text(encoding="utf-8")
        path = pathlib.Path(self.folder.name) / "voice"
        path.write_text("\n".join([definition, *voice, ""]), encoding="utf-8")
        if self.library.espeak_SetVoiceByFile(os.fsencode(path)):
            raise InputError(f"espeak-ng refuses its language {language}; reinstall espeakng-loader")
        self.library.espeak_SetParameter(1, round(rate), 0)
        self.library.espeak_SetParameter(2, 50, 0)  # half volume: strong formants would clip
        self.chunks.clear()
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, 1, None, None)  # 1: UTF-8
        speech = np.concatenate(self.chunks).astype(np.float64)
        loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
        return speech[loud[0]:loud[-1] + 1]


def sentences(language: str, rng: np.random.Generator) -> Iterator[str]:
    """Sentences of a language in random order, none twice."""
    grammar = GRAMMAR[LANGUAGES[language][1]]
    slots = [[entry.strip() for entry in slot.split("|")] for slot in grammar.split("/")]
    shape = tuple(len(slot) for slot in slots)
    for number in rng.permutation(np.prod(shape)):
        yield " ".join(slot[i] for slot, i in zip(slots, np.unravel_index(number, shape))) + "."


def duration(seconds: float, rate: float = SAMPLE_RATE) -> int:
    """Samples for about these seconds (1 % longer at most): a length of small factors, ten times faster to
    transform than a prime."""
    return scipy.fft.next_fast_len(round(seconds * rate))


def smooth_gain(rng: np.random.Generator, bins: int, spread: float) -> np.ndarray:
    """A random smooth frequency response: (bins,) gains over 0 to 8 kHz, `spread` dB standard deviation."""
    edges = 700 * (10 ** (np.linspace(0, 2840, 9) / 2595) - 1)  # nine points, even in mel
    return 10 ** (np.interp(np.linspace(0, 8000, bins), edges, rng.normal(0, spread, 9)) / 20)


def coloured_noise(rng: np.random.Generator, samples: int, slope: float) -> np.ndarray:
    """Noise whose amplitude goes with frequency ** slope (0 white, -0.5 pink, -1 brown), RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 20.0) ** slope
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise ** 2))


def speech(speaker: Speaker, texts: Iterator[str], seconds: float, gain_rng: np.random.Generator,
           rng: np.random.Generator, eq_spread: float) -> np.ndarray:
    """`seconds` of a speaker reading: (samples,) float64 at 16 kHz, RMS 1, coloured by the channel of
    `gain_rng`; the mood of the moment (pitch, reach, rate) comes from `rng`."""
    pitch, span, rate = rng.normal(1, (0.06, 0.2, 0.1)) * (speaker.pitch, speaker.span, speaker.rate)
    low, high = (pitch / speaker.tract * (1 + sign * max(span, 0.03)) for sign in (-1, 1))
    voice = [f"pitch {low:.0f} {high:.0f}", *speaker.timbre.split("; ")]
    samples = duration(seconds)
    with Espeak() as reader:
        source = duration(samples / SAMPLE_RATE * speaker.tract, reader.rate)  # samples before resampling
        pieces, pause = [], np.zeros(reader.rate // 5)
        while sum(map(len, pieces)) < source:
            pieces += [reader.say(next(texts), speaker.language, voice, rate / speaker.tract), pause]
    # One pass through the spectrum: resample (which also scales every frequency by `tract`) and equalise.
    spectrum = np.fft.rfft(np.concatenate(pieces)[:source])[:samples // 2 + 1]
    spectrum *= smooth_gain(gain_rng, len(spectrum), eq_spread)
    spectrum[:round(50 * seconds)] = 0  # espeak-ng's rumble below 50 Hz
    wave = np.fft.irfft(spectrum, samples)
    wave[:FADE] *= np.linspace(0, 1, FADE)
    wave[-FADE:] *= np.linspace(1, 0, FADE)
    return wave / np.sqrt(np.mean(wave ** 2))


def utterance(seed: int, speaker: Speaker, session: int, take: int) -> np.ndarray:
    """One utterance of the corpus: 2.5 to 4.5 s, (samples,) float64 within +-1.

    The session has its own channel (equalisation, a room that is not among those in rirs/, background noise
    16 to 30 dB below the speech, level), so the channel does not give the speaker away.
    """
    position = (("train", "eval").index(speaker.side), speaker.index)
    channel = generator(seed, "channel", *position, session)
    rng = generator(seed, "utterance", *position, session, take)
    # The speaker's next eight sentences, of which it reads what fits: none is read twice.
    texts = sentences(speaker.language, generator(seed, "text", *position))
    texts = itertools.islice(texts, 8 * (session * TAKES + take), None)
    level, snr, slope = channel.uniform(-30, -20), channel.uniform(16, 30), channel.uniform(-1, 0)
    wave = speech(speaker, texts, rng.uniform(2.5, 4.5), channel, rng, eq_spread=4)
    room = room_response(seed, *channel.integers((0, BACKGROUND_FILES), (2, 1000)))
    wave = scipy.signal.fftconvolve(wave, room)[:len(wave)]
    wave /= np.sqrt(np.mean(wave ** 2))
    wave += 10 ** (-snr / 20) * coloured_noise(rng, len(wave), slope)
    return within_range(wave * 10 ** (level / 20))


def within_range(wave: np.ndarray) -> np.ndarray:
    """The same, quieter where its peak would come above 0.9."""
    return wave / max(1.0, np.abs(wave).max() / 0.9)


def background_speech(seed: int, index: int) -> np.ndarray:
    """MUSAN's speech: 10 to 20 s of one background speaker, or (every third file) four to six at once."""
    rng = generator(seed, "speech", index)
    seconds, voices = rng.uniform(10, 20), rng.integers(4, 7) if index % 3 == 2 else 1
    speakers = [draw_speaker(seed, "background", n) for n in rng.choice(40, voices, replace=False)]
    waves = [speech(s, sentences(s.language, rng), seconds, rng, rng, eq_spread=2) for s in speakers]
    return within_range(0.08 * sum(waves) / np.sqrt(voices))


def noise(seed: int, index: int) -> np.ndarray:
    """MUSAN's noise, 10 to 20 s: in turn steady, hum, knocks, wind, machine."""
    rng = generator(seed, "noise", index)
    samples = duration(rng.uniform(10, 20))
    time = np.arange(samples) / SAMPLE_RATE
    floor = coloured_noise(rng, samples, rng.uniform(-1, 0.2))
    kind = index % 5
    if kind == 0:  # steady: rain, air conditioning
        wave = floor
    elif kind == 1:  # hum: mains and its harmonics
        phase = 2 * np.pi * rng.choice([50, 60]) * time
        wave = 0.2 * floor + sum(rng.uniform(0, 1) / k * np.sin(k * phase) for k in range(1, 20))
    elif kind == 2:  # knocks, keys, dishes: decaying rings at random moments
        wave = 0.02 * floor
        for start in rng.integers(0, samples - SAMPLE_RATE // 2, rng.integers(15, 80)):
            ring = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
            tone = np.sin(2 * np.pi * rng.uniform(200, 5000) * ring) + rng.standard_normal(len(ring))
            tone *= rng.uniform(0.3, 2) * np.exp(-ring / rng.uniform(0.005, 0.08))
            wave[start:start + len(ring)] += tone
    elif kind == 3:  # wind: low noise in gusts of seconds
        gusts = np.interp(time, np.arange(22), rng.uniform(0.1, 1, 22) ** 2)
        wave = coloured_noise(rng, samples, -1.2) * gusts + 0.02 * floor
    else:  # machine: noise beating with the turns of an engine
        turns = rng.uniform(3, 30)
        wave = floor * (1 + 0.9 * np.sin(2 * np.pi * turns * time)) + np.sin(2 * np.pi * 4 * turns * time)
    return within_range(0.1 * wave / np.sqrt(np.mean(wave ** 2)))


def music(seed: int, index: int) -> np.ndarray:
    """MUSAN's music, 10 to 20 s: a chord per bar and a melody of eighths, plucked or held, major or minor."""
    rng = generator(seed, "music", index)
    beat = 60 / rng.uniform(70, 140)
    bars = int(rng.uniform(10, 20) / (4 * beat)) + 1
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.5 else [0, 2, 3, 5, 7, 8, 10])
    tonic, roll_off, decay = rng.uniform(90, 180), rng.uniform(0.8, 2), rng.uniform(0.2, 2)
    wave = np.zeros(duration((4 * bars + 1) * beat))

    def play(degree: int, start: float, beats: float, loudness: float) -> None:
        time = np.arange(int(beats * beat * SAMPLE_RATE)) / SAMPLE_RATE
        frequency = tonic * 2 ** ((scale[degree % 7] + 12 * (degree // 7)) / 12)
        tone = sum(k ** -roll_off * np.sin(2 * np.pi * k * frequency * time) for k in range(1, 9))
        attack, release = np.clip(time / 0.01, 0, 1), np.clip((time[-1] - time) / 0.03, 0, 1)
        envelope = attack * np.exp(-time / decay) * release
        begin = int(start * beat * SAMPLE_RATE)
        wave[begin:begin + len(time)] += loudness * tone * envelope

    for bar in range(bars):
        root = rng.choice([0, 3, 4, 5])
        for degree in (root, root + 2, root + 4):
            play(degree, 4 * bar, 4, 0.5)
        for eighth in np.flatnonzero(rng.random(8) < 0.7):
            play(rng.integers(7, 18), 4 * bar + eighth / 2, rng.choice([0.5, 1]), 1.0)
    return within_range(0.1 * wave / np.sqrt(np.mean(wave ** 2)))


def room_response(seed: int, size: int, index: int) -> np.ndarray:
    """A simulated room: direct path, early reflections, diffuse tail that falls 60 dB in the RT60.

    `size` 0 small (RT60 0.2 to 0.35 s), 1 medium (to 0.6), 2 large (to 0.9); five places per room share its
    RT60. Returns (samples,) float64, the direct path after the sound's way at 343 m/s, peak 0.9.
    """
    low, high = ((0.2, 0.35), (0.35, 0.6), (0.6, 0.9))[size]
    rt60 = generator(seed, "rir", size, index // 5).uniform(low, high)
    rng = generator(seed, "rir", size, index // 5, index % 5)
    direct = int(rng.uniform(0.5, 2 + 3 * size) / 343 * SAMPLE_RATE)
    time = np.arange(duration(rt60)) / SAMPLE_RATE  # since the direct path
    decay = 10 ** (-3 * time / rt60)
    tail = coloured_noise(rng, len(time), -0.3) * decay * np.minimum(time / 0.01, 1)  # diffuse after 10 ms
    early = rng.integers(10, int(0.05 * SAMPLE_RATE), 12)
    tail *= 10 ** (-rng.uniform(0, 9) / 20) / np.sqrt(np.sum(tail ** 2))  # direct 0 to 9 dB above the tail
    tail[early] += rng.uniform(0.1, 0.4, 12) * rng.choice([1, 1, -1], 12) * decay[early]
    tail[0] = 1
    response = np.concatenate([np.zeros(direct), tail])
    return 0.9 * response / np.abs(response).max()


def draw_trials(seed: int, speakers: list[Speaker]) -> list[str]:
    """Trial lines over all utterances of some speakers, as many non-target as target ones where possible.

    Targets are of two sessions; half the non-targets are hard (same sex and language) as far as there are
    such. No pair occurs twice, in either order.
    """
    rng = generator(seed, "trials")
    keys = list(itertools.product(range(len(speakers)), range(SESSIONS), range(TAKES)))
    speaker, session, _ = np.array(keys).T
    cell = np.array([f"{s.sex} {s.language}" for s in speakers])[speaker]
    a, b = np.triu_indices(len(keys), 1)  # every pair once
    same, hard = speaker[a] == speaker[b], cell[a] == cell[b]

    def some(mask: np.ndarray, count: int) -> np.ndarray:
        return rng.permutation(np.flatnonzero(mask))[:count]

    target = some(same & (session[a] != session[b]), MAX_TRIALS)
    easy = some(~same & ~hard, len(target))
    difficult = some(~same & hard, max(len(target) // 2, len(target) - len(easy)))
    chosen = np.concatenate([target, difficult, easy[:len(target) - len(difficult)]])
    paths = [utterance_path(speakers[n], session, take) for n, session, take in keys]
    return [f"{int(same[i])} {paths[a[i]]} {paths[b[i]]}" for i in np.sort(chosen)]


def utterance_path(speaker: Speaker, session: int, take: int) -> str:
    return f"{speaker.name}/session{session + 1}/{take + 1:05d}.wav"


def write_wave(path: pathlib.Path, wave: np.ndarray) -> None:
    with whole_file(path, sync=False) as file:
        soundfile.write(file, np.round(wave * 32767).astype(np.int16), SAMPLE_RATE, format="WAV")


def make_demo(folder: str | os.PathLike, train_speakers: int = 160, eval_speakers: int = 40, seed: int = 0,
              progress: bool = True) -> pathlib.Path:
    """Generate the demo corpus in `folder`, unless it is already there; returns the folder.

    Writes train/wav and eval/wav (`<speaker>/<session>/<utterance>.wav`, 16 kHz mono int16), train_list.txt,
    trials.txt, musan/, rirs/, speakers.tsv, README.txt and demo.json. The same settings give the same bytes.
    An interrupted generation is done again from its beginning (half a minute). Raises InputError for settings
    that do not fit, a folder that holds something else, and one that cannot be written.
    """
    folder = pathlib.Path(folder)
    if not (1 <= train_speakers <= 9999 and 2 <= eval_speakers <= 400 and 0 <= seed < 2 ** 32):
        raise InputError(f"--demo takes 1 to 9999 --train_speakers, 2 to 400 --eval_speakers and a --seed of "
                         f"0 to 2**32-1, not {train_speakers}, {eval_speakers} and {seed}")
    settings = {"format": FORMAT_VERSION, "train_speakers": train_speakers, "eval_speakers": eval_speakers,
                "seed": seed}
    try:
        if already_complete(folder, settings):
            return folder
        with Espeak():
            pass  # where it is missing, that is said before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "demo.json", json.dumps({**settings, "complete": False}) + "\n")
        write_demo(folder, train_speakers, eval_speakers, seed, progress)
        write_text(folder / "demo.json", json.dumps({**settings, "complete": True}) + "\n")
    except OSError as error:
        raise InputError(f"cannot write the demo corpus to {folder}: {error}") from None
    return folder


def already_complete(folder: pathlib.Path, settings: dict) -> bool:
    """Whether the folder holds the finished corpus of these settings; InputError for anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
        complete = found.pop("complete")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{folder} is no demo corpus (no valid demo.json): name a new folder") from None
    if found != settings:
        raise InputError(f"{folder} holds the demo corpus of other settings, {found} and not {settings}; "
                         f"name a new folder or delete this one")
    return complete


def write_demo(folder: pathlib.Path, train_speakers: int, eval_speakers: int, seed: int,
               progress: bool) -> None:
    """Everything of the corpus but demo.json."""
    sides = {side: [draw_speaker(seed, side, n) for n in range(count)]
             for side, count in (("train", train_speakers), ("eval", eval_speakers))}
    takes = list(itertools.product(range(SESSIONS), range(TAKES)))
    # Every file of sound, and the call that makes it.
    waves = [(f"{speaker.side}/wav/{utterance_path(speaker, *take)}", (utterance, seed, speaker, *take))
             for speaker in sides["train"] + sides["eval"] for take in takes]
    for kind, make in (("noise", noise), ("music", music), ("speech", background_speech)):
        waves += [(f"musan/{kind}/demo/{kind}-demo-{n:04d}.wav", (make, seed, n))
                  for n in range(BACKGROUND_FILES)]
    for size, name in enumerate(("smallroom", "mediumroom", "largeroom")):
        for n in range(BACKGROUND_FILES):
            room = f"Room{n // 5 + 1:03d}"
            path = f"rirs/simulated_rirs/{name}/{room}/{room}-{n % 5 + 1:05d}.wav"
            waves.append((path, (room_response, seed, size, n)))
    with progress_bar(total=len(waves), desc="demo corpus", unit="file", disable=not progress) as bar:
        for path, (make, *position) in waves:
            write_wave(folder / path, make(*position))
            bar.update()

    training = [f"{speaker.name} {utterance_path(speaker, *take)}"
                for speaker in sides["train"] for take in takes]
    write_text(folder / "train_list.txt", "\n".join(training) + "\n")
    write_text(folder / "trials.txt", "\n".join(draw_trials(seed, sides["eval"])) + "\n")
    rows = ["\t".join(("speaker", *Speaker._fields[1:]))]
    rows += ["\t".join(map(str, speaker)) for speaker in sides["train"] + sides["eval"]]
    write_text(folder / "speakers.tsv", "\n".join(rows) + "\n")
    write_text(folder / "README.txt", f"""A generated corpus for speaker recognition: prepareData.py --demo.

No person speaks here. espeak-ng reads sentences of a template grammar in synthetic voices of our own; noises,
music and rooms are computed. It shows that a recipe works; results on it say nothing about real speech.

train/wav, train_list.txt  {train_speakers} speakers x {SESSIONS} sessions x {TAKES} utterances
eval/wav, trials.txt       {eval_speakers} other speakers; half of the non-targets within one sex and language
musan/, rirs/              for augmentation, in the layouts of MUSAN and RIRS_NOISES
speakers.tsv               the speakers and the settings of their voices
demo.json                  the settings, seed {seed} among them, and whether the corpus is complete
""")
