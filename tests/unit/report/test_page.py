"""The page of an evaluation: complete, harmless whatever things are called, and alone."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as mpl_image
from PIL import Image

from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.aggregate import summarise
from medseg.metrics.case import StructureScore
from medseg.metrics.compare import compare
from medseg.report.comparison import draw_comparison
from medseg.report.evaluation import Comparison, Evaluation, picture_path, write_tables
from medseg.report.page import NUM_WORST, write_page
from medseg.report.scores import draw_scores
from medseg.report.tables import comparison_text, summary_text

SCHEMA = LabelSchema((Structure("heart", 1), Structure("<b>lung</b>", 2, tolerance_mm=1.5)))
Cases = dict[str, dict[str, StructureScore]]

EVIL = "<script>alert('1')</script> & \"x\""


def score(dice: float, status: str = "scored") -> StructureScore:
    return StructureScore(dice, dice, 2.0 if status == "scored" else None, -0.5, status, dice / 2, 1.0)


def scores_of(dice: dict[str, float]) -> Cases:
    return {case: {"heart": score(value), "<b>lung</b>": score(0.9)} for case, value in dice.items()}


def evaluation_of(cases: Cases, other: Cases | None = None, schema: LabelSchema = SCHEMA) -> Evaluation:
    comparison = Comparison("other", other, compare(cases, other, schema), {"a": "a is empty & <i>"}) if other else None
    summary = summarise(cases, schema)
    problems = {"z": f"{EVIL} is left out"}
    return Evaluation(
        EVIL, "references", schema, "elements", cases, summary, problems, notes=["by & by"], comparison=comparison
    )


def draw_pair(path: Path, ours: Cases, other: Cases, schema: LabelSchema) -> None:
    evaluation = evaluation_of(ours, other, schema)
    assert evaluation.comparison is not None
    draw_comparison(path, evaluation, evaluation.comparison)


def page_of(folder: Path, evaluation: Evaluation) -> str:
    draw_scores(folder / "figures" / "scores.png", evaluation.cases, SCHEMA)
    if evaluation.comparison is not None:
        draw_comparison(folder / "figures" / "comparison.png", evaluation, evaluation.comparison)
    write_page(folder / "report.html", evaluation)
    return (folder / "report.html").read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Tags with their attributes, text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.is_open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.is_open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.is_open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


CASES = scores_of({"good": 0.95, EVIL: 0.2, "bad": 0.4})
CASES["lost"] = {"heart": score(0.0, "missing"), "<b>lung</b>": score(0.0, "spurious")}


def test_every_part_is_there(tmp_path: Path) -> None:
    outline = Outline(page_of(tmp_path, evaluation_of(CASES, scores_of(dict.fromkeys(CASES, 0.5)))))
    assert outline.is_open == []
    text = "\n".join(outline.texts)
    for part in ("Summary", "Problems", "The 4 worst cases", "All cases", "Definitions", "minus other", "95\xa0% BCa"):
        assert part in text
    assert "a is empty & <i>" in text
    assert "by & by" in text
    assert f"{EVIL} is left out" in text
    for word in ("missing", "spurious", "1.5", "heart", "<b>lung</b>", "DeepMind"):
        assert word in text


def test_names_are_harmless(tmp_path: Path) -> None:
    page = page_of(tmp_path, evaluation_of(CASES))
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"script", "b", "i", "link", "iframe", "object"}
    assert not [key for _, attributes in outline.tags for key in attributes if key.startswith("on")]
    assert any(text.startswith(f"1. lost: mean Dice {0:.3f}") for text in outline.texts)
    assert any(text.startswith(f"2. {EVIL}: mean Dice") for text in outline.texts)


def test_it_asks_nobody_for_anything(tmp_path: Path) -> None:
    outline = Outline(page_of(tmp_path, evaluation_of(CASES, CASES)))
    links = [value for _, tag in outline.tags for key, value in tag.items() if key in {"src", "href", "srcset", "data"}]
    assert len(links) == 2, "the two figures"
    assert all(link.startswith("data:image/") for link in links)
    styles = [tag.get("style") or "" for _, tag in outline.tags] + outline.texts
    assert not [style for style in styles if re.search(r"url\(|@import", style)]
    policy = next(tag["content"] for _, tag in outline.tags if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'")
    # Inside the data there is a real picture.
    content = base64.b64decode(links[0].split(",")[1])
    assert content == (tmp_path / "figures/scores.png").read_bytes()


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (page_of(tmp_path / name, evaluation_of(CASES, scores_of(dict.fromkeys(CASES, 0.7)))) for name in "ab")
    assert one == two


def test_the_worst_come_first_with_their_picture(tmp_path: Path) -> None:
    cases = scores_of({f"c{n:02d}": n / 40 for n in range(40)})
    rng = np.random.default_rng(0)
    pictures = {}
    for case in sorted(cases)[: NUM_WORST + 2]:
        pictures[case] = picture_path(tmp_path, case)
        pictures[case].parent.mkdir(exist_ok=True)
        mpl_image.imsave(pictures[case], rng.random((600, 1000, 3)))
    page = page_of(tmp_path, replace(evaluation_of(cases), pictures=pictures))
    titles = re.findall(r"<h3>(\d+)\. (c\d+): mean Dice", page)
    assert titles == [(str(n + 1), f"c{n:02d}") for n in range(NUM_WORST)]
    jpegs = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    assert len(jpegs) == NUM_WORST
    assert len(page) < NUM_WORST * 2**20
    (tmp_path / "x.jpg").write_bytes(base64.b64decode(jpegs[0]))
    with Image.open(tmp_path / "x.jpg") as picture:
        assert picture.width <= 840
    assert re.findall(r"<tr><td>(c\d+)</td>", page) == sorted(cases), "all cases, worst first"


def test_among_equal_means_the_worst_structure_decides() -> None:
    cases = {
        "even": {"heart": score(0.5), "<b>lung</b>": score(0.5)},
        "uneven": {"heart": score(0.0), "<b>lung</b>": score(1.0)},
        "unscored": {"heart": StructureScore(None, None, None, None, "absent")},
    }
    assert evaluation_of(cases).worst_first() == [("uneven", 0.5), ("even", 0.5), ("unscored", None)]


def test_nothing_to_show_is_a_page_too(tmp_path: Path) -> None:
    for number, cases in enumerate(({}, {"x": {}}, {"x": {"heart": StructureScore(None, None, None, None, "absent")}})):
        outline = Outline(page_of(tmp_path / str(number), evaluation_of(cases)))
        assert outline.is_open == []
        assert outline.tags[-1][0] != "style"


def test_many_structures_make_no_wide_table(tmp_path: Path) -> None:
    schema = LabelSchema(tuple(Structure(f"s{n}", n) for n in range(1, 118)))
    cases = {"x": {name: score(0.5) for name in schema.names}}
    evaluation = Evaluation("p", "r", schema, "borders", cases, summarise(cases, schema), {})
    draw_scores(tmp_path / "figures" / "scores.png", cases, schema)
    write_page(tmp_path / "report.html", evaluation)
    page = (tmp_path / "report.html").read_text()
    heads = re.findall(r"<thead>(.*?)</thead>", page)
    assert max(head.count("<th>") for head in heads) < 20
    assert len(page) < 2**21


@pytest.mark.parametrize("name", ["scores", "Comparison", "curves", "First_batches", "other"])
def test_a_case_called_like_a_figure_keeps_its_own_picture(tmp_path: Path, name: str) -> None:
    path = picture_path(tmp_path, name)
    assert path.name.lower() not in ("scores.png", "comparison.png", "curves.png", "first_batches.png")
    assert path.parent == tmp_path / "figures"


def test_names_with_dollars_are_drawn_as_they_stand(tmp_path: Path) -> None:
    schema = LabelSchema((Structure("$\\frac{$", 1),))
    cases = {"$x_{$": {"$\\frac{$": score(0.5)}}
    draw_scores(tmp_path / "s.png", cases, schema)
    draw_pair(tmp_path / "c.png", cases, cases, schema)
    assert (tmp_path / "s.png").stat().st_size > 1000


def dark(path: Path, left: float, right: float) -> int:
    """Dark pixels between two parts of the width."""
    pixels = np.asarray(mpl_image.imread(path))[..., :3].max(axis=-1) < 0.2
    width = pixels.shape[1]
    return int(pixels[:, int(left * width) : int(right * width)].sum())


def test_differences_are_drawn_at_their_side(tmp_path: Path) -> None:
    worse, better = scores_of({"x": 0.3, "y": 0.35}), scores_of({"x": 0.8, "y": 0.7})
    schema = LabelSchema((Structure("heart", 1),))
    for name, ours, other in (("up", better, worse), ("down", worse, better)):
        draw_pair(tmp_path / f"{name}.png", ours, other, schema)
    first_panel = (0.08, 0.2), (0.24, 0.35)
    assert dark(tmp_path / "up.png", *first_panel[1]) > dark(tmp_path / "down.png", *first_panel[1])
    assert dark(tmp_path / "down.png", *first_panel[0]) > dark(tmp_path / "up.png", *first_panel[0])


def test_tables_for_the_terminal_are_aligned() -> None:
    schema = LabelSchema((Structure("a structure with quite a long name", 1), Structure("b", 2), Structure("c", 3)))
    cases = {"x": {"b": score(0.5), schema.names[0]: score(0.0, "missing")}, "y": {"b": score(0.7)}}
    summary = summary_text(summarise(cases, schema))
    compared = comparison_text(compare(cases, cases, schema))
    for text in (summary, compared):
        assert len({len(line) for line in text.splitlines()}) == 1
    assert re.search(r"^b +0\.600 +0\.500 to 0\.700 +0\.600 +2\.0 +2$", summary, re.MULTILINE)
    assert re.search(r"^c +– +– +– +– +0$", summary, re.MULTILINE)
    assert re.search(r"^b +\+0\.000 +\+0\.000 to \+0\.000 +1\.000 +0/0/2 ", compared, re.MULTILINE)


def test_one_case_shows_no_interval() -> None:
    assert re.search(r"^heart +0\.200 +– ", summary_text(summarise(scores_of({"x": 0.2}), SCHEMA)), re.MULTILINE)


def test_tables_are_written(tmp_path: Path) -> None:
    write_tables(tmp_path, evaluation_of(CASES))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 2 * len(CASES)
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + 3
    assert (tmp_path / "metrics.json").read_text().startswith("{")
