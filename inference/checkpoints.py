"""Checkpoints, ours and the published systems': recognise a file or folder, read it safely, build its network.

What each system does, and the names of its layers, is in inference/systems.py. Loading is strict: the first tensor that
is missing, unexpected or of another shape is an error.
"""

import ast
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import nn

from inference.systems import NAMES, PREFIX, SYSTEMS, build_network
from model import SAMPLE_RATE
from tools import InputError, load_checkpoint, load_tensors, read_text

# Packages whose classes a Lightning checkpoint may name. None is imported: a Placeholder stands in for each class.
STAND_IN_FOR = (
    "pyannote", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "omegaconf", "torch", "numpy",
)  # fmt: skip


class Pretrained(NamedTuple):
    """A model as its file holds it. What the file does not hold is None."""

    system: str  # a key of SYSTEMS
    network: nn.Module
    classifier: torch.Tensor | None = None  # (speakers, D), or (speakers, K, D) with K sub-centres
    speakers: list | None = None  # names of the training speakers, in the order of the first rows
    threshold: float | None = None
    origin: str = ""  # where the threshold comes from, in words
    thresholds: dict = {}  # ours: {"EER": ..., "1%": at 1 % false alarms, ...}
    trial_list: str = ""  # the list that they are from
    scale: float | None = None  # ours: s of its loss
    held_out: list | None = None  # ours: names of speakers in its training list that it was not trained on
    mean: torch.Tensor | None = None  # (D,) SpeechBrain's mean embedding, which verification does not use
    earlier: list = []  # ours: names of the speakers of the models that it was started from

    def heard(self):
        """Sorted names of all speakers that it, or a model before it, was trained on, as far as they are known."""
        return sorted({*(self.speakers or ()), *self.earlier})


def load_pretrained(path, system=None):
    """Pretrained of a checkpoint, ours or a published system's: a file, or the folder that its authors publish.

    The system is recognised from the contents, or named (a key of SYSTEMS). The network is on the CPU, in eval mode.
    Nothing in the files is executed. InputError when they are absent, damaged, of no known system, of another one than
    named, or ambiguous: SpeechBrain's and ModelScope's weights have the same names and shapes.
    """
    if system is not None and system not in SYSTEMS:
        raise InputError(f"system {system!r} is not known: choose from {', '.join(SYSTEMS)}")
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path, system)
    content = load_tensors(path, stand_in_for=STAND_IN_FOR)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path} holds no tensors by name")
    if any(key.startswith("module.") for key in state):  # of DataParallel
        state = {key.replace("module.", ""): value for key, value in state.items()}
        content = {**content, "state_dict": state} if "state_dict" in content else state
    found = _recognise(path, content, state)
    if system is None and len(found) > 1:
        raise InputError(
            f"{path} may be {' or '.join(SYSTEMS[name].title for name in found)}: their weights have the same names "
            f"but need different front ends; say which by --system, or system=: {' or '.join(found)}"
        )
    if system is None and not found:
        raise InputError(f"{path} holds no model of a known system ({', '.join(SYSTEMS)})")
    if system is not None and system not in found:
        which = f" but one of {' or '.join(found)}" if found else ""
        raise InputError(f"{path} is not a checkpoint of {system}{which}")
    return LOADERS[system or found[0]](path, content, state, system or found[0])


def _weights_in(folder, system):
    """The weights file in the folder that a system's authors publish."""
    systems, found = [system] if system else list(SYSTEMS), []
    for name in systems:
        matches = [sorted(folder.glob(pattern)) for pattern in SYSTEMS[name].files]
        found += next((paths for paths in matches if paths), [])
    if not found:
        files = ", ".join(file for name in systems for file in SYSTEMS[name].files)
        ours = sorted(folder.glob("*.model"))
        fix = f": name one of its models, such as {ours[-1].name}" if ours else ""
        raise InputError(f"{folder} is a folder without {files or 'a known file'}{fix}")
    if len(found) > 1:
        raise InputError(f"{folder} has several models: name one of {', '.join(path.name for path in found)}")
    return found[0]


