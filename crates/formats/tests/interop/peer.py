"""The other side of `interop.rs`: PyTorch, torchvision, ONNX Runtime and OpenVINO.

    peer.py make FOLDER    networks of torchvision with seeded weights: state dicts, ONNX files of both exporters, inputs and results
    peer.py check FOLDER   runs NAME.onnx on the `input` of NAME.safetensors and compares with its `output`
    peer.py load FOLDER    loads NAME.state.safetensors into torchvision's NAME and compares as above, and so NAME-low-rank
                           and NAME-narrow with `docs/load_lowrank.py`

`check` and `load` print a line for each file: its name, the program, the largest difference relative to the largest output.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


class CifarBlock(nn.Module):
    """A block of the CIFAR ResNet with the shortcut that has no parameters."""

    def __init__(self, channels, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.subsample = stride != 1
        self.more = filters - channels

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.subsample:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2), "constant", 0.0)
        return F.relu(y + x)


class CifarResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for at, (channels, filters) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
            blocks = [CifarBlock(channels if b == 0 else filters, filters, 2 if b == 0 and at > 1 else 1) for b in range(3)]
            setattr(self, f"layer{at}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def networks():
    from torchvision import models

    return {
        "alexnet": (models.alexnet, (3, 224, 224)),
        "googlenet": (lambda: models.googlenet(aux_logits=True, transform_input=False, init_weights=False), (3, 224, 224)),
        "resnet18": (models.resnet18, (3, 128, 128)),
        "resnet50": (models.resnet50, (3, 128, 128)),
        "resnet20": (CifarResNet20, (3, 32, 32)),
    }


def lively(network):
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return network.eval()


def export(network, x, name, folder):
    arguments = {"input_names": ["input"], "output_names": ["output"]}
    torch.onnx.export(
        network, (x,), folder / f"{name}.old.onnx", opset_version=17, dynamo=False,
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}}, **arguments,
    )
    program = torch.onnx.export(network, (x,), opset_version=18, dynamo=True, dynamic_shapes=[{0: torch.export.Dim("batch")}], **arguments)
    # With the numbers in a file of their own, as large networks have them.
    program.save(folder / f"{name}.dynamo.onnx", external_data=True)


def make(folder):
    for seed, (name, (build, extents)) in enumerate(networks().items()):
        torch.manual_seed(seed)
        network = lively(build())
        torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, folder / f"{name}.pth")
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / f"{name}.state.safetensors")
        x = torch.randn(2, *extents)
        with torch.no_grad():
            y = network.double()(x.double()).float()
        network.float()
        save_file({"input": x, "output": y.contiguous()}, folder / f"{name}.safetensors")
        export(network, x, name, folder)


def report(name, program, found, expected):
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{name} {program} {error:.3e}")


def check(folder):
    import onnx
    import onnxruntime
    import openvino

    for path in sorted(folder.glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)
        tensors = load_file(path.with_suffix(".safetensors"))
        x, expected = tensors["input"].numpy(), tensors["output"].numpy()
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        report(path.stem, "onnxruntime", session.run(["output"], {"input": x})[0], expected)
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        report(path.stem, "openvino", compiled({"input": x})["output"], expected)


def load(folder):
    sys.path.append(str(Path(__file__).parents[4] / "docs"))
    from load_lowrank import load_lowrank

    def compare(name, network):
        tensors = load_file(folder / f"{name}.safetensors")
        with torch.no_grad():
            report(name, "torch", network(tensors["input"]).numpy(), tensors["output"].numpy())

    for name, (build, _) in networks().items():
        network = build().eval()
        network.load_state_dict(load_file(folder / f"{name}.state.safetensors"), strict=True)
        compare(name, network)
        for small in ("low-rank", "narrow"):
            path = folder / f"{name}-{small}.state.safetensors"
            if path.exists():
                compare(f"{name}-{small}", load_lowrank(build(), path).eval())


{"make": make, "check": check, "load": load}[sys.argv[1]](Path(sys.argv[2]))
