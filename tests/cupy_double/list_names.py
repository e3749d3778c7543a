"""Writes cupy_names.json: what the real CuPy offers, for the double to offer no more.

    python list_names.py dump > 14.2.json          in an environment of each version of CuPy; needs no driver, but
    python list_names.py dump > 13.6.json          cuBLAS and cuFFT (pip install nvidia-cublas-cu12 nvidia-cufft-cu12)
    python list_names.py merge 14.2.json 13.6.json > cupy_names.json

A name is kept that every version has, a parameter that every version takes, a constant of one value. Types of ufuncs
are those of the first version named, for the double holds bfloat16 as CuPy 14 does.
"""

import importlib
import inspect
import json
import re
import sys
import warnings

MODULES = [
    "cupy", "cupy.cuda", "cupy.cuda.runtime", "cupy.cuda.cublas", "cupy.cuda.memory", "cupy.cuda.memory_hook",
    "cupy.cuda.stream", "cupy.cuda.device", "cupy.cuda.compiler", "cupy.fft", "cupy.linalg", "cupy.random",
    "cupy.lib.stride_tricks", "cupyx",
]  # fmt: skip
CLASSES = {
    "cupy.ndarray": "cupy.ndarray",
    "cupy.ufunc": "cupy.ufunc",
    "cupy.RawModule": "cupy.RawModule",
    "cupy.RawKernel": "cupy.RawKernel",
    "cupy.cuda.Device": "cupy.cuda.Device",
    "cupy.cuda.Stream": "cupy.cuda.Stream",
    "cupy.cuda.Event": "cupy.cuda.Event",
    "cupy.cuda.Memory": "cupy.cuda.Memory",
    "cupy.cuda.MemoryPointer": "cupy.cuda.MemoryPointer",
    "cupy.cuda.MemoryPool": "cupy.cuda.MemoryPool",
    "cupy.cuda.MemoryHook": "cupy.cuda.MemoryHook",
    "cupy.random.Generator": "cupy.random.Generator",
}
LAZY = {"cupy.cuda": ["cublas", "cufft", "curand", "cusolver", "cusparse"]}  # loaded when asked for, not in dir()
_KINDS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def parameters(thing):
    """Names in order, with their stars; None where neither inspect nor Cython's docstring tells."""
    try:
        found = inspect.signature(thing).parameters.values()
        names, starred = [], False
        for one in found:
            if one.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
                names.append("*")
            starred = starred or one.kind in {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL}
            names.append(_KINDS.get(one.kind, "") + one.name)
    except (TypeError, ValueError):
        lines = (getattr(thing, "__doc__", None) or "").replace("\\*", "*").split("\n")
        signatures = [line for line in lines[:3] if re.match(r"[\w.]+\(", line)]
        line = signatures[-1] if signatures else ""
        written = re.fullmatch(r"[\w.]+\((.*)\)(?: -> .*)?", line)
        if written is None:
            return None
        parts = [part.split("=")[0].strip().split() for part in re.split(r",(?![^(\[]*[)\]])", written[1])]
        return [words[-1] for words in parts if words]
    return names


def entry(thing):
    if isinstance(thing, bool) or thing is None:
        return {}
    if isinstance(thing, (int, float)):
        return {"value": thing} if thing == thing and abs(thing) != float("inf") else {}
    found = {}
    if type(thing).__name__ == "ufunc":
        found["types"] = thing.types
    elif callable(thing):
        names = parameters(thing)
        if names is not None:
            found["takes"] = names
    return found


def names_of(owner, is_class):
    listed = {}
    for name in [*dir(owner), *LAZY.get(getattr(owner, "__name__", ""), [])]:
        if name.startswith("_") and not (is_class and name.startswith("__") and name.endswith("__")):
            continue
        if is_class and name in dir(object) and name != "__init__":
            continue
        try:
            listed[name] = entry(getattr(owner, name))
        except Exception:  # of a library that is not installed: it is there all the same
            listed[name] = {}
    return listed


def dump():
    import cupy

    warnings.simplefilter("ignore")
    found = {"cupy": cupy.__version__, "names": {}}
    for name in MODULES:
        found["names"][name] = names_of(resolved(name), is_class=False)
    for name, path in CLASSES.items():
        found["names"][name] = names_of(resolved(path), is_class=True)
    flags = importlib.import_module("cupy._core.flags").Flags
    found["names"]["cupy.ndarray.flags"] = names_of(flags, is_class=False)
    return found


def resolved(path):
    thing = importlib.import_module(path.split(".", 1)[0])
    for part in path.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


def merge(versions):
    first = versions[0]
    names = {
        owner: {
            name: common([one["names"][owner][name] for one in versions])
            for name in listed
            if all(name in one["names"].get(owner, {}) for one in versions)
        }
        for owner, listed in first["names"].items()
    }
    return {"cupy": [one["cupy"] for one in versions], "names": names}


def common(entries):
    first = entries[0]
    kept = {}
    if "types" in first:
        kept["types"] = first["types"]
    if "value" in first and all(one.get("value") == first["value"] for one in entries):
        kept["value"] = first["value"]
    if all("takes" in one for one in entries):
        kept["takes"] = [
            name for name in longest(entries) if all(name in one["takes"] or is_open(one["takes"]) for one in entries)
        ]
    return kept


def longest(entries):
    """The list of parameters that says most: an older version may hide its own behind **kwargs."""
    closed = [one["takes"] for one in entries if not is_open(one["takes"])]
    return closed[0] if closed else entries[0]["takes"]


def is_open(takes):
    return any(name.startswith("**") for name in takes)


def main():
    if sys.argv[1] == "dump":
        json.dump(dump(), sys.stdout)
        return
    versions = []
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            versions.append(json.load(file))
    merged = merge(versions)
    lines = [f'{{"cupy": {json.dumps(merged["cupy"])}, "names": {{']
    owners = list(merged["names"].items())
    for number, (owner, listed) in enumerate(owners):
        rows = [f"    {json.dumps(name)}: {json.dumps(what)}" for name, what in sorted(listed.items())]
        lines += [f"  {json.dumps(owner)}: {{", ",\n".join(rows), "  }" + ("," if number + 1 < len(owners) else "")]
    sys.stdout.write("\n".join([*lines, "}}"]) + "\n")


if __name__ == "__main__":
    main()
