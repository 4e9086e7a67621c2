"""The page that `report` writes, in a real browser without a window: what it chooses, shows and can be reached by."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_report

from subtune_deploy.breakdown import Breakdown
from subtune_deploy.errors import InputError
from subtune_deploy.latency_model import Anchor, anchor
from subtune_deploy.pareto import Point, choose, front, knee, open_rivals
from subtune_deploy.report import PARTS, make_document, page
from subtune_deploy.report_points import Predicted
from subtune_deploy.stats import Interval, Ratio
from subtune_deploy.tradeoff import join

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: apt-get install chromium")

Open = Callable[..., Any]
COLUMNS = (("stem", None), *((f"block {n}", n) for n in range(1, 5)), ("head", None))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a document; whatever the page says on its console or asks of a network fails the test."""
    seen: list[str] = []
    contexts: list[Any] = []

    def open_page(document: dict[str, Any], width: int = 1280, height: int = 900, **how: Any) -> Any:
        (tmp_path / "report.html").write_text(page(document), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **how))
        shown = contexts[-1].new_page()
        shown.set_default_timeout(5000)
        shown.on("console", lambda message: seen.append(f"console: {message.text}"))
        shown.on("pageerror", lambda error: seen.append(f"error: {error}"))
        shown.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}") or dialog.dismiss())
        shown.on("request", lambda asked: seen.append(f"request: {asked.url}"))
        shown.goto(f"file://{tmp_path / 'report.html'}")
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert [each for each in seen if not each.startswith("request: file://")] == []
    assert len(seen) == len(contexts), "the file asks for no other file"


def counted(graphs: int) -> Breakdown:
    base = ((100, 40, 10, 2), *[(1000, 200, 300, 4)] * 4, (10, 2, 50, 1))
    added = tuple({1 + n % 4: (1000, 200, 300, 4), 5: (10, 2, 50, 1)} for n in range(graphs))
    return Breakdown(COLUMNS, base, added, tuple(range(graphs)), ((1,),) * 4)


@pytest.fixture(scope="module")
def two_targets() -> dict[str, Any]:
    results = [*tiny_report.run(warnings=("the fan was loud",)), *tiny_report.run("openvino-cpu", scale=0.8)]
    return make_document(results, tiny_report.trained(), counted(len(results)))


