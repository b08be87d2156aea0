"""The report of a made-up run: numbers against the JSON, escaping, missing parts, and the page in a real browser."""

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from fabricated_run import NASTY, fabricate
from playwright.sync_api import sync_playwright

from eval.benchmarks.calvin import TASKS
from eval.benchmarks.calvin_chains import summarize_chains
from eval.errors import EvaluationError
from eval.recording import side_by_side, write_video
from eval.report.charts import draw_losses, loss_curves, thin
from eval.report.collect import collect, read_curves
from eval.report.page import render, write_report
from eval.report.wording import duration, percent

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> Path:
    return fabricate(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def report(run_directory) -> Path:
    return write_report(run_directory)


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


class Visit:
    """One page load with everything that went wrong in it."""

    def __init__(self, browser, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
        self.context.set_default_timeout(120_000)  # of a machine that does other things, too
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")

    def close(self) -> None:
        self.context.close()


@pytest.mark.medium
def test_page_is_clean_and_asks_for_nothing(browser, report):
    visit = Visit(browser, report, 1280)
    outside = [url for url in visit.requests if not url.startswith("data:") and url != report.as_uri()]
    visit.close()
    assert visit.complaints == []
    assert outside == []


@pytest.mark.medium
def test_videos_play(browser, report):
    visit = Visit(browser, report, 1280)
    page = visit.page
    page.locator("#rollouts").scroll_into_view_if_needed()
    videos = page.locator("#rollouts video:visible")
    assert videos.count() == 4  # the policy's; the others wait behind a click
    page.locator("#rollouts summary").first.click()
    assert page.locator("#rollouts video:visible").count() == 8
    for number in range(2):
        video = videos.nth(number)
        video.scroll_into_view_if_needed()
        playing = "video => video.currentTime > 0.1 && !video.paused && !video.error"
        page.wait_for_function(playing, arg=video.element_handle(), timeout=60_000)
        assert video.evaluate("video => [video.videoWidth, video.videoHeight, video.muted, video.loop]") == [400, 244, True, True]
    visit.close()


@pytest.mark.medium
@pytest.mark.parametrize("width", [1280, 390])
def test_layout_fits_the_window(browser, report, width):
    visit = Visit(browser, report, width)
    page = visit.page
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # nothing sticks out of its card either, except what scrolls inside it
    sticking = page.evaluate(
        """() => [...document.querySelectorAll('.card *')].filter(node => {
            const scrolls = node.closest('.scroll, pre'), box = node.getBoundingClientRect();
            const card = node.closest('.card').getBoundingClientRect();
            return !scrolls && box.width > 0 && (box.right > card.right + 1 || box.left < card.left - 1);
        }).map(node => node.outerHTML.slice(0, 120))"""
    )
    assert sticking == []
    visit.close()


@pytest.mark.medium
def test_both_colour_schemes_are_readable(browser, report):
    """Body text has a contrast of at least 7 : 1, soft text of at least 4.5 : 1 (WCAG)."""

    def luminance(colour: str) -> float:
        channels = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for scheme in ("light", "dark"):
        visit = Visit(browser, report, 800, scheme=scheme)
        page = visit.page
        card = page.locator(".card").first.evaluate("node => getComputedStyle(node).backgroundColor")
        for selector, least in ((".card p", 7.0), (".tile .label", 4.5), (".tile .policy", 4.5), (".solved", 4.5), (".failed", 4.5)):
            ink = page.locator(selector).first.evaluate("node => getComputedStyle(node).color")
            bright, dark = sorted((luminance(ink), luminance(card)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= least, (scheme, selector)
        visit.close()


@pytest.mark.medium
def test_numbers_on_the_page_are_those_of_the_files(browser, run_directory, report):
    visit = Visit(browser, report, 1280)
    page = visit.page
    for policy in ("policy", "random", "expert"):
        metrics = json.loads((run_directory / "eval" / policy / "results.json").read_text())["metrics"]
        for scene, cells in metrics["scenes"].items():
            for task, cell in [*cells["tasks"].items(), ("all", cells["overall"])]:
                shown = page.locator(f'tr[data-scene="{scene}"][data-task="{task}"] td[data-policy="{policy}"]').inner_text()
                assert shown.replace("\xa0", " ").split() == [f"{cell['successes']}/{cell['trials']}", percent(cell["rate"])]
    policy = json.loads((run_directory / "eval" / "policy" / "results.json").read_text())["metrics"]["scenes"]["A"]["overall"]
    tile = page.locator('.tile[data-scene="A"]').inner_text()
    assert percent(policy["rate"]) in tile
    assert f"{100 * policy['low']:.1f} to {100 * policy['high']:.1f}%" in tile
    assert "(seen in training)" in tile
    assert "(unseen in training)" in page.locator('.tile[data-scene="D"]').inner_text()

    # the drawn interval covers the same share of its lane as in the file
    mark = page.locator("#success figure").first.locator(".row.sum .span.policy")
    share = mark.evaluate("node => node.getBoundingClientRect().width / node.parentElement.getBoundingClientRect().width")
    assert share == pytest.approx(policy["high"] - policy["low"], abs=0.01)

    kept = json.loads((run_directory / "data" / "build_report.json").read_text())
    for task in TASKS:
        row = page.locator(f'tr[data-group="{task}"]').inner_text().split()
        assert row == [task, str(kept["attempts"][task]), str(kept["kept"][task]), percent(kept["kept"][task] / kept["attempts"][task])]
    seconds = json.loads((run_directory / "timing.json").read_text())
    assert duration(sum(entry["seconds"] for entry in seconds.values())) in page.locator("#time").inner_text()
    visit.close()


def test_step_time_waiting_and_compilation_are_told_apart(report):
    assert "120 ms per step (median), 2.0% of it waiting for data, compiled in 15 s in 2 starts" in report.read_text()


def test_motion_of_the_predictor_is_told_where_it_was_measured(report):
    text = report.read_text()
    assert text.count("correlate with") == 1
    assert "predicted and true change correlate with 0.62 (1: equal" in text  # 0.625, rounded half to even
    assert "error is 0.75 times that of a still image" in text


@pytest.mark.medium
def test_text_from_files_is_escaped(browser, report):
    html = report.read_text()
    assert NASTY not in html
    assert "<script" not in html
    visit = Visit(browser, report, 1280)
    assert NASTY in visit.page.locator("#rollouts figcaption b").first.inner_text()
    visit.close()


def test_every_part_may_be_missing(run_directory, tmp_path):
    for part in ("data", "vae", "video", "policy", "eval", "timing.json"):
        target = tmp_path / f"only_{part}" / part
        target.parent.mkdir()
        source = run_directory / part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        page = render(collect(target.parent))
        assert "Not present: " in page
        missing = {"eval": "closed-loop evaluation", "timing.json": "time per stage", "data": "report of the data build"}
        for other, words in missing.items():
            assert (words in page) == (other != part)
    whole = render(collect(run_directory))
    assert "Not present" not in whole
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="holds nothing to report"):
        collect(tmp_path / "empty")
    with pytest.raises(EvaluationError, match="no run directory"):
        collect(tmp_path / "nowhere")


def test_scores_stand_beside_what_they_were_measured_in(run_directory, tmp_path, report):
    where = "calvin_mujoco, version 1, quality some, reset fixed, renderer egl"
    assert f"Measured in {where} (policy, random actions, scripted expert)." in report.read_text()
    shutil.copytree(run_directory / "eval", tmp_path / "eval")
    path = tmp_path / "eval" / "policy" / "results.json"
    results = json.loads(path.read_text())
    chains = [{"index": number, "solved": 0, "tasks": [{"task": "open_drawer", "success": False, "steps": 1}]} for number in range(2)]
    for published, scored, words in ((False, chains, "Not comparable with"), (True, chains, "Comparable with"), (False, [], "length –")):
        path.write_text(json.dumps(results | {"published": published, "metrics": summarize_chains(scored)}))
        page = render(collect(tmp_path))
        assert words in page
        assert f"published average lengths. Measured in {where}." in page
    assert f"Measured in {where} (random actions, scripted expert)." in page.replace("policy, ", "")


def test_an_incomplete_evaluation_says_so(run_directory, tmp_path):
    shutil.copytree(run_directory / "eval", tmp_path / "eval")
    path = tmp_path / "eval" / "policy" / "results.json"
    results = json.loads(path.read_text()) | {"complete": False, "failures": {"unscored": {"3": "worker died", "7": "worker died"}}}
    path.write_text(json.dumps(results))
    assert "Incomplete (policy): 2 episodes could not be scored" in render(collect(tmp_path))


def test_curves_keep_the_last_value_of_a_repeated_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"kind": "train", "step": 1, "loss": 3.0}', '{"kind": "train", "step": 2, "loss": 2.0, "time/step_ms": 5}']
    lines += ['{"kind": "eval", "step": 2, "loss": 2.5}', '{"kind": "train", "step": 2, "loss": 1.5}', '{"step": 3, "los']
    path.write_text("\n".join(lines))
    assert read_curves(path) == {"loss": ([1, 2], [3.0, 1.5]), "time/step_ms": ([2], [5.0]), "eval/loss": ([2], [2.5])}


def test_long_curves_are_thinned_without_moving_their_mean():
    values = np.random.default_rng(0).normal(size=30000)
    x, y = thin(np.arange(30000), values)
    assert len(x) == 300
    assert y.mean() == pytest.approx(values.mean())
    chosen = loss_curves({"learning_rate": ([1], [1.0]), "eval/loss": ([1], [1.0]), "loss": ([1], [1.0]), "grad_norm": ([1], [1.0])})
    assert list(chosen) == ["loss", "eval/loss"]


def test_charts_follow_the_theme_and_share_no_ids():
    curves = {"loss": (list(range(50)), list(np.geomspace(100, 0.1, 50)))}
    first, second = draw_losses(curves, "one"), draw_losses(curves, "two")
    assert "var(--c1)" in first
    assert "#030303" not in first
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r"url\(#([^)]+)\)", first)) | set(re.findall(r'href="#([^"]+)"', first))
    assert used <= ids[0]


def test_written_videos_decode_to_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(30, 220, (12, 3))
    frames = np.broadcast_to(colours[:, None, None], (12, 65, 97, 3)).astype(np.uint8)
    path = write_video(tmp_path / "colours.mp4", frames, fps=15)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 15.0)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == (12, 64, 96, 3)
    assert np.abs(decoded.mean((1, 2)) - colours).max() < 8  # limited range and chroma rounding of one-colour frames


def test_views_stand_side_by_side_at_one_height():
    joined = side_by_side([np.full((200, 200, 3), 10, np.uint8), np.full((84, 84, 3), 90, np.uint8)])
    assert joined.shape == (200, 400, 3)
    assert set(np.unique(joined)) == {10, 90}
