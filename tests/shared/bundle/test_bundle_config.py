"""Merging of configs against MONAI's own."""

import json

import pytest

from shared.bundle.configs import config_digest, merge_configs, parse_overrides
from shared.errors import DataError


def write(folder, *contents):
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(json.dumps(content))
    return paths


def test_merges_as_monai_does(tmp_path):
    from monai.bundle import ConfigParser

    paths = write(
        tmp_path,
        {"net": {"width": 64, "blocks": [{"size": 3}, {"size": 5}]}, "epochs": 80, "handlers": [1], "more": {"a": 1}},
        {"net#width": 16, "net::blocks::1::size": 7, "+handlers": [2], "+more": {"b": 2}},
        {"epochs": 12, "net#depth": 4, "new": None},
    )
    assert merge_configs(paths) == ConfigParser.load_config_files([str(path) for path in paths])


def test_digest_sees_changes_but_no_comments(tmp_path):
    base, comment, change = write(
        tmp_path, {"a": [{"b": 1}]}, {"a": [{"b": 1, "_desc_": "x"}], "_meta_": 1}, {"a": [{"b": 2}]}
    )
    assert config_digest(base) == config_digest(comment) != config_digest(change)


def test_overrides():
    config = {"net": {"blocks": [{"size": 3}]}, "lr": 1e-3, "opt": "$Adam(@lr)"}
    assert parse_overrides(["net#blocks#0#size=5", "lr=a=b"], config) == {"net#blocks#0#size": "5", "lr": "a=b"}
    assert parse_overrides(["net#new=1", "net::blocks=[]"], config) == {"net#new": "1", "net::blocks": "[]"}
    assert parse_overrides(["net#new=false"], config) == {"net#new": "False"}
    for bad in ("lrr=1", "net#blocks#3=1", "net#block#0=1", "opt#lr=1", "=1", "lr"):
        with pytest.raises(DataError):
            parse_overrides([bad], config)


def test_a_nested_key_into_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="reaches into 'net'"):
        merge_configs(write(tmp_path, {"net#width": 3}))
