"""Residual, a block of layers with a way around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv import activations, backend
from gpuconv.activations import ActivationLike
from gpuconv.algorithms import epilogue
from gpuconv.cuda import graphs
from gpuconv.errors import GeometryError
from gpuconv.layers import chain
from gpuconv.layers.base import Derived, Layer, PreparedLayer
from gpuconv.support import html
from gpuconv.typing import Array, Ints

BRANCHES = ("body", "shortcut")


class Residual(Layer):
    """A block of layers whose input is added to its output (He et al., "Deep residual learning", 2016, eq. 1 and 2).

        output = acti_fn(body(X) + shortcut(X))          X (N, ...)

    The layers inside are layers like any other: they are trained, saved and moved with the block. A block may hold
    other blocks.

    Parameters
    ----------
    body : iterable of Layer
        The layers that X passes one after the other.
    shortcut : iterable of Layer, optional
        Those of the way around. Default: none, so that X itself is added. Where the body changes the shape of X, the
        shortcut must change it alike: usually ``Conv2D(out_ch, 1, stride=...)``, and `BatchNorm2D` after it.
    acti_fn : str or Activation, optional
        Applied to the sum. Default: identity.

    Attributes
    ----------
    body, shortcut : tuple of Layer
        They hold the parameters and gradients; `params` and `gradients` of the block are empty.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.layers import BatchNorm2D, Conv2D
    >>> block = Residual(
    ...     [Conv2D(16, 3, 1, 2, use_bias=False), BatchNorm2D(), Conv2D(16, 3, 1, use_bias=False), BatchNorm2D()],
    ...     shortcut=[Conv2D(16, 1, 0, 2, use_bias=False), BatchNorm2D()],
    ...     acti_fn="relu",
    ... )
    >>> block.forward(np.ones((2, 8, 8, 4), np.float32)).shape
    (2, 4, 4, 16)
    >>> sorted(block.state_dict())[:3]
    ['body.0.W', 'body.1.running_mean', 'body.1.running_var']
    """

    fresh = True

    def __init__(
        self, body: Iterable[Layer], shortcut: Iterable[Layer] = (), acti_fn: ActivationLike | None = None
    ) -> None:
        self.body: tuple[Layer, ...] = ()
        self.shortcut: tuple[Layer, ...] = ()
        super().__init__()
        branches = tuple(body), tuple(shortcut)
        for name, branch in zip(BRANCHES, branches, strict=True):
            for layer in branch:
                if not isinstance(layer, Layer):
                    raise TypeError(f"{self.kind}: {name}: {layer!r} is not a layer.")
        if not branches[0]:
            raise ValueError(f"{self.kind}: body holds no layer, but a block needs at least one.")
        self.body, self.shortcut = branches
        self.acti_fn = activations.parse(acti_fn, self.kind)
        if len(set(map(id, self.inner.values()))) < len(self.inner):
            raise ValueError(f"{self.kind}: a layer occurs twice in it. Each object may occur once.")

    @property
    def _children(self) -> tuple[Layer, ...]:
        return (*self.body, *self.shortcut)

    @property
    def inner(self) -> dict[str, Layer]:
        return {
            f"{name}.{path}": layer for name in BRANCHES for path, layer in chain.by_path(getattr(self, name)).items()
        }

    # ---------------------------------------------------------------------------------------------- shapes

    def _shapes(self, x_shape: Sequence[int], *, training: bool = False) -> tuple[list[Ints], list[Ints]]:
        """Return `chain.shapes` of the body and of the shortcut."""
        body, shortcut = (
            chain.shapes(getattr(self, name), x_shape, f"{self.kind}: {name}", training=training) for name in BRANCHES
        )
        if body[-1] != shortcut[-1]:
            what = "the shortcut gives" if self.shortcut else "without a shortcut X itself is added, which has"
            raise GeometryError(
                f"{self.kind}: X.shape={tuple(x_shape)} becomes {body[-1]} in the body, but {what} {shortcut[-1]}. "
                "Both must be equal: choose a shortcut such as [Conv2D(out_ch, 1, stride=...)]."
            )
        return body, shortcut

    def output_shape(self, x_shape: Sequence[int]) -> Ints:
        return self._shapes(x_shape)[0][-1]

    def check_training(self, x_shape: Sequence[int]) -> None:
        self._shapes(x_shape, training=True)

    def inputs_of(self, x_shape: Sequence[int]) -> dict[str, Ints]:
        """Return the shapes of the inputs of the layers directly in the block, by their paths."""
        return {
            f"{name}.{number}": shape
            for name, shapes in zip(BRANCHES, self._shapes(x_shape), strict=True)
            for number, shape in enumerate(shapes[:-1])
        }

    def flops(self, x_shape: Sequence[int]) -> int:
        inner = self.inner
        return sum(inner[path].flops(shape) for path, shape in self.inputs_of(x_shape).items())

    # ---------------------------------------------------------------------------------------------- parameters

    @property
    def is_initialised(self) -> bool:
        return all(layer.is_initialised for layer in self._children)

    def _initialise(self, x_shape: Ints, dtype: np.dtype[Any], device: str) -> None:
        for name in BRANCHES:
            shape = x_shape
            for layer in getattr(self, name):
                shape = layer.build(shape, dtype, device)

    @property
    def learns(self) -> bool:
        return any(layer.learns for layer in self._children)

    @property
    def param_count(self) -> int:
        return sum(layer.param_count for layer in self._children)

    def param_count_for(self, x_shape: Sequence[int]) -> int:
        inner = self.inner
        return sum(inner[path].param_count_for(shape) for path, shape in self.inputs_of(x_shape).items())

    @property
    def trainable(self) -> bool:
        """Whether any layer of the block is trained; setting it sets that of all of them."""
        return any(layer.trainable for layer in self._children)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in self._children:
            layer.trainable = value

    @property
    def config(self) -> dict[str, Any]:
        branches = {name: [layer.description for layer in getattr(self, name)] for name in BRANCHES}
        return {**branches, "acti_fn": str(self.acti_fn)}

    @property
    def description(self) -> dict[str, Any]:
        return {"layer": self.kind, **self.config}

    @property
    def hyperparams(self) -> dict[str, Any]:
        branches = {name: [layer.hyperparams for layer in getattr(self, name)] for name in BRANCHES}
        return {**self.description, **branches}

    def summary(self) -> dict[str, Any]:
        params = {f"{path}.{name}": p for path, layer in self.inner.items() for name, p in layer.params.items()}
        return {**super().summary(), "params": params}

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and buffers of all layers inside, as "body.0.W"."""
        parts = {path: {**layer.params, **layer.buffers} for path, layer in self.inner.items()}
        return {f"{path}.{name}": value.copy() for path, values in parts.items() for name, value in values.items()}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        own = {f"{path}.{name}" for path, part in self.inner.items() for name in (*part.params, *part.buffers)}
        if self.is_initialised and set(d) != own:
            raise ValueError(f"{self.kind}: load_state_dict was given {sorted(d)}, but the layer has {sorted(own)}.")
        self.set_params(dict(d))

    def _set(self, given: Mapping[str, Any]) -> None:
        inner = self.inner
        by_layer: dict[str, dict[str, Any]] = {}
        for key, value in given.items():
            path, _, name = key.rpartition(".")
            if path not in inner:
                raise ValueError(f"{self.kind}: {key!r} names no layer of the block, which has {', '.join(inner)}.")
            by_layer.setdefault(path, {})[name] = value
        for path, values in by_layer.items():
            inner[path].set_params(values)

    def with_arguments(self, arguments: Mapping[str, Any]) -> Residual:
        return type(self)(**{"body": self.body, "shortcut": self.shortcut, "acti_fn": self.acti_fn, **arguments})

    def _adopt(self, hyperparams: Mapping[str, Any]) -> None:
        branches = {name: hyperparams[name] for name in BRANCHES if name in hyperparams}
        super()._adopt({name: value for name, value in hyperparams.items() if name not in branches})
        for name, found in branches.items():
            branch = getattr(self, name)
            if len(found) != len(branch):
                raise ValueError(f"{self.kind}: {name} has {len(branch)} layers, but was given {len(found)}.")
            for layer, one in zip(branch, found, strict=True):
                layer.set_params({"hyperparams": one})

    def copied(self) -> Residual:
        body, shortcut = ([layer.copied() for layer in getattr(self, name)] for name in BRANCHES)
        return self.with_arguments({"body": body, "shortcut": shortcut})

    def prepared(self, x_shape: Sequence[int]) -> PreparedLayer:
        act = self.acti_fn
        body, shortcut = (
            chain.prepared(getattr(self, name), shapes)
            for name, shapes in zip(BRANCHES, self._shapes(x_shape), strict=True)
        )

        def run(X: Array) -> Array:
            return self._joined(backend.array_module(X), act, body.run(X), shortcut.run(X))[0]

        convolutions = {
            f"{name}.{path}": convolution
            for name, branch in zip(BRANCHES, (body, shortcut), strict=True)
            for path, convolution in branch.convolutions.items()
        }
        return PreparedLayer(run, convolutions)

    def to(self, device: str) -> Residual:
        for layer in self._children:
            layer.to(device)
        self._forget()
        return self

    def snapshot(self) -> dict[str, Any]:
        return {**super().snapshot(), "snapshots": [layer.snapshot() for layer in self._children]}

    def restore(self, snapshot: dict[str, Any]) -> None:
        own = dict(snapshot)
        inner = own.pop("snapshots")
        super().restore(own)
        for layer, one in zip(self._children, inner, strict=True):
            layer.restore(one)

    # ---------------------------------------------------------------------------------------------- shown

    def _text(self, branches: Mapping[str, tuple[Layer, ...]]) -> str:
        parts = [f"{name}={list(branch)!r}" for name, branch in branches.items() if branch]
        parts += [] if repr(self.acti_fn) == "identity" else [f"acti_fn={repr(self.acti_fn)!r}"]
        return f"{self.kind}({', '.join(parts)})".replace("(body=", "(", 1)

    def __repr__(self) -> str:
        return self._text({"body": self.body, "shortcut": self.shortcut})

    @property
    def title(self) -> str:
        return self._text({})

    def _repr_html_(self) -> str:
        rows = [(path, layer.title) for path, layer in self.inner.items()]
        return html.table(self.kind, ("", f"acti_fn={self.acti_fn}"), rows)

    # ---------------------------------------------------------------------------------------------- passes

    def run(self, X: Array, retain_derived: bool = True) -> Array:
        before = self.snapshot()
        try:
            return super().run(X, retain_derived)
        except BaseException:
            self.restore(before)
            raise

    def _forward(self, xp: ModuleType, X: Array, training: bool) -> tuple[Array, Derived]:
        through, around = chain.run(self.body, X, training), chain.run(self.shortcut, X, training)
        output, Y = self._joined(xp, self.acti_fn, through, around)
        return output, {"Y": Y}

    @staticmethod
    def _joined(xp: ModuleType, act: activations.Activation, through: Array, around: Array) -> tuple[Array, Array]:
        """Return the output, and what backward needs of it: the sum, or the output itself if `act` is fused."""
        Y = through + around
        if not act.fused:
            return act.fn(xp, Y), Y
        epilogue.ACTIVATIONS[act.fused](xp, Y)
        return Y, Y

    def pull_back(
        self, dLda: list[Array], retain_grads: bool = True, need_input_grad: bool = True, may_overwrite: bool = False
    ) -> list[Array | None]:
        xp = self._check_gradients(dLda)
        act = self.acti_fn
        with backend.on_device_of(dLda[0]):
            graphs.refuse_training(xp, self.kind)
            dY = [
                act.pull_back(xp, d, act.kept_of(xp, Y), d if may_overwrite else None)
                for d, Y in zip(dLda, self.derived_variables["Y"], strict=True)
            ]
            # Both branches read dY, so neither may write to it.
            through = chain.pull_back(self.body, dY, retain_grads, need_input_grad, False)
            around = chain.pull_back(self.shortcut, dY, retain_grads, need_input_grad, False)
            self._used = True
            if not need_input_grad:
                return [None] * len(dLda)
            own = self.body[0].fresh
            return [xp.add(a, b, out=a if own else None) for a, b in zip(through, around, strict=True)]

    def update(self, cur_loss: float | None = None) -> None:
        for layer in self._children:
            layer.update(cur_loss)
        self._forget()

    def flush_gradients(self) -> None:
        for layer in self._children:
            layer.flush_gradients()
        self._forget()

    def freeze(self) -> None:
        for layer in self._children:
            layer.freeze()

    def unfreeze(self) -> None:
        for layer in self._children:
            layer.unfreeze()
