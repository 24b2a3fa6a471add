"""Loads the tensors of a decomposed network (`cofilter convert FILE --state-dict -o small.safetensors`) into PyTorch.

    network = load_lowrank(torchvision.models.resnet18(), "small.safetensors")
"""

from safetensors.torch import load_file
from torch import nn


def pair_of(layer, first, second, biased):
    """The two layers in the place of one: `first` with its windows and few filters, `second` which combines them."""
    rank, filters = len(first), len(second)
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.Linear(first.shape[1], rank, bias=False), nn.Linear(rank, filters, bias=biased))
    windows = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    basis = nn.Conv2d(layer.in_channels, rank, first.shape[2:], bias=False, **windows)
    return nn.Sequential(basis, nn.Conv2d(rank, filters, 1, groups=rank // second.shape[1], bias=biased))


def load_lowrank(network, path):
    """Replaces the layers of `network` that the file holds as `<layer>.0` and `<layer>.1`, and loads all tensors."""
    tensors = load_file(path)
    for name, layer in list(network.named_modules()):
        first, second = tensors.get(f"{name}.0.weight"), tensors.get(f"{name}.1.weight")
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and first is not None and second is not None:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, pair_of(layer, first, second, f"{name}.1.bias" in tensors))
    network.load_state_dict(tensors)
    return network
