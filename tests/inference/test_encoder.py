"""A model in use, as a library."""

import re

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from conftest import relative_error, voice
from published import random_state, speechbrain_shapes
from test_frames import network_of
from test_model import small_network

from corpora.audio import AudioFile, Folder, UnreadableAudio
from corpora.lists import TrialList
from corpora.pack import PackedFile, write_pack
from inference import encoder as encoder_room
from inference.checkpoints import Pretrained
from tools import InputError, save_checkpoint
from verify import AudioWarning, SpeakerEncoder, choose_device, score_trials

SYSTEMS = ["ours", "speechbrain", "modelscope", "wespeaker", "pyannote"]


def encoder_of(system):
    network = network_of(system)
    return SpeakerEncoder(network, "cpu", Pretrained(system, network))


@pytest.fixture(scope="module")
def encoder():
    return SpeakerEncoder(small_network())


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    """Files of 0.4, 3.015 (just a crop), 5 and 9 seconds."""
    folder = tmp_path_factory.mktemp("utterances")
    for number, seconds in enumerate((0.4, 3.015, 5.0, 9.0)):
        soundfile.write(folder / f"{number}.wav", voice(100 + 20 * number, seconds, number), 16000, subtype="FLOAT")
    return folder


# ---- embeddings and scores -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*only 0.4 s long")
def test_the_customary_score_is_the_mean_of_two_cosines(encoder, utterances, tmp_path):
    """By its definition: whole utterances, and all 25 pairs of five crops, one by one."""
    names = [f"{number}.wav" for number in range(4)]
    (tmp_path / "trials.txt").write_text(
        "".join(f"{int(a == b)} {a} {b}\n" for i, a in enumerate(names) for b in names[i:])
    )
    trials = TrialList(tmp_path / "trials.txt")
    found = score_trials(trials, encoder.embed_for_scoring(names, utterances))
    for score, first, second in zip(found, trials.enrol, trials.test):
        sets = []
        for name in (first, second):
            waveform = torch.from_numpy(soundfile.read(utterances / name, dtype="float32")[0])
            repeated = torch.from_numpy(np.pad(waveform.numpy(), (0, max(0, 48240 - len(waveform))), mode="wrap"))
            starts = [int(start) for start in np.linspace(0, len(repeated) - 48240, 5)]
            crops = torch.stack([repeated[start : start + 48240] for start in starts])
            sets.append((encoder.embed_batch(waveform[None])[0], encoder.embed_batch(crops)))
        (whole1, crops1), (whole2, crops2) = sets
        between_crops = [F.cosine_similarity(a, b, dim=0) for a in crops1 for b in crops2]
        expected = (F.cosine_similarity(whole1, whole2, dim=0) + torch.stack(between_crops).mean()) / 2
        assert score == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*only 0.4 s long")
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_file_is_embedded_as_if_it_were_alone(system, utterances, monkeypatch):
    """Whatever shares its batch, however many batches there are; alone, from a list, or for scoring."""
    encoder = encoder_of(system)
    names = [f"{number}.wav" for number in range(4)]
    assert list(encoder.embed_for_scoring([*names, *names], utterances)) == names  # each once
    single = {name: encoder.embed(utterances / name) for name in names}
    for seconds in (1, 10, 100):
        monkeypatch.setitem(encoder_room.BATCH_SECONDS, "cpu", seconds)
        found = list(encoder.embed_files(names, utterances, threads=3))
        assert [file for file, _, _ in found] == names and "0.4 s" in found[0][2] and found[3][2] == ""
        together = encoder.embed_for_scoring(names, utterances, threads=2)
        for file, embedding, _ in found:
            assert relative_error(embedding, single[file]) < 1e-5
            alone = encoder.embed_for_scoring([file], utterances, threads=1)[file]
            assert relative_error(together[file].vector, alone.vector) < 1e-5
            assert relative_error(together[file].embedding, single[file]) < 1e-5


