"""direct, winograd and pooling with the vectors of processors other than this one."""

from pathlib import Path

from processors import every_processor, needs_x86, run_tests_as_if_on

HERE = Path(__file__).parent
TESTED = (
    f"{HERE / 'test_direct.py'}::TestRight",
    f"{HERE / 'test_winograd.py'}::TestRight",
    f"{HERE.parents[1] / 'functions' / 'test_pooling.py'}::TestLoops::test_right",
)

# Depthwise loops are compiled for each length of taps and strides, which vectors of any length go through alike.
SHAPES_TESTED_ELSEWHERE = "pixels", "long", "circular", "symmetric"


@needs_x86
@every_processor
def test_the_vectors_of_other_processors(processor):
    run_tests_as_if_on(processor, *TESTED, but=SHAPES_TESTED_ELSEWHERE)
