"""The explorer without a browser: links in, pages out, code that runs."""

import ast
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen
from xml.etree import ElementTree

import pytest
import torch
from states import any_query

import reconv
from reconv.explorer.app import HEADERS, LONGEST_QUERY, Given, app
from reconv.explorer.code import codes
from reconv.explorer.kinds import CONTROLS, KINDS
from reconv.explorer.state import read
from reconv.spec import describe, output_shape

each_kind = pytest.mark.parametrize("kind", KINDS)
each_dims = pytest.mark.parametrize("dims", [1, 2, 3])


def get(path: str, query: str = "", given: tuple[Given, ...] = (), **headers: str) -> tuple[int, dict[str, str], str]:
    """One request to the page, without a server."""
    sent: list[dict] = []
    named = {"host": "127.0.0.1:1234", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1234),
    }  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(given)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(part.get("body", b"") for part in sent[1:]).decode()


def svg_of(html: str) -> str:
    return html[html.index("<svg") : html.index("</svg>") + 6]


# -- states ---------------------------------------------------------------------------------------------------
@each_kind
@each_dims
def test_every_kind_begins_with_a_picture(kind, dims):
    status, _, html = get("/", f"kind={kind}&dims={dims}")
    assert status == 200
    ElementTree.fromstring(svg_of(html))
    state = read({"kind": kind, "dims": str(dims)})
    told = describe(state.block(), (1, *state.shape))
    assert f"<dd>{told.params:,}</dd>" in html
    assert f"<dd>{told.macs:,}</dd>" in html
    for name in state.names:
        assert f'name="{name}"' in html


@each_kind
def test_a_link_holds_the_state(kind):
    state = read({"kind": kind, "ic": "6", "oc": "6", "k": "5", "numbers": "1"})
    again = read(dict(pair.split("=") for pair in state.query().split("&")))
    assert (again.block(), again.size, again.numbers) == (state.block(), state.size, state.numbers)


def test_every_control_has_a_kind():
    assert {name for kind in KINDS.values() for name in kind.controls} | {"n"} == set(CONTROLS)


# query: (the control that gets the message, the message)
WRONG = {
    "k=0": ("k", "whole number from 1 to 31"),
    "k=99999999999": ("k", "whole number from 1 to 31"),
    "k=-3": ("k", "whole number"),
    "k=%C2%B2": ("k", "whole number"),
    "k=<b>": ("k", "whole number"),
    "dims=3&n=100": ("n", "whole number from 1 to 32"),
    "kind=grouped&ic=5&g=2": ("g", "in_channels must be divisible by groups"),
    "kind=standard&k=9&n=3&p=0": ("n", "padded input must be at least"),
    "kind=stacked&k=3": ("k", "kernel_size larger along some axis"),
    "kind=transposed&op=4": ("op", "output_padding must be smaller"),
    "kind=nothing": ("kind", "kind must be one of standard"),
    "dims=4": ("dims", "dims must be one of 1, 2, 3"),
    "kind=deformable&offsets=shear": ("offsets", "offsets must be one of none, scale"),
    "kind=deformable&dims=1&offsets=rotate": ("offsets", "cannot be rotated"),
    "kind=squeeze_excite&numbers=1": ("numbers", "a worked example takes"),
    "ic=200&oc=200&numbers=1": ("numbers", "at most"),
}


@pytest.mark.parametrize("query", WRONG)
def test_what_is_wrong_is_said_beside_its_control(query):
    control, message = WRONG[query]
    status, _, html = get("/panel", query)
    assert status == 200
    alert = html.index('role="alert"')
    assert message in html[alert : html.index("</p>", alert)]
    assert f'name="{control}"' in html[:alert]
    assert re.findall(r'name="(\w+)"', html[:alert])[-1] == control
    assert "<b>" not in html


# -- code to copy ---------------------------------------------------------------------------------------------
CODES = [(kind, dims, more) for kind in KINDS for dims in (1, 2, 3)
         for more in ("", "s=2&ic=6&oc=6&p=2", "d=2&s=2&k=5&p=4&op=1&ic=6&oc=6&n=9", "k=4")]  # fmt: skip


def state_of(kind: str, dims: int, more: str):
    state = read({"kind": kind, "dims": str(dims), **dict(p.split("=") for p in more.split("&") if p)})
    assert not state.wrong
    return state


@pytest.mark.parametrize("kind, dims, more", CODES)
def test_code_of_reconv_and_pytorch_gives_the_shape_and_the_weights(kind, dims, more):
    state = state_of(kind, dims, more)
    wanted = output_shape(state.block(), (1, *state.shape))
    found = codes(state)
    names: dict = {}
    exec(found["reconv"], names)
    assert tuple(names["y"].shape) == wanted
    ast.parse(found["PyTorch"])
    names = {}
    exec(found["PyTorch"].replace("from torchvision.ops", "from reconv.functional"), names)
    with torch.no_grad():
        assert tuple(names["layer"](torch.rand(1, *state.shape)).shape) == wanted
    layers = [layer for name, layer in names.items() if isinstance(layer, torch.nn.Module)]
    assert (
        sum(p.numel() for layer in layers for p in layer.parameters())
        == describe(state.block(), (1, *state.shape)).params
    )


KERAS = """
import json, sys
import keras
for program, shape in json.load(sys.stdin):
    names = {}
    exec(program, names)
    y = names["layer"](keras.ops.zeros((1, *shape)))
    layers = [v for v in names.values() if hasattr(v, "count_params")]
    print(json.dumps([list(y.shape), sum(v.count_params() for v in layers)]))
"""


