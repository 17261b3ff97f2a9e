"""A model in use, as a library."""

import re

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from conftest import relative_error, voice
from test_model import network_of, small_network

from corpora.audio import AudioFile, Folder, UnreadableAudio
from corpora.lists import TrainingList, TrialList
from corpora.pack import write_pack
from evaluation.scoring import score_trials
from inference import encoder as encoder_module
from inference import reading as reading_module
from inference.checkpoints import Pretrained
from inference.encoder import AudioWarning, SpeakerEncoder
from model import mean_and_variance
from tools import InputError, save_checkpoint

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


@pytest.mark.filterwarnings("ignore:.*only 0.4 s long")
def test_the_customary_score_is_the_mean_of_two_cosines(encoder, utterances, tmp_path):
    """By its definition: whole utterances, and all 25 pairs of five crops, one by one."""
    names = [f"{number}.wav" for number in range(4)]
    (tmp_path / "trials.txt").write_text("".join(f"1 {a} {b}\n0 {b} {a}\n" for a in names[:3] for b in names))
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
        between_crops = F.cosine_similarity(crops1[:, None], crops2, dim=2)
        expected = (F.cosine_similarity(whole1, whole2, dim=0) + between_crops.mean()) / 2
        assert score == pytest.approx(expected.item(), abs=1e-5)
    assert encoder.verify(utterances / first, utterances / second).score == pytest.approx(score, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*only 0.4 s long")
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_file_is_embedded_as_if_it_were_alone(system, utterances, monkeypatch):
    """Whatever shares its batch; alone, from a list, or for scoring."""
    encoder, names = encoder_of(system), [f"{number}.wav" for number in range(4)]
    alone = [encoder.embed_for_scoring([name], utterances)[name] for name in names]
    for seconds in (1, 10, 100):
        monkeypatch.setitem(encoder_module.BATCH_SECONDS, "cpu", seconds)
        found = list(encoder.embed_files(names, utterances, threads=3))
        assert [file for file, _, _ in found] == names and "0.4 s" in found[0][2] and found[3][2] == ""
        together = encoder.embed_for_scoring([*names, *names], utterances, threads=2)
        assert list(together) == names  # each once
        for (file, embedding, _), expected in zip(found, alone):
            assert relative_error(embedding, encoder.embed(utterances / file)) < 1e-5
            assert relative_error(together[file].vector, expected.vector) < 1e-5
            assert relative_error(together[file].embedding, embedding) < 1e-5


def test_files_are_read_and_embedded_a_few_at_a_time(tmp_path, monkeypatch):
    """Also where short utterances are repeated; results come early."""
    encoder, opened, batches = encoder_of("pyannote"), [], []
    forward, open_file = encoder.network.forward, Folder.open
    note_batch = lambda waveforms, **named: batches.append(waveforms.numel()) or forward(waveforms, **named)  # noqa: E731
    monkeypatch.setattr(encoder.network, "forward", note_batch)
    monkeypatch.setattr(Folder, "open", lambda *args: opened.append(args[1]) or open_file(*args))
    monkeypatch.setitem(encoder_module.BATCH_SECONDS, "cpu", 1)
    files = [f"{number}.wav" for number in range(60)]
    for file in files:
        soundfile.write(tmp_path / file, 0.1 * np.ones(8000), 16000)
    results = encoder.embed_files(files, tmp_path, threads=2)
    next(results)
    assert len(opened) < 60 and 0 < max(batches) <= 16000
    assert len(list(results)) == 59 and sorted(opened) == sorted(files) and max(batches) <= 16000


def test_embedding_leaves_a_network_in_training_as_it_was(utterances):
    network = small_network().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    embedding = SpeakerEncoder(network).embed(utterances / "2.wav")
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert np.array_equal(embedding, SpeakerEncoder(network.eval()).embed(utterances / "2.wav"))


@pytest.mark.parametrize("system", SYSTEMS[1:])
def test_verify_by_the_cosine_of_whole_files(system, utterances):
    encoder, files = encoder_of(system), [utterances / "2.wav", utterances / "3.wav"]
    a, b = (encoder.embed(file).astype(float) for file in files)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert encoder.verify(*files) == (pytest.approx(cosine, abs=1e-5), None, None)
    assert encoder.verify(*files, threshold=cosine - 0.01).same_speaker is True
    assert encoder.verify(*files, threshold=min(1, cosine + 0.01)).same_speaker is False


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder and its pack. 16 kHz, mono and of 16 bits but for odd.wav; text.wav is no audio."""
    folder = tmp_path_factory.mktemp("recordings")
    files = ["a/short.wav", "a/b/middle.flac", "long.wav", "odd.wav", "text.wav"]
    (folder / "a" / "b").mkdir(parents=True)
    for number, (file, seconds) in enumerate(zip(files, (1.3, 4.0, 12.3))):
        soundfile.write(folder / file, voice(100 + 20 * number, seconds, number), 16000, subtype="PCM_16")
    odd = np.stack([voice(120, 4.0, 0), voice(200, 4.0, 1)], axis=1)
    soundfile.write(folder / "odd.wav", odd, 24000)
    (folder / "text.wav").write_text("no audio")
    pack = write_pack(folder.parent / f"{folder.name}-pack", Folder(folder), TrainingList.of("list", files, files))
    return folder, pack, files


@pytest.mark.parametrize("long", [300, 5])
def test_files_of_a_pack_are_embedded_like_those_it_was_made_from(encoder, recordings, monkeypatch, long):
    monkeypatch.setattr(reading_module, "LONG_SECONDS", long)
    monkeypatch.setattr(encoder_module, "WINDOW_SECONDS", 2)
    folder, pack, (*files, odd, _) = recordings
    expected, found = encoder.embed_for_scoring(files, folder), encoder.embed_for_scoring(files, pack)
    assert list(found) == files and [each.seconds for each in found.values()] == [1.3, 4.0, 12.3]
    for file, embedding, remark in encoder.embed_files(files, pack):
        assert np.array_equal(found[file].vector, expected[file].vector) and remark == ""
        assert relative_error(embedding, expected[file].embedding) < 1e-5
    (found,) = encoder.embed_for_scoring([odd], pack).values()  # with the channel and filter it was packed with
    assert np.array_equal(found.embedding, encoder.embed_batch(pack.open(odd).read()[None])[0])


@pytest.mark.parametrize(("system", "default", "crossings"), [
    ("ours", None, 32), ("speechbrain", None, 6), ("modelscope", 0, 32), ("wespeaker", 0, 6),
])  # fmt: skip
def test_a_folder_is_read_as_the_system_does(system, default, crossings, recordings):
    encoder = encoder_of(system)
    folder, _, (*_, odd, _) = recordings
    for encoder.channel, channel in ((None, default), (1, 1)):
        expected = encoder.embed_batch(AudioFile(folder / odd, channel, crossings).read()[None])[0].numpy()
        assert np.array_equal(encoder.embed(folder / odd), expected)
        for root in (folder, str(folder), Folder(folder)):
            assert np.array_equal(encoder.embed_for_scoring([odd], root)[odd].embedding, expected)


def test_unreadable_files_are_named(encoder, recordings):
    folder, pack, files = recordings
    for source, where in ((pack, f" in the pack {pack.path}"), (folder, "")):
        for file, complaint in (("text.wav", "(could not|cannot) be read"), ("none.wav", "does not exist")):
            with pytest.raises(UnreadableAudio, match=rf"{file}{where} {complaint}"):
                encoder.embed_for_scoring(["long.wav", file], source)
            (_, first, _), (_, second, _) = encoder.embed_files([file, "long.wav"], source)
            assert isinstance(first, UnreadableAudio) and second.shape == (192,)
        unreadable = []
        assert list(encoder.embed_for_scoring(files, source, unreadable=unreadable)) == files[:-1]
        assert len(unreadable) == 1 and "text.wav" in str(unreadable[0])
    with pytest.raises(UnreadableAudio, match=r"text\.wav"):
        encoder.embed(folder / "text.wav")


@pytest.mark.parametrize("system", SYSTEMS)
def test_excerpt_and_windows(system, utterances):
    encoder = encoder_of(system)
    path = utterances / "3.wav"  # 9 s
    waveform, _ = soundfile.read(path, dtype="float32")
    expected = encoder.embed_batch(waveform[None, 20592:91408])[0]
    assert relative_error(encoder.embed_excerpt(path, 1.287, 5.713), expected) < 1e-5
    assert relative_error(encoder.embed_excerpt(path, 0, 9.0), encoder.embed(path)) < 1e-5
    joined = encoder.embed_batch(np.concatenate([waveform[80000:96000], waveform[:32000]]))[0]
    assert relative_error(encoder.embed_excerpts(path, [(5, 6), (0, 2)]), joined) < 1e-5


@pytest.mark.parametrize("system", ["ours", "pyannote"])
@pytest.mark.parametrize(("duration", "step", "start", "end", "shifted"), [
    (2.0, 0.7, 0, None, [0, 0.7, 1.4, 2.1, 2.8, 3.5, 4.2, 4.9, 5.6, 6.3, 7.0]), (3.0, 1.0, 1.1, 5.4, [1.1, 2.1, 2.4]),
    (2.5, 1.0, 0.5, 4.0, [0.5, 1.5]), (4.0, 2.0, 6.0, None, [6.0]), (4.0, 0.5, 8.0, None, [8.0]),
])  # fmt: skip
def test_windows_reach_the_end(system, duration, step, start, end, shifted, utterances):
    """Moved back to it, or filled with zeros as pyannote.audio's Inference.slide does."""
    encoder, path = encoder_of(system), utterances / "3.wav"  # 9 s
    waveform, _ = soundfile.read(path, dtype="float32")
    end = 9.0 if end is None else end
    embeddings, times = encoder.embed_windows(path, duration, step, start, end, last="shift")
    assert np.allclose(times[:, 0], shifted) and np.allclose(times[:, 1], np.minimum(times[:, 0] + duration, 9))
    for embedding, span in zip(embeddings, times, strict=True):
        assert relative_error(embedding, encoder.embed_excerpt(path, *span)) < 1e-5
    part = waveform[round(start * 16000) : round(end * 16000)]
    size, hop = round(duration * 16000), round(step * 16000)
    windows, at = [], 0
    while at + size <= len(part):
        windows.append(part[at : at + size])
        at += hop
    if not windows or at - hop + size < len(part):
        windows.append(np.append(part[at:], np.zeros(size - len(part[at:]), np.float32)))
    embeddings, times = encoder.embed_windows(path, duration, step, start, end, last="pad")
    assert relative_error(embeddings, encoder.embed_batch(np.stack(windows))) < 1e-5 and times[-1, 1] <= end
    default = encoder.embed_windows(path, duration, step, start, end)[0]
    expected = encoder.embed_windows(path, duration, step, start, end, "pad" if system == "pyannote" else "shift")[0]
    assert np.array_equal(default, expected)
    for last in ("pad", "shift"):
        with pytest.warns(AudioWarning, match="leave gaps"):
            times = encoder.embed_windows(path, 0.5, 1.9, last=last)[1]  # nothing begins after the end
        assert np.allclose(times[:5, 0], [0, 1.9, 3.8, 5.7, 7.6]) and len(times) == (5 if last == "pad" else 6)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.filterwarnings("ignore:.* is sampled at 8000 Hz")
def test_audio_in_memory_is_as_on_the_disk(system, rate, tmp_path):
    encoder = encoder_of(system)
    stereo = np.stack([voice(120, 4.0, 0), voice(200, 4.0, 1)])[:, : 4 * rate]
    whole = np.rint(stereo * 32767).astype(np.int16)
    for samples, subtype in ((stereo, "FLOAT"), (whole, "PCM_16"), (stereo[0], "FLOAT")):
        soundfile.write(tmp_path / "a.wav", samples.T, rate, subtype)
        expected = encoder.embed(tmp_path / "a.wav")
        scale = 1 if subtype == "FLOAT" else 32768
        for waveform in (samples, torch.from_numpy(samples), samples.astype(np.float64) / scale):
            assert relative_error(encoder.embed((waveform, rate)), expected) < 1e-6
    again = {"waveform": torch.from_numpy(whole), "sample_rate": rate}
    soundfile.write(tmp_path / "b.wav", whole.T, rate)
    score = encoder.verify(tmp_path / "a.wav", tmp_path / "b.wav").score
    assert encoder.verify(tmp_path / "a.wav", again).score == pytest.approx(score, abs=1e-6)
    with AudioFile(tmp_path / "a.wav", crossings=encoder.system.resampling) as a, encoder.open(again) as b:
        (found,) = encoder.verify_batch([a.read()], [b.read()])
    assert found.score == pytest.approx(score, abs=1e-5)
    windows = (encoder.embed_windows(audio, 1.0, 1.0)[0] for audio in (again, tmp_path / "b.wav"))
    assert relative_error(*windows) < 1e-6


def test_nonsense_gets_one_line(encoder):
    tone = np.ones(16000, np.float32)
    for nonsense in (
        lambda: encoder.embed(tone), lambda: encoder.embed((tone.astype(int), 16000)),
        lambda: encoder.embed((np.ones((16000, 2)), 16000)), lambda: encoder.embed((tone[:0], 16000)),
        lambda: encoder.embed({"waveform": tone}), lambda: encoder.scoring_vectors("a.wav"),
        lambda: encoder.embed_windows((tone, 16000), last="end"), lambda: encoder.compare(tone, tone),
        lambda: encoder.verify_batch([tone], [tone, tone]), lambda: encoder.verify_batch([tone * np.nan], [tone]),
        lambda: encoder.embed_batch(np.ones((16000, 2), np.float32)), lambda: encoder.embed_batch([tone], [1.5]),
        lambda: encoder.embed_batch([tone, tone], weights=np.ones((1, 100), np.float32)),
        lambda: encoder.embed_excerpt((tone, 16000), -1, 1), lambda: encoder.embed_excerpt((tone, 16000), 0.5, 1.1),
        lambda: encoder.embed_excerpts((tone, 16000), []), lambda: encoder.embed((tone, 0)),
        lambda: encoder.verify((0 * tone, 16000), (0 * tone, 16000)), lambda: encoder.decide(0.5, threshold=45),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            nonsense()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("system", SYSTEMS)
def test_frame_weights(system):
    """0 and 1 leave frames out of the pooling; pyannote's formula for weights between; a pipeline's call."""
    encoder = encoder_of(system)
    waveforms = torch.from_numpy(np.stack([voice(120, 2.0, 0), voice(200, 2.0, 1), voice(90, 2.0, 2)]))
    alike = encoder.embed_batch(waveforms, weights=torch.ones(3, 7))
    torch.nn.functional.linear(alike, torch.ones(1, encoder.dimension, requires_grad=True)).sum().backward()
    assert relative_error(alike, encoder.embed_batch(waveforms)) < 1e-5
    assert (encoder.sample_rate, encoder.metric, encoder.dimension) == (16000, "cosine", encoder.network.embedding_size)
    mask = torch.zeros(3, 100)
    mask[0, :50], mask[1, 20:90] = 1, 1
    found = encoder(waveforms[:, None], mask)
    assert np.isnan(found[2]).all() and np.array_equal(found[:2], encoder.embed_batch(waveforms[:2], weights=mask[:2]))
    assert relative_error(found[0], encoder.embed_batch(waveforms[:1])[0]) > 1e-3
    if system == "pyannote":
        x, weight = torch.randn(2, 5, 40), torch.rand(2, 1, 40)
        total = weight.sum(2)
        mean = (x * weight).sum(2) / total
        variance = ((x - mean[:, :, None]) ** 2 * weight).sum(2) / (total - weight.square().sum(2) / total)
        for given, expected in zip(mean_and_variance(x, weight, unbiased=True), (mean, variance)):
            assert relative_error(given.squeeze(2), expected) < 1e-5
        return
    x, keep = torch.randn(1, encoder.network.layer4.out_channels, 1, 40), torch.arange(40) % 3 > 0
    pooled = encoder.network.pool(x, keep.float())
    assert relative_error(pooled.detach(), encoder.network.pool(x[..., keep]).detach()) < 1e-5


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("system", ["ours", "pyannote"])
def test_a_long_file_is_the_weighted_mean_of_its_windows(system, rate, tmp_path, monkeypatch):
    monkeypatch.setattr(reading_module, "LONG_SECONDS", 5)
    monkeypatch.setattr(encoder_module, "WINDOW_SECONDS", 2)
    encoder, path, samples = encoder_of(system), tmp_path / "long.wav", int(13.3 * rate)
    soundfile.write(path, voice(120, 13.3 * rate / 16000, 1)[:samples] * np.linspace(0.1, 2, samples), rate, "FLOAT")
    with AudioFile(path, crossings=encoder.system.resampling) as file:
        waveform = file.read()[None]
    windows = [waveform[:, 32000 * i : 32000 * (i + 1)] for i in range(5)] + [waveform[:, 160000:]]  # 2 s, the last 3.3
    parts = torch.cat([encoder.embed_batch(window) for window in windows])
    expected = torch.tensor([2, 2, 2, 2, 2, 3.3]) @ parts / 13.3
    windows = [waveform[:, 16000 * start : 16000 * (start + 2)] for start in (1, 3, 5)]
    excerpt = torch.cat([encoder.embed_batch(window) for window in windows]).mean(dim=0)
    counts, read = [], AudioFile.read
    monkeypatch.setattr(AudioFile, "read", lambda *args: counts.append((*args, 0)[2]) or read(*args))
    found = encoder.embed_for_scoring([path])[path]
    assert found.seconds == pytest.approx(13.3, abs=1 / 16000) and 0 < max(counts) < 4 * 16000
    for embedding in (encoder.embed(path), found.embedding, encoder.embed_excerpt(path, 0, 13.3)):
        assert relative_error(embedding, expected) < 1e-4
    assert relative_error(encoder.embed_excerpt(path, 1, 7), excerpt) < 1e-4
    size = encoder.network.embedding_size
    assert relative_error(F.normalize(torch.tensor(found.vector[:size]), dim=0), F.normalize(expected, dim=0)) < 1e-4
    (tmp_path / "nan.wav").write_bytes(path.read_bytes()[:-8] + 2 * np.float32("nan").tobytes())
    (_, broken, _), (_, embedding, _) = encoder.embed_files(["nan.wav", "long.wav"], tmp_path)
    assert isinstance(broken, UnreadableAudio) and relative_error(embedding, expected) < 1e-4
    call = np.concatenate([np.zeros(48000), voice(120, 6, 1)])  # begins with silence; of 8 kHz, a remark on each window
    soundfile.write(tmp_path / "call.wav", call, 8000)
    assert encoder.scoring_vectors([tmp_path / "call.wav"]).any()
    soundfile.write(tmp_path / "silent.wav", np.zeros(8 * rate), rate)
    for embed in (encoder.embed, encoder.embed_windows):
        with pytest.warns(AudioWarning, match=r"silent\.wav is silent"):
            embed(tmp_path / "silent.wav")


def test_batches_of_other_kinds(encoder):
    waveforms = torch.round(3000 * torch.randn(3, 8000)).clamp(-32768, 32767)
    expected = encoder.embed_batch(waveforms / 32768)
    assert torch.equal(encoder.embed_batch(waveforms.to(torch.int16)), expected)
    assert torch.equal(encoder.embed_batch(waveforms.numpy().astype(np.float64) / 32768), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.embed_batch(waveforms / 32768), expected)
    padded = waveforms / 32768
    padded[0, 200:], padded[1, 8000 - 100 :] = torch.nan, 1e30  # what lies behind an end may be anything
    found = encoder.embed_batch(padded, [200, 7900, 8000])  # the first is repeated to what the network needs
    for row, waveform, length in zip(found, padded, (200, 7900, 8000)):
        assert relative_error(row, encoder.embed_batch(waveform[None, :length])[0]) < 1e-5
    assert torch.equal(encoder.embed_batch(padded, [0.025, 0.9875, 1.0]), found)  # fractions, as SpeechBrain has them
    assert torch.equal(encoder.embed_batch([padded[0, :200], padded[1, :7900].numpy(), padded[2]]), found)
    assert torch.equal(encoder.embed_batch(waveforms[:, None] / 32768), expected)
    assert relative_error(encoder.embed_batch(waveforms[0] / 32768), expected[:1]) < 1e-5
    assert encoder.embed_batch(waveforms[:0]).shape == (0, 192)
    for given, lengths in ((waveforms.int(), None), (waveforms, [1.0, 1.5, 1.0]), ("a.wav", None), (None, None),
                           (waveforms, [1, 2]), (waveforms, [0, 1, 1]), ([waveforms], None)):  # fmt: skip
        with pytest.raises(InputError, match="lengths must be 3" if lengths else "waveforms? must"):
            encoder.embed_batch(given, lengths)


@pytest.mark.parametrize("system", ["ours", "pyannote"])
@pytest.mark.parametrize(("kind", "remark"), [
    ("0.01 s", "is only .* s long, repeated"), ("0.3 s", r"is only 0\.3 s long"), ("dc", "is silent"),
    ("speech", None), ("clipped", r"is clipped \(\d+\.\d %"), ("huge", r"has samples up to [\d.e+]+, full scale is 1"),
])  # fmt: skip
def test_unfit_utterances_are_embedded_with_a_warning(system, kind, remark, tmp_path, recwarn):
    encoder = encoder_of(system)
    speech = voice(120, 2.0, 0)
    samples = {"0.01 s": speech[4000:4160], "0.3 s": speech[:4800], "dc": 0 * speech + 0.25, "speech": speech,
               "clipped": np.clip(20 * speech, -1, 1), "huge": 1e4 * speech}[kind]  # fmt: skip
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    assert np.isfinite(encoder.embed(tmp_path / "x.wav")).all()
    assert np.isfinite(encoder.embed_for_scoring(["x.wav"], tmp_path)["x.wav"].vector).all()
    assert [each.category for each in recwarn] == 2 * [AudioWarning] if remark else not recwarn.list
    assert all(re.search(rf"x\.wav {remark}", str(each.message)) for each in recwarn)


def save_model(path, network, system="ours", thresholds=None, speakers=("a", "b", "c")):
    """A model file of ours. Returns its classifier."""
    weights = {f"speaker_encoder.{key}": value for key, value in network.state_dict().items()}
    weights["speaker_loss.weight"] = torch.randn(len(speakers), network.embedding_size)
    save_checkpoint(path, {
        "kind": "model", "settings": {"C": network.C, "system": system}, "weights": weights, "speakers": list(speakers),
        "scores": {"trials": {"eer": 5.0, "thresholds": thresholds, "cosine_threshold": 0.41}} if thresholds else {},
    })  # fmt: skip
    return weights["speaker_loss.weight"]


def test_our_own_model_brings_its_threshold_and_its_speakers(tmp_path, utterances):
    thresholds = {"EER": 0.31, "1%": 0.52, "0.1%": None}
    classifier = save_model(tmp_path / "x.model", small_network(), thresholds=thresholds)
    encoder = SpeakerEncoder.from_checkpoint(tmp_path / "x.model", "auto")
    assert (encoder.threshold, encoder.thresholds) == (0.31, thresholds)
    assert encoder.decide(0.31).same_speaker is True and encoder.decide(0.3099).same_speaker is False
    cosines = F.cosine_similarity(torch.from_numpy(encoder.embed(utterances / "2.wav"))[None], classifier)
    with pytest.raises(InputError, match="--device warp9 is not available"):
        SpeakerEncoder.from_checkpoint(tmp_path / "x.model", "warp9")
    found = encoder.classify(utterances / "2.wav")
    assert found.speaker == "abc"[cosines.argmax()] and found.score == pytest.approx(cosines.max().item(), abs=1e-6)
    waveforms = [soundfile.read(utterances / f"{number}.wav", dtype="float32")[0] for number in (3, 2)]
    batch = encoder.classify_batch(waveforms)
    assert relative_error(batch.scores[1], cosines) < 1e-5 and batch.speaker[1] == found.speaker
    assert batch.index.tolist() == batch.scores.argmax(dim=1).tolist() and batch.score[1] == batch.scores[1].max()
    encoder.speakers = None
    assert encoder.classify(utterances / "2.wav").speaker == f"class {cosines.argmax()}"
    a, b = (encoder.embed(utterances / name) for name in ("2.wav", "3.wav"))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert encoder.compare(a, b) == (pytest.approx(cosine, abs=1e-6), cosine >= 0.41, 0.41)


def test_broken_weights_give_no_scores(utterances):
    encoder = SpeakerEncoder(small_network())
    with pytest.raises(InputError, match="has no classifier"):
        encoder.classify(utterances / "2.wav")
    encoder.network.fc6.weight.data[0, 0] = float("nan")
    for embed in (encoder.embed, encoder.embed_windows, lambda path: encoder.embed_for_scoring([path])):
        with pytest.raises(UnreadableAudio, match=r"the embedding of .*2\.wav is not finite"):
            embed(utterances / "2.wav")
