"""Models of the hub: the real client against a small hub of our own on the loopback interface."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from effopd.artifacts.manifests import read_manifest
from effopd.models.models import save_model, weights_of
from tiny_models import byte_tokenizer, make_family

pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves the files of one folder as the model owner/name at COMMIT."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.asked: list[str] = []
        self.error: str | None = None  # the hub's word for what is wrong with the model
        self.failures = 0  # requests that still fail, as on a bad connection


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hub = self.server
        hub.asked.append(self.path)
        if hub.error:
            self.respond(403 if hub.error == "GatedRepo" else 404, {"X-Error-Code": hub.error})
        elif hub.failures and "/resolve/" in self.path:
            hub.failures -= 1
            self.respond(500, {})
        elif f"/tree/{COMMIT}" in self.path:
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "x"} for p in hub.folder.iterdir()
            ]
            self.respond(200, {"Content-Type": "application/json"}, json.dumps(files).encode())
        elif f"/resolve/{COMMIT}/" in self.path:
            content = (hub.folder / self.path.rsplit("/", 1)[1]).read_bytes()
            self.respond(200, {"ETag": hashlib.sha256(content).hexdigest(), "X-Repo-Commit": COMMIT}, content)
        else:
            self.respond(404, {})

    do_HEAD = do_GET  # noqa: N815

    def respond(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path):
    model = make_family("qwen2", 0, vocabulary=259)
    save_model(model.config, weights_of(model), byte_tokenizer(), tmp_path / "hub")
    (tmp_path / "hub/pytorch_model.bin").write_bytes(b"pickled")
    served = Hub(tmp_path / "hub")
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()


def fetch(hub, tmp_path, **environment):
    model = {
        "kind": "pretrained",
        "path": "owner/name",
        "revision": COMMIT,
        "dtype": "float32",
        "trust_remote_code": False,
    }
    out = tmp_path / "results/models/tiny/manifest.json"
    return effopd(hub, tmp_path, "fetch-model", {"model": model}, out, **environment), out


def effopd(hub, tmp_path, verb, spec, out, **environment):
    """Run a verb that asks this hub."""
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "cache"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "effopd", verb, "--spec", json.dumps({**spec, "code": "x"}), "--out", str(out)],
        env={**os.environ, "HF_HUB_DISABLE_XET": "1", **own}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_a_model_of_the_hub_is_downloaded_once_and_then_needs_no_connection(hub, tmp_path):
    hub.failures = 2
    done, out = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(out, "model")
    assert list(manifest.problems()) == []
    assert (out.parent / "model.safetensors").resolve().is_relative_to(tmp_path / "cache")
    assert "pytorch_model.bin" not in manifest.files
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    hub.asked.clear()
    done, out = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    assert read_manifest(out, "model").fingerprint == manifest.fingerprint


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("GatedRepo", "is gated. Accept its terms at https://huggingface.co/owner/name"),
        ("RevisionNotFound", "has no such commit. Correct its `revision`."),
        ("offline", "can be neither downloaded nor found in the cache"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(hub, tmp_path, wrong, message):
    hub.error = None if wrong == "offline" else wrong
    done, out = fetch(hub, tmp_path, **({"HF_HUB_OFFLINE": "1"} if wrong == "offline" else {}))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert not out.exists()


def test_a_gated_data_set_says_in_one_line_what_a_person_has_to_do(hub, tmp_path):
    """As GPQA is: the hub answers nobody who has not accepted its terms."""
    hub.error = "GatedRepo"
    source = {"dataset": "owner/name", "revision": COMMIT, "subset": "diamond", "split": "train", "where": {}}
    columns = {"problem": "Question", "choices": ["Correct", "Wrong"], "answer": "Correct", "answer_is": "text"}
    splits = {"test": {"sources": [{**source, "columns": columns}]}}
    out = tmp_path / "results/data/gpqa/manifest.json"
    done = effopd(hub, tmp_path, "make-data", {"task": {"name": "choice", "seed": 0, "splits": splits}}, out)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        f"error: source name: the data set owner/name at revision {COMMIT} is gated. Accept its terms at "
        "https://huggingface.co/datasets/owner/name, then log in (`hf auth login`) or set HF_TOKEN."
    )
    assert not out.exists()
