"""Checkpoints, our own and other people's: recognise a file or folder, read it safely, build its network.

Five published systems are known beside our own files. What each does is in the table below; the names of their tensors
are mapped to those of model.py, and loading is strict. Facts about them: the systems' own source and pages, and numbers
computed with it, which the tests compare with.
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

# ---- loading ---------------------------------------------------------------------------------------------------------


class Pretrained(NamedTuple):
    """A model as its file holds it. What the file does not hold is None."""

    system: str  # a key of SYSTEMS
    network: nn.Module
    classifier: torch.Tensor | None = None  # (speakers, D), or (speakers, K, D) with K sub-centres
    speakers: list | None = None  # names of the training speakers, in the order of the first rows
    threshold: float | None = None
    origin: str = ""  # where the threshold comes from, in words
    thresholds: dict = {}  # our own: {"EER": ..., "1%": at 1 % false alarms, ...}
    listing: str = ""  # on which trial list
    scale: float | None = None  # our own: s of its loss
    held_out: list | None = None  # our own: names of speakers in its training list that it was not trained on
    mean: torch.Tensor | None = None  # (D,) SpeechBrain's mean embedding, which verification does not use
    earlier: list = []  # our own: names of speakers that the models were trained on which it was begun with

    def heard(self):
        """Sorted names of all speakers that it, or a model before it, was trained on, as far as they are known."""
        return sorted({*(self.speakers or ()), *self.earlier})


def load_pretrained(path, system=None):
    """Read a checkpoint, ours or a stranger's: a file, or the folder that its authors publish.

    The system is recognised from the contents, or named (a key of SYSTEMS). Returns Pretrained; the network is on the
    CPU, in eval mode. Nothing in the files is executed. Raises InputError when they are absent, damaged, of no known
    system, of another than named, or ambiguous: SpeechBrain's and ModelScope's weights have the same names and shapes.
    """
    if system is not None and system not in SYSTEMS:
        raise InputError(f"system {system!r} is not known: choose from {', '.join(SYSTEMS)}")
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path, system)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    content = load_tensors(path, stand_in_for=STAND_IN_FOR)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no weights but a {type(content).__name__}")
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path} holds no tensors by name")
    if any(key.startswith("module.") for key in state):  # of DataParallel
        state = {key.replace("module.", ""): value for key, value in state.items()}
        content = {**content, "state_dict": state} if "state_dict" in content else state
    found = _recognise(path, content)
    if system is None and len(found) > 1:
        raise InputError(
            f"{path} may be {' or '.join(SYSTEMS[name].title for name in found)}: their weights have the same names "
            f"but need different front ends; say which by --system, or system=: {' or '.join(found)}"
        )
    if system is None and not found:
        raise InputError(f"{path} holds no model of a system that is known here ({', '.join(SYSTEMS)})")
    if system is not None and system not in found:
        its = f" but one of {' or '.join(found)}" if found else ""
        raise InputError(f"{path} is not a checkpoint of {system}{its}")
    return LOADERS[system or found[0]](path, content, system or found[0])


def _weights_in(folder, system):
    """The weights file in the folder that a system's authors publish."""
    found = []
    for name in [system] if system else SYSTEMS:
        matches = [sorted(folder.glob(pattern)) for pattern in SYSTEMS[name].files]
        found += next((paths for paths in matches if paths), [])
    if not found:
        files = ", ".join(file for name in ([system] if system else SYSTEMS) for file in SYSTEMS[name].files)
        ours = sorted(folder.glob("*.model"))
        mend = f": name one of its models, {ours[-1].name} say" if ours else ""
        raise InputError(f"{folder} is a folder without {files or 'a known name in it'}{mend}")
    if len(found) > 1:
        raise InputError(f"{folder} has several models: name one of {', '.join(path.name for path in found)}")
    return found[0]


def _recognise(path, content):
    """The systems whose weights these may be."""
    state = content.get("state_dict", content)
    names = set(state)
    kind = content["kind"] if isinstance(content.get("kind"), str) else None
    if kind == "training state":
        raise InputError(f"{path} is the state of a training run, not a model: take one of its model/*.model")
    if kind == "model":
        return ["ours"]
    if any(name.startswith("speaker_encoder.") for name in names):
        return ["taoruijie"]
    if "pyannote.audio" in content or any(name.startswith("sincnet.") for name in names):
        return ["pyannote"]
    layers = {name.rpartition(".")[0] for name in names}
    known = [system for system, its in NAMES.items() if len(layers & its.keys()) > len(its) / 2]
    if "speechbrain" in known:  # whose names are ModelScope's too
        beside = [name for name, is_its in (("speechbrain", _has_speechbrain_beside), ("modelscope", _configuration))
                  if is_its(path)]  # fmt: skip
        return beside if len(beside) == 1 else known
    return known


