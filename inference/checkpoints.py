"""Load checkpoints of this repository and of five published systems (systems.py), without running anything in them.

The layer names of a published system are translated to those of model.py; every tensor must be there and fit.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from inference.systems import NAMES, PREFIX, SYSTEMS, build_network
from tools import InputError, load_checkpoint, load_tensors, read_text

# Lightning checkpoints may contain classes of these packages. None is imported: a Placeholder takes its place.
STAND_IN_FOR = (
    "pyannote", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "omegaconf", "torch", "numpy",
)  # fmt: skip


class Pretrained(NamedTuple):
    """A model as read from its file. What the file does not contain is None or empty."""

    system: str  # a key of SYSTEMS
    network: nn.Module
    classifier: torch.Tensor | None = None  # (speakers, D), or (speakers, K, D) with K sub-centres
    speakers: list | None = None  # names of the training speakers, in the order of the first rows
    threshold: float | None = None
    origin: str = ""  # where the threshold comes from, for printing
    # Only in our own models:
    thresholds: dict = {}  # {"EER": ..., "1%": at 1 % false alarms, ...}
    trial_list: str = ""  # the list on which the thresholds were set
    scale: float | None = None  # s of its loss
    held_out: list | None = None  # speakers of its training list that were held out
    earlier: list = []  # training speakers of the models that it was fine-tuned from

    def trained_on(self):
        """Sorted names of the known training speakers of this model and of those that it was fine-tuned from."""
        return sorted({*(self.speakers or ()), *self.earlier})


def load_pretrained(path, system=None):
    """A Pretrained model of this repository or of a published system; the network is on the CPU, in eval mode.

    path: a file, or the folder that the system's authors publish. system: a key of SYSTEMS; None: recognised from the
    contents. Nothing in the files is executed. InputError when a file is missing, damaged, not of a known system, not
    of the named system, or ambiguous: SpeechBrain's and ModelScope's weights have the same names and shapes.
    """
    if system is not None and system not in SYSTEMS:
        raise InputError(f"system {system!r} is not known: choose from {', '.join(SYSTEMS)}")
    path = _weights_in(Path(path), system) if Path(path).is_dir() else Path(path)
    content = load_tensors(path, stand_in_for=STAND_IN_FOR)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} contains no state dict (weights by name)")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # of DataParallel
    found = _recognise(path, content, state)
    if not found:
        raise InputError(f"{path} contains no model of a known system ({', '.join(SYSTEMS)})")
    if system is None and len(found) > 1:
        choices = " or ".join(found)
        raise InputError(f"{path} may be {choices}, which need different front ends: choose with --system (system=)")
    system = system or found[0]
    if system not in found:
        raise InputError(f"{path} is a checkpoint of {' or '.join(found)}, not of {system}")
    try:
        return LOADERS[system](path, content, state)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a valid checkpoint of {SYSTEMS[system].title} ({error!r:.200})") from error


def _weights_in(folder, system):
    """The weights file in the folder that a system's authors publish."""
    patterns, found = [], []
    for name in [system] if system else SYSTEMS:
        patterns += SYSTEMS[name].files
        matches = (sorted(folder.glob(pattern)) for pattern in SYSTEMS[name].files)
        found += next(filter(None, matches), [])  # wespeaker's average before the models it is the mean of
    if not found:
        ours = sorted(folder.glob("*.model"))
        hint = f": name one of its models, such as {ours[-1].name}" if ours else ""
        raise InputError(f"{folder} contains no {' or '.join(patterns) or 'known model file'}{hint}")
    if len(found) > 1:
        raise InputError(f"{folder} contains several models: name one of {', '.join(path.name for path in found)}")
    return found[0]


def _recognise(path, content, state):
    """The systems whose weights these may be."""
    if isinstance(content.get("kind"), str):  # a model; or a training state, which load_checkpoint refuses
        return ["ours"]
    if any(name.startswith(PREFIX) for name in state):
        return ["taoruijie"]
    if "pyannote.audio" in content or any(name.startswith("sincnet.") for name in state):
        return ["pyannote"]
    layers = {name.rpartition(".")[0] for name in state}
    known = [system for system, names in NAMES.items() if len(layers & names.keys()) > len(names) / 2]
    # SpeechBrain's and ModelScope's layer names are the same; other files in the folder may show which it is.
    beside = {"speechbrain": _speechbrain_files(path), "modelscope": _modelscope_settings(path)}
    clear = [system for system in known if beside.get(system)]
    return clear if len(clear) == 1 else known


# ---- the systems -----------------------------------------------------------------------------------------------------


def _load_ours(path, content, _):
    checkpoint = load_checkpoint(path, "model", content)
    settings, weights = checkpoint["settings"], dict(checkpoint["weights"])
    classifier = weights.pop("speaker_loss.weight", None)
    system = settings.get("system", "ours")  # that of the checkpoint it was fine-tuned from
    trial_list, result = next(iter((checkpoint.get("scores") or {}).items()), ("", {}))
    thresholds = result.get("thresholds") or {}
    # A cosine of 1 may have been rounded up.
    thresholds = {name: value and min(1.0, max(-1.0, value)) for name, value in thresholds.items()}
    origin = f"equal error rate on {trial_list}" if "EER" in thresholds else ""
    return Pretrained(
        system, _network(path, weights, system, {}, PREFIX), classifier, checkpoint.get("speakers") or None,
        thresholds.get("EER"), origin, thresholds, trial_list, scale=float(settings.get("s", 30)),
        held_out=checkpoint.get("valid_speakers") or [], earlier=checkpoint.get("earlier_speakers") or [],
    )  # fmt: skip


