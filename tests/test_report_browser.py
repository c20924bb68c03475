"The report in a real browser: Chromium, headless. Skipped with a reason where there is none."
import importlib.util, shutil
from pathlib import Path
import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
AXE = next((p for p in (Path(d)/"axe.min.js" for d in getattr(importlib.util.find_spec("axe_playwright_python"), "submodule_search_locations", ())) if p.exists()), None)  # the package's script; the package itself is not imported
CHROME, DRIVER = (next((p for n in names if (p := shutil.which(n))), None) for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver", "chromium.chromedriver")))
if not CHROME or not DRIVER: pytest.skip("Chromium or its driver is not installed", allow_module_level=True)

import numpy as np, pandas as pd
from fake_run import make_run, rows
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from verifier_nb import compare, external, analysis, comparisons, index as index_

class Coin:
    "A verifier that guesses."
    def score(self, problems, solutions, batch_tokens=0):
        p = np.random.default_rng(0).random(len(problems))
        return pd.DataFrame({"prob_0": 1 - p, "prob_1": p})

@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    "Two runs with scripts planted in the data, their reports, an index and a comparison."
    root = tmp_path_factory.mktemp("reports")
    runs = [make_run(root, "one", 40, 0, planted=True, baselines=False), make_run(root, "two", 40, 4, signal=0.02)]
    external.evaluate(runs[0], {"other-set": rows(10, 77, 500_000)}, verifier=Coin())
    analysis.run_stage(runs[0])
    analysis.run_stage(runs[1])
    index = index_.index(root)
    assert list(index["set"]) == ["test", "other-set", "test"] and (root/"reports"/"results.csv").exists()
    page = comparisons.write_comparison(compare.compare(runs, resamples=200), root/"comparison")
    return {"report": runs[0].report("report.html"), "weak": runs[1].report("report.html"), "index": root/"reports"/"index.html", "comparison": page}

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
                 "--window-size=1200,900", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"): options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()

def open_page(browser, path, width=1200, scheme="light"):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get_log("browser")
    browser.get(path.as_uri())

PAGES = ("report", "weak", "index", "comparison")

@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_and_nothing_fails(browser, reports, name):
    open_page(browser, reports[name])
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0
    assert browser.execute_script("return [...document.images].every(i => { i.loading = 'eager'; return i.src.startsWith('data:') && i.alt.length > 10 })")

@pytest.mark.parametrize("name", PAGES)
def test_no_horizontal_scroll_on_a_phone(browser, reports, name):
    open_page(browser, reports[name], 390)
    for button in browser.find_elements(By.CSS_SELECTOR, "summary"): browser.execute_script("arguments[0].parentNode.open = true", button)
    wide, page = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert page == 390 and wide <= page

@pytest.mark.skipif(AXE is None, reason="axe-playwright-python, which brings axe-core, is not installed")
@pytest.mark.parametrize("name,scheme", [("report", "dark"), ("weak", "light"), ("index", "dark"), ("comparison", "light")])
def test_no_serious_accessibility_violation(browser, reports, name, scheme):
    open_page(browser, reports[name], scheme=scheme)
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    for button in browser.find_elements(By.CSS_SELECTOR, "summary"): browser.execute_script("arguments[0].parentNode.open = true", button)
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done, e => done({error: String(e)}))")
    assert "error" not in found and found["passes"]
    bad = [(v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert not bad, bad

def test_scripts_in_the_data_are_shown_not_run(browser, reports):
    open_page(browser, reports["report"])
    assert browser.title != "hacked" and "<script>document.title" in browser.find_element(By.CSS_SELECTOR, ".mistake .text").text
    assert not browser.find_elements(By.CSS_SELECTOR, ".mistake script, .mistake img")

def test_a_script_that_slipped_in_would_be_blocked(browser, reports, tmp_path):
    page = tmp_path/"tampered.html"
    page.write_text(reports["report"].read_text(encoding="utf-8").replace("<main id=\"main\">", "<main id=\"main\"><script>document.title = 'hacked'</script>"), encoding="utf-8")
    open_page(browser, page)
    assert browser.title != "hacked"

def test_filters(browser, reports):
    open_page(browser, reports["report"])
    items = lambda: [a for a in browser.find_elements(By.CSS_SELECTOR, "#mistakes .mistake") if a.is_displayed()]
    every, said = len(items()), browser.find_element(By.ID, "shown")
    assert every > 3 and said.text == f"{every} of {every} mistakes shown"
    kind = browser.find_element(By.CSS_SELECTOR, "#filter [name=type]")
    kind.send_keys("conceptual")
    assert 0 < len(items()) < every and all(a.get_attribute("data-type") == "conceptual" for a in items())
    browser.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", kind)
    search = browser.find_element(By.CSS_SELECTOR, "#filter [name=search]")
    word = items()[0].find_element(By.CSS_SELECTOR, ".text").text.split("Box ")[1].split()[0]
    search.send_keys(f"box {word}")
    assert 0 < len(items()) < every and said.text == f"{len(items())} of {every} mistakes shown"
    search.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert len(items()) == every
    sure = browser.find_element(By.CSS_SELECTOR, "#filter [name=sure]")
    sure.send_keys(Keys.END)  # with the keyboard alone
    assert len(items()) < every and browser.find_element(By.ID, "sure-value").text == "99 %"

def test_false_equations_are_marked_with_what_is_right(browser, reports):
    open_page(browser, reports["report"])
    missed = [a for a in browser.find_elements(By.CSS_SELECTOR, ".mistake.missed") if a.get_attribute("data-type") == "computational"]
    assert browser.find_element(By.CSS_SELECTOR, "#caught h3").text.startswith("Line 1: ") and "is false; it is" in browser.find_element(By.CSS_SELECTOR, "#caught h3").text
    assert missed and all("false: it is" in a.text for a in missed)
    assert browser.find_elements(By.CSS_SELECTOR, ".eq.ok") and browser.find_elements(By.CSS_SELECTOR, ".eq.bad")

def test_headline_says_what_the_run_is(browser, reports):
    open_page(browser, reports["report"])
    assert "false alarm" in browser.find_element(By.TAG_NAME, "h1").text
    assert [a.get_attribute("href").rsplit("/", 1)[1] for a in browser.find_elements(By.LINK_TEXT, "07_evaluation.ipynb")] == ["07_evaluation.ipynb"]
    open_page(browser, reports["weak"])
    assert "guessing gives 50" in browser.find_element(By.TAG_NAME, "h1").text

def test_another_set_has_its_section(browser, reports):
    open_page(browser, reports["report"])
    assert "Another set: other-set" in [h.text for h in browser.find_elements(By.TAG_NAME, "h2")]

def test_index_sorts(browser, reports):
    open_page(browser, reports["index"])
    values = lambda: [float(c.get_attribute("data-value")) for c in browser.find_elements(By.CSS_SELECTOR, "tbody tr td:nth-child(6)")]
    button = browser.find_elements(By.CSS_SELECTOR, "th button")[5]
    button.send_keys(Keys.ENTER)
    up = values()
    button.send_keys(Keys.ENTER)
    assert up == sorted(up) and values() == up[::-1] and up[0] != up[1]

def test_prints_without_controls(browser, reports):
    open_page(browser, reports["report"])
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element(By.TAG_NAME, "nav").is_displayed() and not browser.find_element(By.ID, "filter").is_displayed()
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(pdf) > 20_000


def test_the_table_of_all_runs_fits_a_window_of_1200_pixels(browser, root, tmp_path):
    "The committed runs, with their long names: nothing has to be scrolled."
    shutil.copytree(root/"reports", tmp_path/"reports")
    index_.index(tmp_path)
    open_page(browser, tmp_path/"reports"/"index.html")
    assert browser.execute_script("const s = document.querySelector('.scroll'); return s.scrollWidth - s.clientWidth") <= 0
