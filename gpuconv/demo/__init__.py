"""`gpuconv demo`: a photograph under classic filters, every algorithm against for-loops, a network that learns."""
