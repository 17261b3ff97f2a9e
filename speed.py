"""Speed perturbation of a whole batch on the device where it is: slower and faster speech as other speakers.

Which speed an utterance gets is a function of (seed, epoch, step, its row), so that a resumed run goes on exactly and
several processes draw together what one would.
"""

import math

import numpy as np
import torch
from torch import nn
from torchaudio.transforms import Resample

from dataLoader import row_numbers, to_device


class SpeedPerturbation(nn.Module):
    """Each utterance as it is, at 0.9 or at 1.1 times its speed, with equal probability (Ko et al., Interspeech 2015).

    As sox's "speed" does, this changes the pitch too, and with it the voice: played at another speed, speaker c of
    n_class is speaker c + n_class (0.9) or c + 2 * n_class (1.1), as Yamamoto et al. (Interspeech 2019), wespeaker and
    others have it. A classifier then needs 3 * n_class classes, of which the first n_class are the true speakers.

    samples: the length of the crops that come out. ``reads``: the length of those that go in, enough for the fastest.
    """

    FACTORS = (1.0, 0.9, 1.1)

    def __init__(self, samples, n_class, seed):
        super().__init__()
        self.samples = samples
        self.n_class = n_class
        self.seed = seed
        # Played at 0.9, nine samples become ten. As sharp a filter as audio.py's: torchaudio's own, of 6 crossings,
        # would dull the treble of what is slowed down, and a network tells the speeds apart by that instead.
        self.players = nn.ModuleList(
            Resample(round(10 * factor), 10, lowpass_filter_width=32) for factor in self.FACTORS[1:]
        )
        # The crop's last sample, too, is filtered out of samples that were read.
        self.needs = [
            math.ceil(samples * player.orig_freq / player.new_freq) + player.width for player in self.players
        ]
        self.reads = -(-max(self.needs) // 80) * 80  # a multiple of 5 ms, as a crop is

    def forward(self, waveform, label, epoch, step, first=0):
        """(B, reads) int16 or float, (B,) int64 -> (B, samples) float32 of the same scale, (B,) int64.

        Out of int16 come floats of up to +-32768, which Augmentation takes as it takes int16. Utterances at their own
        speed are their first samples, unchanged. first: where these rows begin in the step's batch, if they are a part
        of it. Raises ValueError for crops that are too short.
        """
        if waveform.shape[1] < self.reads:
            raise ValueError(f"crops must have {self.reads} samples to be played faster, not {waveform.shape[1]}")
        numbers = row_numbers(self.seed, "speed", epoch, step, first=first, count=len(waveform), columns=1)[:, 0]
        choice = (numbers * len(self.FACTORS)).astype(np.int64)
        played = waveform[:, : self.samples].to(torch.float32, copy=True)
        # TF32, cuDNN's default, rounds to 10 bits; and its search for the fastest kernel would begin anew whenever
        # another number of rows is drawn.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            for number, (player, needed) in enumerate(zip(self.players, self.needs), 1):
                rows = np.flatnonzero(choice == number)
                if len(rows):
                    rows = to_device(torch.from_numpy(rows), waveform.device)
                    played[rows] = player(waveform[rows, :needed].float())[:, : self.samples]
        return played, label + self.n_class * to_device(torch.from_numpy(choice), label.device)
