"""Networks of layers, which can be trained, evaluated, saved and loaded.

>>> import numpy as np
>>> from gpuconv.layers import Conv2D, Dense, Flatten, MaxPool2D
>>> from gpuconv.models import Sequential
>>> model = Sequential(
...     [Conv2D(4, 3, acti_fn="relu"), MaxPool2D(2), Flatten(), Dense(2)], optimizer="Adam(lr=0.01)", rng=0
... )
>>> X = np.zeros((32, 8, 8, 1), np.float32)
>>> X[::2] = 1
>>> history = model.fit(X, np.arange(32) % 2, epochs=20, batch_size=8)
>>> history.accuracy[-1]
1.0
"""

from gpuconv.models.history import History
from gpuconv.models.prepared import PreparedModel
from gpuconv.models.sequential import Sequential
from gpuconv.models.summary import ModelSummary

__all__ = ["History", "ModelSummary", "PreparedModel", "Sequential"]
