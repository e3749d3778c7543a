"""Holds every launch in the tests to the list of units that the library says it launches."""

import re

from gpuconv.cuda import loader
from gpuconv.tools import kernel_report

KERNELS = {path.name for path in loader.folder().glob("*.cu")}

listed = set()
said = {}


def must_be_listed(text, options):
    """What is launched and not in the list of units is compiled by nobody before it comes to a user."""
    file = file_of(text)
    if file is None:
        return
    unit = file, frozenset(options)
    if unit not in listed:  # or the test has changed what may be launched
        listed.clear()
        listed.update((one.file, frozenset(loader.options(one))) for one in kernel_report.units())
    assert unit in listed, f"launched, but in no UNITS: {file} {' '.join(options)}"


def must_ask_for_no_more(text, options, count):
    """The report on the kernels adds to a kernel's shared memory what its launches ask for, as their modules say."""
    file = file_of(text)
    if file is None:
        return
    unit = file, frozenset(options)
    if unit not in said:  # or the test has changed what may be launched
        for one, most in kernel_report.dynamic_bytes(kernel_report.units()).items():
            said[one.file, frozenset(loader.options(one))] = most
    most = said.get(unit, 0)
    assert count <= most, f"{file} {' '.join(options)}: a launch asks for {count} bytes, but says at most {most}"


def file_of(text):
    """The file of the library that a text is; None for a test's own."""
    file = re.match(r'#line 1 "([^"]+)"', text)
    return file[1] if file is not None and file[1] in KERNELS else None
