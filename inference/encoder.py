"""SpeakerEncoder: from waveforms and files to embeddings, and from embeddings to scores and decisions.

verify.py is its command line; trainSpeakerNet.py evaluates with it.
"""

import contextlib
import hashlib
import math
import threading
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from corpora.audio import SAMPLE_RATE, Folder, UnreadableAudio
from corpora.pack import Pack
from inference.checkpoints import Pretrained, load_pretrained
from inference.reading import LONG_SECONDS, SILENT, is_long, one_ahead, read_groups, remark_on
from inference.systems import SYSTEMS
from inference.waveforms import Recordings, as_list, as_number, as_rows, as_tensor, open_audio, span_of
from tools import InputError, progress_bar

CROPS = 5  # the customary score uses each whole utterance and five crops of three seconds
CROP_SAMPLES = 300 * 160 + 240
# Audio in a batch of utterances. More is no faster on a CPU; with less, a GPU is partly idle.
BATCH_SECONDS = {"cpu": 30, "mps": 120, "cuda": 300}
WINDOW_SECONDS = 60  # of the windows in which long files are embedded
MAX_WARNINGS = 10  # about the utterances of one call
CUDNN = threading.Lock()


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

    speaker: str  # "class 17" where the model does not name its speakers
    score: float


class BatchClassification(NamedTuple):
    """The same of a batch, in the order of SpeechBrain's classify_batch."""

    scores: torch.Tensor  # (B, speakers) cosines
    score: torch.Tensor  # (B,) the highest
    index: torch.Tensor  # (B,) of the highest
    speaker: list  # B names


class AudioWarning(UserWarning):
    """An utterance was embedded that is hardly fit for it, or not all of it was."""


