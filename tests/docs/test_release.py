"""The checks of a release, and the files that only a release or a code host reads."""

import importlib.util
import pathlib
import re

import pytest

import gpuconv

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_that_name_the_version_or_an_address_agree(release):
    assert not [fault for fault in release.version_faults(gpuconv.__version__) if "CHANGELOG" not in fault]
    assert release.address_faults() == []
    assert release.gpu_faults() == []


def test_what_is_missing_is_noticed(release, monkeypatch):
    assert len(release.version_faults("9.9.9")) == 3
    assert release.tag_faults("9.9.9")[0] == "HEAD has no tag v9.9.9"
    read = release.read
    monkeypatch.setattr(
        release, "read", lambda name: read(name).replace("com/gpuconv/gpuconv", f"com/{name[0]}/gpuconv")
    )
    assert release.address_faults() != []
    monkeypatch.setattr(release, "read", lambda name: "## [Unreleased]\n\n- a change\n\n## [0.1.0]\n")
    assert release.unreleased_faults() != []
    assert len(release.gpu_faults()) == 2


def test_what_a_code_host_reads_is_yaml_and_calls_what_there_is():
    yaml = pytest.importorskip("yaml")
    forms = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(forms) >= 3
    for path in [*forms, ROOT / "CITATION.cff"]:
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert all((ROOT / name).exists() for name in re.findall(r"(?:\.ci|tests)/\w+", workflow))
    for path in forms[:2]:
        assert "gpuconv info" in path.read_text(encoding="utf-8")
        assert "problem string" in path.read_text(encoding="utf-8").lower()
