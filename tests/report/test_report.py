"""The report says what the run folder says, and survives whatever the folder lacks."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.fake_run import NUM_VIDEOS, fake_metrics, fake_summary, write_videos
from tests.support.report_page import HOSTILE, Page
from wmpo_ray.core.errors import UserError
from wmpo_ray.report.html import write_report
from wmpo_ray.report.result_sections import verdict
from wmpo_ray.report.run_data import DISRUPTIONS, PolicyVideos, RunData
from wmpo_ray.report.trust_section import reliability_section
from wmpo_ray.report.video_sections import GAP_PIXELS, START_PIXELS, VideoBudget, enlarge, policy_section

INPUTS = (
    "summary.json",
    "metrics.jsonl",
    "curves/policy.jsonl",
    "videos/side_by_side.npz",
    "videos/base.npz",
    "videos/final.npz",
)


def without(run_folder: Path, target: Path, names: tuple[str, ...]) -> Path:
    shutil.copytree(run_folder, target, ignore=shutil.ignore_patterns("report"))
    for name in names:
        (target / name).unlink()
    return target


def test_the_page_loads_nothing(page: str):
    parsed = Page(page)
    sources = [
        value for _, attributes in parsed.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object", "base", "a"} & {tag for tag, _ in parsed.elements}
    assert not re.search(r"https?://|@import|url\(", page)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in parsed.all("meta"))


def test_every_number_of_the_result_stands_on_the_page(page: str):
    values = {float(data["value"]) for data in Page(page).all("data")}
    summary = fake_summary()
    for rate in (summary["result"]["base_success"], summary["result"]["final_success"]):
        assert {rate["value"], 100 * rate["low"], 100 * rate["high"], rate["num"]} <= values
    assert summary["result"]["gain_points"] in values
    seconds = {stage["seconds"] for stage in summary["stages"].values()}
    assert seconds | {sum(stage["seconds"] for stage in summary["stages"].values())} <= values
    gate = summary["stages"]["gate"]["metrics"]
    assert {gate[key] for key in ("label_agreement", "f1", "grasp_agreement", "placement_agreement")} <= values
    assert set(gate["bounds"].values()) <= values
    assert summary["stages"]["reward-model"]["metrics"]["f1"] in values
    text = Page(page).text
    assert "from 41.0% to 58.2% on 512 held-out start states, +17.2 points" in text
    assert all(word in text for word in (summary["config_hash"], summary["machine"], *summary["versions"].values()))


def test_it_draws_how_reliable_probabilities_are():
    summary = fake_summary()
    reward = summary["stages"]["reward-model"]["metrics"]

    def drawn() -> bool:
        found = [svg["aria-label"] or "" for svg in Page(str(reliability_section(RunData("run", summary)))).all("svg")]
        return any(name.startswith("Outcomes of held-out episodes by the probability") for name in found)

    assert drawn()
    values = {float(data["value"] or 0) for data in Page(str(reliability_section(RunData("run", summary)))).all("data")}
    assert {reward[key] for key in ("calibration_error", "false_positive_rate", "false_positive_bound")} <= values
    for damaged in ("no list", [[0.1, 0.2]], [[0.1, 1.2, 3]], [[0.1, 0.2, 0]], [["a", 0, 1]], []):
        reward["reliability_curve"] = damaged
        assert not drawn()
    reward["progress"] = {"order_correlation": 0.83, "success": [0.1, 0.6, 0.9], "failure": [0.1, 0.2, 0.4]}
    card = Page(str(reliability_section(RunData("run", summary))))
    assert any((svg["aria-label"] or "").startswith("Progress of held-out") for svg in card.all("svg"))
    assert 0.83 in {float(data["value"] or 0) for data in card.all("data")}


def test_every_video_has_one_element_that_plays_as_long_as_its_episode(page: str, run_folder: Path):
    images = Page(page).all("img")
    assert len(images) == sum(NUM_VIDEOS.values())
    lengths: list[int] = []
    for name in NUM_VIDEOS:
        lengths += np.load(run_folder / "videos" / f"{name}.npz", allow_pickle=False)["lengths"].tolist()
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1]))) for image in images]
    assert sorted(picture.n_frames for picture in pictures) == sorted(length + 1 for length in lengths)
    assert all(picture.info["loop"] == 0 for picture in pictures)
    assert all(
        [str(side) for side in picture.size] == [i["width"], i["height"]] for picture, i in zip(pictures, images)
    )


def test_disagreements_of_the_two_worlds_are_marked(page: str, run_folder: Path):
    pairs = np.load(run_folder / "videos" / "side_by_side.npz", allow_pickle=False)
    wrong = int((pairs["real_success"] != pairs["imagined_success"]).sum())
    figures = [figure["class"].split() for figure in Page(page).all("figure")]
    assert wrong > 0 and sum("disagree" in classes for classes in figures) == wrong
    assert f"{len(pairs['real_success']) - wrong} of the {len(pairs['real_success'])} pairs" in page


def test_disrupted_starts_are_shown_beside_the_undisturbed_ones(run_folder: Path, tmp_path: Path):
    folder = without(run_folder, tmp_path / "run", ())
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    names = ["none", "background", "<another>"]
    np.savez_compressed(folder / "videos" / DISRUPTIONS, frames=frames, instructions=np.array(json.dumps(names)))
    images = [image for image in Page(write_report(folder).read_text()).all("img") if "start frames" in image["alt"]]
    assert [image["alt"] for image in images] == [f"4 start frames, {name}" for name in names]
    for image, expected in zip(images, frames, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1]))).convert("RGB")
        scale = enlarge(expected, START_PIXELS).shape[1] // 16
        step = picture.height + GAP_PIXELS
        for i, frame in enumerate(expected):
            shown = np.asarray(picture)[::scale, i * step : i * step + picture.height : scale]
            assert np.array_equal(shown, frame), "every frame as it is, in its order"
    np.savez_compressed(folder / "videos" / DISRUPTIONS, frames=frames[0], instructions=np.array("[]"))
    text = Page(write_report(folder).read_text()).text
    assert "start frames" not in text and f"videos/{DISRUPTIONS}: its arrays do not fit each other" in text


ABSENCES = [*((name,) for name in INPUTS), *itertools.combinations(INPUTS, len(INPUTS) - 1), INPUTS]


@pytest.mark.parametrize("absent", ABSENCES, ids="+".join)
def test_what_is_missing_is_said_and_the_rest_is_shown(run_folder: Path, tmp_path: Path, absent: tuple[str, ...]):
    folder = without(run_folder, tmp_path / "run", absent)
    parsed = Page(write_report(folder).read_text(encoding="utf-8"))
    assert any(p.get("class") == "missing" for p in parsed.all("p"))
    videos = [name for name in NUM_VIDEOS if f"videos/{name}.npz" not in absent]
    assert len(parsed.all("img")) == sum(NUM_VIDEOS[name] for name in videos)
    assert ("58.2%" in parsed.text) == ("summary.json" not in absent)
    assert ("Clipped share" in parsed.text) == ("metrics.jsonl" not in absent)


def test_every_training_has_a_chart_whatever_it_is_called(run_folder: Path, tmp_path: Path):
    folder = without(run_folder, tmp_path / "run", ())
    lines = '{"step": 10, "loss": 2.5}\n{"step": 20, "loss": null}\n{"step": 30, "loss": 0.5}\nnot JSON\n'
    (folder / "curves" / "reward-model.jsonl").write_text(lines)
    (folder / "curves" / "<script>&.jsonl").write_text('{"step": 1, "loss": 7.0}\n')
    (folder / "curves" / "empty.jsonl").write_text("")
    parsed = Page(write_report(folder).read_text(encoding="utf-8"))
    charts = [svg["aria-label"] for svg in parsed.all("svg") if (svg["aria-label"] or "").startswith("Loss")]
    assert charts == ["Loss: Behaviour cloning", "Loss: Reward model", "Loss: <script>&"]
    assert not parsed.all("script") and "reward-model.jsonl: 1 damaged line left out." in parsed.text


def test_a_complete_run_misses_nothing(page: str):
    assert not any(p.get("class") == "missing" for p in Page(page).all("p"))


@pytest.mark.parametrize("last", range(len(fake_summary()["stages"])))
def test_every_prefix_of_the_stages_makes_a_page(tmp_path: Path, last: int):
    summary = fake_summary()
    kept = list(summary["stages"])[: last + 1]
    summary["stages"] = {stage: summary["stages"][stage] for stage in kept}
    del summary["result"]["final_success"], summary["result"]["gain_points"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "not evaluated yet" in text and "raised" not in text
    assert all(stage in text for stage in kept)


@pytest.mark.parametrize("name", INPUTS)
def test_a_damaged_file_is_named_on_the_page(run_folder: Path, tmp_path: Path, name: str):
    folder = without(run_folder, tmp_path / "run", ())
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * 0.6)])
    parsed = Page(write_report(folder).read_text(encoding="utf-8"))
    assert any(p.get("class") == "note" for p in parsed.all("p"))
    assert Path(name).name in parsed.text


@pytest.mark.parametrize("value", [None, "x", [], {}, True, float("nan"), float("inf"), -1, 0, 10**400])
def test_any_value_in_place_of_a_metric_makes_a_page(tmp_path: Path, value: object):
    def replaced(data):
        if isinstance(data, dict):
            return {key: replaced(entry) for key, entry in data.items()}
        return [replaced(entry) for entry in data] if isinstance(data, list) else value

    (tmp_path / "summary.json").write_text(json.dumps(replaced(fake_summary())))
    lines = [{**replaced(line), "update": line["update"]} for line in fake_metrics()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    drawn = re.findall(r'(?:points|x1|y1|cx|cy|width|height)="([^"]*)"', text)
    assert not any(word in numbers for numbers in drawn for word in ("nan", "inf"))
    Page(text)


def test_names_from_files_are_text_and_nothing_else(tmp_path: Path):
    def poisoned(data):
        if isinstance(data, dict):
            return {HOSTILE + key if key in ("torch", "miss") else key: poisoned(v) for key, v in data.items()}
        return HOSTILE if isinstance(data, str) else data

    summary = poisoned(fake_summary())
    summary["stages"][HOSTILE] = {"seconds": 1.0, "metrics": {HOSTILE: HOSTILE}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_videos(tmp_path / "videos", {name: 1 for name in NUM_VIDEOS}, instructions=[HOSTILE])
    parsed = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert not parsed.all("script") and len(parsed.all("img")) == len(NUM_VIDEOS)
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)
    assert parsed.text.count('<script>alert("1")</script>') >= 8
    assert all(HOSTILE in (image["alt"] or "") for image in parsed.all("img"))


def test_lines_of_one_update_are_joined_and_the_later_value_counts(tmp_path: Path):
    lines = [{"update": 1, "imagined/success_rate": rate} for rate in (0.111, 0.777)]
    lines.append({"update": 1, "real/success_rate": 0.333})
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "78%" in text and "33%" in text and "11%" not in text


@pytest.mark.parametrize(("imagined", "real", "warns"), [(0.2, -0.2, True), (0.2, 0.2, False), (-0.2, -0.2, False)])
def test_only_diverging_curves_are_called_exploitation(tmp_path: Path, imagined: float, real: float, warns: bool):
    lines = [
        {"update": update, "imagined/success_rate": 0.5 + imagined * step, "real/success_rate": 0.5 + real * step}
        for step, update in enumerate((5, 10))
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert ("align the world model again" in write_report(tmp_path).read_text(encoding="utf-8")) == warns


@pytest.mark.parametrize(
    ("final", "word"), [((0.58, 0.54, 0.62), "raised"), ((0.43, 0.39, 0.47), "overlap"), ((0.2, 0.17, 0.24), "lowered")]
)
def test_the_verdict_follows_the_intervals(final: tuple[float, float, float], word: str):
    summary = fake_summary()
    summary["result"]["final_success"] |= dict(zip(("value", "low", "high"), final, strict=True))
    sentence = verdict(RunData("run", summary))
    assert [known for known in ("raised", "overlap", "lowered") if known in sentence] == [word]


def test_videos_beyond_the_size_of_a_page_are_counted_and_left_out():
    noise = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16, 3), dtype=np.uint8)
    videos = PolicyVideos(noise, np.arange(5) % 2 == 0, np.full(5, 2), ["stack"] * 5, np.arange(5) == 2)
    everything = policy_section(videos, "Base", "base.npz", "base", VideoBudget())
    room = len(everything) // 2
    part = policy_section(videos, "Base", "base.npz", "base", VideoBudget(left=room))
    shown = part.count("<img")
    assert everything.count("<img") == 5 and 0 < shown < 5
    assert everything.count("after a failed attempt") == 1
    assert f"{5 - shown} more in the folder videos" in part and "more in the folder" not in everything
    assert len(part) < room * 4 / 3 + 2000


def test_camera_frames_shrink_and_tiny_ones_grow_by_a_whole_factor():
    tiny = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)
    large = enlarge(tiny)
    assert np.array_equal(large[:, ::12, ::12], tiny) and large.shape == (2, 192, 240, 3)
    assert enlarge(np.zeros((2, 480, 640, 3), np.uint8)).shape == (2, 190, 253, 3)


def test_writing_leaves_one_file_and_is_repeatable(run_folder: Path, page: str):
    path = write_report(run_folder)
    assert path == run_folder / "report" / "index.html" and [entry.name for entry in path.parent.iterdir()] == [
        path.name
    ]
    assert path.read_text(encoding="utf-8") == page


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere"):
        write_report(tmp_path / "nowhere")
