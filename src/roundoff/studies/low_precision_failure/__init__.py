"""The study of "Why Low-Precision Transformer Training Fails" (arXiv 2510.04212), operator scale.

- `plan.py`: what is measured; `claims.py`: what is said, and the predicate for it
- `captured.py`: inputs of a trained model; `trained.py`: the claim on them
- `study.py`: all as a study
"""
