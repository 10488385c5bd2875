"""The explorer in a real browser."""

import re
import socket
import threading

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from reconv.explorer.app import app
from reconv.explorer.kinds import CONTROLS, KINDS
from reconv.explorer.state import read

PAGES = {
    "a wrong value": "kind=grouped&ic=5&g=2", "two kinds": "kind=standard&compare=1&b.kind=separable",
    "numbers": "ic=2&oc=2&numbers=1", "rotated": "kind=deformable&offsets=rotate",
    **{kind: f"kind={kind}" for kind in KINDS}, "3D": "dims=3", "1D": "dims=1",
}  # fmt: skip


@pytest.fixture(scope="module")
def address():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app(), log_level="error"))
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        serving.join()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser):
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        opened = context.new_page()
        said: list[str] = []
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        yield opened
        assert not said


def fill(page: Page, name: str, value: object) -> None:
    """Types a value, and waits for what it changes."""
    with page.expect_response(lambda answer: "/panel" in answer.url):
        page.locator(f'[name="{name}"]').fill(str(value))
    expect(page.locator(".panel.busy")).to_have_count(0)


def shown(page: Page) -> list[int]:
    """The frames that are seen, over all marks of the first picture."""
    script = """svg => [...svg.querySelectorAll('.made-text.f')]
        .filter(mark => getComputedStyle(mark).visibility === 'visible')
        .map(mark => Number(mark.getAttribute('class').match(/ f(\\d+)/)[1]))"""
    return page.locator("svg.reconv").first.evaluate(script)


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_of_every_kind_changes_what_is_shown(page, address, kind):
    page.goto(f"{address}?kind={kind}")
    state = read({"kind": kind})
    for name in state.names:
        value = state.values[name]
        wanted = value + 1 if value < CONTROLS[name].limit(2) else value - 1
        fill(page, name, wanted)
        assert f"{name}={wanted}" in page.url
        expect(page.locator(f'[name="{name}"]')).to_be_focused()
        asked = read(dict(part.split("=") for part in page.url.split("?")[1].split("&")))
        if asked.wrong:
            expect(page.locator(".wrong[role=alert]").first).to_be_visible()
        else:
            expect(page.locator(".facts")).to_contain_text(str(asked.block()))
        fill(page, name, value)
        expect(page.locator("svg.reconv")).to_have_count(1)
    with page.expect_response(lambda answer: "/panel" in answer.url):
        page.get_by_label("3D").check()
    expect(page.locator(".facts")).to_contain_text(str(read({"kind": kind, "dims": "3"}).block()))


def test_a_kind_is_chosen_and_begins_with_what_shows_it_well(page, address):
    page.goto(f"{address}?ic=9&k=5&p=2")
    with page.expect_response(lambda answer: "/panel" in answer.url):
        page.locator("[name=kind]").select_option("transposed")
    expect(page.get_by_role("heading", level=2)).to_have_text("Transposed")
    expect(page.locator(".facts")).to_contain_text(str(read({"kind": "transposed"}).block()))
    assert "kind=transposed" in page.url


def test_the_slider_moves_the_animation(page, address):
    page.goto(address)
    page.locator(".time").fill("5")
    assert shown(page) == [5]
    page.locator(".time").press("ArrowRight")
    assert shown(page) == [6]
    expect(page.locator(".time")).to_have_attribute("aria-valuetext", re.compile(r"^y\[0, 0, 6\]"))
    expect(page.locator(".play")).to_have_text("play")


def test_the_animation_plays_and_stops(page, address):
    page.goto(address)
    page.locator(".speed").select_option("4")
    expect(page.locator(".time")).not_to_have_value("0")
    page.locator(".play").click()
    expect(page.locator(".play")).to_have_attribute("aria-pressed", "false")
    held = page.locator(".time").input_value()
    page.locator(".speed").select_option("1")  # whatever time passes here
    assert page.locator(".time").input_value() == held
    page.locator(".play").click()
    expect(page.locator(".time")).not_to_have_value(held)


def test_who_wants_no_movement_sees_none(browser, address):
    with browser.new_context(reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(address)
        expect(page.locator(".play")).to_have_text("play")
        assert shown(page) == [0]


def test_code_is_copied(page, address):
    page.goto(f"{address}?kind=separable")
    for library in ("reconv", "PyTorch", "TensorFlow (Keras)"):
        part = page.locator("details", has=page.locator("summary", has_text=library))
        if part.get_attribute("open") is None:
            part.locator("summary").click()
        part.get_by_role("button").click()
        expect(part.get_by_role("button")).to_have_text("copied")
        assert page.evaluate("navigator.clipboard.readText()") == part.locator("code").text_content()


def test_two_kinds_side_by_side(page, address):
    page.goto(address)
    page.get_by_label("compare two kinds").check()
    expect(page.locator(".panel")).to_have_count(2)
    fill(page, "b.k", 5)
    assert "b.k=5" in page.url
    assert "&k=3" in page.url
    lefts = [box["x"] for box in (page.locator(".panel").nth(i).bounding_box() for i in (0, 1)) if box]
    assert lefts[1] > lefts[0] + 300
    again = page.url
    page.goto("about:blank")
    page.goto(again)
    expect(page.locator("[name='b.k']")).to_have_value("5")
    page.get_by_label("compare two kinds").uncheck()
    expect(page.locator(".panel")).to_have_count(1)


def test_a_term_of_the_formula_points_at_what_it_means(page, address):
    page.goto(address)
    kernel = page.locator(".kernel path.weight").first
    before = kernel.evaluate("e => getComputedStyle(e).stroke")
    page.locator("tspan.t-weight").first.hover()
    assert kernel.evaluate("e => getComputedStyle(e).stroke") != before


def test_the_layer_is_measured(page, address):
    page.goto(f"{address}?kind=depthwise&ic=8")
    page.get_by_role("button", name="measure it here").click()
    expect(page.locator(".latency")).to_contain_text(re.compile(r"[\d.]+ ms ± .*computed by: \w+"))


def test_with_the_keyboard_alone(page, address):
    page.goto(address)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.name || e.className || e.tagName)(document.activeElement)"))
    for what in ("compare", "kind", "dims", "ic", "k", "n", "numbers", "picture", "play", "time", "speed", "measure",
                 "SUMMARY", "PRE", "copy"):  # fmt: skip
        assert what in reached
    page.locator("[name=k]").focus()
    with page.expect_response(lambda answer: "/panel" in answer.url):
        page.keyboard.press("ArrowUp")
    expect(page.locator(".facts")).to_contain_text("ic4oc6k4x4p1")


@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_screen_has_no_sideways_scroll(browser, address, name):
    with browser.new_context(viewport={"width": 360, "height": 740}) as context:
        page = context.new_page()
        page.goto(f"{address}?{PAGES[name]}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_anyone_out(browser, address, name, scheme):
    with browser.new_context(color_scheme=scheme, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(f"{address}?{PAGES[name]}")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_without_scripts_it_is_a_form(browser, address):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{address}?kind=dilated")
        page.locator("[name=d]").fill("3")
        page.locator(".controls").get_by_role("button", name="show").click()
        expect(page.locator(".facts")).to_contain_text("d3")


def test_a_refusal_is_said(browser, address):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        page.route("**/panel?*", lambda route: route.fulfill(status=414, body="too long"))
        page.locator("[name=k]").fill("5")
        expect(page.locator(".shown [role=alert]")).to_have_text("No answer: too long")
        page.unroute_all()
        fill(page, "k", 7)
        expect(page.locator(".facts")).to_contain_text("k7x7")
