"""The quality-control page: what is drawn and judged, and the page itself in a real browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neuroage.cohort import Cohort, Scan
from neuroage.cohort.exclusions import read_exclusions
from neuroage.errors import UsageError
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.qc import write_qc
from neuroage.imaging.qc.figures import figures_of, make_columns, oddness
from neuroage.imaging.qc.page import ScanRow, write_page
from neuroage.imaging.qc.pictures import Sheet, encode, trace_mean, trace_template
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHEET = Sheet((4.0, 4.0, 4.0), (20, 24, 20))
MANY = 5_000


# Pictures


def test_planes_are_cut_through_the_middle_at_one_scale_with_left_on_the_left() -> None:
    sheet = Sheet((2.0, 2.0, 4.0), (40, 48, 24))
    volume = np.zeros((1, 40, 48, 24), dtype=np.uint8)
    volume[0, 4:36, 4:44, 2:22] = 100
    volume[0, 4:10] = 200  # the patient's left
    picture = sheet.draw(volume)
    assert picture.shape == (48, 96 // 2 * 1 + 2 + 40 + 2 + 40)
    coronal = picture[:, 50:90]
    assert coronal[24, 6] > 1.5 * coronal[24, 30] > 0
    mirrored = Sheet(sheet.spacing, sheet.size, flipped=True).draw(volume[:, ::-1])
    assert np.array_equal(mirrored[:, 50:], picture[:, 50:]), "LAS+ looks like RAS+"
    upper = np.zeros_like(volume)
    upper[..., 12:] = 100
    assert sheet.draw(upper)[2:20, 10].mean() > sheet.draw(upper)[30:46, 10].mean(), "superior is up"


def test_sparse_volumes_are_shown_as_projections() -> None:
    vessels = np.zeros((1, 20, 24, 20), dtype=np.uint8)
    vessels[0, 3, 4, :] = 200
    assert SHEET.draw(vessels).max() == 255, "no slice through the middle would show it"


def test_pictures_of_two_dimensions_and_of_shares_of_intensity_are_drawn_too() -> None:
    rng = np.random.default_rng(0)
    flat = Sheet((1.0, 1.0), (32, 48)).draw(rng.random((3, 32, 48)))
    assert flat.shape == (96, 144) and flat.std() > 10
    shares = np.zeros((2, 20, 24, 20), dtype=np.float32)
    shares[0, 2:18, 2:22, 2:18], shares[1, 8:12, 10:14, 8:12] = 1, 1
    shares[0, 8:12, 10:14, 8:12] = 0
    picture = SHEET.draw(shares)
    assert picture[10, 12] > picture[10, 4] > picture[0, 0], "the higher level is the brighter"


def test_a_picture_is_a_small_webp() -> None:
    code = encode(np.random.default_rng(0).integers(0, 255, (96, 256)).astype(np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(code)))
    assert (image.format, image.size) == ("WEBP", (256, 96))


def test_the_template_s_outline_lies_around_the_template_itself() -> None:
    nilearn = pytest.importorskip("nilearn", reason="nilearn brings the template")
    assert nilearn
    from neuroage.imaging.registration.mni152 import load_mni152

    template = load_mni152(4)
    size = tuple(template.brain.shape)
    for flipped in (False, True):
        sheet = Sheet((4.0, 4.0, 4.0), size, flipped)
        affine = template.volume.affine.copy()
        if flipped:
            affine[:3, 3] += (size[0] - 1) * affine[:3, 0]
            affine[:3, 0] *= -1
        code = base64.b64decode(trace_template(sheet, affine)).decode()
        outline = re.findall(r'<path d="([^"]+)"', code)[0]
        points = np.array([[float(n) for n in pair.split()] for pair in re.split("[ML]", outline) if pair])
        shown = template.brain[None].astype(np.uint8)[:, :: -1 if flipped else 1] * 200
        picture = sheet.draw(shown) > 100
        pixels = np.argwhere(picture)[:, ::-1] * sheet.pixel_mm
        assert np.abs(points.min(0) - pixels.min(0)).max() < 6
        assert np.abs(points.max(0) - pixels.max(0) - sheet.pixel_mm).max() < 6
        assert code.count("<path") == 2


def test_the_mean_s_outline_surrounds_what_is_bright() -> None:
    mean = np.zeros((20, 68))
    mean[5:15, 20:40] = 80
    code = base64.b64decode(trace_mean(SHEET, mean)).decode()
    points = np.array(
        [[float(n) for n in p.split()] for p in re.split("[ML]", code.split('d="')[1].split('"')[0]) if p]
    )
    assert np.allclose(points.min(0) / 4, [20, 5], atol=0.6) and np.allclose(points.max(0) / 4, [40, 15], atol=0.6)


# Figures


def test_figures_of_every_step_are_found_and_told_apart() -> None:
    record = {
        "native": {"head_ml": 1400.0},
        "native_spacing_mm": [1.0, 1.25, 1.0],
        "native_orientation": "LPS",
        "steps": [
            {"name": "registration", "to": "t1", "quality": {"inside": 0.7, "scale": [1.0, 1.1, 0.9]}, "seconds": 2.0},
            {"name": "registration", "to": "mni152", "quality": {"inside": 0.9}},
            {"name": "bias_field", "parameters": {"shrink": 4}, "field_max": 1.5},
        ],
    }
    figures = figures_of(record)
    assert figures["registration.inside"] == 0.7 and figures["registration_mni152.inside"] == 0.9
    assert figures["registration.scale_2"] == 1.1 and figures["bias_field.field_max"] == 1.5
    assert (figures["spacing"], figures["orientation"]) == ("1 × 1.25 × 1", "LPS")
    assert not any("shrink" in name for name in figures)


def test_oddness_is_robust_and_counts_low_likeness_only() -> None:
    rng = np.random.default_rng(0)
    rows = [{"likeness": 0.9 + rng.normal(0, 0.01), "head_ml": 1400 + rng.normal(0, 50)} for _ in range(60)]
    rows += [{"likeness": 0.99, "head_ml": 1400.0}, {"likeness": 0.5, "head_ml": 1400.0}]
    rows += [{"likeness": 0.9, "head_ml": 3000.0}, {}]
    odd = oddness(make_columns(rows))
    assert np.isnan(odd[-1])
    assert set(np.argsort(-np.nan_to_num(odd))[:2]) == {61, 62}
    assert odd[60] < 1, "very like the others is not odd"
    assert np.nan_to_num(odd[:60]).max() < 4


def test_equal_figures_and_few_scans_are_not_judged() -> None:
    assert np.isnan(oddness(make_columns([{"head_ml": float(k)} for k in range(5)]))).all()
    columns = make_columns([{"head_ml": 1400.0, "blur_mm": 1.0 + 0.001 * (k == 0)} for k in range(20)])
    assert np.nan_to_num(oddness(columns)).max() < 1, "a difference of a thousandth is none"


# The page of a store


def test_the_page_of_a_store_shows_prepared_failed_and_missing_scans(
    cohort: Cohort, recipe: Recipe, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    scans = cohort.select(modality="t1").scans()
    prepare_scans(scans[:12], recipe.prepare, store)
    no_file = Scan("nofile", "n")
    failures = {scans[12].scan_id: f"{scans[12].path}: nothing of the scan lies in the field of view"}
    made = write_qc(
        [*scans[:14], no_file],
        recipe.prepare,
        store,
        tmp_path / "qc.html",
        failures=failures,
        command="neuroage prepare",
    )
    page = (tmp_path / "qc.html").read_text(encoding="utf-8")
    assert made.n_scans == 15 and made.not_prepared == [scans[13].scan_id]
    assert made.problems == {
        scans[12].scan_id: "nothing of the scan lies in the field of view",
        "nofile": "the cohort names no file for it",
    }
    assert set(made.worst[:2]) == set(made.problems) and made.worst[-1] == scans[13].scan_id
    assert "<code>neuroage prepare</code>" in page
    assert str(tmp_path.parent) not in page, "folders may carry names"
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "http://" not in page.replace("http://www.w3.org", "")


def test_labelled_pictures_have_a_page_too(pictures: Cohort, picture_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    scans = pictures.scans()[:9]
    prepare_scans(scans, picture_recipe.prepare, store)
    made = write_qc(scans, picture_recipe.prepare, store, tmp_path / "qc.html")
    page = (tmp_path / "qc.html").read_text(encoding="utf-8")
    shown = page.split('id="pictures">')[1].split("</script>")[0].split()
    assert made.n_scans == len(shown) == 9 and not made.problems
    assert Image.open(io.BytesIO(base64.b64decode(shown[0]))).size == (96, 96)


def test_a_page_without_any_prepared_scan_is_refused_with_the_command(
    cohort: Cohort, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"None of the 48 scans is prepared.*`neuroage prepare --data a.csv`"):
        write_qc(
            cohort.select(modality="t1").scans(),
            recipe.prepare,
            Store(tmp_path / "empty"),
            tmp_path / "qc.html",
            command="neuroage prepare --data a.csv",
        )
    assert not (tmp_path / "qc.html").exists()


# The page in a browser


def make_rows(n: int) -> list[ScanRow]:
    """Scans of a known order: number 3 has a problem, 5 looks odd, 7 is not prepared."""
    rng = np.random.default_rng(0)
    code = encode(SHEET.draw(rng.random((1, 20, 24, 20)).astype(np.float32)))
    rows = [
        ScanRow(f"sub-{k}", code, {"likeness": 0.9 + rng.normal(0, 0.01), "head_ml": float(k), "orientation": "RAS"})
        for k in range(n)
    ]
    rows[3].problem = "registration to mni152: <b>no overlap</b> \u201cat all\u201d"
    rows[5].figures["likeness"] = 0.2
    rows[7] = ScanRow("sub-7", prepared=False)
    rows[9].overlay = 0
    return rows


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


class Page:
    """An open page, and what its console said."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 700}, accept_downloads=True, **options)
        self.tab, self.said = self.context.new_page(), list[str]()
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("html[data-ready]")

    @property
    def ids(self) -> list[str]:
        rows = self.tab.locator(".row").evaluate_all(
            "rows => rows.map(r => [+r.getAttribute('aria-rowindex'), r.dataset.scan])"
        )
        return [name for _, name in sorted(rows)]

    def row(self, scan_id: str) -> Any:
        return self.tab.locator(f'.row[data-scan="{scan_id}"]')

    def save(self, folder: Path) -> dict[str, str]:
        with self.tab.expect_download() as download:
            self.tab.click("#save")
        assert download.value.suggested_filename == "exclude.csv"
        download.value.save_as(folder / "exclude.csv")
        return read_exclusions(folder / "exclude.csv")


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    pages: list[Page] = []

    def open_it(rows: list[ScanRow], *, colour: str = "light", **more: Any) -> Page:
        outline = trace_mean(SHEET, np.pad(np.full((20, 30), 90.0), ((10, 18), (20, 88))))
        write_page(rows, SHEET, tmp_path / "qc.html", title="Scans", overlays=[("an outline", outline)], **more)
        pages.append(Page(browser, tmp_path / "qc.html", color_scheme=colour))
        return pages[-1]

    yield open_it
    for page in pages:
        assert page.said == []
        page.context.close()


