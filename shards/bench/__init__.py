"""`shards bench`: how fast sets are written beside other tools, what memory that takes, how fast a large set opens.

photos.py        the photos that everybody writes
contestants.py   who writes them: this package here, others in shardwriter.py and others.py
turns.py         one after the other, again and again
writing.py       speed and likeness
memory.py        the memory of `shards make` with a million tiny images
opening.py       a set of a hundred million samples, as sparse files
outcome.py       what a part found: tables, notes, goals
"""
