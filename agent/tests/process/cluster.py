"""A cluster manager as small as they come. SIGHUP makes it replace its workers.

Usage: cluster.py CURRENT PID_FILE MODE
"""

import os
import signal
import subprocess
import sys

current, pid_file, mode = sys.argv[1:]
kept = os.path.realpath(current)
workers = []
told = False


def spawn():
    directory = kept if mode == "keep" else current
    if told and mode == "crash":
        return subprocess.Popen(["sleep", "0.03"], cwd=directory)
    program = [sys.executable, os.path.join(directory, "worker.py")]
    if mode == "stubborn":
        program.append("stubborn")
    return subprocess.Popen(program, cwd=directory)


def reload(signum, frame):
    global workers, told
    told = True
    if mode == "ignore":
        return
    if mode == "exit":
        for worker in workers:
            worker.kill()
            worker.wait()
        os._exit(3)
    new = [spawn(), spawn()]
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()
    workers = new


def stop(signum, frame):
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()
    os._exit(0)


signal.signal(signal.SIGHUP, reload)
signal.signal(signal.SIGTERM, stop)
workers = [] if mode == "single" else [spawn(), spawn()]
for name in ("ready-0", "ready-1"):
    if workers:
        with open(os.path.join(os.path.dirname(pid_file), name), "w") as file:
            file.write("%d\n" % workers[int(name[-1])].pid)
with open(pid_file + ".new", "w") as file:
    file.write("%d\n" % os.getpid())
os.rename(pid_file + ".new", pid_file)
while True:
    if told and mode == "crash":
        for index, worker in enumerate(workers):
            worker.wait()
            workers[index] = spawn()
    else:
        signal.pause()
