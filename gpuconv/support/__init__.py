"""Helpers that know nothing of convolution: checks of arguments, files, HTML tables, random numbers."""
