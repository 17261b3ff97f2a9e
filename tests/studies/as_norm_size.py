"""AS-norm and calibration at the size of Vox1-E, with random embeddings: seconds, memory, and how exact.

    python tests/studies/as_norm_size.py            # one core: OMP_NUM_THREADS=1 taskset -c 0 in front
    python tests/studies/as_norm_size.py cuda
"""

import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.backend import Cohort, TrialScorer, centred
from inference.encoder import Utterance
from tools import cohort_statistics

TRIALS, UTTERANCES, COHORT, TOP_N, SIZE = 579_818, 145_160, 5_994, 300, 192


def told(what, work):
    """What ``work`` returns; its seconds and the most memory of the process so far are printed."""
    began = time.perf_counter()
    result = work()
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:45} {seconds:6.1f} s   peak {peak:6,.0f} MB", flush=True)
    return result


def brute_force(embeddings, cohort, rows):
    """Mean and deviation of the TOP_N highest cohort scores of a few rows, one by one in float64."""
    cohort = cohort.astype(np.float64)
    mean = cohort.mean(axis=0)
    others = [(each - mean) / np.linalg.norm(each - mean) for each in cohort]
    for row in rows:
        vector = embeddings[row].astype(np.float64) - mean
        top = sorted(np.dot(other, vector / np.linalg.norm(vector)) for other in others)[-TOP_N:]
        yield np.mean(top), np.std(top)


def main(device="cpu"):
    random = np.random.default_rng(0)

    def made():
        vectors = random.standard_normal((UTTERANCES, SIZE), dtype=np.float32) + 1
        others = random.standard_normal((COHORT, SIZE), dtype=np.float32) + 1
        files = [f"{row}.wav" for row in range(UTTERANCES)]
        enrol, test = ([files[row] for row in random.integers(UTTERANCES, size=TRIALS)] for _ in range(2))
        trials = SimpleNamespace(enrol=enrol, test=test, label=random.integers(2, size=TRIALS))
        seconds = random.uniform(4, 20, UTTERANCES)
        utterances = {file: Utterance(None, *each) for file, *each in zip(files, vectors, seconds)}
        return vectors, utterances, Cohort(others, ""), trials

    embeddings, utterances, cohort, trials = told("the embeddings and trials made up", made)
    vectors, others = (centred(each, cohort.mean) for each in (embeddings, cohort.vectors))
    found = told("every utterance against the cohort, alone", lambda: cohort_statistics(vectors, others, TOP_N, device))
    scorer = told("centring, and that again", lambda: TrialScorer(utterances, cohort, TOP_N, device))
    told("scores: cosine, centred, normalised", lambda: scorer.score(trials))
    calibration = told("a calibration learnt from as many trials", lambda: scorer.calibrate(trials))
    told("scores, and log-likelihood ratios of them", lambda: scorer.score(trials, calibration))

    rows = random.integers(UTTERANCES, size=200)
    plain = np.array(list(brute_force(embeddings, cohort.vectors, rows))).T
    for name, ours, theirs in zip(("mean", "deviation"), found, plain):
        error = np.max(np.abs(ours[rows] - theirs))
        print(f"{name} of the {TOP_N} highest: {error:.1e} at most from float64, one by one")


if __name__ == "__main__":
    main(*sys.argv[1:])
