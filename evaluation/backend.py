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
from corpora.make_lists import hold_out, make_trials
from evaluation.calibration import fit_llr, quality_features
from evaluation.scoring import embed_utterances, open_training_list, split_over_processes
from tools import (
    InputError,
    cohort_statistics,
    gather,
    load_arrays,
    progress_bar,
    rank,
    sha256,
    symmetric_norm,
    whole_file,
)

# Of each speaker, for the cohort. More would move a speaker's mean by less than a quarter (1 / sqrt(20)) of the spread
# of its utterances, and take nine times as long for VoxCeleb2: 1.1 million utterances instead of 120,000.
UTTERANCES = 20
TRIALS_AT_ONCE = 100_000  # the vectors of a million trials would be gigabytes


class ScoringBackend:
    """A cohort, and with --calibrate a calibration: what is learned once to score any number of trial lists.

    The cohort are the speakers that the model was trained on, or --cohort. The calibration is learned from trials of
    training speakers that were held out of training (--valid_speakers), never from the test lists.
    """

    def __init__(self, encoder, args):
        """Check the lists; InputError naming the flag. ``learn`` does the long work."""
        self.encoder, self.args, self.calibration, self.trials = encoder, args, None, None
        if args.calibrate or not args.cohort:
            train_list, self.source = open_training_list(args)
            held = np.isin(np.array(train_list.speakers)[train_list.label], encoder.held_out or [])
            self.train_list = train_list.subset(np.flatnonzero(~held))
            self.held_out = train_list.subset(np.flatnonzero(held))
            if len(self.train_list.speakers) < 2 and not args.cohort:
                besides = f" besides those that {args.initial_model} held out" if held.any() else ""
                raise InputError(f"--train_list {train_list.path}: a cohort needs at least two speakers{besides}")
            self.about_held_out = "who were held out of training"
            if args.calibrate and not held.any():
                count = min(1000, max(2, len(train_list.speakers) // 5))
                self.train_list, self.held_out = hold_out(train_list, count, asked="--calibrate: holding out")
                self.about_held_out = "whom the model may know"
                if rank() == 0:
                    said = f"{args.initial_model} held no speakers of {train_list.path} out (--valid_speakers)"
                    instead = f"--calibrate uses {count} that it may know: its likelihood ratios will be overconfident"
                    warnings.warn(f"{said}: {instead}", stacklevel=2)
        if args.cohort:
            self.cohort = read_cohort(args.cohort, encoder)
        if args.calibrate:
            self.trials = make_trials(self.held_out, "calibration")

    def learn(self):
        """Embed the calibration trials, and the cohort unless it is kept from before."""
        args = self.args
        if self.trials:  # first: it takes minutes and may find an unreadable file, the cohort takes hours
            utterances = embed_utterances(self.encoder, [self.trials], self.source, args)
        if not args.cohort:
            self.cohort = cohort_beside(args.initial_model, self.encoder, self.train_list, self.source, args.n_cpu)
        if self.trials:
            self.calibration = self.scorer(utterances).calibrate(self.trials)
            held_out = f"{len(self.held_out.speakers)} speakers {self.about_held_out}"
            print(f"calibrated on {len(self.trials)} trials of {held_out}")

    def describe_cohort(self, mean_only):
        """The cohort in words, and, unless only its mean was used, how much of it counts for each utterance."""
        nearest = min(self.args.top_n, len(self.cohort.vectors))
        return self.cohort.about + ("" if mean_only else f", the nearest {nearest} of each utterance")

    def as_data(self):
        """The calibration for results.json; None without --calibrate."""
        if self.calibration:
            learned = {"weights": self.calibration.weights.tolist(), "bias": self.calibration.bias}
            return {"speakers": self.held_out.speakers, "trials": len(self.trials), **learned}

    def scorer(self, utterances):
        """A TrialScorer for {file: Utterance}."""
        return TrialScorer(utterances, self.cohort, self.args.top_n, self.encoder.device)


class TrialScorer:
    """Scores for any number of trial lists of some utterances, which are compared with the cohort once.

    utterances: {file: Utterance}; top_n: of AS-norm; device: where the comparison with the cohort runs. ``quality``:
    (U, 3), of each utterance the logarithms of its seconds and of its embedding's length, and the mean of its ``top_n``
    highest cohort scores, as in Thienpondt et al. 2021 (calibration.quality_features).
    """

    def __init__(self, utterances, cohort, top_n=300, device="cpu"):
        self.row = {file: row for row, file in enumerate(utterances)}
        embeddings = np.stack([each.embedding for each in utterances.values()])
        self.raw, self.centred = centred(embeddings, 0), centred(embeddings, cohort.mean)
        others = centred(cohort.vectors, cohort.mean)
        self.statistics = np.stack(cohort_statistics(self.centred, others, top_n, device))
        seconds, length = [each.seconds for each in utterances.values()], np.linalg.norm(embeddings, axis=1)
        self.quality = np.stack([np.log(seconds), np.log(length), self.statistics[0]], axis=1)

    def score(self, trials, calibration=None):
        """The scores of a TrialList, step by step: {"cosine", "mean", "as_norm", "calibrated": (N,) each}.

        Those of the embeddings as they are; with the cohort's mean subtracted; then normalised; and as log-likelihood
        ratios, if there is a ``calibration``, learned with the same cohort and top_n.
        """
        enrol, test = self._rows(trials)
        scores = {"cosine": dot_products(self.raw, enrol, test), "mean": dot_products(self.centred, enrol, test)}
        scores["as_norm"] = symmetric_norm(scores["mean"], self.statistics[:, enrol], self.statistics[:, test])
        if calibration is not None:
            scores["calibrated"] = calibration.apply(self._features(scores["as_norm"], enrol, test))
        return scores

    def calibrate(self, trials):
        """The Calibration from AS-norm scores and quality measures, learned from these trials.

        Their speakers must not be among those that the network was trained on, of the cohort, or of the test.
        """
        features = self._features(self.score(trials)["as_norm"], *self._rows(trials))
        return fit_llr(features, trials.label)

    def _rows(self, trials):
        return (np.array([self.row[file] for file in side]) for side in (trials.enrol, trials.test))

    def _features(self, scores, enrol, test):
        return quality_features(scores, self.quality[enrol], self.quality[test])


def centred(embeddings, mean):
    """(U, D), (D,) -> (U, D) float32 unit vectors, (x - mean) / |x - mean|."""
    difference = np.asarray(embeddings, dtype=np.float32) - np.asarray(mean, dtype=np.float32)
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    return difference / np.maximum(length, np.finfo(np.float32).tiny)  # the mean itself has no direction: zeros


def dot_products(vectors, enrol, test):
    """(U, D), the rows of both sides of the trials (N,) each -> (N,) float32."""
    blocks = [slice(first, first + TRIALS_AT_ONCE) for first in range(0, len(enrol), TRIALS_AT_ONCE)]
    return np.concatenate([np.einsum("nd,nd->n", vectors[enrol[block]], vectors[test[block]]) for block in blocks])


# ---- where a cohort comes from ---------------------------------------------------------------------------------------


class Cohort(NamedTuple):
    """Speakers who are in no trial, to compare both sides of a trial with."""

    vectors: np.ndarray  # (K, D) float32: the mean embedding of each, not centred, not normalised
    about: str  # who they are, in words

    @property
    def mean(self):
        """(D,) float32: the mean of the speakers, which is subtracted from all embeddings."""
        return self.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)


def make_cohort(encoder, train_list, source, threads):
    """The cohort of the speakers of a TrainingList, by UTTERANCES of each, evenly spread over the speaker's lines.

    source: the Folder or Pack of its files. Files that cannot be read are left out with one warning. InputError when
    fewer than two speakers are left.
    """
    lines_of = np.split(np.argsort(train_list.label, kind="stable"), np.cumsum(np.bincount(train_list.label))[:-1])
    lines = [each[np.linspace(0, len(each) - 1, min(len(each), UTTERANCES)).astype(int)] for each in lines_of]
    lines = np.concatenate(lines)
    files = [train_list.files[line] for line in lines]

    def embed(own):
        found = encoder.embed_files(own, source, threads)
        return {file: each for file, each, _ in progress_bar(iterable=found, total=len(own), desc="cohort", delay=1)}

    embedded = split_over_processes(embed, files)
    readable = np.array([not isinstance(embedded[file], UnreadableAudio) for file in files])
    if not readable.all():
        first = embedded[files[int(np.argmin(readable))]]
        warnings.warn(f"{first}; {(~readable).sum()} of {len(lines)} files are left out of the cohort", stacklevel=2)
    speakers = train_list.label[lines[readable]]
    if len(set(speakers.tolist())) < 2:
        raise InputError(f"{train_list.path}: a cohort needs at least two speakers whose files can be read")
    vectors = speaker_means([embedded[file] for file in np.array(files)[readable]], speakers)
    return Cohort(vectors, _about(vectors, train_list))


def cohort_beside(checkpoint_path, encoder, train_list, source, threads):
    """``make_cohort``, kept as <checkpoint>.cohort.npz for the next time; ``read_cohort`` reads that, too.

    A kept one is used if it was made with the same weights from the same list; the audio itself is not compared.
    """
    path = Path(f"{checkpoint_path}.cohort.npz")
    list_sha256 = hashlib.sha256(train_list.text().encode()).hexdigest()
    origin = {"list_sha256": list_sha256, "model": encoder.fingerprint(), "utterances": UTTERANCES}
    vectors = None
    with contextlib.suppress(InputError):  # absent or damaged: it is made anew
        kept = load_arrays(path, "--cohort")
        if all(str(kept.get(key)) == str(value) for key, value in origin.items()):
            vectors = kept["embeddings"]
    vectors = gather(vectors)[0]  # all processes use what the first one found
    if vectors is not None:
        return Cohort(vectors, _about(vectors, train_list))
    cohort = make_cohort(encoder, train_list, source, threads)
    try:
        if rank() == 0:
            with whole_file(path) as file:
                np.savez(file, embeddings=cohort.vectors, **origin)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error.strerror}): the cohort is not kept", stacklevel=2)
    return cohort