def _recognise(path, content, state):
    """The systems whose weights these may be."""
    if content.get("kind") == "training state":
        raise InputError(f"{path} is the state of a training run, not a model: take one of its model/*.model")
    if content.get("kind") == "model":
        return ["ours"]
    if any(name.startswith(PREFIX) for name in state):
        return ["taoruijie"]
    if "pyannote.audio" in content or any(name.startswith("sincnet.") for name in state):
        return ["pyannote"]
    layers = {name.rpartition(".")[0] for name in state}
    known = [system for system, names in NAMES.items() if len(layers & names.keys()) > len(names) / 2]
    if "speechbrain" in known:  # whose names are ModelScope's too: the files beside it tell
        beside = {"speechbrain": _speechbrain_files(path), "modelscope": _modelscope_configuration(path)}
        told = [system for system, files in beside.items() if files]
        return told if len(told) == 1 else known
    return known


# ---- one loader for each system --------------------------------------------------------------------------------------


def _load_ours(path, content, state, system):
    checkpoint = load_checkpoint(path, "model", content)
    try:
        settings, weights = checkpoint["settings"], checkpoint["weights"]
        system = settings.get("system", "ours")
        trial_list, result = next(iter((checkpoint.get("scores") or {}).items()), ("", {}))
        # Rounding may take a score out of its range.
        clipped = {name: value and min(1.0, max(-1.0, value)) for name, value in result.get("thresholds", {}).items()}
        scale = float(settings.get("s", 30))
        classifier = weights.get("speaker_loss.weight")
        state = {key: value for key, value in weights.items() if key != "speaker_loss.weight"}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} lacks what a model of this repository has ({error})") from error
    if system not in SYSTEMS:
        raise InputError(f"{path} is based on a system that is not known: {system!r}")
    threshold = clipped.get("EER")
    origin = f"equal error rate on {trial_list}" if threshold is not None else ""
    return Pretrained(
        system, _network(path, state, system, {}, PREFIX), classifier, checkpoint.get("speakers") or None, threshold,
        origin, clipped, trial_list, scale, checkpoint.get("valid_speakers") or [],
        earlier=checkpoint.get("earlier_speakers") or [],
    )  # fmt: skip


def _load_taoruijie(path, content, state, system):
    state = dict(state)
    classifier = state.pop("speaker_loss.weight", None)
    return Pretrained(system, _network(path, state, system, {}, PREFIX), classifier)


def _load_speechbrain(path, content, state, system):
    network, beside = _network(path, state, system), _speechbrain_files(path)
    classifier = speakers = mean = None
    if "hyperparams.yaml" in beside:
        _check_speechbrain_settings(beside["hyperparams.yaml"])
    if "classifier.ckpt" in beside:
        classifier = _tensor_of(beside["classifier.ckpt"], "weight", (None, network.embedding_size))
    if "mean_var_norm_emb.ckpt" in beside:
        mean = _tensor_of(beside["mean_var_norm_emb.ckpt"], "glob_mean", (network.embedding_size,))
    labels = beside.get("label_encoder.txt") or beside.get("label_encoder.ckpt")
    if labels and classifier is not None:
        speakers = _read_labels(labels, len(classifier))
    threshold = SYSTEMS[system].threshold
    return Pretrained(system, network, classifier, speakers, threshold, origin="SpeechBrain's own", mean=mean)


def _load_modelscope(path, content, state, system):
    threshold = (_modelscope_configuration(path) or {}).get("yesOrno_thr")
    if threshold is not None and not (isinstance(threshold, (int, float)) and -1 <= threshold <= 1):
        raise InputError(f"{path.parent / 'configuration.json'}: yesOrno_thr must be a number from -1 to 1")
    return Pretrained(system, _network(path, state, system), threshold=threshold, origin="its configuration.json")


