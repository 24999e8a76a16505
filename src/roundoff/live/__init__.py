"""Watching a training while it runs, without disturbing it.

monitor.py      Monitor: the clock, and what happens when
watch.py        what is watched, from Python or TOML
sources.py      parameters, gradients, updates, moments
activations.py  outputs of modules
attention.py    calls of attention, and the shadow golden
fields.py       what is wrong with what a user gave
compiled.py     what cannot be watched
left_out.py     what cannot be read
ranks.py        several processes
findings.py     what stands out
sinks/          where readings go, one file each
integrations/   Hugging Face's Trainer, Lightning, one file each
"""
