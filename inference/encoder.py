"""A trained model in use: waveforms and files to embeddings, embeddings to scores and decisions.

``SpeakerEncoder`` serves our own checkpoints and those of other systems alike; verify.py is its command line, and
trainSpeakerNet.py evaluates with it.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from corpora.audio import SAMPLE_RATE, AudioFile, Folder, UnreadableAudio
from corpora.pack import Pack
from inference.checkpoints import SYSTEMS, Pretrained, load_pretrained
from inference.frames import Ragged, embed_pieces, log_mel_pieces
from model import WHOLE
from tools import InputError, one_ahead, progress_bar

CROPS = 5  # the customary score looks at each utterance whole and in five crops of three seconds
CROP_SAMPLES = 300 * 160 + 240
# A batch of utterances fills this many seconds: more does not help a CPU, a GPU is still idle with less.
BATCH_SECONDS = {"cpu": 30, "mps": 120, "cuda": 300}
LONG_SECONDS = 300  # beyond, an utterance is embedded in pieces of a minute: its activations would take gigabytes
PIECE_SECONDS = 60
REMARKS = 10  # on files hardly fit that are said one by one


class Utterance(NamedTuple):
    """What one reading of a file gives: all that scoring, normalisation and calibration ask of it."""

    vector: np.ndarray  # (V,) float32: dot products of these are the system's scores
    embedding: np.ndarray  # (D,) float32: of the whole utterance, as the network gives it
    seconds: float


class Verification(NamedTuple):
    """The answer to "is it the same speaker?"; the last two are None where there is no threshold."""

    score: float
    same_speaker: bool | None
    threshold: float | None


class Classification(NamedTuple):
    """Which of the training speakers it sounds like most, and the cosine with that speaker's class vector."""

    speaker: str
    score: float


class AudioWarning(UserWarning):
    """An utterance was embedded that is hardly fit for it: very short, silent or clipped."""


