"""The page: offline, whole, safe against what a run holds, for every kind of run."""

import json
import re
import struct
from html.parser import HTMLParser

import pytest

from roundoff.errors import MissingLibraryError, RunError
from roundoff.report import page as page_module
from roundoff.report import write_report
from roundoff.store import Run

from .runs import HOSTILE, RUNS, write_run
from .trainings import TRAININGS, repeats, training

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements, text and scripts of a page; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def figures(self):
        return json.loads(self.scripts[0])["figures"]


@pytest.fixture
def page(reported):
    def get(name):
        return Page(reported(name)[1][0].read_text(encoding="utf-8"))

    return get


@pytest.mark.parametrize("name", [*RUNS, *TRAININGS])
class TestEveryRun:
    def test_the_page_comes_first_and_lies_in_the_run(self, reported, name):
        run, paths = reported(name)
        assert paths[0] == run.path / "report.html"
        assert all(path.is_file() for path in paths)

    def test_is_well_formed_and_below_two_megabytes(self, reported, page, name):
        assert reported(name)[1][0].stat().st_size < 2_000_000
        found = page(name)
        assert found.all("html")[0]["lang"] == "en"
        assert len(found.all("title")) == len(found.all("h1")) == 1

    def test_loads_nothing(self, reported, page, name):
        text, found = reported(name)[1][0].read_text(encoding="utf-8"), page(name)
        sources = [a["src"] for _, a in found.elements if "src" in a]
        assert all(s.startswith("data:image/png;base64,") for s in sources)
        assert all(a["alt"] for a in found.all("img"))
        assert not found.all("link") + found.all("iframe")
        style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
        assert style
        assert "@import" not in style
        assert "url(" not in style
        policies = [a["content"] for a in found.all("meta") if "http-equiv" in a]
        assert policies
        assert "default-src 'none'" in policies[0]

    def test_every_chart_has_a_place_a_caption_and_words_for_those_who_cannot_see(self, page, name):
        found = page(name)
        ids = {attrs.get("id") for _, attrs in found.elements}
        charts = [a for a in found.all("div") if a.get("class") == "chart"]
        assert {a["id"] for a in charts} == {f"chart-{f['id']}" for f in found.figures}
        assert all(a["role"] == "img" and a["aria-label"] for a in charts)
        for figure in found.figures:
            assert f"caption-{figure['id']}" in ids
            assert all(view["caption"] for view in figure["views"])

    def test_every_link_and_label_leads_somewhere(self, page, name):
        found = page(name)
        ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
        assert len(ids) == len(set(ids))
        assert all(a["href"].removeprefix("#") in ids for a in found.all("a"))

    def test_pictures_are_pictures(self, reported, page, name):
        _, paths = reported(name)
        pictures = sorted(p.name for p in paths[1:])
        expected = [f"{f['id']}.{kind}" for f in page(name).figures for kind in ("png", "svg")]
        assert pictures == sorted(expected)
        for path in paths[1:]:
            data = path.read_bytes()
            if path.suffix == ".png":
                width, height = struct.unpack(">II", data[16:24])
                assert data.startswith(b"\x89PNG\r\n\x1a\n")
                assert data.endswith(b"IEND\xaeB`\x82")
                assert 100 < width < 6000
                assert 40 < height < 8000
            else:
                assert data.startswith(b"<svg")

    def test_rows_and_numbers_fit_together(self, page, name):
        for figure in page(name).figures:
            for view in figure["views"]:
                assert len(view["values"]) == len(figure["rows"])
                assert all(len(v) == len(view["columns"]) for v in view["values"])
                assert any(v[0] is not None for v in view["values"])


