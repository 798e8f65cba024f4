import subprocess
import sys
import threading

import numpy as np
import pytest
from skimage.io import imread

from shared.apps.experiments.label_efficiency_figure import label_efficiency_figure
from shared.biomarkers import biomarker_table
from shared.errors import DataError
from shared.metrics import calibration_report, decision_curve
from shared.visualize import (
    biomarker_gallery,
    calibration_figure,
    confusion_figure,
    decision_figure,
    loss_curve,
    overlay_grid,
    roc_curve_figure,
    shapley_distribution,
    shapley_patient_bars,
)
from shared.visualize.style import heat


def _images(count=6, side=16):
    return np.random.default_rng(0).random((count, side, side))


def _predictions(count=40):
    random = np.random.default_rng(1)
    labels = np.arange(count) % 2
    return labels, np.clip(0.5 + 0.3 * (labels - 0.5) + 0.2 * random.standard_normal(count), 0, 1)


def _table(images):
    count = len(images)
    similarity = np.linspace(0.9, 0.5, count)
    patients = [f"P{i}" for i in range(count)]
    return biomarker_table(np.arange(count) % 2, similarity, patients, np.arange(count) % 2, num_biomarkers=3)


def _efficiency():
    random = np.random.default_rng(0)
    return [
        {"fraction": f, "labelled_patients": 60 * f, "arm": arm, "AUC": random.random(), "BACC": random.random()}
        for f in (0.05, 0.25, 1.0)
        for arm in ("pretrained", "scratch", "random forest")
        for _ in range(3)
    ]


def _draw_overlay(path, mask=None, **settings):
    images = _images()
    mask = np.zeros_like(images) if mask is None else mask
    overlay_grid(
        images, mask, path, titles=[f"T1 slice {i}\nbiomarker 0, similarity 0.90" for i in range(6)], **settings
    )


DRAWERS = {
    "overlay": lambda path: _draw_overlay(path, _images(), outline=_images() > 0.8, header="P001: 0.81"),
    "gallery": lambda path: biomarker_gallery(_images(), _table(_images()), path, labels=np.arange(6) % 2),
    "roc": lambda path: roc_curve_figure({"IRCL": _predictions(), "age": _predictions()}, path, bootstrap=50),
    "calibration": lambda path: calibration_figure(*_predictions(), path),
    "decision": lambda path: decision_figure(decision_curve(*_predictions(), bootstrap=50), path),
    "confusion": lambda path: confusion_figure([[84, 15], [13, 86]], path, class_names=["HP", "SSA"]),
    "calibration of patches": lambda path: calibration_figure(
        *_predictions(), path, groups=np.arange(40) // 4, class_names=["HP", "SSA"]
    ),
    "label efficiency": lambda path: label_efficiency_figure(_efficiency(), path),
    "loss": lambda path: loss_curve({"train": [3, 2, 1], "validation": [3, None, 2]}, path),
    "distribution": lambda path: shapley_distribution(_images(1, 40)[0][:, :6] - 0.5, np.arange(40) % 2, path),
    "bars": lambda path: shapley_patient_bars(
        np.array([[0.2, -0.1, 0.0]] * 2), path, titles=["P1", "P2"], base=[0.4, 0.4], full=[0.5, 0.5]
    ),
}


@pytest.mark.parametrize("name", DRAWERS)
def test_every_picture_is_written_whole_with_something_in_it(name, tmp_path):
    path = tmp_path / "new" / f"{name}.png"
    DRAWERS[name](path)
    picture = imread(path)
    assert picture.shape[0] > 200 and picture.shape[1] > 300
    assert (picture[..., :3] < 250).any(axis=-1).mean() > 0.01
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_overlay_colours_where_the_mask_is_and_nowhere_else(tmp_path):
    mask = np.zeros((6, 16, 16))
    _draw_overlay(tmp_path / "without.png", mask, contour=None)
    mask[4, 8:, 8:] = 1
    _draw_overlay(tmp_path / "with.png", mask, contour=None)
    before, after = (imread(tmp_path / f"{name}.png")[..., :3].astype(int) for name in ("without", "with"))
    rows, columns = np.nonzero((before != after).any(axis=-1))
    height, width = before.shape[:2]
    # image 4 of 6 in three columns: second row, middle column; its lower right quarter
    assert rows.min() > height / 2 and width / 3 < columns.min() and columns.max() < 2 * width / 3
    side = 1.75 * 120
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == pytest.approx((side / 2,) * 2, abs=3)
    changed = after[rows, columns]
    assert (changed[:, 0] > changed[:, 2] + 30).all()  # yellow on grey


