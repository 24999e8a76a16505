"""Training: does a deviation of one operator move the weights, and is that much?

variants.py      a way to run a model: another attention, format, or any patch
arms.py          one difference from the baseline, by name
experiment.py    what is trained, as a value, and its repeats
runner.py        one arm, a step at a time
lab.py           the arms of one repeat in lock step
checkpoint.py    a repeat's state on the disk
sweep.py         repeats over an executor, into a run
timing.py        what a candidate's step takes
peak.py          ... and the most memory that it takes
verdict.py       from lines to answers: yardsticks, growth, noise or bias
shadow.py        the direct error of a candidate, in any training loop
undisturbed.py   a block that leaves no trace in a model
redraw.py        the low bits of weights, drawn anew and put back
processes.py     what a shadow has to do with models in several processes
"""
