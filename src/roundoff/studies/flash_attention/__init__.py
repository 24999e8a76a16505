""" "Is Flash Attention Stable?" (arXiv 2405.02803) and Table 3 of FlashAttention-3, measured.

plan.py    which cells the presets measure
paper.py   C1-C6 and two findings of ours as predicates over rows
fa3.py     the FlashAttention-3 comparison
training.py  what is trained, and C7-C10
watched.py the real kernels' deviation while a model trains
claims.py  the claims on single calls by name
study.py   plan and claims together
"""
