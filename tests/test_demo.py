"The demo page in a real browser: Chromium, headless. Skipped with a reason where there is none."
import shutil, socket
import pytest

pytest.importorskip("gradio", reason="gradio is not installed: it is the extra `demo`")
selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROME, DRIVER = (next((p for n in names if (p := shutil.which(n))), None) for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver", "chromium.chromedriver")))
if not CHROME or not DRIVER: pytest.skip("Chromium or its driver is not installed", allow_module_level=True)

from asking import load, make_adapter
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from verifier_nb import demo
from verifier_nb.files import VerifierError

PLANTED = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> ${document.title='hacked'} {{value}} "

@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The page of a tiny verifier, served on a free port; its address."
    made = demo.demo_page(load(make_adapter(tmp_path_factory.mktemp("adapter"))))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    yield demo.demo_launch(made, port, wait=False)
    made.close(verbose=False)

@pytest.fixture(scope="module")
def browser(tmp_path_factory, page):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
                 "--window-size=1200,1400", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"): options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get(page)
    wait(driver, "#check")
    yield driver
    driver.quit()

def wait(browser, selector, seconds=60): return WebDriverWait(browser, seconds).until(lambda b: next((e for e in b.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()), None))

def write(browser, name, text):
    "Put a text into a box, as a paste would."
    box = wait(browser, f"#{name} textarea")
    browser.execute_script("const [e, t] = arguments; Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(e, t); e.dispatchEvent(new Event('input', {bubbles: true}))", box, text)

def press(browser, name, answer):
    "Press a button until there is a new answer: a press may come before the page has taken the text in."
    find = lambda: browser.find_elements(By.CSS_SELECTOR, f"#{answer} .answer")
    before = [e.text for e in find()]
    def new(_):
        try: return next((now for now in [find()] if now and [e.text for e in now] != before), None)
        except StaleElementReferenceException: return None
    for _ in range(12):
        wait(browser, f"#{name}").click()
        try: return WebDriverWait(browser, 5).until(new)
        except TimeoutException: pass
    raise AssertionError(f"no new answer; the page shows {before}")

def tab(browser, name): next(b for b in browser.find_elements(By.CSS_SELECTOR, "button[role=tab]") if b.text == name).click()

def test_the_page_loads_nothing_from_elsewhere_and_without_errors(browser, page):
    assert browser.title == "Is this solution right?"
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert loaded and [u for u in loaded if not u.startswith((page, "data:", "blob:"))] == []
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []

def test_a_check_gives_a_verdict_and_marks_the_equations(browser):
    answer = press(browser, "check", "answer")[0]
    assert answer.find_element(By.CSS_SELECTOR, ".said").text in ("Flawed", "Correct") and "P(flawed) = " in answer.text
    assert [e.text for e in answer.find_elements(By.CSS_SELECTOR, ".eq.ok")] == ["3 * 4 = 12"] and [e.text for e in answer.find_elements(By.CSS_SELECTOR, ".eq.bad")] == ["12 - 2 = 11"]
    assert "Line 2: 12 - 2 = 11 is false; it is 10" in answer.text

LATEX = r"""A third of 18 is \(\frac{1}{3} \times 18 = 6\), and \$5 a bag costs $\frac{\$45}{9} = \$5$.
\begin{align*}
\frac{36}{3} \\
&= 12 \\
\frac{12}{4} \times \frac{3}{2} &= 5 \\
18 - 6 &= 12
\end{align*}"""
BOXES = "return [...arguments[0].querySelectorAll(arguments[1])].map(e => { const b = e.getBoundingClientRect(); return [b.top, b.bottom, b.left] })"

def test_latex_is_shown_as_mathematics(browser):
    "Every row of a display on a line of its own, below the one before it, and every formula inside the mark around it."
    write(browser, "solution", LATEX)
    answer = press(browser, "check", "answer")[0]
    assert "frac" not in answer.text and "align" not in answer.text and "false: it is 4.5" in answer.text
    maths = browser.execute_script(BOXES, answer, ".text math")
    rows = maths[2:]
    assert len(maths) == 6 and len({round(left) for _, _, left in rows}) == 1
    assert all(above[1] <= below[0] + 1 for above, below in zip(rows, rows[1:])), "no row overlaps the next"
    marks = answer.find_elements(By.CSS_SELECTOR, ".text .eq")
    assert [mark.get_attribute("class") for mark in marks] == ["eq ok", "eq ok", "eq ok", "eq bad", "eq ok"]
    for mark in marks:
        box, line = mark.rect, float(mark.value_of_css_property("border-bottom-width").removesuffix("px"))
        for _, bottom, _ in browser.execute_script(BOXES, mark, "math"): assert bottom < box["y"] + box["height"] - line, "the line of the mark runs below"

def test_scripts_in_a_solution_are_shown_not_run(browser):
    write(browser, "solution", PLANTED + "1 + 1 = 2")
    answer = press(browser, "check", "answer")[0]
    assert browser.title == "Is this solution right?" and "<script>document.title" in answer.text and "${document" in answer.text and "{{value}}" in answer.text
    assert not browser.find_elements(By.CSS_SELECTOR, "#answer script, #answer img")

def test_an_empty_solution_is_told(browser):
    write(browser, "solution", " ")
    assert "The solution is empty" in press(browser, "check", "answer")[0].text

def test_candidates_are_ranked(browser):
    tab(browser, "Compare candidates")
    cards = press(browser, "rank", "ranking")
    said = [c.find_element(By.CSS_SELECTOR, ".said").text for c in cards]
    p = [float(c.find_element(By.TAG_NAME, "b").text) for c in cards]
    assert len(cards) == 3 and p == sorted(p) and [s.split(".")[0] for s in said] == ["1", "2", "3"] and sorted(s.split("Candidate ")[1][0] for s in said) == ["1", "2", "3"]

def test_no_horizontal_scroll_on_a_phone(browser):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True})
    wide, width = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width == 390

def test_only_this_machine_is_let_in(page):
    "Another address of this machine is refused."
    from urllib.parse import urlsplit
    port = urlsplit(page).port
    with socket.socket() as s: assert s.connect_ex(("127.0.0.1", port)) == 0
    with socket.socket() as s:
        s.settimeout(5)
        assert s.connect_ex(("127.0.0.2", port)) != 0

def test_a_port_that_is_taken_is_told(page, tmp_path):
    import gradio
    from urllib.parse import urlsplit
    with gradio.Blocks() as other: gradio.HTML("x")
    with pytest.raises(VerifierError, match="another port"): demo.demo_launch(other, urlsplit(page).port, wait=False)
