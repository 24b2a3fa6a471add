"""One engine as a process: reads commands as JSON lines, answers each with one line.

    python worker.py ENGINE THREADS        ENGINE: onnxruntime | openvino | torch | torch-channels-last | numpy, or
                                           onnxruntime-cuda | torch-cuda | torch-cuda-tf32, images and logits on the host

{"load": ARTIFACT, "images": FILE, "batch": N, "logits": FILE}  compiles the network, runs it once, writes the result
{"write": ONNX, "from": ARTIFACT}                               the network as ONNX, for one image
{"time": RUNS, "settle": true}                                  one run to settle, then RUNS timed ones, in milliseconds
{"train": ARTIFACT, "images": FILE, "labels": FILE, "batch": N, "rate": R, "momentum": M, "decay": D}
                                                                begins to train (torch only), the batches of the file in turn
{"decompose": ARTIFACT, "layers": [[NAME, GROUPS], ...], "energy": E, "rank": R}
                                                                the weights of these layers into two factors each (torch, numpy), at
                                                                rank R or at this share of the energy: seconds, ranks by group
{"steps": N}                                                    the next N iterations: milliseconds and loss of each, peak bytes
"""
import json
import os
import struct
import sys
import time

ENGINE, THREADS = sys.argv[1], int(sys.argv[2])
os.environ.update(OMP_NUM_THREADS=str(THREADS), MKL_NUM_THREADS=str(THREADS))
import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402


