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
from filelock import FileLock  # a requirement of torch

from inference.systems import SYSTEMS
from tools import InputError, RunError, progress_bar, rank

WEIGHTS = {name: system.files or ("*.model",) for name, system in SYSTEMS.items()}
BESIDE = {
    "speechbrain": ("hyperparams.yaml", "classifier.ckpt", "mean_var_norm_emb.ckpt", "label_encoder.txt"),
    "modelscope": ("configuration.json",), "campplus": ("configuration.json",),
}  # fmt: skip
PATTERNS = sorted({pattern for files in (*WEIGHTS.values(), *BESIDE.values()) for pattern in files})
GITHUB, TAORUIJIE = "https://raw.githubusercontent.com", "TaoRuijie/ECAPA-TDNN/4904fda6c5da208998321e3ea75e24320bab8aad"
TAORUIJIE_ID = "2be115cefc56a94b6d67ba0e8abef2d3df294167"  # git's, of exps/pretrain.model in that commit


def local_model(name, flag=""):
    """The Path of a model: ``name`` where it exists, else the local copy of the published owner/name[@revision].

    InputError, beginning with the flag, if there is neither or access is refused; RunError if a download fails.
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise InputError(f"a model must be a path or a name, not {name!r}")
    if Path(name).exists():
        return Path(name)
    found = re.fullmatch(r"([\w-][\w.-]*)/([\w.-]+)(?:@([\w./-]+))?", str(name))
    # A mistyped path may have the form of a name.
    if not found or Path(name).suffix in (".model", ".pt", ".ckpt", ".bin") or Path(found[1]).exists():
        fix = "give a file, a folder, or a name such as speechbrain/spkrec-ecapa-voxceleb (docs/use.md)"
        raise InputError(f"{flag} {name} does not exist: {fix}".strip())
    owner, repository, revision = found.groups()
    if owner in ("iic", "damo"):  # damo is the former name of iic
        return _modelscope(f"iic/{repository}", revision)
    if str(name) == "TaoRuijie/ECAPA-TDNN":
        path = Path(torch.hub.get_dir(), "checkpoints", *TAORUIJIE.split("/"), "pretrain.model")
        url = f"{GITHUB}/{TAORUIJIE}/exps/pretrain.model"
        return path if path.is_file() else _download(name, url, path, digest=TAORUIJIE_ID)
    return _huggingface(f"{owner}/{repository}", revision)


def _is_whole(folder):
    """Whether it holds the weights of a system and what belongs to them."""
    weights = (name for name, patterns in WEIGHTS.items() if any(any(folder.glob(each)) for each in patterns))
    return any(all((folder / beside).is_file() for beside in BESIDE.get(name, ())) for name in weights)


def _huggingface(name, revision):
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise InputError(f"{name} is no file or folder here; to download it: pip install huggingface_hub") from error
    source, settings = f"{constants.ENDPOINT}/{name}", {"revision": revision, "allow_patterns": PATTERNS}
    with contextlib.suppress(errors.LocalEntryNotFoundError, errors.HFValidationError):  # no network needed
        if _is_whole(folder := Path(snapshot_download(name, **settings, local_files_only=True))):
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
    if _is_whole(folder):
        return folder
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"
    api, query = f"{endpoint}/api/v1/models/{name}/repo", {"Revision": revision or "master"}
    with _opened(name, f"{api}/files?{parse.urlencode({**query, 'Recursive': True})}", folder) as response:
        files = {file["Path"]: file for file in json.load(response)["Data"]["Files"]}
    wanted = [path for path in files if "/" not in path and any(Path(path).match(pattern) for pattern in PATTERNS)]
    for path in sorted(wanted, key="configuration.json".__eq__):  # that comes last: then all is there
        url = f"{api}?{parse.urlencode({**query, 'FilePath': path})}"
        _download(name, url, folder / path, files[path].get("Size"), files[path].get("Sha256"))
    return folder


@contextlib.contextmanager
def _opened(name, url, cache, start=0):
    """The response to a request for a file from byte ``start`` on. What fails while using it gives one line."""
    headers = {"User-Agent": "ecapa-tdnn", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with request.urlopen(request.Request(url, headers=headers), timeout=30) as response:
            yield response
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:  # or it is not the JSON of ModelScope
        status, reason = getattr(error, "code", None), getattr(error, "reason", None) or repr(error)
        kind = InputError if status in (401, 403, 404) else RunError
        what = f"{name} is no file or folder here, not in {cache}, and cannot be downloaded"
        raise kind(f"{what}: {url} {status or ''} {reason}") from None


def _download(name, url, path, size=None, digest=None):
    """Download a file, whole or not at all, unless it is there; if the size is known, continue what broke off."""
    part = path.with_name(f"{path.name}.incomplete")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".lock")):  # other processes wait, and find it
        if path.is_file():
            return path
        start = part.stat().st_size if size and part.exists() else 0
        if not size or start < size:
            if rank() == 0:
                print(f"downloading {url} to {path.parent}", file=sys.stderr)
            with _opened(name, url, path.parent, start) as response:
                start = start if response.status == 206 else 0
                size = size or int(response.headers["Content-Length"] or 0)
                bar = progress_bar(total=size, initial=start, unit="B", unit_scale=True, desc=path.name)
                with open(part, "ab" if start else "wb") as file, bar:
                    while block := response.read(1 << 20):
                        bar.update(file.write(block))
        content = part.read_bytes()
        if len(content) < size:
            raise RunError(f"{url} broke off after {len(content)} of {size} bytes: try again")
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if len(content) > size or (digest and digest not in (git, hashlib.sha256(content).hexdigest())):
            part.unlink()
            raise RunError(f"{url} arrived damaged ({len(content)} bytes) and was removed: try again")
        os.replace(part, path)
    return path
