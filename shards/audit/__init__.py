"""`shards audit`: what is wrong with a set that `shards check` calls whole.

images     every file read once: pixels phash traits            images.py
copies     which show the same: hamming confirm                 copies.py
meetings   who that is: relations                               meetings.py
findings   copies, groups, tells, balance, single images        findings.py groups.py tells.py balance.py
drops      which images to leave out                            drops.py
output     page, lists, screen                                  report.py lists.py
"""

THRESHOLD_BITS = 8
TINY_PX = 32
