"""What a launch costs a device: the one number that every model of the GPU's algorithms shares."""

LAUNCH_SECONDS = 5e-6
"""Seconds that a kernel, or a product of cuBLAS, takes in addition to its work; estimated, not measured.

It lies between the time from one dependent kernel to the next in a CUDA graph and the time that Python needs to launch.
"""
