"""Models by name, from a small hub on 127.0.0.1 that answers as Hugging Face, ModelScope and GitHub do, or fails."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import published
import pytest
import soundfile
import torch
from conftest import ROOT, voice

from inference import hub
from inference.checkpoints import load_pretrained
from tools import InputError, RunError

SPEECHBRAIN, MODELSCOPE = "speechbrain/spkrec-ecapa-voxceleb", "iic/speech_ecapa-tdnn_sv_en_voxceleb_16k"


class Hub(http.server.ThreadingHTTPServer):
    """models: {name: {revision: {file: bytes}}}; fault: of the next large file, "half", "wrong" or {header: value}."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url, self.models, self.fault, self.asked = f"http://127.0.0.1:{self.server_port}", {}, None, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown(), self.server_close()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 (http.server's name)
        url = urllib.parse.urlsplit(self.path)
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        query = dict(urllib.parse.parse_qsl(url.query))
        found = re.fullmatch(
            r"/api/v1/models/(?P<model>[^/]+/[^/]+)/repo(?P<files>/files)?|/api/models/(?P<about>[^/]+/[^/]+)/(revision|"
            r"tree)/(?P<at>[^/]+)|/(?P<name>[^/]+/[^/]+)/(resolve/)?(?P<revision>[^/]+)/(?P<file>.+)", url.path,
        ).groupdict()  # fmt: skip
        name, revision = found["model"] or found["about"] or found["name"], found["at"] or found["revision"]
        if name not in self.server.models:
            return self.say(401 if found["about"] else 404, headers={"X-Error-Code": "RepoNotFound"})
        revisions = self.server.models[name]
        revisions |= {hashlib.sha1(each.encode()).hexdigest(): files for each, files in revisions.items()}
        files = revisions.get(query.get("Revision") or revision)
        if files is None:
            return self.say(404, headers={"X-Error-Code": "RevisionNotFound"})
        if found["files"]:
            of = [{"Path": k, "Size": len(v), "Sha256": hashlib.sha256(v).hexdigest()} for k, v in files.items()]
            return self.say(200, json.dumps({"Data": {"Files": of}}).encode())
        if found["about"] and "/tree/" in url.path:
            of = [{"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()} for k, v in files.items()]
            return self.say(200, json.dumps(of).encode())
        commit = next(each for each, those in revisions.items() if those is files and len(each) == 40)
        if found["about"]:
            about = {"id": name, "sha": commit, "siblings": [{"rfilename": each} for each in files]}
            return self.say(200, json.dumps(about).encode())
        content = files[query.get("FilePath") or found["file"]]
        self.say(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    do_HEAD = do_GET  # noqa: N815

    def say(self, status, content=b"", headers=()):
        fault, headers = None, dict(headers)
        if len(content) > 10_000:
            if isinstance(self.server.fault, int):
                return self.say(self.server.fault, headers={"X-Error-Code": "GatedRepo"})
            if self.command == "GET":
                fault, self.server.fault = self.server.fault, None
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start:
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = bytes(len(content)) if fault == "wrong" else content
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(content) - start}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : len(body) // 2 if fault == "half" else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub with a SpeechBrain, a ModelScope and a TaoRuijie model; all caches are in tmp_path / "cache"."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(published.random_state(published.speechbrain_shapes(8)), folder / "embedding_model.ckpt")
    torch.save({"weight": torch.randn(2, 192)}, folder / "classifier.ckpt")
    torch.save({"glob_mean": torch.zeros(192)}, folder / "mean_var_norm_emb.ckpt")
    (folder / "hyperparams.yaml").write_text(published.HYPERPARAMS)
    (folder / "label_encoder.txt").write_text("'a' => 0\n'b' => 1\n")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = {"model": {"type": "ecapa-tdnn-sv", "pretrained_model": "ecapa_tdnn.bin", "yesOrno_thr": 0.37}}
    theirs = {"configuration.json": json.dumps(config).encode(), "ecapa_tdnn.bin": files["embedding_model.ckpt"]}
    torch.save(published.random_state(published.taoruijie_shapes(8, 5)), folder / "pretrain.model")
    running = Hub()
    running.models = {
        SPEECHBRAIN: {"main": {**files, "README.md": b"x" * 20_000}, "v1": {**files, "label_encoder.txt": b"'b' => 0\n'c' => 1\n"}},
        MODELSCOPE: {"master": {**theirs, "example.wav": b""}, "v1.0": theirs},
        "TaoRuijie/ECAPA-TDNN": {hub.TAORUIJIE.split("/")[2]: {"exps/pretrain.model": (folder / "pretrain.model").read_bytes()}},
    }
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(hub, "GITHUB", running.url)
    for key, value in {"MODELSCOPE_ENDPOINT": running.url, "MODELSCOPE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    yield running
    running.close()
