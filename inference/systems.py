"""The supported published systems: what each does differently from model.py, and its names of the layers.

Sources: the systems' own code and pages; the tests compare with numbers computed by the original code.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from inference.campplus import CAMPPlus
from inference.filterbanks import KaldiFilterbank, SpeechBrainFilterbank
from inference.xvector import XVectorSincNet
from model import ECAPA_TDNN, LogMel, SERes2Block, convolve, mean_and_variance, reflect, softmax_over_time

# ---- networks --------------------------------------------------------------------------------------------------------


class SequentialECAPA(ECAPA_TDNN):
    """An ECAPA-TDNN whose SE-Res2 blocks take the output of the previous block only; no norm after the embedding."""

    def __init__(self, *widths, **named):
        super().__init__(*widths, **named)
        self.bn6 = nn.Identity()

    def blocks(self, x, valid):
        x1 = self.layer1(x, valid)
        x2 = self.layer2(x1, valid)
        return x1, x2, self.layer3(x2, valid)


class WeSpeakerECAPA(SequentialECAPA):
    """wespeaker's ECAPA-TDNN: no norm in the attention, lower floor of the variances."""

    def __init__(self, *widths, **named):
        super().__init__(*widths, **named)
        self.attention[1], self.attention[2] = nn.Identity(), nn.Identity()

    def statistics(self, x, valid=None):
        mean, variance = mean_and_variance(x, valid, unbiased=True)
        return mean, (variance + 1e-7).sqrt()

    def attentive_statistics(self, x, logits):
        mean, variance = mean_and_variance(x, softmax_over_time(logits))
        return mean, variance.clamp(min=1e-7).sqrt()


class SpeechBrainECAPA(SequentialECAPA):
    """SpeechBrain's and ModelScope's ECAPA-TDNN.

    Reflected padding, a norm after the layer that joins the blocks, the first Res2 chunk passes unchanged, lower floor
    of the variances.
    """

    def __init__(self, C=1024, embedding_size=192, aggregation=3072, attention=128, bottleneck=128, front_end=None):
        super().__init__(C, embedding_size, aggregation, attention, bottleneck, front_end)
        self.conv1 = ReflectedConv1d(80, C, kernel_size=5, padding=2)
        self.layer1 = SpeechBrainBlock(C, kernel_size=3, dilation=2, bottleneck=bottleneck)
        self.layer2 = SpeechBrainBlock(C, kernel_size=3, dilation=3, bottleneck=bottleneck)
        self.layer3 = SpeechBrainBlock(C, kernel_size=3, dilation=4, bottleneck=bottleneck)
        self.bn4 = nn.BatchNorm2d(aggregation)

    def statistics(self, x, valid=None):
        mean, variance = mean_and_variance(x, valid)
        return mean, variance.clamp(min=1e-12).sqrt()

    def attentive_statistics(self, x, logits):
        mean, variance = mean_and_variance(x, softmax_over_time(logits))
        return mean, variance.clamp(min=1e-12).sqrt()


