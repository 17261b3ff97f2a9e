"""A trained model in use: embeddings of files, the score of a pair, the scores of a trial list.

    python verify.py --initial_model exps/exp1/model/best.model a.wav b.wav
"""

import argparse
import collections
import concurrent.futures
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from dataLoader import UnreadableAudio, read_audio
from model import ECAPA_TDNN
from tools import InputError, RunError, load_checkpoint, progress_bar, run_command

CROPS = 5  # the customary score looks at each utterance whole and in five crops of three seconds
CROP_SAMPLES = 300 * 160 + 240
SHORTEST = 257  # samples that the front end needs for its first frame


class Verification(NamedTuple):
    """The answer to "is it the same speaker?"; the last two are None where no threshold was given."""

    score: float
    same_speaker: bool | None
    threshold: float | None


def choose_device(name="auto"):
    """A torch.device: a CUDA GPU if there is one, else Apple's, else the CPU; or the one that is named."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps"):
            raise NotImplementedError("not one of cpu, cuda, mps")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name} is not to be had here ({str(error).splitlines()[0]})") from error
    return torch.device(name)


class SpeakerEncoder:
    """An ECAPA_TDNN that embeds files. Always float32 and in eval mode, so that a score depends on nothing else."""

    def __init__(self, network, device="cpu"):
        self.network = network
        self.device = torch.device(device)

    @classmethod
    def from_checkpoint(cls, path, device="cpu"):
        """Build the encoder from one of our ``*.model`` files. Raises InputError when it is none."""
        checkpoint = load_checkpoint(path, "model")
        network = ECAPA_TDNN(C=checkpoint["settings"]["C"])
        weights = {key: value for key, value in checkpoint["weights"].items() if key.startswith("speaker_encoder.")}
        try:
            network.load_state_dict({key.removeprefix("speaker_encoder."): value for key, value in weights.items()})
        except RuntimeError as error:
            difference = str(error).splitlines()[1].strip()
            raise InputError(f"{path} holds other weights than its settings say: {difference}") from error
        return cls(network.to(device), device)

    @torch.inference_mode()
    def embed_batch(self, waveform):
        """(B, samples) float32 in [-1, 1], equally long -> (B, D) float32 tensor on the CPU, not normalised."""
        training = self.network.training
        self.network.eval()
        # TF32, cuDNN's default for convolutions, would round to 10 bits of mantissa.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            embedding = self.network(waveform.to(self.device)).float().cpu()
        self.network.train(training)
        return embedding

    def embed(self, path):
        """The embedding of a whole file as the network gives it: (D,) float32 numpy, not normalised.

        Raises UnreadableAudio for files that cannot be read or are shorter than 257 samples (16 ms).
        """
        return self.embed_batch(self._read(path).unsqueeze(0))[0].numpy()

    def verify(self, first, second, threshold=None):
        """Cosine of two whole files' embeddings -> Verification; the same speaker if score >= threshold."""
        embeddings = torch.from_numpy(np.stack([self.embed(first), self.embed(second)]))
        score = F.cosine_similarity(*embeddings, dim=0).item()
        return Verification(score, None if threshold is None else bool(score >= threshold), threshold)

    def embed_for_scoring(self, files, root=".", threads=4):
        """Vectors whose dot products are the customary scores: {file: (2 D,) float32 numpy}.

        The customary score of a pair is the mean of two numbers: the cosine of the whole utterances, and the mean of
        the 5 x 5 cosines between five evenly spaced three-second crops of each (shorter utterances are wrapped
        around). As the mean of all cosines between two sets is the dot product of the sets' mean unit vectors, both
        together are one dot product: of the whole's unit vector and the crops' mean, side by side, over sqrt(2).

        Each file is read and embedded once, by itself, so its vector does not depend on the others.
        """
        files = list(dict.fromkeys(files))
        vectors = {}
        with (
            concurrent.futures.ThreadPoolExecutor(threads) as pool,
            progress_bar(total=len(files), desc="embedding", unit="utt") as bar,
        ):
            ahead, coming = collections.deque(), iter(files)
            for file in files:
                for path in itertools.islice(coming, 2 * threads - len(ahead)):
                    ahead.append(pool.submit(self._read, Path(root) / path))
                vectors[file] = self._scoring_vector(ahead.popleft().result())
                if not np.isfinite(vectors[file]).all():
                    raise RunError(f"the embedding of {file} is not finite: broken weights, or samples far beyond 1")
                bar.update()
        return vectors

    def _scoring_vector(self, waveform):
        whole = F.normalize(self.embed_batch(waveform.unsqueeze(0)))
        crops = F.normalize(self.embed_batch(scoring_crops(waveform)))
        return torch.cat([whole[0], crops.mean(dim=0)]).numpy() / np.float32(np.sqrt(2))

    @staticmethod
    def _read(path):
        waveform = read_audio(path)
        if len(waveform) < SHORTEST:
            raise UnreadableAudio(f"{path} has {len(waveform)} samples at 16 kHz, fewer than the {SHORTEST} needed")
        return torch.from_numpy(waveform)


def scoring_crops(waveform):
    """(samples,) -> (5, 48240): evenly spaced from beginning to end; a shorter one is wrapped, once, (1, 48240)."""
    if len(waveform) <= CROP_SAMPLES:
        # All five crops would be equal, and so would be their mean.
        return waveform[torch.arange(CROP_SAMPLES) % len(waveform)].unsqueeze(0)
    starts = np.linspace(0, len(waveform) - CROP_SAMPLES, CROPS).astype(int)
    return torch.stack([waveform[start : start + CROP_SAMPLES] for start in starts])


def score_trials(trials, vectors):
    """A TrialList and {file: (D,) array} -> (N,) float32 dot products."""
    row = {file: i for i, file in enumerate(vectors)}
    matrix = np.stack(list(vectors.values()))
    enrol, test = ([row[file] for file in column] for column in (trials.enrol, trials.test))
    # In blocks: the vectors of a million trials would be gigabytes.
    blocks = [slice(first, first + 100_000) for first in range(0, len(enrol), 100_000)]
    return np.concatenate([np.einsum("nd,nd->n", matrix[enrol[block]], matrix[test[block]]) for block in blocks])


def main():
    parser = argparse.ArgumentParser(description="Compare the speakers of two files.", allow_abbrev=False)
    parser.add_argument("--initial_model", required=True, help="a *.model file that trainSpeakerNet.py wrote")
    parser.add_argument("--threshold", type=float, help="call it the same speaker from this score on; none: score only")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (default %(default)s)")
    parser.add_argument("files", nargs=2, metavar="FILE", help="audio files, anything libsndfile reads")
    args = parser.parse_args()
    encoder = SpeakerEncoder.from_checkpoint(args.initial_model, choose_device(args.device))
    result = encoder.verify(*args.files, threshold=args.threshold)
    verdict = "" if result.threshold is None else f" {'same speaker' if result.same_speaker else 'different speakers'}"
    print(f"{result.score:.4f}{verdict}")


if __name__ == "__main__":
    run_command(main)
