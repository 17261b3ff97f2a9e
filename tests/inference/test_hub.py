"""Models by name, from a small hub on 127.0.0.1 that answers as Hugging Face, ModelScope and GitHub do, or fails."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import published
import pytest
import soundfile
import torch
from conftest import ROOT, voice

from inference import hub
from inference.checkpoints import load_pretrained
from tools import InputError, RunError

SPEECHBRAIN, MODELSCOPE = "speechbrain/spkrec-ecapa-voxceleb", "iic/speech_ecapa-tdnn_sv_en_voxceleb_16k"
TAORUIJIE, COMMIT = "TaoRuijie/ECAPA-TDNN", hub.TAORUIJIE[-40:]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    pages, asked, fault = {}, [], None  # {path: bytes}, paths, and what happens to weights: "half", "wrong", a status

    def do_GET(self):
        start, content = int(self.headers.get("Range", "bytes=0-")[6:-1]), self.pages.get(self.path.split("?recursive")[0])
        status, fault, error = 206 if start else 200, None, ""
        if content is None:
            status, error = 404, "RevisionNotFound" if SPEECHBRAIN in self.path else "RepoNotFound"
        elif len(content) > 10_000 and isinstance(self.fault, int):
            status, error, content = self.fault, "GatedRepo", None
        elif len(content) > 10_000 and self.command == "GET":
            fault, Hub.fault = self.fault, None
        content = content or b""
        self.asked.append((self.path, start))
        self.send_response(status)
        for header in {"X-Error-Code": error, "X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content)}"',
                       "Content-Length": len(content) - start}.items():  # fmt: skip
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            sent = {"half": content[: len(content) // 2], "wrong": bytes(len(content))}.get(fault, content)
            self.wfile.write(sent[start:])

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def publish(name, revision, files):
    """The pages of a model, in the forms of all three hubs."""
    theirs = [{"Path": file, "Size": len(content), "Sha256": sha256(content)} for file, content in files.items()]
    tree = [{"type": "file", "path": file, "size": len(content), "oid": "0"} for file, content in files.items()]
    api, modelscope = f"/api/models/{name}", f"/api/v1/models/{name}/repo"
    listings = {f"{modelscope}/files?Revision={revision}": {"Data": {"Files": theirs}}, f"{api}/tree/{COMMIT}": tree,
                f"{api}/revision/{revision}": {"id": name, "sha": COMMIT}}  # fmt: skip
    Hub.pages |= {page: json.dumps(content).encode() for page, content in listings.items()}
    for page in (f"/{name}/resolve/{COMMIT}/", f"/{name}/{COMMIT}/", f"{modelscope}?Revision={revision}&FilePath="):
        Hub.pages |= {f"{page}{file}": content for file, content in files.items()}


@pytest.fixture
def server(tmp_path, monkeypatch):
    constants, cache = pytest.importorskip("huggingface_hub.constants"), str(tmp_path / "cache")
    torch.save(published.random_state(published.speechbrain_shapes(8)), tmp_path / "embedding_model.ckpt")
    torch.save({"weight": torch.randn(2, 192)}, tmp_path / "classifier.ckpt")
    torch.save({"glob_mean": torch.zeros(192)}, tmp_path / "mean_var_norm_emb.ckpt")
    texts = {"hyperparams.yaml": published.HYPERPARAMS, "label_encoder.txt": "'a' => 0\n'b' => 1\n", "README.md": ""}
    publish(SPEECHBRAIN, "main", {
        **{path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")},
        **{name: text.encode() for name, text in texts.items()},
    })  # fmt: skip
    model = {"type": "ecapa-tdnn-sv", "pretrained_model": "ecapa_tdnn.bin", "yesOrno_thr": 0.37}
    files = {"configuration.json": json.dumps({"model": model}).encode(), "README.md": b"",
             "ecapa_tdnn.bin": (tmp_path / "embedding_model.ckpt").read_bytes()}  # fmt: skip
    publish(MODELSCOPE, "master", files)
    publish(MODELSCOPE, "v1", files)
    torch.save(published.random_state(published.taoruijie_shapes(8, 5)), tmp_path / "pretrain.model")
    publish(TAORUIJIE, "main", {"exps/pretrain.model": (tmp_path / "pretrain.model").read_bytes()})
    git = subprocess.run(["git", "hash-object", tmp_path / "pretrain.model"], capture_output=True, text=True, check=True)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    running.url = f"http://127.0.0.1:{running.server_port}"
    for of, name, value in (
        (hub, "TAORUIJIE_ID", git.stdout.strip()), (hub, "GITHUB", running.url), (torch.hub, "get_dir", lambda: cache),
        (constants, "ENDPOINT", running.url), (constants, "HF_HUB_CACHE", cache), (Hub, "asked", []),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"),
    ):  # fmt: skip
        monkeypatch.setattr(of, name, value)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", cache)
    yield running
    Hub.fault = None
    running.shutdown(), running.server_close()


@pytest.mark.parametrize(("name", "again", "system", "threshold", "speakers"), [
    (SPEECHBRAIN, SPEECHBRAIN, "speechbrain", 0.25, ["a", "b"]),
    (SPEECHBRAIN, f"{SPEECHBRAIN}@{COMMIT}", "speechbrain", 0.25, ["a", "b"]),
    (MODELSCOPE, "damo" + MODELSCOPE[3:], "modelscope", 0.37, None), (TAORUIJIE, TAORUIJIE, "taoruijie", None, None),
    (f"{MODELSCOPE}@v1", f"{MODELSCOPE}@v1", "modelscope", 0.37, None),
])  # fmt: skip
def test_downloaded_once(server, tmp_path, capsys, name, again, system, threshold, speakers):
    found = load_pretrained(name)
    assert (found.system, found.threshold, found.speakers) == (system, threshold, speakers)
    assert "downloading http://127.0.0.1" in capsys.readouterr().err and not any("README" in path for path, _ in Hub.asked)
    server.shutdown(), server.server_close()
    state = load_pretrained(again).network.state_dict()  # without a server
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.network.state_dict().items())
    assert capsys.readouterr().err == ""
    with pytest.raises(RunError, match="cannot be downloaded"):
        load_pretrained(f"{MODELSCOPE}@v2" if system == "modelscope" else "some/other")


@pytest.mark.parametrize("name", [SPEECHBRAIN, MODELSCOPE, TAORUIJIE])
def test_damaged_and_broken_transfers(server, name):
    Hub.fault = "wrong"
    with pytest.raises(RunError, match=r"arrived damaged .*removed|arrived damaged and was removed"):
        load_pretrained(name)
    Hub.fault = "half"
    if name != SPEECHBRAIN:  # whose package tries again by itself
        with pytest.raises(RunError, match="broke off after"):
            load_pretrained(name)
    assert load_pretrained(name).network
    assert any(start for _, start in Hub.asked) == (name == MODELSCOPE)


@pytest.mark.parametrize(("name", "fault", "complaint"), [
    (SPEECHBRAIN, 401, "is gated: accept its conditions .* HF_TOKEN"), (SPEECHBRAIN, 403, "is gated"),
    (f"{SPEECHBRAIN}@v9", None, r"\(v9\) is absent"), ("some/other", None, r"some/other \(main\) is absent or private"),
    (MODELSCOPE, 403, "403"), (MODELSCOPE, 404, "404"), (f"{MODELSCOPE}@v9", None, r"Revision=v9 .*404"),
    (TAORUIJIE, 404, "404"), ("exps/demo", None, "exps/demo does not exist"), ("x/y.model", None, "does not exist: give"),
    ("one", None, r"does not exist: give .*speechbrain/spkrec"), ("a/b/c", None, "a/b/c does not exist"),
])  # fmt: skip
def test_complaints(server, monkeypatch, name, fault, complaint):
    monkeypatch.chdir(ROOT)  # where exps/ is
    monkeypatch.setattr(Hub, "fault", fault)
    with pytest.raises(InputError, match=complaint):
        load_pretrained(name)


def test_what_is_here_needs_no_hub(server, tmp_path, monkeypatch):
    """A path of the form of a name; a cache that others filled, as huggingface_hub lays it out."""
    cached, files = tmp_path / "cache" / "models--org--copy", tmp_path / "org" / "local"
    for folder in (files, cached / "blobs", cached / "refs", cached / "snapshots" / COMMIT):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    for page in (page for page in Hub.pages if f"{SPEECHBRAIN}/resolve/" in page):
        name, content = page.rpartition("/")[2], Hub.pages[page]
        (files / name).write_bytes(content)
        (cached / "blobs" / sha256(content)).write_bytes(content)
        (cached / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{sha256(content)}")
    assert load_pretrained("org/copy").speakers == ["a", "b"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        load_pretrained("org/copy")
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("org/local").speakers == ["a", "b"] and not Hub.asked


def test_commands(server, tmp_path):
    """torch.hub downloads; then verify.py needs no server."""
    soundfile.write(tmp_path / "a.wav", voice(120, 2.0, 0), 16000)
    load = f"import torch; torch.hub.load({str(ROOT)!r}, 'speaker_encoder', {SPEECHBRAIN!r}, 'cpu', source='local')"
    verify = str(ROOT / "verify.py"), "a.wav", "a.wav", "--model", SPEECHBRAIN, "--device", "cpu"
    for arguments, offline in ((("-c", load), "0"), (verify, "1")):
        environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and ("downloading" in done.stderr) == (offline == "0"), done.stderr
        server.shutdown(), server.server_close()
