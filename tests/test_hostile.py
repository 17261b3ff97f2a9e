"""Hostile and broken input: nothing crashes, hangs, runs code, fills the memory, or leaves the folder that it is given.

What tests/fuzz.py tries by the ten thousand, in small: every nasty file (nasty.py), two hundred with changed bytes,
and structured cases from hypothesis. Then the numbers: no audio gives an embedding that is not finite.
"""

import codecs
import contextlib
import json
import os
import shutil
import string
import tempfile
import zipfile
from pathlib import Path

import nasty
import numpy as np
import pytest
import soundfile
import torch
from conftest import data_flags, voice
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import fuzz
from test_encoder import SYSTEMS, encoder_of, save_model
from test_model import small_network

import prepareData
import trainSpeakerNet
import verify
from corpora.audio import AudioFile, Folder, UnreadableAudio, low_pass, read_audio
from corpora.lists import TrainingList, TrialList, audio_of, check_files
from corpora.pack import Pack, write_pack
from dataLoader import CropLoader
from evaluation.backend import read_cohort
from evaluation.scoring import read_history
from inference import encoder as encoder_room
from inference.checkpoints import load_pretrained
from inference.encoder import AudioWarning, SpeakerEncoder, score_trials
from inference.gallery import Gallery
from tools import InputError, load_checkpoint, load_tensors, one_line

# ---- every reader ----------------------------------------------------------------------------------------------------

READERS = fuzz.readers()
MUTATIONS = {"pyannote": 3, "TaoRuijie": 5, "wespeaker": 5}  # their files are large

# What is odd and yet can be read: all else that is nasty must be refused.
HARMLESS = {
    "training list": {"line breaks of Unicode"},
    "audio": {"wav of 2^31 samples", "wav cut"},  # libsndfile knows better
    "list to embed": {
        "line breaks of Unicode",
        "names too long",
        "a folder",
        "itself",
        "a pipe",
    },  # are told apart later
    "model": {"8 bits", "step 0", "step 1", "epoch 0", "optimizer 0"},
    "gallery": {"nan", "1e300"},  # nobody writes such a gallery: no guard
    "training state": {
        "8 bits",
        "bool",
        "complex",
        "no numbers",
        "0-d",
        "names that are no text",
        "settings 0",
        "settings 1",
        "settings 2",
        "speakers 0",
        "speakers 3",
        "valid_speakers 0",
        "valid_speakers 1",
        "valid_speakers 2",
        "scores 0",
        "scores 1",
        "scores 2",
        "scores 3",
        "state_dict 0",
        "state_dict 1",
    },  # experiment.py looks at them
    "hyperparams.yaml": {"merge keys", "a set"},
    "config.yaml": {"merge keys", "a set"},
    "metrics.jsonl": {"nested", "many digits", "cut"},
}


@pytest.mark.parametrize("name", READERS)
def test_broken_files_are_read_or_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader = READERS[name]
    bad = reader.nasty()
    count = len(reader.seeds()) + len(bad) + MUTATIONS.get(name, 12)
    read = set()
    for what, case in fuzz.cases(name, reader, count, seed=0):
        outcome = fuzz.attempt(reader.read, tmp_path / "case", case)
        assert outcome.kind in ("read", "refused"), f"{what}: {outcome.message}"
        assert outcome.megabytes < fuzz.MEMORY + sum(map(len, case.values())) / 1e5, what
        assert outcome.kind == "read" or not what.startswith("seed"), f"{what}: {outcome.message}"
        if outcome.kind == "read":
            read.add(what)
    assert read & set(bad) == HARMLESS.get(name, set())


