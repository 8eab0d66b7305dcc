"""Trainings: interrupted and resumed, refused, and described."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from edgeloc.errors import ConfigError
from edgeloc.inference.manifest import load_model
from edgeloc_tools.cli.build import main
from edgeloc_tools.cli.train_command import parse_changes
from edgeloc_tools.learn.card import read_log
from edgeloc_tools.learn.checkpoint import (
    Checkpoint,
    begin_with,
    load_checkpoint,
    save_checkpoint,
)
from edgeloc_tools.learn.networks import SIZES, TRUNK, RetrievalNet, feature_net
from edgeloc_tools.learn.photo_pairs import ViewOptions, list_photos
from edgeloc_tools.learn.recipe import FeatureRecipe, RetrievalRecipe, load_recipe
from edgeloc_tools.learn.train_features import train_features
from edgeloc_tools.learn.train_loop import CHECKPOINT, LOG, one_cycle
from edgeloc_tools.learn.train_retrieval import train_retrieval
from edgeloc_tools.progress import silent

TINY = ViewOptions(width=96, height=64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(2)
    for idx in range(6):
        coarse = rng.uniform(0, 255, (20, 30, 3)).astype(np.float32)
        image = cv2.resize(coarse, (180, 120), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{idx}.png"), image.astype(np.uint8))
    return folder


def recipe(**changes) -> FeatureRecipe:
    values = {
        "size": "nano",
        "steps": 6,
        "batch": 2,
        "points": 32,
        "views": TINY,
        "checkpoint_every": 3,
        "workers": 0,
    }
    return FeatureRecipe(**{**values, **changes})


class StopError(Exception):
    """What a test interrupts a training with."""


def stop_after(count: int):
    def progress(step: str, done: int, total: int) -> None:
        if step == "steps" and done == count:
            raise StopError

    return progress


def test_an_interrupted_training_ends_as_one_that_was_not(photos, tmp_path):
    paths = list_photos(photos)
    whole = train_features(paths, out=tmp_path / "whole", recipe=recipe())
    with pytest.raises(StopError):
        train_features(
            paths, out=tmp_path / "parts", recipe=recipe(), progress=stop_after(5)
        )
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT).step == 3
    parts = train_features(paths, out=tmp_path / "parts", recipe=recipe())
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)
    assert [entry["step"] for entry in read_log(tmp_path / "parts" / LOG)] == [3, 6]
    # A finished run gives its result again without a step.
    again = train_features(
        paths, out=tmp_path / "parts", recipe=recipe(), progress=stop_after(1)
    )
    torch.testing.assert_close(again.state_dict(), parts.state_dict())


def test_training_makes_the_loss_fall(photos, tmp_path):
    train_features(
        list_photos(photos),
        out=tmp_path,
        recipe=recipe(steps=60, checkpoint_every=15, points=64),
    )
    log = read_log(tmp_path / LOG)
    assert log[-1]["descriptors"] < 0.95 * log[0]["descriptors"]
    assert log[-1]["matched"] > log[0]["matched"]


def test_a_folder_of_another_recipe_is_refused(photos, tmp_path):
    paths = list_photos(photos)
    train_features(paths, out=tmp_path, recipe=recipe(steps=1))
    with pytest.raises(ConfigError, match="seed = 0, not 1"):
        train_features(paths, out=tmp_path, recipe=recipe(steps=1, seed=1))
    # The number of threads is no part of the result.
    train_features(paths, out=tmp_path, recipe=recipe(steps=1, checkpoint_every=9))


@pytest.fixture
def start(tmp_path):
    """A checkpoint of a network with other heads: one more, and one less."""
    net = feature_net("nano")
    torch.manual_seed(4)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    weights = net.state_dict()
    del weights["reliability.bias"]
    weights["reliability.weight"] = torch.ones(1, 3, 1, 1)
    weights["keypoints.1.weight"] = torch.ones(65, 64, 1, 1)
    path = tmp_path / "start.npz"
    save_checkpoint(
        path, Checkpoint(step=1, recipe={}, model={}, average=weights, moments={})
    )
    return path


@pytest.mark.parametrize(
    "net", [feature_net("nano"), RetrievalNet(SIZES["nano"], words=4, dim=8)]
)
def test_a_network_begins_with_the_trunk_of_another(net, start):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    begin_with(net, start)
    weights = load_checkpoint(start).average
    for name, value in net.state_dict().items():
        source = weights if name.startswith(TRUNK) else before
        torch.testing.assert_close(value, source[name], msg=name)
    changed = torch.abs(net.lift.weight - before["lift.weight"])
    assert changed.mean() > 0.5


def test_heads_that_fit_are_taken_too(tmp_path, photos):
    paths = list_photos(photos)
    first = train_features(paths, out=tmp_path / "first", recipe=recipe(steps=1))
    start = tmp_path / "first" / CHECKPOINT
    net = feature_net("nano")
    begin_with(net, start)
    torch.testing.assert_close(net.state_dict(), first.state_dict())


def test_another_trunk_is_refused_by_the_first_name_that_differs(
    photos, tmp_path, start
):
    with pytest.raises(ConfigError) as caught:
        train_features(
            list_photos(photos),
            out=tmp_path / "run",
            recipe=recipe(size="small"),
            start=start,
        )
    assert str(caught.value) == (
        f"{start}: its trunk is another (backbone.stem.0.weight differs); give the "
        "checkpoint of a network of the same size"
    )
    with pytest.raises(ConfigError, match=r"\(descriptors\.weight differs\)"):
        begin_with(feature_net("nano", dim=32), start)


def test_a_broken_checkpoint_is_named(photos, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"PK nonsense")
    with pytest.raises(ConfigError, match=r"checkpoint\.npz: is not a checkpoint"):
        train_features(list_photos(photos), out=tmp_path, recipe=recipe())


def test_recipes_are_strict(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('size = "nano"\nlearning_rate = 1\n[views]\ntilt = 0.3\n')
    read = load_recipe(path, FeatureRecipe, {"steps": 7})
    assert (read.size, read.learning_rate, read.steps) == ("nano", 1.0, 7)
    assert read.views.tilt == 0.3
    for text, message in (
        ("stepz = 3", "'stepz' is unknown"),
        ("steps = 3.5", "steps = 3.5 must be a int"),
        ("[views]\nsides = 3", r"\[views\]: 'sides' is unknown"),
        ("steps = [", "r.toml"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_recipe(path, FeatureRecipe, {})


def test_changes_from_the_command_line():
    assert parse_changes(["steps=3", "size=nano", "views.tilt=0.1"]) == {
        "steps": 3,
        "size": "nano",
        "views": {"tilt": 0.1},
    }
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_changes(["steps"])


def test_the_schedule_rises_and_falls():
    factors = [one_cycle(x) for x in np.linspace(0, 1, 101)]
    assert np.argmax(factors) == 5
    assert factors[0] < 0.1
    assert factors[-1] < 0.01


def test_the_command_trains_both_networks(photos, tmp_path, capsys):
    small = ["size=nano", "batch=2", "steps=2", "workers=0"]
    views = ["views.width=96", "views.height=64", "checkpoint_every=1"]
    changes = [part for text in (*small, *views) for part in ("--set", text)]
    features, places = tmp_path / "features", tmp_path / "places"
    command = ["train", "features", "--photos", str(photos), "-o", str(features)]
    assert main([*command, *changes, "--set", "points=32", "--licence", "mine"]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert load_model_name(manifest) == "edgeloc-features-nano"
    card = (features / "edgeloc-features-nano.md").read_text()
    assert "licence of the data: mine" in card
    assert "2 steps; at the end" in card
    assert (features / "edgeloc-features-nano.svg").read_text().lstrip()[:5] == "<?xml"
    command = ["train", "retrieval", "--photos", str(photos), "-o", str(places)]
    start = ["--start", str(features / CHECKPOINT)]
    assert main([*command, *changes, *start, "--set", "words=4", "--set", "dim=8"]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert load_model_name(manifest) == "edgeloc-retrieval-nano"
    assert main([*command, *changes]) == 2
    assert "--start is missing" in capsys.readouterr().err


def load_model_name(path: str) -> str:
    from pathlib import Path

    return load_model(Path(path)).manifest.name


def test_an_interrupted_retrieval_training_ends_as_one_that_was_not(photos, tmp_path):
    paths = list_photos(photos)
    train_features(paths, out=tmp_path / "trunk", recipe=recipe(steps=1))
    values = {"size": "nano", "steps": 4, "batch": 2, "words": 4, "dim": 8}
    options = RetrievalRecipe(**values, views=TINY, checkpoint_every=2, workers=0)

    def train(name, progress=silent):
        return train_retrieval(
            paths,
            start=tmp_path / "trunk" / CHECKPOINT,
            out=tmp_path / name,
            recipe=options,
            progress=progress,
        )

    whole = train("whole")
    with pytest.raises(StopError):
        train("parts", stop_after(3))
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT).step == 2
    parts = train("parts")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)
