"""Training: does a deviation of one operator move the weights, and is that much?

variants.py   a candidate as a way to run a model: another attention, format, or any patch
redraw.py     the low bits of weights, drawn anew and put back
shadow.py     the direct error of a candidate, in any training loop
"""
