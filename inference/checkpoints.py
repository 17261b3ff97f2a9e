"""Checkpoints, ours and the published systems' (systems.py): recognise a file, read it safely, fill its network."""

import re
import sys
from typing import NamedTuple

import torch

from inference.hub import local_model, modelscope_settings
from inference.systems import NAMES, PREFIX, SYSTEMS, build_network
from inference.waveforms import as_number
from tools import InputError, load_checkpoint, load_tensors, rank, read_text

# Packages whose classes a Lightning checkpoint may name. None is imported: a Placeholder stands in for each class.
STAND_IN_FOR = (
    "pyannote", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "omegaconf", "torch", "numpy",
)  # fmt: skip


class Pretrained(NamedTuple):
    """A model as its file holds it. What the file does not hold is None."""

    system: str  # a key of SYSTEMS
    network: torch.nn.Module
    classifier: torch.Tensor | None = None  # (speakers, D), or (speakers, K, D) with K sub-centres
    speakers: list | None = None  # names of the training speakers, in the order of the first rows
    threshold: float | None = None
    origin: str = ""  # where the threshold comes from, in words
    thresholds: dict = {}  # ours: {"EER": ..., "1%": at 1 % false alarms, ...}
    trial_list: str = ""  # the list that they are from
    cosine_threshold: float | None = None  # ours: equal error rate of whole utterances' cosines on it
    scale: float | None = None  # ours: s of its loss
    held_out: list | None = None  # ours: names of speakers in its training list that it was not trained on
    results: dict = {}  # ours: {trial list: error rates on it, as in metrics.jsonl}
    all_speakers: list | None = None  # ours: names of all speakers that it, or a model before it, was trained on

    def trained_on(self):
        """The same, for all systems: as far as they are known."""
        return self.all_speakers or sorted(self.speakers or ())


def load_pretrained(path, system=None):
    """Pretrained of a file, of the folder that a system's authors publish or a run writes, or of a published name.

    The network is on the CPU, in eval mode. Names are those of ``local_model``, which downloads what is not yet there.
    system: a key of SYSTEMS; None: recognised from the contents. Nothing in the files is executed. InputError when they
    are absent, damaged, of no known system, of another one than named, or ambiguous.
    """
    path = local_model(path)
    path = _weights_in(path, system) if path.is_dir() else path
    content = load_tensors(path, stand_in_for=STAND_IN_FOR)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} holds no weights by name")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # of DataParallel
    found = _recognise(path, content, state)
    if not found:
        raise InputError(f"{path} holds no model of a known system ({', '.join(SYSTEMS)})")
    choices = " or ".join(found)
    if system is None and len(found) > 1:
        raise InputError(f"{path} may be {choices}, which need different front ends: say which by --system (system=)")
    system = system or found[0]
    if system not in found:
        raise InputError(f"{path} is not a checkpoint of {system} but one of {choices}")
    try:
        if system == "ours":
            return _load_ours(path, content)
        if system == "speechbrain":
            return _load_speechbrain(path, state)
        return _load_theirs(path, content, state, system)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not as {SYSTEMS[system].title} writes it ({error!r:.200})") from error


def _weights_in(folder, system):
    """The weights file in the folder that a system's authors publish, or the best or last model in a run's folder."""
    patterns, found = [], []
    for name in [system] if system else SYSTEMS:
        patterns += SYSTEMS[name].files
        matches = (sorted(folder.glob(pattern)) for pattern in SYSTEMS[name].files)
        found += next(filter(None, matches), [])  # wespeaker's average comes before the models it is made of
    ours = [*folder.glob("*.model"), *folder.glob("model/*.model")] if system in (None, "ours") else []
    if ours and not found:  # the best one, else the last, and their average rather than the last one itself
        epoch = {path: path.stem.rpartition("_")[2].zfill(9) for path in ours}
        found = [max(ours, key=lambda path: (path.stem == "best", epoch[path], path.stem.startswith("average")))]
        if rank() == 0:
            print(f"{folder}: took {found[0].relative_to(folder)}", file=sys.stderr)
    if not found:
        patterns += ["*.model"] if system in (None, "ours") else []
        raise InputError(f"{folder} is a folder without {', '.join(patterns)}")
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
    if any(".cam_layer." in name for name in state):
        if "projection.weight" in state:
            raise InputError(f"{path} is wespeaker's CAM++, another front end: only 3D-Speaker's is supported")
        return ["campplus"]
    layers = {name.rpartition(".")[0] for name in state}
    known = [system for system, names in NAMES.items() if len(layers & names.keys()) > len(names) / 2]
    if len(known) > 1:  # SpeechBrain's and ModelScope's names are the same: the files beside the weights may tell
        beside = {"speechbrain": _speechbrain_files(path), "modelscope": _modelscope_settings(path)}
        known = [system for system in known if beside[system]] or known
    return known


# ---- one loader for each system --------------------------------------------------------------------------------------


