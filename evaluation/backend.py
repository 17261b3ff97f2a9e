"""Scoring back-end: mean subtraction, AS-norm against a cohort of other speakers, calibration.

It uses one embedding of each whole utterance, so it works for every system.
"""

import contextlib
import hashlib
import itertools
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpora.audio import UnreadableAudio
from corpora.check import found
from corpora.lists import first_lines, open_training_list
from corpora.make_lists import hold_out, make_trials
from evaluation.calibration import fit_if_quality_helps
from evaluation.intervals import speakers_of
from evaluation.scoring import dot_products, embed_utterances, split_over_processes, trial_rows
from tools import (
    InputError,
    cohort_statistics,
    file_hash,
    gather,
    load_arrays,
    rank,
    read_embeddings,
    symmetric_norm,
    whole_file,
)

# Of each speaker, for the cohort. More would move a speaker's mean by less than a quarter (1 / sqrt(20)) of the spread
# of its utterances, and take nine times as long for VoxCeleb2: 1.1 million utterances instead of 120,000.
UTTERANCES = 20
FEW = 20  # speakers: with 2 of them the actual cost was above 1, that of deciding nothing


class ScoringBackend:
    """A cohort and, with --calibrate, a calibration, to score any number of trial lists.

    The cohort is --cohort, or else the training speakers. The calibration is fitted on trials of training speakers that
    were held out of training (--valid_speakers), never on the test lists.
    """

    def __init__(self, encoder, args):
        """Read and check the lists; InputError naming the flag. ``learn`` does the long work."""
        self.encoder, self.args, self.calibration, self.trials, self.seen = encoder, args, None, None, False
        if args.calibrate or not args.cohort:
            train_list, self.source = open_training_list(args)
            held = np.isin(np.array(train_list.speakers)[train_list.label], encoder.held_out or [])
            self.train_list = train_list.subset(np.flatnonzero(~held))
            self.held_out = train_list.subset(np.flatnonzero(held))
            if args.calibrate and not held.any():
                count = min(1000, max(2, len(train_list.speakers) // 5))
                self.train_list, self.held_out = hold_out(train_list, count, asked="--calibrate: holding out")
                known = set(encoder.trained_on)
                self.seen = not known or not known.isdisjoint(self.held_out.speaker_names())
                if rank() == 0 and self.seen:
                    reason = f"{args.initial_model} held no speakers of {train_list.path} out (--valid_speakers)"
                    effect = f"--calibrate uses {count} training speakers, so the likelihood ratios are overconfident"
                    warnings.warn(f"{reason}: {effect}", stacklevel=2)
        if args.cohort:
            self.cohort = read_cohort(args.cohort, encoder)
        if args.calibrate:
            self.trials = make_trials(self.held_out, "calibration")

    def check(self, trial_sets):
        """[Finding] of test speakers or files in cohort or calibration. trial_sets: {name: TrialSet}."""
        sources = {} if self.args.cohort else {"the cohort": self.train_list}
        sources |= {"the calibration": self.held_out} if self.trials else {}
        findings = []
        fix = "if they are the same people, results look better than they are: take others"
        for (trials, _), (source, learned) in itertools.product(trial_sets.values(), sources.items()):
            both = sorted(trials.speaker_names() & learned.speaker_names())
            findings += found("warning", f"speakers of {trials.path.name} are in {source}", both, fix)
        embedded = set(map(os.path.abspath, self.cohort.files)) if self.args.cohort else set()
        for trials, source in trial_sets.values():
            both = [file for file in first_lines(trials) if os.path.abspath(source.name(file)) in embedded]
            findings += found("warning", f"files of {trials.path.name} are in --cohort", both, fix)
        learned = self.held_out.files if self.trials else ()
        both = [file for file in learned if os.path.abspath(self.source.name(file)) in embedded]
        fix = "likelihood ratios of test speakers, who are not, will be wrong: take others"
        return findings + found("warning", "files of the calibration's speakers are in --cohort", both, fix)

    def learn(self):
        """Embed the calibration trials and, unless it was saved before, the cohort; fit the calibration."""
        args = self.args
        if self.trials:  # first: it takes minutes and may find an unreadable file, the cohort takes hours
            utterances = embed_utterances(self.encoder, [self.trials], self.source, args)
        if not args.cohort:
            model = Path(args.initial_model)
            if not model.exists():  # a published model: nothing of ours goes into its cache
                model = Path(args.save_path, model.name)
            self.cohort = cohort_beside(model, self.encoder, self.train_list, self.source, args.n_cpu)
        if self.trials:
            self.calibration = self.scorer(utterances).calibrate(self.trials)
            few = "; with so few the ratios mean little" * (len(self.held_out.speakers) < FEW)
            print(f"calibrated on {len(self.trials)} trials of {len(self.held_out.speakers)} speakers{few}")
            if not self.calibration.weights[1:].any():
                costs = max(self.calibration.across, key=lambda pair: pair[1] - pair[0], default=None)
                why = "too few speakers to tell whether they help"
                if costs is not None:
                    why = f"no help for speakers of other quality (Cllr {costs[1]:.3f} with, {costs[0]:.3f} without)"
                print(f"calibrated without quality measures: {why}")

    def as_data(self):
        """The calibration for results.json; None without --calibrate."""
        if self.calibration:
            learned = {"weights": self.calibration.weights.tolist(), "bias": self.calibration.bias}
            about = {"speakers": self.held_out.speakers, "trials": len(self.trials), "in_training": self.seen}
            return about | learned

    def scorer(self, utterances):
        """A TrialScorer for {file: Utterance}."""
        return TrialScorer(utterances, self.cohort, self.args.top_n, self.encoder.device)


class TrialScorer:
    """Scores of any number of trial lists of some utterances, which are compared with the cohort once.

    utterances: {file: Utterance}; top_n: of AS-norm; device: for the comparison with the cohort. ``quality``: (U, 3),
    for each utterance the log of its seconds, the log of its embedding's norm, and the mean of its ``top_n`` highest
    cohort scores, as in Thienpondt et al., "The IDLab VoxSRC-20 Submission", ICASSP 2021.
    """

    def __init__(self, utterances, cohort, top_n=300, device="cpu"):
        self.utterances = utterances
        embeddings = np.stack([each.embedding for each in utterances.values()])
        self.centred = centred(embeddings, cohort.mean)
        others = centred(cohort.vectors, cohort.mean)
        self.statistics = np.stack(cohort_statistics(self.centred, others, top_n, device))
        seconds, length = [each.seconds for each in utterances.values()], np.linalg.norm(embeddings, axis=1)
        self.quality = np.stack([np.log(seconds), np.log(length), self.statistics[0]], axis=1)

    def score(self, trials, calibration=None):
        """Scores of a TrialList after each step: {"mean", "as_norm", "calibrated": (N,) each}.

        Cosines with the cohort's mean subtracted; AS-norm of these; and log-likelihood ratios, if there is a
        ``calibration`` (fitted with the same cohort and top_n).
        """
        enrol, test = trial_rows(trials, self.utterances)
        scores = {"mean": dot_products(self.centred, enrol, test)}
        scores["as_norm"] = symmetric_norm(scores["mean"], self.statistics[:, enrol], self.statistics[:, test])
        if calibration is not None:
            scores["calibrated"] = calibration.apply(self._features(scores["as_norm"], enrol, test))
        return scores

    def calibrate(self, trials):
        """The Calibration of AS-norm scores, with quality measures if these help, fitted on a TrialList.

        Its speakers must not be training, cohort or test speakers. They are halved at the median of each measure, which
        nearly parts corpora of other quality: random halves would have all corpora, which the measures tell apart.
        """
        rows, speakers = trial_rows(trials, self.utterances), np.stack(speakers_of(trials)[:2])
        means = speaker_means(self.quality[np.concatenate(rows)], speakers.ravel())
        high = means > np.median(means, axis=0)
        features = self._features(self.score(trials)["as_norm"], *rows)
        return fit_if_quality_helps(features, trials.label, *high[speakers])

    def _features(self, scores, enrol, test):
        """Features of the calibration, (N, 7): score, then minimum and maximum of both sides' quality measures."""
        sides = self.quality[enrol], self.quality[test]
        return np.column_stack([scores, np.minimum(*sides), np.maximum(*sides)])


def centred(embeddings, mean):
    """(U, D), (D,) -> (U, D) float32 unit vectors, (x - mean) / |x - mean|."""
    difference = np.asarray(embeddings, dtype=np.float32) - np.asarray(mean, dtype=np.float32)
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    return difference / np.maximum(length, np.finfo(np.float32).tiny)  # zeros for the mean itself


# ---- the cohort ------------------------------------------------------------------------------------------------------


class Cohort(NamedTuple):
    """Speakers in no trial, with whom both sides of a trial are compared."""

    vectors: np.ndarray  # (K, D) float32: the mean embedding of each, not centred, not normalised
    about: str  # description for results
    files: tuple = ()  # their names, if they are utterances

    @property
    def mean(self):
        """(D,) float32: the mean of the speakers, which is subtracted from all embeddings."""
        return self.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)


def make_cohort(encoder, train_list, source, threads):
    """The Cohort of a TrainingList: at most UTTERANCES of each speaker, evenly spread over the speaker's lines.

    source: the Folder or Pack of its files. Unreadable files are left out with one warning. InputError when fewer than
    two speakers are left.
    """
    lines_of = np.split(np.argsort(train_list.label, kind="stable"), np.cumsum(np.bincount(train_list.label))[:-1])
    lines = [each[np.linspace(0, len(each) - 1, min(len(each), UTTERANCES)).astype(int)] for each in lines_of]
    lines = np.concatenate(lines)
    files = [train_list.files[line] for line in lines]

    def embed(own):
        return {file: each for file, each, _ in encoder.embed_files(own, source, threads)}

    embedded = split_over_processes(embed, files)
    errors = [embedded[file] for file in files if isinstance(embedded[file], UnreadableAudio)]
    if errors:
        what = f"{len(errors)} of {len(files)} files are left out of the cohort"
        warnings.warn(f"{errors[0]}; {what}", stacklevel=2)
    lines = lines[[not isinstance(embedded[file], UnreadableAudio) for file in files]]
    if len(set(train_list.label[lines])) < 2:
        raise InputError(f"{train_list.path}: a cohort needs at least two speakers with readable files")
    vectors = speaker_means([embedded[train_list.files[line]] for line in lines], train_list.label[lines])
    return Cohort(vectors, _about(vectors, train_list))


def cohort_beside(checkpoint_path, encoder, train_list, source, threads):
    """The Cohort of ``make_cohort``, saved as <checkpoint>.cohort_<hash of the list>.npz for the next time.

    A saved one is used if it was made with the same weights from the same list; the audio itself is not compared.
    """
    list_sha256 = hashlib.sha256(train_list.text().encode()).hexdigest()
    path = Path(f"{checkpoint_path}.cohort_{list_sha256[:8]}.npz")
    origin = {"list_sha256": list_sha256, "model": encoder.fingerprint(), "utterances": UTTERANCES}
    vectors = None
    with contextlib.suppress(InputError):  # missing or damaged: it is made again
        saved = load_arrays(path, "--cohort")
        if all(str(saved.get(key)) == str(value) for key, value in origin.items()):
            vectors = saved["embeddings"]
    vectors = gather(vectors)[0]  # all processes use what the first one found
    if vectors is not None:
        return Cohort(vectors, _about(vectors, train_list))
    cohort = make_cohort(encoder, train_list, source, threads)
    try:
        if rank() == 0:
            with whole_file(path) as file:
                np.savez(file, embeddings=cohort.vectors, **origin)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error.strerror}): the cohort is not saved", stacklevel=2)
    return cohort


def read_cohort(path, encoder):
    """The Cohort in an .npz, as from ``read_embeddings``."""
    vectors, files = read_embeddings(path, "--cohort", encoder)
    return Cohort(vectors, f"{len(vectors)} embeddings of {Path(path).name} (sha256 {file_hash(path)[:8]})", files)


def speaker_means(embeddings, speakers):
    """(M, D) embeddings, (M,) speaker numbers -> (K, D) float32, the mean of each speaker, in sorted order."""
    numbers, row = np.unique(speakers, return_inverse=True)
    sums = np.zeros((len(numbers), len(embeddings[0])))
    np.add.at(sums, row, embeddings)
    return (sums / np.bincount(row)[:, None]).astype(np.float32)


def _about(vectors, train_list):
    name = f"{train_list.path.name} (sha256 {train_list.sha256[:8]})"
    return f"{len(vectors)} speakers of {name}, at most {UTTERANCES} utterances each"