def _load_ours(path, content, system):
    checkpoint = load_checkpoint(path, "model", content)
    try:
        settings, scores, weights = checkpoint["settings"], checkpoint.get("scores") or {}, checkpoint["weights"]
        state = {key: value for key, value in weights.items() if key != "speaker_loss.weight"}
        classifier, speakers = weights.get("speaker_loss.weight"), checkpoint.get("speakers") or None
        scale = float(settings.get("s", 30))
        held_out, earlier = checkpoint.get("valid_speakers") or [], checkpoint.get("earlier_speakers") or []
        system = settings.get("system", "ours")
        listing, result = next(iter(scores.items()), ("", {}))
        thresholds = dict(result.get("thresholds") or {})
        if not all(value is None or (isinstance(value, float) and abs(value) < 1.001) for value in thresholds.values()):
            raise ValueError("its thresholds are no scores")
        # Of text: what else a file may hold can take for ever to be put in words.
        names = system, listing, *thresholds, *held_out, *earlier, *(speakers or ())
        if not all(isinstance(name, str) for name in names):
            raise ValueError("its names are no text")
        if not isinstance(speakers, (list, type(None))) or not isinstance(held_out, list):
            raise ValueError("its speakers are no list")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path} lacks what a model of this repository has ({error})") from error
    if system not in SYSTEMS:
        raise InputError(f"{path} is based on a system that is not known here: {system!r}")
    network = _network(path, state, system, {}, PREFIX)
    shape = tuple(getattr(classifier, "shape", ()))
    if classifier is not None and not (len(shape) in (2, 3) and shape[-1] == network.embedding_size and all(shape)):
        raise InputError(f"{path}: the tensor speaker_loss.weight has an odd shape")
    # Rounding may lead a score out of its range.
    thresholds = {name: value and min(1.0, max(-1.0, value)) for name, value in thresholds.items()}
    threshold = thresholds.get("EER")
    origin = f"where misses and false alarms were equal on {listing}" if threshold is not None else ""
    about = threshold, origin, thresholds, listing, scale, held_out
    return Pretrained(system, network, classifier, speakers, *about, earlier=earlier)


def _load_taoruijie(path, content, system):
    state = dict(content)
    classifier = state.pop("speaker_loss.weight", None)
    return Pretrained(system, _network(path, state, system, {}, PREFIX), classifier)


def _load_speechbrain(path, content, system):
    network = _network(path, content, system)
    beside = _has_speechbrain_beside(path)
    threshold, origin = SYSTEMS[system].threshold, "SpeechBrain's own"
    if not beside:
        return Pretrained(system, network, threshold=threshold, origin=origin)
    if "hyperparams.yaml" in beside:
        _check_speechbrain_settings(beside["hyperparams.yaml"])
    classifier = speakers = mean = None
    if "classifier.ckpt" in beside:
        classifier = _only_tensor(beside["classifier.ckpt"], "weight", (None, network.embedding_size))
    if "mean_var_norm_emb.ckpt" in beside:
        mean = _only_tensor(beside["mean_var_norm_emb.ckpt"], "glob_mean", (network.embedding_size,), others=True)
    labels = beside.get("label_encoder.txt") or beside.get("label_encoder.ckpt")
    if labels and classifier is not None:
        speakers = _read_labels(labels, len(classifier))
    return Pretrained(system, network, classifier, speakers, threshold, origin=origin, mean=mean)


def _load_modelscope(path, content, system):
    configuration = _configuration(path) or {}
    threshold = configuration.get("yesOrno_thr")
    if threshold is not None and not (type(threshold) in (int, float) and -1 <= threshold <= 1):
        raise InputError(f"{path.parent / 'configuration.json'}: yesOrno_thr must be a number from -1 to 1")
    return Pretrained(system, _network(path, content, system), threshold=threshold, origin="its configuration.json")


