""" "Is Flash Attention Stable?" (arXiv 2405.02803) and Table 3 of FlashAttention-3, measured.

plan.py    which cells the presets measure
claims.py  C1-C6 and the FlashAttention-3 comparison as predicates over rows
rows.py    picking rows, ratios and slopes with intervals over seeds
study.py   the two together
"""