@pytest.mark.filterwarnings("ignore::encoder.AudioWarning")
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_memory_has_bounds(system, tmp_path, monkeypatch):
    """Of a batch, also where short utterances are repeated; and of what is read ahead: results come early."""
    encoder = encoder_of(system)
    embed_batch, opened, batches = SpeakerEncoder.embed_batch, [], []

    def recording(self, waveforms, lengths=None):
        shortest = self.system.shortest
        batches.append(len(waveforms) * max(shortest, waveforms.shape[1]))
        return embed_batch(self, waveforms, lengths)

    monkeypatch.setattr(SpeakerEncoder, "embed_batch", recording)
    monkeypatch.setitem(encoder_room.BATCH_SECONDS, "cpu", 1)
    heard_open = encoder_room.Heard.open
    monkeypatch.setattr(encoder_room.Heard, "open", lambda self, file: opened.append(file) or heard_open(self, file))
    files = [f"{number}.wav" for number in range(60)]
    for file in files:
        soundfile.write(tmp_path / file, 0.1 * np.ones(8000), 16000)
    results = encoder.embed_files(files, tmp_path, threads=2)
    next(results)
    assert len(opened) < 50 and sum(batches) <= 8.5 * 16000
    assert len(list(results)) == 59 and sorted(opened) == sorted(files)
    del batches[:]
    encoder.embed_many([torch.ones(10)] * 100)
    assert 0 < max(batches) <= 16000
    del batches[:]
    with pytest.raises(UnreadableAudio, match=r"none\.wav does not exist"):
        encoder.embed_for_scoring(["0.wav", "none.wav"], tmp_path)
    assert not batches  # it is known from the beginning


def test_embedding_leaves_a_network_in_training_as_it_was(utterances):
    network = small_network().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    embedding = SpeakerEncoder(network).embed(utterances / "2.wav")
    assert embedding.shape == (192,) and embedding.dtype == np.float32
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert np.array_equal(embedding, SpeakerEncoder(network.eval()).embed(utterances / "2.wav"))


@pytest.mark.parametrize("system", SYSTEMS[1:])
def test_verify_by_the_cosine_of_whole_files(system, utterances):
    encoder = encoder_of(system)
    first, second = utterances / "2.wav", utterances / "3.wav"
    a, b = encoder.embed(first).astype(float), encoder.embed(second).astype(float)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    result = encoder.verify(first, second)
    assert result.score == pytest.approx(cosine, abs=1e-5) and (result.same_speaker, result.threshold) == (None, None)
    assert encoder.verify(first, second, threshold=cosine - 0.01).same_speaker is True
    assert encoder.verify(first, second, threshold=min(1, cosine + 0.01)).same_speaker is False
    assert encoder.verify(first, first).score == pytest.approx(1)


def test_verify_by_the_customary_score_where_that_is_evaluated(encoder, utterances):
    first, second = utterances / "2.wav", utterances / "3.wav"
    vectors = [found.vector for found in encoder.embed_for_scoring([first, second]).values()]
    assert encoder.verify(first, second).score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    assert encoder.verify(first, second, 0.1).threshold == 0.1


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_one_reading_gives_vector_embedding_and_seconds(rate, encoder, tmp_path):
    sound = voice(120, 4.0, 0)[: int(1.7 * rate)]
    soundfile.write(tmp_path / "x.wav", sound, rate, subtype="FLOAT")
    (found,) = encoder.embed_for_scoring(["x.wav"], tmp_path).values()
    assert found.seconds == pytest.approx(len(sound) / rate, abs=1 / 16000)
    assert relative_error(found.embedding, encoder.embed(tmp_path / "x.wav")) < 1e-5
    assert found.embedding.dtype == np.float32 and np.linalg.norm(found.embedding) != pytest.approx(1, abs=0.01)
    unit = found.embedding / np.linalg.norm(found.embedding)
    assert relative_error(found.vector[:192] * np.sqrt(2), unit) < 1e-5 and found.vector.shape == (384,)


# ---- where files come from -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder and its pack. 16 kHz, mono and of 16 bits but for odd.wav; text.wav is none."""
    folder = tmp_path_factory.mktemp("recordings")
    files = ["a/short.wav", "a/b/middle.flac", "long.wav", "odd.wav", "text.wav"]
    (folder / "a" / "b").mkdir(parents=True)
    for number, (file, seconds) in enumerate(zip(files, (1.3, 4.0, 12.3))):
        soundfile.write(folder / file, voice(100 + 20 * number, seconds, number), 16000, subtype="PCM_16")
    odd = np.stack([voice(120, 4.0, 0), voice(200, 4.0, 1)], axis=1)
    soundfile.write(folder / "odd.wav", odd, 24000, subtype="FLOAT")
    (folder / "text.wav").write_text("no audio")
    pack, _ = write_pack(folder.parent / f"{folder.name}-pack", "speech", Folder(folder), files)
    return folder, pack, files


