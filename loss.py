"""Training losses over speaker embeddings."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class AAMsoftmax(nn.Module):
    """Additive angular margin softmax (Deng et al., "ArcFace", CVPR 2019).

    A linear classifier on the cosine between embedding and class vector, in which the angle to the true class is
    enlarged by ``m`` radians before the softmax of ``s`` times the cosines.

    n_class: number of speakers; m: margin in radians; s: scale; embedding_size: D. continuous: where angle and margin
    exceed pi together, continue without the customary jump, as wespeaker and 3D-Speaker do.
    """

    def __init__(self, n_class, m=0.2, s=30, embedding_size=192, continuous=False):
        super().__init__()
        self.m = m
        self.continuous = continuous
        self.s = s
        self.weight = nn.Parameter(torch.empty(n_class, embedding_size))
        nn.init.xavier_normal_(self.weight, gain=1)

    def forward(self, embedding, label):
        """embedding (B, D), label (B,) int64 in [0, n_class) -> (mean loss, top-1 accuracy in %), both 0-d tensors.

        Neither is read here, so a GPU is not waited for. The accuracy is that of the logits with the margin in them, as
        the recipe's logs have it: an utterance counts as right only if it is right by the margin.
        """
        # The margin needs float32: near the target, 1 - cos^2 is a difference of nearly equal numbers.
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = F.linear(F.normalize(embedding.float()), F.normalize(self.weight.float()))
            target = cosine.gather(1, label.unsqueeze(1))
            logits = self.s * cosine.scatter(1, label.unsqueeze(1), self.with_margin(target))
            loss = F.cross_entropy(logits, label)
            accuracy = 100.0 * (logits.detach().argmax(dim=1) == label).float().mean()
        return loss, accuracy

    def with_margin(self, cosine):
        """cos(theta + m) from cos(theta), continued linearly where theta + m would pass pi and the cosine turn up."""
        # The floor keeps the square root's slope finite when an embedding lies exactly on its class vector.
        sine = (1.0 - cosine * cosine).clamp(1e-10, 1.0).sqrt()
        shifted = cosine * math.cos(self.m) - sine * math.sin(self.m)
        beyond = cosine - (1 - math.cos(self.m) if self.continuous else self.m * math.sin(self.m))
        return torch.where(cosine > math.cos(math.pi - self.m), shifted, beyond)
