"""Published models by name: their local files, downloaded once into the cache that the hub's own package uses.

Nothing in them is executed (checkpoints.py). Endpoints and caches as of huggingface_hub 2.4 and modelscope_hub 0.5.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path
from urllib import parse, request

import torch

from inference.systems import SYSTEMS
from tools import InputError, RunError, progress_bar, rank, read_text, whole_file

OWNERS = ("speechbrain", "pyannote", "iic", "damo", "TaoRuijie", "Wespeaker")
WEIGHTS = ["*.model", *(pattern for system in SYSTEMS.values() for pattern in system.files)]
BESIDE = ["hyperparams.yaml", "classifier.ckpt", "label_encoder.txt", "configuration.json"]
GITHUB, TAORUIJIE = "https://raw.githubusercontent.com", "TaoRuijie/ECAPA-TDNN/4904fda6c5da208998321e3ea75e24320bab8aad"
TAORUIJIE_ID = "2be115cefc56a94b6d67ba0e8abef2d3df294167"  # git's, of exps/pretrain.model in that commit


def local_model(name, flag=""):
    """The Path of a model: ``name`` where it exists, else the local copy of the published owner/name[@revision].

    InputError, beginning with the flag, if there is neither or access is refused; RunError if a download fails.
    """
    if Path(name).exists():
        return Path(name)
    found = re.fullmatch(r"([\w-][\w.-]*)/([\w.-]+)(?:@([\w./-]+))?", str(name))
    # A mistyped path may have the form of a name, and a clone of an owner's code that of its folder.
    mistyped = found and (Path(found[1]).exists() or found[1] == "exps") and found[1] not in OWNERS
    if not found or mistyped or Path(name).suffix in (".model", ".pt", ".ckpt", ".bin"):
        fix = "give a file, a folder, or a name such as speechbrain/spkrec-ecapa-voxceleb (docs/use.md)"
        raise InputError(f"{flag} {name} does not exist: {fix}".strip())
    owner, repository, revision = found.groups()
    if owner in ("iic", "damo"):  # damo is the former name of iic
        return _modelscope(f"iic/{repository}", revision)
    if str(name) == "TaoRuijie/ECAPA-TDNN":
        path = Path(torch.hub.get_dir(), "checkpoints", *TAORUIJIE.split("/"), "pretrain.model")
        url = f"{GITHUB}/{TAORUIJIE}/exps/pretrain.model"
        return _download(name, url, path, TAORUIJIE_ID)
    return _huggingface(f"{owner}/{repository}", revision)


def _huggingface(name, revision):
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise InputError(f"{name} is no file or folder here; to download it: pip install huggingface_hub") from error
    source, settings = f"{constants.ENDPOINT}/{name}", {"revision": revision, "allow_patterns": WEIGHTS + BESIDE}
    with contextlib.suppress(errors.LocalEntryNotFoundError, errors.HFValidationError):  # no network needed
        folder = Path(snapshot_download(name, **settings, local_files_only=True))
        if any(any(folder.glob(pattern)) for pattern in WEIGHTS):
            return folder
    if rank() == 0 and not constants.HF_HUB_OFFLINE:
        print(f"downloading {source} to {constants.HF_HUB_CACHE}", file=sys.stderr)
    try:
        return Path(snapshot_download(name, **settings))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        gated = isinstance(error, errors.GatedRepoError)
        reason = "is gated: accept its conditions there" if gated else f"({revision or 'main'}) is absent or private"
        raise InputError(f"{source} {reason}; give your token in HF_TOKEN or by: hf auth login") from error
    except Exception as error:  # of requests or httpx, depending on the version
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
        where = f"no file or folder here, not in {constants.HF_HUB_CACHE}"
        raise RunError(f"{name} is {where}, and cannot be downloaded: {reason}") from None


def _modelscope(name, revision):
    cache = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    folder = cache / "models" / name.replace("/", "--") / "snapshots" / (revision or "master")
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"
    url = f"{endpoint}/api/v1/models/{name}/repo?Revision={parse.quote(revision or 'master')}&FilePath="
    _download(name, f"{url}configuration.json", folder / "configuration.json")
    weights = str(modelscope_settings(folder).get("pretrained_model"))
    _download(name, url + parse.quote(weights), folder / Path(weights).name)
    return folder


def modelscope_settings(folder):
    """The "model" part of ModelScope's configuration.json in a folder; {} if there is none. InputError."""
    file = Path(folder) / "configuration.json"
    try:
        return dict(json.loads(read_text(file)).get("model", {})) if file.is_file() else {}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is not a configuration of ModelScope ({error})") from error


def _download(name, url, path, git_id=None):
    """Download a file, whole or not at all, unless it is there -> its path. git_id: what git calls its content."""
    if path.is_file():  # perhaps in a folder that is read-only
        return path
    if rank() == 0:
        print(f"downloading {url} to {path.parent}", file=sys.stderr)
    content = bytearray()
    try:
        with request.urlopen(request.Request(url, headers={"User-Agent": "ecapa-tdnn"}), timeout=30) as response:
            size = int(response.headers["Content-Length"] or 0)
            with progress_bar(total=size, unit="B", unit_scale=True, desc=path.name) as bar:
                while block := response.read(1 << 20):
                    content += block
                    bar.update(len(block))
    except (OSError, HTTPException) as error:
        status, reason = getattr(error, "code", None), getattr(error, "reason", None) or repr(error)
        kind = InputError if status in (401, 403, 404) else RunError
        what = f"{name} is no file or folder here, not in {path.parent}, and cannot be downloaded"
        raise kind(f"{what}: {url} {status or ''} {reason}") from None
    found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if len(content) < size or git_id not in (None, found):
        raise RunError(f"{url} arrived damaged ({len(content)} of {size} bytes): try again")
    with whole_file(path) as file:
        file.write(content)
    return path