def choose_device(name="auto"):
    """A torch.device: the named one, or with "auto" a CUDA GPU, else the CPU. InputError.

    Never Apple's GPU unasked: it has not been compared here, and its convolutions were silently wrong for kernels of
    256 and more, for slices of channels-last tensors and for some weights (pytorch issues 188335, 180984, 192212).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    alarms, ...}, set on the trial list ``trial_list``. cosine_threshold: the one for cosines of embeddings, which are
    another score where crops are scored, too (``system.crops``). results: {trial list: error rates} of our own models.
    channel: of several channels take this one; None: the system's default. held_out: speakers held out of its training,
    or None; trained_on: the known training speakers of this model and of those that it was fine-tuned from.
    """

    def __init__(self, network, device="cpu", pretrained=None):
        pretrained = pretrained or Pretrained("ours", network)
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.system = SYSTEMS[pretrained.system]
        self.threshold, self.origin = pretrained.threshold, pretrained.origin
        self.thresholds, self.trial_list = pretrained.thresholds, pretrained.trial_list
        self.cosine_threshold = pretrained.cosine_threshold if self.system.crops else self.threshold
        self.classifier, self.speakers = pretrained.classifier, pretrained.speakers
        self.held_out, self.trained_on = pretrained.held_out, pretrained.trained_on()
        self.mean, self.channel, self.results = None, None, pretrained.results

    @classmethod
    def from_checkpoint(cls, path, device="cpu", system=None):
        """An encoder from a file or folder, ours or another system's; errors as in ``load_pretrained``.

        device: a torch.device or its name; "auto": a GPU if there is one. system: a key of SYSTEMS; None: recognised.
        """
        device, found = choose_device(device), load_pretrained(path, system)
        return cls(found.network, device, found)

    from_pretrained = from_checkpoint

    def subtract_mean(self, embeddings):
        """Score from now on by the cosines of whole embeddings less the mean of these (N, D), as ``embed`` gives them.

        They should be of recordings such as those to be compared, but of ten or more other speakers: what all have in
        common (language, microphone, codec) then tells nobody apart; of few speakers, it is their voices. This is
        another score, so the model's own thresholds are gone. InputError.
        """
        embeddings = as_tensor(embeddings, "the embeddings").cpu()
        if embeddings.dim() != 2 or len(embeddings) < 2 or embeddings.shape[1] != self.dimension:
            raise InputError(f"the embeddings must be (2 or more, {self.dimension}), not {tuple(embeddings.shape)}")
        self.mean = embeddings.double().mean(dim=0).float()
        if self.system.crops:
            self.system = self.system._replace(crops=False)
        self.threshold, self.cosine_threshold, self.thresholds = None, None, {}

    @property
    def vector_size(self):
        """V, the size of a scoring vector."""
        return self.dimension * (2 if self.system.crops else 1)

    def embed_batch(self, waveforms, lengths=None, weights=None):
        """Embeddings of a batch of utterances, (B, D) float32 on the CPU, not normalised.

        waveforms, lengths: at 16 kHz, as for ``as_rows`` (waveforms.py). Utterances that are too short for the network
        are repeated. weights: (B, frames) from 0 to 1, for any number of frames: how much each counts in the pooling
        over time (resampled to the network's frames, as pyannote.audio does); without any weight a row gives NaN.
        Utterances with weights must be of one length. InputError.
        """
        rows = as_rows(waveforms, lengths)
        if weights is None:
            return require_finite(self.embed_many(rows), "a waveform in the batch")
        weights = as_tensor(weights, "weights")
        if weights.dim() != 2 or len(weights) != len(rows) or len(set(map(len, rows))) != 1:
            shape = f"({len(rows)}, frames), not {tuple(weights.shape)}"
            raise InputError(f"weights must be {shape}, for utterances of one length")
        return self._embed(rows, weights.to(self.device, torch.float32)).clone()  # no longer an inference tensor

    def embed_many(self, waveforms):
        """A list of (samples,) float32 tensors -> (N, D), computed in batches of similar length."""
        order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
        most = BATCH_SECONDS[self.device.type] * SAMPLE_RATE
        embeddings = torch.empty(len(waveforms), self.dimension)
        while order:
            longest = max(len(waveforms[order[-1]]), self.system.shortest)
            batch = order[-max(1, most // longest) :]
            del order[-len(batch) :]
            embeddings[batch] = self._embed([waveforms[i] for i in batch])
        return embeddings

    def embed(self, audio):
        """The embedding of an utterance, (D,) float32 numpy, not normalised. Raises UnreadableAudio."""
        with self.open(audio) as opened:
            return warned(*self._embed_part(opened, opened.path, 0, opened.length))

    def embed_excerpt(self, audio, start, end):
        """The embedding (D,) of the part between two times in seconds. InputError if they are not in the audio."""
        with self.open(audio) as opened:
            name = f"the part from {start} to {end} s of {opened.path}"
            return warned(*self._embed_part(opened, name, *span_of(opened, start, end)))

    def embed_excerpts(self, audio, segments):
        """One embedding (D,) of several parts [(start, end) in seconds] joined to one utterance. Errors likewise."""
        with self.open(audio) as opened:
            parts = [opened.read(*span_of(opened, start, end)) for start, end in as_list(segments)]
            if not parts:
                raise InputError("embed_excerpts needs at least one segment")
        return self.embed((np.concatenate(parts), SAMPLE_RATE))

    def embed_windows(self, audio, duration=3.0, step=1.0, start=0.0, end=None, last=None):
        """Embeddings of a sliding window: (N, D), and the (N, 2) start and end of each in seconds.

        Windows start every ``step`` seconds from ``start``. Where they do not reach the ``end`` (None: that of the
        audio), there is a last one: "shift" moves it back, so that it ends there (or begins at ``start``, if it is
        longer than the part); "pad" starts it at the next step and fills it with zeros, as pyannote.audio does. None:
        "pad" for pyannote, else "shift". An AudioWarning tells if windows leave gaps.
        """
        size, hop = window_of(duration, step)
        last = last or ("pad" if self.system is SYSTEMS["pyannote"] else "shift")
        if last not in ("pad", "shift"):
            raise InputError(f"the last window must be 'pad' or 'shift', not {last!r}")
        if hop > size:
            warnings.warn(f"windows of {duration} s every {step} s leave gaps between them", AudioWarning, stacklevel=2)
        embeddings, remarks = [], []
        with self.open(audio) as opened:
            first, samples = span_of(opened, start, opened.length / SAMPLE_RATE if end is None else end)
            starts = list(range(0, samples - size + 1, hop))
            if samples < size or (samples - size) % hop:
                at = max(0, samples - size) if last == "shift" else len(starts) * hop
                starts += [at] if at < samples else []
            at_once = max(1, BATCH_SECONDS[self.device.type] * SAMPLE_RATE // size)
            for i in range(0, len(starts), at_once):
                windows = [opened.read(first + at, min(size, samples - at)) for at in starts[i : i + at_once]]
                name = f"a window of {opened.path}"
                remarks += [remark_on(window, name, opened.rate, self.system.shortest) for window in windows]
                if last == "pad":
                    windows = [np.pad(window, (0, size - len(window))) for window in windows]
                embeddings.append(self.embed_many([torch.from_numpy(window) for window in windows]).numpy())
        if all(remarks):
            warnings.warn(remarks[0], AudioWarning, stacklevel=2)
        times = first + np.array([(at, min(at + size, samples)) for at in starts])
        return require_finite(np.concatenate(embeddings), opened.path), times / SAMPLE_RATE

    def embed_files(self, files, root=".", threads=4):
        """Embed many files, read ahead by threads, in batches of similar length, with a progress bar.

        root: the folder of the files (a path or a Folder), or a Pack. Channel and resampling are the system's; for a
        Pack, those it was made with. Yields (file, (D,) embedding or UnreadableAudio, remark) in the order of the
        files; remark: why the embedding may be poor (very short, silent, clipped, of a low sampling rate), or "".
        """
        for file, found, remark in self._utterances(as_list(files), self._source(root), threads, crops=False):
            yield file, found if isinstance(found, UnreadableAudio) else found.embedding, remark

    def embed_for_scoring(self, files, root=".", threads=4, unreadable=None, silence=True):
        """Read and embed each file once: {file: Utterance}. files, root, threads: as for ``embed_files``.

        The dot products of their vectors are the system's scores: for most systems the cosines of whole utterances. The
        customary score, of this recipe and TaoRuijie's, is the mean of that cosine and of the 5 x 5 cosines between
        five evenly spaced three-second crops of each (shorter utterances are wrapped around). The mean of all cosines
        between two sets is the dot product of the sets' mean unit vectors, so a vector is the whole utterance's unit
        vector and the mean of the crops' unit vectors, concatenated, over sqrt(2).

        UnreadableAudio, also for an embedding that is not finite and, if not ``silence``, for a silent recording, all
        of which are alike, is raised, or appended to the list ``unreadable``.
        """
        files, utterances, remarks = list(dict.fromkeys(as_list(files))), {}, []
        for file, found, remark in self._utterances(files, self._source(root), threads, self.system.crops):
            if not silence and remark.endswith(SILENT):
                found = UnreadableAudio(remark)
            if not isinstance(found, UnreadableAudio):
                utterances[file] = found
                remarks += [remark] if remark else []
            elif unreadable is None:
                raise found
            else:
                unreadable.append(found)
        warn_of(remarks, len(files))
        return utterances

    def scoring_vectors(self, recordings):
        """(N, V) float32 of N recordings: the dot product of two rows is the system's score, as ``decide`` takes it.

        With five crops (``system.crops``) that is another number than the cosine of two embeddings. UnreadableAudio,
        also for silence.
        """
        recordings = as_list(recordings)
        found = self.embed_for_scoring(range(len(recordings)), Recordings(recordings, self._source()), silence=False)
        return np.array([each.vector for each in found.values()], np.float32).reshape(-1, self.vector_size)

    def verify(self, first, second, threshold=None):
        """The Verification of two recordings: score and decision. threshold: from -1 to 1; None: that of the model."""
        first, second = self.scoring_vectors([first, second])
        return self.decide(first @ second, threshold)

    def verify_batch(self, first, second, first_lengths=None, second_lengths=None, threshold=None):
        """A list of the Verifications of pairs of waveforms at 16 kHz, each side a batch as for ``embed_batch``.

        UnreadableAudio, naming the row, of the second side after those of the first, if one is silent.
        """
        sides = as_rows(first, first_lengths), as_rows(second, second_lengths)
        if len(sides[0]) != len(sides[1]):
            raise InputError(f"{len(sides[0])} waveforms cannot be compared with {len(sides[1])} one by one")
        vectors = self.scoring_vectors([(row, SAMPLE_RATE) for row in (*sides[0], *sides[1])])
        return [self.decide(a @ b, threshold) for a, b in zip(vectors, vectors[len(sides[0]) :])]

    def compare(self, first, second, threshold=None):
        """The Verification of two embeddings (D,), as ``embed`` gives them, by their cosine.

        threshold: from -1 to 1; None: the model's ``cosine_threshold``.
        """
        first, second = (as_tensor(each, "an embedding").float().cpu() for each in (first, second))
        if not first.shape == second.shape == (self.dimension,):
            raise InputError(f"an embedding must be ({self.dimension},), not {*first.shape,} and {*second.shape,}")
        threshold = self.cosine_threshold if threshold is None else threshold
        return self._decide(self._unit(first) @ self._unit(second), threshold)

    def decide(self, score, threshold=None):
        """The Verification of a score; threshold as in ``verify``."""
        return self._decide(score, self.threshold if threshold is None else threshold)

    def _decide(self, score, threshold):
        score = float(np.clip(float(score), -1, 1))  # rounding may take it beyond
        if self.system.decimals is not None:
            score = round(score, self.system.decimals)
        if threshold is None:
            return Verification(score, None, None)
        threshold = as_number(threshold, "a threshold", 1.0)
        return Verification(score, score > threshold if self.system.above else score >= threshold, threshold)

    def classify(self, audio):
        """The Classification of a recording. InputError for a model without a classifier."""
        found = self._classify(torch.from_numpy(self.embed(audio))[None])
        return Classification(found.speaker[0], float(found.score[0]))

    def classify_batch(self, waveforms, lengths=None):
        """The BatchClassification of a batch, as for ``embed_batch``. InputError for a model without a classifier."""
        return self._classify(self.embed_batch(waveforms, lengths))

    def _classify(self, embeddings):
        if self.classifier is None:
            raise InputError(f"this model of {self.system.title} has no classifier")
        centres = self.classifier.float().reshape(len(self.classifier), -1, self.dimension)  # (N, sub-centres, D)
        cosines = torch.einsum("bd,nkd->bnk", F.normalize(embeddings), F.normalize(centres, dim=2)).amax(dim=2)
        # A classifier may have more classes than there were speakers (--n_class, --speed_perturb).
        cosines = cosines[:, : len(self.speakers)] if self.speakers else cosines
        score, index = cosines.max(dim=1)
        names = [self.speakers[i] if self.speakers else f"class {i}" for i in index.tolist()]
        return BatchClassification(cosines, score, index, names)

    # What pyannote.audio's pipelines ask of a model of embeddings: pipeline._embedding = encoder (docs/use.md).

    sample_rate, metric = SAMPLE_RATE, "cosine"

    @property
    def dimension(self):
        """D, the size of an embedding."""
        return self.network.embedding_size

    @property
    def min_num_samples(self):
        """The shortest utterance that is not repeated, samples."""
        return self.system.shortest

    def __call__(self, waveforms, masks=None):
        """(B, 1, samples), and frame weights (B, frames) or None -> (B, D) numpy, as ``embed_batch``."""
        return self.embed_batch(waveforms, weights=masks).numpy()

    def fingerprint(self):
        """A hash of system and weights; only embeddings of models with the same hash can be compared."""
        digest = hashlib.sha256(self.system.title.encode())
        for key, tensor in self.network.state_dict().items():
            digest.update(key.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def _embed(self, rows, weights=None):
        """A list of (samples,) float32 tensors -> (B, D) float32 on the CPU, in one batch."""
        least = self.system.shortest
        rows = [row if len(row) >= least else row.repeat(-(-least // len(row)))[:least] for row in rows]
        waveforms = pad_sequence(rows, batch_first=True).to(self.device)
        lengths = [len(row) for row in rows]
        lengths = torch.tensor(lengths, device=self.device) if len(set(lengths)) > 1 else None
        training = self.network.training
        self.network.eval()
        try:
            with without_tf32(self.device), torch.autocast(self.device.type, enabled=False):  # a caller's, which rounds
                return self.network(waveforms, lengths=lengths, weights=weights).float().cpu()
        finally:
            self.network.train(training)

    def _embed_part(self, audio, name, first, samples):
        """The (D,) embedding of a part of an open file, and a remark; for a long part, the mean over its windows."""
        window = WINDOW_SECONDS * SAMPLE_RATE
        count = samples // window if is_long(samples) else 1
        edges = [*range(first, first + count * window, window), first + samples]
        total, remarks = torch.zeros(self.dimension, dtype=torch.float64), []
        for i in progress_bar(iterable=range(count), desc="a long file", unit="min", delay=5):
            waveform = audio.read(edges[i], edges[i + 1] - edges[i])
            remarks.append(remark_on(waveform, name, audio.rate, self.system.shortest))
            total += len(waveform) * self._embed([torch.from_numpy(waveform)])[0].double()
        remark = next((each for each in remarks if not each.endswith(SILENT)), remarks[0])  # not of a silent beginning
        return require_finite((total / samples).float().numpy(), name), remark if all(remarks) else ""

    def _join(self, embeddings, crops):
        """(N, D) of whole utterances, N tensors (crops, samples) or None -> N scoring vectors (V,) numpy."""
        whole = self._unit(embeddings)
        if crops is None:
            return list(whole.numpy())
        parts = F.normalize(self.embed_many([crop for each in crops for crop in each]))
        means = [each.mean(dim=0) for each in parts.split([len(each) for each in crops])]
        return [(torch.cat(pair) / math.sqrt(2)).numpy() for pair in zip(whole, means)]

    def _unit(self, embeddings):
        """(..., D) -> unit vectors, whose dot products are the cosines; less the mean, if one is subtracted."""
        return F.normalize(embeddings if self.mean is None else embeddings - self.mean, dim=-1)

    def _source(self, root="."):
        """A Pack or Recordings unchanged; a path or Folder as a Folder with the system's channel and resampling."""
        if isinstance(root, (Pack, Recordings)):
            return root
        channel = 0 if self.channel is None and self.system.first_channel else self.channel
        return Folder(root.root if isinstance(root, Folder) else root, channel, self.system.resampling)

    def open(self, audio):
        return open_audio(audio, self._source())

    def _utterances(self, files, source, threads, crops):
        """Yield (file, Utterance or UnreadableAudio, remark) in the order of the files. crops: also embed crops."""
        least = CROP_SAMPLES if crops else self.system.shortest
        most = 8 * BATCH_SECONDS[self.device.type] * SAMPLE_RATE
        with progress_bar(total=len(files), desc="embedding", unit="file", delay=1) as bar:
            for group in one_ahead(read_groups(files, source, threads, self.system.shortest, least, most)):
                waveforms = [found for _, found, _ in group if isinstance(found, torch.Tensor)]
                whole = self.embed_many(waveforms)
                vectors = self._join(whole, [scoring_crops(each) for each in waveforms] if crops else None)
                computed = map(Utterance, vectors, whole.numpy(), [len(each) / SAMPLE_RATE for each in waveforms])
                bar.update(len(group))
                for file, found, remark in group:
                    try:
                        if found is None:
                            found, remark = self._long_utterance(source, file, crops)
                        elif isinstance(found, torch.Tensor):
                            found = next(computed)
                            require_finite(found.vector, source.name(file))
                    except UnreadableAudio as error:
                        found = error
                    yield file, found, remark

    def _long_utterance(self, source, file, crops):
        with source.open(file) as audio:
            embedding, remark = self._embed_part(audio, source.name(file), 0, audio.length)
            parts = [torch.from_numpy(audio.read(start, CROP_SAMPLES)) for start in crop_starts(audio.length)]
        crops = [torch.stack(parts)] if crops else None
        (vector,) = self._join(torch.from_numpy(embedding)[None], crops)
        return Utterance(vector, embedding, audio.length / SAMPLE_RATE), remark


@contextlib.contextmanager
def without_tf32(device):
    """Without TF32, cuDNN's default, which rounds to 10 bits of mantissa. It is the process's: one thread at a time."""
    if device.type != "cuda":
        yield
        return
    with CUDNN, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def warned(embedding, remark):
    """The embedding itself, after an AudioWarning if there is a remark."""
    if remark:
        warnings.warn(remark, AudioWarning, stacklevel=3)
    return embedding


def warn_of(remarks, files):
    """AudioWarnings of the first remarks about a number of files, and of how many there are."""
    for remark in remarks[:MAX_WARNINGS]:
        warnings.warn(remark, AudioWarning, stacklevel=3)
    if len(remarks) > MAX_WARNINGS:
        total = f"{len(remarks)} of {files} files are hardly fit for recognition; the first were named"
        warnings.warn(total, AudioWarning, stacklevel=3)


def window_of(duration, step):
    """(samples, samples from one to the next) of a sliding window given in seconds. InputError."""
    duration, step = as_number(duration, "a window's duration"), as_number(step, "a window's step")
    if not (min(duration, step) * SAMPLE_RATE >= 1 and max(duration, step) <= LONG_SECONDS):
        raise InputError(f"a window of {duration} s every {step} s: both must be above 0, at most {LONG_SECONDS}")
    return round(duration * SAMPLE_RATE), round(step * SAMPLE_RATE)


def require_finite(embedding, name):
    """The embedding itself; UnreadableAudio if it is not finite."""
    if not np.isfinite(np.asarray(embedding)).all():
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