def test_the_traps_do_close(tmp_path, monkeypatch):
    """A reader that is careless is found out by each of the things that the test above looks at."""
    monkeypatch.chdir(tmp_path)

    def endless(_):
        while True:
            pass

    def rambling(_):
        raise InputError("x" * 50_000_000 + "\n" * 10)

    for careless, kind in (
        (endless, "hung"), (lambda _: {}["x"], "crashed"), (lambda _: os.mkdir(nasty.HARM), "crashed"),
        (lambda folder: torch.load(folder / "x", weights_only=False), "crashed"), (rambling, "refused"),
    ):  # fmt: skip
        monkeypatch.setattr(fuzz, "HANG", 0.2 if careless is endless else 60)
        outcome = fuzz.attempt(careless, tmp_path / "case", {"x": nasty.torch_file(nasty.Harm())})
        assert outcome.kind == kind
        Path(nasty.HARM).rmdir() if os.path.exists(nasty.HARM) else None
    assert fuzz.attempt(lambda _: np.ones(40_000_000), tmp_path / "case", {}).megabytes > fuzz.MEMORY
    with pytest.raises(AssertionError, match="is outside"):
        fuzz.stay_inside(tmp_path / "case", [tmp_path / "case" / ".." / "x"])


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(InputError("a\nb\x1b[2Jc\u2028ü\udcff")) == r"a\nb\x1b[2Jc\u2028ü\udcff"
    assert one_line("a" * 10_000) == "a" * 1000 + " ... " + "a" * 1000


# ---- lists -----------------------------------------------------------------------------------------------------------

LEAVING = ("../secret.wav", "s0/../../secret.wav", "{root}/s0/0.wav", "/etc/passwd", "s0/..")


@pytest.fixture
def root(tmp_path):
    """A folder with s0/0.wav and s1/1.wav, and a file beside it that is none of a list's business."""
    for file in ("root/s0/0.wav", "root/s1/1.wav", "secret.wav"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / file, voice(120, 1.0, 0), 16000)
    return tmp_path / "root"


@pytest.mark.parametrize("leaving", LEAVING)
def test_a_path_that_leaves_the_folder_is_refused_with_file_line_and_flag(leaving, root, tmp_path):
    leaving = leaving.format(root=root)
    (tmp_path / "train.txt").write_text(f"a s0/0.wav\n\nb {leaving}\n")
    (tmp_path / "trials.txt").write_text(f"1 s0/0.wav s0/0.wav\n0 s1/1.wav {leaving}\n")
    for listing, line, flag in ((TrainingList(tmp_path / "train.txt"), 3, "--train_path"),
                                (TrialList(tmp_path / "trials.txt"), 2, "--eval_path")):  # fmt: skip
        with pytest.raises(InputError) as error:
            check_files(listing, Folder(root), flag)
        assert str(error.value) == (
            f"{listing.path} line {line}: {leaving} leads out of {flag}, absolute or by ..; if you trust the list, "
            "--paths_anywhere takes such paths"
        )
        if os.path.isfile(root / leaving) and leaving != "/etc/passwd":
            check_files(listing, Folder(root), flag, anywhere=True)


def test_names_with_dots_and_links_stay(root, tmp_path):
    """What only looks like "..", and links in the folder, which are its owner's affair."""
    (root / "..a..").mkdir()
    for file in ("..a../b..wav", "...", "link.wav"):
        os.symlink(tmp_path / "secret.wav", root / file)
    (tmp_path / "train.txt").write_text("a ..a../b..wav\nb ...\nb link.wav\n")
    check_files(TrainingList(tmp_path / "train.txt"), Folder(root), "--train_path")


def test_every_command_with_a_list_takes_the_one_flag(command, corpus, tmp_path, monkeypatch):
    lists = {name: tmp_path / f"{name}.txt" for name in ("train", "trials", "embed")}
    lists["train"].write_text((corpus / "train_list.txt").read_text().replace(" id", f" {corpus}/train/id"))
    lists["trials"].write_text((corpus / "trials.txt").read_text().replace(" id", " ../eval/id"))
    lists["embed"].write_text(f"a {corpus}/eval/id00006/session0/00000.wav\n")
    save_model(tmp_path / "x.model", small_network(C=8))
    flags = {"--C": 8, "--batch_size": 12, "--max_epoch": 1, "--n_cpu": 1, "--device": "cpu", "--num_frames": 50,
             "--musan_path": "", "--rir_path": "", "--save_path": tmp_path / "e"}  # fmt: skip
    flags = [each for pair in {**dict(zip(*[iter(data_flags(corpus))] * 2)), **flags}.items() for each in pair]
    pack = ["--pack", tmp_path / "pack", "--train_list", lists["train"], "--train_path", corpus / "train"]
    embed = ["--embed", lists["embed"], "--out", tmp_path / "e.npz", "--model", tmp_path / "x.model", "--device", "cpu"]
    for module, arguments, where in (
        (trainSpeakerNet, [*flags, "--train_list", lists["train"]], f"{lists['train']} line 1: {corpus}/train/id"),
        (trainSpeakerNet, [*flags, "--eval_list", lists["trials"]], f"{lists['trials']} line 1: ../eval/id"),
        (prepareData, pack, f"{lists['train']} line 1: {corpus}/train/id"),
        (verify, embed, f"{lists['embed']} line 1: {corpus}/eval/id"),
    ):  # fmt: skip
        status, _, complaint = command(module, *arguments)
        assert status == 2 and where in complaint and "--paths_anywhere" in complaint and complaint.count("\n") == 1
        status, _, complaint = command(module, *arguments, "--paths_anywhere")
        assert status == 0, complaint
        shutil.rmtree(tmp_path / "e", ignore_errors=True)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=8))
