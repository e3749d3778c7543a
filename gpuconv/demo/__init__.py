"""`gpuconv demo`: a photograph under a bank of classic filters, and every algorithm held to the for-loops."""