class TestWhatIsShown:
    def test_verdicts_come_first_each_with_its_evidence(self, page):
        found = page("study")
        for word in ("C0", "statement 0", "10x", "9x [8, 10]", "holds only if", "cannot tell"):
            assert word in found.text
        assert found.text.index("Verdicts") < found.text.index("Figures")
        links = [a["href"] for a in found.all("a")]
        assert links == ["#claim-1", "#claim-2", "#claim-3", "#claim-4"]
        evidence = [f["id"] for f in found.figures if f["id"].startswith("evidence")]
        assert evidence == ["evidence-claim-1", "evidence-claim-2"]

    def test_a_bench_has_no_verdicts(self, page):
        found = page("bench")
        assert "Verdicts" not in found.text
        assert "Bench of attention" in found.text

    def test_the_command_stands_under_every_figure(self, page):
        found = page("study")
        assert found.text.count("roundoff study") == len(found.figures) + 1

    def test_failures_are_told_with_their_reasons(self, page):
        text = page("only_failures").text
        for word in ("CellError: it broke", "skipped", "needs a CUDA device", "no reason stored"):
            assert word in text
        assert "2 failed, 1 skipped" in text

    def test_an_empty_run_says_so(self, page):
        assert "This run holds no deviations" in page("empty").text

    def test_recipes_stand_beside_the_kernels_of_their_name(self, tmp_path):
        from .runs import cell, line, metrics, write_run

        rows = [
            line(cell("recipe:fast", 0, {"n": 1}, baseline="kernel:fast"), {"o": metrics(1e-4)},
                 evidence={"o": {"match": 0.875, "null": 0.5, "lift": 0.75}})
        ]  # fmt: skip
        paths = write_report(write_run(tmp_path / "run", rows))
        assert "0.875 0.5 0.75" in Page(paths[0].read_text()).text

    def test_nothing_knows_the_operator(self, page):
        ids = [f["id"] for f in page("softmax").figures]
        assert "error-by-columns" in ids
        assert "y rel_l2" in page("softmax").text

    def test_what_cannot_be_drawn_is_counted(self, page):
        captions = [v["caption"] for f in page("strange_numbers").figures for v in f["views"]]
        assert any("are NaN or infinite" in c for c in captions)
        assert any("are 0" in c for c in captions)

    def test_a_nan_stays_in_the_table(self, page):
        text = page("all_nan").text
        assert " nan " in text[text.index("All results") :]

    def test_one_seed_has_no_interval(self, page):
        view = next(f for f in page("one_seed").figures if f["id"].startswith("error-by"))["views"][
            0
        ]
        assert all(low is None and high is None for _, low, high in view["values"])


class TestTraining:
    def test_facts_figures_and_tables_come_with_words(self, page):
        found = page("trained")
        ids = [f["id"] for f in found.figures]
        assert ids == [f"training-1-{n}" for n in ("distance", "units", "loss", "tensors")]
        for word in ("Training of pictures, fp32, 400 steps", "the model's own attention", "1,234",
                     "Noise or bias", "biased", "because biased", "LabError: it broke",
                     "pictures, format fp32, steps 400, repeat 0"):  # fmt: skip
            assert word in found.text

    def test_pictures_stand_in_the_page_with_their_captions(self, page):
        found = page("trained")
        assert [a["alt"].rpartition(": ")[2] for a in found.all("img")] == ["A DIAGONAL", "A DOT"]
        assert [(a["width"], a["height"]) for a in found.all("img")] == [("4", "3"), ("1", "1")]
        assert "once upon 0" in page("diverged").text

    def test_what_is_nan_infinite_or_0_is_told(self, page):
        found = page("diverged")
        view = found.figures[0]["views"][0]
        assert "rerun is exactly 0 at every step" in view["caption"]
        assert "fast is NaN or infinite from step 10 on" in view["caption"]
        assert "ulp is NaN or infinite at every step" in view["caption"]
        told = [v[0] for v in view["values"]]
        assert [told.count(w) for w in ("inf", "nan", "exactly 0")] == [1, 1 + 5, 5]
        loss = next(f for f in found.figures if f["id"].endswith("loss"))
        assert "fast is NaN or infinite from step 10 on" in loss["views"][0]["caption"]
        assert "fast: its loss is inf from step 10 on in repeat 0, 1, 2 of 3" in found.text
        assert "ulp: its loss is NaN from step 1 on in repeat 1 of 3" in found.text

    def test_without_a_distance_to_draw_the_page_says_so(self, page):
        assert "No distance can be drawn" in page("idle").text
        assert [f["id"] for f in page("idle").figures] == ["training-1-loss"]

    def test_a_baseline_alone_has_a_loss_and_a_sample(self, page):
        found = page("long_run")
        assert [f["id"] for f in found.figures] == ["training-1-loss"]
        assert "once upon 0" in found.text
        assert "No distance can be drawn" not in found.text

    def test_the_sample_is_that_of_the_long_run_with_its_steps(self, tmp_path):
        long = training(0, candidates=(), yardsticks=(), sample={"text": "a whole sentence"},
                        experiment={"steps": 4000, "what": "long"})  # fmt: skip
        run = write_run(tmp_path / "run", [*repeats(2, experiment={"what": "repeat"}), long])
        text = write_report(run)[0].read_text()
        assert "What the baseline makes after 4000 steps" in text
        assert "once upon" not in text
        assert text.count("a whole sentence") == 1

    def test_bench_and_training_share_a_page(self, page):
        found = page("both")
        ids = [f["id"] for f in found.figures]
        assert {"training-1-distance", "training-2-distance", "error-by-seq-len"} <= set(ids)
        for word in (
            "2 of 3",
            "4 (3 ok, 1 skipped)",
            "CellError: no",
            "needs a GPU",
            "All results",
        ):
            assert word in found.text