def _load_taoruijie(path, _, state):
    classifier = state.pop("speaker_loss.weight", None)
    return Pretrained("taoruijie", _network(path, state, "taoruijie", {}, PREFIX), classifier)


def _load_speechbrain(path, _, state):
    network, beside = _network(path, state, "speechbrain", NAMES["speechbrain"]), _speechbrain_files(path)
    classifier = speakers = None
    if "classifier.ckpt" in beside:
        classifier = load_tensors(beside["classifier.ckpt"])["weight"]
    labels = beside.get("label_encoder.txt") or beside.get("label_encoder.ckpt")
    if labels and classifier is not None:
        speakers = _read_labels(labels, len(classifier))
    threshold, origin = SYSTEMS["speechbrain"].threshold, "SpeechBrain's own"
    return Pretrained("speechbrain", network, classifier, speakers, threshold, origin)


def _load_modelscope(path, _, state):
    network = _network(path, state, "modelscope", NAMES["modelscope"])
    threshold = _modelscope_settings(path).get("yesOrno_thr")
    return Pretrained("modelscope", network, threshold=threshold, origin="its configuration.json")


def _load_wespeaker(path, _, state):
    classifier = state.get("projection.weight")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("projection.")}
    return Pretrained("wespeaker", _network(path, state, "wespeaker", NAMES["wespeaker"]), classifier)


def _load_pyannote(path, content, state):
    name = content.get("pyannote.audio", {}).get("architecture", {}).get("class", "XVectorSincNet")
    if name != "XVectorSincNet":
        raise InputError(f"{path} is pyannote.audio's {name}, not the XVectorSincNet of pyannote/embedding")
    columns = state.pop("loss_func.W", None)  # of the ArcFace loss, one per speaker
    return Pretrained("pyannote", _network(path, state, "pyannote", {}), None if columns is None else columns.t())


LOADERS = {
    "ours": _load_ours, "taoruijie": _load_taoruijie, "speechbrain": _load_speechbrain, "modelscope": _load_modelscope,
    "wespeaker": _load_wespeaker, "pyannote": _load_pyannote,
}  # fmt: skip


def _network(path, state, system, names, prefix=""):
    """The system's network with these weights, in eval mode. InputError names the first tensor that does not fit.

    names: the file's names of the layers -> ours, where they differ; prefix: of all names in the file.
    """
    theirs, tensors = {layer: name for name, layer in names.items()}, {}

    def name_in_file(key):
        layer, _, parameter = key.rpartition(".")
        return f"{prefix}{theirs.get(layer, layer)}.{parameter}"

    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{path}: {name} is not a tensor but a {type(tensor).__name__}")
        layer, _, parameter = name.removeprefix(prefix).rpartition(".")
        tensors[f"{names.get(layer, layer)}.{parameter}"] = tensor
    try:
        with torch.device("meta"):  # shapes only
            network = build_network(tensors, system)
    except KeyError as error:
        raise InputError(f"{path}: the tensor {name_in_file(error.args[0])} is missing") from error
    except (IndexError, ValueError, RuntimeError) as error:
        widest = name_in_file("embedding.weight" if system == "pyannote" else "conv1.weight")
        raise InputError(f"{path}: the tensor {widest} has an unknown shape ({error})") from error
    expected = network.state_dict()
    for what, keys in (("unexpected", tensors.keys() - expected), ("missing", expected.keys() - tensors)):
        if keys:
            raise InputError(f"{path}: the tensor {name_in_file(min(keys))} is {what}, {len(keys)} in all")
    for key, tensor in tensors.items():
        blank = expected[key]
        # A 1x1 convolution in one implementation is a linear layer in another.
        if [n for n in tensor.shape if n != 1] != [n for n in blank.shape if n != 1]:
            shapes = f"{(*tensor.shape,)}, not {(*blank.shape,)}"
            raise InputError(f"{path}: the tensor {name_in_file(key)} has the shape {shapes}")
        tensors[key] = tensor.detach().reshape(blank.shape).to(blank.dtype)
    network.load_state_dict(tensors, assign=True)
    return network.eval()


# ---- files beside the weights ----------------------------------------------------------------------------------------


def _speechbrain_files(path):
    """{name: path} of the other files in the folder of SpeechBrain's embedding_model.ckpt."""
    names = "hyperparams.yaml", "classifier.ckpt", "label_encoder.txt", "label_encoder.ckpt"
    published = path.name in SYSTEMS["speechbrain"].files
    return {name: path.parent / name for name in names if published and (path.parent / name).is_file()}


def _modelscope_settings(path):
    """The "model" part of ModelScope's configuration.json in the same folder, if it is of these weights; else {}."""
    file = path.parent / "configuration.json"
    try:
        model = json.loads(read_text(file)).get("model", {}) if file.is_file() else {}
        matches = model.get("pretrained_model") == path.name or model.get("type") == "ecapa-tdnn-sv"
    except (json.JSONDecodeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is not a configuration of ModelScope ({error})") from error
    return model if matches else {}


def _read_labels(path, count):
    """The training speakers in order, from SpeechBrain's label encoder: lines ``'id10001' => 0``, until ``==``."""
    lines = re.findall(r"^['\"](.+)['\"] => (\d+)$", read_text(path).split("\n==")[0], re.MULTILINE)
    labels = {int(index): name for name, index in lines}
    if sorted(labels) != list(range(count)):
        raise InputError(f"{path} has {len(labels)} labels, but the classifier has {count} classes")
    return [labels[index] for index in range(count)]