def _load_wespeaker(path, content, state, system):
    settings = path.parent / "config.yaml"
    model = str(_read_yaml(settings).get("model", "ECAPA_TDNN_GLOB_")) if settings.is_file() else "ECAPA_TDNN_GLOB_"
    if not model.startswith("ECAPA_TDNN_GLOB_"):
        raise InputError(f"{settings}: model {model[:100]} is not known, only ECAPA_TDNN_GLOB_c512 and _c1024")
    projection = state.get("projection.weight")
    state = {key: value for key, value in state.items() if not key.startswith("projection.")}
    return Pretrained(system, _network(path, state, system), projection)


def _load_pyannote(path, content, state, system):
    about = content.get("pyannote.audio") or {}
    name = (about.get("architecture") or {}).get("class", "XVectorSincNet")
    if name != "XVectorSincNet":
        raise InputError(f"{path} is pyannote.audio's {name}, not the XVectorSincNet of pyannote/embedding")
    settings = content.get("hyper_parameters") or {}
    for found, expected, what in (
        (settings.get("sample_rate", SAMPLE_RATE), SAMPLE_RATE, "sample_rate"),
        (settings.get("num_channels", 1), 1, "num_channels"),
        ((settings.get("sincnet") or {}).get("stride", 10), 10, "sincnet stride"),
    ):
        if found != expected:
            raise InputError(f"{path} was trained with {what} {found}; only {expected} is supported")
    columns = state.get("loss_func.W")  # of the ArcFace loss, a column for each speaker
    state = {key: value for key, value in state.items() if key != "loss_func.W"}
    return Pretrained(system, _network(path, state, system), None if columns is None else columns.t())


LOADERS = {
    "ours": _load_ours, "taoruijie": _load_taoruijie, "speechbrain": _load_speechbrain, "modelscope": _load_modelscope,
    "wespeaker": _load_wespeaker, "pyannote": _load_pyannote,
}  # fmt: skip


def _network(path, state, system, names=None, prefix=""):
    """Build the network and fill it, strictly. InputError names the first tensor that is missing, odd or too many.

    names: the file's layers -> ours, {} where they are the same, None for those of the system.
    """
    names = NAMES.get(system, {}) if names is None else names
    theirs = {ours: name for name, ours in names.items()}

    def their_name(key):
        layer, _, parameter = key.rpartition(".")
        return f"{prefix}{theirs.get(layer, layer)}.{parameter}"

    named = {}
    for key, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{path}: {key} is not a tensor but a {type(tensor).__name__}")
        layer, _, parameter = str(key).removeprefix(prefix).rpartition(".")
        # A layer of ours that has another name in theirs is none of theirs.
        known = names.get(layer, f"unknown {layer}") if names else layer
        named[f"{known}.{parameter}" if str(key).startswith(prefix) else f"unknown {key}"] = tensor
    try:
        with torch.device("meta"):  # shapes without numbers, which are taken from the file
            network = build_network(named, system)
    except KeyError as error:
        raise InputError(f"{path}: the tensor {their_name(error.args[0])} is missing") from error
    except (IndexError, ValueError, RuntimeError) as error:
        width = "conv1.weight" if "conv1.weight" in named else "embedding.weight"
        raise InputError(f"{path}: the tensor {their_name(width)} has an unknown shape ({error})") from error
    expected = network.state_dict()
    missing = [their_name(key) for key in expected if key not in named]
    unexpected = [key for key, known in zip(state, named) if known not in expected]
    for keys, what in ((unexpected, "unexpected"), (missing, "missing")):
        if keys:
            raise InputError(f"{path}: the tensor {keys[0]} is {what}" + (f" ({len(keys)} are)" if keys[1:] else ""))
    for key, tensor in named.items():
        # A 1x1 convolution of the one is a linear layer of the other.
        if [n for n in tensor.shape if n != 1] != [n for n in expected[key].shape if n != 1]:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
            raise InputError(f"{path}: the tensor {their_name(key)} has the shape {shapes}")
        named[key] = tensor.detach().reshape(expected[key].shape).to(expected[key].dtype)
    network.load_state_dict(named, assign=True)
    return network.eval()