def choose_device(name="auto"):
    """A torch.device: a CUDA GPU if there is one, else Apple's, else the CPU; or the one that is named."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type not in BATCH_SECONDS:
            raise NotImplementedError("not one of cpu, cuda, mps")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name} is not to be had here ({str(error).splitlines()[0]})") from error
    return torch.device(name)


class SpeakerEncoder:
    """A network that embeds utterances, with what its file says about deciding.

    Always float32 and in eval mode. An embedding depends on nothing but the model and the utterance; in a batch with
    others, to rounding.

    threshold: a score from which on (``system.above``: above which) two utterances count as one speaker's, or None;
    origin: where it comes from, in words; thresholds: our own model's others, {"1%": at 1 % false alarms, ...}, on the
    trial list ``listing``. channel: which channel of files that have several; None: as the system does it. held_out:
    names of speakers that were kept out of its training, or None; heard: of those that it, or a model before it, was
    trained on, as far as they are known. mean: SpeechBrain's mean embedding (D,) or None; its
    ``encode_batch(normalize=True)`` subtracts it.
    """

    def __init__(self, network, device="cpu", pretrained=None):
        about = pretrained or Pretrained("ours", network)
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.system = SYSTEMS[about.system]
        self.threshold, self.thresholds, self.origin = about.threshold, about.thresholds, about.origin
        self.listing = about.listing
        self.classifier, self.speakers, self.mean = about.classifier, about.speakers, about.mean
        self.held_out, self.heard = about.held_out, about.heard()
        self.vector_size = self.network.embedding_size * (2 if self.system.crops else 1)  # of scoring vectors
        self.channel = None

    @classmethod
    def from_checkpoint(cls, path, device="cpu", system=None):
        """Build the encoder from a file or folder, ours or a stranger's; see ``load_pretrained`` for both, and errors.

        system: None to recognise it, or "ours", "speechbrain", "taoruijie", "pyannote", "modelscope", "wespeaker".
        """
        found = load_pretrained(path, system)
        return cls(found.network, device, found)

    # ---- embeddings --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def embed_batch(self, waveforms, lengths=None):
        """Embed utterances side by side; a row does not depend on its neighbours, nor on what lies behind its end.

        waveforms: (B, samples) at 16 kHz, floating point in [-1, 1] or int16; lengths: (B,) samples of each that count,
        None: all. Utterances too short for the network are repeated. Returns (B, D) float32 on the CPU, not normalised.
        """
        waveforms = torch.as_tensor(waveforms)
        if waveforms.dim() != 2 or not (waveforms.is_floating_point() or waveforms.dtype == torch.int16):
            kind = f"{tuple(waveforms.shape)} {waveforms.dtype}"
            raise ValueError(f"waveforms must be (B, samples), floating point or int16, not {kind}")
        lengths = torch.as_tensor([waveforms.shape[1]] * len(waveforms) if lengths is None else lengths)
        if len(waveforms) == 0:
            return torch.empty(0, self.network.embedding_size)
        if lengths.is_floating_point():
            raise ValueError("lengths must be numbers of samples, not parts of the longest")
        lengths = lengths.tolist()
        if len(lengths) != len(waveforms) or not all(0 < length <= waveforms.shape[1] for length in lengths):
            raise ValueError(f"lengths must be {len(waveforms)} numbers from 1 to {waveforms.shape[1]}")
        scale = 1 / 32768 if waveforms.dtype == torch.int16 else 1.0
        rows = [self._long_enough(row[:length]) for row, length in zip(waveforms, lengths)]
        waveforms = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device, torch.float32) * scale
        lengths = [len(row) for row in rows]
        frames = Ragged(torch.tensor(lengths, device=self.device)) if len(set(lengths)) > 1 else WHOLE
        with self._ready():
            return self.network(waveforms, frames=frames).float().cpu()

    def embed_many(self, waveforms):
        """A list of (samples,) float32 tensors -> (N, D); batches are made of utterances of similar length."""
        order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
        most = BATCH_SECONDS[self.device.type] * SAMPLE_RATE
        embeddings = torch.empty(len(waveforms), self.network.embedding_size)
        while order:
            longest = max(len(waveforms[order[-1]]), self.system.shortest)
            batch = order[-max(1, most // longest) :]
            del order[-len(batch) :]
            lengths = [len(waveforms[i]) for i in batch]
            padded = torch.nn.utils.rnn.pad_sequence([waveforms[i] for i in batch], batch_first=True)
            embeddings[batch] = self.embed_batch(padded, lengths)
        return embeddings

    def embed(self, path):
        """The embedding of a whole file as the network gives it: (D,) float32 numpy, not normalised.

        Any length: beyond five minutes the memory grows by 0.25 GB an hour. Warns (AudioWarning) of utterances hardly
        fit for it; UnreadableAudio for files that cannot be read, or whose embedding is not finite.
        """
        with self._open(path) as file:
            return self._embed_part(file, path, 0, file.length)

    def embed_excerpt(self, path, start, end):
        """The embedding (D,) of what lies between two times in seconds. InputError if they are not in the file."""
        with self._open(path) as file:
            if not 0 <= start < end < math.inf or round(start * SAMPLE_RATE) >= file.length:
                raise InputError(f"{path}: no excerpt from {start} s to {end} s in {file.length / SAMPLE_RATE:.2f} s")
            if round(end * SAMPLE_RATE) > file.length + 1:  # a sample of tolerance for times that were rounded
                raise InputError(f"{path} ends at {file.length / SAMPLE_RATE:.2f} s, before {end} s")
            first = round(start * SAMPLE_RATE)
            return self._embed_part(file, path, first, max(1, min(file.length, round(end * SAMPLE_RATE)) - first))

    def embed_windows(self, path, duration=3.0, step=1.0):
        """Embeddings of a sliding window: (N, D), and the (N, 2) start and end of each in seconds.

        Windows begin every ``step`` seconds as long as they end within the file; a file shorter than ``duration`` is
        one window.
        """
        if not (0 < duration < math.inf and step * SAMPLE_RATE >= 1 and step < math.inf):
            raise InputError(f"a window of {duration} s every {step} s: both must be more than 0")
        with self._open(path) as file:
            size = min(round(duration * SAMPLE_RATE), file.length)
            count = 1 + math.floor((file.length - size) / (step * SAMPLE_RATE) + 1e-9)
            starts = [min(round(i * step * SAMPLE_RATE), file.length - size) for i in range(count)]
            if size > LONG_SECONDS * SAMPLE_RATE:
                embeddings = np.stack([self._embed_part(file, path, start, size) for start in starts])
            else:
                at_once = max(1, BATCH_SECONDS[self.device.type] * SAMPLE_RATE // size)
                level, embeddings = Level(), []
                for i in range(0, count, at_once):
                    batch = np.stack([level.see(file.read(start, size)) for start in starts[i : i + at_once]])
                    embeddings.append(self.embed_batch(batch).numpy())
                embeddings = self._finite(np.concatenate(embeddings), path)
                self._warn(self._remark(path, size, level))
        times = np.array(starts)[:, None] + [0, size]
        return embeddings, times / SAMPLE_RATE

    def embed_files(self, files, root=".", threads=4):
        """Embed many files, read ahead by threads, in batches of similar length.

        root: the folder that their names start from, as a path or a Folder, or a Pack. Files are heard as the system
        does it (channel, resampling); what is packed, as it was packed: for 16 kHz mono of 16 bits that is the same.

        Yields (file, (D,) embedding or UnreadableAudio, remark) in the order of the files; the remark is "" or says
        why the utterance is hardly fit for it.
        """
        source = self._source(root)
        for group in self._read_ahead(files, source, threads, self.system.shortest):
            embeddings = iter(self.embed_many([each for _, each, _ in group if isinstance(each, torch.Tensor)]).numpy())
            for file, found, remark in group:
                try:
                    if found is TOO_LONG:
                        with source.open(file) as audio:
                            found = self._embed_part(audio, source.name(file), 0, audio.length)
                    elif isinstance(found, torch.Tensor):
                        found = self._finite(next(embeddings), file)
                except UnreadableAudio as error:
                    found = error
                yield file, found, remark

    # ---- scores and decisions ----------------------------------------------------------------------------------------

    def embed_for_scoring(self, files, root=".", threads=4, unreadable=None):
        """Read and embed each file once: {file: Utterance}. files, root, threads: as for ``embed_files``.

        The dot products of their vectors are the system's scores. For most systems that is the cosine of whole
        utterances. The customary score, of this recipe and TaoRuijie's, is the mean of two numbers: that cosine, and
        the mean of the 5 x 5 cosines between five evenly spaced three-second crops of each (shorter utterances are
        wrapped around). As the mean of all cosines between two sets is the dot product of the sets' mean unit vectors,
        both together are one dot product: of the whole's unit vector and the crops' mean, side by side, over sqrt(2).

        Raises UnreadableAudio, also for an embedding that is not finite, unless ``unreadable`` is a list: then such
        files are left out and their errors appended to it.
        """
        files = list(dict.fromkeys(files))
        source, utterances, remarks = self._source(root), {}, []
        with progress_bar(total=len(files), desc="embedding", unit="utt", delay=1) as bar:
            least = CROP_SAMPLES if self.system.crops else self.system.shortest
            for group in self._read_ahead(files, source, threads, least):
                broken = [found for _, found, _ in group if isinstance(found, UnreadableAudio)]
                if broken and unreadable is None:
                    raise broken[0]
                for (file, _, remark), found in zip(group, self._utterances(group, source)):
                    bar.update()
                    if isinstance(found, UnreadableAudio):
                        if unreadable is None:
                            raise found
                        unreadable.append(found)
                        continue
                    utterances[file] = found
                    remarks += [remark] if remark else []
        for remark in remarks[:REMARKS]:
            warnings.warn(remark, AudioWarning, stacklevel=2)
        if len(remarks) > REMARKS:
            many = f"{len(remarks)} of {len(files)} files are hardly fit to tell a speaker, those named among them"
            warnings.warn(many, AudioWarning, stacklevel=2)
        return utterances

    def verify(self, first, second, threshold=None):
        """Are two files of the same speaker? -> Verification, by the system's own score.

        threshold: from -1 to 1; None: the one that the model came with, if it did.
        """
        first, second = (self.embed_for_scoring([file])[file].vector for file in (first, second))
        return self.decide(first @ second, threshold)

    def decide(self, score, threshold=None):
        """A score -> Verification."""
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
        """Which training speaker is it? -> Classification. InputError for a model without classifier or names."""
        if self.classifier is None or self.speakers is None:
            raise InputError(f"this model of {self.system.title} came without a classifier or its speakers' names")
        embedding = F.normalize(torch.from_numpy(self.embed(path)), dim=0)
        cosines = F.normalize(self.classifier.float(), dim=-1) @ embedding
        if cosines.dim() == 2:  # sub-centres
            cosines = cosines.amax(dim=1)
        # A classifier may have more classes than there were speakers (--n_class, --speed_perturb).
        best = int(cosines[: len(self.speakers)].argmax())
        return Classification(self.speakers[best], float(cosines[best]))

    def fingerprint(self):
        """A hash of the weights: embeddings of models with the same one can be compared."""
        digest = hashlib.sha256(self.system.title.encode())
        for key, tensor in self.network.state_dict().items():
            digest.update(key.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    # ---- behind the scenes -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ready(self):
        training = self.network.training
        self.network.eval()
        # TF32, cuDNN's default for convolutions, would round to 10 bits of mantissa; so would a caller's autocast.
        tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        try:
            with tf32, torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.network.train(training)

    def _long_enough(self, waveform):
        """(samples,), repeated if the network needs more."""
        shortest, samples = self.system.shortest, len(waveform)
        return waveform if samples >= shortest else waveform.repeat(-(-shortest // samples))[:shortest]

    def _source(self, root):
        """A Pack as it is; a path or a Folder as a folder of what the system hears."""
        if isinstance(root, Pack):
            return root
        channel = 0 if self.channel is None and self.system.first_channel else self.channel
        return Heard(root.root if isinstance(root, Folder) else root, channel, self.system.resampling)

    def _open(self, path):
        return self._source(".").open(path)

    def _read_ahead(self, files, source, threads, least):
        """Groups of (file, (samples,) tensor or TOO_LONG or UnreadableAudio, remark), each for some batches' work.

        The next is read while one is worked on. least: what shorter utterances are repeated to.
        """
        return one_ahead(self._groups(files, source, threads, least))

    def _groups(self, files, source, threads, least):
        most = 8 * BATCH_SECONDS[self.device.type] * SAMPLE_RATE
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            ahead, group, samples = collections.deque(), [], 0  # what is read ahead: at most 20 MB a file
            coming = iter(files)
            while ahead or group or coming:
                while coming and len(ahead) < 2 * threads:
                    file = next(coming, None)
                    if file is None:
                        coming = None
                    else:
                        ahead.append((file, pool.submit(self._read, source, file)))
                if ahead:
                    file, job = ahead.popleft()
                    group.append((file, *job.result()))
                    found = group[-1][1]
                    if not isinstance(found, UnreadableAudio):
                        samples += LONG_SECONDS * SAMPLE_RATE if found is TOO_LONG else max(least, len(found))
                if group and (samples >= most or not ahead):
                    yield group
                    group, samples = [], 0

    def _read(self, source, file):
        """A reading thread's work: ((samples,) tensor or TOO_LONG or UnreadableAudio, remark)."""
        try:
            with source.open(file) as audio:
                if audio.length > LONG_SECONDS * SAMPLE_RATE:
                    return TOO_LONG, ""
                level = Level()
                waveform = level.see(audio.read())
                return torch.from_numpy(waveform), self._remark(source.name(file), audio.length, level)
        except UnreadableAudio as error:
            return error, ""

    def _remark(self, path, samples, level):
        """Why an utterance is hardly fit to tell a speaker, or ""."""
        if samples < 0.5 * SAMPLE_RATE:
            repeated = ", repeated to what the network needs" if samples < self.system.shortest else ""
            return f"{path} is only {samples / SAMPLE_RATE:.2g} s long{repeated}: its embedding says little"
        if level.high - level.low < 1e-3:  # -66 dB of full scale: 16 steps of 16-bit audio to either side
            return f"{path} is silent: its embedding says nothing about a speaker"
        if (peak := max(level.high, -level.low)) > 100:  # no overshoot of a codec, but integers as floats
            return f"{path} has samples up to {peak:.3g}, full scale is 1: its embedding suffers"
        if level.clipped > 0.01 * level.seen:
            share = 100 * level.clipped / level.seen
            return f"{path} is clipped ({share:.1f} % of its samples): its embedding suffers"
        return ""

    @staticmethod
    def _warn(remark):
        if remark:
            warnings.warn(remark, AudioWarning, stacklevel=4)

    @staticmethod
    def _finite(embedding, path):
        if not np.isfinite(embedding).all():
            reason = "broken weights, or samples far beyond 1"
            raise UnreadableAudio(f"the embedding of {path} is not finite: {reason}")
        return embedding

    def _embed_part(self, file, name, first, length):
        """(D,) numpy: ``length`` samples of an open file from ``first`` on, in pieces if they are many."""
        level = Level()
        if length > LONG_SECONDS * SAMPLE_RATE:
            embedding = self._embed_long(lambda start, end: level.see(file.read(first + start, end - start)), length)
        else:
            embedding = self.embed_batch(level.see(file.read(first, length))[None])[0].numpy()
        self._warn(self._remark(name, length, level))
        return self._finite(embedding, name)

    @torch.inference_mode()
    def _embed_long(self, read, length):
        """(D,) numpy. read: function (first sample, end) -> numpy."""

        def waveform(start, end):
            return torch.from_numpy(read(start, end))[None].to(self.device)

        size = PIECE_SECONDS * SAMPLE_RATE // self.network.hop // self.network.stretch * self.network.stretch
        with self._ready(), progress_bar(desc="a long file", unit="s", delay=5, unit_scale=True) as bar:
            if self.system.variant is None:
                source, frames = lambda start, end: self.network.features(waveform(start, end)), length
            else:
                log_mel = log_mel_pieces(self.network.torchfbank, waveform, length, PIECE_SECONDS * SAMPLE_RATE)
                features = self.network.normalise(log_mel)
                source, frames = lambda start, end: features[:, :, start:end].to(self.device), features.shape[2]

            def counted(start, end):
                bar.update((end - start) * self.network.hop / SAMPLE_RATE)
                return source(start, end)

            return embed_pieces(self.network, frames, counted, size, self.network.halo)[0].float().cpu().numpy()

    def _utterances(self, group, source):
        """Yield an Utterance or UnreadableAudio for each of a group as _read_ahead gives it."""
        short = [found for _, found, _ in group if isinstance(found, torch.Tensor)]
        whole = self.embed_many(short)
        vectors = self._scoring_batch(whole, (scoring_crops(each) for each in short))
        read = map(Utterance, vectors, whole.numpy(), [len(each) / SAMPLE_RATE for each in short])
        for file, each, _ in group:
            try:
                if each is TOO_LONG:
                    each = self._long_utterance(source, file)
                elif isinstance(each, torch.Tensor):
                    each = next(read)
                    self._finite(each.vector, file)
            except UnreadableAudio as error:
                each = error
            yield each

    def _long_utterance(self, source, file):
        with source.open(file) as audio:
            embedding = self._embed_part(audio, source.name(file), 0, audio.length)
            crops = np.stack([audio.read(start, CROP_SAMPLES) for start in crop_starts(audio.length)])
        (vector,) = self._scoring_batch(torch.from_numpy(embedding)[None], [torch.from_numpy(crops)])
        return Utterance(self._finite(vector, file), embedding, audio.length / SAMPLE_RATE)

    def _scoring_batch(self, embeddings, crops):
        """(N, D) of whole utterances, N tensors (crops, samples) -> N of (V,) numpy."""
        whole = F.normalize(embeddings)
        if not self.system.crops:
            return list(whole.numpy())
        crops = list(crops)
        parts = F.normalize(self.embed_many([crop for each in crops for crop in each]))
        means = [each.mean(dim=0) for each in parts.split([len(each) for each in crops])]
        return [(torch.cat(pair) / math.sqrt(2)).numpy() for pair in zip(whole, means)]


