"""The page in a real browser without a network: every chart draws, and nothing complains."""

import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=60000", "--enable-logging=stderr", "--dump-dom",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browse(path, profile, *flags):
    """The page as the browser has it in the end, and its console."""
    place = f"file://{path}"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("study", []),
        ("study", ["--window-size=400,900"]),
        ("study", ["--blink-settings=preferredColorScheme=0"]),
        ("softmax", []),
        ("strange_numbers", []),
        ("hostile", []),
        ("empty", []),
        ("trained", []),
        ("trained", ["--window-size=400,900"]),
        ("trained", ["--blink-settings=preferredColorScheme=0"]),
        ("diverged", []),
        ("both", []),
        ("hostile_training", []),
    ],
)
def test_every_chart_is_drawn(reported, tmp_path, name, flags):
    path = reported(name)[1][0]
    dom, console = browse(path, tmp_path, *flags)
    assert console == []
    places = re.findall(r'<div class="chart[^"]*" id="chart-([^"]*)"', dom)
    assert len(places) == path.read_text().count('<div class="chart"')
    parts = re.split(r'<div class="chart[^"]*" id="chart-', dom)[1:]
    for place, part in zip(places, parts, strict=True):
        assert re.search(r"<svg.*?<path", part.partition("<figcaption")[0], re.DOTALL), place
    assert 'data-drawn="yes"' in dom
    assert "could not be drawn" not in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)


@pytest.mark.slow
def test_the_chosen_metric_is_drawn_and_listed(reported, tmp_path):
    text = reported("study")[1][0].read_text()
    script = """<script>
    const chooser = document.querySelector("figure select");
    chooser.selectedIndex = 1;
    chooser.dispatchEvent(new Event("change"));
    chooser.closest("figure").querySelector("details").open = true;
    </script></body>"""
    path = tmp_path / "chosen.html"
    head, _, tail = text.rpartition("</body>")
    path.write_text(head + script + tail)
    dom, console = browse(path, tmp_path / "profile")
    assert console == []
    figure = dom[dom.index('<h2 id="figures"') :].partition("</figure>")[0]
    assert "out rmse (units of out)" in figure
    assert '<th class="number">out rmse</th>' in figure


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", "diverged"])
def test_every_view_is_drawn(reported, tmp_path, name):
    text = reported(name)[1][0].read_text()
    script = """<script>
    (async () => {
      const empty = [];
      let views = 0;
      for (const figure of page.figures) {
        const chooser = document.getElementById("view-" + figure.id);
        for (const [i, view] of figure.views.entries()) {
          if (chooser) chooser.selectedIndex = i;
          await draw(figure);
          views += 1;
          const kinds = ":is(.mark-symbol.role-mark, .mark-line, .mark-rect.role-mark)";
          const marks = document.querySelectorAll(`#chart-${figure.id} ${kinds} path`);
          if (![...marks].some((mark) => mark.getAttribute("d"))) empty.push(view.label);
        }
      }
      document.documentElement.dataset.views = views;
      document.documentElement.dataset.empty = empty.join(", ");
    })();
    </script></body>"""
    path = tmp_path / "views.html"
    head, _, tail = text.rpartition("</body>")
    path.write_text(head + script + tail)
    dom, console = browse(path, tmp_path / "profile")
    assert console == []
    held = [view for figure in figures_of(text) for view in figure["views"]]
    assert f'data-views="{len(held)}"' in dom
    assert 'data-empty=""' in dom


def figures_of(text):
    found = re.search(r'<script type="application/json" id="figures-data">(.*?)</script>', text)
    return json.loads(found[1])["figures"]
