"""``python -m benchmarks.gpu_peers``: the runtime beside what else a GPU's owner would use, against stated goals.

`networks.py` makes the networks, `works.py` what is timed and what is held against what, `report.py` the judgement.
"""
