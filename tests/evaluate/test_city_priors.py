"""A GNSS receiver in a city: what it saves, and what it cannot spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeloc.tiles.reader import open_site
from edgeloc_tools.evaluate import city_priors
from edgeloc_tools.evaluate.city import make_city, prepare_queries
from edgeloc_tools.evaluate.city_priors import compare, localize_with, report

NUM = 8


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("priors")
    make_city(folder / "site", km=6.0, landmarks_per_keyframe=30)
    files = prepare_queries(folder / "site", folder / "q", count=NUM, seed=3)
    return folder / "site", files


def test_positions_narrow_the_search_and_wrong_ones_are_rejected(
    city: tuple[Path, list[Path]],
) -> None:
    site = open_site(city[0])
    none, good, wrong = compare(site, city[1])
    assert none.recall >= 0.85
    assert none.looked_at > 0.3
    assert good.recall >= none.recall
    assert good.looked_at < 0.01
    # Looked for in the wrong place, in vain, and then everywhere.
    assert wrong.recall >= none.recall - 0.13
    assert wrong.looked_at > none.looked_at
    assert wrong.num_far == 0
    assert wrong.num_rejected >= 0.8 * NUM
    table = report([none, good, wrong])
    assert f"| 5 m claimed, 100 m off | {100 * wrong.looked_at:.1f} %" in table


def test_a_prior_of_another_country_is_as_good_as_none(
    city: tuple[Path, list[Path]],
) -> None:
    site = open_site(city[0])
    far = localize_with("far", site, city[1][:3], sigma_m=5.0, wrong_by_m=1e6)
    assert far.recall == 1.0
    assert far.num_rejected == 3


def test_the_command_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--out",
        str(tmp_path),
        "--km",
        "0.1",
        "--landmarks",
        "40",
        "--queries",
        "2",
    ]
    assert city_priors.main(argv) == 0
    table = capsys.readouterr().out
    assert "| none | 100 % / 100 % | 100.0 % | 0 of 2 | 0 of 2 |" in table
    assert (tmp_path / "priors-0.1km.md").read_text(encoding="utf-8") == table