def test_a_list_is_read_as_it_was_written(lines):
    lines[0] = (lines[0][0].lstrip("\ufeff") or "a", lines[0][1])  # which would be taken for the mark of an editor
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_text("".join(f"{speaker}\t{file}\n" for speaker, file in lines), encoding="utf-8")
        listing = TrainingList(path)
    assert listing.files == [file for _, file in lines]
    assert [listing.speakers[label] for label in listing.label] == [speaker for speaker, _ in lines]
    assert listing.speakers == sorted(set(listing.speakers))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.binary(max_size=200) | st.text("01 ab/.\n\t\0\ufeff\u2028é", max_size=100).map(str.encode))
def test_whatever_is_no_list_is_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_bytes(content)
        for kind in (TrainingList, TrialList):
            try:
                assert len(kind(path)) > 0
            except InputError as error:
                assert str(path) in str(error) and str(error).isprintable()


def test_pipes_and_devices_are_not_waited_for(tmp_path, encoder):
    """They would never answer, or never end."""
    os.mkfifo(tmp_path / "a.wav")
    for path in (tmp_path / "a.wav", "/dev/zero"):
        for read in (lambda p: TrainingList(p), lambda p: load_tensors(p), lambda p: read_cohort(p, encoder),
                     read_history, read_audio, lambda p: Gallery(p, encoder)):  # fmt: skip
            with pytest.raises(InputError, match="is not a regular file"):
                read(path)


@pytest.fixture(scope="module")
def encoder():
    return SpeakerEncoder(small_network(C=8))


# ---- audio -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (nasty.flac_claiming(0), "does not say how long it is"),
        (nasty.flac_claiming(2**36 - 1), "claims 68719476735 samples in "),
        (nasty.flac_claiming(4001), "cannot be decoded"),
        (nasty.audio()["wav at a prime rate"], "claims a sample rate of 399989 Hz"),
        (nasty.audio()["float wav with infinity"], "not finite"),
        (nasty.audio()["float wav of 1e38"], "not finite"),
        (nasty.audio()["float wav of 1e300"], "not finite"),
    ],
)
def test_headers_and_samples_that_cannot_be(content, complaint, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UnreadableAudio, match=rf"a\.wav .*{complaint}"):
        read_audio(tmp_path / "a.wav")


def test_audio_that_does_not_fit_in_the_memory(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(nasty.sound())

    def greedy(*_, **__):
        raise MemoryError

    with AudioFile(tmp_path / "a.wav") as file:
        monkeypatch.setattr(file.file, "read", greedy)
        with pytest.raises(UnreadableAudio, match=r"a\.wav does not fit in the memory: 4000 samples"):
            file.read()


def test_resampling_filters_do_not_pile_up():
    assert low_pass.cache_info().maxsize <= 16


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a\0b.wav", "x/" * 3000])
def test_names_that_no_file_can_have(name, tmp_path, encoder):
    soundfile.write(tmp_path / "a", voice(120, 1.0, 0), 16000, format="WAV")  # which a reader of C strings would find
    for read in (read_audio, encoder.embed, lambda _: audio_of(tmp_path / "list.txt")):
        (tmp_path / "list.txt").write_text(f"a {name} b c\n")
        with pytest.raises(InputError):
            read(f"{tmp_path}/{name}")


# ---- packs -----------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5,
)  # fmt: skip


