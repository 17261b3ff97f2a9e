"""Ours beside speechbrain's and pyannote.audio's own packages, call by call, on real audio of three sampling rates.

    python3 -m venv /tmp/packages
    /tmp/packages/bin/pip install -r requirements.txt speechbrain==1.1.2 pyannote.audio==4.0.7 kaldiio
    /tmp/packages/bin/python tests/studies/packages.py ../shared/data/eval/wav

Networks of the published sizes with random weights, made by the packages. Prints the largest relative difference (L2)
of each call; exit status 1 if one is above 1e-4.
"""

import itertools
import sys
import tempfile
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
warnings.simplefilter("ignore")

import kaldiio  # noqa: E402
import numpy as np  # noqa: E402
import scipy.signal  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from published import write_lightning  # noqa: E402
from pyannote.audio import Inference  # noqa: E402
from pyannote.audio.core.task import Problem, Resolution, Specifications  # noqa: E402
from pyannote.audio.models.embedding import XVectorSincNet  # noqa: E402
from pyannote.audio.pipelines.speaker_verification import PyannoteAudioPretrainedSpeakerEmbedding  # noqa: E402
from pyannote.core import Segment  # noqa: E402
from speechbrain.dataio.encoder import CategoricalEncoder  # noqa: E402
from speechbrain.inference.speaker import SpeakerRecognition  # noqa: E402
from speechbrain.lobes.features import Fbank  # noqa: E402
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier  # noqa: E402
from speechbrain.processing.features import InputNormalization  # noqa: E402

import verify  # noqa: E402
from verify import SpeakerEncoder  # noqa: E402

worst = 0.0


def report(what, ours, theirs):
    global worst
    pairs = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in zip(ours, theirs, strict=True)]
    assert all(a.shape == b.shape for a, b in pairs), what
    error = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)
    worst = max(worst, error)
    print(f"{what:78} {error:.1e}", flush=True)