class SpeechBrainBlock(SERes2Block):
    def __init__(self, channels, kernel_size, dilation, scale=8, bottleneck=128):
        super().__init__(channels, kernel_size, dilation, scale, bottleneck)
        padding = dilation * (kernel_size // 2)
        convs = (ReflectedConv1d(self.width, self.width, kernel_size, 1, padding, dilation) for _ in range(scale - 1))
        self.convs = nn.ModuleList(convs)

    def res2(self, x, valid=None):
        """The first chunk passes unchanged instead of the last."""
        return super().res2(x.roll(-self.width, dims=1), valid).roll(self.width, dims=1)


class ReflectedConv1d(nn.Conv1d):
    """A convolution padded by reflection, in a batch of different lengths at each utterance's own end."""

    def forward(self, x, valid=None):
        frames = None if valid is None else valid.sum(dim=(1, 2, 3)).long()
        x = reflect(x.squeeze(2), self.padding[0], frames).unsqueeze(2)
        return convolve(x, self.weight, self.bias, dilation=self.dilation[0])


# ---- the table -------------------------------------------------------------------------------------------------------


class System(NamedTuple):
    """The properties of a published system, except for the widths of its layers, which its tensors show."""

    title: str
    network: type
    front_end: Callable | None  # returns a module as in filterbanks.py
    shortest: int  # minimum input, samples at 16 kHz
    files: tuple = ()  # its weights in the folder that its authors publish
    crops: bool = False  # the score uses whole utterances and five crops of each; else whole utterances only
    first_channel: bool = False  # of several channels it takes the first; else their mean
    resampling: int = 32  # sharpness of the filter for other sample rates (audio.low_pass)
    threshold: float | None = None  # the published one
    above: bool = False  # same speaker: score > threshold; else score >= threshold
    decimals: int | None = None  # to which a score is rounded
    continuous_margin: bool = False  # its AAM-softmax has the continuous far branch (loss.py)


SYSTEMS = {
    "ours": System("this repository", ECAPA_TDNN, LogMel, shortest=257, crops=True),
    "taoruijie": System(
        "TaoRuijie/ECAPA-TDNN", ECAPA_TDNN, LogMel, shortest=257, crops=True, files=("pretrain.model",),
    ),
    "speechbrain": System(
        "speechbrain/spkrec-ecapa-voxceleb", SpeechBrainECAPA, SpeechBrainFilterbank, shortest=640,
        files=("embedding_model.ckpt",), threshold=0.25, above=True, resampling=6,
    ),
    "modelscope": System(
        "ModelScope speech_ecapa-tdnn_sv_en_voxceleb_16k", SpeechBrainECAPA,
        lambda: KaldiFilterbank("povey", 1.0), shortest=1040, files=("ecapa_tdnn.bin", "ecapa-tdnn.ckpt"),
        first_channel=True, decimals=5, continuous_margin=True,
    ),
    "wespeaker": System(
        "wespeaker ECAPA_TDNN_GLOB", WeSpeakerECAPA, lambda: KaldiFilterbank("hamming", 32768.0), shortest=560,
        files=("avg_model.pt", "model_*.pt"), first_channel=True, resampling=6, continuous_margin=True,
    ),
    "pyannote": System(
        "pyannote/embedding", XVectorSincNet, None, shortest=5041, files=("pytorch_model.bin",), resampling=6,
    ),
    "campplus": System(
        "3D-Speaker's CAM++", CAMPPlus, lambda: KaldiFilterbank("povey", 1.0), shortest=720,
        files=("campplus_*.pt", "campplus_*.bin"), first_channel=True, decimals=5,
    ),
}  # fmt: skip


def build_network(state, system="ours"):
    """The network for a state dict under our names, with widths from the tensors' shapes; the weights are not loaded.

    Raises KeyError or IndexError for a state dict without the tensors that show the widths.
    """
    network = SYSTEMS[system].network
    if network is XVectorSincNet:
        return XVectorSincNet(state["embedding.weight"].shape[0])
    with torch.device("cpu"):  # it has constants, also when the network is built on the meta device
        front_end = SYSTEMS[system].front_end()
    if network is CAMPPlus:
        return CAMPPlus(state["xvector.dense.linear.weight"].shape[0], front_end)
    return network(
        C=state["conv1.weight"].shape[0],
        embedding_size=state["fc6.weight"].shape[0],
        aggregation=state["layer4.weight"].shape[0],
        attention=state["attention.0.weight"].shape[0],
        bottleneck=state["layer1.se.se.1.weight"].shape[0],
        front_end=front_end,
        **({"keep_spectrum": True} if "keeps_spectrum" in state else {}),
    )


# ---- names of the layers ---------------------------------------------------------------------------------------------

PREFIX = "speaker_encoder."  # of the encoder's names in TaoRuijie's files and ours

# Their names of the layers -> ours. n: the SE-Res2 blocks 1 to 3; m = n + 1; i: their convolutions 0 to 6.
SPEECHBRAIN_NAMES = {
    "blocks.0.conv.conv": "conv1", "blocks.0.norm.norm": "bn1", "mfa.conv.conv": "layer4", "mfa.norm.norm": "bn4",
    "asp.tdnn.conv.conv": "attention.0", "asp.tdnn.norm.norm": "attention.2", "asp.conv.conv": "attention.4",
    "asp_bn.norm": "bn5", "fc.conv": "fc6",
    "blocks.{n}.tdnn1.conv.conv": "layer{n}.conv1", "blocks.{n}.tdnn1.norm.norm": "layer{n}.bn1",
    "blocks.{n}.tdnn2.conv.conv": "layer{n}.conv3", "blocks.{n}.tdnn2.norm.norm": "layer{n}.bn3",
    "blocks.{n}.se_block.conv1.conv": "layer{n}.se.se.1", "blocks.{n}.se_block.conv2.conv": "layer{n}.se.se.3",
    "blocks.{n}.res2net_block.blocks.{i}.conv.conv": "layer{n}.convs.{i}",
    "blocks.{n}.res2net_block.blocks.{i}.norm.norm": "layer{n}.bns.{i}",
}  # fmt: skip
WESPEAKER_NAMES = {
    "layer1.conv": "conv1", "layer1.bn": "bn1", "conv": "layer4", "pool.linear1": "attention.0",
    "pool.linear2": "attention.4", "bn": "bn5", "linear": "fc6",
    "layer{m}.se_res2block.0.conv": "layer{n}.conv1", "layer{m}.se_res2block.0.bn": "layer{n}.bn1",
    "layer{m}.se_res2block.2.conv": "layer{n}.conv3", "layer{m}.se_res2block.2.bn": "layer{n}.bn3",
    "layer{m}.se_res2block.3.linear1": "layer{n}.se.se.1", "layer{m}.se_res2block.3.linear2": "layer{n}.se.se.3",
    "layer{m}.se_res2block.1.convs.{i}": "layer{n}.convs.{i}", "layer{m}.se_res2block.1.bns.{i}": "layer{n}.bns.{i}",
}  # fmt: skip


def _for_all_blocks(names):
    indices = [{"n": n, "m": n + 1, "i": i} for n in (1, 2, 3) for i in range(7)]
    return {theirs.format(**at): ours.format(**at) for at in indices for theirs, ours in names.items()}


NAMES = {
    "speechbrain": _for_all_blocks(SPEECHBRAIN_NAMES), "modelscope": _for_all_blocks(SPEECHBRAIN_NAMES),
    "wespeaker": _for_all_blocks(WESPEAKER_NAMES),
}  # fmt: skip
