"""Where a deviation comes from, over the sites of any operator.

explain.py  which recipe a kernel follows: `witness` asks the kernel, `search` finds the
            recipe that gives its bits, `residue` measures what is left, `emit` writes files
ablate.py   which site causes which share of the error: `coalitions` of exact sites, `shapley`
            values over them, `summary` and `ablation` of the shares, `sweep` of the rest
"""
