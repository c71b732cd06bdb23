"""
The hostile trial: every door through which a stranger's file or word comes in gets thousands of bad ones, and each has
to end in a result or in one sentence.

`python -m tests.fuzz --cases 50000 --seed 1` runs it; `test_fuzz.py` runs 2,000 cases of it. A case is made from the
name of its door and its seed alone, so that `python -m tests.fuzz --door tables --seed 7` repeats one.
"""