def _load_wespeaker(path, content, system):
    settings = path.parent / "config.yaml"
    if settings.is_file():
        config = _read_yaml(settings)
        model = config.get("model", "ECAPA_TDNN_GLOB_")
        if not isinstance(model, str) or not model.startswith("ECAPA_TDNN_GLOB_"):
            known = "only ECAPA_TDNN_GLOB_c512 and _c1024"
            raise InputError(f"{settings}: model {in_short(model)} is not known here, {known}")
    state = content.get("state_dict", content)
    projection = state.get("projection.weight")
    state = {key: value for key, value in state.items() if not key.startswith("projection.")}
    return Pretrained(system, _network(path, state, system), projection)


def _load_pyannote(path, content, system):
    about = content.get("pyannote.audio")
    architecture = about.get("architecture") if isinstance(about, dict) else None
    name = architecture.get("class", "XVectorSincNet") if isinstance(architecture, dict) else "XVectorSincNet"
    if not isinstance(name, str) or name != "XVectorSincNet":
        raise InputError(f"{path} is pyannote.audio's {in_short(name)}, not the XVectorSincNet of pyannote/embedding")
    settings = content.get("hyper_parameters")
    settings = settings if isinstance(settings, dict) else {}
    sincnet = settings.get("sincnet")
    sincnet = sincnet if isinstance(sincnet, dict) else {}
    for found, expected, what in (
        (settings.get("sample_rate", SAMPLE_RATE), SAMPLE_RATE, "sample_rate"),
        (settings.get("num_channels", 1), 1, "num_channels"),
        (sincnet.get("stride", 10), 10, "sincnet stride"),
    ):
        if not isinstance(found, (int, float)) or found != expected:
            raise InputError(f"{path} was trained with {what} {in_short(found)}; only {expected} is known here")
    state = content.get("state_dict", content)
    columns = state.get("loss_func.W")  # of the ArcFace loss, a column for each speaker
    state = {key: value for key, value in state.items() if key != "loss_func.W"}
    classifier = columns.t() if isinstance(columns, torch.Tensor) and columns.dim() == 2 else None
    return Pretrained(system, _network(path, state, system), classifier)


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
        if not isinstance(tensor, torch.Tensor) or not isinstance(key, str):
            raise InputError(f"{path}: {in_short(key)} is not a tensor but a {type(tensor).__name__}")
        layer, _, parameter = key.removeprefix(prefix).rpartition(".")
        # A layer of ours that bears another name in theirs is none of theirs.
        known = names.get(layer, f"unknown {layer}") if names else layer
        named[f"{known}.{parameter}" if key.startswith(prefix) else f"unknown {key}"] = tensor
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > path.stat().st_size:
        raise InputError(f"{path}: its tensors claim to be larger than the file")
    try:
        with torch.device("meta"):  # shapes without numbers: a file with odd ones cannot ask for memory
            network = build_network(named, system)
    except KeyError as error:
        raise InputError(f"{path}: the tensor {their_name(error.args[0])} is missing") from error
    except (IndexError, ValueError, RuntimeError) as error:
        width = "embedding.weight" if system == "pyannote" else "conv1.weight"
        raise InputError(f"{path}: the tensor {their_name(width)} has an odd shape ({error})") from error
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
        if expected[key].is_floating_point() and not tensor.is_floating_point():
            raise InputError(f"{path}: the tensor {their_name(key)} has numbers of the kind {tensor.dtype}")
        named[key] = tensor.detach().reshape(expected[key].shape).to(expected[key].dtype)
    network.load_state_dict(named, assign=True)
    return network.eval()


# ---- what lies beside the weights ------------------------------------------------------------------------------------

# Classes of these packages may be named in a Lightning checkpoint. None is imported: a Placeholder stands in for each.
STAND_IN_FOR = (
    "pyannote", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "omegaconf", "torch", "numpy",
)  # fmt: skip
MOST_BYTES = 1 << 20  # of a text file beside the weights: the largest known has a tenth


def in_short(value):
    """What a file says, for a message: text and numbers as they are, of the rest what it is.

    Lists of lists may hold each other so many times over that they would never be put in words.
    """
    return str(value)[:100] if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


class _PlainLoader(yaml.SafeLoader):
    """YAML in which a tag like !new:some.class is nothing but a name: what it marks is read as plain data."""

    def flatten_mapping(self, node):
        """Leave "<<" alone: a few lines of it, each with two of the line before, would fill the memory."""