@contextlib.contextmanager
def opened_pack(case):
    """The Pack of {file: bytes}; None if it is refused, as damaged."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in case.items():
            (Path(folder) / name).write_bytes(content)
        try:
            pack = Pack(folder)
        except InputError as error:
            assert "is damaged" in str(error)
            pack = None
        yield pack


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from([*json.loads(nasty.pack_files()["pack.json"])]), JSON)
def test_a_pack_of_odd_numbers_is_refused_or_read(key, value):
    case = nasty.pack_files(**({key: value} if key not in ("samples", "entries", "index_sha256") else {}))
    case["pack.json"] = json.dumps({**json.loads(case["pack.json"]), key: value}).encode()
    with opened_pack(case) as pack:
        assert pack is None or (pack.length.tolist() == [300, 200] and len(pack.open("a/2.wav").read()) == 200)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-(2**65), 2**65) | st.integers(-500, 1000), st.integers(-500, 1000)), max_size=4))
def test_only_an_index_that_accounts_for_every_sample_is_read(rows):
    case = nasty.pack_files(names=[f"{n}.wav" for n in range(len(rows))], lengths=[length for _, length in rows],
                            offsets=[first for first, _ in rows], samples=500)  # fmt: skip
    with opened_pack(case) as pack:
        if pack is not None:
            covered = [place for first, length in rows for place in range(first, first + length)]
            assert covered == list(range(500)) and pack.length.sum() == 500


def test_a_pack_that_was_begun_and_cannot_be_understood(root, tmp_path):
    (tmp_path / "pack").mkdir()
    for content in ("{", "[" * 100_000, "[1]"):
        (tmp_path / "pack" / "packing.json").write_text(content)
        with pytest.raises(InputError, match=r"--pack .* packing\.json cannot be understood: delete the folder"):
            write_pack(tmp_path / "pack", "speech", Folder(root), ["s0/0.wav"])


# ---- arrays and checkpoints ------------------------------------------------------------------------------------------

ARRAYS = st.tuples(
    st.sampled_from(["f4", "f8", "f2", "i8", "u8", "U3", "S3", "?", "c8", "M8[s]", "V4"]),
    st.lists(st.sampled_from([0, 1, 3, 192, 384]), max_size=2),
).map(lambda form: np.zeros(form[1], form[0]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(["names", "vectors", "counts", "model", "embeddings", "speakers"]), ARRAYS)
def test_arrays_of_other_kinds_and_shapes(name, array):
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "g.npz", **{**fuzz.gallery_arrays(), name: array})
        np.savez(Path(folder) / "c.npz", **{**fuzz.cohort_arrays(), name: array})
        for read in (fuzz.read_gallery, lambda folder: read_cohort(folder / "c.npz", fuzz.ENCODER)):
            try:
                read(Path(folder))
            except InputError as error:
                assert folder in str(error)


def test_letters_that_there_are_not(tmp_path):
    arrays = fuzz.gallery_arrays()
    arrays["names"] = np.full(3, 0x7FFFFFFF, "<u4").view("<U1")
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(InputError, match=r"g\.npz is not a gallery, or a damaged one"):
        fuzz.read_gallery(tmp_path)


class Call:
    """Pickled as a call that torch allows."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def heavy():
    value = (1,)
    for _ in range(20):
        value = (value, value)
    return {"x": value}


