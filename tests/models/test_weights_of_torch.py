"""Networks made and trained in PyTorch, loaded by their names, with the same outputs. Needs PyTorch."""

import numpy as np
import pytest

from gpuconv.layers import Activation, BatchNorm2D, Conv2D, Dense, Flatten, GlobalAvgPool2D, MaxPool2D, Residual
from gpuconv.models import Sequential

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

nn = torch.nn


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = torch.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.tanh(self.conv2(x)), 2)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x.flatten(1))))))


class BasicBlock(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, k, 3, stride, 1, bias=False), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = nn.Conv2d(k, k, 3, 1, 1, bias=False), nn.BatchNorm2d(k)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def block(k, stride):
    body = [Conv2D(k, 3, 1, stride, use_bias=False), BatchNorm2D(), Activation("relu")]
    body += [Conv2D(k, 3, 1, use_bias=False), BatchNorm2D()]
    return Residual(body, [Conv2D(k, 1, 0, stride, use_bias=False), BatchNorm2D()] if stride > 1 else [], "relu")


def trained(net, shape):
    """The network after a few steps on noise, and what it says of other noise."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        x = torch.randn(shape, generator=generator)
        nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    net.eval()
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        return x.numpy(), net(x).numpy()


def check(model, net, x, want, tmp_path, order=None):
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "net")
    model.build(x.shape)
    model.load_weights(tmp_path / "net", names="torch", order=order)
    results = [m.predict(x) for m in (model, model.folded())] + [model.folded().prepared(x.shape)(x)]
    for found in results:
        assert np.abs(found - want).max() < 1e-5 * max(1.0, np.abs(want).max())


def test_lenet(tmp_path):
    torch.manual_seed(0)
    net = LeNet()
    x, want = trained(net, (6, 1, 28, 28))
    parts = [Conv2D(6, 5, 2, acti_fn="tanh"), MaxPool2D(2), Conv2D(16, 5, acti_fn="tanh"), MaxPool2D(2)]
    parts += [Flatten(), Dense(120, "tanh"), Dense(84, "tanh"), Dense(10)]
    check(Sequential(parts, layout="channels_first"), net, x, want, tmp_path)


def test_residual_blocks(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), BasicBlock(8, 12, 2), BasicBlock(12, 12, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    x, want = trained(net, (6, 3, 12, 12))
    for order in (None, [name for name, m in net.named_modules() if list(m.parameters(recurse=False))]):
        parts = [Conv2D(8, 3, 1), block(12, 2), block(12, 1), GlobalAvgPool2D(), Dense(5)]
        check(Sequential(parts, layout="channels_first"), net, x, want, tmp_path, order)
