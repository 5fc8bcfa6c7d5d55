"""The page in a real browser: nothing fetched, nothing cut off, at a desk and on a phone, light and dark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import story
from planted import plant

from trainwarden import model as m
from trainwarden.descent import Frozen
from trainwarden.lineage import trace
from trainwarden.report.html import render_html

CHROMIUM = "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f"no browser at {CHROMIUM}")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "diverged": plant(folder / "a", story.PLOT._replace(recovered="20261123-131502-m1qa")),
        "matched": plant(folder / "b", story.PLOT._replace(killed_at=0)),
        "unaudited": plant(folder / "c", story.PLOT._replace(audited=False)),
    }
    texts = {name: render_html(p.case(), p.store) for name, p in made.items()}
    frozen = [
        Frozen(run=made["diverged"].run.id, index=9, reason="held while the divergence is looked into", by="security"),
        Frozen(run="20261101-080000-aaaa", index=4, reason="r" * 300, by="<b>platform</b>"),
    ]
    texts["frozen"] = render_html(made["diverged"].case(), made["diverged"].store, frozen)
    case, long = made["diverged"].case(), "a" * 400 + "<script>document.title='owned'</script>"
    log = [msgspec.structs.replace(e, seen=long) if isinstance(e, m.Finding) else e for e in case.entries]
    log = [msgspec.structs.replace(e, path="/" + long) if isinstance(e, m.FileChanged) else e for e in log]
    texts["hostile"] = render_html(msgspec.structs.replace(case, entries=tuple(log), history=trace(log)))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("name", ["diverged", "matched", "unaudited", "frozen", "hostile"])
def test_page_fits_asks_for_nothing_and_follows_the_theme(name: str, pages: dict[str, Path], browser: Any) -> None:
    backgrounds = set()
    for width, theme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=theme)
        page = context.new_page()
        asked: list[str] = []
        troubles: list[str] = []
        page.on("request", lambda r, asked=asked: asked.append(r.url))
        page.on("console", lambda c, troubles=troubles: troubles.append(c.text))
        page.goto(pages[name].as_uri())
        assert asked == [pages[name].as_uri()]
        assert not troubles
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.title() != "owned"
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        outside = page.evaluate(
            """w => [...document.querySelectorAll('main *:not(pre *):not(svg *)')]
               .filter(e => e.getBoundingClientRect().right > w + 1).length""",
            width,
        )
        assert outside == 0
        context.close()
    assert len(backgrounds) == 2


def test_alerts_and_freezes_are_seen_at_a_desk_and_on_a_phone(pages: dict[str, Path], browser: Any) -> None:
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(pages["frozen"].as_uri())
        own, parent = page.locator(".frozen").all()
        assert own.inner_text() == (
            "FROZEN, not to be promoted: this run was frozen by security: held while the divergence is looked into"
        )
        assert own.bounding_box()["y"] < 800, "above the fold"
        assert "which this one comes from, was frozen by <b>platform</b>" in parent.inner_text()
        rows = page.locator(".alerts tbody tr")
        assert rows.count() > 0
        assert "a1" in rows.first.inner_text()
        assert rows.first.is_visible()
        assert page.evaluate(_CONTRAST) == []
        page.goto(pages["matched"].as_uri())
        assert page.locator(".frozen").count() == 0
        page.close()


def test_verdict_is_above_the_fold_and_text_has_contrast(pages: dict[str, Path], browser: Any) -> None:
    for width, height in ((1280, 800), (390, 844)):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(pages["diverged"].as_uri())
        box = page.locator("#verdict").bounding_box()
        assert box["y"] + box["height"] < height / 2
        page.close()
    for theme in ("light", "dark"):
        context = browser.new_context(color_scheme=theme)
        page = context.new_page()
        page.goto(pages["diverged"].as_uri())
        low = page.evaluate(_CONTRAST)
        assert not low, low
        context.close()


_CONTRAST = """() => {
  const rgb = s => s.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  } return [255, 255, 255]; };
  const low = new Set();
  for (const e of document.querySelectorAll('body *:not(svg *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.getClientRects().length) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5 && !e.matches('.swatch')) low.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return [...low];
}"""


def test_page_prints_on_white(pages: dict[str, Path], browser: Any) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(pages["diverged"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
    context.close()
