"""The explorer's server as other pages and hostile clients meet it: bytes on a socket in, refusals out."""

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from urllib.parse import quote

import pytest
import uvicorn

from reconv.explorer.app import HEADERS, LONGEST_HEAD, LONGEST_QUERY, Given, app, server

SECRETS = ("LONGEST_QUERY", "root:", "import ", "SECRET")
GIVEN = (Given("<b>one", "<p>one</p>"),)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server that lives as long as this module's tests: after each attack it must still answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = server(app(GIVEN))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        serving.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def exchange(port: int, raw: bytes) -> bytes:
    """What the server says to these bytes, until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        with suppress(ConnectionError):  # it may hang up in the middle of what is too long
            one.sendall(raw)
            if not raw:
                one.shutdown(socket.SHUT_WR)
        got = b""
        with suppress(ConnectionError):
            while part := one.recv(2**16):
                got += part
        return got


def request(
    path: str = "/", method: str = "GET", host: str = "127.0.0.1:{port}", more: str = "", body: bytes = b""
) -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"
    return lines.encode("latin-1") + body


def ask(port: int, raw: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of one answer; status 0 where the connection was closed without one."""
    got = exchange(port, raw.replace(b"{port}", str(port).encode()))
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    found = re.match(r"HTTP/1\.1 (\d+)", lines[0])
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return int(found[1]) if found else 0, headers, body.decode("utf-8", "replace")


HOSTS = ("evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:{port}",
         "0.0.0.0:{port}", "169.254.169.254", "[::1]:{port}", "localhost@evil.example", "evil.example#127.0.0.1",
         "127.1", "2130706433", "", "evil.example:80:127.0.0.1")  # fmt: skip
ORIGINS = ("http://evil.example", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "null", "http://localhost:{port}",
           "", "http://127.0.0.1:{port}.evil.example", "http://127.0.0.1:{port}/", "file://")  # fmt: skip
METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GETX")
PATHS = (
    "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/%2e%2e%2fapp.py", "/static/",
    "/static//etc/passwd", "/static/..%5c..%5capp.py", "/static/%252e%252e/app.py", "/static/....//app.py", "/static",
    "/static/%00", "/static/explore.css%00", "/static/explore.css/../../app.py", "//etc/passwd", "/../../etc/passwd",
    "/given/../../app.py", "/given/1", "/given/-1", "/given/%30%00", "/given/9999999999999999999999", "/given/0x0",
    "/given/", "/app.py", "/templates/page.html", "/static/%ff%fe", "/%00", "/latency/x",
)  # fmt: skip
QUERIES = ("k=%00", "k=%ff", "k=%E2%80%AE3", "k=3&k=99", "kind=__class__", "kind=%3Cscript%3E", "panel=a.", "panel=%00",
           "k=1e9", "k=٣", "k=0x3", "dims=-1", "b.k=%0d%0aSet-Cookie:x=1", "%", "&&==&", "k=" + "9" * 1900, "k[]=3",
           "offsets=%7B%7B7*7%7D%7D")  # fmt: skip


def alive(port: int) -> None:
    status, _, html = ask(port, request("/panel"))
    assert status == 200
    assert "<svg" in html


@pytest.mark.parametrize("path", ["/", "/panel", "/latency", "/given/0", "/static/explore.js", "/nowhere"])
@pytest.mark.parametrize("host", HOSTS)
def test_another_host_is_not_this_machine(port, path, host):
    """A name that was rebound to 127.0.0.1 sends its own name."""
    status, headers, body = ask(port, request(path, host=host))
    assert status == 400
    assert "<svg" not in body
    assert headers["content-security-policy"] == HEADERS[b"content-security-policy"].decode()


@pytest.mark.parametrize("origin", ORIGINS)
def test_another_origin_gets_nothing(port, origin):
    status, headers, body = ask(port, request("/panel", more=f"Origin: {origin}\r\n"))
    assert status == 403
    assert "<svg" not in body
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_can_be_changed(port, method):
    for path in ("/", "/panel", "/latency", "/static/explore.js", "/given/0"):
        status, _, body = ask(port, request(path, method, more="Content-Length: 3\r\n", body=b"a=b"))
        assert status in (400, 405), path
        assert "<svg" not in body
    alive(port)


def test_a_head_has_no_body(port):
    for path in ("/", "/panel", "/static/explore.js"):
        status, headers, body = ask(port, request(path, "HEAD"))
        assert (status, body) == (200, "")
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(port, path):
    status, headers, body = ask(port, request(path))
    assert status in (307, 400, 404), body
    assert not any(secret in body for secret in SECRETS)
    if status == 404:
        assert headers["content-security-policy"]


