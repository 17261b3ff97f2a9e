"""SpeakerEncoder: from waveforms and files to embeddings, and from embeddings to scores and decisions.

verify.py is its command line; trainSpeakerNet.py evaluates with it.
"""

import concurrent.futures
import hashlib
import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from corpora.audio import SAMPLE_RATE, Folder, UnreadableAudio
from corpora.pack import Pack
from inference.checkpoints import Pretrained, load_pretrained
from inference.systems import SYSTEMS
from tools import InputError, in_order, progress_bar

CROPS = 5  # the customary score uses each whole utterance and five crops of three seconds
CROP_SAMPLES = 300 * 160 + 240
# Audio in a batch of utterances. More is no faster on a CPU; with less, a GPU is partly idle.
BATCH_SECONDS = {"cpu": 30, "mps": 120, "cuda": 300}
LONG_SECONDS = 300  # longer utterances are embedded in windows: the activations of the whole would take gigabytes
WINDOW_SECONDS = 60
MAX_WARNINGS = 10  # about the utterances of one evaluation
TRIALS_AT_ONCE = 100_000  # the vectors of a million trials would take gigabytes


class Utterance(NamedTuple):
    """A file after one reading: all that scoring, score normalisation and calibration need."""

    vector: np.ndarray  # (V,) float32: dot products of these are the system's scores
    embedding: np.ndarray  # (D,) float32 of the whole utterance, not normalised
    seconds: float


class Verification(NamedTuple):
    """A score and the decision; the last two are None when there is no threshold."""

    score: float
    same_speaker: bool | None
    threshold: float | None


class Classification(NamedTuple):
    """The closest training speaker, and the cosine with that speaker's class vector."""

    speaker: str
    score: float


class AudioWarning(UserWarning):
    """An utterance was embedded that is very short, silent or clipped."""


