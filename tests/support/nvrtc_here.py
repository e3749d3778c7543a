"""Whether NVRTC is installed, for tests that compile."""

import pytest

from gpuconv.cuda import nvrtc


def why_not():
    try:
        nvrtc.version()
    except ModuleNotFoundError as error:
        return str(error)
    return ""


needs_nvrtc = pytest.mark.skipif(bool(why_not()), reason=why_not())
