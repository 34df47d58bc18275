"""Servers that answer anything at all, in any manner, at any address: the right scores, or one clear line."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
import zlib
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.common.errors import ConfigError
from effopd.config.http_addresses import problem_of
from effopd.config.load import complete
from effopd.teachers import http_client
from raw_server import Answer, RawServer, http, raw_server, saying
from served_teacher import (
    FIRST,
    PASSWORD,
    ROLLOUTS,
    assert_retried_and_healed,
    assert_right,
    at,
    base_of,
    body_for,
    checked_teacher,
    healthy,
    one_line,
    teacher_at,
)

# --- statuses and headers --------------------------------------------------------------------------------------------

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "config/config.yaml").read_text())
STATUSES = [101, 201, 204, 206, 300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 407, 408, 413, 422, 425, 429,
            500, 501, 502, 503, 504, 520, 600, 999]  # fmt: skip
BODIES = {
    "JSON": json.dumps({"error": {"message": "not today"}}).encode(),
    "HTML": b"<html><body>not today</body></html>",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize(("name", "body"), [("/models", "JSON"), *(("/completions", body) for body in BODIES)])
@pytest.mark.parametrize("status", STATUSES)
def test_every_status_ends_well(server, name, status, body):
    content = b"" if status in (101, 204, 304) else BODIES[body]
    bad = saying(http(status, content, f"Location: http://me:{PASSWORD}@elsewhere/v1?key=hidden"))
    if 101 < status < 300 or status in http_client.PASSING:
        line = assert_retried_and_healed(server, name, bad)
    else:
        server.answer = healthy
        teacher = checked_teacher(base_of(server)) if name == "/completions" else teacher_at(server)
        server.paths.clear()
        server.answer = at(name, bad)
        line = one_line(lambda: teacher.score(FIRST), f"status {status}", server.url)
        assert server.asked(name) == 1, "what is refused is not asked again"
    if 300 <= status < 400:
        assert "redirects to http://***@elsewhere/v1 (" in line
        assert "hidden" not in line
    elif content and body in ("JSON", "HTML") and status > 300:
        assert "not today" in line


@pytest.mark.parametrize("status", [401, 403, 404, 405, 501])
def test_a_server_that_cannot_show_its_tokenizer_is_believed(server, status):
    server.answer = at("/detokenize", saying(http(status, "{}")))
    assert_right(teacher_at(server).score(ROLLOUTS), 2)


BOMB = gzip.compress(b" " * (2**24 + 2**16))
GARBAGE = b"\x1f\x8b\x08 not really compressed"
TRANSFERS = {
    "gzip garbage": (GARBAGE, "Content-Encoding: gzip"),
    "deflate garbage": (b"\x00" * 40, "Content-Encoding: deflate"),
    "gzip cut short": (gzip.compress(b'{"data": []}' * 99)[:20], "Content-Encoding: gzip"),
    "a bomb": (BOMB, "Content-Encoding: gzip"),
    "an encoding that nobody knows": (b"abc", "Content-Encoding: rot13"),
    "several encodings": (b"abc", "Content-Encoding: gzip, deflate, gzip"),
    "a hundred encodings": (b"abc", "Content-Encoding: " + ", ".join(["gzip"] * 100)),
    "shorter than it says": (b"{}", "Content-Length: 5000"),
    "a length below 0": (b"{}", "Content-Length: -5"),
    "a length that is none": (b"{}", "Content-Length: many"),
    "two lengths": (b"{}", "Content-Length: 2, 3"),
    "chunks cut short": (b"5\r\n{\"a\":\r\n", "Transfer-Encoding: chunked"),
    "chunks without size": (b"zz\r\n{}\r\n", "Transfer-Encoding: chunked"),
    "chunks of less than 0": (b"-5\r\n{}\r\n", "Transfer-Encoding: chunked"),
    "a chunk of 2**80 bytes": (b"1" + b"0" * 20 + b"\r\n{}", "Transfer-Encoding: chunked"),
    "no chunks": (b"", "Transfer-Encoding: chunked"),
    "another charset": (b"{", "Content-Type: application/json; charset=rot13"),
    "a header without a colon": (b"{", "no colon here"),
    "a header with odd bytes": (b"{", "X-Odd: \xff\xfe\x01"),
    "a long header": (b"{", "X-Long: " + "y" * 70000),
    "many headers": (b"{", *[f"X-{number}: y" for number in range(150)]),
    "a cookie": (b"{", "Set-Cookie: a=b; Max-Age=x; Domain=example.org"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRANSFERS)
@pytest.mark.parametrize("name", ["/models", "/completions"])
def test_broken_transfers_are_tried_again(server, name, case):
    content, *headers = TRANSFERS[case]
    assert_retried_and_healed(server, name, saying(http(200, content, *headers)))


@pytest.mark.parametrize("case", TRANSFERS)
def test_broken_transfers_of_refusals_end_well(server, case):
    content, *headers = TRANSFERS[case]
    teacher = checked_teacher(base_of(server))
    server.answer = saying(http(503, content, *headers))
    one_line(lambda: teacher.score(FIRST), server.url)


@pytest.mark.parametrize("pack", ["gzip", "deflate", "identity", "chunked", "chunk by chunk"])
def test_right_answers_may_be_packed(server, pack):
    def answer(connection, path, body):
        content = json.dumps(body_for(path, body)).encode()
        if pack in ("gzip", "deflate", "identity"):
            packed = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[pack](content)
            return connection.sendall(http(200, packed, f"Content-Encoding: {pack}"))
        size = len(content) if pack == "chunked" else 7
        chunks = [content[i : i + size] for i in range(0, len(content), size)]
        packed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
        return connection.sendall(http(200, packed, "Transfer-Encoding: chunked"))

    server.answer = answer
    assert_right(teacher_at(server).score(ROLLOUTS), 2)


# --- manners ---------------------------------------------------------------------------------------------------------


def hang_up(connection: socket.socket, path: str, body: Any) -> None:
    pass


def reset(connection: socket.socket, path: str, body: Any) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


def half(connection: socket.socket, path: str, body: Any) -> None:
    content = http(200, json.dumps(body_for(path, body)))
    connection.sendall(content[: len(content) // 2])


MANNERS: dict[str, Answer] = {
    "hangs up": hang_up,
    "resets": reset,
    "hangs up half-way": half,
    "hangs up in its headers": saying(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "says no status": saying(b"{}"),
    "says an odd status": saying(b"HTTP/1.1 abc\r\n\r\n{}"),
    "says a status of 1": saying(b"HTTP/1.1 1 x\r\n\r\n{}"),
    "speaks HTTP/2": saying(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "speaks SSH": saying(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "says a status line without end": saying(b"HTTP/1.1 200 " + b"x" * 70000),
}


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("name", ["/models", "/detokenize", "/completions"])
def test_odd_manners_are_tried_again(server, name, manner):
    assert_retried_and_healed(server, name, MANNERS[manner])


def slowly(server: RawServer, start: bytes, drop: bytes) -> Answer:
    """Begins well, and goes on in drops, each well within any timeout of a socket, without an end."""

    def answer(connection: socket.socket, path: str, body: Any) -> None:
        connection.sendall(start)
        while not server.over.wait(0.05):
            connection.sendall(drop)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "nothing": (b"", b""),
    "its status": (b"", b"H"),
    "its headers": (HEAD, b"a"),
    "headers": (HEAD, b"a: b\r\n"),
    "spaces": (HEAD + b"\r\n", b" "),
    "a body of a known length": (HEAD + b"Content-Length: 1000000\r\n\r\n", b" "),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "empty lines": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "a refusal": (b"HTTP/1.1 503 Busy\r\n\r\n", b" "),
    "a gzip": (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x")[:10], b"\x00"),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_an_answer_that_drips_has_the_same_deadline(server, drip):
    server.answer = at("/models", slowly(server, *DRIPS[drip]))
    started = time.monotonic()
    line = one_line(lambda: teacher_at(server, timeout=0.2, retries=0).score(ROLLOUTS), server.url)
    assert time.monotonic() - started < 3
    assert "in 1 attempt (" in line


def test_an_answer_without_an_end_is_not_kept_in_memory(server):
    def answer(connection, path, body):
        connection.sendall(HEAD + b"\r\n")
        while True:
            connection.sendall(b" " * 2**20)

    server.answer = at("/models", answer)
    one_line(lambda: teacher_at(server, retries=0, timeout=20).score(ROLLOUTS), "more than 16777216 bytes")


def test_one_refusal_ends_all_requests_at_once():
    """Others may hang, or wait for their next attempt: nobody waits for them."""
    count = itertools.count()

    def answer(connection, path, body):
        number = next(count)
        if number == 0:
            server.over.wait(30)
        elif number == 1:
            connection.sendall(http(503, "", "Retry-After: 50"))
        else:
            connection.sendall(http(400, "no"))

    rollouts = ROLLOUTS.select([0, 1, 0, 1])
    with raw_server(at("/completions", answer)) as server:
        teacher = teacher_at(server, concurrency=4, timeout=60)
        started = time.monotonic()
        one_line(lambda: teacher.score(rollouts), "refuses (status 400: no)")
        assert time.monotonic() - started < 10


# --- Retry-After -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("0.2", 0, 0.15),  # not of the standard's form
        ("1", 0.6, 0.9),  # capped at the timeout
        ("86400", 0.6, 0.9),
        pytest.param(formatdate(time.time() + 3600, usegmt=True), 0.6, 0.9, id="in an hour"),
        pytest.param(formatdate(time.time() - 3600, usegmt=True), 0, 0.15, id="an hour ago"),
        ("0", 0, 0.15),
        ("-5", 0, 0.15),
        ("soon", 0, 0.15),
        ("", 0, 0.15),
        ("NaN", 0, 0.15),
        ("9" * 400, 0.6, 0.9),
        ("²", 0, 0.15),
        ("Wed, 99 Foo 2026 99:99:99 GMT", 0, 0.15),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 0, 0.9),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_a_server_asks_for_is_kept_up_to_a_timeout(server, monkeypatch, status, header, least, most):
    waits = []
    monkeypatch.setattr(http_client, "sleep_using_event", lambda event: waits.append)
    server.answer = at("/completions", saying(http(status, "", f"Retry-After: {header}")), times=1)
    assert_right(teacher_at(server, timeout=0.75).score(ROLLOUTS), 2)
    (wait,) = waits
    assert least <= wait <= most


# --- addresses -------------------------------------------------------------------------------------------------------

BAD_ADDRESSES = [
    "", "x", "node7:8000/v1", "ftp://node7/v1", "http://", "http:///v1", "http:node7", "http://:8000/v1", "https://me:{}@/v1",
    "http://node7:port/v1", "http://node7:99999/v1", "http://node7:-1/v1", "http://node7:0/v1", "http://node7:80:80/v1",
    "http://no de7/v1", "http://node7/v 1", "http://node7/v1\n", "http://node7\t/v1", "http://[::1/v1", "http://::1]/v1", "http://a..b/v1",
    "http://" + "a" * 64 + ".org/v1", "http://.", "http://node7/v1?key={}", "http://node7/v1#{}", "http://node7/v1?", "http://me:{}#@node7/v1",
    "http://me:{}?@node7/v1", "http://me:{}/x@node7/v1", "http://me:8080/{}@node7/v1", "http://me:{} x@node7/v1", "http//me:{}@node7/v1", "me:{}@node7/v1",
    "ftp://me:{}@node7/v1", "http://me:{}@no de7/v1", "http://\u202enode7/v1", "http://node7\\v1", "file:///etc/passwd", "http://\x00",
]  # fmt: skip


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_what_is_no_address_is_refused_without_its_password(address):
    line = one_line(lambda: teacher_at(address.format(PASSWORD)), "`url` in `runtime.endpoints` is ")
    assert line.startswith("config: ")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("htp:/@?#[]%.v1 a\\\n\u202eé0-_~")), max_size=24))
def test_no_text_is_an_address_that_breaks(text):
    for url in (text, "http://" + text, f"http://me:{PASSWORD}@{text}", f"http://me:{PASSWORD}{text}@node7"):
        try:
            client = http_client.JsonClient(
                "the server", {"url": url, "timeout": 1, "retries": 0, "backoff": 1, "concurrency": 1}
            )
        except ConfigError as error:
            line = str(error)
            assert PASSWORD not in line
        else:
            assert PASSWORD not in client.name
            assert re.match("https?://[^@?#]+$", client.url)


SECRET = f"http://me:{PASSWORD}@node7:port/v1"


@pytest.mark.parametrize(
    "endpoints",
    [
        {"teacher": {"url": SECRET, "model": "m"}},
        {"teacher": {"url": SECRET.replace("http", "ftp"), "model": "m"}},
        {"teacher": {"url": [SECRET], "model": "m"}},
        {"teacher": {"url": {SECRET: None, "a": 1}, "model": "m"}},
        {"teacher": {"url": SECRET, "model": "m", "retries": "six"}},
        {"teacher": {"url": SECRET, "model": 5}},
        {"teacher": {"url": SECRET}},
        {"teacher": {"url": SECRET, "model": "m", SECRET: 1}},
        {"teacher": SECRET},
        {SECRET: {"url": "http://node7/v1", "model": "m"}},
        {"nobody": {"url": SECRET, "model": "m"}},
        [SECRET],
        SECRET,
    ],
    ids=str,
)
def test_no_word_about_the_configuration_has_the_password(endpoints):
    with pytest.raises(ConfigError) as caught:
        complete(CONFIG | {"runtime": {"endpoints": endpoints}})
    line = str(caught.value)
    assert line.startswith("config: ")
    assert PASSWORD not in line


@pytest.mark.parametrize("port", ["", ":8000", ":65535"])
@pytest.mark.parametrize("host", ["node7", "127.0.0.1", "[::1]", "[fe80::1%25eth0]", "my_node-7.example.org", "node7."])
def test_right_addresses_are_accepted(host, port):
    for user in ("", f"me:{PASSWORD}@", ":p%40ss%2Fword@"):
        for scheme, path in (("http", "/v1"), ("https", ""), ("http", "/a/b/")):
            assert problem_of(f"{scheme}://{user}{host}{port}{path}") is None


def test_an_address_is_part_of_a_configuration():
    endpoint = {"url": f"https://me:{PASSWORD}@node7/v1", "model": "m"}
    assert complete(CONFIG | {"runtime": {"endpoints": {"teacher": endpoint}}})


def test_user_and_password_are_sent_as_they_are_meant(server):
    url = server.url.replace("//", "//me:p%C3%A4ss%40word@") + "/v1"
    assert_right(teacher_at(url).score(ROLLOUTS), 2)
    assert server.headers.count("Authorization: Basic bWU6cMOkc3NAd29yZA==") == 4
    server.answer = at("/completions", saying(http(401, "Basic bWU6cMOkc3NAd29yZA== of päss@word")))
    line = one_line(lambda: teacher_at(url).score(ROLLOUTS), "Basic *** of ***")
    assert "bWU6" not in line


@pytest.mark.parametrize(
    ("url", "environment", "said"),
    [
        ("http://127.0.0.1:9/v1", {}, "connection refused"),
        ("http://nowhere.invalid:8000/v1", {}, "host name is not known"),
        ("https://{server}/v1", {}, "does not speak TLS"),
        ("http://node7.invalid/v1", {"http_proxy": "http://127.0.0.1:9"}, "the proxy that the environment names does not answer"),
        ("http://node7.invalid/v1", {"http_proxy": "http://:::"}, "the proxy that the environment names"),
        ("http://node7.invalid/v1", {"http_proxy": "http://"}, "the proxy that the environment names"),
        ("http://node7.invalid/v1", {"all_proxy": "socks5://me:{password}@127.0.0.1:9"}, "the proxy that the environment names"),
        ("http://node7.invalid/v1", {"http_proxy": "gopher://127.0.0.1:9"}, "the proxy that the environment names"),
        ("https://{server}/v1", {"REQUESTS_CA_BUNDLE": "/does/not/exist"}, "REQUESTS_CA_BUNDLE"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_reached_is_one_line(server, monkeypatch, url, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(password=PASSWORD))
    address = url.format(server=server.url.removeprefix("http://"))
    one_line(lambda: teacher_at(address).score(ROLLOUTS), said)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of this machine that signs itself, with its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run(request, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_name(f"{path.name}.crt").read_bytes())
    return path


def test_a_server_with_tls_needs_a_certificate_that_is_trusted_and_keeps_the_deadline(certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with raw_server(healthy, context) as server:
        one_line(
            lambda: teacher_at(server).score(ROLLOUTS), "a certificate that cannot be verified", "REQUESTS_CA_BUNDLE"
        )
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert_right(teacher_at(server).score(ROLLOUTS), 2)
        server.answer = slowly(server, HEAD, b"a")
        started = time.monotonic()
        one_line(lambda: teacher_at(server, timeout=0.3, retries=0).score(ROLLOUTS), "took too long")
        assert time.monotonic() - started < 3
        one_line(lambda: teacher_at(server.url.replace("https", "http"), retries=0).score(ROLLOUTS), server.url[5:])


def test_a_server_is_asked_through_a_proxy_whose_answers_have_the_same_deadline(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    assert_right(teacher_at("http://node7.invalid:8000/v1").score(ROLLOUTS), 2)
    assert server.paths[0] == "http://node7.invalid:8000/v1/models"
    server.answer = slowly(server, HEAD, b"a")
    started = time.monotonic()
    one_line(
        lambda: teacher_at("http://node7.invalid:8000/v1", timeout=0.2, retries=0).score(ROLLOUTS),
        "took too long",
    )
    assert time.monotonic() - started < 3