@pytest.mark.parametrize("system", SYSTEMS)
def test_files_of_a_pack_are_embedded_like_those_it_was_made_from(system, recordings, monkeypatch):
    """With "long" made short, too: then the pack's, like the file, is only read in pieces."""
    encoder = encoder_of(system)
    folder, pack, (*files, odd, _) = recordings
    expected = encoder.embed_for_scoring(files, folder)
    assert [each.seconds for each in expected.values()] == [1.3, 4.0, 12.3]
    counts = []
    read = PackedFile.read

    def counting(file, start=0, samples=None, dtype="float32"):
        counts.append(samples or file.length)
        return read(file, start, samples, dtype)

    monkeypatch.setattr(PackedFile, "read", counting)
    for long in (300, 5):
        monkeypatch.setattr(encoder_room, "LONG_SECONDS", long)
        monkeypatch.setattr(encoder_room, "PIECE_SECONDS", 2)
        counts.clear()
        found = encoder.embed_for_scoring(files, pack)
        assert list(found) == files and 0 < max(counts) <= min(long, 12.3) * 16000
        for file in files:
            for part, other in zip(found[file], expected[file], strict=True):
                assert np.array_equal(part, other) if long == 300 else relative_error(part, other) < 1e-5
        for file, embedding, remark in encoder.embed_files(files, pack):
            assert relative_error(embedding, expected[file].embedding) < 1e-5 and remark == ""
    (found,) = encoder.embed_for_scoring([odd], pack).values()  # heard as it was packed
    assert np.array_equal(found.embedding, encoder.embed_batch(pack.open(odd).read()[None])[0])
    assert found.seconds == pytest.approx(64000 / 24000, abs=1 / 16000)


@pytest.mark.parametrize(("system", "channel", "crossings"), [
    ("ours", None, 32), ("speechbrain", None, 6), ("modelscope", 0, 32), ("wespeaker", 0, 6),
])  # fmt: skip
def test_a_folder_is_heard_as_the_system_does(system, channel, crossings, recordings):
    encoder = encoder_of(system)
    folder, _, (*_, odd, _) = recordings
    expected = encoder.embed_batch(AudioFile(folder / odd, channel, crossings).read()[None])[0].numpy()
    assert np.array_equal(encoder.embed(folder / odd), expected)
    for root in (folder, str(folder), Folder(folder)):
        assert np.array_equal(encoder.embed_for_scoring([odd], root)[odd].embedding, expected)
        ((_, found, _),) = encoder.embed_files([odd], root)
        assert np.array_equal(found, expected)


def test_trouble_in_a_pack_is_named(encoder, recordings):
    folder, pack, files = recordings
    for file, complaint in (("text.wav", "could not be read when it was packed"), ("none.wav", "does not exist")):
        with pytest.raises(UnreadableAudio, match=rf"^{file} in the pack {pack.path} {complaint}"):
            encoder.embed_for_scoring([file], pack)
        ((_, found, _),) = encoder.embed_files([file], pack)
        assert isinstance(found, UnreadableAudio)
    unreadable = []
    found = encoder.embed_for_scoring(files, pack, unreadable=unreadable)
    assert list(found) == files[:-1] and len(unreadable) == 1
    with pytest.raises(UnreadableAudio, match=rf"^{folder}/none\.wav does not exist"):
        encoder.embed_for_scoring(["none.wav"], folder)


# ---- parts of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_excerpt_and_windows(system, utterances):
    encoder = encoder_of(system)
    path = utterances / "3.wav"  # 9 s
    waveform, _ = soundfile.read(path, dtype="float32")
    expected = encoder.embed_batch(waveform[None, 20592:91408])[0]
    assert relative_error(encoder.embed_excerpt(path, 1.287, 5.713), expected) < 1e-5
    assert relative_error(encoder.embed_excerpt(path, 0, 9.0), encoder.embed(path)) < 1e-5
    embeddings, times = encoder.embed_windows(path, duration=2.0, step=0.7)
    assert np.allclose(times[:, 0], 0.7 * np.arange(11)) and np.allclose(times[:, 1], times[:, 0] + 2.0)
    assert embeddings.shape == (11, encoder.network.embedding_size)
    for embedding, (start, end) in zip(embeddings, times):
        assert relative_error(embedding, encoder.embed_excerpt(path, start, end)) < 1e-5
    embeddings, times = encoder.embed_windows(path)
    assert times.tolist() == [[start, start + 3.0] for start in range(7)]
    embeddings, times = encoder.embed_windows(utterances / "2.wav", duration=8.0)  # of 5 s
    assert times.tolist() == [[0.0, 5.0]] and relative_error(embeddings[0], encoder.embed(utterances / "2.wav")) < 1e-5


