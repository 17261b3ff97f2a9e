"""What comes after the embeddings: mean subtraction, AS-norm against a cohort of other speakers, calibration.

It works on one embedding of each whole utterance, and so for every system alike.
"""

import contextlib
import hashlib
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpora.audio import UnreadableAudio
from evaluation.calibration import fit_llr, quality_features
from tools import InputError, cohort_statistics, load_arrays, progress_bar, sha256, symmetric_norm, whole_file
from training import distributed

# Of each speaker, for the cohort. With more, a speaker's mean would move by less than a quarter (1 / sqrt(20)) of the
# spread of the utterances, and VoxCeleb2 take nine times as long: 1.1 million utterances instead of 120,000.
UTTERANCES = 20
TRIALS_AT_ONCE = 100_000  # the vectors of a million trials would be gigabytes


class Utterances(NamedTuple):
    """What is known of the utterances of one or several trial lists."""

    files: list  # U names, as the trial lists have them
    embeddings: np.ndarray  # (U, D) float32, as the network gives them
    seconds: np.ndarray  # (U,)


class Cohort(NamedTuple):
    """Speakers who are in no trial, to compare both sides of a trial with."""

    vectors: np.ndarray  # (K, D) float32: the mean embedding of each, not centred, not normalised
    about: str  # who they are, in words

    @property
    def mean(self):
        """(D,) float32: the mean of the speakers, which is subtracted from all embeddings."""
        return self.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)


# ---- where a cohort comes from ---------------------------------------------------------------------------------------


def make_cohort(encoder, listing, source, threads):
    """The cohort of the speakers of a TrainingList, by UTTERANCES of each, evenly spread over the speaker's lines.

    source: the Folder or Pack of its files. Files that cannot be read are left out with one warning, and so are
    speakers without any. InputError when less than two speakers are left.
    """
    of_speaker = np.split(np.argsort(listing.label, kind="stable"), np.cumsum(np.bincount(listing.label))[:-1])
    lines = [each[np.linspace(0, len(each) - 1, min(len(each), UTTERANCES)).astype(int)] for each in of_speaker]
    lines = np.concatenate(lines)
    files = [listing.files[line] for line in lines]
    found = distributed.share(embed_all, files, encoder, source, threads)
    found = [found[file] for file in files]
    readable = np.array([not isinstance(each, UnreadableAudio) for each in found])
    if not readable.all():
        first = found[int(np.argmin(readable))]
        warnings.warn(f"{first}; {(~readable).sum()} of {len(lines)} files are left out of the cohort", stacklevel=2)
    speakers = listing.label[lines[readable]]
    if len(set(speakers.tolist())) < 2:
        raise InputError(f"{listing.path}: a cohort needs at least two speakers whose files can be read")
    vectors = speaker_means([each for each in found if not isinstance(each, UnreadableAudio)], speakers)
    return Cohort(vectors, _about(len(vectors), listing))


def embed_all(files, encoder, source, threads):
    """{file: embedding (D,), or UnreadableAudio}."""
    # Remarks on utterances hardly fit for it are left unsaid: among twenty, one does little harm.
    found = encoder.embed_files(files, source, threads)
    found = progress_bar(iterable=found, total=len(files), desc="cohort", unit="utt", delay=1)
    return {file: embedding for file, embedding, _ in found}


def cohort_beside(checkpoint_path, encoder, listing, source, threads):
    """``make_cohort``, kept as <checkpoint>.cohort.npz for the next time.

    What is there is used if it was made with the same weights from the same list, and made anew otherwise; the audio
    itself is not compared. A folder that cannot be written to costs a warning. The file can be given to
    ``read_cohort``, too.
    """
    path = Path(f"{checkpoint_path}.cohort.npz")
    origin = {"list_sha256": list_hash(listing), "model": encoder.fingerprint(), "utterances": UTTERANCES}
    kept = None
    with contextlib.suppress(InputError):  # absent or damaged: it is made anew
        kept = load_arrays(path, "--cohort")
        same = all(str(kept.get(key)) == str(value) for key, value in origin.items())
        kept = _embeddings_of(kept, path, encoder) if same else None
    kept = distributed.gather(kept)[0]  # all do what the first one found
    if kept is not None:
        return Cohort(kept, _about(len(kept), listing))
    cohort = make_cohort(encoder, listing, source, threads)
    try:
        if distributed.rank() == 0:
            with whole_file(path) as file:
                np.savez(file, embeddings=cohort.vectors, **origin)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error.strerror}): the cohort is not kept", stacklevel=2)
    return cohort


def read_cohort(path, encoder):
    """A cohort from any .npz with ``embeddings`` (K, D), as verify.py --embed writes them.

    ``speakers`` (K,): rows of one speaker are averaged; without it, each row counts as one. ``model``: the fingerprint
    of the encoder that made them. InputError when the file is no such thing, or not of this encoder.
    """
    arrays = load_arrays(path, "--cohort")
    embeddings, speakers = _embeddings_of(arrays, path, encoder), arrays.get("speakers")
    if speakers is not None and (speakers.shape != embeddings.shape[:1] or speakers.dtype.kind not in "USiu"):
        raise InputError(f"--cohort {path} names {speakers.size} speakers of {len(embeddings)} embeddings")
    vectors = embeddings if speakers is None else speaker_means(embeddings, speakers)
    kind = "embeddings" if speakers is None else "speakers"
    if len(vectors) < 2:
        raise InputError(f"--cohort {path} has {len(vectors)} {kind}: at least two are needed, better some hundred")
    return Cohort(vectors, f"{len(vectors)} {kind} of {Path(path).name} (sha256 {sha256(path)[:8]})")


