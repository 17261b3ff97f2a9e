"""Evaluation of a model on trial lists: scores, error rates with intervals, and the files of both."""

import itertools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpora.audio import Folder, check_folder
from corpora.lists import TrialList, check_files
from corpora.pack import Pack
from evaluation.calibration import actual_dcf, cllr, min_cllr
from evaluation.intervals import bootstrap_intervals, speakers_of, tells
from evaluation.plots import det_figure, save_png
from tools import InputError, count, equal_error_rate, error_curve, gather, min_dcf, rank, read_text, size, whole_file

STEPS = "cosine", "mean", "as_norm", "calibrated"  # of scoring, after the system's own score
TRIALS_AT_ONCE = 100_000  # the vectors of a million trials would take gigabytes
VALID = "valid"  # the name of the trials between held-out training speakers


class TrialSet(NamedTuple):
    """A trial list and the folder or pack with its audio."""

    trials: TrialList
    source: Folder | Pack


def open_trial_sets(args):
    """{name: TrialSet} of --eval_list, with existing audio files; the name is the list's file name without suffix."""
    trial_sets, source = {}, Folder(args.eval_path)
    if args.eval_list:
        check_folder(args.eval_path, "--eval_path")
    for path in args.eval_list:
        name = Path(path).stem
        if name in (VALID, f"{VALID}_trials"):
            raise InputError(f"--eval_list {path}: the trials of --valid_speakers have this name; rename the list")
        if name.endswith(tuple(f".{step}" for step in STEPS)):
            raise InputError(f"--eval_list {path}: scores of another list would have this name; rename the list")
        if name in trial_sets:
            raise InputError(f"--eval_list has two lists called {name}: their scores would go to one file; rename one")
        trials = TrialList(path)
        check_files(trials, source, "--eval_path", args.paths_anywhere)
        trial_sets[name] = TrialSet(trials, source)
    return trial_sets


def evaluate(encoder, trial_sets, args, backend=None, kind=""):
    """{name: metrics} of every trial list of {name: TrialSet}; each utterance is embedded once.

    backend: a ScoringBackend, whose scores are evaluated too, as <name>.mean, <name>.as_norm and so on. Prints the
    results; writes <save_path>/scores/<name>.txt and det.png, except for a second ``kind`` of model such as "average".
    """
    if not trial_sets:
        return {}
    began = time.perf_counter()
    utterances, scorers = {}, {}
    for source in dict.fromkeys(each.source for each in trial_sets.values()):
        lists = [each.trials for each in trial_sets.values() if each.source is source]
        utterances[source] = embed_utterances(encoder, lists, source, args)
        scorers[source] = backend.scorer(utterances[source]) if backend else None
    results, curves, writes = {}, {}, not kind and rank() == 0
    for name, step in itertools.product(trial_sets, STEPS) if writes else ():
        Path(args.save_path, "scores", f"{name}.{step}.txt").unlink(missing_ok=True)  # perhaps of another model
    for set_name, (trials, source) in trial_sets.items():
        steps, cosines = {"": score_trials(trials, utterances[source])}, None
        if encoder.system.crops:  # else the system's scores are the cosines
            cosines = trial_cosines(trials, utterances[source])
        if backend:
            steps |= {} if cosines is None else {"cosine": cosines}
            steps |= scorers[source].score(trials, backend.calibration)
        names, trained, speakers = trials.speaker_names(), set(encoder.trained_on), speakers_of(trials)
        for step, scores in steps.items():
            name = f"{set_name}.{step}" if step else set_name
            results[name] = compute_metrics(scores, trials, speakers)
            results[name]["speakers_in_training"] = len(names & trained) if names and trained else None  # not known
            if not step and cosines is not None:  # for users who compare embeddings
                results[name]["cosine_threshold"] = equal_error_rate(cosines, trials.label)[1]
            if step in ("mean", "as_norm", "calibrated"):
                top_n = min(args.top_n, len(backend.cohort.vectors))
                nearest = "" if step == "mean" else f", the nearest {top_n} of each utterance"
                results[name]["cohort"] = backend.cohort.about + nearest
            if step == "calibrated":
                results[name] |= {"cllr": cllr(scores, trials.label), "min_cllr": min_cllr(scores, trials.label)}
                results[name] |= {f"act_dcf_{p}": actual_dcf(scores, trials.label, p) for p in (0.05, 0.01)}
            curves[name] = scores, trials.label
            if writes:
                write_scores(Path(args.save_path) / "scores" / f"{name}.txt", scores, trials)
            print(f"  {result_line(f'{name} ({kind})' if kind else name, results[name])}")
    if curves and writes:
        save_png(det_figure(curves), Path(args.save_path) / "det.png")
    print(f"  {count(sum(map(len, utterances.values())), 'utterance')}, {time.perf_counter() - began:.0f} s")
    return results


def embed_utterances(encoder, lists, source, args):
    """{file: Utterance} of some TrialLists, computed by all processes together. InputError: files are unreadable."""
    files, errors = [file for trials in lists for file in (*trials.enrol, *trials.test)], []
    found = split_over_processes(lambda own: encoder.embed_for_scoring(own, source, args.n_cpu, errors), files)
    if errors := list(itertools.chain.from_iterable(gather(errors))):
        more = f"; {len(errors)} files in all" * (len(errors) > 3)
        raise InputError(f"{'; '.join(map(str, errors[:3]))}{more}; no trial is skipped: fix the files, or remove "
                         "their lines from the list")  # fmt: skip
    return found


