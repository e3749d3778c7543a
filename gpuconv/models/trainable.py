"""The interface of a model for training, so that `fit` and `state` need not import the model that imports them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gpuconv.layers import Layer
from gpuconv.losses import Loss
from gpuconv.typing import Array, DTypeLike, Ints


class Trainable(Protocol):
    """The attributes and methods that training uses; `Sequential` documents them."""

    layers: list[Layer]
    loss: Loss
    seed: int
    epochs_done: int
    input_shape: Ints | None
    pending: Callable[[], object] | None

    @property
    def config(self) -> dict[str, Any]: ...

    def settle(self) -> None: ...

    def build(self, x_shape: Sequence[int], dtype: DTypeLike = ..., device: str = ...) -> None: ...

    def run(self, X: Array, retain_derived: bool) -> Array: ...

    def pull_back(
        self, dLda: list[Array], retain_grads: bool = ..., need_input_grad: bool = ..., may_overwrite: bool = ...
    ) -> Any: ...

    def update(self) -> None: ...

    def flush_gradients(self) -> None: ...

    def evaluate(self, X: Array, y: Array, batch_size: int = ...) -> dict[str, float]: ...

    def check_data(self, X: Array, y: Array, caller: str) -> None: ...

    def check_training(self, x_shape: Sequence[int]) -> None: ...

    def check_savable(self, caller: str) -> None: ...

    def content(self) -> tuple[dict[str, Array], dict[str, Any]]: ...

    def take(self, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None: ...

    def state_dict(self) -> dict[str, Array]: ...

    def to(self, device: str) -> Any: ...