@pytest.mark.parametrize("form", [True, False])
def test_pickles_are_weighed_before_they_are_read(tmp_path, form):
    """Those of every form of checkpoint; what real ones hold is read."""
    path = tmp_path / "x"
    good = {**fuzz.model_content(), "x": ((1, 2), (3,)), "bytes": b"as torch.save writes \xff"}
    torch.save(good, path, _use_new_zipfile_serialization=form)
    assert load_tensors(path)["bytes"] == good["bytes"]
    for content, complaint in (
        (heavy(), "tuples of tuples"),
        ({"x": Call(bytearray, (1_500_000_000,))}, "it asks for a bytearray"),
        ({"x": Call(codecs.encode, ("abc", "punycode"))}, "it asks for a text in punycode"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=form)
        with pytest.raises(InputError, match=complaint):
            load_tensors(path)


def test_what_is_weighed_is_what_torch_reads(tmp_path):
    """Not another part of the archive, nor an archive behind a pickle of the old form."""
    path, harmless = tmp_path / "x", tmp_path / "harmless"
    torch.save(heavy(), path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"{file.namelist()[0].split('/')[0]}/z/data.pkl", b"x")
    with pytest.raises(InputError, match=r"2 of its parts are called data\.pkl"):
        load_tensors(path)
    torch.save(heavy(), path, _use_new_zipfile_serialization=False)
    torch.save({"x": torch.zeros(2)}, harmless)
    path.write_bytes(path.read_bytes() + harmless.read_bytes())
    with pytest.raises(InputError, match="tuples of tuples"):
        load_tensors(path)


def test_a_nested_tensor_is_no_plain_one(tmp_path):
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    torch.save({"x": nested}, tmp_path / "x")
    with pytest.raises(InputError):
        load_tensors(tmp_path / "x")


def test_a_list_in_utf_16_is_told_what_it_is(tmp_path):
    (tmp_path / "list.txt").write_text("a a/1.wav\n", encoding="utf-16")
    with pytest.raises(InputError, match="it is UTF-16: save it as UTF-8"):
        TrainingList(tmp_path / "list.txt")


def test_a_spoilt_line_among_the_records_is_not_dropped(tmp_path):
    lines = ['{"epoch": 1, "lists": {}}', '{"epoch": 2, "lists": {#}}', '{"epoch": 3, "lists": {}}']
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="line 2 is not the record of an epoch"):
        read_history(tmp_path / "m.jsonl")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(string.printable, max_size=5)
    | st.sampled_from(
        [torch.zeros(3), torch.zeros(()), torch.zeros(0, 2), torch.zeros(3, 192), torch.zeros(3, 2, 192)]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abs_.", max_size=3), inner, max_size=3)
        | st.dictionaries(st.integers() | st.tuples(st.integers()), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "kind",
                "settings",
                "weights",
                "speakers",
                "valid_speakers",
                "scores",
                "state_dict",
                "pyannote.audio",
                "hyper_parameters",
                "optimizer",
                "epoch",
            ]
        ),
        VALUES,
        min_size=1,
        max_size=2,
    )
)
def test_checkpoints_of_odd_contents(changes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.model"
        for content, read in (
            (fuzz.model_content(), lambda path: fuzz.read_model("x.model")(path.parent)), ({}, load_pretrained),
            (fuzz.state_content(), lambda path: load_checkpoint(path, "training state")),
        ):  # fmt: skip
            torch.save({**content, **changes}, path)
            try:
                read(path)
            except InputError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize(
    "missing", ["settings", "weights", "optimizer", "epoch", "step", "speakers", "train_list_sha256"]
)
def test_a_training_state_that_lacks_something(missing, tmp_path):
    content = fuzz.state_content()
    del content[missing]
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(InputError, match=rf"state\.pt lacks what a training state .* has \('{missing}'\)"):
        load_checkpoint(tmp_path / "state.pt", "training state")


def test_a_record_without_lists_is_named_with_its_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "lists": {}}\n{"epoch": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2 is not the record of an epoch"):
        read_history(tmp_path / "metrics.jsonl")


# ---- numbers ---------------------------------------------------------------------------------------------------------

SPEECH = voice(120, 2.0, 0)
SOUNDS = {
    "zeros": 0 * SPEECH,
    "dc": 0 * SPEECH + 0.25,
    "loud dc": 0 * SPEECH - 1e4,
    "tiny": 1e-8 * SPEECH,
    "huge": 1e4 * SPEECH,
    "denormal": 1e-40 * SPEECH,
    "one sample": SPEECH[:1] + 0.1,
    "one zero": np.zeros(1),
    "two samples": SPEECH[:2],
    "a click": np.eye(1, 32000)[0],
    "beyond float32's squares": 1e25 * SPEECH,
    "alternating": np.resize([1.0, -1.0], 32000),
    "nan": np.where(np.arange(len(SPEECH)) % 99, SPEECH, np.nan),
    "infinity": np.where(np.arange(len(SPEECH)) % 99, SPEECH, -np.inf),
}
FIT_NOTHING = ("nan", "infinity")


@pytest.fixture(scope="module")
def odd_sounds(tmp_path_factory):
    """Files of SOUNDS at 16 kHz and, where that is another road, at 44.1 kHz."""
    folder = tmp_path_factory.mktemp("odd")
    for name, samples in SOUNDS.items():
        soundfile.write(folder / f"{name}.wav", samples.astype(np.float32), 16000, subtype="FLOAT")
        soundfile.write(folder / f"{name}, 44.wav", samples.astype(np.float32), 44100, subtype="FLOAT")
    return folder


@pytest.mark.filterwarnings("ignore::inference.encoder.AudioWarning")
@pytest.mark.parametrize("system", SYSTEMS)
def test_no_audio_gives_an_embedding_that_is_not_finite(system, odd_sounds):
    """Each way to an embedding gives a finite one, or says which file is at fault."""
    encoder = encoder_of(system)
    files = sorted(path.name for path in odd_sounds.iterdir())
    ways = {
        "embed": lambda file: encoder.embed(odd_sounds / file),
        "excerpt": lambda file: encoder.embed_excerpt(odd_sounds / file, 0, soundfile.info(odd_sounds / file).duration),
        "windows": lambda file: encoder.embed_windows(odd_sounds / file, 1.0, 0.5)[0],
        "scoring": lambda file: encoder.embed_for_scoring([file], odd_sounds)[file].vector,
    }
    for way, embed in ways.items():
        for file in files:
            try:
                assert np.isfinite(embed(file)).all(), f"{way} of {file}"
                assert not file.startswith(FIT_NOTHING), f"{way} of {file}"
            except UnreadableAudio as error:
                assert file in str(error) and file.startswith((*FIT_NOTHING, "beyond", "huge", "loud"))
    # Side by side, no utterance spoils another.
    for file, found, _ in encoder.embed_files(files, odd_sounds, threads=2):
        if isinstance(found, UnreadableAudio):
            assert file in str(found) and file.startswith((*FIT_NOTHING, "beyond"))
        else:
            assert np.isfinite(found).all() and not file.startswith(FIT_NOTHING)
            assert np.allclose(found, encoder.embed(odd_sounds / file), rtol=0, atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("level", [0.0, 0.25])
def test_long_silence_and_dc(system, level, tmp_path, monkeypatch):
    """In pieces, the mean and the variance come from sums, in which nothing must cancel to less than nothing."""
    monkeypatch.setattr(encoder_room, "LONG_SECONDS", 30)
    monkeypatch.setattr(encoder_room, "WINDOW_SECONDS", 10)
    soundfile.write(tmp_path / "a.wav", np.full(16000 * 31, level), 16000, subtype="PCM_16")
    encoder = encoder_of(system)
    encoder._remark = lambda *_: ""  # what is said of it is tested elsewhere
    assert np.isfinite(encoder.embed(tmp_path / "a.wav")).all()


def test_scores_of_silence_are_finite_and_what_is_broken_is_named(odd_sounds, encoder):
    good = [file for file in SOUNDS if not file.startswith((*FIT_NOTHING, "beyond"))]
    with pytest.warns(AudioWarning, match=r"zeros\.wav is silent"):
        utterances = encoder.embed_for_scoring([f"{file}.wav" for file in good], odd_sounds)
    trials = TrialList.of("t", [1, 0] * len(good), ["zeros.wav"] * 2 * len(good), [f"{file}.wav" for file in good] * 2)
    scores = score_trials(trials, utterances)
    assert np.isfinite(scores).all() and np.abs(scores).max() < 1.001
    unreadable = []
    assert not encoder.embed_for_scoring(["nan.wav", "infinity.wav"], odd_sounds, unreadable=unreadable)
    assert ["nan.wav" in str(unreadable[0]), "infinity.wav" in str(unreadable[1])] == [True, True]


def test_training_replaces_what_is_not_finite(odd_sounds, tmp_path, capsys):
    lines = [f"{n % 2} {name}.wav\n" for n, name in enumerate(["zeros", "dc", "huge", "tiny"] * 30)]
    (tmp_path / "list.txt").write_text("".join([*lines, "1 nan.wav\n".replace("nan", "infinity")]))
    loader = CropLoader(TrainingList(tmp_path / "list.txt"), Folder(odd_sounds), 16240, 11, 0, 2)
    crops = torch.cat([waveform for _, waveform, _ in loader.epoch(1)])
    assert crops.dtype == torch.int16 and loader.bad == {120} and "not finite" in capsys.readouterr().err
