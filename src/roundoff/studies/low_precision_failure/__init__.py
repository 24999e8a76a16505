"""The study of "Why Low-Precision Transformer Training Fails" (arXiv 2510.04212), operator scale.

- `plan.py`: what is measured; `claims.py`: what is said, and the predicate for it
- `study.py`: both as a study
"""