def _untagged(loader, tag, node):
    construct = {yaml.MappingNode: loader.construct_mapping, yaml.SequenceNode: loader.construct_sequence}
    build = construct.get(type(node))
    return build(node, deep=True) if build else loader.construct_scalar(node)


_PlainLoader.add_multi_constructor("!", _untagged)
_PlainLoader.add_multi_constructor("tag:", _untagged)


def _read_yaml(path):
    """A YAML file's mapping as plain data; {} if it holds something else."""
    try:
        content = yaml.load(read_text(path, most=MOST_BYTES), Loader=_PlainLoader)
    except InputError:
        raise
    except Exception as error:  # PyYAML's constructors raise whatever comes: KeyError, AttributeError, ...
        raise InputError(f"{path} is not YAML ({str(error).splitlines()[0] if str(error) else 'nested'})") from error
    return content if isinstance(content, dict) else {}


def _has_speechbrain_beside(path):
    """{name: path} of SpeechBrain's other files beside its embedding_model.ckpt."""
    names = "hyperparams.yaml", "classifier.ckpt", "mean_var_norm_emb.ckpt", "label_encoder.txt", "label_encoder.ckpt"
    published = path.name in SYSTEMS["speechbrain"].files
    return {name: path.parent / name for name in names if published and (path.parent / name).is_file()}


def _check_speechbrain_settings(path):
    """InputError if hyperparams.yaml asks for another front end than the published one."""
    settings = _read_yaml(path)
    if settings.get("n_mels", 80) != 80:
        raise InputError(f"{path}: n_mels {in_short(settings['n_mels'])}; only 80 are known here")
    fbank = settings.get("compute_features")
    others = [name for name in fbank if name not in ("n_mels", "sample_rate")] if isinstance(fbank, dict) else []
    if others:
        other = in_short(others[0])
        raise InputError(f"{path}: compute_features sets {other}; only SpeechBrain's defaults are known here")


def _configuration(path):
    """The "model" part of ModelScope's configuration.json, if it is beside and names these weights; else None."""
    file = path.parent / "configuration.json"
    if not file.is_file():
        return None
    try:
        model = json.loads(read_text(file, most=MOST_BYTES)).get("model", {})
        names = model.get("pretrained_model") == path.name or model.get("type") == "ecapa-tdnn-sv"
        rate = model.get("model_config", {}).get("sample_rate", SAMPLE_RATE)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is not a configuration of ModelScope ({error})") from error
    if names and rate != SAMPLE_RATE:
        raise InputError(f"{file}: sample_rate {in_short(rate)}; only {SAMPLE_RATE} is known here")
    return model if names else None


def _only_tensor(path, name, shape, others=False):
    """A file's tensor of that name; a None in shape is any size. InputError if it is absent, odd or not alone."""
    content = load_tensors(path)
    tensor = content.get(name) if isinstance(content, dict) else None
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{path}: the tensor {name} is missing")
    if len(content) > 1 and not others:
        raise InputError(f"{path}: {in_short(next(key for key in content if key != name))} is unexpected")
    tensor = tensor.squeeze() if len(shape) == 1 else tensor  # a mean may be kept as a row
    if tensor.dim() != len(shape) or any(want not in (None, have) for want, have in zip(shape, tensor.shape)):
        raise InputError(f"{path}: the tensor {name} has the shape {tuple(tensor.shape)}, not {shape}")
    return tensor.float()


def _read_labels(path, count):
    """SpeechBrain's label encoder, lines ``'id10001' => 0`` up to a line of ``=`` -> names in order."""
    labels = {}
    for number, line in enumerate(read_text(path, most=MOST_BYTES).splitlines(), 1):
        if re.fullmatch("=+", line.strip()):
            break
        label, _, index = line.partition(" => ")
        try:
            if len(label) > 1000:  # deep nesting could break Python's parser
                raise ValueError("a long line")
            labels[int(index)] = str(ast.literal_eval(label))
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise InputError(f"{path} line {number}: expected 'label' => number, got {line[:60]!r}") from error
    if sorted(labels) != list(range(count)):
        raise InputError(f"{path} has {len(labels)} labels, the classifier {count}: they do not belong together")
    return [labels[index] for index in range(count)]
