"""Training losses over speaker embeddings."""

import torch
import torch.nn.functional as F
from torch import nn


class AAMsoftmax(nn.Module):
    """Additive angular margin softmax (Deng et al., "ArcFace", CVPR 2019).

    A linear classifier on the cosine between embedding and class vector; ``m`` radians are added to the angle to the
    true class before the softmax of ``s`` times the cosines.

    n_class: number of speakers; m: margin in radians; s: scale; embedding_size: D.
    continuous: no jump where angle + margin exceeds pi, as in wespeaker and 3D-Speaker.
    sub_centres: K vectors for each class, of which the closest counts, so that mislabelled utterances can gather around
    another one (Deng et al., "Sub-center ArcFace", ECCV 2020); ``weight`` is then (n_class, K, D), else (n_class, D).
    top_k: inter-top-k: 0.06 rad penalty on the k closest wrong classes (Zhao et al., "Multi-query multi-head attention
    pooling and inter-topK penalty for speaker verification", ICASSP 2022).
    """

    PENALTY = 0.06  # radians, of Zhao et al. and of wespeaker

    def __init__(self, n_class, m=0.2, s=30, embedding_size=192, continuous=False, sub_centres=1, top_k=0):
        super().__init__()
        self.m, self.s, self.continuous = m, s, continuous
        self.top_k = min(top_k, n_class - 1)
        shape = (n_class, embedding_size) if sub_centres == 1 else (n_class, sub_centres, embedding_size)
        self.weight = nn.Parameter(torch.empty(shape))
        # Centre by centre, so that the length of a vector, and with it how fast it turns, does not depend on K.
        for centre in self.weight.detach().view(n_class, sub_centres, embedding_size).unbind(1):
            nn.init.xavier_normal_(centre, gain=1)

    def forward(self, embedding, label, margin=None):
        """embedding (B, D), label (B,) int64 in [0, n_class) -> (mean loss, top-1 accuracy in %), both 0-d tensors.

        The accuracy is that of the logits with the margin, as in the recipe's logs. No CPU-GPU sync. margin: radians in
        [0, m], a float or, if it changes from step to step, a 0-d tensor, so that torch.compile compiles once; None: m.
        The inter-top-k penalty is proportional to it: PENALTY at m.
        """
        margin = torch.as_tensor(self.m if margin is None else margin)
        label = label.unsqueeze(1)
        # float32, because near the target 1 - cos^2 is a difference of nearly equal numbers.
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = self.cosines(embedding.float())
            logits = cosine.scatter(1, label, self.add_margin(cosine.gather(1, label), margin))
            if self.top_k and self.m:
                wrong = cosine.detach().scatter(1, label, -2.0)  # less than any cosine
                nearest = wrong.topk(self.top_k, dim=1, sorted=False).indices
                penalty = self.PENALTY / self.m * margin
                logits = logits.scatter(1, nearest, self.add_penalty(cosine.gather(1, nearest), penalty))
            logits = self.s * logits
            loss = F.cross_entropy(logits, label.squeeze(1))
            accuracy = 100.0 * (logits.detach().argmax(dim=1, keepdim=True) == label).float().mean()
        return loss, accuracy

    def cosines(self, embedding):
        """Cosine with each class, (B, D) -> (B, n_class); of sub-centres, with the closest."""
        centres = F.normalize(self.weight.float(), dim=-1)
        cosine = F.linear(F.normalize(embedding), centres.flatten(0, -2))
        return cosine if centres.dim() == 2 else cosine.unflatten(1, centres.shape[:2]).amax(dim=2)

    def add_margin(self, cosine, margin):
        """cos(theta + margin) from cos(theta), continued linearly in cos(theta) where theta + margin exceeds pi."""
        cos, sin = margin.cos(), margin.sin()
        beyond = cosine - (1 - cos if self.continuous else margin * sin)
        return torch.where(cosine > -cos, cos_of_sum(cosine, cos, sin), beyond)  # -cos(margin) is cos(pi - margin)

    @staticmethod
    def add_penalty(cosine, penalty):
        """cos(theta - penalty) from cos(theta), continued linearly in cos(theta) where theta is less than the penalty.

        Without that, an embedding exactly on a wrong class vector would have no gradient away from it.
        """
        cos, sin = penalty.cos(), penalty.sin()
        return torch.where(cosine < cos, cos_of_sum(cosine, cos, -sin), cosine + (1 - cos))


def cos_of_sum(cosine, cos, sin):
    """cos(theta + angle) from cos(theta) and the angle's cosine and sine."""
    # The floor keeps the gradient finite when an embedding lies exactly on its class vector.
    sine = (1.0 - cosine * cosine).clamp(1e-10, 1.0).sqrt()
    return cosine * cos - sine * sin
