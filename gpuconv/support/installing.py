"""How to add an extra to this gpuconv, in the way in which this gpuconv was installed."""

from __future__ import annotations

import json
from functools import cache


@cache
def how_to_add(extra: str) -> str:
    """The instruction that installs gpuconv with an extra, as the end of an error that names the extra.

    A gpuconv from a package index is named by its name alone, one from a file or a repository by its address (PEP 610),
    and a clone is installed from within its own folder.
    """
    return _how_to_add(extra, _origin())


def _origin() -> str | None:
    """What the installer noted about the origin, as JSON: None for an index, "{}" if nothing is installed."""
    from importlib.metadata import PackageNotFoundError, distribution  # takes 20 ms, which no import of gpuconv should

    try:
        return distribution("gpuconv").read_text("direct_url.json")
    except PackageNotFoundError:  # run from a folder on the path
        return "{}"


def _how_to_add(extra: str, origin: str | None) -> str:
    """The instruction for an origin.

    >>> _how_to_add("cpu", None)
    "run python -m pip install 'gpuconv[cpu]'"
    >>> _how_to_add("cpu", '{"url": "file:///home/me/gpuconv", "dir_info": {"editable": true}}')
    "run python -m pip install -e '.[cpu]' in the clone of gpuconv"
    >>> _how_to_add("cpu", '{"url": "https://example.org/gpuconv.whl", "archive_info": {}}')
    "run python -m pip install 'gpuconv[cpu] @ https://example.org/gpuconv.whl'"
    """
    if origin is None:
        return f"run python -m pip install 'gpuconv[{extra}]'"
    found = json.loads(origin)
    if "archive_info" in found:
        return f"run python -m pip install 'gpuconv[{extra}] @ {found['url']}'"
    if "vcs_info" in found:
        vcs = found["vcs_info"]
        return f"run python -m pip install 'gpuconv[{extra}] @ {vcs['vcs']}+{found['url']}@{vcs['commit_id']}'"
    return f"run python -m pip install -e '.[{extra}]' in the clone of gpuconv"