def test_excerpts_that_are_not_there(encoder, utterances):
    path = utterances / "2.wav"
    for start, end, complaint in (
        (-1, 2, "no excerpt from -1"), (2, 2, "no excerpt"), (6, 7, "no excerpt"), (float("nan"), 2, "no excerpt"),
        (1, 5.1, "ends at 5.00 s, before 5.1 s"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"2\.wav:? {complaint}"):
            encoder.embed_excerpt(path, start, end)
    for duration, step in ((0, 1), (-1, 1), (3, 0), (float("nan"), 1), (3, float("inf"))):
        with pytest.raises(InputError, match="must be more than 0"):
            encoder.embed_windows(path, duration, step)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_long_file_in_pieces(system, rate, tmp_path, monkeypatch):
    """With "long" made short: the embedding is that of the whole, and only pieces are ever read."""
    encoder = encoder_of(system)
    samples = int(12.3 * rate)
    stereo = np.stack([voice(120, 12.3, 1), voice(150, 12.3, 2)], axis=1)
    stereo = stereo[np.arange(samples) * 16000 // rate] * np.linspace(0.1, 2, samples)[:, None]
    stereo += 0.001 * np.random.default_rng(0).standard_normal(stereo.shape)
    stereo[samples // 2 : samples // 2 + rate] = -0.05
    stereo += 0.05  # an offset, and a second of digital silence
    path = tmp_path / "long.wav"
    soundfile.write(path, stereo, rate, subtype="FLOAT")
    whole, scoring = encoder.embed(path), encoder.embed_for_scoring([path])[path]
    assert relative_error(scoring.embedding, whole) < 1e-5 and scoring.seconds == pytest.approx(12.3, abs=1 / 16000)
    excerpt = encoder.embed_excerpt(path, 3.1, 9.4)
    read = encoder_room.AudioFile.read
    counts = []

    def counting(file, start=0, samples=None, dtype="float32"):
        counts.append(samples or file.length)
        return read(file, start, samples, dtype)

    monkeypatch.setattr(encoder_room, "LONG_SECONDS", 5)
    monkeypatch.setattr(encoder_room, "PIECE_SECONDS", 2)
    monkeypatch.setattr(encoder_room.AudioFile, "read", counting)
    assert relative_error(encoder.embed(path), whole) < 1e-5
    assert max(counts) < 5 * 16000 < sum(counts)
    assert relative_error(encoder.embed_excerpt(path, 3.1, 9.4), excerpt) < 1e-5
    for found, expected in zip(encoder.embed_for_scoring([path])[path], scoring, strict=True):
        assert relative_error(found, expected) < 1e-5
    (tmp_path / "nan.wav").write_bytes(path.read_bytes()[:-8] + 2 * np.float32("nan").tobytes())
    soundfile.write(tmp_path / "hush.wav", np.zeros(8 * rate), rate)
    names = ["long.wav", "nan.wav", "hush.wav"]
    found = {file: (embedding, remark) for file, embedding, remark in encoder.embed_files(names, tmp_path)}
    assert isinstance(found["nan.wav"][0], UnreadableAudio) and relative_error(found["long.wav"][0], whole) < 1e-5
    unreadable = []
    found = encoder.embed_for_scoring(["long.wav", "nan.wav"], tmp_path, unreadable=unreadable)
    assert list(found) == ["long.wav"] and len(unreadable) == 1 and "nan.wav" in str(unreadable[0])
    with pytest.warns(AudioWarning, match=r"hush\.wav is silent"):
        encoder.embed(tmp_path / "hush.wav")
    with pytest.warns(AudioWarning, match=r"hush\.wav is silent"):
        encoder.embed_windows(tmp_path / "hush.wav")
    assert max(counts) < 5 * 16000


# ---- what is given ---------------------------------------------------------------------------------------------------


def test_batches_of_other_kinds(encoder):
    waveforms = torch.round(3000 * torch.randn(3, 8000)).clamp(-32768, 32767)
    expected = encoder.embed_batch(waveforms / 32768)
    assert torch.equal(encoder.embed_batch(waveforms.to(torch.int16)), expected)
    assert torch.equal(encoder.embed_batch(waveforms.numpy().astype(np.float64) / 32768), expected)
    assert expected.shape == (3, 192) and expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.embed_batch(waveforms / 32768), expected)
    behind = waveforms / 32768
    behind[0, 200:], behind[1, 8000 - 100 :] = torch.nan, 1e30  # what lies behind an end may be anything
    found = encoder.embed_batch(behind, [200, 7900, 8000])  # the first is repeated to what the network needs
    for row, waveform, length in zip(found, behind, (200, 7900, 8000)):
        assert relative_error(row, encoder.embed_batch(waveform[None, :length])[0]) < 1e-5
    for odd in (waveforms.int(), waveforms[0], waveforms.to(torch.uint8)):
        with pytest.raises(ValueError, match="waveforms must be"):
            encoder.embed_batch(odd)
    with pytest.raises(ValueError, match="numbers of samples, not parts"):
        encoder.embed_batch(waveforms, torch.tensor([1.0, 0.5, 1.0]))
    assert encoder.embed_batch(waveforms[:0]).shape == (0, 192)
    for given, lengths in ((waveforms[0], None), *((waveforms, odd) for odd in ([1, 2], [8001, 1, 1], [0, 1, 1]))):
        with pytest.raises(ValueError, match="must be"):
            encoder.embed_batch(given, lengths)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("kind", "remark"), [
    ("one sample", "is only .* s long, repeated"), ("0.3 s", r"is only 0\.3 s long"), ("zeros", "is silent"),
    ("dc", "is silent"), ("speech", None), ("clipped", r"is clipped \(\d+\.\d %"), ("tiny", "is silent"),
    ("huge", r"has samples up to [\d.e+]+, full scale is 1"),
])  # fmt: skip
def test_utterances_hardly_fit_are_embedded_with_a_warning(system, kind, remark, tmp_path, recwarn):
    encoder = encoder_of(system)
    speech = voice(120, 2.0, 0)
    samples = {"one sample": speech[:1] + 0.1, "0.3 s": speech[:4800], "zeros": 0 * speech, "dc": 0 * speech + 0.25,
               "speech": speech, "clipped": np.clip(20 * speech, -1, 1),
               "tiny": 1e-8 * speech, "huge": 1e4 * speech}[kind]  # fmt: skip
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    assert np.isfinite(encoder.embed(tmp_path / "x.wav")).all()
    assert np.isfinite(encoder.embed_for_scoring(["x.wav"], tmp_path)["x.wav"].vector).all()
    assert [each.category for each in recwarn] == 2 * [AudioWarning] if remark else not recwarn.list
    assert all(re.search(rf"x\.wav {remark}", str(each.message)) for each in recwarn)


def test_the_first_channel_where_the_original_takes_it(tmp_path):
    channels = np.stack([voice(120, 2.0, 0), voice(200, 2.0, 1)], axis=1)
    soundfile.write(tmp_path / "x.wav", channels, 16000, subtype="FLOAT")
    mean = channels.astype(np.float64).mean(axis=1).astype(np.float32)
    for system, default in (("ours", mean), ("speechbrain", mean), ("modelscope", channels[:, 0])):
        encoder = encoder_of(system)
        for channel, waveform in ((None, default), (0, channels[:, 0]), (1, channels[:, 1])):
            encoder.channel = channel
            expected = encoder.embed_batch(np.ascontiguousarray(waveform)[None])[0]
            assert relative_error(encoder.embed(tmp_path / "x.wav"), expected) < 1e-5


# ---- models ----------------------------------------------------------------------------------------------------------


def save_model(path, network, system="ours", thresholds=None, speakers=("a", "b", "c")):
    """A model file of ours. Returns its classifier."""
    weights = {f"speaker_encoder.{key}": value for key, value in network.state_dict().items()}
    weights["speaker_loss.weight"] = torch.randn(len(speakers), network.embedding_size)
    save_checkpoint(path, {
        "kind": "model", "settings": {"C": network.C, "system": system}, "weights": weights, "speakers": list(speakers),
        "scores": {"trials": {"eer": 5.0, "thresholds": thresholds}} if thresholds else {},
    })  # fmt: skip
    return weights["speaker_loss.weight"]


def test_our_own_model_brings_its_threshold_and_its_speakers(tmp_path, utterances):
    thresholds = {"EER": 0.31, "1%": 0.52, "0.1%": None}
    classifier = save_model(tmp_path / "x.model", small_network(), thresholds=thresholds)
    encoder = SpeakerEncoder.from_checkpoint(tmp_path / "x.model")
    assert (encoder.threshold, encoder.thresholds, encoder.listing) == (0.31, thresholds, "trials")
    assert encoder.origin == "where misses and false alarms were equal on trials"
    assert encoder.decide(0.31).same_speaker is True and encoder.decide(0.3099).same_speaker is False
    save_model(tmp_path / "y.model", small_network(), thresholds={"EER": 1 + 1e-7, "1%": None})  # to rounding, a score
    assert SpeakerEncoder.from_checkpoint(tmp_path / "y.model").decide(1.0, None).same_speaker is True
    cosines = F.cosine_similarity(torch.from_numpy(encoder.embed(utterances / "2.wav"))[None], classifier)
    found = encoder.classify(utterances / "2.wav")
    assert found.speaker == "abc"[cosines.argmax()] and found.score == pytest.approx(cosines.max().item(), abs=1e-6)


@pytest.mark.parametrize("system", SYSTEMS[:4])
def test_a_model_of_ours_in_the_form_of_a_stranger(system, tmp_path, utterances):
    """What fine-tuning another system writes: our names and keys, that system's front end and layers."""
    save_model(tmp_path / "x.model", network_of(system), system)
    found = SpeakerEncoder.from_checkpoint(tmp_path / "x.model")
    assert np.array_equal(found.embed(utterances / "2.wav"), encoder_of(system).embed(utterances / "2.wav"))
    assert found.fingerprint() == encoder_of(system).fingerprint()


def test_a_model_without_classifier_does_not_classify(tmp_path, utterances):
    torch.save(random_state(speechbrain_shapes(8)), tmp_path / "x.ckpt")
    encoder = SpeakerEncoder.from_checkpoint(tmp_path / "x.ckpt", system="speechbrain")
    assert encoder.threshold == 0.25
    with pytest.raises(InputError, match="came without a classifier"):
        encoder.classify(utterances / "2.wav")


def test_fingerprints_tell_models_apart(encoder):
    other = SpeakerEncoder(small_network(seed=1))
    assert encoder.fingerprint() == SpeakerEncoder(small_network()).fingerprint() != other.fingerprint()


def test_broken_weights_give_no_scores(utterances):
    network = small_network()
    network.fc6.weight.data[0, 0] = float("nan")
    encoder = SpeakerEncoder(network)
    with pytest.raises(UnreadableAudio, match=r"the embedding of 2\.wav is not finite"):
        encoder.embed_for_scoring(["2.wav"], utterances)
    for embed in (encoder.embed, encoder.embed_windows, encoder.classify):
        with pytest.raises((UnreadableAudio, InputError), match=r"2\.wav is not finite|without a classifier"):
            embed(utterances / "2.wav")
    ((_, found, _),) = encoder.embed_files(["2.wav"], utterances)
    assert "is not finite" in str(found)


def test_unreadable_files_and_devices(encoder, utterances):
    (utterances / "text.wav").write_text("no audio")
    with pytest.raises(UnreadableAudio, match=r"text\.wav"):
        encoder.embed(utterances / "text.wav")
    with pytest.raises(UnreadableAudio, match=r"text\.wav"):
        encoder.embed_for_scoring(["2.wav", "text.wav"], utterances)
    unreadable = []
    assert list(encoder.embed_for_scoring(["text.wav", "2.wav"], utterances, unreadable=unreadable)) == ["2.wav"]
    assert len(unreadable) == 1 and "text.wav" in str(unreadable[0])
    (_, first, _), (_, second, _) = encoder.embed_files(["text.wav", "2.wav"], utterances)
    assert isinstance(first, UnreadableAudio) and second.shape == (192,)
    with pytest.raises(InputError, match="--device warp9"):
        choose_device("warp9")
