"""The CPU runtime beside other engines, all on the same weights, in one process: ``python -m benchmarks.cpu_peers``.

Peers are no requirement of this project: ``pip install -c constraints.txt -c constraints-peers.txt openvino onnxruntime
onnx onnxscript``.
One that is not installed is named as not measured. See `works` for what is timed and `peers` for who takes part.
"""
