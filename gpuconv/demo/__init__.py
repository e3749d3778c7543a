"""`gpuconv demo`: a photograph under classic filters, every algorithm held to the for-loops, a network that learns."""