class TestHostileRuns:
    def test_nothing_comes_from_a_hostile_training(self, page):
        found = page("hostile_training")
        assert len(found.all("script")) == 3
        assert not found.all("img")
        assert "a sample is no picture" in found.text
        assert found.figures

    def test_no_element_comes_from_the_run(self, page):
        found = page("hostile")
        assert len(found.all("script")) == 3
        assert not found.all("img")
        assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]

    def test_names_are_shown_as_they_are(self, page):
        assert " ".join(HOSTILE.split()) in page("hostile").text

    def test_the_embedded_data_survives(self, page):
        rows = [row for figure in page("hostile").figures for row in figure["rows"]]
        assert any(HOSTILE in str(row.get("candidate")) for row in rows)

    def test_files_have_tame_names(self, reported):
        _, paths = reported("hostile")
        assert all(re.fullmatch(r"[a-z0-9.-]{1,80}", p.name) for p in paths)


class TestWriting:
    def test_another_folder_leaves_the_run_alone(self, tmp_path):
        run = RUNS["one_cell"](tmp_path / "run")
        before = sorted(p.name for p in run.path.iterdir())
        paths = write_report(run, folder=tmp_path / "elsewhere" / "deep")
        assert paths[0] == tmp_path / "elsewhere" / "deep" / "report.html"
        assert sorted(p.name for p in run.path.iterdir()) == before

    def test_twice_gives_the_same_and_leaves_nothing_behind(self, tmp_path):
        run = RUNS["one_cell"](tmp_path / "run")
        first = {p: p.read_bytes() for p in write_report(run)}
        assert {p: p.read_bytes() for p in write_report(run)} == first
        assert not list(run.path.rglob("*.tmp"))
        assert len(Run.open(run.path).rows()) == 1

    def test_a_folder_that_cannot_be_is_one_error(self, tmp_path):
        run = RUNS["empty"](tmp_path / "run")
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError, match="file"):
            write_report(run, folder=tmp_path / "file")

    def test_damaged_claims_are_an_error(self, tmp_path):
        run = RUNS["one_cell"](tmp_path / "run")
        (run.path / "claims.json").write_text("{")
        with pytest.raises(RunError, match=r"claims\.json"):
            write_report(run)

    def test_a_page_that_grows_too_large_leaves_views_out(self, tmp_path, monkeypatch):
        run = RUNS["study"](tmp_path / "run")
        monkeypatch.setattr(page_module, "MOST_BYTES", 1_050_000)
        monkeypatch.setattr(page_module, "png", lambda _: b"")
        monkeypatch.setattr(page_module, "svg", lambda *_: "")
        path = write_report(run)[0]
        assert path.stat().st_size < 1_100_000
        assert "left out to keep this page small" in Page(path.read_text()).text

    def test_a_missing_library_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "altair", None)
        with pytest.raises(MissingLibraryError, match=r"roundoff\[report\]"):
            write_report(RUNS["bench"](tmp_path / "run"))
