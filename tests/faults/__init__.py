"""
The trial by faults: commands are killed, stopped, denied room and permission, and given files that change under them.
The same command, given again, has to end in the bytes of an undisturbed run; or a sentence says why not, and nothing
is lost.

`python -m tests.faults --times 20 --seed 1` runs it; `test_faults.py` runs a short form. What happens in a case follows
from its task, its fault and its seed, so that `python -m tests.faults --task scoring --fault kill --seed 7` repeats
one, up to the speed of the machine where a fault strikes by the clock.
"""
