"""Judging a model on trial lists: scores, error rates with their intervals, and the files that keep them."""

import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpora.audio import Folder, UnreadableAudio, check_folder
from corpora.lists import TrainingList, TrialList, check_files
from corpora.make_lists import hold_out, make_trials
from corpora.pack import Pack, open_source
from evaluation.backend import BackEnd, Utterances, cohort_beside, read_cohort
from evaluation.calibration import actual_dcf, cllr, min_cllr
from evaluation.intervals import bootstrap_intervals, compare, speakers_of
from evaluation.plots import draw_det
from inference.encoder import score_trials
from tools import InputError, equal_error_rate, min_dcf, read_scores, threshold_at, write_scores
from training import distributed

VALID = "valid"  # what the trials of held-out training speakers are called


class Test(NamedTuple):
    """Trials, and where their utterances are."""

    trials: TrialList
    source: Folder | Pack


def open_tests(args):
    """{name: Test} of --eval_list, each checked against the disk; the name is the file's, without its suffix."""
    tests = {}
    for path in args.eval_list:
        name = Path(path).stem
        if name in (VALID, f"{VALID}_trials"):
            raise InputError(f"--eval_list {path}: so are the trials of --valid_speakers called; rename it")
        for other in tests:  # a back-end's scores are <name>.as_norm and so on
            if f"{name}.".startswith(f"{other}.") or other.startswith(f"{name}."):
                both = f"two lists called {name}" if name == other else f"lists called {other} and {name}"
                raise InputError(f"--eval_list has {both}: their scores could go to one file; rename one")
        trials = TrialList(path)
        check_folder(args.eval_path, "--eval_path")
        if (Path(args.eval_path) / "pack.json").exists():
            raise InputError(f"--eval_path {args.eval_path} is a pack: utterances of trials are read from files")
        source = next((test.source for test in tests.values()), Folder(args.eval_path))  # one for all
        check_files(trials, source, "--eval_path", args.paths_anywhere)
        tests[name] = Test(trials, source)
    return tests


def open_training_list(args):
    """The training list and where its files are, a folder or a pack."""
    listing, source = TrainingList(args.train_list), open_source(args.train_path, "--train_path")
    check_files(listing, source, "--train_path", args.paths_anywhere)
    return listing, source


def evaluate(encoder, tests, args, background=None, kind=""):
    """Score every trial of the tests {name: Test}, each utterance embedded once for all of them.

    background: a Background; the scores of its back-end are judged too, as <name>.mean, <name>.as_norm and so on.
    Prints and returns {name: {"eer", "interval", ...}}; writes <save_path>/scores/<name>.txt and det.png, unless it is
    a ``kind`` of model beside the main one, such as "ema".
    """
    began = time.perf_counter()
    sources, back_ends = dict.fromkeys(test.source for test in tests.values()), {}
    for source in sources:
        lists = [test.trials for test in tests.values() if test.source is source]
        sources[source] = utterances_of(encoder, lists, source, args)
        back_ends[source] = background.back_end(sources[source]) if background else None
    results, curves = {}, {}
    for test_name, (trials, source) in tests.items():
        scored = {test_name: score_trials(trials, sources[source])}
        if background:
            more = back_ends[source].score(trials, background.calibration)
            if not encoder.system.crops:
                del more["cosine"]  # that is the system's score
            scored.update((f"{test_name}.{step}", scores) for step, scores in more.items())
        for name, scores in scored.items():
            result = judge(scores, trials)
            if background and not name.endswith(".cosine") and name != test_name:
                result["cohort"] = background.in_words(name.endswith(".mean"))
            if name.endswith(".calibrated"):
                result |= judge_calibration(scores, trials)
            results[name] = result
            curves[name] = scores, trials.label
            if not kind and distributed.rank() == 0:
                write_scores(Path(args.save_path) / "scores" / f"{name}.txt", scores, trials)
            print(f"  {result_line(f'{name} ({kind})' if kind else name, results[name])}")
    if curves and not kind and distributed.rank() == 0:
        draw_det(Path(args.save_path) / "det.png", curves)
    print(f"  {sum(map(len, sources.values()))} utterances, {time.perf_counter() - began:.0f} s")
    return results


