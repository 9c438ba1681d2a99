"""The report: what it holds, and that it works in a real browser, from a file, without a network."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_renderings import CAT, SAM, put
from test_spec import SPEC

from bench import ROOT
from bench.grid.store import ResultStore
from bench.report import main
from bench.reporting.comparable import CellQuery, comparable_cells
from bench.reporting.formats import render
from bench.reporting.report import Image, inlined
from bench.reporting.tables import tables

pytestmark = pytest.mark.xdist_group("report")  # one worker makes what its tests share

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--window-size=1280,900")


def fill(store: ResultStore) -> None:
    specs = [put(store, 60.0 + 10 * i, method=method, seed=seed) for i, method in enumerate((SAM, CAT)) for seed in (0, 1)]
    specs.append(put(store, 65.0, method=CAT, dataset="sbu"))
    failed = replace(SPEC, seed=5)
    store.fail(failed, "The loss became nan at step 3 <script>alert(1)</script>.")
    store.write_grid([*specs, failed])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small store with a failure, and a damaged record."""
    store = ResultStore(tmp_path_factory.mktemp("report") / "results")
    fill(store)
    (store.folder(put(store, 1.0, seed=9)) / "record.json").write_text("{")
    assert main(["--out", str(store.root)]) == 0
    return store.root / "report" / "index.html"


def test_the_page_holds_everything(page: Path) -> None:
    text = page.read_text()
    assert len(text) < 5_000_000
    for section in ("Summary", "Tables", "Cells", "Figures", "Failures and gaps", "Provenance", "How to make this again"):
        assert f">{section}</h2>" in text
    assert "Left out: runs/whu/" in text and "record.json: its content is not that of a record" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "<script>alert" not in text
    assert "python -m bench.report --out results" in text
    again = text.split(">How to make this again</h2>")[1]
    how = "--backbone vit_l --protocol paper --shots 1 --draws 0 --seeds"
    assert f"--methods cat_sam_t,sam --datasets whu {how} 0,1<" in again and f"--methods cat_sam_t --datasets sbu {how} 3407\n" in again
    assert "Which code the cells were run by is not known." in again
    pictures = re.findall(r'src="(data:image[^"]+)"', text)
    assert len(pictures) == len(set(pictures))
    assert text.count("data:image/svg+xml;base64,") >= 5
    assert "http://" not in text and "https://" not in text


READS = """
import collections, sys
opened = collections.Counter()
sys.addaudithook(lambda event, of: opened.update([str(of[0])]) if event == "open" else None)
from bench.report import main
main(["--out", sys.argv[1]])
found = {path: count for path, count in opened.items() if path.endswith(("/record.json", "/images.csv"))}
print(len(found), max(found.values()))
"""


