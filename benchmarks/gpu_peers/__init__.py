"""The GPU runtime beside other ways to run the same network, on one card: ``python -m benchmarks.gpu_peers``.

`works` says what is timed, `networks` and `unpadded` who takes part; `kernels` and `training` hold the works on single
ops and on a step of distillation; `goals` says what is asked for, `measure` how a work is checked and timed, `report`
how it is told. ``--rehearse`` runs all of it on a CPU with a tiny network: it checks answers, and its times mean
nothing.
"""
