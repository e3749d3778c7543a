"""`gpuconv bench`: the speed of the library beside the limits of the machine, measured in one run."""