def test_a_cells_files_are_read_once(page: Path) -> None:
    """Five records with their rows by image, and a damaged record."""
    done = subprocess.run([sys.executable, "-c", READS, str(page.parent.parent)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "11 1"


def test_the_same_cells_give_the_same_page(page: Path) -> None:
    first = page.read_bytes()
    assert main(["--out", str(page.parent.parent)]) == 0
    assert page.read_bytes() == first


def test_cells_of_other_code_or_hardware_in_one_table_are_warned_of(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for seed, device in ((0, "one GPU"), (1, "another GPU")):
        folder = store.folder(put(store, 60.0, seed=seed))
        content = json.loads((folder / "record.json").read_text())
        content["provenance"] = {"device_name": device, "git": {"commit": "c" * 40, "dirty": False}}
        (folder / "record.json").write_text(json.dumps(content))
    (comparable,) = comparable_cells(store, CellQuery())
    (warning,) = comparable.mixed
    assert warning.endswith("differ in device: another GPU, one GPU.")
    for kind in ("plain", "paper", "efficiency", "shots"):
        assert all(warning in table.notes for table in tables(store, CellQuery(), kind))


def test_pictures_beyond_the_limit_are_named() -> None:
    images = [Image("a", "A", "png", b"x" * 900), Image("b", "B", "png", b"x" * 90_000), Image("c", "C", "png", b"")]
    kept, rest = inlined(images, 5000)
    text = render("pictures.html", inlined=kept)
    assert text.count("<img") == 2 and "see the folder figures: b." in text and 0 < rest < 5000
    assert len(text.encode()) <= 5000 - rest


def test_every_link_of_the_page_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    ids, links = re.findall(r' id="([^"]+)"', text), re.findall(r' href="#([^"]+)"', text)
    assert len(ids) == len(set(ids)) and len(links) > 8 and set(links) <= set(ids)


def test_an_empty_store_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: No cell is stored")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def column(browser: Any, table: str, i: int) -> list[str]:
    script = """return [...document.querySelectorAll(arguments[0] + ' tbody tr')].filter(row => !row.hidden)
      .map(row => row.cells[arguments[1]].textContent)"""
    return list(browser.execute_script(script, table, i))


def requested(browser: Any) -> set[str]:
    """The schemes of all that the page asked for."""
    sent = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return {message["params"]["request"]["url"].partition(":")[0] for message in sent if message["method"] == "Network.requestWillBeSent"}


def test_in_a_browser_it_sorts_and_filters_without_error_or_request(page: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    browser.get("about:blank")
    requested(browser)  # the browser's own first page is none of ours
    browser.get(page.as_uri())
    heads = [head.text.strip(" ↕▲▼") for head in browser.find_elements(By.CSS_SELECTOR, "#cells thead th")]
    at = heads.index("mIoU %")
    button = browser.find_elements(By.CSS_SELECTOR, "#cells thead button")[at]
    button.send_keys(Keys.ENTER)  # by keyboard: the highest first, the gap last
    values = column(browser, "#cells", at)
    assert values[-1] == "-" and values[:-1] == sorted(values[:-1], key=float, reverse=True)
    button.send_keys(Keys.SPACE)
    values = column(browser, "#cells", at)
    assert values[-1] == "-" and values[:-1] == sorted(values[:-1], key=float)
    assert browser.find_elements(By.CSS_SELECTOR, "#cells thead th")[at].get_attribute("aria-sort") == "ascending"
    Select(browser.find_element(By.CSS_SELECTOR, "[data-field=seed]")).select_by_visible_text("1")
    assert set(column(browser, "#cells", heads.index("seed"))) == {"1"}
    Select(browser.find_element(By.CSS_SELECTOR, "[data-field=method]")).select_by_visible_text("sam")
    assert column(browser, "#cells", heads.index("method")) == ["sam"]
    assert browser.find_element(By.ID, "shown").text.startswith("1 of 6 cells shown")
    assert browser.get_log("browser") == []
    assert requested(browser) <= {"file", "data"}


def test_every_table_with_methods_data_sets_or_shots_filters(page: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser.get(page.as_uri())
    seen = """return [...document.querySelectorAll('figure.table')].map(f => [f.checkVisibility(),
      [...f.querySelectorAll('tbody tr')].filter(r => r.checkVisibility()).length,
      [...f.querySelectorAll('thead th')].filter(h => h.checkVisibility()).length])"""
    before = browser.execute_script(seen)
    assert 0 < sum(visible and rows > 0 and heads > 0 for visible, rows, heads in before) < len(before)
    Select(browser.find_element(By.CSS_SELECTOR, "[data-field=method]")).select_by_visible_text("cat_sam_t")
    assert all(rows == 1 for visible, rows, _ in browser.execute_script(seen) if visible)  # its own row, or its one comparison
    assert browser.execute_script("return [...document.querySelectorAll('#failures-and-gaps tr, #cells tbody tr')].length") > 0
    browser.find_element(By.CSS_SELECTOR, ".filters button").click()
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert browser.execute_script(seen) == before
    Select(browser.find_element(By.CSS_SELECTOR, "[data-field=dataset]")).select_by_visible_text("sbu")
    narrowed = browser.execute_script(seen)
    assert any(now[0] and now[2] < then[2] for now, then in zip(narrowed, before, strict=True))
    assert (
        browser.execute_script("return [...document.querySelectorAll('main [data-dataset=whu]')].some(e => e.checkVisibility())") is False
    )


def test_of_the_tables_of_the_same_numbers_one_is_chosen(page: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser.get(page.as_uri())
    shown = "return [...document.querySelectorAll('.chooser figure.table')].filter(f => f.checkVisibility()).map(f => f.id)"
    (first,) = browser.execute_script(shown)
    choice = Select(browser.find_element(By.CSS_SELECTOR, ".chooser select"))
    choice.select_by_index(1)
    (second,) = browser.execute_script(shown)
    assert first.startswith("paper") and second.startswith("plain") and len(choice.options) == 2  # one selection, rule and shot each


@pytest.mark.parametrize(("width", "media"), [(375, "screen"), (1280, "screen"), (718, "print")])  # 718 px: A4 less its margins
def test_the_page_never_scrolls_sideways(page: Path, browser: Any, width: int, media: str) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    browser.get(page.as_uri())
    wide = "return Math.max(0, ...[...document.querySelectorAll('figure.wide table')].map(t => t.offsetWidth))"
    if media == "print":  # wide tables stand on pages of their own, which lie
        assert 718 < browser.execute_script(wide) < 1046
        browser.execute_script("for (const f of document.querySelectorAll('figure.wide')) f.hidden = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_row_keeps_its_heading_where_it_is_scrolled_sideways(page: Path, browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
    metrics = {"width": 375, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    moved = """const scroll = document.querySelector('figure.table .scroll'); scroll.scrollLeft = 200;
      const [head, cell] = [...scroll.querySelectorAll('tbody tr:first-child > *')].map(e => e.getBoundingClientRect().left);
      return [scroll.scrollLeft, head - scroll.getBoundingClientRect().left, cell < head]"""
    assert browser.execute_script(moved) == [200, 0, True]


def test_every_control_picture_and_table_has_a_name(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    unnamed = """return [...document.querySelectorAll('img:not([alt]), button:empty, table:not(:has(caption)), .scroll:not([aria-label])')]
      .concat([...document.querySelectorAll('select, input')].filter(e => !e.labels.length)).map(e => e.outerHTML)"""
    assert browser.execute_script(unnamed) == []
