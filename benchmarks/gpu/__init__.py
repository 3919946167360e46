"""What the models of full size do on one GPU, with random weights: figures for `benchmarks/results/gpu.json`.

    python -m benchmarks.gpu [--size full|small] [--device cuda]

runs every script of this folder in a process of its own; each can be run alone. `--size small` runs the same code with
small models, in seconds on a CPU. Work is counted by `wmpo_ray.planning`, so shares of the measured ceiling of matrix
products compare the models' own operations with what the card does at best.
"""