def utterances_of(encoder, lists, source, args):
    """{file: Utterance} of some TrialLists, the work shared by all processes."""
    files = [file for trials in lists for column in (trials.enrol, trials.test) for file in column]
    try:
        return distributed.share(encoder.embed_for_scoring, files, source, args.n_cpu)
    except UnreadableAudio as error:
        raise InputError(f"{error}; no trial is left out: mend it, or take its lines out of the list") from error


def judge(scores, trials):
    """What the scores (N,) of a TrialList say about a model, as data for metrics.jsonl."""
    eer, threshold = equal_error_rate(scores, trials.label)
    enrol, test, speakers = speakers_of(trials)
    intervals = bootstrap_intervals(scores, trials.label, enrol, test)
    return {
        "eer": eer,
        "thresholds": {"EER": threshold, "1%": threshold_at(scores, trials.label, 0.01),
                       "0.1%": threshold_at(scores, trials.label, 0.001)},
        "min_dcf_0.05": min_dcf(scores, trials.label, p_target=0.05)[0],
        "min_dcf_0.01": min_dcf(scores, trials.label, p_target=0.01)[0],
        "interval": {metric: list(interval) for metric, interval in intervals.items()},
        "trials": len(trials),
        "utterances": len({*trials.enrol, *trials.test}),
        "speakers": speakers,
        "list_sha256": trials.sha256,
    }  # fmt: skip


def judge_calibration(ratios, trials):
    """What log-likelihood ratios (N,) are worth as such; act_dcf: the cost of deciding by them."""
    return {
        "cllr": cllr(ratios, trials.label),
        "min_cllr": min_cllr(ratios, trials.label),
        "act_dcf_0.05": actual_dcf(ratios, trials.label, p_target=0.05),
        "act_dcf_0.01": actual_dcf(ratios, trials.label, p_target=0.01),
    }


def judged(history):
    """Yield (record, kind, results) of every model that was evaluated after training began, the averages included."""
    for record in history:
        if record["epoch"] > 0:
            for kind, results in {"model": record["lists"], **record.get("averages", {})}.items():
                yield record, kind, results


def result_line(name, result):
    """A result for the terminal; 95 % intervals in brackets."""
    low, high = result["interval"]["eer"]
    parts = [f"{name}: EER {result['eer']:.2f}% [{low:.2f}, {high:.2f}]"]
    for prior in ("0.05", "0.01"):
        low, high = result["interval"][f"min_dcf_{prior}"]
        parts.append(f"minDCF({prior}) {result[f'min_dcf_{prior}']:.4f} [{low:.3f}, {high:.3f}]")
    if "cllr" in result:
        parts.append(f"Cllr {result['cllr']:.3f}, at best {result['min_cllr']:.3f}")
        parts.append(f"actDCF {result['act_dcf_0.05']:.4f}, {result['act_dcf_0.01']:.4f}")
    parts.append(f"{result['trials']} trials, {result['utterances']} utterances, {result['speakers']} speakers")
    parts.append(f"list {result['list_sha256'][:8]}")
    if "cohort" in result:
        parts.append(f"cohort {result['cohort']}")
    return " | ".join(parts)


# ---- what a back-end learns ------------------------------------------------------------------------------------------


