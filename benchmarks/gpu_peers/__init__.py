"""``python -m benchmarks.gpu_peers``: the runtime beside what else a GPU's owner would use, against stated goals.

`networks.py` makes the networks; `works.py` and `training.py` say what is timed and what is held against what,
`listed.py` by which name; `report.py` times and judges, `picture.py` draws; `graph_check.py` checks the engine's
graphs.
"""
