"""A small real server for EndpointTeacher: the part of an OpenAI-compatible interface that it uses, over a real model.

It can also be told to fail first, to be slow, or to know another tokenizer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass
class Behavior:
    """How the server answers, and what it saw."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    room: int = 64
    max_logprobs: int = 20
    failures: list[int] = field(default_factory=list)  # statuses that the next completions get; 0 hangs up
    delay: float = 0.0
    knows_detokenize: bool = True
    completions: int = 0
    at_once: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)


def prompt_logprobs(behavior: Behavior, tokens: list[int], count: int) -> list[Any]:
    """As vLLM gives them: nothing of the first token, then each token and the likeliest ones, with their ranks."""
    with torch.no_grad():
        logprobs = torch.log_softmax(behavior.model(torch.tensor([tokens])).logits[0].float(), -1)
    rows: list[Any] = [None]
    for row, token in zip(logprobs, tokens[1:], strict=False):
        order = row.argsort(descending=True).tolist()
        rows.append({str(t): {"logprob": row[t].item(), "rank": order.index(t) + 1} for t in {*order[:count], token}})
    return rows


@contextmanager
def serving(behavior: Behavior) -> Iterator[str]:
    """The base URL of a server on the loopback, which ends with the block."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: Any) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "teacher", "max_model_len": behavior.room}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/detokenize":
                text = behavior.tokenizer.decode(body["tokens"])
                return self.answer(*((200, {"prompt": text}) if behavior.knows_detokenize else (404, {})))
            with behavior.lock:
                behavior.completions += 1
                behavior.at_once += 1
                behavior.most_at_once = max(behavior.most_at_once, behavior.at_once)
                failure = behavior.failures.pop(0) if behavior.failures else None
            time.sleep(behavior.delay)
            with behavior.lock:
                behavior.at_once -= 1
            if failure == 0:
                self.close_connection = True
                return None
            if failure is not None:
                return self.answer(failure, {"error": {"message": f"failing on purpose with {failure}"}})
            if body["prompt_logprobs"] > behavior.max_logprobs:
                said = f"Requested prompt logprobs of {body['prompt_logprobs']}, more than {behavior.max_logprobs}"
                return self.answer(400, {"error": {"message": said}})
            assert body["max_tokens"] == 1
            rows = prompt_logprobs(behavior, body["prompt"], body["prompt_logprobs"])
            return self.answer(200, {"choices": [{"prompt_logprobs": rows}]})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