def choose_device(name="auto"):
    """A torch.device: the named one, or with "auto" a CUDA GPU, else Apple's GPU, else the CPU. InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type not in BATCH_SECONDS:
            raise NotImplementedError("not one of cpu, cuda, mps")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name} is not available ({str(error).splitlines()[0]})") from error
    return torch.device(name)


class SpeakerEncoder:
    """A trained network that embeds, scores and decides, with the threshold and the speakers that its file contains.

    Always float32 and in eval mode. An embedding depends only on the model and the utterance, not on the others in its
    batch (to rounding). Utterances over five minutes get the length-weighted mean of the embeddings (not normalised) of
    their one-minute windows; the last window includes the remainder and lasts up to two minutes.

    threshold: the lowest score that counts as the same speaker (with ``system.above``: scores must be above it), or
    None; origin: where it comes from, for printing; thresholds: further ones of our own models, {"1%": at 1 % false
    alarms, ...}, set on the trial list ``trial_list``. channel: of several channels take this one; None: the system's
    default. held_out: speakers held out of its training, or None; trained_on: the known training speakers of this model
    and of those that it was fine-tuned from. mean: SpeechBrain's mean embedding (D,) or None; its
    ``encode_batch(normalize=True)`` subtracts it.
    """

    def __init__(self, network, device="cpu", pretrained=None):
        pretrained = pretrained or Pretrained("ours", network)
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.system = SYSTEMS[pretrained.system]
        self.threshold, self.origin = pretrained.threshold, pretrained.origin
        self.thresholds, self.trial_list = pretrained.thresholds, pretrained.trial_list
        self.classifier, self.speakers, self.mean = pretrained.classifier, pretrained.speakers, pretrained.mean
        self.held_out, self.trained_on = pretrained.held_out, pretrained.trained_on()
        self.vector_size = self.network.embedding_size * (2 if self.system.crops else 1)  # of scoring vectors
        self.channel = None

    @classmethod
    def from_checkpoint(cls, path, device="cpu", system=None):
        """An encoder from a file or folder, ours or another system's; errors as in ``load_pretrained``.

        device: a torch.device or its name; "auto": a GPU if there is one. system: a key of SYSTEMS; None: recognised.
        """
        device, found = choose_device(device), load_pretrained(path, system)
        return cls(found.network, device, found)

    from_pretrained = from_checkpoint

    def embed_batch(self, waveforms, lengths=None):
        """Embeddings of a batch of utterances, (B, D) float32 on the CPU, not normalised.

        waveforms: (B, samples) at 16 kHz, floating point in [-1, 1] or int16; lengths: (B,) samples of each, None: all;
        samples after them are ignored. Utterances that are too short for the network are repeated.
        """
        waveforms = torch.as_tensor(waveforms)
        if waveforms.dim() != 2 or not (waveforms.is_floating_point() or waveforms.dtype == torch.int16):
            raise ValueError(f"waveforms must be (B, samples) floats or int16, not {waveforms.shape} {waveforms.dtype}")
        if len(waveforms) == 0:
            return torch.empty(0, self.network.embedding_size)
        batch, samples = waveforms.shape
        lengths = torch.full((batch,), samples) if lengths is None else torch.as_tensor(lengths)
        in_range = lengths.shape == (batch,) and bool(((lengths > 0) & (lengths <= samples)).all())
        if lengths.is_floating_point() or not in_range:  # SpeechBrain's lengths are fractions of the longest
            raise ValueError(f"lengths must be {batch} whole numbers of samples from 1 to {samples}")
        scale = 1 / 32768 if waveforms.dtype == torch.int16 else 1.0
        return self._embed([row[:length] for row, length in zip(waveforms, lengths.tolist())], scale)

    def embed_many(self, waveforms):
        """A list of (samples,) float32 tensors -> (N, D), computed in batches of similar length."""
        order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
        most = BATCH_SECONDS[self.device.type] * SAMPLE_RATE
        embeddings = torch.empty(len(waveforms), self.network.embedding_size)
        while order:
            longest = max(len(waveforms[order[-1]]), self.system.shortest)
            batch = order[-max(1, most // longest) :]
            del order[-len(batch) :]
            embeddings[batch] = self._embed([waveforms[i] for i in batch])
        return embeddings

    def embed(self, path):
        """The embedding of a file, (D,) float32 numpy, not normalised. Raises UnreadableAudio."""
        with self._source().open(path) as audio:
            return self._embed_part(audio, path, 0, audio.length)

    def embed_excerpt(self, path, start, end):
        """The embedding (D,) of the part between two times in seconds. InputError if they are not in the file."""
        with self._source().open(path) as audio:
            seconds = audio.length / SAMPLE_RATE
            if not 0 <= start < min(end, seconds) or end > seconds + 1.5 / SAMPLE_RATE:  # times may have been rounded
                raise InputError(f"{path} lasts {seconds:.2f} s: no excerpt from {start} s to {end} s")
            first = min(round(start * SAMPLE_RATE), audio.length - 1)
            last = min(round(end * SAMPLE_RATE), audio.length)
            return self._embed_part(audio, path, first, max(1, last - first))

    def embed_windows(self, path, duration=3.0, step=1.0):
        """Embeddings of a sliding window: (N, D), and the (N, 2) start and end of each in seconds.

        Windows start every ``step`` seconds and end within the file; a file shorter than ``duration`` is one window.
        """
        if not (0 < duration <= LONG_SECONDS and step * SAMPLE_RATE >= 1 and step < math.inf):
            raise InputError(f"a window of {duration} s every {step} s: both must be above 0, at most {LONG_SECONDS}")
        embeddings, remarks = [], []
        with self._source().open(path) as audio:
            size = min(round(duration * SAMPLE_RATE), audio.length)
            count = 1 + math.floor((audio.length - size) / (step * SAMPLE_RATE) + 1e-9)
            starts = [min(round(i * step * SAMPLE_RATE), audio.length - size) for i in range(count)]
            at_once = max(1, BATCH_SECONDS[self.device.type] * SAMPLE_RATE // size)
            for i in range(0, count, at_once):
                windows = [audio.read(start, size) for start in starts[i : i + at_once]]
                embeddings.append(self.embed_batch(np.stack(windows)).numpy())
                remarks += [self._remark(path, window) for window in windows]
        if all(remarks):
            warnings.warn(remarks[0], AudioWarning, stacklevel=2)
        return require_finite(np.concatenate(embeddings), path), (np.array(starts)[:, None] + [0, size]) / SAMPLE_RATE

    def embed_files(self, files, root=".", threads=4):
        """Embed many files, read ahead by threads, in batches of similar length.

        root: the folder of the files (a path or a Folder), or a Pack. Channel and resampling are the system's; for a
        Pack, those it was made with. Yields (file, (D,) embedding or UnreadableAudio, remark) in the order of the
        files; remark: why the embedding may be poor (very short, silent, clipped), or "".
        """
        for file, found, remark in self._utterances(files, root, threads, crops=False):
            yield file, found if isinstance(found, UnreadableAudio) else found.embedding, remark

    def embed_for_scoring(self, files, root=".", threads=4, unreadable=None):
        """Read and embed each file once: {file: Utterance}. files, root, threads: as for ``embed_files``.

        The dot products of their vectors are the system's scores: for most systems the cosines of whole utterances. The
        customary score, of this recipe and TaoRuijie's, is the mean of that cosine and of the 5 x 5 cosines between
        five evenly spaced three-second crops of each (shorter utterances are wrapped around). The mean of all cosines
        between two sets is the dot product of the sets' mean unit vectors, so a vector is the whole utterance's unit
        vector and the mean of the crops' unit vectors, concatenated, over sqrt(2).

        UnreadableAudio, also for an embedding that is not finite, is raised, or appended to the list ``unreadable``.
        """
        files, utterances, remarks = list(dict.fromkeys(files)), {}, []
        with progress_bar(total=len(files), desc="embedding", unit="utt", delay=1) as bar:
            for file, found, remark in self._utterances(files, root, threads, self.system.crops):
                bar.update()
                if not isinstance(found, UnreadableAudio):
                    utterances[file] = found
                    remarks += [remark] if remark else []
                elif unreadable is None:
                    raise found
                else:
                    unreadable.append(found)
        for remark in remarks[:MAX_WARNINGS]:
            warnings.warn(remark, AudioWarning, stacklevel=2)
        if len(remarks) > MAX_WARNINGS:
            total = f"{len(remarks)} of {len(files)} files are very short, silent or clipped; the first were named"
            warnings.warn(total, AudioWarning, stacklevel=2)
        return utterances

    def verify(self, first, second, threshold=None):
        """The Verification of two files: score and decision. threshold: from -1 to 1; None: that of the model."""
        first, second = (self.embed_for_scoring([file])[file].vector for file in (first, second))
        return self.decide(first @ second, threshold)

    def decide(self, score, threshold=None):
        """The Verification of a score; threshold as in ``verify``."""
        threshold = self.threshold if threshold is None else float(threshold)
        if threshold is not None and not -1 <= threshold <= 1:
            raise InputError(f"a threshold must be from -1 to 1, not {threshold}")
        score = min(1.0, max(-1.0, float(score)))
        if self.system.decimals is not None:
            score = round(score, self.system.decimals)
        if threshold is None:
            return Verification(score, None, None)
        return Verification(score, score > threshold if self.system.above else score >= threshold, threshold)

    def classify(self, path):
        """The Classification of a file. InputError for a model without a classifier or speaker names."""
        if self.classifier is None or self.speakers is None:
            raise InputError(f"this model of {self.system.title} has no classifier or no speaker names")
        embedding = F.normalize(torch.from_numpy(self.embed(path)), dim=0)
        cosines = F.normalize(self.classifier.float(), dim=-1) @ embedding
        if cosines.dim() == 2:  # sub-centres
            cosines = cosines.amax(dim=1)
        # A classifier may have more classes than there were speakers (--n_class, --speed_perturb).
        best = int(cosines[: len(self.speakers)].argmax())
        return Classification(self.speakers[best], float(cosines[best]))

    def fingerprint(self):
        """A hash of system and weights; only embeddings of models with the same hash can be compared."""
        digest = hashlib.sha256(self.system.title.encode())
        for key, tensor in self.network.state_dict().items():
            digest.update(key.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def _embed(self, rows, scale=1.0):
        """A list of (samples,) tensors -> (B, D) float32 on the CPU, in one batch; scale: factor on the samples."""
        least = self.system.shortest
        rows = [row if len(row) >= least else row.repeat(-(-least // len(row)))[:least] for row in rows]
        waveforms = pad_sequence(rows, batch_first=True).to(self.device, torch.float32) * scale
        lengths = [len(row) for row in rows]
        lengths = torch.tensor(lengths, device=self.device) if len(set(lengths)) > 1 else None
        training = self.network.training
        self.network.eval()
        # TF32, cuDNN's default for convolutions, rounds to 10 bits of mantissa; a caller's autocast also rounds.
        tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        try:
            with tf32, torch.autocast(self.device.type, enabled=False):
                return self.network(waveforms, lengths=lengths).float().cpu()
        finally:
            self.network.train(training)

    def _embed_part(self, audio, name, first, samples):
        """The (D,) embedding of a part of an open file; for a long part, the mean over its one-minute windows."""
        window = WINDOW_SECONDS * SAMPLE_RATE
        count = samples // window if samples > LONG_SECONDS * SAMPLE_RATE else 1
        edges = [*range(first, first + count * window, window), first + samples]
        total, remarks = torch.zeros(self.network.embedding_size, dtype=torch.float64), []
        for i in progress_bar(iterable=range(count), desc="a long file", unit="min", delay=5):
            waveform = audio.read(edges[i], edges[i + 1] - edges[i])
            remarks.append(self._remark(name, waveform))
            total += len(waveform) * self.embed_batch(waveform[None])[0].double()
        if all(remarks):
            warnings.warn(remarks[0], AudioWarning, stacklevel=3)
        return require_finite((total / samples).float().numpy(), name)

    def _scoring_vectors(self, embeddings, crops):
        """(N, D) of whole utterances, N tensors (crops, samples) or None -> N vectors (V,) numpy."""
        whole = F.normalize(embeddings)
        if crops is None:
            return list(whole.numpy())
        parts = F.normalize(self.embed_many([crop for each in crops for crop in each]))
        means = [each.mean(dim=0) for each in parts.split([len(each) for each in crops])]
        return [(torch.cat(pair) / math.sqrt(2)).numpy() for pair in zip(whole, means)]

    def _source(self, root="."):
        """A Pack unchanged; for a path or a Folder, the folder read with the system's channel and resampling."""
        if isinstance(root, Pack):
            return root
        channel = 0 if self.channel is None and self.system.first_channel else self.channel
        return Folder(root.root if isinstance(root, Folder) else root, channel, self.system.resampling)

    def _utterances(self, files, root, threads, crops):
        """Yield (file, Utterance or UnreadableAudio, remark) in the order of the files. crops: also embed crops."""
        source, least = self._source(root), CROP_SAMPLES if crops else self.system.shortest
        for group in one_ahead(self._groups(files, source, threads, least)):
            waveforms = [found for _, found, _ in group if isinstance(found, torch.Tensor)]
            whole = self.embed_many(waveforms)
            vectors = self._scoring_vectors(whole, [scoring_crops(each) for each in waveforms] if crops else None)
            computed = map(Utterance, vectors, whole.numpy(), [len(each) / SAMPLE_RATE for each in waveforms])
            for file, found, remark in group:
                try:
                    if not isinstance(found, UnreadableAudio):
                        found = self._long_utterance(source, file, crops) if found is None else next(computed)
                        require_finite(found.vector, file)
                except UnreadableAudio as error:
                    found = error
                yield file, found, remark

    def _groups(self, files, source, threads, least):
        """Yield lists of (file, waveform or None if long or UnreadableAudio, remark), each enough for some batches."""
        group, samples = [], 0
        for each in in_order(lambda file: self._read(source, file), files, threads):
            group.append(each)
            if not isinstance(each[1], UnreadableAudio):
                samples += LONG_SECONDS * SAMPLE_RATE if each[1] is None else max(least, len(each[1]))
            if samples >= 8 * BATCH_SECONDS[self.device.type] * SAMPLE_RATE:
                yield group
                group, samples = [], 0
        if group:
            yield group

    def _read(self, source, file):
        try:
            with source.open(file) as audio:
                if audio.length > LONG_SECONDS * SAMPLE_RATE:
                    return file, None, ""
                waveform = audio.read()
                return file, torch.from_numpy(waveform), self._remark(source.name(file), waveform)
        except UnreadableAudio as error:
            return file, error, ""

    def _long_utterance(self, source, file, crops):
        with source.open(file) as audio:
            embedding = self._embed_part(audio, source.name(file), 0, audio.length)
            parts = [torch.from_numpy(audio.read(start, CROP_SAMPLES)) for start in crop_starts(audio.length)]
        crops = [torch.stack(parts)] if crops else None
        (vector,) = self._scoring_vectors(torch.from_numpy(embedding)[None], crops)
        return Utterance(vector, embedding, audio.length / SAMPLE_RATE)

    def _remark(self, name, waveform):
        """A warning that an utterance is very short, silent or clipped, or ""."""
        samples, low, high = len(waveform), float(waveform.min()), float(waveform.max())
        if samples < 0.5 * SAMPLE_RATE:
            repeated = ", repeated to the network's minimum" if samples < self.system.shortest else ""
            return f"{name} is only {samples / SAMPLE_RATE:.2g} s long{repeated}: its embedding is unreliable"
        if high - low < 1e-3:  # -66 dB of full scale: 16 steps of 16-bit audio to either side
            return f"{name} is silent: its embedding is meaningless"
        if (peak := max(high, -low)) > 100:  # not a codec's overshoot but integers stored as floats
            return f"{name} has samples up to {peak:.3g}, full scale is 1: its embedding is unreliable"
        if (clipped := float((np.abs(waveform) > 0.999).mean())) > 0.01:
            return f"{name} is clipped ({100 * clipped:.1f} % of its samples): its embedding is unreliable"
        return ""


