"""Clients that ask the same jobs again and again while processes are killed, and compare each answer with the one that its job
gets alone.

    wanted = {i: house.hearth(*job(i)).stdout for i in range(30)}
    with Streams(house, job, wanted, 8) as streams:
        ...                                       # kill, until enough has happened or streams.wrong
    len(streams.finished)                         # leaving has asserted that nothing was wrong"""
import random
import subprocess
import threading
import time

HUNG_S = 150  # an answer comes before


class Streams:
    def __init__(self, house, job, wanted, n, seed=0):
        self.house, self.job, self.wanted = house, job, wanted
        self.wrong, self.finished = [], []  # (job, exit code, stderr, answer); jobs
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(random.Random(seed * 1000 + i),)) for i in range(n)]

    def ask(self, chance):
        while not self.over.is_set():
            i = chance.choice(list(self.wanted))
            process = self.house.popen(*self.job(i))
            try:
                out, err = process.communicate(timeout=HUNG_S)
            except subprocess.TimeoutExpired:  # a hang is the worst result: say what hung
                process.kill()
                self.wrong.append((i, "hung"))
                return
            if process.returncode != 0 or out != self.wanted[i]:
                self.wrong.append((i, process.returncode, err.decode(), out, self.wanted[i]))
                return
            self.finished.append(i)

    def more(self, seconds=20):
        """Waits for another answer: who has just come gets so far."""
        before, until = len(self.finished), time.monotonic() + seconds
        while len(self.finished) == before and not self.wrong and time.monotonic() < until:
            time.sleep(0.05)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.over.set()
        for thread in self.threads:
            thread.join(HUNG_S + 50)
        if kind is None:
            assert not any(thread.is_alive() for thread in self.threads), self.house.log()[-6000:]
            assert not self.wrong, (self.wrong[0], self.house.log()[-6000:])