def _load_ours(path, content):
    checkpoint = load_checkpoint(path, "model", content)
    settings, classifier = checkpoint["settings"], checkpoint["weights"].get("speaker_loss.weight")
    # A loss of the user's own may have further tensors.
    weights = {key: tensor for key, tensor in checkpoint["weights"].items() if not key.startswith("speaker_loss.")}
    system = settings.get("system", "ours")  # another one, if it was fine-tuned from that
    if system not in SYSTEMS:
        raise InputError(f"{path} is based on a system that is not known: {system!r}")
    all_results = checkpoint.get("scores") or {}
    trial_list, results = next(iter(all_results.items()), ("", {}))
    thresholds = results.get("thresholds") or {}
    origin = f"equal error rate on {trial_list}" if thresholds.get("EER") is not None else ""
    return Pretrained(
        system, _network(path, weights, system, PREFIX), classifier, checkpoint.get("speakers") or None,
        thresholds.get("EER"), origin, thresholds, trial_list, scale=float(settings.get("s", 30)),
        held_out=checkpoint.get("valid_speakers") or [], results=all_results,
        cosine_threshold=results.get("cosine_threshold"), all_speakers=checkpoint.get("trained_on") or sorted(
            {*(checkpoint.get("speakers") or ()), *(checkpoint.get("earlier_speakers") or ())}),  # of earlier versions
    )  # fmt: skip


def _load_speechbrain(path, state):
    network, beside = _network(path, state, "speechbrain"), _speechbrain_files(path)
    classifier = speakers = None
    if "classifier.ckpt" in beside:
        classifier = load_tensors(beside["classifier.ckpt"])["weight"].float()
    path = beside.get("label_encoder.txt") or beside.get("label_encoder.ckpt")
    if path and classifier is not None:  # lines 'id10001' => 0, up to ====
        found = re.findall(r"^'(.*)' => (\d+)$", read_text(path).split("\n==")[0], re.MULTILINE)
        labels = {int(index): name for name, index in found}
        if sorted(labels) != list(range(len(classifier))):
            raise InputError(f"{path} has {len(labels)} labels, the classifier {len(classifier)}: they do not fit")
        speakers = [labels[index] for index in range(len(classifier))]
    threshold, origin = SYSTEMS["speechbrain"].threshold, "SpeechBrain's own"
    return Pretrained("speechbrain", network, classifier, speakers, threshold, origin)


# The weights of the classifier in other systems' files; pyannote's have a column for each speaker.
CLASSIFIERS = {"taoruijie": "speaker_loss.weight", "wespeaker": "projection.weight", "pyannote": "loss_func.W"}


def _load_theirs(path, content, state, system):
    name = content.get("pyannote.audio", {}).get("architecture", {}).get("class", "XVectorSincNet")
    if name != "XVectorSincNet":
        raise InputError(f"{path} is pyannote.audio's {name}, not the XVectorSincNet of pyannote/embedding")
    classifier = state.pop(CLASSIFIERS.get(system), None)
    if system == "pyannote" and classifier is not None:
        classifier = classifier.t()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("projection.")}
    network = _network(path, state, system, PREFIX if system == "taoruijie" else "")
    threshold = _modelscope_settings(path).get("yesOrno_thr") if system in ("modelscope", "campplus") else None
    if threshold is not None:
        threshold = as_number(threshold, f"{path.parent}/configuration.json: yesOrno_thr", 1.0)
    return Pretrained(system, network, classifier, threshold=threshold, origin="its configuration.json")


def _network(path, state, system, prefix=""):
    """The system's network with these weights, in eval mode. InputError for tensors that do not fit it.

    prefix: of all names in a file whose layers are named as ours are.
    """
    names, ours = {} if prefix else NAMES.get(system, {}), {}
    for name, tensor in state.items():
        layer, dot, parameter = name.removeprefix(prefix).rpartition(".")
        ours[f"{names.get(layer, layer)}{dot}{parameter}"] = tensor
    try:
        with torch.device("meta"):  # shapes without numbers, which are taken from the file
            network = build_network(ours, system)
        for key, blank in network.state_dict().items():
            # A 1x1 convolution in one implementation is a linear layer in another.
            if ours[key].squeeze().shape == blank.squeeze().shape:
                ours[key] = ours[key].detach().reshape(blank.shape).to(blank.dtype)
        network.load_state_dict(ours, assign=True)
    except KeyError as error:
        raise InputError(f"{path}: the tensor that is called {error} here is missing") from error
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())  # with our names of the layers
        raise InputError(f"{path} has other weights than {SYSTEMS[system].title}: {reason:.500}") from error
    return network.eval()


# ---- files beside the weights ----------------------------------------------------------------------------------------


def _speechbrain_files(path):
    """{name: path} of SpeechBrain's other files beside its embedding_model.ckpt."""
    names = "hyperparams.yaml", "classifier.ckpt", "label_encoder.txt", "label_encoder.ckpt"
    published = path.name in SYSTEMS["speechbrain"].files
    return {name: path.parent / name for name in names if published and (path.parent / name).is_file()}


def _modelscope_settings(path):
    """ModelScope's settings of these weights, if their configuration.json lies beside; else {}."""
    model = modelscope_settings(path.parent)
    return model if model.get("pretrained_model") == path.name or model.get("type") == "ecapa-tdnn-sv" else {}
