"""Scaled dot-product attention: one engine, and recipes that say where each kernel rounds.

- `recipe.py`: Recipe: the places at which attention kernels differ
- `catalogue.py`: the recipes by name
- `engine.py` runs any recipe, by the steps of `steps.py`
- `golden.py`: float64, whole or at sampled rows
- `masks.py`, `operands.py`, `distributions.py`, `parameters.py`: what these need
- `operator.py`: attention as an operator of the framework
"""
