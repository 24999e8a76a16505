"""Softmax along rows: the whole row at once, or online in tiles as attention does it.

- `recipe.py`: Recipe, the places at which softmax kernels differ
- `catalogue.py`: the recipes by name
- `engine.py`: runs any recipe; `golden.py`: float64 and beyond
- `operator.py`: softmax as an operator of the framework, its parameters and inputs
"""
