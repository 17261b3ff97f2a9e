"""State dicts as files, laid out as the authors of the published systems lay them out."""

import enum
import json
import math
import sys
import types
from pathlib import Path

import torch


def golden_state(data, part=""):
    """The golden vectors' state dict, of the part "embedding_model/" and so on where there are several."""
    prefix = f"state/{part}"
    return {key.removeprefix(prefix): torch.tensor(data[key]) for key in data.files if key.startswith(prefix)}


def write_speechbrain(folder, data):
    torch.save(golden_state(data, "embedding_model/"), folder / "embedding_model.ckpt")
    torch.save(golden_state(data, "classifier/"), folder / "classifier.ckpt")
    (folder / "label_encoder.txt").write_text(str(data["label_encoder_txt"]))
    (folder / "hyperparams.yaml").touch()
    return folder


def write_taoruijie(folder, data):
    torch.save(golden_state(data), folder / "pretrain.model")
    return folder / "pretrain.model"


def write_modelscope(folder, data, threshold=0.37):
    torch.save(golden_state(data), folder / "ecapa_tdnn.bin")
    model = {
        "type": "ecapa-tdnn-sv", "model_config": {"sample_rate": 16000, "channel": 1024},
        "pretrained_model": "ecapa_tdnn.bin", "yesOrno_thr": threshold,
    }  # fmt: skip
    content = {"framework": "pytorch", "task": "speaker-verification", "model": model}
    (folder / "configuration.json").write_text(json.dumps(content))
    return folder


def write_wespeaker(folder, data):
    state = golden_state(data)
    torch.save({**state, "projection.weight": torch.randn(7, 192)}, folder / "avg_model.pt")
    return folder


def write_pyannote(folder, data):
    write_lightning(folder / "pytorch_model.bin", golden_state(data))
    return folder


WRITERS = {
    "speechbrain": write_speechbrain, "taoruijie": write_taoruijie, "modelscope": write_modelscope,
    "wespeaker": write_wespeaker, "pyannote": write_pyannote,
}  # fmt: skip


def write_lightning(path, state):
    """A PyTorch Lightning checkpoint with pickled objects of packages that are not installed here."""
    names = "pyannote", "pyannote.audio", "pyannote.audio.core", "pyannote.audio.core.task"
    modules = {name: types.ModuleType(name) for name in names}
    task = modules[names[-1]]
    task.Specifications = type("Specifications", (), {"__module__": names[-1]})
    task.Problem = enum.Enum("Problem", {"REPRESENTATION": 3}, module=names[-1], qualname="Problem")
    what = task.Specifications()
    what.problem, what.duration, what.classes = task.Problem.REPRESENTATION, 5.0, ["id10001", "id10002"]
    sys.modules.update(modules)
    try:
        torch.save({
            "state_dict": {**state, "loss_func.W": torch.randn(512, 24)},
            "hyper_parameters": {"sample_rate": 16000, "num_channels": 1, "sincnet": {"stride": 10}, "dimension": 512},
            "pytorch-lightning_version": "1.2.10", "epoch": 3, "global_step": 100,
            "callbacks": {task.Specifications: {"best_model_score": torch.tensor(0.1)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
            "pyannote.audio": {
                "architecture": {"module": "pyannote.audio.models.embedding.xvector", "class": "XVectorSincNet"},
                "specifications": what,
            },
        }, Path(path))  # fmt: skip
    finally:
        for name in modules:
            del sys.modules[name]


def _conv(out_channels, in_channels, size):
    return {"weight": (out_channels, in_channels, size), "bias": (out_channels,)}


def _linear(out_features, in_features):
    return {"weight": (out_features, in_features), "bias": (out_features,)}


def _norm(channels):
    return {**dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,)), "num_batches_tracked": ()}


def _flat(layers):
    return {f"{layer}.{name}": shape for layer, names in layers.items() for name, shape in names.items()}