def test_the_worst_come_first_and_every_column_sorts(open_page: Any) -> None:
    page = open_page(make_rows(12))
    assert page.ids[:2] == ["sub-3", "sub-5"] and page.row("sub-3").locator(".say.bad").count() == 1
    assert "<b>no overlap</b>" in page.row("sub-3").inner_text(), "text stays text"
    assert "Likeness low" in page.row("sub-5").inner_text()
    page.tab.keyboard.press("End")
    assert page.ids[-1] == "sub-7" and "not prepared" in page.row("sub-7").inner_text()
    page.tab.click('[data-key="head_ml"] button')
    assert (
        page.ids[0] == "sub-11" and page.tab.locator('[data-key="head_ml"]').get_attribute("aria-sort") == "descending"
    )
    page.tab.click('[data-key="head_ml"] button')
    assert page.ids[0] == "sub-0"
    page.tab.click('[data-key="likeness"] button')
    assert page.ids[0] == "sub-5", "of likeness, the lowest are wanted first"
    page.tab.click('[data-key="id"] button')
    assert page.ids[:3] == ["sub-0", "sub-1", "sub-2"]


def test_ticks_are_saved_kept_over_a_reload_and_read_by_exclude(open_page: Any, tmp_path: Path) -> None:
    page = open_page(make_rows(12))
    assert page.tab.locator("#save").is_disabled()
    page.tab.get_by_label("Exclude sub-5", exact=True).check()
    page.row("sub-5").locator("select").select_option("blurred")
    page.row("sub-3").click(position={"x": 200, "y": 5})
    page.tab.keyboard.press("4")
    assert page.tab.locator("#n-ticked").inner_text() == "2"
    page.tab.reload()
    page.tab.wait_for_selector("html[data-ready]")
    assert page.row("sub-5").locator("input").is_checked() and not page.row("sub-0").locator("input").is_checked()
    assert page.save(tmp_path) == {"sub-3": "misregistered", "sub-5": "blurred"}
    page.row("sub-5").locator("input").uncheck()
    page.tab.locator("#ticked").check()
    assert page.ids == ["sub-3"]
    assert page.save(tmp_path) == {"sub-3": "misregistered"}