@pytest.mark.parametrize("query", QUERIES)
def test_no_query_breaks_the_page(port, query):
    for path in ("/", "/panel"):
        status, headers, html = ask(port, request(f"{path}?{quote(query, safe='%&=[].*')}"))
        assert status in (200, 400)
        assert "set-cookie" not in headers
        assert "<script>" not in html.lower()
        assert "49" not in re.findall(r'role="alert">([^<]*)', html)
        for name, value in HEADERS.items():
            assert headers[name.decode()] == value.decode().lower() or headers[name.decode()] == value.decode()


MIB = 2**20
CHUNKED = "Transfer-Encoding: chunked\r\n"
SOCKET = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
MANY = "".join(f"X-{n}: a\r\n" for n in range(LONGEST_HEAD))
ODD = {  # name: (bytes, the statuses that may come back; 0: hung up)
    "a large body": (request(more=f"Content-Length: {8 * MIB}\r\n", body=b"x" * (8 * MIB)), {0, 200}),
    "a body that never comes": (request(more=f"Content-Length: {2**62}\r\n"), {200}),
    "a negative length": (request(more="Content-Length: -1\r\n"), {400}),
    "two lengths": (request(more="Content-Length: 1\r\nContent-Length: 2\r\n", body=b"xx"), {400}),
    "chunks without end": (request(more=CHUNKED, body=b"5\r\nhello\r\n"), {200}),
    "chunks that lie": (request(more=CHUNKED, body=b"zz\r\nhello\r\n"), {0, 200, 400}),
    "a chunk of all memory": (request(more=CHUNKED, body=b"f" * 15 + b"\r\n"), {200, 400}),
    "smuggled": (request(more="Content-Length: 4\r\n" + CHUNKED, body=b"0\r\n\r\nGET /x"), {0, 200, 400}),
    "a long query": (request("/?k=" + "3" * (LONGEST_QUERY + 1)), {414}),
    "a path of a mebibyte": (request("/" + "a" * MIB), {0, 400, 431}),
    "a header of a mebibyte": (request(more=f"X-A: {'a' * MIB}\r\n"), {0, 400, 431}),
    "headers beyond the bound": (request(more=MANY), {0, 400, 431}),
    "two hosts": (request(more="Host: evil.example\r\n"), {400}),
    "no host": (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", {400}),
    "HTTP 1.0 without a host": (b"GET / HTTP/1.0\r\n\r\n", {400}),
    "an absolute address": (request("http://evil.example/panel"), {400, 404}),
    "a zero in a header": (request(more="X-A: a\0b\r\n"), {400}),
    "a bare line feed": (b"GET / HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n", {200, 400}),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n" + bytes(300), {400}),
    "nothing": (b"", {0}),
    "an upgrade": (request(more=SOCKET), {200, 400, 403, 426}),
    "a switch to HTTP 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_odd_bytes_are_answered_or_hung_up_on(port, name):
    raw, statuses = ODD[name]
    status, _, body = ask(port, raw)
    assert status in statuses, body[:200]
    assert "HTTP/1.1 200" not in body  # a second answer, to what was hidden in the first
    alive(port)


def test_who_says_nothing_more_keeps_nobody_waiting(port):
    """Two hundred that open, or say half a request, and then wait: the next one is served."""
    halves = (b"", b"G", b"GET / HT", request()[:-2], request(more="Content-Length: 9\r\n", body=b"a"))
    waiting = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(200)]
    try:
        for number, one in enumerate(waiting):
            one.sendall(halves[number % len(halves)])
        with ThreadPoolExecutor(8) as pool:
            assert {status for status, _, _ in pool.map(lambda _: ask(port, request("/panel")), range(16))} == {200}
    finally:
        for one in waiting:
            with closing(one):
                pass


def test_measuring_keeps_no_drawing_waiting(port):
    """One measures, the others are told so, or draw."""
    heavy = request("/latency?ic=256&oc=256&n=64")
    with ThreadPoolExecutor(6) as pool:
        measuring = [pool.submit(ask, port, heavy) for _ in range(3)]
        assert ask(port, request("/panel"))[0] == 200
        assert {each.result()[0] for each in measuring} <= {200, 503}


def test_only_this_machine_is_listened_to():
    config = server(app()).config
    assert isinstance(config, uvicorn.Config)
    assert config.host == "127.0.0.1"
    assert config.proxy_headers is False
    assert config.server_header is False
