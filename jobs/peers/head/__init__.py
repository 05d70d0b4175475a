"""Heads side by side: a whole step of ArcFace over many classes (forward, backward, update), ours and everybody else's.

config.py        what of it a config says
task.py          what a contestant is asked to build, and the inputs that all of them see
process.py       a contestant's process, one a rank: builds its step, measures its memory, takes turns
race.py          starts the processes and lets them take turns
outcome.py       times, memory, ratios and goals
tables.py        an outcome on the screen and as a page

Contestants, one a file, each with `build(task, world)`, which gives a function that takes a step and returns the loss:
suite.py (this package), bare.py (nothing but the three matrix products), metric_learning.py, partial_fc.py. What lives in
an environment of its own imports nothing of this package but task.py.
"""
