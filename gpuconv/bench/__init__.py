"""`gpuconv bench`: what the library reaches, beside what the machine can do, measured in one run."""
