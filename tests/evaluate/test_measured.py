"""Measurements are kept until something that matters changes."""

from dataclasses import replace

import pytest
from model_factory import FEATURES, feature_network, write_features, write_retrieval

from edgeloc.errors import ConfigError
from edgeloc.features.registry import open_family, open_retrieval
from edgeloc_tools.evaluate import measured
from edgeloc_tools.model_files import write_model


def test_a_measurement_is_kept_for_its_key(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"value": len(calls)}

    path = tmp_path / "results" / "orb.json"
    assert measured.cached(path, key="a", make=make) == {"value": 1}
    assert measured.cached(path, key="a", make=make) == {"value": 1}
    assert measured.cached(path, key="b", make=make) == {"value": 2}
    path.write_text("{ half a file")
    assert measured.cached(path, key="b", make=make) == {"value": 3}


def test_fingerprints_tell_models_apart(tmp_path):
    first = measured.fingerprint(open_family(str(write_features(tmp_path / "a"))))
    again = measured.fingerprint(open_family(str(write_features(tmp_path / "b"))))
    assert first == again
    other = replace(FEATURES, match_ratio=0.8)
    path = write_model(tmp_path / "c", other, feature_network())
    prints = {
        first,
        measured.fingerprint(open_family(str(path))),
        measured.fingerprint(open_family("orb")),
        measured.fingerprint(open_family("sift")),
        measured.fingerprint(open_retrieval(str(write_retrieval(tmp_path)))),
    }
    assert len(prints) == 5


def test_the_shipped_network_takes_part_when_there_is_one(tmp_path, monkeypatch):
    for role in ("features", "retrieval"):
        monkeypatch.setattr(measured, "shipped_model", lambda _role: None)
        assert measured._names(None, role, ["orb"]) == ["orb"]
        monkeypatch.setattr(measured, "shipped_model", lambda _role: tmp_path)
        assert measured._names(None, role, ["orb"]) == ["orb", "edgeloc"]


def test_names_are_opened(tmp_path):
    path = write_features(tmp_path)
    families = measured.open_families(f"sift, {path}")
    assert [family.name for family in families] == ["sift", "tiny-features"]
    with pytest.raises(ConfigError, match="'surf'"):
        measured.open_families("surf")
    (network,) = measured.open_retrievals(str(write_retrieval(tmp_path)))
    assert network.network.manifest.name == "tiny-retrieval"