def randomise(network):
    for name, tensor in network.state_dict().items():
        if name.endswith(("norm.running_mean", "norm.bias")):
            tensor.normal_(0, 0.1)
        elif name.endswith(("running_var", "norm.weight")):
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def files_at(rate, sources, folder):
    """Real recordings at another sampling rate, in stereo: the second channel is another recording."""
    paths, signals = [], [soundfile.read(source, dtype="float32")[0] for source in sources]
    for i, (signal, other) in enumerate(zip(signals, signals[1:] + signals[:1])):
        both = np.stack([signal, np.resize(other, len(signal))], axis=1)
        paths.append(str(folder / f"{rate}-{i}.wav"))
        soundfile.write(paths[-1], scipy.signal.resample_poly(both, rate // 100, 160), rate)
    return paths


def first_channels(paths, samples):
    return [torch.from_numpy(soundfile.read(path, dtype="float32")[0][:samples, 0]) for path in paths]


def compare_speechbrain(folder, files):
    torch.manual_seed(0)
    network = ECAPA_TDNN(80, lin_neurons=192, channels=[1024] * 4 + [3072], device="cpu")
    torch.save(randomise(network).state_dict(), folder / "embedding_model.ckpt")
    classifier, encoder = Classifier(192, out_neurons=50), CategoricalEncoder()
    torch.save(classifier.state_dict(), folder / "classifier.ckpt")
    labels = "".join(f"'id{i:05d}' => {i}\n" for i in range(50))
    (folder / "label_encoder.txt").write_text(f"{labels}================\n'starting_index' => 0\n")
    encoder.load(folder / "label_encoder.txt")
    encoder.ignore_len()
    normalization = InputNormalization(norm_type="sentence", std_norm=False)
    modules = {"compute_features": Fbank(n_mels=80), "mean_var_norm": normalization, "embedding_model": network,
               "classifier": classifier}  # fmt: skip
    theirs = SpeakerRecognition(modules, {"label_encoder": encoder})
    ours = SpeakerEncoder.from_checkpoint(folder)
    for rate, paths in files.items():
        pairs = list(itertools.pairwise(paths))
        expected = [theirs.verify_files(a, b, savedir=str(folder / "audio")) for a, b in pairs]
        found = [ours.verify(a, b) for a, b in pairs]
        scores = [float(score) for score, _ in expected]
        report(f"speechbrain verify_files, {rate} Hz", [f.score for f in found], scores)
        assert [f.same_speaker for f in found] == [bool(decision) for _, decision in expected]
        expected = [theirs.classify_file(path, savedir=str(folder / "audio")) for path in paths]
        assert [ours.classify(path).speaker for path in paths] == [names[0] for *_, names in expected]
    batch = torch.stack(first_channels(files[16000], 16000))
    report("speechbrain encode_batch", ours.embed_batch(batch), theirs.encode_batch(batch).squeeze(1))
    report("speechbrain encode_batch of (samples,)", ours.embed_batch(batch[0]), theirs.encode_batch(batch[0])[0])
    score, decision = theirs.verify_batch(batch[:-1], batch[1:])
    found = ours.verify_batch(batch[:-1], batch[1:])
    report("speechbrain verify_batch", [f.score for f in found], score.flatten())
    assert [f.same_speaker for f in found] == decision.flatten().tolist()
    expected, found = theirs.classify_batch(batch), ours.classify_batch(batch)
    report("speechbrain classify_batch, all scores", found.scores, expected[0])
    assert found.index.tolist() == expected[2].tolist() and found.speaker == expected[3]
    lengths = torch.linspace(0.5, 1, len(batch))
    alone = [theirs.encode_batch(row[None, : round(float(r) * 16000)])[0, 0] for row, r in zip(batch, lengths)]
    report("speechbrain relative lengths: ours in a batch, theirs one by one", ours.embed_batch(batch, lengths), alone)


def compare_pyannote(folder, files):
    torch.manual_seed(0)
    model = randomise(XVectorSincNet())
    model.specifications = Specifications(Problem.REPRESENTATION, Resolution.CHUNK, duration=5.0, classes=["a", "b"])
    write_lightning(folder / "pytorch_model.bin", model.state_dict())
    ours = SpeakerEncoder.from_checkpoint(folder)
    whole, slide = Inference(model, window="whole"), Inference(model, window="sliding", duration=1.5, step=0.4)
    for rate, paths in files.items():
        memory = []
        for path in paths:  # given as waveforms, because their reading of files needs torchcodec's libraries
            waveform, _ = soundfile.read(path, dtype="float32", always_2d=True)
            memory.append({"waveform": torch.from_numpy(waveform.T.copy()), "sample_rate": rate})
        report(f"pyannote window='whole', {rate} Hz", map(ours.embed, paths), map(whole, memory))
        report(f"pyannote window='whole' in memory, {rate} Hz", map(ours.embed, memory), map(whole, memory))
        windows = [ours.embed_windows(path, 1.5, 0.4)[0] for path in paths]
        report(f"pyannote window='sliding', {rate} Hz", windows, [slide(each).data for each in memory])
        # pyannote cuts, then resamples, which changes an excerpt's edges; ours is a part of the resampled file.
        memory = [{"waveform": model.audio(each)[0], "sample_rate": 16000} for each in memory]
        windows = [ours.embed_windows(path, 1.5, 0.4, 0.3, 2.0)[0] for path in paths]
        expected = [slide.crop(each, Segment(0.3, 2.0)).data for each in memory]
        report(f"pyannote sliding in an excerpt, {rate} Hz", windows, expected)
        excerpts = [whole.crop(each, Segment(0.5, 1.5)) for each in memory]
        report(f"pyannote crop, {rate} Hz", [ours.embed_excerpt(path, 0.5, 1.5) for path in paths], excerpts)
        segments = [(0.2, 1.0), (1.25, 2.0)]
        joined = [whole.crop(each, [Segment(*segment) for segment in segments]) for each in memory]
        report(f"pyannote crop of segments, {rate} Hz", [ours.embed_excerpts(path, segments) for path in paths], joined)
    batch = torch.stack(first_channels(files[16000], 24000))
    masks = torch.rand(len(batch), 293)
    masks[0, :150], masks[1] = 0, (masks[1] > 0.5).float()
    pipeline = PyannoteAudioPretrainedSpeakerEmbedding(model)
    report("pyannote frame weights", ours(batch[:, None], masks), pipeline(batch[:, None], masks=masks))
    report("pyannote pipeline's call", ours(batch[:, None]), pipeline(batch[:, None]))
    for name in ("sample_rate", "dimension", "metric"):
        assert getattr(pipeline, name) == getattr(ours, name)


def compare_kaldi(folder, files):
    (folder / "wav.scp").write_text("".join(f"utterance-{i} {path}\n" for i, path in enumerate(files[16000])))
    sys.argv = ["verify.py", "--embed", str(folder / "wav.scp"), "--out", str(folder / "x.ark"), "--model", str(folder),
                "--paths_anywhere"]  # fmt: skip
    assert verify.main() == 0
    found = kaldiio.load_scp(str(folder / "x.scp"))
    assert list(found) == [f"utterance-{i}" for i in range(len(files[16000]))]
    encoder = SpeakerEncoder.from_checkpoint(folder)
    report("kaldiio reads --out x.ark", list(found.values()), map(encoder.embed, files[16000]))


def main(audio):
    sources = sorted(Path(audio).rglob("*.*"))[::7][:8]
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("audio", "speechbrain", "pyannote")]
        for folder in folders:
            folder.mkdir()
        files = {rate: files_at(rate, sources, folders[0]) for rate in (8000, 16000, 44100)}
        compare_speechbrain(folders[1], files)
        compare_pyannote(folders[2], files)
        compare_kaldi(folders[2], files)
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
