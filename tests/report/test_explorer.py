"""The interactive page: what it holds, and that a browser without a network shows it."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from browser import ARROW_DOWN, ARROW_RIGHT, CHROMIUM, DRIVER, ENTER, TAB, opened
from effopd.dynamics.analysis import analyse_checkpoints
from effopd.models.models import save_tensors, weights_of
from effopd.specs.read import read_spec
from effopd.stages.write_explorer import explorer_data, write_explorer
from tiny_models import make_model

SPEC = read_spec("write_explorer", {
    "runs": ["opd", "jump"], "groups": [["main", ["opd", "jump"]]], "seeds": [0], "labels": {"opd": "Plain", "jump": "Jump </script>"}, "models": ["teacher"],
    "baseline": "opd", "template": "",
})  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Weight analyses of random updates of a two-layer model, with and without earlier steps."""
    folder = tmp_path_factory.mktemp("explorer")
    base = weights_of(make_model(0))
    paths = {}
    for step in range(4):
        torch.manual_seed(step)
        paths[step] = folder / f"step{step}.safetensors"
        save_tensors(paths[step], {name: w + 1e-3 * step * torch.randn_like(w) for name, w in base.items()})
    for subject, steps in {"opd/seed0": (1, 2, 3), "jump/seed0": (2, 3), "models/teacher": (1,)}.items():
        out = folder / "results/dynamics" / subject
        analyse_checkpoints(paths[0], {step: paths[step] for step in steps}, out, torch.device("cpu"))
        shutil.copy(out / "analysis.json", out / "weight_analysis.json")  # as the workflow names it
    return folder / "results"


def test_the_page_holds_every_value_of_the_tables(results):
    data = explorer_data(SPEC, results)
    assert [subject["name"] for subject in data["subjects"]] == [
        "Plain, seed 0",
        "Jump </script>, seed 0",
        "teacher (RL)",
    ]
    assert data["layers"] == [0, 1]
    assert data["modules"] == ["q", "k", "v", "o", "gate", "up", "down", "norm"]
    plain = data["subjects"][0]
    assert plain["steps"] == [1, 2, 3]
    spectra = pd.read_parquet(results / "dynamics/opd/seed0/spectra.parquet")
    row = spectra[(spectra["step"] == 2) & (spectra["layer"] == 1) & (spectra["module"] == "up")].iloc[0]
    found = plain["values"]["effective_rank"][1][1][data["modules"].index("up")]
    assert found == pytest.approx(row["effective_rank"], rel=1e-3)
    norms = pd.read_parquet(results / "dynamics/opd/seed0/norms.parquet")
    of_norms = norms[(norms["step"] == 3) & (norms["layer"] == 0) & (norms["module"] == "norm")]["frobenius_norm"]
    assert plain["values"]["frobenius_norm"][2][0][-1] == pytest.approx((of_norms**2).sum() ** 0.5, rel=1e-3)
    assert plain["values"]["effective_rank"][0][0][-1] is None, "vectors have no spectrum"
    alignment = plain["values"]["left_principal_cosine"]
    assert alignment[0][0][0] is not None
    assert alignment[2][0][0] is None, "the final step is not aligned with itself"


def test_the_scale_of_a_metric_spans_all_its_values(results):
    data = explorer_data(SPEC, results)
    for metric in data["metrics"]:
        values = [v for s in data["subjects"] for step in s["values"][metric["name"]] for row in step for v in row if v]
        assert min(values) >= metric["min"] * 0.999
        assert max(values) == pytest.approx(metric["max"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)")
def test_a_browser_without_a_network_shows_it_and_answers_mouse_and_keyboard(results, tmp_path):
    page = results / "dynamics.html"
    write_explorer(SPEC, results, page)
    with opened(page, tmp_path / "profile") as browser:
        assert browser.run("return document.querySelectorAll('.map').length") == 3
        assert browser.run("return document.querySelectorAll('rect.cell').length") == 3 * 2 * 8
        assert browser.run("return performance.getEntriesByType('resource').length") == 0
        data = json.loads(browser.run("return document.getElementById('data').textContent"))
        cell = "rect.cell[data-step='2'][data-layer='1'][data-module='up']"
        value = data["subjects"][0]["values"]["frobenius_norm"][1][1][5]
        browser.hover(cell)
        tip = browser.run("const t = document.getElementById('tip'); return t.hidden ? '' : t.textContent")
        assert tip.startswith("up, layer 1, step 2\nnorm of the update")
        assert f"{float(f'{value:.3g}'):g}" in tip
        assert "Frobenius norm" in tip
        color = browser.run(f'return document.querySelector("{cell}").getAttribute("fill")')
        browser.click(cell)
        assert "up, layer 1: norm of the update" in browser.run("return document.getElementById('detail').textContent")
        assert browser.run("return document.querySelectorAll('#detail circle').length") == 3

        browser.run("document.getElementById('subject').focus()")
        browser.press(TAB, ARROW_DOWN, ARROW_RIGHT, ARROW_RIGHT)
        said = browser.run("return document.getElementById('said').textContent")
        assert said.startswith("v, layer 1, step 1\n")
        browser.press(ENTER)
        assert "v, layer 1" in browser.run("return document.querySelector('#detail h2').textContent")

        browser.run("const s = document.getElementById('subject'); s.value = 1; s.dispatchEvent(new Event('change'))")
        assert browser.run("return document.querySelectorAll('.map').length") == 2
        assert color == browser.run(f'return document.querySelector("{cell}").getAttribute("fill")'), (
            "one value, one color"
        )
        browser.run("const s = document.getElementById('metric'); s.value = 4; s.dispatchEvent(new Event('change'))")
        legend = browser.run("return document.getElementById('legend').textContent")
        assert "effective rank" in legend
        assert "directions" in legend
        if folder := os.environ.get("EFFOPD_SCREENSHOTS"):
            browser.hover(cell)
            browser.screenshot(Path(folder) / "dynamics.png")
        assert browser.console() == []