def test_the_heat_is_clear_at_zero_and_grows_lighter_and_denser():
    colours = heat()(np.linspace(0, 1, 11))
    luminance = colours[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert colours[0, 3] == 0 and (np.diff(colours[:, 3]) > 0).all() and (np.diff(luminance) > 0).all()


def test_constant_images_and_one_class_are_drawn(tmp_path):
    flat = np.full((1, 8, 8), 0.3)
    overlay_grid(flat, flat, tmp_path / "a.png", titles=["whole"], outline=np.ones((1, 8, 8)))
    calibration_figure(np.ones(3, dtype=int), np.array([0.4, 0.6, 0.6]), tmp_path / "b.png")
    shapley_distribution(np.zeros((4, 2)), np.ones(4), tmp_path / "c.png", shown=np.zeros((4, 2), dtype=bool))
    shapley_patient_bars(np.zeros(4), tmp_path / "d.png", shown=np.zeros(4, dtype=bool))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_shapley_panel_says_of_how_many_patients_its_means_are(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr("shared.visualize.shapley.save", lambda figure, path: figures.append(figure))
    values = np.array([[0.1, 0.0], [0.3, 0.5], [-0.2, 0.0], [0.0, 0.0]])
    shown = values != 0
    shapley_distribution(values, np.array([1, 1, 0, 0]), tmp_path / "a.png", shown=shown, class_names=("no", "yes"))
    titles = [axes.get_title() for axes in figures[0].axes[:2]]
    assert titles == [
        "Biomarker 0\nmeans -0.200 (n 1) / +0.200 (n 2)",
        "Biomarker 1\nmeans none (n 0) / +0.500 (n 1)",
    ]
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["no", "yes", "mean of no", "mean of yes"]
    assert "who show it" in figures[0].axes[0].get_ylabel()


def test_curves_are_written_as_pdf_too_and_the_same_figure_is_the_same_file(tmp_path):
    report = calibration_report(*_predictions(), bootstrap=50)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        roc_curve_figure({"": _predictions()}, tmp_path / name / "roc.png", bootstrap=50, pdf=True)
        calibration_figure(*_predictions(), tmp_path / name / "calibration.png", report=report, pdf=True)
        decision_figure(decision_curve(*_predictions(), bootstrap=50), tmp_path / name / "decision.png", pdf=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.pdf")}
    assert sorted(files) == ["calibration.pdf", "decision.pdf", "roc.pdf"]
    assert all(data.startswith(b"%PDF") for data in files.values())
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").glob("*.pdf")}


def test_pictures_touch_no_global_state_and_can_be_drawn_in_threads(tmp_path):
    threads = [threading.Thread(target=DRAWERS["loss"], args=(tmp_path / f"{i}.png",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / f"{i}.png").read_bytes() for i in range(4)}) == 1
    code = (
        "import sys, shared.visualize, shared.biomarkers, shared.explain, shared.metrics;"
        "assert not {'matplotlib', 'torch', 'sklearn', 'shap'} & set(sys.modules), 'heavy import';"
        "from shared.visualize import loss_curve; loss_curve({'a': [1, 2]}, sys.argv[1]);"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "alone.png")], check=True)
    assert (tmp_path / "alone.png").exists()


@pytest.fixture
def figures(monkeypatch):
    found = []
    monkeypatch.setattr("shared.visualize.curves.save", lambda figure, path, **_: found.append(figure))
    return found


def test_the_calibration_picture_shows_the_reported_curve_and_both_classes(figures, tmp_path):
    labels, probability = _predictions()
    report = calibration_report(labels, probability, bootstrap=30)
    calibration_figure(labels, probability, tmp_path / "a.png", report=report, class_names=("no", "yes"))
    upper, lower = figures[0].axes
    curve = next(line for line in upper.lines if line.get_label() == "local line")
    assert curve.get_ydata().tolist() == report["curve"]["observed"]
    band = upper.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == max(report["curve"]["high"]) and band[:, 1].min() == min(report["curve"]["low"])
    bars = {container.get_label(): [bar.get_height() for bar in container] for container in lower.containers}
    assert sum(bars["yes"]) == 20 and sum(bars["no"]) == -20
    assert sum(bars["yes"][10:]) == (probability[labels == 1] >= 0.5).sum()
    assert f"slope {report['slope']['value']:.2f} [" in upper.texts[0].get_text()


def test_the_decision_picture_shows_model_controls_all_and_none(figures, tmp_path):
    labels, probability = _predictions()
    curve = decision_curve(labels, probability, controls={"age": 1 - probability}, bootstrap=30)
    decision_figure(curve, tmp_path / "a.png", name="IRCL")
    lines = {line.get_label(): list(line.get_ydata()) for line in figures[0].axes[0].lines}
    assert lines["IRCL"] == curve["model"] and lines["age"] == curve["controls"]["age"] and lines["all"] == curve["all"]
    assert set(lines["none"]) == {0}
    assert figures[0].axes[0].get_ylim()[1] > max(curve["high"])


def test_errors_say_what_arrived(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(DataError, match=r"m titles; got \(6, 16, 16\), \(6, 16, 16\), 2"):
        overlay_grid(_images(), _images(), path, titles=["a", "b"])
    with pytest.raises(DataError, match=r"images' shape \(6, 16, 16\), got \(1, 16, 16\)"):
        _draw_overlay(path, outline=_images(1))
    with pytest.raises(DataError, match=r"3 rows that go up to image 5, and images \(2, 16, 16\)"):
        biomarker_gallery(_images(2), _table(_images()), path)
    with pytest.raises(DataError, match="IRCL: a ROC curve needs both classes, got 3 patients of one"):
        roc_curve_figure({"IRCL": ([1, 1, 1], [0.1, 0.2, 0.3])}, path)
    with pytest.raises(DataError, match="at least one value"):
        loss_curve({"train": []}, path)
    with pytest.raises(DataError, match=r"values \[n, K\] and n labels; got \(4, 2\), \(3,\)"):
        shapley_distribution(np.zeros((4, 2)), np.zeros(3), path)
    with pytest.raises(DataError, match=r"Bars of 2 patients"):
        shapley_patient_bars(np.zeros((2, 3)), path, titles=["one"])
    assert not list(tmp_path.iterdir())