def test_code_of_keras_gives_the_shape_and_the_weights():
    states = [state_of(*case) for case in CODES if case[0] != "deformable"]
    states = [s for s in states if (s.kind.name, s.values["d"], s.values["s"]) != ("transposed", 2, 2)]
    programs = [(codes(s)["TensorFlow (Keras)"], [*s.size, s.values["ic"]]) for s in states]
    done = subprocess.run([sys.executable, "-c", KERAS], input=json.dumps(programs), capture_output=True, text=True,
                          env={**os.environ, "KERAS_BACKEND": "torch"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for state, line in zip(states, done.stdout.splitlines(), strict=True):
        shape, weights = json.loads(line)
        batch, channels, *size = output_shape(state.block(), (1, *state.shape))
        assert shape == [batch, *size, channels], state
        assert weights == describe(state.block(), (1, *state.shape)).params


def test_what_keras_has_not_is_said():
    assert "NotImplementedError" in codes(state_of("deformable", 2, ""))["TensorFlow (Keras)"]
    assert "NotImplementedError" in codes(state_of("transposed", 2, "d=2&s=2"))["TensorFlow (Keras)"]


# -- the server -----------------------------------------------------------------------------------------------
REFUSED = {
    "another host": ({"host": "evil.example"}, "", 400),
    "rebound host": ({"host": "evil.example:1234"}, "", 400),
    "another origin": ({"origin": "http://evil.example"}, "", 403),
    "another port's origin": ({"origin": "http://127.0.0.1:9"}, "", 403),
    "null origin": ({"origin": "null"}, "", 403),
    "fetched by another page": ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, "", 403),
    "too long": ({}, "k=" + "3" * LONGEST_QUERY, 414),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("path", ["/", "/panel", "/latency"])
def test_who_has_no_business_here_is_refused(name, path):
    headers, query, status = REFUSED[name]
    found, _, text = get(path, query, **headers)
    assert found == status
    assert "<svg" not in text


def test_the_page_may_ask_itself():
    assert get("/panel", origin="http://127.0.0.1:1234")[0] == 200
    assert get("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200  # a link to it


def test_pages_let_nothing_from_elsewhere_in():
    status, headers, html = get("/")
    assert status == 200
    for name, value in HEADERS.items():
        assert headers[name.decode()] == value.decode()
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "<script>" not in html
    assert " onclick" not in html


def test_what_is_given_has_pages_of_its_own():
    given = (Given("runs/a <b>", "<p>one</p>"),)
    assert "runs/a &lt;b&gt;" in get("/", given=given)[2]
    assert get("/given/0", given=given)[2] == "<p>one</p>"
    assert get("/given/1", given=given)[0] == 404


def test_latency_is_measured_here():
    status, _, text = get("/latency", "kind=separable&ic=16&oc=16&n=16")
    assert status == 200
    told = json.loads(text)
    threads = sorted({1, torch.get_num_threads()})
    for each, n in zip(told["latency"].split(", "), threads, strict=True):
        assert re.fullmatch(rf"[\d.e-]+ ms ± [\d.e-]+ with {n} thread{'s' * (n > 1)}", each)
    assert len(told["kernel"].split(", ")) == 2
    for heavy, of_what in (("ic=512&oc=512&k=31&p=15&n=200", "accumulates"), ("ic=512&oc=512&k=31&p=15&n=1", "MiB"),
                           ("kind=transposed&ic=1&oc=512&k=1&p=0&s=8&n=224", "MiB")):  # fmt: skip
        told = json.loads(get("/latency", heavy)[2])["latency"]
        assert "more than" in told
        assert of_what in told
    assert get("/latency", "k=0")[0] == 422


def test_fifty_clients_at_once():
    def client(seed: int) -> list[int]:
        chance = random.Random(seed)
        return [get(chance.choice(["/", "/panel"]), any_query(chance))[0] for _ in range(4)]

    with ThreadPoolExecutor(50) as pool:
        statuses = [status for found in pool.map(client, range(50)) for status in found]
        assert set(statuses) == {200}
        tracemalloc.start()
        list(pool.map(client, range(20)))
        before = tracemalloc.get_traced_memory()[0]
        list(pool.map(client, range(20)))
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert after - before < 20_000_000


# -- the command ----------------------------------------------------------------------------------------------
NET = (
    "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))\n"
)


def test_the_command_serves_a_network_until_it_is_stopped(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    command = [sys.executable, "-m", "reconv", "explore", f"{tmp_path / 'net.py'}:net", "--input", "1x3x9x9"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stderr is not None
        told = serving.stderr.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+/", told)
        assert address is not None, told
        with urlopen(address[0] + "given/0", timeout=60) as answer:
            html = answer.read().decode()
        serving.send_signal(signal.SIGINT)
        serving.wait(60)
    assert "ic3oc4k3x3" in html
    assert "<svg" in html


@pytest.mark.parametrize("broken", ["plan.json", "summary.json", "config.json"])
def test_a_broken_run_folder_names_the_file(tmp_path, broken):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    reconv.rewrite(model, torch.rand(1, 3, 8, 8), rules="exact", epochs=0, out=tmp_path / "run")
    (tmp_path / "run" / broken).write_text("{")
    command = [sys.executable, "-m", "reconv", "explore", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert broken in done.stderr