def test_a_table_given_at_making_time_ticks_and_comes_back_whole(open_page: Any, tmp_path: Path) -> None:
    given = {"sub-2": 'odd, "very"', "elsewhere": "motion"}
    page = open_page(make_rows(12), ticked=given)
    assert page.row("sub-2").locator("select").input_value() == 'odd, "very"'
    assert "1 not on this page" in page.tab.inner_text("#counts")
    assert page.save(tmp_path) == given


def test_the_filter_and_only_problems_narrow_the_table(open_page: Any) -> None:
    page = open_page(make_rows(12))
    page.tab.keyboard.press("/")
    page.tab.keyboard.type("OVERLAP")
    page.tab.wait_for_function("document.querySelectorAll('.row').length === 1")
    assert page.ids == ["sub-3"]
    page.tab.fill("#filter", "nothing like it")
    page.tab.locator("#nothing").wait_for(state="visible")
    page.tab.fill("#filter", "")
    page.tab.locator("#problems").check()
    page.tab.wait_for_function("document.querySelectorAll('.row').length === 1")
    assert page.ids == ["sub-3"]


def test_everything_is_done_by_keys_in_the_dark_too(open_page: Any) -> None:
    page = open_page(make_rows(12), colour="dark")
    red, green, blue = map(
        int, re.findall(r"\d+", page.tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 60
    page.tab.keyboard.press("ArrowDown")
    assert page.tab.locator(".row.current").get_attribute("data-scan") == "sub-5"
    page.tab.keyboard.press("x")
    page.tab.keyboard.press("Enter")
    large = page.tab.locator("#large")
    assert large.is_visible() and page.tab.inner_text("#large-name") == "sub-5"
    assert large.locator("input").is_checked() and "Likeness" in large.inner_text()
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.inner_text("#large-name") == page.ids[2]
    page.tab.keyboard.press("Escape")
    assert not large.is_visible()
    outline = page.row("sub-9").locator("i")
    page.tab.fill("#filter", "sub-9")
    page.tab.wait_for_function("document.querySelectorAll('.row').length === 1")
    assert outline.is_visible()
    page.tab.locator("#viewport").focus()
    page.tab.keyboard.press("e")
    assert not outline.is_visible()


def test_a_page_of_many_scans_draws_only_what_is_seen(open_page: Any, tmp_path: Path) -> None:
    page = open_page(make_rows(MANY))
    tab = page.tab
    assert tab.locator("#viewport").get_attribute("aria-rowcount") == str(MANY + 1)
    assert page.ids[:2] == ["sub-3", "sub-5"] and len(page.ids) < 40
    tab.evaluate(
        """async () => { const viewport = document.getElementById('viewport');
        for (let step = 1; step <= 20; step++) { viewport.scrollTop = step * 5000;
          await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next))); } }"""
    )
    assert 5 < len(page.ids) < 40, "rows that were scrolled away are gone"
    tab.evaluate("document.getElementById('viewport').scrollTop = 1e9")
    tab.wait_for_selector('.row[data-scan="sub-7"]')
    assert len(page.ids) < 40
    seconds = tab.evaluate(
        """() => { const start = performance.now(); document.querySelector('[data-key="head_ml"] button').click();
        return (performance.now() - start) / 1000 }"""
    )
    assert seconds < 2 and page.ids[0] == f"sub-{MANY - 1}"
    assert tab.locator("#viewport").evaluate("node => node.scrollTop") == 0
    tab.fill("#filter", "sub-4321")
    tab.wait_for_function("document.querySelectorAll('.row').length === 1")
    page.row("sub-4321").locator("input").check()
    assert page.save(tmp_path) == {"sub-4321": ""}