def interval(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def plain(point: Point) -> dict[str, Any]:
    both = {"accuracy": point.accuracy, "added": point.added}
    return {"fork": point.fork, **{name: [each.value, each.low, each.high] for name, each in both.items()}}


def some_points(chance: random.Random, grid: int) -> list[Point]:
    """With a coarse grid there are ties; without one there are none."""

    def number() -> float:
        return chance.randrange(grid) / grid if grid else chance.random()

    count = chance.randrange(1, 14)
    return [Point(str(n), interval(number(), 0.05), interval(number(), 0.05)) for n in range(count)]


def chosen(points: list[Point], limits: tuple[float | None, float | None]) -> list[Any]:
    """What Python says: the choice or why there is none, the front, the knee, and what intervals leave open."""
    best = front(points)
    bend = knee(best)
    try:
        found: tuple[str | None, str] = (choose(points, max_added=limits[0], min_accuracy=limits[1]).fork, "")
    except InputError as error:
        found = (None, error.message)
    rivals = {fork: list(names) for fork, names in open_rivals(points).items()}
    return [*found, [each.fork for each in best], bend and bend.fork, rivals]


def test_the_page_chooses_as_python_does(browser: Any) -> None:
    chance, cases = random.Random(0), []
    for number in range(600):
        points = some_points(chance, (0, 4, 8)[number % 3])
        limits = tuple(chance.choice([None, chance.randrange(9) / 8]) for _ in range(2))
        cases.append((points, limits))
    script = "".join((PARTS / name).read_text() for name in ("words.js", "choose.js"))
    told = browser.new_page().evaluate(
        f"""(cases) => {{ {script}
            return cases.map(([points, limits]) => {{
                const found = choose(points, ...limits), best = front(points), bend = knee(best);
                const rivals = points.map((each) => [each.fork, openRivals(each, best).map((other) => other.fork)]);
                return [
                    found.point && found.point.fork, found.point ? '' : found.why.replaceAll('\\u2009', ''),
                    best.map((each) => each.fork), bend && bend.fork,
                    Object.fromEntries(rivals.filter(([, names]) => names.length)),
                ];
            }});
        }}""",
        [[list(map(plain, points)), list(limits)] for points, limits in cases],
    )
    for (points, limits), answer in zip(cases, told, strict=True):
        assert answer == chosen(points, limits), (points, limits)
    assert 50 < sum(answer[0] is None for answer in told) < 550


@pytest.mark.parametrize(
    "limits", [(None, None), (30, None), (None, 93), (30, 93), (1, None), (None, 99.9), (40, 99.9)]
)
def test_limits_in_the_page_choose_as_pareto(opened: Open, limits: tuple[float | None, float | None]) -> None:
    points, _ = join(tiny_report.trained(), list(map(anchor, tiny_report.run())))
    shown = opened(make_document(tiny_report.run(), tiny_report.trained()))
    for name, value in zip(("Added latency at most", "Accuracy at least"), limits, strict=True):
        if value is not None:
            shown.get_by_label(f"{name}, in per cent").fill(str(value))
    fork, why, *_ = chosen(points, (limits[0] and limits[0] / 100, limits[1] and limits[1] / 100))  # type: ignore[arg-type]
    told = shown.locator("#choice strong").inner_text().replace("\u2009", "").strip()
    assert told == (fork or f"{why}.")
    kept = sum(
        (limits[0] is None or each.added.value <= limits[0] / 100)
        and (limits[1] is None or each.accuracy.value >= limits[1] / 100)
        for each in points
    )
    assert shown.locator("#points tbody tr").count() == kept
    assert f"{kept} of 7 forks within the limits" in shown.locator("#choice").inner_text()
    shown.get_by_role("button", name="No limits").click()
    assert shown.locator("#points tbody tr").count() == 7


def test_filters_take_target_and_length(opened: Open, two_targets: dict[str, Any]) -> None:
    shown = opened(two_targets)
    assert "14 points measured. 2 targets: cpu, openvino-cpu." in shown.locator("#summary").inner_text()
    before = shown.locator("#points tbody tr").first.inner_text()
    shown.get_by_label("Target", exact=True).select_option(label="openvino-cpu")
    assert shown.locator("#points tbody tr").first.inner_text() != before
    shown.get_by_label("Length of fork").select_option(label="2 blocks")
    assert shown.locator("#points tbody th").all_inner_texts() == ["3-4", "2-3", "1-2"]
    assert shown.get_by_label("Tasks").is_hidden(), "there is nothing to choose"


def test_the_keyboard_walks_to_a_point_and_opens_its_details(
    opened: Open, two_targets: dict[str, Any]
) -> None:
    shown = opened(two_targets)
    plot = shown.get_by_role("application")
    for _ in range(12):
        if plot.evaluate("(each) => each === document.activeElement"):
            break
        shown.keyboard.press("Tab")
    shown.keyboard.press("Home")
    assert "Fork 4, accuracy" in shown.locator("#spoken").inner_text()
    shown.keyboard.press("ArrowRight")
    walked = shown.locator("#spoken").inner_text()
    assert "measured" in walked
    assert shown.locator(".ring circle").count() == 1
    shown.keyboard.press("Enter")
    heading = shown.locator("#details-title")
    assert heading.evaluate("(each) => each === document.activeElement")
    assert walked.startswith(heading.inner_text() + ",")
    assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    plot.focus()
    shown.keyboard.press("Escape")
    assert shown.locator("#details .over").inner_text().startswith("the choice:")


def test_pointing_shows_samples_and_breakdown(opened: Open, two_targets: dict[str, Any]) -> None:
    shown = opened(two_targets)
    plot = shown.get_by_role("application")
    plot.focus()
    shown.keyboard.press("End")
    ring = shown.locator(".ring circle")
    area = plot.bounding_box()
    place = (area["x"] + float(ring.get_attribute("cx")), area["y"] + float(ring.get_attribute("cy")))
    shown.mouse.move(area["x"] + area["width"] - 3, area["y"] + 3)
    assert ring.count() == 0
    shown.mouse.move(*place)
    details = shown.locator("#details")
    assert details.locator("h2").inner_text() == "Fork 1-2"
    text = details.inner_text()
    for part in (
        "Blocks",
        "1, 2, from stage 1",
        "80 runs of each",
        "the fan was loud",
        "10.0 ms",
        "openvino-cpu",
    ):
        assert part in text.replace("\u2009", " "), text
    histogram, breakdown = details.get_by_role("img").all()
    assert histogram.locator("path.bars").count() == 2
    assert "compute 4.11 kMACs, the fork adds" in breakdown.get_attribute("aria-label").replace("\u2009", " ")
    assert breakdown.locator("rect.bars").count() == 3 * (6 + 2)
    assert breakdown.locator("text").all_text_contents()[:3] == ["fork", "prefix", "suffix"]
    shown.mouse.click(*place)
    shown.mouse.move(5, 5)
    assert details.locator("h2").inner_text() == "Fork 1-2", "what was clicked stays"
    details.locator("summary").click()
    assert details.locator("details tbody th").all_inner_texts() == ["prefix", "fork", "suffix"]


def test_a_tap_opens_details_on_a_phone(opened: Open, two_targets: dict[str, Any]) -> None:
    shown = opened(two_targets, 360, 740, has_touch=True, is_mobile=True)
    shown.get_by_role("application").scroll_into_view_if_needed()
    star = shown.locator(".star").bounding_box()
    shown.touchscreen.tap(star["x"] + star["width"] / 2, star["y"] + star["height"] / 2)
    assert shown.locator("#details .over").inner_text().startswith("the choice")
    assert shown.locator(".ring circle").count() == 1


def test_the_table_sorts_and_opens(opened: Open, two_targets: dict[str, Any]) -> None:
    shown = opened(two_targets)
    heads = shown.locator("#points thead th")
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    shown.locator("#points thead button", has_text="Accuracy").press("Enter")
    shown.locator("#points thead button", has_text="Accuracy").press("Enter")
    assert heads.nth(2).get_attribute("aria-sort") == "descending"
    shares = [
        float(each.split()[0]) for each in shown.locator("#points tbody td:nth-child(3)").all_inner_texts()
    ]
    assert shares == sorted(shares, reverse=True)
    shown.locator("#points tbody button", has_text="2-3").press("Enter")
    assert shown.locator("#details-title").inner_text() == "Fork 2-3"


def test_targets_stand_side_by_side(opened: Open, two_targets: dict[str, Any]) -> None:
    shown = opened(two_targets)
    rows = shown.locator("#targets tbody tr")
    assert rows.count() == 7
    assert rows.first.inner_text().replace("\u2009", " ").split("\t") == [
        "4", "1.180 ± 0.010", "10.0 ms, 11.8 ms", "1.144 ± 0.010", "10.0 ms, 11.4 ms"
    ]  # fmt: skip
    assert opened(make_document(tiny_report.run())).locator("#targets").is_hidden()


def test_without_accuracies_forks_stand_by_their_first_block(opened: Open) -> None:
    shown = opened(make_document(tiny_report.run(), counted="nobody counted"))
    assert "by where the fork begins" in shown.locator("#figure-title").inner_text()
    assert shown.locator("#choice strong").inner_text() == "4"
    assert "cannot be said without accuracies" in shown.locator("#choice").inner_text()
    assert "The breakdown by block is missing: nobody counted." in shown.locator("#details").inner_text()
    assert shown.get_by_label("Accuracy at least, in per cent").count() == 0


def test_what_was_not_measured_is_hollow_and_said(opened: Open, two_targets: dict[str, Any]) -> None:
    other = {**two_targets, "points": [dict(each) for each in two_targets["points"]]}
    for point, status in zip(other["points"], ("predicted", "not run on hardware"), strict=False):
        point["status"] = status
    shown = opened(other)
    assert "1 point predicted, 1 point not run on hardware" in shown.locator("#summary").inner_text()
    assert "Hollow points were not measured" in shown.locator("#caption").inner_text()
    plot = shown.get_by_role("application")
    for fork, filled in (("1", False), ("4", True)):
        shown.locator("#points tbody button", has_text=fork).filter(has_not_text="-").press("Enter")
        colour = plot.evaluate(
            """(each) => {
                const [x, y] = ['cx', 'cy'].map((name) => each.querySelector('.ring circle').getAttribute(name));
                const copy = new OffscreenCanvas(1, 1).getContext('2d');
                copy.drawImage(document.querySelector('canvas'), -Math.round(x), -Math.round(y));
                return [...copy.getImageData(0, 0, 1, 1).data];
            }"""
        )
        assert (colour[:3] != [255, 255, 255]) is filled, (fork, colour)


@pytest.mark.parametrize("with_names", ["short", "long"])
def test_no_page_scrolls_sideways_on_a_phone(
    opened: Open, two_targets: dict[str, Any], with_names: str
) -> None:
    document = dict(two_targets)
    if with_names == "long":
        long = "timm:" + "w" * 300
        document |= {
            "title": long,
            "model": long,
            "targets": [each | {"label": long} for each in document["targets"]],
        }
    shown = opened(document, 360, 740)
    assert shown.evaluate("document.documentElement.scrollWidth") == 360


CONTRAST = """() => {
  const channels = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = channels(getComputedStyle(each).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  let count = 0;
  for (const element of document.body.querySelectorAll('*')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest('script, noscript, .spoken, [hidden]')) continue;
    const style = getComputedStyle(element);
    const ink = channels(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [high, low] = [light(ink), light(behind(element))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    count += 1;
    if (ratio < 4.5) poor.push(`${element.tagName} "${element.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return { count, poor };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened: Open, two_targets: dict[str, Any], scheme: str) -> None:
    shown = opened(two_targets, color_scheme=scheme, reduced_motion="reduce")
    shown.get_by_role("application").focus()
    shown.keyboard.press("End")
    found = shown.evaluate(CONTRAST)
    assert found["poor"] == []
    assert found["count"] > 150
    dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 18, 20)"
    assert dark is (scheme == "dark")
    assert shown.evaluate("getComputedStyle(document.querySelector('.skip')).transitionDuration") == "0s"


def test_five_thousand_points_are_few_elements(opened: Open) -> None:
    shown = opened(tiny_report.many(5000))
    assert "5,000 points measured" in shown.locator("#summary").inner_text()
    for limit in (10, 20, 40):
        shown.get_by_label("Added latency at most, in per cent").fill(str(limit))
    assert shown.evaluate("document.querySelectorAll('*').length") < 1500
    assert shown.locator("#points tbody tr").count() == 25
    total = shown.locator("#points .pager span").inner_text()
    shown.get_by_role("button", name="Next").click()
    assert shown.locator("#points .pager span").inner_text() == total.replace("1–25", "26–50")


def test_hostile_names_are_shown_as_they_are(opened: Open) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    shown = opened(make_document(tiny_report.run(hostile, model=hostile, warnings=(hostile,))))
    assert hostile in shown.locator("h1").inner_text()
    assert hostile in shown.locator("#details").inner_text()
    assert shown.locator("img").count() == 0


def test_a_point_whose_interval_has_no_end(opened: Open, two_targets: dict[str, Any]) -> None:
    other = {**two_targets, "points": [{**each, "samples": None} for each in two_targets["points"]]}
    other["points"][0] |= {
        "added": [other["points"][0]["added"][0], None, None],
        "graph": [5.0, None, None, None],
    }
    shown = opened(other)
    shown.locator("#points tbody button", has_text="1").filter(has_not_text="-").press("Enter")
    assert "± ?" in shown.locator("#details").inner_text()
    assert "There are no samples of this point." in shown.locator("#details").inner_text()


def test_a_predicted_point_has_no_samples_and_says_so(opened: Open) -> None:
    predicted = Predicted("cpu", 0.01, (Anchor(((1,),), Ratio(1.5, 1.4, 1.6)),), "By a model.")
    shown = opened(make_document(tiny_report.run()[1:], tiny_report.trained(), predicted=[predicted]))
    shown.locator("#points tbody button", has_text="1").filter(has_not_text="-").press("Enter")
    told = shown.locator("#details").inner_text()
    assert "There are no samples of this point." in told
    assert "99th percentile" not in told
    assert "By a model." in shown.locator("#notes").inner_text()
