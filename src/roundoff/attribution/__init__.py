"""Where a deviation comes from: `explain` finds a kernel's recipe, over the sites of any operator.

witness.py  what a kernel gives on the probes
search.py   the recipe that gives the same bits
residue.py  what is left over on natural inputs, and the verdict
explain.py  the three together
emit.py     the explanation as files
"""
