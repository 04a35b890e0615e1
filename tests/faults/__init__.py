"""Whatever is killed, whenever; whatever the kernel refuses; wherever the power goes.

    python -m tests.faults            every point of every scenario, and a table at the end
    python -m tests.faults --help     a part of them
    python -m tests.faults --only recovery     how long the next check takes to put it right

The points are not chosen by hand: a scenario is run once under strace, and each call that changes
disk, process or socket is one. A call that nobody has classified fails the run.
"""
