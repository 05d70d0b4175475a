"""Loaders side by side: how many images a second a core turns from bytes into batches, ours and everybody else's.

task.py          what a contestant is asked to stream
process.py       a contestant's process: opens a stream, takes turns
race.py          starts the processes and lets them take turns
photos.py        the images that all of them read, in every format that one of them needs
outcome.py       rates, ratios and goals
tables.py        an outcome on the screen and as a page
demand.py        what a training config needs: its loader's speed beside its model's

Contestants, one a file, each with `open_stream(task)`: suite.py (the loader of this package), bare.py and bare_suite.py
(no loader at all), open_clip_recipe.py, webdataset_dct.py, mosaicml.py, imagefolder.py. They import what they need and
nothing of this package but task.py and pillow.py, so that one can live in an environment of its own.
"""