def split_over_processes(embed, files):
    """The whole dict of embed(files) -> {file: ...}, to which each process (torchrun) contributes its share."""
    found = gather(embed(list(dict.fromkeys(files))[rank() :: size()]))
    return {file: each for part in found for file, each in part.items()}


def score_trials(trials, utterances):
    """A TrialList and {file: Utterance} -> (N,) float32 dot products of their vectors."""
    vectors = np.stack([each.vector for each in utterances.values()])
    return dot_products(vectors, *trial_rows(trials, utterances))


def trial_cosines(trials, utterances):
    """The same with the cosines of whole utterances, which are another score where crops are scored, too."""
    vectors = np.stack([each.embedding for each in utterances.values()])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return dot_products(vectors, *trial_rows(trials, utterances))


def trial_rows(trials, utterances):
    """Positions in {file: Utterance} of both sides of a TrialList: [enrol (N,), test (N,)], int64."""
    row = {file: i for i, file in enumerate(utterances)}
    return [np.array([row[file] for file in side]) for side in (trials.enrol, trials.test)]


def dot_products(vectors, enrol, test):
    """(U, D), rows of the two sides of each trial (N,) -> (N,) float32."""
    blocks = [slice(first, first + TRIALS_AT_ONCE) for first in range(0, len(enrol), TRIALS_AT_ONCE)]
    return np.concatenate([np.einsum("nd,nd->n", vectors[enrol[block]], vectors[test[block]]) for block in blocks])


def compute_metrics(scores, trials, speakers=None):
    """Error rates of the scores (N,) of a TrialList, with 95 % intervals and thresholds, as in metrics.jsonl.

    speakers: what ``speakers_of`` found, which takes seconds for a long list.
    """
    eer, threshold = equal_error_rate(scores, trials.label)
    enrol, test, speakers = speakers or speakers_of(trials)
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


def threshold_at(scores, labels, false_alarm):
    """The lowest threshold with at most this false-alarm rate, or None when the list is too short to tell.

    (scores (N,), labels (N,), rate) -> a score; a trial is accepted when its score reaches it. Errors as in
    ``error_curve``.
    """
    thresholds, _, rates = error_curve(scores, labels)
    if false_alarm * np.count_nonzero(np.asarray(labels) == 0) < 1:
        return None
    found = thresholds[np.argmax(rates <= false_alarm + 1e-12)]  # exists: the last threshold accepts nothing
    return float(found) if np.isfinite(found) else None


def result_line(name, result):
    """A result as one line for the terminal; 95 % intervals in brackets."""
    low, high = result["interval"]["eer"]
    known = tells(result)
    interval = f"[{low:.2f}, {high:.2f}]" if known else "(too few speakers or errors for intervals)"
    parts = [f"{name}: EER {result['eer']:.2f}% {interval} at {result['thresholds']['EER']:.3f}"]
    for prior in ("0.05", "0.01"):
        low, high = result["interval"][f"min_dcf_{prior}"]
        parts.append(f"minDCF({prior}) {result[f'min_dcf_{prior}']:.4f}{f' [{low:.3f}, {high:.3f}]' * known}")
    if "cllr" in result:
        parts.append(f"Cllr {result['cllr']:.3f}, at best {result['min_cllr']:.3f}")
        parts += [f"actDCF({prior}) {result[f'act_dcf_{prior}']:.4f}" for prior in ("0.05", "0.01")]
    parts.append(", ".join(count(result[f"{noun}s"], noun) for noun in ("trial", "utterance", "speaker")))
    if result.get("speakers_in_training"):
        parts.append(f"{count(result['speakers_in_training'], 'speaker')} in training")
    parts.append(f"list {result['list_sha256'][:8]}")
    if "cohort" in result:
        parts.append(f"cohort {result['cohort']}")
    return " | ".join(parts)


# ---- files -----------------------------------------------------------------------------------------------------------


def write_scores(path, scores, trials):
    """Write a line ``<score> <enrol> <test>`` per trial, in the order of the list."""
    with whole_file(path, "w") as file:
        rows = zip(scores, trials.enrol, trials.test)
        file.writelines(f"{score:.8f} {enrol} {test}\n" for score, enrol, test in rows)


def read_scores(path, trials):
    """Scores (N,) float64 from the file of ``write_scores``. InputError if they are not those of the TrialList."""
    rows = [line.split() for line in read_text(path).splitlines()]
    pairs = map(list, zip(trials.enrol, trials.test))
    wrong = next((i for i, (row, pair) in enumerate(zip(rows, pairs)) if row[1:] != pair), min(len(rows), len(trials)))
    if wrong < max(len(rows), len(trials)):
        expected = f"'<score> {trials.enrol[wrong]} {trials.test[wrong]}'" if wrong < len(trials) else "no more lines"
        what = f"{path} has {count(len(rows), 'line')} for {count(len(trials), 'trial')} of {trials.path}"
        raise InputError(f"{what}, in whose order they must be: line {wrong + 1} should be {expected}")
    try:
        return np.asarray_chkfinite([float(row[0]) for row in rows])
    except ValueError as error:
        raise InputError(f"{path} has lines that do not begin with a number") from error