# ---- what lies beside the weights ------------------------------------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):
    """YAML in which a tag like !new:some.class is ignored: what it marks is read as plain data."""


def _without_tag(loader, tag, node):
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value


_PlainLoader.add_multi_constructor("!", _without_tag)
_PlainLoader.add_multi_constructor("tag:", _without_tag)


def _read_yaml(path):
    """A YAML file's mapping as plain data; {} if it holds something else."""
    try:
        content = yaml.load(read_text(path), Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is not YAML ({str(error).splitlines()[0]})") from error
    return content if isinstance(content, dict) else {}


def _speechbrain_files(path):
    """{name: path} of SpeechBrain's other files beside its embedding_model.ckpt."""
    names = "hyperparams.yaml", "classifier.ckpt", "mean_var_norm_emb.ckpt", "label_encoder.txt", "label_encoder.ckpt"
    published = path.name in SYSTEMS["speechbrain"].files
    return {name: path.parent / name for name in names if published and (path.parent / name).is_file()}


def _check_speechbrain_settings(path):
    """InputError if hyperparams.yaml asks for another front end than the published one."""
    settings = _read_yaml(path)
    if settings.get("n_mels", 80) != 80:
        raise InputError(f"{path}: n_mels {settings['n_mels']}; only 80 is supported")
    features = settings.get("compute_features")
    others = [name for name in features if name not in ("n_mels", "sample_rate")] if isinstance(features, dict) else []
    if others:
        raise InputError(f"{path}: compute_features sets {others[0]}; only SpeechBrain's defaults are supported")


def _modelscope_configuration(path):
    """The "model" part of ModelScope's configuration.json, if it lies beside and names these weights; else None."""
    file = path.parent / "configuration.json"
    if not file.is_file():
        return None
    try:
        model = json.loads(read_text(file)).get("model", {})
        ours = model.get("pretrained_model") == path.name or model.get("type") == "ecapa-tdnn-sv"
        rate = model.get("model_config", {}).get("sample_rate", SAMPLE_RATE)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is not a configuration of ModelScope ({error})") from error
    if ours and rate != SAMPLE_RATE:
        raise InputError(f"{file}: sample_rate {rate}; only {SAMPLE_RATE} is supported")
    return model if ours else None


def _tensor_of(path, name, shape):
    """A file's tensor of that name; a None in shape is any size. InputError if it is absent or has another shape."""
    content = load_tensors(path)
    tensor = content.get(name) if isinstance(content, dict) else None
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{path}: the tensor {name} is missing")
    tensor = tensor.squeeze() if len(shape) == 1 else tensor  # a mean may be kept as a row
    if tensor.dim() != len(shape) or any(want not in (None, have) for want, have in zip(shape, tensor.shape)):
        raise InputError(f"{path}: the tensor {name} has the shape {tuple(tensor.shape)}, not {shape}")
    return tensor.float()


def _read_labels(path, count):
    """SpeechBrain's label encoder, lines ``'id10001' => 0`` up to a line of ``=`` -> names in order."""
    labels = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if re.fullmatch("=+", line.strip()):
            break
        label, _, index = line.partition(" => ")
        try:
            labels[int(index)] = str(ast.literal_eval(label))
        except (ValueError, SyntaxError) as error:
            raise InputError(f"{path} line {number}: expected 'label' => number, got {line[:60]!r}") from error
    if sorted(labels) != list(range(count)):
        raise InputError(f"{path} has {len(labels)} labels, the classifier {count}: they do not belong together")
    return [labels[index] for index in range(count)]