def require_finite(embedding, name):
    """The embedding itself; UnreadableAudio if it is not finite."""
    if not np.isfinite(embedding).all():
        raise UnreadableAudio(f"the embedding of {name} is not finite: damaged weights, or samples far beyond 1")
    return embedding


def crop_starts(length):
    """First samples of the five crops of an utterance of at least CROP_SAMPLES, evenly spaced."""
    return np.linspace(0, length - CROP_SAMPLES, CROPS).astype(int)


def scoring_crops(waveform):
    """(samples,) -> (5, 48240) evenly spaced crops; a short utterance gives one crop, wrapped around, (1, 48240)."""
    if len(waveform) <= CROP_SAMPLES:  # all five crops would be equal
        return waveform[torch.arange(CROP_SAMPLES) % len(waveform)].unsqueeze(0)
    return torch.stack([waveform[start : start + CROP_SAMPLES] for start in crop_starts(len(waveform))])


def score_trials(trials, utterances):
    """A TrialList and {file: Utterance} -> (N,) float32 dot products of their vectors."""
    vectors = np.stack([each.vector for each in utterances.values()])
    return dot_products(vectors, *trial_rows(trials, utterances))


def trial_rows(trials, utterances):
    """Positions in {file: Utterance} of both sides of a TrialList: (enrol (N,), test (N,)) int64."""
    row = {file: i for i, file in enumerate(utterances)}
    return [np.array([row[file] for file in side]) for side in (trials.enrol, trials.test)]


def dot_products(vectors, enrol, test):
    """(U, D), rows of the two sides of each trial (N,) -> (N,) float32."""
    blocks = [slice(first, first + TRIALS_AT_ONCE) for first in range(0, len(enrol), TRIALS_AT_ONCE)]
    return np.concatenate([np.einsum("nd,nd->n", vectors[enrol[block]], vectors[test[block]]) for block in blocks])


def one_ahead(items):
    """Yield from an iterator whose next item is prepared in a thread meanwhile. None ends it."""
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