def speaker_means(embeddings, speakers):
    """(M, D) embeddings, (M,) names or numbers -> (K, D) float32, the mean of each speaker, in sorted order."""
    names, place = np.unique(speakers, return_inverse=True)
    sums = np.zeros((len(names), len(embeddings[0])))
    np.add.at(sums, place, embeddings)
    return (sums / np.bincount(place)[:, None]).astype(np.float32)


def list_hash(listing):
    """Hash of a TrainingList's lines, "speaker path", as they are now: of a customary list that is the file's own."""
    digest = hashlib.sha256()
    for label, file in zip(listing.label, listing.files):
        digest.update(f"{listing.speakers[label]} {file}\n".encode())
    return digest.hexdigest()


def _about(count, listing):
    name = f"{listing.path.name} (sha256 {listing.sha256[:8]})"
    return f"{count} speakers of {name}, at most {UTTERANCES} utterances each"


def _embeddings_of(arrays, path, encoder):
    """The array ``embeddings`` (K, D) float32 of a file. InputError unless it is there, finite and of this encoder."""
    embeddings = arrays.get("embeddings")
    if embeddings is None or embeddings.ndim != 2 or embeddings.dtype.kind != "f":
        raise InputError(f"--cohort {path} holds no array 'embeddings' (K, D), as verify.py --embed writes it")
    if "model" in arrays and str(arrays["model"]) != encoder.fingerprint():
        raise InputError(f"--cohort {path} was made with another model: its embeddings mean nothing to this one")
    found, expected = embeddings.shape[1], encoder.network.embedding_size
    if found != expected:
        raise InputError(f"--cohort {path} has embeddings of {found} numbers, those of the model have {expected}")
    with np.errstate(over="ignore"):  # found out by the next line
        embeddings = embeddings.astype(np.float32)
    if not np.isfinite(embeddings).all():
        raise InputError(f"--cohort {path} holds embeddings that are not finite")
    return embeddings


# ---- from utterances to scores ---------------------------------------------------------------------------------------


def centred(embeddings, mean):
    """(U, D), (D,) -> (U, D) float32 unit vectors, (x - mean) / |x - mean|."""
    difference = np.asarray(embeddings, dtype=np.float32) - np.asarray(mean, dtype=np.float32)
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    return difference / np.maximum(length, np.finfo(np.float32).tiny)  # the mean itself points nowhere: a zero vector


def dot_products(vectors, enrol, test):
    """(U, D), the rows of both sides of the trials (N,) each -> (N,) float32."""
    scores = np.empty(len(enrol), np.float32)
    for first in range(0, len(scores), TRIALS_AT_ONCE):
        block = slice(first, first + TRIALS_AT_ONCE)
        np.einsum("nd,nd->n", vectors[enrol[block]], vectors[test[block]], out=scores[block])
    return scores


class BackEnd:
    """Utterances, prepared once to be scored in any number of trial lists.

    utterances: an Utterances; cohort: a Cohort; top_n: of AS-norm; device: where the utterances are compared with the
    cohort. ``quality``: (U, 3), of each utterance the logarithm of its seconds, that of its embedding's length, and the
    mean of its ``top_n`` highest cohort scores; those of Thienpondt et al. 2021 (calibration.quality_features).
    """

    def __init__(self, utterances, cohort, top_n=300, device="cpu"):
        self.row = {file: row for row, file in enumerate(utterances.files)}
        self.raw = centred(utterances.embeddings, 0)
        self.centred = centred(utterances.embeddings, cohort.mean)
        others = centred(cohort.vectors, cohort.mean)
        self.statistics = np.stack(cohort_statistics(self.centred, others, top_n, device))
        length = np.linalg.norm(utterances.embeddings, axis=1)
        self.quality = np.stack([np.log(utterances.seconds), np.log(length), self.statistics[0]], axis=1)

    def score(self, trials, calibration=None):
        """The scores of a TrialList, step by step: {"cosine", "mean", "as_norm", "calibrated": (N,) each}.

        Those of the embeddings as they are; with the cohort's mean subtracted; then normalised; and as log-likelihood
        ratios, if there is a ``calibration``, from a BackEnd with the same cohort and top_n. KeyError for a file that
        is not among the utterances.
        """
        enrol, test = self._rows(trials)
        scores = {"cosine": dot_products(self.raw, enrol, test), "mean": dot_products(self.centred, enrol, test)}
        scores["as_norm"] = symmetric_norm(scores["mean"], self.statistics[:, enrol], self.statistics[:, test])
        if calibration is not None:
            scores["calibrated"] = calibration.apply(self._features(scores["as_norm"], enrol, test))
        return scores

    def calibrate(self, trials, p_target=0.01):
        """The Calibration that turns AS-norm scores and qualities into log-likelihood ratios, learnt from these trials.

        They must be of speakers whom the network was not trained on and the cohort lacks, and never those that are
        evaluated. Errors as in ``calibration.fit_llr``.
        """
        features = self._features(self.score(trials)["as_norm"], *self._rows(trials))
        return fit_llr(features, trials.label, p_target)

    def _rows(self, trials):
        return (np.array([self.row[file] for file in side]) for side in (trials.enrol, trials.test))

    def _features(self, scores, enrol, test):
        return quality_features(scores, self.quality[enrol], self.quality[test])