def speechbrain_shapes(C=1024):
    layers = {
        "blocks.0.conv.conv": _conv(C, 80, 5), "blocks.0.norm.norm": _norm(C),
        "mfa.conv.conv": _conv(3 * C, 3 * C, 1), "mfa.norm.norm": _norm(3 * C),
        "asp.tdnn.conv.conv": _conv(128, 9 * C, 1), "asp.tdnn.norm.norm": _norm(128),
        "asp.conv.conv": _conv(3 * C, 128, 1), "asp_bn.norm": _norm(6 * C), "fc.conv": _conv(192, 6 * C, 1),
    }  # fmt: skip
    for block in ("blocks.1", "blocks.2", "blocks.3"):
        for name in ("tdnn1", "tdnn2"):
            layers |= {f"{block}.{name}.conv.conv": _conv(C, C, 1), f"{block}.{name}.norm.norm": _norm(C)}
        for name in (f"{block}.res2net_block.blocks.{i}" for i in range(7)):
            layers |= {f"{name}.conv.conv": _conv(C // 8, C // 8, 3), f"{name}.norm.norm": _norm(C // 8)}
        layers |= {f"{block}.se_block.conv1.conv": _conv(128, C, 1), f"{block}.se_block.conv2.conv": _conv(C, 128, 1)}
    return _flat(layers)


def wespeaker_shapes(C):
    layers = {
        "layer1.conv": _conv(C, 80, 5), "layer1.bn": _norm(C), "conv": _conv(1536, 3 * C, 1),
        "pool.linear1": _conv(128, 4608, 1), "pool.linear2": _conv(1536, 128, 1), "bn": _norm(3072),
        "linear": _linear(192, 3072),
    }  # fmt: skip
    for n in (2, 3, 4):
        block = f"layer{n}.se_res2block"
        for i in (0, 2):
            layers |= {f"{block}.{i}.conv": _conv(C, C, 1), f"{block}.{i}.bn": _norm(C)}
        for i in range(7):
            layers |= {f"{block}.1.convs.{i}": _conv(C // 8, C // 8, 3), f"{block}.1.bns.{i}": _norm(C // 8)}
        layers |= {f"{block}.3.linear1": _linear(128, C), f"{block}.3.linear2": _linear(C, 128)}
    return _flat(layers)


def taoruijie_shapes(C=1024, speakers=5994):
    layers = {
        "torchfbank.0": {"flipped_filter": (1, 1, 2)}, "torchfbank.1.spectrogram": {"window": (400,)},
        "torchfbank.1.mel_scale": {"fb": (257, 80)}, "conv1": _conv(C, 80, 5), "bn1": _norm(C),
        "layer4": _conv(1536, 3 * C, 1), "attention.0": _conv(256, 4608, 1), "attention.2": _norm(256),
        "attention.4": _conv(1536, 256, 1), "bn5": _norm(3072), "fc6": _linear(192, 3072), "bn6": _norm(192),
    }  # fmt: skip
    for layer in ("layer1", "layer2", "layer3"):
        layers |= {f"{layer}.conv1": _conv(C, C, 1), f"{layer}.bn1": _norm(C), f"{layer}.conv3": _conv(C, C, 1),
                   f"{layer}.bn3": _norm(C), f"{layer}.se.se.1": _conv(128, C, 1), f"{layer}.se.se.3": _conv(C, 128, 1)}
        for i in range(7):
            layers |= {f"{layer}.convs.{i}": _conv(C // 8, C // 8, 3), f"{layer}.bns.{i}": _norm(C // 8)}
    encoder = {f"speaker_encoder.{key}": shape for key, shape in _flat(layers).items()}
    return {**encoder, "speaker_loss.weight": (speakers, 192)}


def pyannote_shapes():
    shapes = {
        "sincnet.wav_norm1d": {"weight": (1,), "bias": (1,)},
        "sincnet.conv1d.0.filterbank": {"low_hz_": (40, 1), "band_hz_": (40, 1), "window_": (125,), "n_": (1, 125)},
        "sincnet.conv1d.1": _conv(60, 80, 5), "sincnet.conv1d.2": _conv(60, 60, 5), "embedding": _linear(512, 3000),
    }  # fmt: skip
    for i, channels in enumerate((80, 60, 60)):
        shapes[f"sincnet.norm1d.{i}"] = {"weight": (channels,), "bias": (channels,)}
    tdnns = ((512, 60, 5), (512, 512, 3), (512, 512, 3), (512, 512, 1), (1500, 512, 1))
    for i, shape in enumerate(tdnns):
        shapes |= {f"tdnns.{3 * i}": _conv(*shape), f"tdnns.{3 * i + 2}": _norm(shape[0])}
    return _flat(shapes)


def campplus_shapes(embedding_size=192):
    """Of 3D-Speaker's CAM++ (speakerlab/models/campplus, 09e7806)."""
    layers = {"head.conv1": (32, 1, 3, 3), "head.bn1": 32, "head.conv2": (32, 32, 3, 3), "head.bn2": 32}
    for block in ("head.layer1.0", "head.layer1.1", "head.layer2.0", "head.layer2.1"):
        layers |= {f"{block}.conv{i}": (32, 32, 3, 3) for i in (1, 2)} | {f"{block}.bn{i}": 32 for i in (1, 2)}
        if block.endswith("0"):
            layers |= {f"{block}.shortcut.0": (32, 32, 1, 1), f"{block}.shortcut.1": 32}
    layers |= {"xvector.tdnn.linear": (128, 320, 5), "xvector.tdnn.nonlinear.batchnorm": 128}
    for n, first, last in ((1, 128, 512), (2, 256, 1024), (3, 512, 1024)):
        for i, channels in enumerate(range(first, last, 32), start=1):
            layer = f"xvector.block{n}.tdnnd{i}"
            layers |= {f"{layer}.nonlinear1.batchnorm": channels, f"{layer}.nonlinear2.batchnorm": 128}
            layers |= {f"{layer}.linear1": (128, channels, 1), f"{layer}.cam_layer.linear_local": (32, 128, 3)}
            layers |= {f"{layer}.cam_layer.linear1": (64, 128, 1), f"{layer}.cam_layer.linear2": (32, 64, 1)}
        layers |= {f"xvector.transit{n}.linear": (last // 2, last, 1), f"xvector.transit{n}.nonlinear.batchnorm": last}
    layers |= {"xvector.out_nonlinear.batchnorm": 512, "xvector.dense.linear": (embedding_size, 1024, 1)}
    shapes = _flat({name: _norm(each) if isinstance(each, int) else {"weight": each} for name, each in layers.items()})
    with_bias = [name for name in layers if name.endswith(("cam_layer.linear1", "cam_layer.linear2"))]
    biases = {f"{name}.bias": layers[name][:1] for name in with_bias}
    norm = {f"xvector.dense.nonlinear.batchnorm.running_{name}": (embedding_size,) for name in ("mean", "var")}
    return {**shapes, **biases, **norm, "xvector.dense.nonlinear.batchnorm.num_batches_tracked": ()}


def random_state(shapes, seed=0):
    """Random numbers in these shapes, of sizes with which a network gives sensible numbers."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=random)
        elif key.endswith("mel_scale.fb"):
            state[key] = torch.rand(shape, generator=random)
        elif len(shape) < 2:
            state[key] = 0.1 * torch.randn(shape, generator=random) + float("weight" in key)
        else:
            fan_in = shape[1] * math.prod(shape[2:])
            state[key] = torch.randn(shape, generator=random) / fan_in**0.5
    return state