class Heard(Folder):
    """The files under a folder as a system hears them: one channel or the mean of all, resampled its way."""

    def __init__(self, root, channel, crossings):
        super().__init__(root, channel)
        self.crossings = crossings

    def name(self, file):
        return str(self.root / file)

    def open(self, file):
        return AudioFile(self.name(file), self.channel, self.crossings)


class Level:
    """How loud an utterance is, seen piece by piece."""

    def __init__(self):
        self.low, self.high, self.clipped, self.seen = math.inf, -math.inf, 0, 0

    def see(self, waveform):
        self.low, self.high = min(self.low, float(waveform.min())), max(self.high, float(waveform.max()))
        self.clipped += int((np.abs(waveform) > 0.999).sum())
        self.seen += len(waveform)
        return waveform


TOO_LONG = object()  # in place of the waveform of a file that is read piece by piece


def crop_starts(length):
    """Where the five crops of an utterance of at least CROP_SAMPLES begin: evenly spaced from beginning to end."""
    return np.linspace(0, length - CROP_SAMPLES, CROPS).astype(int)


def scoring_crops(waveform):
    """(samples,) -> (5, 48240): evenly spaced from beginning to end; a shorter one is wrapped, once, (1, 48240)."""
    if len(waveform) <= CROP_SAMPLES:
        # All five crops would be equal, and so would be their mean.
        return waveform[torch.arange(CROP_SAMPLES) % len(waveform)].unsqueeze(0)
    return torch.stack([waveform[start : start + CROP_SAMPLES] for start in crop_starts(len(waveform))])


def score_trials(trials, utterances):
    """A TrialList and {file: Utterance} -> (N,) float32 dot products of their vectors."""
    row = {file: i for i, file in enumerate(utterances)}
    matrix = np.stack([each.vector for each in utterances.values()])
    enrol, test = ([row[file] for file in column] for column in (trials.enrol, trials.test))
    # In blocks: the vectors of a million trials would be gigabytes.
    blocks = [slice(first, first + 100_000) for first in range(0, len(enrol), 100_000)]
    return np.concatenate([np.einsum("nd,nd->n", matrix[enrol[block]], matrix[test[block]]) for block in blocks])
