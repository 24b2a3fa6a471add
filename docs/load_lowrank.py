"""Loads the tensors of a decomposed or pruned network (`cofilter convert FILE --state-dict -o small.safetensors`) into PyTorch.

    network = load_lowrank(torchvision.models.resnet18(), "small.safetensors")
"""

import torch
from safetensors.torch import load_file
from torch import nn


def parts_of(layer, weights, biased):
    """The layers in the place of one: windows, steps and margins of each axis belong to the one that has its taps."""
    if isinstance(layer, nn.Linear):
        parts = [nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in weights]
    else:
        parts, channels, left = [], layer.in_channels, {0, 1}
        for weight in weights:
            kernel = tuple(weight.shape[2:])
            # An axis with one tap belongs to the first layer with all taps of the others.
            own = {axis for axis in left if kernel[axis] == layer.kernel_size[axis] and (kernel[axis] > 1 or kernel == layer.kernel_size)}
            left -= own
            pick = lambda values, other: tuple(values[axis] if axis in own else other for axis in (0, 1))
            parts.append(nn.Conv2d(channels, weight.shape[0], kernel, bias=False, stride=pick(layer.stride, 1),
                                   padding=pick(layer.padding, 0), dilation=pick(layer.dilation, 1),
                                   groups=channels // weight.shape[1]))
            channels = weight.shape[0]
    if biased:
        parts[-1].bias = nn.Parameter(torch.zeros(weights[-1].shape[0]))
    return nn.Sequential(*parts)


def narrowed(layer, weight, biased):
    """The layer with as many channels as its weight has."""
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(weight.shape[0], eps=layer.eps)
    if isinstance(layer, nn.Linear):
        return nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
    return nn.Conv2d(weight.shape[1] * layer.groups, weight.shape[0], layer.kernel_size, bias=biased, stride=layer.stride,
                     padding=layer.padding, dilation=layer.dilation, groups=layer.groups)


def load_lowrank(network, path):
    """Replaces the layers of `network` that the file holds as `<layer>.0`, `<layer>.1`, ..., and those that are narrower there, and
    loads all tensors."""
    tensors = load_file(path)
    for name, layer in list(network.named_modules()):
        weight = tensors.get(f"{name}.weight")
        if isinstance(layer, (nn.BatchNorm2d, nn.Conv2d, nn.Linear)) and weight is not None and layer.weight is not None and weight.shape != layer.weight.shape:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, narrowed(layer, weight, f"{name}.bias" in tensors))
        weights = []
        while f"{name}.{len(weights)}.weight" in tensors:
            weights.append(tensors[f"{name}.{len(weights)}.weight"])
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and weights:
            parent, _, child = name.rpartition(".")
            biased = f"{name}.{len(weights) - 1}.bias" in tensors
            setattr(network.get_submodule(parent), child, parts_of(layer, weights, biased))
    network.load_state_dict(tensors)
    return network