def read_cohort(path, encoder):
    """A cohort from an .npz with ``embeddings`` (K, D), as verify.py --embed writes it.

    ``speakers`` (K,): rows of one speaker are averaged; without it, each row counts as one. ``model``: the fingerprint
    of the encoder that made them. InputError when the file is something else, or not of this encoder.
    """
    arrays, named = load_arrays(path, "--cohort"), f"--cohort {path}"
    vectors, speakers, expected = arrays.get("embeddings"), arrays.get("speakers"), encoder.network.embedding_size
    if vectors is None or vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise InputError(f"{named} holds no array 'embeddings' (K, D), as verify.py --embed writes it")
    if "model" in arrays and str(arrays["model"]) != encoder.fingerprint():
        raise InputError(f"{named} was made with another model: its embeddings mean nothing to this one")
    if vectors.shape[1] != expected:
        raise InputError(f"{named} has embeddings of {vectors.shape[1]} numbers, those of the model have {expected}")
    if not np.isfinite(vectors).all():
        raise InputError(f"{named} holds embeddings that are not finite")
    if speakers is not None:
        if speakers.shape != vectors.shape[:1]:
            raise InputError(f"{named} names {speakers.size} speakers of {len(vectors)} embeddings")
        vectors = speaker_means(vectors.astype(np.float32), speakers)
    kind = "embeddings" if speakers is None else "speakers"
    if len(vectors) < 2:
        raise InputError(f"{named} has {len(vectors)} {kind}: at least two are needed, better some hundred")
    about = f"{len(vectors)} {kind} of {Path(path).name} (sha256 {sha256(path)[:8]})"
    return Cohort(vectors.astype(np.float32), about)


def speaker_means(embeddings, speakers):
    """(M, D) embeddings, (M,) names or numbers -> (K, D) float32, the mean of each speaker, in sorted order."""
    names, place = np.unique(speakers, return_inverse=True)
    sums = np.zeros((len(names), len(embeddings[0])))
    np.add.at(sums, place, embeddings)
    return (sums / np.bincount(place)[:, None]).astype(np.float32)


def _about(vectors, train_list):
    name = f"{train_list.path.name} (sha256 {train_list.sha256[:8]})"
    return f"{len(vectors)} speakers of {name}, at most {UTTERANCES} utterances each"