def network(path):
    """Nodes, output names and tensors of an artifact."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    graph = json.loads(header["__metadata__"]["cofilter.graph"])
    return graph["nodes"], graph["outputs"][0], load_file(path)


def extents(shape):
    inner = shape.get("map")
    return [inner["channels"], inner["height"], inner["width"]] if inner else [shape["vector"]]


def to_onnx(path, batch):
    """The network as an ONNX model of opset 17 with a fixed batch."""
    from onnx import TensorProto, helper, numpy_helper
    nodes, output, tensors = network(path)
    out, consts, inputs = [], [], []

    def const(name, array):
        consts.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def emit(kind, node, names=None, **attributes):
        out.append(helper.make_node(kind, names or node["inputs"], [node["name"]], name=node["name"], **attributes))

    for node in nodes:
        op, name = node["op"], node["name"]
        both = lambda pair: [pair[0], pair[1], pair[0], pair[1]]
        weights = [const(f"{name}.{slot}", tensors[f"{name}.{slot}"]) for slot in ("weight", "bias") if f"{name}.{slot}" in tensors]
        if op == "input":
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch] + extents(node["shape"])))
        elif op == "conv2d":
            emit("Conv", node, node["inputs"] + weights, kernel_shape=node["kernel"], strides=node["stride"],
                 pads=both(node["padding"]), dilations=node["dilation"], group=node["groups"])
        elif op == "linear":
            emit("Gemm", node, node["inputs"] + weights, transB=1)
        elif op == "relu":
            emit("Relu", node)
        elif op == "add":
            emit("Add", node)
        elif op == "concat":
            emit("Concat", node, axis=1)
        elif op == "flatten":
            emit("Flatten", node)
        elif op == "softmax":
            emit("Softmax", node, axis=1)
        elif op == "lrn" and node["region"] == "across_channels":
            emit("LRN", node, size=node["size"], alpha=node["alpha"], beta=node["beta"], bias=node["k"])
        elif op == "pool2d":
            shape = dict(kernel_shape=node["kernel"], strides=node["stride"], pads=both(node["padding"]),
                         ceil_mode=int(node["rounding"] == "ceil"))
            if node["kind"] == "max":
                emit("MaxPool", node, **shape)
            else:
                emit("AveragePool", node, count_include_pad=int(node["count_padding"]), **shape)
        elif op == "adaptive_avg_pool" and node["output"] == [1, 1]:
            emit("GlobalAveragePool", node)
        elif op == "adaptive_avg_pool":  # only where the map has this size already, which the check of the result shows
            emit("Identity", node)
        elif op == "pad_channels":
            pads = const(name + ".pads", np.array([0, node["before"], 0, 0, 0, node["after"], 0, 0], np.int64))
            emit("Pad", node, node["inputs"] + [pads])
        else:
            raise ValueError(f"{name}: cannot write `{op}` as ONNX")
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(out, "network", inputs, [result], consts)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


def torch_run(path, images):
    """A function that runs the network in eager PyTorch."""
    import torch
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    forward, tensors, place = torch_network(path)
    x = place(images)
    if not ENGINE.startswith("torch-cuda"):
        return lambda: forward(x, tensors).numpy()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = ENGINE == "torch-cuda-tf32"
    torch.backends.cudnn.benchmark = True
    tensors = {key: tensor.cuda() for key, tensor in tensors.items()}
    x = x.pin_memory()
    return lambda: forward(x.cuda(non_blocking=True), tensors).cpu().numpy()


def torch_network(path):
    """The network in eager PyTorch as a function of images and tensors, its tensors, and what places an array in memory."""
    import torch
    import torch.nn.functional as F
    last = ENGINE == "torch-channels-last"
    form = torch.channels_last if last else torch.contiguous_format
    nodes, output, tensors = network(path)
    place = lambda a: torch.from_numpy(a).contiguous(memory_format=form) if a.ndim == 4 else torch.from_numpy(a)

    def forward(x, tensors):
        values = {}
        for node in nodes:
            op, name = node["op"], node["name"]
            args = [values[key] for key in node["inputs"]] if op != "input" else []
            weight, bias = tensors.get(name + ".weight"), tensors.get(name + ".bias")
            if op == "input":
                y = x
            elif op == "conv2d":
                y = F.conv2d(args[0], weight, bias, node["stride"], node["padding"], node["dilation"], node["groups"])
            elif op == "linear":
                y = F.linear(args[0], weight, bias)
            elif op == "batch_norm":  # of a network in training
                running = tensors[name + ".running_mean"], tensors[name + ".running_var"]
                y = F.batch_norm(args[0], *running, weight, bias, True, node["momentum"], node["eps"])
            elif op == "relu":
                y = F.relu(args[0])
            elif op == "add":
                y = args[0] + args[1]
            elif op == "concat":
                y = torch.cat(args, 1)
            elif op == "flatten":
                y = torch.flatten(args[0], 1)
            elif op == "softmax":
                y = F.softmax(args[0], 1)
            elif op == "lrn" and node["region"] == "within_channel":
                squares = F.avg_pool2d(args[0] * args[0], node["size"], 1, node["size"] // 2)
                y = args[0] / (node["k"] + node["alpha"] * squares) ** node["beta"]
            elif op == "lrn":
                y = F.local_response_norm(args[0], node["size"], node["alpha"], node["beta"], node["k"])
            elif op == "pool2d" and node["kind"] == "max":
                y = F.max_pool2d(args[0], node["kernel"], node["stride"], node["padding"], ceil_mode=node["rounding"] == "ceil")
            elif op == "pool2d":
                y = F.avg_pool2d(args[0], node["kernel"], node["stride"], node["padding"], node["rounding"] == "ceil", node["count_padding"])
            elif op == "adaptive_avg_pool":
                y = F.adaptive_avg_pool2d(args[0], node["output"])
            elif op == "pad_channels":
                y = F.pad(args[0], (0, 0, 0, 0, node["before"], node["after"]))
            else:
                raise ValueError(f"{name}: cannot run `{op}`")
            values[name] = y
        return values[output]

    return forward, {key: place(value) for key, value in tensors.items()}, place


class Training:
    """Stochastic gradient descent in eager PyTorch, from the weights of an artifact."""

    def __init__(self, command):
        import torch
        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(True)
        self.forward, self.tensors, place = torch_network(command["train"])
        labels = np.fromfile(command["labels"], np.uint32).astype(np.int64).reshape(-1, command["batch"])
        shape = extents(network(command["train"])[0][0]["shape"])
        images = np.fromfile(command["images"], np.float32).reshape([*labels.shape] + shape)
        # Laid out before the clock runs.
        self.batches = [(place(x), torch.from_numpy(y)) for x, y in zip(images, labels)]
        learnt = [t.requires_grad_() for key, t in self.tensors.items() if not key.endswith(("_mean", "_var"))]
        self.sgd = torch.optim.SGD(learnt, command["rate"], command["momentum"], weight_decay=command["decay"], fused=True)
        self.at = 0

    def step(self):
        import torch.nn.functional as F
        images, labels = self.batches[self.at % len(self.batches)]
        self.at += 1
        self.sgd.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.forward(images, self.tensors), labels)
        loss.backward()
        self.sgd.step()
        return loss.item()

    def steps(self, count):
        times, losses = [], []
        for _ in range(count):
            start = time.perf_counter()
            loss = self.step()
            # JSON has no other numbers.
            losses.append(loss if np.isfinite(loss) else None)
            times.append((time.perf_counter() - start) * 1e3)
        # Not `getrusage`: its figure includes the process that started this one.
        with open("/proc/self/status") as status:
            peak = int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024
        return {"ms": times, "losses": losses, "peak_bytes": peak}


def decompose(command):
    """The fastest exact way of these libraries: eigenvectors of the smaller Gram matrix, in single or double precision."""
    tensors = load_file(command["decompose"])
    weights = [np.split(tensors[f"{name}.weight"].reshape(len(tensors[f"{name}.weight"]), -1), groups)
               for name, groups in command["layers"]]
    if ENGINE == "numpy":
        lib, eigh, flip, place = np, np.linalg.eigh, lambda a: a[..., ::-1], np.ascontiguousarray
    else:
        import torch
        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        lib, eigh, flip, place = torch, torch.linalg.eigh, lambda a: a.flip(-1), torch.from_numpy
    kind = np.float64 if command["double"] else np.float32
    weights = [[place(np.ascontiguousarray(group, kind)) for group in groups] for groups in weights]
    ranks = []
    start = time.perf_counter()
    for groups in weights:
        parts = []
        for w in groups:
            tall = w.shape[0] > w.shape[1]
            values, vectors = eigh(w.T @ w if tall else w @ w.T)
            parts.append((w, tall, flip(values), flip(vectors)))
        rank = command["rank"]
        if rank is None:
            rank = 1
            for _, _, values, _ in parts:
                kept = lib.cumsum(values, 0) / values.sum()
                rank = max(rank, int((kept < command["energy"]).sum()) + 1)
        for w, tall, _, vectors in parts:
            v = vectors[:, :rank]
            basis, combination = (v.T, w @ v) if tall else (v.T @ w, v)
            factors = basis, combination  # noqa: F841
        ranks.append(rank)
    return {"seconds": time.perf_counter() - start, "ranks": ranks}


def load(path, images, batch):
    """A function that runs the network once."""
    nodes = network(path)[0]
    x = np.fromfile(images, np.float32).reshape([batch] + extents(nodes[0]["shape"]))
    if ENGINE in ("onnxruntime", "onnxruntime-cuda"):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        if ENGINE.endswith("-cuda"):
            onnxruntime.preload_dlls()  # CUDA's libraries from the wheels of PyTorch, where the system has none
        provider = "CUDAExecutionProvider" if ENGINE == "onnxruntime-cuda" else "CPUExecutionProvider"
        session = onnxruntime.InferenceSession(to_onnx(path, batch), options, providers=[(provider, {"use_tf32": "0"}) if "CUDA" in provider else provider])
        if session.get_providers()[0] != provider:
            raise RuntimeError(f"no {provider} here")
        bound = session.io_binding()
        bound.bind_cpu_input(nodes[0]["name"], x)
        bound.bind_output(session.get_outputs()[0].name)

        def run():
            session.run_with_iobinding(bound)
            return bound.get_outputs()[0].numpy()
        return run
    if ENGINE == "openvino":
        import openvino
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": "1",
                  "INFERENCE_PRECISION_HINT": "f32"}
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(to_onnx(path, batch)), "CPU", config)
        request = compiled.create_infer_request()
        tensor = openvino.Tensor(x, shared_memory=True)
        request.set_input_tensor(tensor)

        def run():
            request.infer()
            return request.get_output_tensor().data
        run.keep = (x, tensor, compiled)
        return run
    return torch_run(path, x)


RUN = None
for line in sys.stdin:
    command = json.loads(line)
    try:
        if "load" in command:
            RUN = None
            RUN = load(command["load"], command["images"], command["batch"])
            np.ascontiguousarray(RUN(), np.float32).tofile(command["logits"])
            answer = {"loaded": True}
        elif "train" in command:
            RUN = Training(command)
            answer = {"ready": True}
        elif "decompose" in command:
            answer = decompose(command)
        elif "steps" in command:
            answer = RUN.steps(command["steps"])
        elif "write" in command:
            with open(command["write"], "wb") as file:
                file.write(to_onnx(command["from"], 1))
            answer = {"written": True}
        else:
            if command["settle"]:
                RUN()
            times = []
            for _ in range(command["time"]):
                start = time.perf_counter()
                RUN()
                times.append((time.perf_counter() - start) * 1e3)
            answer = {"ms": times}
    except Exception as error:  # every failure is an answer
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(answer), flush=True)
