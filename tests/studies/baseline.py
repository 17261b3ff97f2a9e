"""A baseline without a network: cosines of mean log-mel spectra, less the mean over the training list.

    python tests/studies/baseline.py TRAIN_LIST TRAIN_PATH EVAL_PATH TRIAL_LIST [TRIAL_LIST ...]
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from corpora.audio import read_audio
from corpora.lists import TrainingList, TrialList
from evaluation.scoring import score_trials
from inference.encoder import Utterance
from model import ECAPA_TDNN
from tools import equal_error_rate, min_dcf, progress_bar, run_command


def main():
    if len(sys.argv) < 5:
        print(__doc__, file=sys.stderr)
        return 2
    train_list, train_path, eval_path, *trial_lists = sys.argv[1:]
    front_end = ECAPA_TDNN(C=8).torchfbank

    def mean_spectra(files, root):
        with torch.inference_mode(), progress_bar(total=len(files), unit="utt") as bar:
            for file in files:
                waveform = torch.from_numpy(read_audio(Path(root) / file)).unsqueeze(0)
                yield front_end(waveform).mean(dim=2)[0].numpy()
                bar.update()

    centre = np.mean(list(mean_spectra(TrainingList(train_list).files, train_path)), axis=0)
    for path in trial_lists:
        trials = TrialList(path)
        files = list(dict.fromkeys([*trials.enrol, *trials.test]))
        spectra = np.stack(list(mean_spectra(files, eval_path))) - centre
        spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
        scores = score_trials(trials, {file: Utterance(each, each, 0.0) for file, each in zip(files, spectra)})
        costs = " | ".join(f"minDCF({p}) {min_dcf(scores, trials.label, p)[0]:.4f}" for p in (0.05, 0.01))
        eer, _ = equal_error_rate(scores, trials.label)
        print(f"{Path(path).stem}: EER {eer:.2f}% | {costs} | {len(trials)} trials")
    return 0


if __name__ == "__main__":
    run_command(main)