class Background:
    """What a back-end knows of other speakers: a cohort, and a calibration if one is asked for.

    The cohort are the speakers that the model was trained on, or --cohort; the calibration is learnt from trials of
    speakers in the training list that were held out of training (--valid_speakers), never from the test.
    """

    def __init__(self, encoder, args):
        """Check what it needs; InputError naming the flag. The long work is ``learn``'s."""
        self.encoder, self.args, self.calibration, self.trials = encoder, args, None, None
        if args.calibrate or not args.cohort:
            listing, self.source = open_training_list(args)
            held = np.isin(np.array(listing.speakers)[listing.label], encoder.held_out or [])
            self.listing, self.held = listing.subset(np.flatnonzero(~held)), listing.subset(np.flatnonzero(held))
            if len(self.listing.speakers) < 2 and not args.cohort:
                besides = f" besides those that {args.initial_model} held out" if held.any() else ""
                raise InputError(f"--train_list {listing.path}: a cohort needs at least two speakers{besides}")
            self.about_held = "who were held out of training"
            if args.calibrate and not held.any():
                count = min(1000, max(2, len(listing.speakers) // 5))
                self.listing, self.held = hold_out(listing, count, asked="--calibrate: holding out")
                self.about_held = "whom the model may know"
                if distributed.rank() == 0:
                    warnings.warn(
                        f"{args.initial_model} held no speakers of {listing.path} out of its training "
                        f"(--valid_speakers): --calibrate takes {len(self.held.speakers)} of them all the same. If it "
                        "knows them, the likelihood ratios will promise too much",
                        stacklevel=2,
                    )
        if args.cohort:
            self.cohort = read_cohort(args.cohort, encoder)
        if args.calibrate:
            self.trials = make_trials(self.held, "calibration")

    def learn(self):
        """Embed the calibration's trials, and the cohort, unless that was done before."""
        args = self.args
        if self.trials:  # first: it takes minutes and may find a file that cannot be read, the cohort takes hours
            utterances = utterances_of(self.encoder, [self.trials], self.source, args)
        if not args.cohort:
            self.cohort = cohort_beside(args.initial_model, self.encoder, self.listing, self.source, args.n_cpu)
        if self.trials:
            self.calibration = self.back_end(utterances).calibrate(self.trials)
            print(f"calibrated on {len(self.trials)} trials of {len(self.held.speakers)} speakers {self.about_held}")

    def in_words(self, mean_only):
        """Which cohort, and how much of it counts: the mean of all, or the nearest of each utterance, too."""
        nearest = min(self.args.top_n, len(self.cohort.vectors))
        return self.cohort.about + ("" if mean_only else f", the nearest {nearest} of each utterance")

    def as_data(self):
        """What was learnt, for results.json; None without --calibrate."""
        if self.calibration:
            weights, bias = self.calibration
            about = {"speakers": self.held.speakers, "trials": len(self.trials)}
            return {**about, "weights": weights.tolist(), "bias": bias}

    def back_end(self, utterances):
        """A BackEnd for {file: Utterance}."""
        embeddings = np.stack([each.embedding for each in utterances.values()])
        seconds = np.array([each.seconds for each in utterances.values()])
        table = Utterances(list(utterances), embeddings, seconds)
        return BackEnd(table, self.cohort, self.args.top_n, self.encoder.device)


# ---- two systems -----------------------------------------------------------------------------------------------------


def compare_files(args):
    """Print how two score files of one trial list differ, and whether it is more than chance."""
    trials = TrialList(args.eval_list[0])
    first, second = (read_scores(path, trials) for path in args.compare)
    enrol, test, speakers = speakers_of(trials)
    print(f"A {args.compare[0]}\nB {args.compare[1]}\n{len(trials)} trials of {speakers} speakers, {trials.path}")
    print(f"{'':14}{'A':>9}{'B':>9}{'B - A':>9}  {'95 % interval':20}p")
    for metric, found in compare(first, second, trials.label, enrol, test).items():
        digits = 2 if metric == "eer" else 4
        name = "EER (%)" if metric == "eer" else f"minDCF({metric.removeprefix('min_dcf_')})"
        numbers = "".join(f"{number:9.{digits}f}" for number in found[:3])
        interval = f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"
        print(f"{name:14}{numbers}  {interval:20}{found.p:.3f}")
