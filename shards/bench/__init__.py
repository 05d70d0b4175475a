"""`shards bench`: how fast sets are written beside other tools, what memory that takes, how fast a large set opens.

photos.py        the photos that everybody writes
contestants.py   who writes them: this package, webdataset's ShardWriter, Python's tarfile, tar
turns.py         each in a process of its own, one after the other, again and again
writing.py       speed and likeness
memory.py        the memory of `shards make` with a million tiny images
opening.py       a set of a hundred million samples, as sparse files
outcome.py       what a part found: tables, notes, goals
"""
