"""Models by name, from a small hub on 127.0.0.1 that answers as Hugging Face, ModelScope and GitHub do, or fails."""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
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


class Hub(http.server.BaseHTTPRequestHandler):
    pages, asked, fault = {}, [], None  # {path: bytes}; paths; a status, or what becomes of weights

    def do_GET(self):
        content, status, error = self.pages.get(self.path.split("?recursive")[0]), 200, ""
        if content is None:
            content, status, error = b"", 404, "RevisionNotFound" if SPEECHBRAIN in self.path else "RepoNotFound"
        elif len(content) > 10_000 and isinstance(self.fault, int):
            content, status, error = b"", self.fault, "GatedRepo"
        self.asked.append(self.path)
        self.send_response(status)
        for header in (("X-Error-Code", error), ("X-Repo-Commit", COMMIT), ("Content-Length", len(content)),
                       ("ETag", f'"{hashlib.sha256(content).hexdigest()}"')):  # fmt: skip
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET" and len(content) > 10_000 and self.fault:
            content, Hub.fault = Hub.fault(content), None
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD, log_message = do_GET, lambda *_: None  # noqa: N815


def publish(name, revision, files):
    """The pages of a model, in the forms of all three hubs."""
    tree = [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in files.items()]
    api, modelscope = f"/api/models/{name}", f"/api/v1/models/{name}/repo"
    about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
    listings = {f"{api}/tree/{COMMIT}": tree, f"{api}/revision/{revision}": about}
    Hub.pages |= {page: json.dumps(content).encode() for page, content in listings.items()}
    for page in (f"/{name}/resolve/{COMMIT}/", f"/{name}/{COMMIT}/", f"{modelscope}?Revision={revision}&FilePath="):
        Hub.pages |= {f"{page}{file}": content for file, content in files.items()}


@pytest.fixture
def server(tmp_path, monkeypatch):
    constants, cache = pytest.importorskip("huggingface_hub.constants"), str(tmp_path / "cache")
    model = {"type": "ecapa-tdnn-sv", "pretrained_model": "ecapa_tdnn.bin", "yesOrno_thr": 0.37}
    (tmp_path / "hyperparams.yaml").write_text("n_mels: 80")
    (tmp_path / "label_encoder.txt").write_text("'a' => 0\n'b' => 1\n")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "configuration.json").write_text(json.dumps({"model": model}))
    for name, state in {
        "embedding_model.ckpt": published.random_state(published.speechbrain_shapes(8)),
        "classifier.ckpt": {"weight": torch.randn(2, 192)},
        "pretrain.model": published.random_state(published.taoruijie_shapes(8, 5)),
    }.items():  # fmt: skip
        torch.save(state, tmp_path / name)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    taoruijie = {"exps/pretrain.model": files.pop("pretrain.model")}
    theirs = {name: files.pop(name) for name in ("configuration.json", "README.md")}
    theirs["ecapa_tdnn.bin"] = files["embedding_model.ckpt"]
    publish(SPEECHBRAIN, "main", {**files, "README.md": b""})
    publish(MODELSCOPE, "master", theirs)
    publish(MODELSCOPE, "v1", theirs)
    publish(TAORUIJIE, "", taoruijie)
    git = subprocess.check_output(["git", "hash-object", tmp_path / "pretrain.model"], text=True)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    running.url = f"http://127.0.0.1:{running.server_port}"
    for of, name, value in (
        (hub, "TAORUIJIE_ID", git.strip()), (hub, "GITHUB", running.url), (torch.hub, "get_dir", lambda: cache),
        (constants, "ENDPOINT", running.url), (constants, "HF_HUB_CACHE", cache), (Hub, "asked", []),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"),
    ):  # fmt: skip
        monkeypatch.setattr(of, name, value)
    monkeypatch.setattr(Hub, "fault", None)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", cache)
    yield running
    running.shutdown(), running.server_close()


@pytest.mark.parametrize(("name", "again", "system", "threshold", "speakers"), [
    (SPEECHBRAIN, f"{SPEECHBRAIN}@{COMMIT}", "speechbrain", 0.25, ["a", "b"]),
    (MODELSCOPE, "damo" + MODELSCOPE[3:], "modelscope", 0.37, None), (TAORUIJIE, TAORUIJIE, "taoruijie", None, None),
    (f"{MODELSCOPE}@v1", f"{MODELSCOPE}@v1", "modelscope", 0.37, None),
])  # fmt: skip
def test_downloaded_once(server, tmp_path, capsys, name, again, system, threshold, speakers):
    """Nothing of a transfer that breaks off or goes wrong is used; without a server the cache serves."""
    if system == "taoruijie":  # whose hash is known
        Hub.fault = lambda content: bytes(len(content))
        with pytest.raises(RunError, match="arrived damaged"):
            load_pretrained(name)
    Hub.fault = lambda content: content[: len(content) // 2]
    with contextlib.suppress(RunError):
        load_pretrained(name)
        assert system == "speechbrain"  # huggingface_hub 2 tries again by itself
    found = load_pretrained(name)
    assert (found.system, found.threshold, found.speakers) == (system, threshold, speakers)
    assert "downloading http://127.0.0.1" in capsys.readouterr().err
    assert not any("README" in path for path in Hub.asked)
    server.shutdown(), server.server_close()
    for trees in tmp_path.glob("cache/models--*/trees"):
        shutil.rmtree(trees)  # which earlier versions of huggingface_hub did not write
    state = load_pretrained(again).network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.network.state_dict().items())
    assert capsys.readouterr().err == ""
    with pytest.raises(RunError, match="cannot be downloaded"):
        load_pretrained(f"{MODELSCOPE}@v2" if system == "modelscope" else "some/other")


@pytest.mark.parametrize(("name", "fault", "complaint"), [
    (SPEECHBRAIN, 401, r"is gated: accept its conditions .* HF_TOKEN"), (SPEECHBRAIN, 403, "is gated"),
    (f"{SPEECHBRAIN}@v9", None, r"\(v9\) is absent"), ("some/other", None, r"some/other \(main\) is absent or private"),
    (MODELSCOPE, 403, "403"), (MODELSCOPE, 404, "404"), (f"{MODELSCOPE}@v9", None, r"not in .*/v9, .*Revision=v9.*404"),
    (TAORUIJIE, 404, "404"), ("exps/none", None, "exps/none does not exist"), ("x/y.model", None, "does not exist"),
    ("one", None, r"does not exist: give .*speechbrain/spkrec"), ("a/b/c", None, "a/b/c does not exist"),
])  # fmt: skip
def test_complaints(server, monkeypatch, name, fault, complaint):
    monkeypatch.chdir(ROOT)  # where exps/ is
    Hub.fault = fault
    with pytest.raises(InputError, match=complaint):
        load_pretrained(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        load_pretrained("some/other")


def test_a_path_comes_first(server, tmp_path, monkeypatch):
    (tmp_path / SPEECHBRAIN).mkdir(parents=True)
    (tmp_path / "pretrain.model").rename(tmp_path / SPEECHBRAIN / "pretrain.model")
    monkeypatch.chdir(tmp_path)
    assert load_pretrained(SPEECHBRAIN).system == "taoruijie" and not Hub.asked
    with pytest.raises(InputError, match="exps/demo does not exist"):  # nobody's repository, from whatever folder
        load_pretrained("exps/demo")
    assert not Hub.asked


def test_a_clone_of_the_owners_code_does_not_hide_models(server, tmp_path, monkeypatch):
    (tmp_path / "speechbrain").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_pretrained(SPEECHBRAIN).system == "speechbrain"


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
