"""What reconv stands on is pinned, hashed and told."""

import runpy
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINS = runpy.run_path(str(ROOT / "requirements" / "pins.py"))


def name_of(pin: str) -> str:
    name, _, version = pin.partition("==")
    return f"{canonicalize_name(name)}=={version}"


def test_every_pin_has_its_hashes():
    """But torch's: machines have different builds of one version."""
    hashed = {
        name_of(pin): count for file in ("package.txt", "ready.txt") for pin, count in PINS["hashed"](file).items()
    }
    assert all(hashed.values())
    assert hashed.keys() == {name_of(pin) for pin in PINS["pins"]() if not pin.startswith("torch==")}


def test_what_the_package_needs_is_installed_first():
    """`pip install --no-deps` adds nothing by itself."""
    for file, pins in PINS["parts"]().items():
        assert {name_of(pin) for pin in pins} == {name_of(pin) for pin in PINS["hashed"](file)}, file
    package = {name_of(pin).partition("==")[0] for pin in PINS["hashed"]("package.txt")}
    needed = {name for name, kinds in PINS["asked"]().items() if "always" in kinds}
    assert needed - package == {"torch"}
    ready = {name_of(pin).partition("==")[0] for pin in PINS["hashed"]("ready.txt")}
    assert set(PINS["asked"]()) - package - ready == {"torch"}


def test_no_file_of_them_names_where_it_comes_from():
    for file in (ROOT / "requirements").rglob("*.txt"):
        text = file.read_text(encoding="utf-8")
        assert "://" not in text, file
        assert "index-url" not in text, file


def test_the_bill_is_of_what_pyproject_names():
    """Made anew by `python requirements/pins.py`."""
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert page == PINS["page"]()
    for name in PINS["asked"]():
        assert f"| {name} |" in page, name


def test_no_licence_asks_for_the_source_of_what_uses_it():
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    for strong in ("gpl", "sspl", "commons clause", "noncommercial"):
        assert strong not in page
