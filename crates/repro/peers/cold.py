"""A deployment of ONNX Runtime: opens a model, runs it twice, and tells what that took.

    python cold.py MODEL.onnx IMAGES LOGITS BATCH THREADS      (MODEL "-": the interpreter with NumPy alone)
"""
import json
import sys
import time

import numpy as np

MODEL, IMAGES, LOGITS, BATCH, THREADS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])


def peak_kib():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM:")).split()[1])


if MODEL == "-":
    print("started", flush=True)
    print(json.dumps({"peak_kib": peak_kib()}))
    sys.exit()
import onnxruntime  # noqa: E402

print("started", flush=True)
images = np.fromfile(IMAGES, np.float32)
start = time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: images.reshape(session.get_inputs()[0].shape)}
answer = {"load_ms": (time.perf_counter() - start) * 1e3}
for key in ("first_ms", "second_ms"):
    start = time.perf_counter()
    logits = session.run(None, feed)[0]
    answer[key] = (time.perf_counter() - start) * 1e3
logits.astype(np.float32).tofile(LOGITS)
answer["peak_kib"] = peak_kib()
print(json.dumps(answer))
