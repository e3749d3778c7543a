"""Optimizers, which update parameters by their gradients, in place and on their device.

On a GPU one kernel updates all parameters of a layer, see `gpuconv.cuda.optimizer_step`, with the bits of NumPy but for
denormals in float32, which a GPU flushes to zero.

An optimizer has parameters but no state: the state of a layer (momenta, squared gradients, the number of steps) is in a
cache that the layer owns, so several layers may share one optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from gpuconv import backend, schedulers
from gpuconv.cuda import clipping, graphs, optimizer_step
from gpuconv.cuda.optimizer_step import Rule
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.schedulers import Scheduler, SchedulerLike
from gpuconv.support import from_string
from gpuconv.support.argument_checks import flag, non_negative
from gpuconv.typing import Array, OptimizerName

Cache = dict[str, Any]
"""The state of an optimizer for one layer: ``{"step": int, parameter: {name: array}}``."""

CHUNK = 2**15
"""Elements updated at a time on the CPU, so that this part of all arrays of a step stays in the second-level cache."""


class Optimizer(from_string.FromString):
    """The base of all optimizers.

    Parameters
    ----------
    lr : float
        Learning rate, if there is no scheduler.
    clip_norm : float, optional
        The largest Euclidean norm of the gradients of a layer, all its parameters together; longer gradients are scaled
        down to it (Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
        algorithm 1). Finite gradients of any size keep their direction. A NaN among them makes all of them NaN, and an
        infinity becomes NaN and makes the others 0: no scaling could repair either.
    scheduler : str or Scheduler, optional
        The learning rate as a function of the step.

    Examples
    --------
    >>> from gpuconv import optimizers
    >>> optimizers.parse("SGD(lr=0.1, momentum=0.9)")
    SGD(lr=0.1, momentum=0.9)
    """

    slots: tuple[str, ...] = ()
    """The names of the state arrays of each parameter, which have its shape and dtype and start at zero."""

    lr: float
    clip_norm: float | None
    scheduler: Scheduler | None

    def _set_common(self, lr: float, clip_norm: float | None, scheduler: SchedulerLike | None) -> None:
        self.lr = non_negative(lr, "lr", self.name)
        self.clip_norm = None if clip_norm is None else non_negative(clip_norm, "clip_norm", self.name)
        self.scheduler = None if scheduler is None else schedulers.parse(scheduler, self.name)

    def update(
        self,
        params: Mapping[str, Array],
        gradients: Mapping[str, Array],
        cache: Cache,
        cur_loss: float | None = None,
    ) -> None:
        """Take one step: `params` and `cache` change in place, and with clip_norm `gradients` too.

        The arrays of one call are on one device and C-contiguous; `gradients` has the names of `params`, or some of
        them.
        """
        if not gradients:
            return
        xp = self._check(params, gradients)
        with backend.on_device_of(next(iter(gradients.values()))):
            graphs.refuse_training(xp, self.name)
            step = cache.get("step", 0) + 1
            rate = self.lr if self.scheduler is None else self.scheduler(step, cur_loss)
            rate = non_negative(rate, f"the learning rate of step {step}", self.name)
            slots = {name: self._slots(xp, cache, name, params[name]) for name in gradients}
            if self.clip_norm is not None:
                clip(gradients.values(), self.clip_norm)
            group = [(params[name], gradient, *slots[name]) for name, gradient in gradients.items()]
            rule = None if xp is np or type(self).step not in _WITH_RULES else self._rule(step, rate)
            if rule is not None and all(map(optimizer_step.supports, group)):
                optimizer_step.take(xp, rule, group)
            else:
                for arrays in group:
                    for pieces in _pieces(xp, arrays):
                        self.step(xp, step, rate, *pieces)
            cache["step"] = step

    def _check(self, params: Mapping[str, Array], gradients: Mapping[str, Array]) -> ModuleType:
        """Check that each gradient fits its parameter, before anything changes, and return the array module."""
        for argument, value in (("params", params), ("gradients", gradients)):
            if not isinstance(value, Mapping):
                raise TypeError(f"{self.name}: {argument} is a {type(value).__name__}, but must be a dict of arrays.")
        xp = backend.common_module(self.name, **{f"gradients[{name!r}]": g for name, g in gradients.items()})
        for name, g in gradients.items():
            if name not in params:
                raise ValueError(
                    f"{self.name}: gradients has {name!r}, but params has only {', '.join(map(repr, params))}."
                )
            p, key = params[name], f"params[{name!r}]"
            backend.common_module(self.name, **{key: p, f"gradients[{name!r}]": g})
            if p.shape != g.shape:
                raise GeometryError(f"{self.name}: {key} has the shape {p.shape}, but its gradient {g.shape}.")
            if p.dtype != g.dtype or p.dtype.kind != "f":
                raise DTypeError(
                    f"{self.name}: {key} is {p.dtype}, and its gradient {g.dtype}. Both must have the same real dtype."
                )
            if not p.flags.c_contiguous:
                raise ValueError(f"{self.name}: {key} must be C-contiguous, because it is updated in place.")
            changed = ((key, p), (f"gradients[{name!r}]", g)) if self.clip_norm is not None else ((key, p),)
            for argument, array in changed:
                if not getattr(array.flags, "writeable", True):  # CuPy arrays always are
                    raise ValueError(f"{self.name}: {argument} is read-only. Pass an array that may be written to.")
        return xp

    def step(self, xp: ModuleType, t: int, lr: float, p: Array, g: Array, *slots: Array) -> None:
        """Take step number t (from 1) of a vector p with gradient g, in place. g does not change."""
        raise NotImplementedError

    def _rule(self, t: int, lr: float) -> Rule:
        """The same step for the kernel that takes it for all parameters at once, on a GPU, with the same bits."""
        raise NotImplementedError

    def _slots(self, xp: ModuleType, cache: Cache, name: str, parameter: Array) -> list[Array]:
        if name not in cache:
            cache[name] = {slot: xp.zeros_like(parameter) for slot in self.slots}
        return [cache[name][slot] for slot in self.slots]


class SGD(Optimizer):
    """Stochastic gradient descent, plain or with momentum.

        v  =  momentum v - lr g        p  =  p + v

    (Polyak 1964; in this form Sutskever et al., "On the importance of initialization and momentum in deep learning",
    2013, eq. 1 and 2.) With `nesterov`, p = p + momentum v - lr g with the new v: Nesterov's accelerated gradient, with
    the parameters at the look-ahead point (Bengio, Boulanger-Lewandowski & Pascanu, "Advances in optimizing
    recurrent networks", 2013, eq. 7).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.optimizers import SGD
    >>> w, cache = np.array([1.0, 2.0]), {}
    >>> SGD(lr=0.1).update({"w": w}, {"w": np.array([0.5, -0.5])}, cache)
    >>> w.round(4)
    array([0.95, 2.05])
    """

    name = "SGD"

    def __init__(
        self,
        lr: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        clip_norm: float | None = None,
        scheduler: SchedulerLike | None = None,
    ) -> None:
        self._set_common(lr, clip_norm, scheduler)
        self.momentum = non_negative(momentum, "momentum", self.name, below=1)
        self.nesterov = flag(nesterov, "nesterov", self.name)
        if self.nesterov and not self.momentum:
            raise ValueError(f"{self.name}: nesterov=True needs momentum > 0, momentum={momentum!r}.")
        self.slots = ("velocity",) if self.momentum else ()

    def _rule(self, t: int, lr: float) -> Rule:
        if not self.momentum:
            return Rule("plain", (-lr,))
        return Rule("nesterov" if self.nesterov else "momentum", (-lr, self.momentum))

    def step(self, xp: ModuleType, t: int, lr: float, p: Array, g: Array, *slots: Array) -> None:
        change = g * -lr
        if self.momentum:
            (v,) = slots
            v *= self.momentum
            v += change
            if self.nesterov:
                change += self.momentum * v
            else:
                change = v
        p += change


class AdaGrad(Optimizer):
    """h = h + g**2, p = p - lr g / (sqrt(h) + eps) (Duchi, Hazan & Singer, "Adaptive subgradient methods for online
    learning and stochastic optimization", 2011, the diagonal form of section 1.2).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.optimizers import AdaGrad
    >>> w, cache = np.array([1.0, 2.0]), {}
    >>> AdaGrad(lr=0.1).update({"w": w}, {"w": np.array([0.5, -0.5])}, cache)
    >>> w.round(4)
    array([0.9, 2.1])
    """

    name = "AdaGrad"
    slots = ("squares",)

    def __init__(
        self,
        lr: float = 0.01,
        eps: float = 1e-7,
        clip_norm: float | None = None,
        scheduler: SchedulerLike | None = None,
    ) -> None:
        self._set_common(lr, clip_norm, scheduler)
        self.eps = non_negative(eps, "eps", self.name)

    def step(self, xp: ModuleType, t: int, lr: float, p: Array, g: Array, *slots: Array) -> None:
        (squares,) = slots
        scratch = g * g
        squares += scratch
        _descend(xp, p, g, squares, lr, self.eps, scratch)

    def _rule(self, t: int, lr: float) -> Rule:
        return Rule("AdaGrad", (lr, self.eps))


class RMSProp(Optimizer):
    """h = decay h + (1 - decay) g**2, p = p - lr g / (sqrt(h) + eps) (Tieleman & Hinton, "Neural networks for machine
    learning", lecture 6.5, 2012).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.optimizers import RMSProp
    >>> w, cache = np.array([1.0, 2.0]), {}
    >>> RMSProp(lr=0.1).update({"w": w}, {"w": np.array([0.5, -0.5])}, cache)
    >>> w.round(4)
    array([0.6838, 2.3162])
    """

    name = "RMSProp"
    slots = ("squares",)

    def __init__(
        self,
        lr: float = 0.001,
        decay: float = 0.9,
        eps: float = 1e-7,
        clip_norm: float | None = None,
        scheduler: SchedulerLike | None = None,
    ) -> None:
        self._set_common(lr, clip_norm, scheduler)
        self.decay = non_negative(decay, "decay", self.name, below=1)
        self.eps = non_negative(eps, "eps", self.name)

    def step(self, xp: ModuleType, t: int, lr: float, p: Array, g: Array, *slots: Array) -> None:
        (squares,) = slots
        scratch = g * g
        _average(squares, scratch, self.decay)
        _descend(xp, p, g, squares, lr, self.eps, scratch)

    def _rule(self, t: int, lr: float) -> Rule:
        return Rule("RMSProp", (lr, self.eps, self.decay, 1 - self.decay))


class Adam(Optimizer):
    """Averages of the gradient and of its square, corrected for their bias towards 0 (Kingma & Ba, "Adam: a method for
    stochastic optimization", 2015, algorithm 1).

        m  =  decay1 m + (1 - decay1) g            m'  =  m / (1 - decay1**t)
        v  =  decay2 v + (1 - decay2) g**2         v'  =  v / (1 - decay2**t)         p  =  p - lr m' / (sqrt(v') + eps)

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.optimizers import Adam
    >>> w, cache = np.array([1.0, 2.0]), {}
    >>> Adam(lr=0.1).update({"w": w}, {"w": np.array([0.5, -0.5])}, cache)
    >>> w.round(4)
    array([0.9, 2.1])
    """

    name = "Adam"
    slots = ("mean", "squares")

    def __init__(
        self,
        lr: float = 0.001,
        decay1: float = 0.9,
        decay2: float = 0.999,
        eps: float = 1e-8,
        clip_norm: float | None = None,
        scheduler: SchedulerLike | None = None,
    ) -> None:
        self._set_common(lr, clip_norm, scheduler)
        self.decay1 = non_negative(decay1, "decay1", self.name, below=1)
        self.decay2 = non_negative(decay2, "decay2", self.name, below=1)
        self.eps = non_negative(eps, "eps", self.name)

    def step(self, xp: ModuleType, t: int, lr: float, p: Array, g: Array, *slots: Array) -> None:
        mean, squares = slots
        scratch = g * (1 - self.decay1)
        mean *= self.decay1
        mean += scratch
        xp.multiply(g, g, out=scratch)
        _average(squares, scratch, self.decay2)
        _descend(xp, p, mean, squares, *self._corrected(t, lr), scratch)

    def _corrected(self, t: int, lr: float) -> tuple[float, float]:
        """The learning rate and eps with the correction of both averages.

        m' / (sqrt(v') + eps) = m / (sqrt(v) + eps root) root / (1 - decay1**t), root = sqrt(1 - decay2**t)
        """
        root = math.sqrt(1 - self.decay2**t)
        return lr * root / (1 - self.decay1**t), self.eps * root

    def _rule(self, t: int, lr: float) -> Rule:
        averages = (self.decay2, 1 - self.decay2, self.decay1, 1 - self.decay1)
        return Rule("Adam", (*self._corrected(t, lr), *averages, 1.0))


class AdamW(Adam):
    """Adam with an additional p = p - lr weight_decay p, a decay that does not enter the averages (Loshchilov &
    Hutter, "Decoupled weight decay regularization", 2019, algorithm 2).

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.optimizers import AdamW
    >>> w, cache = np.array([1.0, 2.0]), {}
    >>> AdamW(lr=0.1).update({"w": w}, {"w": np.array([0.5, -0.5])}, cache)
    >>> w.round(4)
    array([0.899, 2.098])
    """

    name = "AdamW"

    def __init__(
        self,
        lr: float = 0.001,
        decay1: float = 0.9,
        decay2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
        scheduler: SchedulerLike | None = None,
    ) -> None:
        super().__init__(lr, decay1, decay2, eps, clip_norm, scheduler)
        self.weight_decay = non_negative(weight_decay, "weight_decay", self.name)

    def step(self, xp: ModuleType, t: int, lr: float, p: Array, g: Array, *slots: Array) -> None:
        p *= self._kept(lr)
        super().step(xp, t, lr, p, g, *slots)

    def _rule(self, t: int, lr: float) -> Rule:
        kind, scalars = super()._rule(t, lr)
        return Rule(kind, (*scalars[:-1], self._kept(lr)))

    def _kept(self, lr: float) -> float:
        return 1 - lr * self.weight_decay


_CLASSES: tuple[type[Optimizer], ...] = (SGD, AdaGrad, RMSProp, Adam, AdamW)

_WITH_RULES = {kind.step for kind in _CLASSES}
"""The steps that have a rule: a class that inherits a rule and has another step is not served by the kernel."""

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in _CLASSES}

OptimizerLike: TypeAlias = Optimizer | OptimizerName | str
"""An optimizer, its name, or its name with parameters, as `parse` reads it."""


def parse(given: OptimizerLike | None, caller: str = "optimizers.parse", argument: str = "optimizer") -> Optimizer:
    """Make an optimizer from its name, with or without parameters. None is plain SGD.

    >>> parse("sgd(lr=0.1, momentum=0.9)")
    SGD(lr=0.1, momentum=0.9)
    >>> str(parse("sgd(lr=0.1, momentum=0.9)"))
    'SGD(lr=0.1, momentum=0.9, nesterov=False, clip_norm=None, scheduler=None)'
    """
    return from_string.parse(Optimizer, OPTIMIZERS, "SGD" if given is None else given, caller, argument)


def from_hyperparams(d: Mapping[str, Any]) -> Optimizer:
    """Make an optimizer from {"name": ..., parameter: value, ...}, as a layer's hyperparams hold it.

    >>> from_hyperparams({"name": "SGD", "lr": 0.1}).lr
    0.1
    """
    arguments = dict(d)
    kind = type(parse(arguments.pop("name", None)))
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{kind.name}: {error}.") from None


def clip(gradients: Any, most: float) -> None:
    """Scale arrays in place, so that the Euclidean norm of all of them together is at most `most`.

    The norm stays on the device: nothing waits for it. There kernels/clip.cu does it in two launches, whose last bits
    may differ from NumPy's; arrays of several dtypes, or not contiguous, take more.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.optimizers import clip
    >>> gradients = [np.array([3.0]), np.array([4.0])]
    >>> clip(gradients, 1.0)
    >>> [round(float(g[0]), 4) for g in gradients]
    [0.6, 0.8]
    """
    most = non_negative(most, "most", "clip")
    arrays = list(gradients)
    if not arrays:
        return
    xp = backend.common_module("clip", **{f"gradients[{number}]": g for number, g in enumerate(arrays)})
    for number, g in enumerate(arrays):
        if g.dtype.kind != "f":
            raise DTypeError(f"clip: gradients[{number}] is {g.dtype}, but must hold real numbers.")
    with backend.on_device_of(arrays[0]), np.errstate(all="ignore"):  # in results that are discarded
        limit = float(arrays[0].dtype.type(most))
        graphs.check_if_captured(xp, "clip", "sums are made on the way to the norm")
        if xp is not np and clipping.supports(arrays):
            clipping.clip(xp, arrays, limit)
            return
        total, unit = _squares(xp, arrays), xp.ones((), np.float64)
        scaled = xp is not np or not _is_exact(total)
        if scaled:  # by the power of two below the largest, which neither rounds nor overflows
            largest = xp.stack([abs(g).max().astype(np.float64) for g in arrays if g.size] or [unit]).max()
            unit = xp.where((largest > 0) & xp.isfinite(largest), largest / (2 * xp.frexp(largest)[0]), unit)
            total = _squares(xp, [g / unit.astype(g.dtype) for g in arrays])
        root = xp.sqrt(total).astype(np.float64)
        inside = root <= limit / unit
        unit, scale = xp.where(inside, 1.0, unit), xp.where(inside, 1.0, limit / root)
        for g in arrays:
            if scaled:
                g /= unit.astype(g.dtype)
            g *= scale.astype(g.dtype)


def _squares(xp: ModuleType, arrays: list[Array]) -> Any:
    """Return the sum of the squares of all elements, in their dtype."""
    return sum(xp.einsum("i,i->", v, v) for v in (g.reshape(-1) for g in arrays))  # BLAS would start threads


def _is_exact(total: Any) -> bool:
    """Return whether a sum of squares is so far from both ends of its dtype that nothing relevant was lost there."""
    limits = np.finfo(total.dtype)
    return bool(limits.tiny / limits.eps**2 <= total <= limits.max)


def _average(average: Array, new: Array, decay: float) -> None:
    """Set average = decay average + (1 - decay) new; `new` is overwritten."""
    average *= decay
    new *= 1 - decay
    average += new


def _descend(xp: ModuleType, p: Array, g: Array, squares: Array, lr: float, eps: float, scratch: Array) -> None:
    """Set p = p - lr g / (sqrt(squares) + eps)."""
    xp.sqrt(squares, out=scratch)
    scratch += eps
    xp.divide(g, scratch, out=scratch)
    scratch *= lr
    p -= scratch


def _pieces(xp: ModuleType, arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    """Yield the arrays as vectors, on the CPU in pieces that stay in cache through all operations of a step."""
    vectors = [array.reshape(-1) for array in arrays]
    size = vectors[0].size
    if xp is not np or size <= CHUNK:
        yield tuple(vectors)
        return
    for start in range(0, size, CHUNK):
        yield tuple(vector[start : start + CHUNK] for vector in vectors)
