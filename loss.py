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
    exceed pi together, continue without the customary jump, as wespeaker and 3D-Speaker do. sub_centres: K vectors for
    each class, of which the nearest counts, so that mislabelled or odd utterances may gather around another than the
    speaker's own (Deng et al., "Sub-center ArcFace", ECCV 2020); ``weight`` is then (n_class, K, D), else (n_class, D).
    top_k: so many wrong classes, the nearest to each utterance, are drawn nearer by PENALTY (Zhao et al., "Multi-query
    multi-head attention pooling and inter-topK penalty for speaker verification", ICASSP 2022).
    """

    PENALTY = 0.06  # radians, of Zhao et al. and of wespeaker

    def __init__(self, n_class, m=0.2, s=30, embedding_size=192, continuous=False, sub_centres=1, top_k=0):
        super().__init__()
        self.m = m
        self.continuous = continuous
        self.s = s
        self.top_k = min(top_k, n_class - 1)
        shape = (n_class, embedding_size) if sub_centres == 1 else (n_class, sub_centres, embedding_size)
        self.weight = nn.Parameter(torch.empty(shape))
        # Centre by centre: how long a vector is, and with it how fast it turns, does not depend on their number.
        for centre in self.weight.detach().view(n_class, sub_centres, embedding_size).unbind(1):
            nn.init.xavier_normal_(centre, gain=1)

    def forward(self, embedding, label, margin=None):
        """embedding (B, D), label (B,) int64 in [0, n_class) -> (mean loss, top-1 accuracy in %), both 0-d tensors.

        Neither is read here, so a GPU is not waited for. The accuracy is that of the logits with the margin in them, as
        the recipe's logs have it: an utterance counts as right only if it is right by the margin.

        margin: radians in [0, m], a float or, where it changes from step to step, a 0-d float tensor, for which
        torch.compile compiles once; None: m. The penalty of the top_k rises with it, from 0 at 0 to PENALTY at m.
        """
        margin = self.m if margin is None else margin
        label = label.unsqueeze(1)
        # The margin needs float32: near the target, 1 - cos^2 is a difference of nearly equal numbers.
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = self.cosines(embedding.float())
            logits = cosine.scatter(1, label, self.with_margin(cosine.gather(1, label), margin))
            if self.top_k and self.m:
                wrong = cosine.detach().scatter(1, label, -2.0)  # less than any cosine
                nearest = wrong.topk(self.top_k, dim=1, sorted=False).indices
                penalty = self.PENALTY / self.m * margin
                logits = logits.scatter(1, nearest, self.with_penalty(cosine.gather(1, nearest), penalty))
            logits = self.s * logits
            loss = F.cross_entropy(logits, label.squeeze(1))
            accuracy = 100.0 * (logits.detach().argmax(dim=1, keepdim=True) == label).float().mean()
        return loss, accuracy

    def cosines(self, embedding):
        """(B, D) -> (B, n_class): of the angle to each class, or rather to the nearest of its centres."""
        centres = F.normalize(self.weight.float(), dim=-1)
        cosine = F.linear(F.normalize(embedding), centres.flatten(0, -2))
        return cosine if centres.dim() == 2 else cosine.unflatten(1, centres.shape[:2]).amax(dim=2)

    def with_margin(self, cosine, margin):
        """cos(theta + margin) from cos(theta), continued linearly where theta + margin would pass pi and it turn up."""
        cos, sin = cos_and_sin(margin)
        shifted = turned(cosine, cos, sin)
        beyond = cosine - (1 - cos if self.continuous else margin * sin)
        return torch.where(cosine > -cos, shifted, beyond)  # -cos(margin) is cos(pi - margin)

    @staticmethod
    def with_penalty(cosine, penalty):
        """cos(theta - penalty) from cos(theta), continued linearly where theta - penalty would pass 0 and it turn down.

        Else the class that an utterance lies on, though it is not its own, would be the one that does not repel it.
        """
        cos, sin = cos_and_sin(penalty)
        return torch.where(cosine < cos, turned(cosine, cos, -sin), cosine + (1 - cos))


def turned(cosine, cos, sin):
    """cos(theta + angle) from cos(theta) and the angle's cosine and sine."""
    # The floor keeps the square root's slope finite when an embedding lies exactly on its class vector.
    sine = (1.0 - cosine * cosine).clamp(1e-10, 1.0).sqrt()
    return cosine * cos - sine * sin


def cos_and_sin(angle):
    """Of a float, or of a tensor."""
    return (angle.cos(), angle.sin()) if isinstance(angle, torch.Tensor) else (math.cos(angle), math.sin(angle))
